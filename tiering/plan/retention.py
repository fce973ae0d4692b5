"""Decide which backups and which log may go: nothing that a promise needs, and nothing stays without a reason.

The promises, for each store and source:

- a backup of a kind is kept for as long as the strategy says, failed ones too: somebody may want to know why;
- every moment of the log's window that can be brought back now can be so afterwards, as well proven as before: for
  each history the newest usable backup that ended before the window, the newest proven one, and all log from there;
- an older kept backup keeps the log of its own time, without which it cannot be started;
- what a kept backup rests on is kept; the newest two proven full backups are kept however old they are.

Nothing goes while no full backup is proven, or when the clock has run away from the newest backup.

Does not: look at a clock or at a bucket, or destroy anything: `ops/sweep_backups.py` carries it out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tiering.model_backup import (
    Backup,
    BackupKind,
    BackupState,
    CatalogueEntry,
    LogRange,
    StoreName,
    StoreStrategy,
    encode_position,
)

PROVEN_MIN = 2
"""Full backups that are proven and kept, however old."""

CLOCK_AHEAD_MAX = timedelta(hours=24)

_BEHIND_ALL = "~"
"""A text behind every encoded position."""

_NEEDS_LOG_TO_START = (StoreName.POSTGRESQL,)
"""Stores whose backups are consistent only after the log of their own time was replayed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a backup, and why."""

    entry: CatalogueEntry
    is_kept: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogVerdict:
    """What becomes of a stretch of log, and why."""

    log: LogRange
    is_kept: bool
    reason: str


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """What may go of one source, in the order of going: backups before what they rest on, then log, oldest first.

    Attributes:
        refused: why nothing may go at all; empty if something may.
    """

    store: StoreName
    source: str
    now: datetime
    backups: tuple[Verdict, ...]
    logs: tuple[LogVerdict, ...]
    refused: str = ""

    @property
    def removed(self) -> tuple[Verdict, ...]:
        """List the backups that go."""
        return tuple(one for one in self.backups if not one.is_kept)

    @property
    def removed_logs(self) -> tuple[LogVerdict, ...]:
        """List the log that goes."""
        return tuple(one for one in self.logs if not one.is_kept)


def plan_retention(
    strategy: StoreStrategy,
    source: str,
    entries: Sequence[CatalogueEntry],
    logs: Sequence[LogRange],
    now: datetime,
    forks: Mapping[tuple[str, int], str] | None = None,
) -> RetentionPlan:
    """Decide about all backups and all log of one source.

    Args:
        strategy: of the store.
        source: which of its servers.
        entries: its backups, all of them.
        logs: its log, all of it.
        now: the instant of judging.
        forks: where each branch of a history began, as far as known.
    """
    mine = sorted(entries, key=lambda entry: entry.backup.backup_id)
    bases = _Bases(strategy, mine, logs, now, forks or {})
    reasons = _reasons(strategy, mine, bases, now)
    if refused := _refusal(mine, logs, reasons, now):
        kept = tuple(Verdict(entry, True, tuple(reasons[entry.backup.backup_id]) or (refused,)) for entry in mine)
        every = tuple(LogVerdict(log, True, refused) for log in logs)
        return RetentionPlan(strategy.store, source, now, kept, every, refused)
    backups = tuple(
        Verdict(entry, bool(why), tuple(why) or (_removal(strategy, entry),))
        for entry in reversed(mine)
        for why in [reasons[entry.backup.backup_id]]
    )
    stays = [one.entry.backup for one in backups if one.is_kept]
    return RetentionPlan(strategy.store, source, now, backups, _judge_logs(strategy, stays, bases))


def usable(entries: Iterable[CatalogueEntry]) -> list[CatalogueEntry]:
    """Choose the backups that a restore may rest on: not failed, and neither is anything below them."""
    by_id = {entry.backup.backup_id: entry for entry in entries}
    return [entry for entry in by_id.values() if _is_whole(entry, by_id)]


def _is_whole(entry: CatalogueEntry, by_id: Mapping[str, CatalogueEntry]) -> bool:
    seen: set[str] = set()
    below: CatalogueEntry | None = entry
    while below is not None and below.state is not BackupState.FAILED:
        parent = below.backup.parent_id
        if parent is None:
            return below.backup.kind is not BackupKind.INCREMENTAL
        if parent in seen:
            return False
        seen.add(parent)
        below = by_id.get(parent)
    return False


def _reasons(
    strategy: StoreStrategy, entries: Sequence[CatalogueEntry], bases: _Bases, now: datetime
) -> dict[str, list[str]]:
    """Give every backup the reasons why it is kept."""
    reasons: dict[str, list[str]] = {entry.backup.backup_id: [] for entry in entries}
    for entry in entries:
        kept_for = strategy.retention.get(entry.backup.kind, strategy.retention[BackupKind.FULL])
        if entry.backup.ended_at >= now - kept_for:
            reasons[entry.backup.backup_id].append(f"{entry.backup.kind} backups are kept for {_days(kept_for)}")
    for backup, why in _last_proven(entries) + bases.chosen:
        reasons[backup.backup_id].append(why)
    parents = {entry.backup.backup_id: entry.backup.parent_id for entry in entries}
    # Newest first: a parent that is kept for a child's sake keeps its own parent.
    for entry in reversed(entries):
        parent = parents[entry.backup.backup_id]
        if reasons[entry.backup.backup_id] and parent in reasons:
            _keep_chain(entry.backup.backup_id, parents, reasons)
    return reasons


def _keep_chain(backup_id: str, parents: Mapping[str, str | None], reasons: dict[str, list[str]]) -> None:
    child, parent = backup_id, parents[backup_id]
    while parent in reasons and not any(why.startswith(f"{child} ") for why in reasons[parent]):
        reasons[parent].append(f"{child} rests on it")
        child, parent = parent, parents[parent]


def _last_proven(entries: Sequence[CatalogueEntry]) -> list[tuple[Backup, str]]:
    """Keep the newest proven backups of each kind, however old they are."""
    sound = [entry for entry in usable(entries) if entry.state is BackupState.PROVEN]
    found = []
    for kind in (BackupKind.FULL, BackupKind.AOF):
        newest = sorted((e.backup for e in sound if e.backup.kind is kind), key=_by_end)[-PROVEN_MIN:]
        found += [(backup, f"one of the newest {PROVEN_MIN} proven {kind} backups") for backup in newest]
    return found


@dataclass(frozen=True, slots=True)
class _Log:
    """A stretch of log with its positions as texts that sort."""

    log: LogRange
    begins: str
    ends: str


class _Bases:
    """What the moments of the log's window are replayed from, history by history and branch by branch."""

    def __init__(
        self,
        strategy: StoreStrategy,
        entries: Sequence[CatalogueEntry],
        logs: Sequence[LogRange],
        now: datetime,
        forks: Mapping[tuple[str, int], str],
    ) -> None:
        self._forks = {key: encode_position(position) for key, position in forks.items()}
        self.has_window = strategy.log_window is not None
        self.opens = now - (strategy.log_window or timedelta())
        self.logs: dict[str, list[_Log]] = defaultdict(list)
        for log in logs:
            self.logs[log.incarnation].append(_Log(log, encode_position(log.begins), encode_position(log.ends)))
        for here in self.logs.values():
            here.sort(key=lambda one: one.begins)
        self._signs = [(one.stored_at, one.incarnation, one.timeline) for one in logs]
        self._signs += [
            (entry.backup.ended_at, entry.backup.incarnation, _timeline(entry.backup))
            for entry in entries
            if entry.backup.incarnation
        ]
        self._usable: dict[str, list[CatalogueEntry]] = defaultdict(list)
        for entry in usable(entries) if self.has_window else ():
            self._usable[entry.backup.incarnation].append(entry)
        self.chosen = [pair for history in list(self._usable) for pair in self._choose(history)]

    def floor(self, history: str) -> str | None:
        """Return the position from which a history's log is needed; None if nothing is replayed from anywhere."""
        bases = [backup for backup, _ in self.chosen if backup.incarnation == history]
        bases += [one.backup for one in self._usable.get(history, ()) if one.backup.ended_at >= self.opens]
        return min((encode_position(replayed_from(backup)) for backup in bases), default=None)

    def _choose(self, history: str) -> list[tuple[Backup, str]]:
        """Choose the newest usable and the newest proven backup before the window for each branch that it shows."""
        mine, logs = self._usable[history], self.logs.get(history, [])
        old = [entry for entry in mine if entry.backup.ended_at < self.opens]
        proven = [entry for entry in old if entry.state is BackupState.PROVEN]
        began = {branch: position for (name, branch), position in self._forks.items() if name == history}
        for one in logs:
            began[one.log.timeline] = min(one.begins, began.get(one.log.timeline, one.begins))
        found: dict[str, tuple[Backup, str]] = {}
        for branch in self._shown(history):
            whole_from = self._whole_from(logs, branch)
            for entries, what in ((old, "newest backup"), (proven, "newest proven backup")):
                leading = [one.backup for one in entries if _first_needed(one.backup) >= whole_from]
                for backup in _newest_on_branch(leading, began, branch):
                    why = f"the {what} that the window of the log is replayed from"
                    found.setdefault(backup.backup_id, (backup, why))
        return list(found.values())

    def _shown(self, history: str) -> list[int]:
        """List the branches of a history that were in force inside the window.

        Those that left a sign in it; and that of the last sign before it: a server that stands still leaves no more.
        """
        shown = {branch for at, name, branch in self._signs if at >= self.opens and name == history}
        last = max((sign for sign in self._signs if sign[0] < self.opens), default=None)
        return sorted(shown | ({last[2]} if last and last[1] == history else set()))

    def _whole_from(self, logs: Iterable[_Log], branch: int) -> str:
        """Return the position from which no log of a branch is missing up to the window.

        Earlier branches are taken together with it: without their histories it is not known which it grew out of, and
        to keep too much is the lesser evil.
        """
        covered, whole_from = "", ""
        for one in logs:
            if one.log.timeline <= branch:
                is_own = one.log.timeline == branch
                if one.begins > covered and is_own and one.log.stored_at < self.opens:
                    whole_from = one.begins
                covered = max(covered, one.ends)
        return whole_from


