"""Read copies of cold documents: a collection per unit, `rehydrated_<dataset>_<begin>_g<generation>`, that goes again.

It is written under another name, read back and compared with the ledger's fingerprint, and only then given its name,
in one step: whoever sees the collection sees all of it. Where a crash left one that the ledger does not name, the sweep
removes it. `tiering query` goes on reading the cold object, so that a copy is never seen as a second document.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime

from psycopg2.extensions import connection as Connection

from tiering import errors
from tiering.model import Dataset, Form, Unit
from tiering.ops import documents
from tiering.ops.export import fetched
from tiering.ops.work import demand_equal
from tiering.stores import parquet
from tiering.stores.bson_batches import RawBatch, print_of
from tiering.stores.bson_typed import RAW_COLUMN, document_columns
from tiering.stores.copies import CopyRecord, forget_copy, list_copies, lock_copies, lock_copy, take_record
from tiering.stores.documents import Documents
from tiering.stores.opening import Stores
from tiering.stores.postgres import LOCK_TIMEOUT_MS
from tiering.stores.records import UnitRecord

PREFIX, BEING_MADE = "rehydrated_", "stage_rehydrated_"


def collection_of(unit: Unit) -> str:
    """Name the collection of a unit's read copy."""
    return f"{PREFIX}{unit.dataset}_{unit.slug}_g{unit.generation}"


def has_copy(stores: Stores, unit: Unit) -> bool:
    """Tell whether the collection is there: somebody may have dropped it by hand."""
    return stores.warm_documents.exists(collection_of(unit))


def make(
    stores: Stores, dataset: Dataset, record: UnitRecord, connection: Connection, now: datetime, until: datetime
) -> CopyRecord:
    """Write a unit's documents into their collection, as the bytes they were.

    Nobody else makes or drops this copy until the caller's transaction ends, which records it.

    Raises:
        FingerprintMismatch, CorruptCopy: the object, or what the server took, is not what the ledger says.
    """
    server, unit = stores.warm_documents, record.unit
    name = collection_of(unit)
    stage = name.replace(PREFIX, BEING_MADE, 1)
    for leftover in (stage, name):
        server.drop(leftover)
    server.prepare(stage, dataset.time_column)
    for batch in _cold(stores, dataset, record):
        server.insert_missing(stage, batch)
    if record.fingerprint is not None:
        found = documents.sum_of(print_of([b]) for b in server.read(stage, dataset.time_column, unit.begin, unit.end))
        demand_equal(f"{unit} (read copy)", record.fingerprint, found)
    if server.exists(stage):  # of no documents there is no collection
        server.rename(stage, name)
    size = server.size_bytes(name, record.row_count)
    return CopyRecord(unit, name, record.row_count, size, now, until)


def forget(stores: Stores, connection: Connection, dataset: Dataset, begin: datetime) -> bool:
    """Drop a unit's read copy, whatever its form, because the unit changes; tell whether there was one.

    The collection goes before the commit: a copy that is recorded and not there is made anew when it is asked for.
    """
    if dataset.form is not Form.DOCUMENTS:
        return forget_copy(connection, stores.warm_tables, dataset, begin)
    lock_copy(connection, dataset.name, begin)
    found = take_record(connection, dataset.name, begin)
    for copy in found:
        stores.warm_documents.drop(copy.location)
    return bool(found)


def sweep_leftovers(stores: Stores, dataset: Dataset, *, dry_run: bool = False) -> list[str]:
    """Drop the collections that a crash left behind; return their names.

    None are looked for while a copy is being made: the next sweep does.
    """
    with (
        suppress(errors.CommitConflict, errors.LeaseHeld),
        stores.warm.transaction("sweep copies of", dataset.name, lock_timeout_ms=LOCK_TIMEOUT_MS) as connection,
    ):
        lock_copies(connection, dataset.name, shared=False)
        known = {copy.location for copy in list_copies(connection, dataset.name)}
        left = [name for name in _collections(stores.warm_documents, dataset) if name not in known]
        for name in left if not dry_run else ():
            stores.warm_documents.drop(name)
        return left
    return []


def _collections(server: Documents, dataset: Dataset) -> list[str]:
    starts = tuple(f"{prefix}{dataset.name}_" for prefix in (PREFIX, BEING_MADE))
    return [name for name in server.collections() if name.startswith(starts)]


def _cold(stores: Stores, dataset: Dataset, record: UnitRecord) -> Iterator[RawBatch]:
    columns = tuple(c for c in document_columns(dataset) if c.name == RAW_COLUMN)
    with fetched(stores, record) as file:
        for batch in parquet.read_parquet_batches(file, columns):
            yield documents.raw_of(batch.column(RAW_COLUMN))
