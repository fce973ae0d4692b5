"""Join small lake files for those who read them through Iceberg: fewer files to open, the same rows.

A joined file stands in the Iceberg table for its parts; the parts stay in the bucket, each its unit's one
authoritative copy (docs/decisions/0013-joined-files.md). It is read back in full and its fingerprint compared with
the sum of its parts' before one transaction publishes it. A crash before that leaves an object for the sweep.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

import pyarrow as pa

from tiering import errors
from tiering.model import Column, Dataset, Fingerprint, Form, Tier, Unit
from tiering.ops.columns import settle
from tiering.ops.documents import raw_of
from tiering.ops.export import fetched
from tiering.ops.work import compared_columns, demand_equal
from tiering.plan.compact import SMALL_BYTES, TARGET_BYTES, Group, Part, joined_key, plan_groups
from tiering.stores import parquet, pghash
from tiering.stores.bson_batches import print_of
from tiering.stores.bson_typed import RAW_COLUMN, document_columns
from tiering.stores.joined import JoinedFile, change_files, list_joined, lock_publisher, put_joined
from tiering.stores.lake import LakeFile
from tiering.stores.ledger import audit
from tiering.stores.opening import Stores
from tiering.stores.parquet_schema import arrow_schema, columns_in
from tiering.stores.postgres import LOCK_TIMEOUT_MS
from tiering.stores.records import UnitRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Joined:
    """What was joined, or would be in a dry run.

    Attributes:
        files: how many became one.
        bytes_before, bytes_after: theirs, and its; 0 after in a dry run.
    """

    dataset: str
    begin: datetime
    end: datetime
    files: int
    row_count: int
    bytes_before: int
    bytes_after: int = 0
    location: str = ""


def compact(
    stores: Stores,
    dataset: Dataset,
    actor: str,
    *,
    dry_run: bool = False,
    target_bytes: int = TARGET_BYTES,
    small_bytes: int = SMALL_BYTES,
) -> list[Joined]:
    """Join a dataset's small lake files. Called again it finds nothing to do.

    Raises:
        FingerprintMismatch, CorruptCopy: a file is not what the ledger says; nothing of its group was changed.
        CommitConflict: units of a group changed meanwhile; the groups before it are joined.
    """
    if dataset.form is Form.FILES or not stores.lake.exists(dataset.name):
        return []
    groups = find_groups(stores, dataset, target_bytes, small_bytes)
    if dry_run:
        return [_said(dataset, group) for group in groups]
    columns = _columns(stores, dataset, actor)
    return [_join(stores, dataset, group, columns, actor) for group in groups]


def find_groups(stores: Stores, dataset: Dataset, target_bytes: int, small_bytes: int) -> tuple[Group, ...]:
    """Choose what is to be joined. Writes nothing."""
    with stores.warm.transaction("list joined files of", dataset.name, read_only=True) as connection:
        joined = list_joined(connection, dataset.name)
    seen = {file.location for file in stores.lake.files(dataset.name)} | {p for file in joined for p in file.parts}
    cold = [r for r in stores.ledger.units(dataset.name) if r.tier is Tier.COLD and r.location in seen]
    parts = [Part(r.unit, r.location, r.size_bytes, r.row_count) for r in cold]
    partition = stores.lake.partition(dataset.name)
    return plan_groups(
        parts, partition, [file.parts for file in joined], target_bytes=target_bytes, small_bytes=small_bytes
    )


def _said(dataset: Dataset, group: Group) -> Joined:
    rows = sum(part.row_count for part in group.parts)
    return Joined(dataset.name, group.begin, group.end, len(group.parts), rows, group.size_bytes)


def _columns(stores: Stores, dataset: Dataset, actor: str) -> tuple[Column, ...]:
    if dataset.form is Form.DOCUMENTS:
        return document_columns(dataset)
    return settle(stores, dataset.name, actor).stored


def _join(stores: Stores, dataset: Dataset, group: Group, columns: tuple[Column, ...], actor: str) -> Joined:
    stores.lake.ensure_table(dataset.name, columns, dataset.unit, dataset.time_column)
    known = {r.location: r for r in stores.ledger.units(dataset.name)}
    records = [known[part.location] for part in group.parts if part.location in known]
    prints: list[Fingerprint] = []
    with tempfile.TemporaryFile(dir=stores.scratch_dir) as file:
        rows = _rows(stores, dataset, records, columns, prints)
        order = dataset.sort or dataset.key
        written = parquet.write_parquet(rows, columns, order, file, scratch=stores.scratch_dir)
        key = joined_key(group, written.sha256)
        file.seek(0)
        with suppress(errors.AlreadyExists):  # named by its content: an attempt before this one got so far
            stores.objects.put_new(key, file, written.size_bytes, written.sha256)
    made = JoinedFile(
        dataset.name,
        stores.location(key),
        group.begin,
        group.end,
        written.row_count,
        written.size_bytes,
        written.sha256,
        tuple(part.location for part in group.parts),
    )
    demand_equal(str(group), _sum(prints), _read_back(stores, dataset, made, columns))
    _publish(stores, dataset, group, made, actor)
    log.info("joined files=%d rows=%d bytes=%d into=%s", len(records), made.row_count, made.size_bytes, made.location)
    return replace(_said(dataset, group), bytes_after=made.size_bytes, location=made.location)


def _rows(
    stores: Stores,
    dataset: Dataset,
    records: Sequence[UnitRecord],
    columns: tuple[Column, ...],
    prints: list[Fingerprint],
) -> Iterator[pa.RecordBatch]:
    """Read the parts one after the other; each is compared with its hash, and leaves its fingerprint in `prints`."""
    for record in records:
        with fetched(stores, record) as file:
            known = columns_in(file, columns)
            prints.append(_print(dataset, _widened(parquet.read_parquet_batches(file, known), columns), columns))
            if prints[-1].row_count != record.row_count:
                text = f"{prints[-1].row_count} rows, the ledger says {record.row_count}"
                raise errors.CorruptCopy("join", str(record.unit), text, "Run `tiering fsck --deep`.")
            file.seek(0)
            yield from _widened(parquet.read_parquet_batches(file, known), columns)


def _widened(batches: Iterable[pa.RecordBatch], columns: Sequence[Column]) -> Iterator[pa.RecordBatch]:
    """Give every batch all of the columns: those that are younger than its file are null."""
    schema = arrow_schema(columns)
    for batch in batches:
        arrays = [
            batch.column(field.name) if field.name in batch.schema.names else pa.nulls(batch.num_rows, field.type)
            for field in schema
        ]
        yield pa.RecordBatch.from_arrays(arrays, names=schema.names)


def _print(dataset: Dataset, batches: Iterable[pa.RecordBatch], columns: tuple[Column, ...]) -> Fingerprint:
    if dataset.form is Form.DOCUMENTS:
        return print_of(raw_of(batch.column(RAW_COLUMN)) for batch in batches)
    return pghash.fingerprint_batches(batches, compared_columns(dataset, columns), dataset.key)


def _read_back(stores: Stores, dataset: Dataset, made: JoinedFile, columns: tuple[Column, ...]) -> Fingerprint:
    unit = Unit(made.dataset, made.begin, made.end)
    record = UnitRecord(unit, Tier.COLD, made.location, False, made.row_count, made.size_bytes, sha256=made.sha256)
    with fetched(stores, record) as file:
        return _print(dataset, parquet.read_parquet_batches(file, columns), columns)


def _sum(prints: Sequence[Fingerprint]) -> Fingerprint:
    """Add the fingerprints of the parts, column by column, to that of the whole."""
    columns = []
    for at, column in enumerate(prints[0].columns):
        count = sum(one.columns[at].value_count for one in prints)
        total = sum(one.columns[at].hash_sum for one in prints) % (1 << 64)
        columns.append(replace(column, value_count=count, hash_sum=total))
    return Fingerprint(sum(one.row_count for one in prints), tuple(columns))


def _publish(stores: Stores, dataset: Dataset, group: Group, made: JoinedFile, actor: str) -> None:
    """Show the joined file in the place of its parts, and of the joined files that it replaces, in one transaction."""
    with stores.warm.transaction("join", str(group), lock_timeout_ms=10 * LOCK_TIMEOUT_MS) as connection:
        lock_publisher(connection, dataset.name)
        now = {r.location: r for r in stores.ledger.units(dataset.name) if r.tier is Tier.COLD}
        if any(part.location not in now or now[part.location].unit != part.unit for part in group.parts):
            raise errors.CommitConflict("join", str(group), "a unit changed meanwhile", "Run it again.")
        file = LakeFile(made.location, made.size_bytes, made.row_count)
        change_files(connection, stores.lake, dataset.name, add=[file], remove=made.parts)
        put_joined(connection, made)
        details = {"files": len(made.parts), "rows": made.row_count, "into": made.location, "sha256": made.sha256}
        audit(connection, actor, "join-files", dataset.name, None, details)
