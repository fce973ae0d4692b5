"""ARCHIVE of the lake: a cold unit's Parquet object goes to a colder storage class, under its own name.

In DEEP_ARCHIVE it cannot be read before it was restored, so the live Iceberg table lets go of it: an outside reader
would fail on it. The ledger keeps it, and whoever needs it is told when it can be read (`ask_for`).
Does not: wait for a restore.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime

from tiering import errors
from tiering.model import State, StorageClass, Tier
from tiering.ops import restores
from tiering.ops.work import Work
from tiering.plan.storage import RANKS, RESTORE_DAYS, known_class, next_class
from tiering.stores.joined import change_files
from tiering.stores.object_rows import ObjectRecord, put_objects
from tiering.stores.opening import Stores
from tiering.stores.records import MoveRecord, UnitRecord

OUT_OF_SIGHT = StorageClass.DEEP_ARCHIVE


def is_out_of_lake(unit: UnitRecord) -> bool:
    """Tell whether a cold unit's object is in the ledger only, and no file of the live Iceberg table."""
    return unit.tier is Tier.COLD and unit.storage_class is OUT_OF_SIGHT


def seal(work: Work) -> MoveRecord:
    """Record the object and the class it shall have."""
    unit = _cold_unit(work)
    step = next_class(work.dataset.storage, unit.storage_class, unit.unit.end, work.now)
    wanted = step[0] if step and step[1] <= work.now else unit.storage_class
    return work.advance_alone(
        State.SEALED,
        source=unit.location,
        target=unit.location,
        row_count=unit.row_count,
        bytes_before=unit.size_bytes,
        details={"storage_class": wanted, "class_before": unit.storage_class},
    )


def copy(work: Work) -> MoveRecord:
    """Change the object's class; whoever comes after a crash finds it changed, and goes on."""
    objects, key = work.stores.objects, work.stores.key(work.record.source)
    found = objects.stat(key)
    wanted = StorageClass(work.record.details["storage_class"])
    if found.storage_class != wanted and RANKS[wanted] > RANKS[StorageClass(work.record.details["class_before"])]:
        found = objects.change_class(key, wanted, found.etag, keep_source=True)
    created = {"etag": found.etag, "key": key}
    return work.advance_alone(State.COPIED, bytes_after=found.size, details=created)


def verify(work: Work) -> MoveRecord:
    """Compare what the store says of the object with what the ledger says of the unit.

    Raises:
        CorruptCopy: its size or hash is another, or its class is not the one that was asked for.
    """
    unit, wanted = _cold_unit(work), work.record.details["storage_class"]
    found = work.stores.objects.finish_change(work.record.details["key"])
    seen = (found.storage_class, found.size, found.sha256 or unit.sha256)
    if seen != (wanted, unit.size_bytes, unit.sha256):
        raise errors.CorruptCopy(
            "verify",
            str(work.unit),
            f"{unit.location} is {found.storage_class}, {found.size} bytes, sha256 {found.sha256}; expected {wanted}, "
            f"{unit.size_bytes} bytes, sha256 {unit.sha256}",
            "Does the object store know this class? Compare the object with a backup, then `tiering release` the unit.",
        )
    return work.advance_alone(State.VERIFIED, checkpoints_passed=work.record.checkpoints_passed + 1)


def commit(work: Work) -> MoveRecord:
    """Record the class; what went into deep archive leaves the live Iceberg table in the same transaction."""
    stores, name, details = work.stores, work.dataset.name, work.record.details
    unit = _cold_unit(work)
    wanted = StorageClass(details["storage_class"])
    with work.commit() as connection:
        if wanted is OUT_OF_SIGHT and not is_out_of_lake(unit):
            change_files(connection, stores.lake, name, remove=[unit.location])
        stores.ledger.put_unit(connection, replace(unit, storage_class=wanted))
        put_objects(connection, [_row(stores, unit, details["etag"], wanted)])
        work.audit(connection, "archive", object=unit.location, storage_class=wanted, before=details["class_before"])
        return work.advance(connection, State.COMMITTED)


