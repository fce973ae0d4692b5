"""WARM_TO_COLD: write a warm unit as one Parquet object, prove it by reading it back, and publish it.

The object is written once under a name that carries its hash; the ledger knows the name before the bytes
are sent, so that a sweep never mistakes it for a leftover. Publishing swaps the Iceberg pointer, the ledger
and the warm partition in one PostgreSQL transaction.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import IO, Any

import pyarrow as pa
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering import errors
from tiering.model import Column, Fingerprint, State, StorageClass, Tier
from tiering.ops.work import Work, both, compared_columns, fingerprint_of, prove_copy
from tiering.plan.layout import lake_key
from tiering.plan.spans import due
from tiering.stores import parquet, pgcopy, pghash, tables
from tiering.stores.joined import change_files
from tiering.stores.lake import LakeFile
from tiering.stores.opening import Stores
from tiering.stores.records import MoveRecord, UnitRecord, fingerprint_from_json, fingerprint_to_json


def seal(work: Work) -> MoveRecord:
    """Record the source. Warm copies are fenced from birth, so there is nobody to fence off."""
    unit = warm_unit(work)
    return work.advance_alone(
        State.SEALED, source=unit.location, bytes_before=unit.size_bytes, row_count=unit.row_count
    )


def copy(work: Work) -> MoveRecord:
    """Stream the unit into a Parquet object."""
    columns = work.stored_columns()
    return write_object(work, warm_relation(work, columns), columns)


def verify(work: Work) -> MoveRecord:
    """Read the object back in full and compare it with the source."""
    columns = work.stored_columns()
    fingerprint = verify_object(work, warm_relation(work, columns), columns)
    return work.advance_alone(
        State.VERIFIED,
        checkpoints_passed=work.record.checkpoints_passed + 1,
        details={"fingerprint": fingerprint_to_json(fingerprint)},
    )


def commit(work: Work) -> MoveRecord:
    """Publish the object and retire the warm partition, together."""
    unit = warm_unit(work)
    with work.commit() as connection:
        record = publish(work, connection, replaces=None)
        trash = tables.trash_table(work.unit, work.record.move_id, "warm")
        left = work.stores.warm_tables.take(connection, work.dataset, unit, trash)
        if left:
            work.trash(connection, "warm", left, unit.size_bytes)
        work.audit(connection, "warm-to-cold", rows=record.row_count, object=record.target)
    return record


def warm_unit(work: Work) -> UnitRecord:
    """Read the unit's warm copy from the ledger; NotFound if it is not warm."""
    unit = work.stores.ledger.unit(work.dataset.name, work.unit.begin)
    if unit is None or unit.tier is not Tier.WARM:
        raise errors.NotFound(
            str(work.record.transition), str(work.unit), "not in the warm tier", "Run `tiering fsck`."
        )
    return unit


def warm_relation(work: Work, columns: tuple[Column, ...]) -> sql.Composable:
    """Return what to read the unit's warm rows from, packed or not."""
    unit = warm_unit(work)
    with work.stores.warm.transaction("find", str(work.unit)) as connection:
        return work.stores.warm_tables.relation(connection, work.dataset, unit, columns)


def write_object(work: Work, relation: sql.Composable, columns: tuple[Column, ...]) -> MoveRecord:
    """Write a relation as a Parquet file and upload it under its content's name; advance to COPIED."""
    with closing(_rows(work, relation, columns)) as batches:
        return write_batches(work, batches, columns)


def write_batches(
    work: Work,
    batches: Iterable[pa.RecordBatch],
    columns: tuple[Column, ...],
    details: Callable[[], Mapping[str, Any]] = dict,
    state: State = State.COPIED,
) -> MoveRecord:
    """Write batches as a Parquet file and upload it under its content's name; advance to COPIED.

    Args:
        work: the move.
        batches: the unit's rows, read once.
        columns: of the rows.
        details: what else to record, asked for when all batches were read.
        state: SEALED where the checkpoint makes the copy that COPIED then finds made.
    """
    stores, dataset, unit = work.stores, work.dataset, work.unit
    stores.lake.ensure_table(dataset.name, columns, dataset.unit, dataset.time_column)
    # An unlinked file: the kernel frees it whatever happens to this process.
    with tempfile.TemporaryFile(dir=stores.scratch_dir) as file:
        written = parquet.write_parquet(batches, columns, dataset.sort or dataset.key, file, scratch=stores.scratch_dir)
        key = lake_key(unit, dataset.unit, written.sha256)
        location = stores.location(key)
        work = work.at(work.advance_alone(State.SEALED, target=location))
        file.seek(0)
        # The name is the content: if it is taken, an earlier attempt got this far. Verification reads it back.
        with suppress(errors.AlreadyExists):
            _put(work, key, file, written)
    return work.advance_alone(
        state,
        row_count=written.row_count,
        bytes_after=written.size_bytes,
        details={"key": key, "sha256": written.sha256, **details()},
    )


