"""ARCHIVE and EXPIRE of files datasets: objects of a bucket that move between storage classes, unit by unit.

A unit is the objects created in its time. The object stays where it is, under its key; its class changes, by a copy
onto itself that only succeeds while it is the object that was sealed. An object that is overwritten or deleted
meanwhile is left as it is and forgotten: an overwritten one is a new object, of the unit of its new date.
Does not: delete an object of a user's (sweep.py does, after retention); wait for restores.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeVar

from tiering import errors
from tiering.model import Dataset, Residence, State, StorageClass, Tier, Transition, Unit
from tiering.ops.expire import demand_no_hold
from tiering.ops.work import Work
from tiering.plan.lifecycle import keeper
from tiering.plan.spans import unit_of
from tiering.plan.storage import RANKS, known_class, next_class, tier_of
from tiering.stores import backup_rows
from tiering.stores.object_rows import ObjectRecord, forget_objects, list_objects, put_objects
from tiering.stores.opening import Stores
from tiering.stores.ports import ObjectStat
from tiering.stores.records import OPEN_STATES, MoveRecord, UnitRecord
from tiering.stores.survey import homes, lease_owners

AT_ONCE = 8
"""Requests under way for one move: a change of class is a round trip, and no work for us."""

CHUNK = 400
"""Objects whose change is recorded together: what a killed run has to look at again."""

ONE_CHUNK_MAX = 1 << 20
"""Below this SeaweedFS keeps an object in one piece, and lists the etag that it gives."""

T = TypeVar("T")
R = TypeVar("R")


def survey(stores: Stores, dataset: Dataset) -> tuple[list[Residence], datetime | None]:
    """Find where every unit of a files dataset is now, and when its newest object was created. Reads only.

    A unit is in the class of its warmest object, so that one which came back to an older unit moves as well.
    """
    found = _by_unit(stores, dataset)
    moves = {move.unit.begin: move for move in stores.ledger.moves(dataset.name, OPEN_STATES)}
    holds = {hold.begin: hold.reason for hold in stores.ledger.holds(dataset.name)}
    with stores.warm.transaction("survey", dataset.name, read_only=True) as connection:
        known = {record.unit.begin: record for record in homes(connection, dataset.name)}
        leases = lease_owners(connection, dataset.name) if moves else {}
        saved = backup_rows.newest(connection) if dataset.wait_for_backup else {}
    waiting = {item.begin for item in stores.ledger.trash(dataset.name)}
    residences = []
    for begin in sorted(found.keys() | known.keys()):
        move = moves.get(begin)
        home = _residence(stores, dataset, begin, found.get(begin, []), known.get(begin), begin in waiting)
        residences.append(
            replace(
                home,
                move_state=move.state if move else None,
                move_transition=move.transition if move else None,
                quarantine=move.problem if move and move.state is State.QUARANTINED else "",
                hold=holds.get(begin) or holds.get(None) or "",
                lease_owner=leases.get(move.move_id, "") if move else "",
                written_at=max((record.created_at for record in found.get(begin, [])), default=None),
                backed_up_at=backed_up_at(dataset, home.tier, saved),
            )
        )
    created = [record.created_at for records in found.values() for record in records]
    ends = [record.unit.end for record in known.values()]
    return residences, max(created, default=max(ends, default=None))


def backed_up_at(dataset: Dataset, tier: Tier, saved: Mapping[tuple[str, str], datetime]) -> datetime | None:
    """Find when the newest backup of what holds a tier's units began; hot and warm may be one server."""
    store = str(keeper(dataset, tier))
    return max((began for (name, of), began in saved.items() if name == store and of in ("main", tier)), default=None)


def _residence(
    stores: Stores,
    dataset: Dataset,
    begin: datetime,
    objects: list[ObjectRecord],
    record: UnitRecord | None,
    is_waiting: bool,
) -> Residence:
    unit = record.unit if record else Unit(dataset.name, *unit_of(begin, dataset.unit))
    location = stores.files.location(dataset.prefix)
    if record and record.tier is Tier.EXPIRED and (not objects or is_waiting):
        return Residence(unit, Tier.EXPIRED, location, storage_class=record.storage_class)
    if record and record.tier is Tier.EXPIRED:
        # Objects that came back after the sweep: they expire as a generation of their own.
        unit = replace(unit, generation=unit.generation + 1)
    storage_class = _warmest(objects) or (record.storage_class if record else StorageClass.STANDARD)
    size = sum(found.size for found in objects)
    tier = tier_of(storage_class)
    return Residence(unit, tier, location, row_count=len(objects), size_bytes=size, storage_class=storage_class)


