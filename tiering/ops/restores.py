"""Restores of archived objects: ask for them, look how far they are, tell which became readable.

A restore takes hours, so nothing here waits: each call looks once, and a schedule calls again. What was asked for
stands in tiering.object, so that any run can go on where another ended.
Does not: copy rows back into a tier (rehydration); extend a restore that runs out unless asked again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from tiering import errors
from tiering.model import Dataset, StorageClass
from tiering.plan.storage import RESTORE_HOURS, known_class, ready_about
from tiering.stores.ledger import audit
from tiering.stores.object_rows import ObjectRecord, list_objects, note_restore, put_objects
from tiering.stores.objects import S3Objects
from tiering.stores.opening import Stores
from tiering.stores.ports import RestoreState, RestoreStatus


@dataclass(frozen=True, slots=True)
class Change:
    """An object whose restore was asked for or came to an end, and where it stands now."""

    record: ObjectRecord
    before: RestoreState


def find(
    stores: Stores,
    *,
    dataset: Dataset | None = None,
    begin: datetime | None = None,
    end: datetime | None = None,
    prefix: str = "",
) -> list[ObjectRecord]:
    """List the known objects of a dataset, of units that overlap `[begin, end)`, or under a prefix of their keys."""
    with stores.warm.transaction("list", "objects", read_only=True) as connection:
        rows = list_objects(connection, dataset=dataset.name if dataset else None, prefix=prefix)
    if begin is None and end is None:
        return rows
    ends = {
        (u.unit.dataset, u.unit.begin): u.unit.end for n in {r.dataset for r in rows} for u in stores.ledger.units(n)
    }
    return [
        row
        for row in rows
        if (end is None or row.begin < end)
        and (begin is None or ends.get((row.dataset, row.begin), row.created_at) > begin)
    ]


def request(
    stores: Stores, records: Iterable[ObjectRecord], now: datetime, actor: str, *, days: int, speed: str
) -> list[ObjectRecord]:
    """Ask for the restore of those objects that are in deep archive; return them as they stand now.

    Asked again, objects under way are left to it, and for those that are readable the days begin anew.

    Args:
        stores: where the objects are.
        records: of the objects.
        now: the run's instant.
        actor: for the audit trail.
        days: how long they shall be readable.
        speed: "Standard" or "Bulk".

    Raises:
        PermanentError: days or speed are not what the store takes.
    """
    if days < 1 or speed not in RESTORE_HOURS:
        hint = f"Give one day or more, and {' or '.join(RESTORE_HOURS)}."
        raise errors.PermanentError("request restore", f"{days} days, {speed}", "not a request", hint)
    asked = []
    for record in records:
        if known_class(record.storage_class) is not StorageClass.DEEP_ARCHIVE:
            continue
        after = ask(stores, record, now, days, speed, is_renewed=True)
        if after.restore_state is not record.restore_state:
            with stores.warm.transaction("note restore of", record.location) as connection:
                details = {"object": record.location, "days": days, "speed": speed, "state": after.restore_state}
                audit(connection, actor, "restore-object", record.dataset, record.begin, details)
        asked.append(after)
    return asked


def ask(
    stores: Stores, record: ObjectRecord, now: datetime, days: int, speed: str, *, is_renewed: bool = False
) -> ObjectRecord:
    """Ask for one object's restore unless it is under way or done, and record where it stands.

    Returns:
        The object; `ready_at` is set while it cannot be read, and None when it can.

    Raises:
        NotFound: no such object.
    """
    bucket = bucket_of(stores, record)
    status = bucket.restore_status(record.key)
    if status.state is RestoreState.NONE or (status.state is RestoreState.AVAILABLE and is_renewed):
        status = bucket.request_restore(record.key, days, speed)
    with stores.warm.transaction("note restore of", record.location) as connection:
        rows = list_objects(connection, bucket=record.bucket, prefix=record.key)
        known = next((row for row in rows if row.key == record.key), None)
        if known is None:
            put_objects(connection, [record])
            known = record
        after = _after(known, status, now, speed)
        note_restore(
            connection, known, after.restore_state, asked_at=after.asked_at, ready_at=after.ready_at, until=after.until
        )
    return after


def _after(known: ObjectRecord, status: RestoreStatus, now: datetime, speed: str) -> ObjectRecord:
    if status.state is RestoreState.REQUESTED:
        is_known = known.restore_state is RestoreState.REQUESTED
        asked_at = known.asked_at if is_known and known.asked_at else now
        ready_at = known.ready_at if is_known and known.ready_at else ready_about(asked_at, speed)
        return replace(known, restore_state=status.state, asked_at=asked_at, ready_at=ready_at, until=None)
    return replace(known, restore_state=status.state, ready_at=None, until=status.until)


def poll(stores: Stores, now: datetime, actor: str, *, dataset: str | None = None) -> list[Change]:
    """Look once at every restore that is under way or done; return those that changed, each of them to one caller.

    May be run at any time, by two at once, and after any crash.
    """
    with stores.warm.transaction("list", "restores", read_only=True) as connection:
        waiting = list_objects(connection, dataset=dataset, state=RestoreState.REQUESTED)
        done = list_objects(connection, dataset=dataset, state=RestoreState.AVAILABLE)
    # Readable ones are looked at when their time is over; a store that names no end keeps them readable.
    over = [record for record in done if record.until is not None and record.until <= now]
    changes = (_look(stores, record, now, actor) for record in [*waiting, *over])
    return [change for change in changes if change]


def _look(stores: Stores, record: ObjectRecord, now: datetime, actor: str) -> Change | None:
    try:
        status = bucket_of(stores, record).restore_status(record.key)
    except errors.NotFound:
        status = RestoreStatus(RestoreState.NONE, None)  # deleted meanwhile: nobody waits for it any more
    if status.state is record.restore_state:
        return None
    after = replace(record, restore_state=status.state, ready_at=None, until=status.until)
    with stores.warm.transaction("note restore of", record.location) as connection:
        if not note_restore(connection, record, after.restore_state, until=after.until):
            return None
        details = {"object": record.location, "state": after.restore_state, "until": after.until}
        audit(connection, actor, "restore-object", record.dataset, record.begin, details)
    return Change(after, record.restore_state)


def bucket_of(stores: Stores, record: ObjectRecord) -> S3Objects:
    """Return the store that an object is in."""
    return stores.files if record.bucket == stores.files.bucket else stores.objects
