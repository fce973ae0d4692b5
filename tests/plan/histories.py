"""Random histories of backups and log, and an oracle that knows nothing of the planner: it tries every moment.

Time is counted in hours from 2026-01-01; a history's position is a number that grows with time unless the server is
idle, and falls back when it is restored to an earlier moment (another branch), or begins anew (another history).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tiering.model_backup import (
    Backup,
    BackupKind,
    BackupSchedule,
    BackupState,
    CatalogueEntry,
    LogRange,
    StoredObject,
    StoreName,
    StoreStrategy,
)

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
FULL, INCREMENTAL, AOF = BackupKind.FULL, BackupKind.INCREMENTAL, BackupKind.AOF
PG, MONGO, REDIS = StoreName.POSTGRESQL, StoreName.MONGODB, StoreName.REDIS
STATES = (BackupState.UPLOADED, BackupState.VERIFIED, BackupState.PROVEN, BackupState.FAILED)


def at_hour(hour: float) -> datetime:
    return EPOCH + timedelta(hours=hour)


@dataclass(frozen=True)
class Moment:
    """Where the server was at an hour: which history, which branch, and up to which position."""

    hour: int
    incarnation: str
    branch: int
    position: int


@dataclass
class History:
    """What happened, and what is kept of it."""

    strategy: StoreStrategy
    now: datetime
    moments: list[Moment] = field(default_factory=list)
    forks: dict[tuple[str, int], int] = field(default_factory=dict)
    entries: list[CatalogueEntry] = field(default_factory=list)
    logs: list[LogRange] = field(default_factory=list)


def strategy_of(choice: random.Random) -> StoreStrategy:
    store = choice.choice([PG, PG, MONGO, REDIS])
    days = sorted(choice.sample(range(1, 12), 3))
    kept = {FULL: timedelta(days=days[2]), INCREMENTAL: timedelta(days=days[1])}
    if store is not PG:
        kept = {FULL: kept[FULL]} | ({AOF: timedelta(days=days[0])} if store is REDIS else {})
    schedules = tuple(BackupSchedule(kind, ()) for kind in kept)
    return StoreStrategy(store, schedules, kept, None if store is REDIS else timedelta(days=days[0]))


def make_history(seed: int) -> History:
    """Draw a history: missed and failed backups, holes in the log, idle servers, restores, new incarnations."""
    choice = random.Random(seed)
    strategy = strategy_of(choice)
    hours = choice.randrange(24, 24 * 20)
    found = History(strategy, at_hour(hours + choice.choice([0, 0, 0, 1, 5, 10, 23, 30])))
    weights = choice.choice([(1, 1, 1, 1), (1, 1, 6, 1), (0, 0, 1, 0), (2, 4, 4, 1), (1, 0, 3, 0), (9, 9, 2, 9)])
    full_every, more_every = choice.choice([12, 24, 24, 48]), choice.choice([3, 4, 8])
    hole, missed, turn = choice.choice([0, 0, 0.02, 0.2]), choice.choice([0, 0.1, 0.5]), choice.choice([0, 0.003, 0.02])
    name, branch, position, idle = "0001", 1 if strategy.store is PG else 0, 10_000, False
    for hour in range(hours):
        if choice.random() < turn:
            name, branch, position = _turn(found, choice, name, branch, position)
        idle = idle if choice.random() > 0.05 else not idle
        before, position = position, position + (0 if idle else choice.randrange(1, 50))
        found.moments.append(Moment(hour, name, branch, position))
        if strategy.log_window and position > before and choice.random() >= hole:
            found.logs.append(_log(strategy.store, name, branch, before, position, hour))
        kind = FULL if hour % full_every == 2 else _lesser(strategy) if hour % more_every == 1 else None
        if kind and choice.random() >= missed:
            _back_up(found, choice, kind, Moment(hour, name, branch, position), before, weights)
    return found


def _lesser(strategy: StoreStrategy) -> BackupKind | None:
    return next((kind for kind in strategy.retention if kind is not FULL), None)


def _turn(found: History, choice: random.Random, name: str, branch: int, position: int) -> tuple[str, int, int]:
    if found.strategy.store is PG and choice.random() < 0.7:
        back = position - choice.choice([0, 0, 30, 300])
        fork = max(back, found.forks.get((name, branch), 10_000))
        found.forks[name, branch + 1] = fork
        return name, branch + 1, fork
    return f"{int(name) + 1:04d}", 1 if found.strategy.store is PG else 0, choice.choice([10_000, 20_000])


def position_text(store: StoreName, number: int) -> str:
    return f"{number >> 8:X}/{number & 255:X}" if store is PG else f"{number},1"


def _log(store: StoreName, name: str, branch: int, begins: int, ends: int, hour: int) -> LogRange:
    span = (position_text(store, begins), position_text(store, ends))
    stored = StoredObject(f"log/{store}/main/{name}/{branch}/{begins}", 0, 1, "")
    return LogRange(store, "main", name, branch, *span, stored, at_hour(hour + 0.5))


def _back_up(
    found: History, choice: random.Random, kind: BackupKind, at: Moment, before: int, weights: Sequence[int]
) -> None:
    store, parent = found.strategy.store, None
    if kind is INCREMENTAL:
        parents = [e.backup for e in found.entries if e.backup.incarnation == at.incarnation]
        if not parents:
            return
        parent = choice.choice(parents[-3:]).backup_id
    backup_id = f"{at_hour(at.hour):%Y%m%dT%H%M%SZ}-{kind}-{len(found.entries):06x}"
    facts = {"timeline": at.branch} if store is PG else {}
    span = (position_text(store, before), position_text(store, at.position))
    backup = Backup(
        backup_id, store, "main", kind, parent, at.incarnation, at_hour(at.hour), at_hour(at.hour + 0.5), *span, (),
        facts,
    )  # fmt: skip
    found.entries.append(CatalogueEntry(backup, choice.choices(STATES, weights)[0]))


# -- the oracle: tries everything ------------------------------------------------------------------------------------


def number(position: str) -> int:
    if "/" in position:
        high, low = position.split("/")
        return (int(high, 16) << 8) + int(low, 16)
    return int(position.split(",")[0])


def chain(entry: CatalogueEntry, entries: Iterable[CatalogueEntry]) -> list[CatalogueEntry] | None:
    """A backup and all it rests on; None if something of it is missing or failed."""
    by_id = {one.backup.backup_id: one for one in entries}
    found = [entry]
    while found[-1].backup.parent_id:
        if (below := by_id.get(found[-1].backup.parent_id)) is None:
            return None
        found.append(below)
    return None if any(one.state is BackupState.FAILED for one in found) else found


def restorable(
    history: History, entries: Sequence[CatalogueEntry], logs: Sequence[LogRange]
) -> tuple[set[int], set[int]]:
    """The hours whose moment can be brought back from what is there: resting on any backup, and on a proven one."""
    spans = _spans(logs)
    found: tuple[set[int], set[int]] = (set(), set())
    for entry in entries:
        if chain(entry, entries) is not None:
            hours = set(_hours(history, entry.backup, spans))
            found[0].update(hours)
            found[1].update(hours if entry.state is BackupState.PROVEN else ())
    return found


Spans = dict[tuple[str, int], list[tuple[int, int]]]


def _spans(logs: Iterable[LogRange]) -> Spans:
    """The log of each branch as stretches that do not touch."""
    found: Spans = defaultdict(list)
    for log in sorted(logs, key=lambda one: number(one.begins)):
        here = found[log.incarnation, log.timeline]
        begins, ends = number(log.begins), number(log.ends)
        if here and begins <= here[-1][1]:
            here[-1] = (here[-1][0], max(here[-1][1], ends))
        else:
            here.append((begins, ends))
    return found


def _hours(history: History, backup: Backup, spans: Spans) -> Iterator[int]:
    """The hours after a backup whose moments it leads to: by each branch as far as the log goes."""
    first = int(str(backup.facts.get("timeline", 0)))
    reach: dict[int, int] = {}
    for one in history.moments:
        if one.incarnation != backup.incarnation or one.branch < first or backup.ended_at > at_hour(one.hour + 0.5):
            continue
        if one.branch not in reach:
            reach[one.branch] = _reach(history, backup, first, one.branch, spans)
        if number(backup.ends) <= one.position <= reach[one.branch]:
            yield one.hour


def _reach(history: History, backup: Backup, first: int, branch: int, spans: Spans) -> int:
    """How far the log leads along the path to a branch; each branch of it counts up to the next one's fork."""
    forks = [history.forks[backup.incarnation, later] for later in range(first + 1, branch + 1)]
    position = number(backup.begins if backup.store is PG else backup.ends)
    if forks and number(backup.ends) > forks[0]:
        return -1
    for on, limit in zip(range(first, branch + 1), [*forks, 10**9], strict=True):
        ends = [end for begin, end in spans[backup.incarnation, on] if begin <= position < end]
        position = max(position, min(max(ends, default=0), limit))
        if position < limit:
            return position
    raise AssertionError("the last branch has no limit")


def startable(backup: Backup, logs: Sequence[LogRange]) -> bool:
    """Whether the log of the backup's own time is there."""
    if backup.store is not PG:
        return True
    position = number(backup.begins)
    for log in sorted(logs, key=lambda one: number(one.begins)):
        same = (log.incarnation, log.timeline) == (backup.incarnation, backup.facts["timeline"])
        if same and number(log.begins) <= position:
            position = max(position, number(log.ends))
    return position >= number(backup.ends)