def _newest_on_branch(leading: Sequence[Backup], began: Mapping[int, str], branch: int) -> list[Backup]:
    """Choose the newest of a branch; where it has none, the newest of each earlier one from before a later one began.

    Why several: without the histories of the branches it is not known which grew out of which.
    """
    if own := [backup for backup in leading if _timeline(backup) == branch]:
        return [max(own, key=_by_end)]
    found = []
    for earlier in {_timeline(backup) for backup in leading if _timeline(backup) < branch}:
        forks = [began[later] for later in began if earlier < later <= branch]
        for fork in forks or [_BEHIND_ALL]:
            fitting = [one for one in leading if _timeline(one) == earlier and encode_position(one.ends) <= fork]
            found += [max(fitting, key=_by_end)] if fitting else []
    return found


def _first_needed(backup: Backup) -> str:
    """Return the first position that the log has to have for a backup."""
    position = encode_position(replayed_from(backup))
    if backup.store in _NEEDS_LOG_TO_START:
        return position
    head, dot, tail = position.rpartition(".")
    return f"{head}{dot}{int(tail) + 1:0{len(tail)}d}"


def replayed_from(backup: Backup) -> str:
    """Return the position from which a restore needs the log."""
    return backup.begins if backup.store in _NEEDS_LOG_TO_START else backup.ends