def _by_unit(stores: Stores, dataset: Dataset) -> dict[datetime, list[ObjectRecord]]:
    """List the dataset's objects by the begin of their unit, each with the date that its age counts from."""
    bucket = stores.files.bucket
    with stores.warm.transaction("list objects of", dataset.name, read_only=True) as connection:
        known = {record.key: record for record in list_objects(connection, dataset=dataset.name, bucket=bucket)}
    found: dict[datetime, list[ObjectRecord]] = {}
    for stat in stores.files.list(dataset.prefix):
        record = known.get(stat.key)
        if record is None or not _is_same(record, stat):
            begin, _ = unit_of(stat.modified_at, dataset.unit)
            record = _record(bucket, dataset, begin, stat)
        record = replace(record, storage_class=stat.storage_class)
        found.setdefault(record.begin, []).append(record)
    return found


def _is_same(record: ObjectRecord, listed: ObjectStat) -> bool:
    """Tell an object we know from a new one under its key, by what a listing says.

    A class of its own is no sign: the record of our own change may be lost with the run that made it.
    """
    if record.size != listed.size:
        return False
    # SeaweedFS lists another etag than it gives, for objects of several chunks: a dash. `seal` looks closer.
    return record.etag == listed.etag or ("-" in listed.etag and record.storage_class == listed.storage_class)


def _record(bucket: str, dataset: Dataset, begin: datetime, stat: ObjectStat) -> ObjectRecord:
    return ObjectRecord(
        bucket, stat.key, dataset.name, begin, stat.etag, stat.size, stat.modified_at, stat.storage_class
    )


def seal(work: Work) -> MoveRecord:
    """Record every object of the unit, as it is now, and the class they shall have."""
    stores, dataset = work.stores, work.dataset
    if not stores.files.is_versioned():
        # Else an object overwritten in the instant of the copy could be lost, on stores without an atomic condition.
        hint = f"Enable versioning on bucket {stores.files.bucket}; its objects stay as they are."
        raise errors.PermanentError("seal", str(work.unit), "the files bucket keeps no versions", hint)
    before = _by_unit(stores, dataset).get(work.unit.begin, [])
    current, wanted = _classes(work, before)
    old = {record.key: record for record in _sealed(work)}
    records = [found for found in _each(before, lambda one: _looked_at(work, one, old.get(one.key))) if found]
    with stores.warm.transaction("seal", str(work.unit)) as connection:
        forget_objects(connection, stores.files.bucket, old.keys() - {record.key for record in records})
        put_objects(connection, records)
        return work.advance(
            connection,
            State.SEALED,
            source=stores.files.location(dataset.prefix),
            row_count=len(records),
            bytes_before=sum(record.size for record in records),
            details={"storage_class": wanted, "class_before": current},
        )


def _classes(work: Work, objects: Iterable[ObjectRecord]) -> tuple[StorageClass, StorageClass]:
    """Return the class that the unit is in and the one it shall have: the same where none is due (any more)."""
    current = _warmest(objects)
    if current is None:
        record = work.stores.ledger.unit(work.dataset.name, work.unit.begin)
        current = record.storage_class if record else StorageClass.STANDARD
    step = next_class(work.dataset.storage, current, work.unit.end, work.now)
    if work.record.transition is Transition.EXPIRE or step is None or step[1] > work.now:
        return current, current
    return current, step[0]


def _warmest(objects: Iterable[ObjectRecord]) -> StorageClass | None:
    return min((known_class(found.storage_class) for found in objects), key=RANKS.__getitem__, default=None)


def _looked_at(work: Work, listed: ObjectRecord, known: ObjectRecord | None) -> ObjectRecord | None:
    """Ask for an object's head, whose etag conditions compare with; None if it is gone or another one by now."""
    if listed.size < ONE_CHUNK_MAX and "-" not in listed.etag and (known is None or known.etag == listed.etag):
        return listed  # the listing tells the same
    try:
        stat = work.stores.files.stat(listed.key)
    except errors.NotFound:
        return None
    is_same = stat.etag == known.etag if known else abs(stat.modified_at - listed.created_at) < timedelta(seconds=2)
    if not is_same or stat.size != listed.size:
        return None
    return replace(listed, etag=stat.etag, storage_class=stat.storage_class)


def copy(work: Work) -> MoveRecord:
    """Change the class of every object that is in a warmer one; of those that were begun already, only the rest."""
    if work.record.transition is Transition.EXPIRE:
        return work.advance_alone(State.COPIED)
    wanted = StorageClass(work.record.details["storage_class"])
    todo = [r for r in _sealed(work) if RANKS[known_class(r.storage_class)] < RANKS[wanted]]
    for chunk in _chunks(todo):
        changed = _each(chunk, lambda record: _changed(work, record, wanted))
        _note(work, chunk, changed)
    return work.advance_alone(State.COPIED, target=work.stores.files.location(work.dataset.prefix))


