"""The only module that destroys backups: what retention gave up, and what crashed backups left behind.

The plan is written down before anything goes: a backup's mark REMOVED hides it from everybody, then its objects go,
then its records, the mark last. Killed anywhere and run again, it goes on where it was. A source that is being backed
up now is left alone: the same lease is taken for both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from tiering.errors import LeaseHeld
from tiering.model_backup import BackupStrategy, CatalogueEntry, StoreName, StoreStrategy
from tiering.ops import backup_lease
from tiering.ops.catalogue import REMOVED, Catalogue, Listed, began_at
from tiering.ops.chunks import place_of
from tiering.ops.wal_archive import histories
from tiering.plan.recovery import parse_history
from tiering.plan.retention import CLOCK_AHEAD_MAX, RetentionPlan, plan_retention
from tiering.stores.pg_tools import lsn_text

log = logging.getLogger(__name__)

LEFTOVER_AFTER = timedelta(days=2)
"""Longer than any backup lasts: what has no record after it, will have none."""

_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Retained:
    """What retention did, or would do, with one source.

    Attributes:
        plan: backup by backup and stretch by stretch of log, with reasons.
        leftovers: objects of backups that never came to exist.
        is_applied: whether it was carried out.
        skipped: why not, where something was in the way.
    """

    plan: RetentionPlan
    leftovers: tuple[str, ...] = ()
    is_applied: bool = False
    skipped: str = ""
    freed_bytes: int = 0


@dataclass(frozen=True)
class _Sweep:
    catalogue: Catalogue
    now: datetime
    progress: Callable[[int], None] = field(default=lambda _: None)


def retain(
    catalogue: Catalogue,
    strategy: BackupStrategy,
    now: datetime,
    owner: str,
    *,
    apply: bool = False,
    store: StoreName | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Retained]:
    """Judge every source by the owner's strategy, and let go what may go; may be called at any time and twice.

    Args:
        catalogue: of the backups.
        strategy: of the owner; a store that it does not name keeps everything.
        now: the instant of judging.
        owner: for the lease.
        apply: carry it out; else only say.
        store: only this one.
        progress: told of objects gone.

    Returns:
        One account for each source that has a backup or log.
    """
    sweep = _Sweep(catalogue, now, progress)
    found = []
    for one in strategy.stores:
        if store in (None, one.store):
            found += [_retain(sweep, one, source, owner, apply) for source in _sources(catalogue, one.store)]
    if apply:
        _discard(sweep, backup_lease.spent_names(catalogue.vault, now - LEFTOVER_AFTER))
    return found


def _sources(catalogue: Catalogue, store: StoreName) -> list[str]:
    """Name the sources that the bucket knows of a store."""
    found = {one.source for one in catalogue.listed(store)}
    return sorted(found)


def _retain(sweep: _Sweep, strategy: StoreStrategy, source: str, owner: str, apply: bool) -> Retained:
    if not apply:
        return _judge(sweep, strategy, source)
    try:
        with sweep.catalogue.lease(strategy.store, source, owner, sweep.now) as lease:
            judged = _judge(sweep, strategy, source)
            ahead = sweep.now - lease.taken_at()
            if ahead > CLOCK_AHEAD_MAX:
                return replace(judged, skipped=f"this machine's clock is {ahead} ahead of the bucket's")
            return _carry_out(sweep, judged)
    except LeaseHeld as exc:
        return replace(_judge(sweep, strategy, source), skipped=str(exc))


def _judge(sweep: _Sweep, strategy: StoreStrategy, source: str) -> Retained:
    entries = sweep.catalogue.entries(strategy.store, source)
    logs = sweep.catalogue.logs(strategy.store, source)
    plan = plan_retention(strategy, source, entries, logs, sweep.now, _forks(sweep, strategy.store, source))
    kept = [verdict.entry for verdict in plan.backups if verdict.is_kept]
    return Retained(plan, (*_leftovers(sweep, strategy.store, source), *_unshared(sweep, strategy.store, source, kept)))


def _forks(sweep: _Sweep, store: StoreName, source: str) -> dict[tuple[str, int], str]:
    """Read where PostgreSQL's timelines began out of their history files."""
    if store is not StoreName.POSTGRESQL:
        return {}
    incarnations = {one.incarnation for one in sweep.catalogue.logs(store, source)}
    return {
        (name, timeline): lsn_text(parse_history(timeline, text)[-1].begins)
        for name in incarnations
        for timeline, text in histories(sweep.catalogue, source, name).items()
    }


def _leftovers(sweep: _Sweep, store: StoreName, source: str) -> Iterable[str]:
    """Name the objects of backups that were begun long ago and have no record."""
    known = {one.backup_id for one in sweep.catalogue.listed(store, source) if one.is_uploaded and not one.is_removed}
    before = sweep.now - LEFTOVER_AFTER
    for stat in sweep.catalogue.vault.names(f"backups/{store}/{source}/"):
        backup_id = stat.key.split("/")[3]
        # Old by the name, which the one who backed up gave it, and by the bucket's own clock.
        if backup_id not in known and began_at(backup_id) < before and stat.modified_at < before:
            yield stat.key


def _unshared(sweep: _Sweep, store: StoreName, source: str, kept: Sequence[CatalogueEntry]) -> Iterable[str]:
    """Name the chunks that no kept backup rests on; none while a record cannot be read: it may rest on any."""
    if any(not entry.backup.objects for entry in kept):
        return
    in_use = {stored.name for entry in kept for stored in entry.backup.objects}
    for stat in sweep.catalogue.vault.names(place_of(store, source)):
        if stat.key not in in_use and stat.modified_at < sweep.now - LEFTOVER_AFTER:
            yield stat.key


def _carry_out(sweep: _Sweep, judged: Retained) -> Retained:
    plan, freed = judged.plan, 0
    listed = {one.backup_id: one for one in sweep.catalogue.listed(plan.store, plan.source)}
    for half in (one for one in listed.values() if one.is_removed):
        freed += _destroy(sweep, half)
    for verdict in plan.removed:
        one = listed[verdict.entry.backup.backup_id]
        sweep.catalogue.bury(one, "; ".join(verdict.reasons), sweep.now)
        freed += _destroy(sweep, one)
        log.info("%s is gone: %s", one.backup_id, "; ".join(verdict.reasons))
    freed += sum(verdict.log.stored.stored_bytes for verdict in plan.removed_logs)
    _discard(sweep, [verdict.log.stored.name for verdict in plan.removed_logs])
    _discard(sweep, judged.leftovers)
    return replace(judged, is_applied=True, freed_bytes=freed)


def _destroy(sweep: _Sweep, one: Listed) -> int:
    """Destroy a backup that is marked REMOVED: objects, records, the mark."""
    vault = sweep.catalogue.vault
    objects = list(vault.names(one.prefix))
    _discard(sweep, [stat.key for stat in objects])
    mark = one.place + REMOVED
    _discard(sweep, [stat.key for stat in vault.names(one.place) if stat.key != mark])
    _discard(sweep, [mark])
    return sum(stat.size for stat in objects)


def _discard(sweep: _Sweep, names: Sequence[str]) -> None:
    for begin in range(0, len(names), _AT_ONCE):
        some = names[begin : begin + _AT_ONCE]
        sweep.catalogue.vault.discard(some)
        sweep.progress(len(some))