def _judge_logs(strategy: StoreStrategy, kept: Sequence[Backup], bases: _Bases) -> tuple[LogVerdict, ...]:
    """Judge every stretch of log; those that came first come first."""
    own = [_own_log(backup) for backup in kept if strategy.store in _NEEDS_LOG_TO_START and backup.begins]
    found = []
    for history, logs in bases.logs.items():
        floor = bases.floor(history)
        mine = [one for one in own if one[1] == history]
        for one in logs:
            why = _why_kept(one, floor, mine, bases.opens) if bases.has_window else ""
            found.append(LogVerdict(one.log, bool(why), why or "no moment of the window is replayed through it"))
    return tuple(sorted(found, key=lambda verdict: verdict.log.stored_at))


def _why_kept(one: _Log, floor: str | None, own: Sequence[tuple[str, str, str, str]], opens: datetime) -> str:
    if one.log.stored_at >= opens:
        return "inside the window"
    if floor is not None and one.ends > floor:
        return "the window is replayed through it"
    users = (backup_id for backup_id, _, first, last in own if one.begins < last and one.ends > first)
    backup_id = next(users, None)
    return f"{backup_id} starts only with it" if backup_id else ""


def _own_log(backup: Backup) -> tuple[str, str, str, str]:
    return backup.backup_id, backup.incarnation, encode_position(backup.begins), encode_position(backup.ends)


def _refusal(
    entries: Sequence[CatalogueEntry], logs: Sequence[LogRange], reasons: Mapping[str, Sequence[str]], now: datetime
) -> str:
    """Say why nothing may go, if so."""
    if not entries:
        return "there is no backup"
    newest = max([entry.backup.ended_at for entry in entries] + [log.stored_at for log in logs])
    if now - newest > CLOCK_AHEAD_MAX:
        return f"the newest backup is of {newest:%Y-%m-%d %H:%M}Z: either none was taken since, or the clock is wrong"
    proven = [
        e for e in usable(entries) if e.state is BackupState.PROVEN and e.backup.kind is not BackupKind.INCREMENTAL
    ]
    if not any(reasons[entry.backup.backup_id] for entry in proven):
        return "no full backup is proven"
    return ""


def _removal(strategy: StoreStrategy, entry: CatalogueEntry) -> str:
    kept_for = strategy.retention.get(entry.backup.kind, strategy.retention[BackupKind.FULL])
    return f"older than {_days(kept_for)}, and nothing rests on it"


def _days(length: timedelta) -> str:
    days, seconds = length.days, length.seconds
    return f"{days} d" if not seconds else f"{length.total_seconds() / 3600:g} h"


def _timeline(backup: Backup) -> int:
    return int(str(backup.facts.get("timeline", 1 if backup.store is StoreName.POSTGRESQL else 0)))


def _by_end(backup: Backup) -> tuple[datetime, str]:
    return backup.ended_at, backup.backup_id
