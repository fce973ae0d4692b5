"""Retention against an oracle that tries every moment: nothing promised is lost, nothing stays without a reason.

`python -m tests.plan.test_retention 20000 [SEED]` is the whole campaign; `make test` runs a sample.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from tests.plan.histories import (
    AOF,
    FULL,
    INCREMENTAL,
    PG,
    History,
    at_hour,
    chain,
    make_history,
    number,
    position_text,
    restorable,
    startable,
)  # fmt: skip
from tiering.model_backup import BackupState, CatalogueEntry, LogRange
from tiering.plan.retention import PROVEN_MIN, RetentionPlan, plan_retention

SAMPLE = 300
SEED = 20261123


def plan_of(
    history: History, entries: Sequence[CatalogueEntry] | None = None, logs: Sequence[LogRange] | None = None
) -> RetentionPlan:
    entries, logs = history.entries if entries is None else entries, history.logs if logs is None else logs
    forks = {key: position_text(history.strategy.store, fork) for key, fork in history.forks.items()}
    return plan_retention(history.strategy, "main", entries, logs, history.now, forks)


def kept_of(plan: RetentionPlan) -> tuple[list[CatalogueEntry], list[LogRange]]:
    return [one.entry for one in plan.backups if one.is_kept], [one.log for one in plan.logs if one.is_kept]


def promised(history: History) -> set[int]:
    """The hours inside the log's window; a server that stands still is at its last moment until now."""
    if history.strategy.log_window is None:
        return set()
    opens = history.now - history.strategy.log_window
    return {one.hour for one in history.moments if at_hour(one.hour + 1.5) > opens}


def check(history: History) -> Counter[str]:
    """Judge one plan; AssertionError names what it did wrong."""
    plan = plan_of(history)
    entries, logs = kept_of(plan)
    seen: Counter[str] = Counter(refused=bool(plan.refused), removed=len(plan.removed), logs=len(plan.removed_logs))
    assert {one.entry.backup.backup_id for one in plan.backups} == {e.backup.backup_id for e in history.entries}
    assert all(one.reasons and all(one.reasons) for one in plan.backups)
    assert all(one.reason for one in plan.logs)
    if plan.refused:
        assert not plan.removed
        assert not plan.removed_logs
        return seen
    seen["moments"] += check_moments(history, entries, logs)
    check_kept_backups(history, plan, entries, logs)
    check_no_excess(history, plan, entries, logs)
    check_every_crash(history, plan)
    again = plan_of(history, entries, logs)
    assert not again.removed
    assert not again.removed_logs
    return seen


def check_moments(history: History, entries: Sequence[CatalogueEntry], logs: Sequence[LogRange]) -> int:
    hours = promised(history)
    had, have = (restorable(history, *one) for one in ((history.entries, history.logs), (entries, logs)))
    for before, after in zip(had, have, strict=True):
        assert not (before & hours) - after, "moments were lost"
    return len(had[0] & hours)


def check_kept_backups(
    history: History, plan: RetentionPlan, entries: Sequence[CatalogueEntry], logs: Sequence[LogRange]
) -> None:
    kept_for = history.strategy.retention
    for entry in history.entries:
        backup = entry.backup
        if backup.ended_at >= history.now - kept_for[backup.kind]:
            assert entry in entries, "a backup of an age that is promised"
    ids = {entry.backup.backup_id for entry in entries}
    every = {entry.backup.backup_id for entry in history.entries}
    for entry in entries:
        if entry.backup.parent_id in every:
            assert entry.backup.parent_id in ids, "a broken chain"
        if startable(entry.backup, history.logs):
            assert startable(entry.backup, logs), "a backup that starts no more"
    proven = [e for e in history.entries if e.state is BackupState.PROVEN and chain(e, history.entries)]
    for kind in (FULL, AOF):
        of_kind = sorted((e for e in proven if e.backup.kind is kind), key=lambda e: e.backup.ended_at)
        assert all(entry in entries for entry in of_kind[-PROVEN_MIN:]), "the last proven backups"


def check_no_excess(
    history: History, plan: RetentionPlan, entries: Sequence[CatalogueEntry], logs: Sequence[LogRange]
) -> None:
    """Where there are no branches, whatever is kept beyond age and chain is missed by some moment or count."""
    if any(one.branch > 1 for one in history.moments) or is_window_torn(history):
        return
    for entry in entries:
        backup = entry.backup
        is_aged = backup.ended_at < history.now - history.strategy.retention[backup.kind]
        has_children = any(one.backup.parent_id == backup.backup_id for one in entries)
        if is_aged and not has_children and not is_last_proven(history, entry):
            # Without what is older, too: on an idle server an older one may lead to the very same moments.
            others = [one for one in entries if one.backup.ended_at > backup.ended_at]
            assert is_missed(history, others, logs, entries, logs), f"kept for nothing: {backup.backup_id}"
    opens = history.now - history.strategy.log_window if history.strategy.log_window else history.now
    old = [log for log in logs if log.stored_at < opens]
    if old and history.strategy.log_window:
        for log in random.Random(SEED).sample(old, min(3, len(old))):
            others_log = [one for one in logs if one is not log]
            needed = is_missed(history, entries, others_log, entries, logs) or any(
                startable(e.backup, logs) and not startable(e.backup, others_log) for e in entries
            )
            covers = any(overlaps(e, log) for e in entries)
            assert needed or covers, f"log kept for nothing: {log.begins}"