def ask_for(
    stores: Stores, record: UnitRecord, now: datetime, *, speed: str = "Standard", days: int = RESTORE_DAYS
) -> None:
    """Return if a cold unit's object can be read at this moment; else see to it that it will be, and say when.

    The restore is asked for once, however often this is called.

    Raises:
        InDeepArchive: it cannot; the message says from when it can.
    """
    if not is_out_of_lake(record):
        return
    row = _row(stores, record, "", record.storage_class)
    status = restores.ask(stores, row, now, days, speed)
    if status.ready_at is not None:
        raise _not_yet(str(record.unit), record.unit.dataset, row.key, status.ready_at)


def ask_for_all(stores: Stores, records: Iterable[UnitRecord], now: datetime) -> None:
    """Return if every one of the objects can be read; else ask for all those that cannot, and say so of one.

    Raises:
        InDeepArchive: see `ask_for`; of the one that is ready last.
    """
    waiting: list[errors.InDeepArchive] = []
    for record in records:
        try:
            ask_for(stores, record, now)
        except errors.InDeepArchive as exc:
            waiting.append(exc)
    if waiting:
        raise max(waiting, key=lambda exc: exc.ready_about or now)


def ask_for_datasets(stores: Stores, datasets: Iterable[str], now: datetime) -> None:
    """Return if every lake object of some datasets can be read; else ask for all those that cannot.

    Superseded objects too, which no unit names: only by reading them is it known what is in them.

    Raises:
        InDeepArchive: see `ask_for`; of the one that is ready last.
    """
    waiting = [(row.ready_at, row) for name in datasets for row in _ask(stores, name, now) if row.ready_at is not None]
    if waiting:
        ready_at, last = max(waiting, key=lambda one: one[0])
        names = ", ".join(sorted({row.dataset for _, row in waiting}))
        raise _not_yet(f"{len(waiting)} objects of {names}", last.dataset, last.key, ready_at)


def _ask(stores: Stores, dataset: str, now: datetime) -> Iterator[ObjectRecord]:
    units = {stores.key(home.location): home.unit for home in stores.ledger.units(dataset) if home.tier is Tier.COLD}
    for found in stores.objects.list(f"lake/{dataset}/"):
        if known_class(found.storage_class) is OUT_OF_SIGHT:
            unit = units.get(found.key)
            begin, made = (unit.begin, unit.end) if unit else (found.modified_at, found.modified_at)
            row = ObjectRecord(
                stores.objects.bucket, found.key, dataset, begin, found.etag, found.size, made, OUT_OF_SIGHT
            )
            yield restores.ask(stores, row, now, RESTORE_DAYS, "Standard")


def _not_yet(subject: str, dataset: str, key: str, ready_at: datetime) -> errors.InDeepArchive:
    return errors.InDeepArchive(
        "read",
        subject,
        f"cold, restore requested, ready about {ready_at:%Y-%m-%d %H:%M}Z",
        f"Ask again then; `tiering objects status --dataset {dataset}` tells how far it is.",
        key=key,
        is_requested=True,
        ready_about=ready_at,
    )


def _row(stores: Stores, unit: UnitRecord, etag: str, storage_class: StorageClass) -> ObjectRecord:
    """Describe a lake object for tiering.object. A unit's age counts from its end, so that stands for its creation."""
    key = stores.key(unit.location)
    return ObjectRecord(
        stores.objects.bucket,
        key,
        unit.unit.dataset,
        unit.unit.begin,
        etag,
        unit.size_bytes,
        unit.unit.end,
        storage_class,
    )


def _cold_unit(work: Work) -> UnitRecord:
    unit = work.stores.ledger.unit(work.dataset.name, work.unit.begin)
    if unit is None or unit.tier is not Tier.COLD:
        raise errors.NotFound("archive", str(work.unit), "not in the cold tier", "Run `tiering fsck`.")
    return unit