def _put(work: Work, key: str, file: IO[bytes], written: parquet.ParquetReceipt) -> None:
    """Store the file; that of a locked dataset under object lock until its retention is over."""
    objects, retention = work.stores.objects, work.dataset.policy.retention
    until = due(work.unit.end, retention) if work.dataset.lock and retention else None
    if until is None or until <= work.now:
        objects.put_new(key, file, written.size_bytes, written.sha256)
        return
    if not objects.is_lockable():
        raise errors.PermanentError(
            "copy",
            str(work.unit),
            f"dataset {work.dataset.name} is to be under object lock, and bucket {work.stores.lake_bucket} has none",
            "Create a bucket with object lock, copy the lake into it and set TIERING_LAKE_BUCKET; or take `lock` away.",
        )
    objects.put_new(key, file, written.size_bytes, written.sha256, locked_until=until)


def _rows(work: Work, relation: sql.Composable, columns: tuple[Column, ...]) -> Generator[pa.RecordBatch, None, None]:
    """Read a relation's rows: over two connections where it is one plain table, which has blocks to share."""

    def connect() -> Connection:
        return work.stores.warm.connect(f"export {work.unit}")

    if isinstance(relation, sql.Identifier):
        yield from pgcopy.read_parallel(connect, relation.strings, columns)
        return
    with closing(connect()) as connection:
        yield from pgcopy.read_batches(connection, relation, columns)


def verify_object(work: Work, relation: sql.Composable, columns: tuple[Column, ...]) -> Fingerprint:
    """Compare the object's bytes with what was sent, and its rows with the source's own account of itself."""
    subject = str(work.unit)
    compared = compared_columns(work.dataset, columns)

    def read_back() -> Fingerprint:
        with fetched(work.stores, written_unit(work)) as file:
            return pghash.fingerprint_batches(parquet.read_parquet_batches(file, compared), compared, work.dataset.key)

    source: Fingerprint
    source, copied = both(lambda: fingerprint_of(work.stores.warm, relation, work.dataset, columns, subject), read_back)
    prove_copy(subject, source, copied, work.record.bytes_after)
    return source


def written_unit(work: Work) -> UnitRecord:
    """Describe the object that this move has written, as the ledger will."""
    record = work.record
    return UnitRecord(
        work.unit,
        Tier.COLD,
        record.target,
        False,
        record.row_count,
        record.bytes_after,
        sha256=record.details["sha256"],
    )


def publish(work: Work, connection: Connection, replaces: UnitRecord | None) -> MoveRecord:
    """Point the Iceberg table and the ledger at the new object, in the commit's transaction.

    Raises:
        CommitConflict: another commit moved the pointer first; the whole transaction is tried again.
    """
    stores, name, record = work.stores, work.dataset.name, work.record
    file = LakeFile(record.target, record.bytes_after, record.row_count)
    if replaces is None or replaces.storage_class is StorageClass.DEEP_ARCHIVE:  # then its file is not in the table
        change_files(connection, stores.lake, name, add=[file])
    else:
        change_files(connection, stores.lake, name, add=[file], remove=[replaces.location])
    fingerprint = fingerprint_from_json(record.details.get("fingerprint"))
    stores.ledger.put_unit(connection, replace(written_unit(work), fingerprint=fingerprint))
    if replaces is not None:
        work.trash(connection, "lake", replaces.location, replaces.size_bytes)
    return work.advance(connection, State.COMMITTED)


@contextmanager
def fetched(stores: Stores, record: UnitRecord) -> Iterator[IO[bytes]]:
    """Bring a lake object into an unlinked local file and prove that its bytes are the ones written.

    Raises:
        CorruptCopy: the bytes are not those whose hash the ledger keeps.
    """
    with tempfile.TemporaryFile(dir=stores.scratch_dir) as file:
        stores.objects.fetch(stores.key(record.location), file)
        file.seek(0)
        digest: Any = hashlib.file_digest(file, "sha256")
        if record.sha256 and digest.hexdigest() != record.sha256:
            raise errors.CorruptCopy(
                "read back",
                str(record.unit),
                f"sha256 of {record.location} is not the one recorded",
                "Every other copy is kept. Restore the object from a backup or an older version.",
            )
        file.seek(0)
        yield file
