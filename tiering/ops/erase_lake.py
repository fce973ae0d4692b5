"""Take one person's rows out of the lake: rewrite the files, prove them, swap them in, destroy what named the person.

The new file is proven to be the old one less the person's rows: count and fingerprints, which are sums. Swapped in
is a whole batch of files per transaction, Iceberg and ledger together. Then nothing of the old state is left: no
snapshot, no manifest (their bounds quote values), no version of an object. There is no undo window.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from psycopg2.extensions import connection as Connection

from tiering import errors
from tiering.model import Column, Dataset, Fingerprint, Form, Tier, Unit
from tiering.ops import rehydrate_documents
from tiering.ops.archive import is_out_of_lake
from tiering.ops.export import fetched
from tiering.ops.work import demand_equal
from tiering.plan.erase import Found, Person, minus
from tiering.plan.layout import lake_key
from tiering.stores import erasures, parquet, person_parquet, pghash
from tiering.stores.bson_batches import RawBatch, print_of
from tiering.stores.bson_typed import RAW_COLUMN
from tiering.stores.erasures import Erasure
from tiering.stores.joined import change_files
from tiering.stores.lake import LakeFile
from tiering.stores.ledger import audit, held, units
from tiering.stores.opening import Stores
from tiering.stores.postgres import LOCK_TIMEOUT_MS, execute
from tiering.stores.records import OPEN_STATES, UnitRecord

LOOKS_AT_ONCE = 8
REWRITES_AT_ONCE = 2
UNITS_AT_ONCE = 50
"""Files swapped in one transaction: whoever publishes meanwhile waits for it."""

FAR = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A unit's file without the person: `new` None when nothing else was in it."""

    old: UnitRecord
    new: UnitRecord | None
    row_count: int


def find(stores: Stores, dataset: Dataset, person: Person) -> list[Found]:
    """Find every object of a dataset, superseded and unpublished ones too, that holds rows of the person."""
    listed = sorted({v.key for v in stores.objects.versions(f"lake/{dataset.name}/") if not v.is_delete_marker})
    begins = {record.location: record.unit.begin for record in stores.ledger.units(dataset.name)}
    begins |= {item.location: item.begin for item in stores.ledger.trash(dataset.name)}
    begins |= {move.target: move.unit.begin for move in stores.ledger.moves(dataset.name, OPEN_STATES)}
    with ThreadPoolExecutor(LOOKS_AT_ONCE, "erase-look") as pool:
        counts = list(pool.map(lambda key: _count(stores, key, dataset.subject, person), listed))
    return [
        Found("lake", stores.location(key), dataset.name, {begins.get(stores.location(key)): count})
        for key, count in zip(listed, counts, strict=True)
        if count
    ]


def _count(stores: Stores, key: str, subject: str, person: Person) -> int:
    try:
        with stores.objects.open(key) as file:
            return person_parquet.count_person(file, subject, person.name)
    except errors.NotFound:
        return 0  # behind a delete mark: its versions go with the proof


def locked(stores: Stores, location: str) -> datetime | None:
    """Say until when an object is under object lock, None if it is not."""
    found: datetime | None = None
    for version in stores.objects.versions_of(stores.key(location)):
        until = None if version.is_delete_marker else stores.objects.locked_until(version.key, version.version_id)
        found = max(until, found or until) if until else found
    return found


def erase(
    stores: Stores,
    dataset: Dataset,
    found: Sequence[Found],
    person: Person,
    erasure: Erasure,
    now: datetime,
    actor: str,
) -> None:
    """Take the person out of the objects found, and destroy every trace of the old ones."""
    live = {record.location: record for record in stores.ledger.units(dataset.name) if record.tier is Tier.COLD}
    wanted = [live[item.place] for item in found if item.place in live]
    for at in range(0, len(wanted), UNITS_AT_ONCE):
        batch = wanted[at : at + UNITS_AT_ONCE]
        with ThreadPoolExecutor(REWRITES_AT_ONCE, "erase-rewrite") as pool:
            rewritten = list(pool.map(lambda record: _rewrite(stores, dataset, record, person), batch))
        _swap(stores, dataset, rewritten, erasure, actor)
    forget(stores, dataset, found, erasure, actor)


def _rewrite(stores: Stores, dataset: Dataset, record: UnitRecord, person: Person) -> Rewritten:
    with fetched(stores, record) as old, tempfile.TemporaryFile(dir=stores.scratch_dir) as new:
        columns = person_parquet.columns_of(old)

        def rows(*, keep: bool) -> Iterator[pa.RecordBatch]:
            old.seek(0)
            batches = parquet.read_parquet_batches(old, columns)
            return person_parquet.split(batches, dataset.subject, person.name, keep=keep)

        printed = _printed(dataset, record, columns)
        whole = record.fingerprint
        if whole is None:
            old.seek(0)
            whole = _print(dataset, parquet.read_parquet_batches(old, columns), printed)
        removed = _print(dataset, rows(keep=False), printed)
        expected = minus(whole, removed)
        if expected.row_count == 0:
            return Rewritten(record, None, removed.row_count)
        written = parquet.write_parquet(
            rows(keep=True), columns, dataset.sort or dataset.key, new, scratch=stores.scratch_dir
        )
        key = lake_key(record.unit, dataset.unit, written.sha256)
        new.seek(0)
        with suppress(errors.AlreadyExists):  # named by its content: an attempt before this one got so far
            stores.objects.put_new(key, new, written.size_bytes, written.sha256)
    made = UnitRecord(
        record.unit, Tier.COLD, stores.location(key), False, written.row_count, written.size_bytes, expected,
        written.sha256,
    )  # fmt: skip
    with fetched(stores, made) as file:
        demand_equal(str(record.unit), expected, _print(dataset, parquet.read_parquet_batches(file, columns), printed))
    return Rewritten(record, made, removed.row_count)