def _changed(work: Work, record: ObjectRecord, wanted: StorageClass) -> ObjectRecord | None:
    """Change one object's class; None where it is not that object any more."""
    try:
        stat = work.stores.files.change_class(record.key, wanted, record.etag, keep_source=True)
    except (errors.CommitConflict, errors.NotFound):
        return None
    return replace(record, etag=stat.etag, storage_class=stat.storage_class) if stat.size == record.size else None


def verify(work: Work) -> MoveRecord:
    """Look at every object again: its class, size and etag; then the version it was made of may go.

    Raises:
        FingerprintMismatch: an object has another class than it was given.
    """
    if work.record.transition is Transition.EXPIRE:
        return work.advance_alone(State.VERIFIED)
    wanted = StorageClass(work.record.details["storage_class"])
    kept: list[ObjectRecord] = []
    for chunk in _chunks(_sealed(work)):
        seen = _each(chunk, lambda record: _finished(work, record))
        _note(work, chunk, seen)
        kept += [record for record in seen if record]
    wrong = [record for record in kept if RANKS[known_class(record.storage_class)] < RANKS[wanted]]
    if wrong:
        raise errors.FingerprintMismatch(
            "verify",
            str(work.unit),
            f"{len(wrong)} objects are not {wanted}, {wrong[0].location} among them",
            "Nothing is lost: they are as they were. Does the object store know this class?",
        )
    size = sum(record.size for record in kept)
    return work.advance_alone(
        State.VERIFIED, row_count=len(kept), bytes_after=size, checkpoints_passed=work.record.checkpoints_passed + 1
    )


def _finished(work: Work, record: ObjectRecord) -> ObjectRecord | None:
    try:
        stat = work.stores.files.finish_change(record.key, record.etag)
    except (errors.CommitConflict, errors.NotFound):
        return None
    return replace(record, storage_class=stat.storage_class) if stat.size == record.size else None


def commit(work: Work) -> MoveRecord:
    """Record the unit's class and tier, or the end of its retention.

    Raises:
        HeldError: it would expire, and a legal hold is in force; nothing is changed.
    """
    record, details = work.record, work.record.details
    location = work.stores.files.location(work.dataset.prefix)
    now_in = StorageClass(details["storage_class"])
    with work.commit() as connection:
        if record.transition is Transition.EXPIRE:
            demand_no_hold(work, connection)
            was = StorageClass(details["class_before"])
            last = UnitRecord(work.unit, Tier.EXPIRED, location, False, 0, 0, storage_class=was)
            work.stores.ledger.put_unit(connection, last)
            work.trash(connection, "files", f"{location}#{work.unit}", record.bytes_before)
            work.audit(connection, "expire", rows=record.row_count, bytes=record.bytes_before, location=location)
        elif now_in is not StorageClass.STANDARD:
            unit = UnitRecord(work.unit, tier_of(now_in), location, False, record.row_count, record.bytes_after)
            work.stores.ledger.put_unit(connection, replace(unit, storage_class=now_in))
            work.audit(
                connection, "archive", objects=record.row_count, bytes=record.bytes_after, storage_class=now_in,
                before=details["class_before"],
            )  # fmt: skip
        return work.advance(connection, State.COMMITTED)


def _sealed(work: Work) -> list[ObjectRecord]:
    with work.stores.warm.transaction("list objects of", str(work.unit), read_only=True) as connection:
        return list_objects(
            connection, dataset=work.dataset.name, begin=work.unit.begin, bucket=work.stores.files.bucket
        )


def _note(work: Work, before: Iterable[ObjectRecord], after: Iterable[ObjectRecord | None]) -> None:
    """Record what objects are now, and forget those that somebody overwrote or deleted."""
    pairs = list(zip(before, after, strict=True))
    changed = [now for was, now in pairs if now and now != was]
    lost = [was.key for was, now in pairs if now is None]
    if changed or lost:
        with work.stores.warm.transaction("record objects of", str(work.unit)) as connection:
            work.stores.ledger.demand_lease(connection, work.record)
            put_objects(connection, changed)
            forget_objects(connection, work.stores.files.bucket, lost)


def _chunks(records: list[ObjectRecord]) -> Iterator[list[ObjectRecord]]:
    rest = iter(records)
    while chunk := list(itertools.islice(rest, CHUNK)):
        yield chunk


def _each(items: Iterable[T], work: Callable[[T], R]) -> list[R]:
    """Do one thing to each item, some at once, in order; the first error ends it."""
    with ThreadPoolExecutor(AT_ONCE, "files") as pool:
        try:
            return list(pool.map(work, items))
        finally:
            pool.shutdown(cancel_futures=True)