def is_window_torn(history: History) -> bool:
    """Whether log is missing just where the window opens: nobody knows on which side, and nothing goes for it."""
    opens = history.now - (history.strategy.log_window or timedelta())
    signs = [(log.stored_at, log.incarnation) for log in history.logs]
    signs += [(entry.backup.ended_at, entry.backup.incarnation) for entry in history.entries]
    last = max((sign for sign in signs if sign[0] < opens), default=None)
    there = [one.incarnation for one in history.moments if at_hour(one.hour + 1.5) > opens]
    if last and last[1] not in there:
        return True
    for incarnation in {log.incarnation for log in history.logs if log.stored_at >= opens}:
        mine = [log for log in history.logs if log.incarnation == incarnation]
        before = max((number(log.ends) for log in mine if log.stored_at < opens), default=None)
        first = min(number(log.begins) for log in mine if log.stored_at >= opens)
        if before is not None and first > before:
            return True
    return last is not None and lost_its_end(history, last[1], opens)


def lost_its_end(history: History, incarnation: str, opens: datetime) -> bool:
    """Whether the last log of a history that ended about then was lost: there is no sign that it ever was."""
    mine = [log for log in history.logs if log.incarnation == incarnation]
    reached = max(one.position for one in history.moments if one.incarnation == incarnation)
    return all(log.stored_at < opens for log in mine) and max((number(log.ends) for log in mine), default=0) < reached


def overlaps(entry: CatalogueEntry, log: LogRange) -> bool:
    """The log of a kept backup's own time stays, even where another part of it is missing."""
    backup = entry.backup
    is_same = backup.store is PG and backup.incarnation == log.incarnation
    return is_same and number(log.begins) < number(backup.ends) and number(log.ends) > number(backup.begins)


def is_missed(
    history: History,
    entries: Sequence[CatalogueEntry],
    logs: Sequence[LogRange],
    more_entries: Sequence[CatalogueEntry],
    more_logs: Sequence[LogRange],
) -> bool:
    hours = promised(history)
    fewer, more = restorable(history, entries, logs), restorable(history, more_entries, more_logs)
    return any((one & hours) - other for one, other in zip(more, fewer, strict=True))


def is_last_proven(history: History, entry: CatalogueEntry) -> bool:
    newer = [
        one for one in history.entries
        if one.state is BackupState.PROVEN and one.backup.kind is entry.backup.kind
        and chain(one, history.entries) and one.backup.ended_at > entry.backup.ended_at
    ]  # fmt: skip
    return entry.state is BackupState.PROVEN and len(newer) < PROVEN_MIN and entry.backup.kind is not INCREMENTAL


def check_every_crash(history: History, plan: RetentionPlan) -> None:
    """Carried out up to anywhere, then planned again: never a child without its parent, and the same end."""
    gone = [one.entry.backup.backup_id for one in plan.removed]
    ids = {entry.backup.backup_id for entry in history.entries}
    orphans = {e.backup.backup_id for e in history.entries if e.backup.parent_id and e.backup.parent_id not in ids}
    stops = range(len(gone) + 1) if len(gone) < 8 else random.Random(SEED).sample(range(len(gone) + 1), 4)
    for stop in stops:
        left = [entry for entry in history.entries if entry.backup.backup_id not in gone[:stop]]
        left_ids = {entry.backup.backup_id for entry in left}
        for entry in left:
            if entry.backup.parent_id and entry.backup.backup_id not in orphans:
                assert entry.backup.parent_id in left_ids, "a child outlived its parent"
        resumed = plan_of(history, left)
        assert [one.entry.backup.backup_id for one in resumed.removed] == gone[stop:]
        assert [one.log for one in resumed.removed_logs] == [one.log for one in plan.removed_logs]
    half = [one.log for one in plan.removed_logs][: len(plan.removed_logs) // 2]
    kept_entries, _ = kept_of(plan)
    resumed = plan_of(history, kept_entries, [log for log in history.logs if log not in half])
    assert not resumed.removed
    assert [one.log for one in resumed.removed_logs] == [one.log for one in plan.removed_logs][len(half) :]


def campaign(count: int, seed: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    for which in range(seed, seed + count):
        try:
            seen += check(make_history(which))
        except AssertionError as exc:
            raise AssertionError(f"history {which}: {exc}") from exc
        seen["histories"] += 1
    return seen


def test_random_histories_against_the_oracle() -> None:
    print(f"seed {SEED}")
    seen = campaign(SAMPLE, SEED)
    print(dict(seen))
    assert seen["removed"] > SAMPLE
    assert seen["logs"] > SAMPLE
    assert seen["refused"] < SAMPLE / 2


@pytest.fixture
def tidy() -> History:
    """Two weeks of proven daily fulls."""
    return next(
        history
        for history in map(make_history, range(1000))
        if history.strategy.store is PG and not plan_of(history).refused and plan_of(history).removed
    )


def ahead(history: History, by: timedelta) -> datetime:
    newest = max([e.backup.ended_at for e in history.entries] + [log.stored_at for log in history.logs])
    return newest + by


def test_a_clock_that_ran_away_removes_nothing(tidy: History) -> None:
    tidy.now = ahead(tidy, timedelta(hours=24))
    assert not plan_of(tidy).refused
    tidy.now = ahead(tidy, timedelta(hours=24, seconds=1))
    plan = plan_of(tidy)
    assert "the clock is wrong" in plan.refused
    assert not plan.removed
    tidy.now = ahead(tidy, timedelta(days=3000))
    assert not plan_of(tidy).removed_logs


def test_without_a_proven_full_backup_nothing_goes(tidy: History) -> None:
    tidy.entries = [replace(entry, state=BackupState.VERIFIED) for entry in tidy.entries]
    plan = plan_of(tidy)
    assert plan.refused == "no full backup is proven"
    assert all(one.is_kept for one in plan.backups)
    assert all(one.is_kept for one in plan.logs)


if __name__ == "__main__":
    print(dict(campaign(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else SEED)))