def _printed(dataset: Dataset, record: UnitRecord, columns: tuple[Column, ...]) -> tuple[Column, ...]:
    """Choose the columns to compare: those that the ledger's fingerprint has, else all."""
    if record.fingerprint is None or dataset.form is Form.DOCUMENTS:
        return columns
    names = {column.name for column in record.fingerprint.columns}
    return tuple(column for column in columns if column.name in names)


def _print(dataset: Dataset, batches: Iterable[pa.RecordBatch], columns: tuple[Column, ...]) -> Fingerprint:
    if dataset.form is Form.DOCUMENTS:
        return print_of(_raw(batch.column(RAW_COLUMN)) for batch in batches)
    return pghash.fingerprint_batches(
        (batch.select([*(c.name for c in columns), "_exact"]) for batch in batches), columns, dataset.key
    )


def _raw(column: pa.Array) -> RawBatch:
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    return RawBatch(memoryview(data), ends)


def _swap(stores: Stores, dataset: Dataset, rewritten: Sequence[Rewritten], erasure: Erasure, actor: str) -> None:
    """Publish the new files and retire the old ones, in one transaction; units that changed meanwhile are left."""
    with stores.warm.transaction("erase", dataset.name, lock_timeout_ms=10 * LOCK_TIMEOUT_MS) as connection:
        _publish_alone(connection, dataset)
        now_there = {record.unit.begin: record for record in units(connection, dataset.name)}
        swapped = [r for r in rewritten if now_there.get(r.old.unit.begin) == r.old]
        for item in swapped:
            demand_free(connection, item.old.unit)
            erasures.stop_moves(connection, dataset.name, item.old.unit.begin)
            rehydrate_documents.forget(stores, connection, dataset, item.old.unit.begin)
        if not swapped:
            return
        change_files(
            connection,
            stores.lake,
            dataset.name,
            add=[LakeFile(r.new.location, r.new.size_bytes, r.new.row_count) for r in swapped if r.new],
            remove=[r.old.location for r in swapped if not is_out_of_lake(r.old)],
        )
        for item in swapped:
            if item.new:
                stores.ledger.put_unit(connection, item.new)
            else:
                # A unit without rows is no unit: rows that come later are hot, and move as any others.
                erasures.forget_unit(connection, item.old.unit)
            details = {"before": item.old.sha256, "after": item.new.sha256 if item.new else "",
                       "rows_before": item.old.row_count, "rows_after": item.new.row_count if item.new else 0,
                       "new": item.new.location if item.new else ""}  # fmt: skip
            erasures.note_done(connection, erasure, item.old.location, details, "FOUND")
        details = {"erasure": erasure.erasure_id, "files": len(swapped), "rows": sum(r.row_count for r in swapped)}
        audit(connection, actor, "erase-rewrite", dataset.name, None, details)


def demand_free(connection: Connection, unit: Unit) -> None:
    """Raise HeldError if a hold was placed since everything was found; none can be placed until the commit."""
    reason = held(connection, unit)
    if reason:
        raise errors.HeldError("erase", unit.name, f"under legal hold: {reason}", "Nothing more was touched.")


def _publish_alone(connection: Connection, dataset: Dataset) -> None:
    execute(connection, "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"tiering.publish.{dataset.name}",))


def forget(stores: Stores, dataset: Dataset, found: Sequence[Found], erasure: Erasure, actor: str) -> None:
    """Destroy what still names the person: old files in all versions, snapshots, manifests that nobody names.

    May be called again, with nothing found too: a run that was killed may have left manifests behind.
    Why under the publisher's lock: manifests are written under it, so that what nobody names now, nobody will.
    """
    with stores.warm.transaction("erase", dataset.name, lock_timeout_ms=10 * LOCK_TIMEOUT_MS) as connection:
        _publish_alone(connection, dataset)
        begins = {begin for item in found for begin in item.counts if begin is not None}
        for begin in sorted(begins):
            demand_free(connection, Unit(dataset.name, begin, begin))
            erasures.stop_moves(connection, dataset.name, begin)
        execute(connection, "LOCK TABLE tiering.hold IN SHARE MODE")
        # Manifests of removed files quote their bounds: a commit of nothing leaves them behind.
        stores.lake.publish(stores.lake.stage(dataset.name))
        stores.lake.expire_snapshots(dataset.name, older_than=FAR)
        named = set(stores.lake.snapshot_files(dataset.name)) | {r.location for r in units(connection, dataset.name)}
        old = [item.place for item in found if item.place not in named]
        stores.objects.delete([stores.key(place) for place in old])
        stores.objects.delete_versions(_unnamed_manifests(stores, dataset, named))
        for place in old:
            erasures.forget_trash(connection, "lake", place)
            erasures.forget_object(connection, stores.lake_bucket, stores.key(place))
            erasures.note_done(connection, erasure, place, {})
        audit(connection, actor, "erase-purge", dataset.name, None, {"erasure": erasure.erasure_id, "files": len(old)})


def _unnamed_manifests(stores: Stores, dataset: Dataset, named: set[str]) -> list[tuple[str, str]]:
    return [
        (version.key, version.version_id)
        for version in stores.objects.versions(stores.lake.metadata_prefix(dataset.name))
        if version.key.endswith(".avro") and (stores.location(version.key) not in named or not version.is_latest)
    ]
