"""Fetch a table's rows for a query: hot ones first, then warm ones in one snapshot with the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pyarrow as pa
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering.model import Tier
from tiering.ops import archive
from tiering.ops.columns import aligned
from tiering.ops.query_engine import Progress, Scan, define_view, fill
from tiering.plan.columns import plan_columns
from tiering.stores import pgcopy, tables
from tiering.stores.copies import list_copies
from tiering.stores.ledger import units
from tiering.stores.opening import Stores
from tiering.stores.postgres import Postgres, identifier, mapped
from tiering.stores.records import UnitRecord


def fetch(engine: Any, stores: Stores, scan: Scan, progress: Progress) -> list[datetime]:
    """Fill the engine with a dataset's hot and warm rows and define its view over them and the lake's files.

    Returns:
        Where the units begin that had to be looked at.

    Raises:
        NotFound: a table that the snapshot listed was renamed by a move meanwhile: look again.
    """
    name = scan.dataset.name
    with _snapshot(stores.hot, name) as hot:
        late = [p for p in [tables.late_partition(name)] if tables.exists(hot, p)]
        attached = [p for p in tables.partitions(hot, tables.hot_parent(name)) if p.begin is not None]
        sealed = [p for p in tables.partitions(hot, tables.sealed_parent(name)) if p.begin is not None]
        # The hot snapshot exists; only now may the warm one be taken.
        with _one_or_two(stores, hot, name) as warm:
            copies = {copy.unit: copy.as_warm for copy in list_copies(warm, name)}
            # A read copy of the same generation is nearer than the file, and the same rows.
            records = [copies.get(r.unit, r) for r in units(warm, name) if r.tier is not Tier.EXPIRED]
            gone = {record.unit.begin for record in records}
            _fill(engine, scan, hot, "late", [identifier(p) for p in late], progress)
            parts = [p for p in attached if scan.overlaps(p.begin, p.end)]
            _fill(engine, scan, hot, "hot", [identifier(p.name) for p in parts if p.begin not in gone], progress)
            twice = [p for p in parts if p.begin in gone] + [p for p in sealed if scan.overlaps(p.begin, p.end)]
            _fill(engine, scan, hot, "sealed", [identifier(p.name) for p in twice], progress)
            homes = [r for r in records if r.tier is Tier.WARM and scan.overlaps(r.unit.begin, r.unit.end)]
            _fill(engine, scan, warm, "warm", _relations(stores, warm, scan, homes), progress)
    cold = [r for r in records if r.tier is Tier.COLD and scan.overlaps(r.unit.begin, r.unit.end)]
    if scan.now:
        archive.ask_for_all(stores, cold, scan.now)
    define_view(engine, scan, [record.location for record in cold])
    progress("cold files", len(cold))
    return [p.begin for p in parts if p.begin] + [record.unit.begin for record in [*homes, *cold]]


@contextmanager
def _snapshot(database: Postgres, subject: str) -> Iterator[Connection]:
    """Open one read-only snapshot for the whole body. A connection of its own: COPY may have to close it."""
    connection = database.connect(f"query {subject}")
    try:
        with mapped("query", subject):
            connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
            yield connection
    finally:
        connection.close()


@contextmanager
def _one_or_two(stores: Stores, hot: Connection, subject: str) -> Iterator[Connection]:
    if stores.is_one_database:
        yield hot
    else:
        with _snapshot(stores.warm, subject) as warm:
            yield warm


def _relations(stores: Stores, warm: Connection, scan: Scan, records: Sequence[UnitRecord]) -> Iterator[sql.Composable]:
    for record in records:
        # All of the dataset's columns: a packed unit is unpacked by them, whichever are then asked for.
        described = plan_columns(tables.described_columns(warm, tables.warm_parent(scan.dataset.name)))
        relation = stores.warm_tables.relation(warm, scan.dataset, record, described)
        yield aligned(warm, relation, tables.warm_parent(scan.dataset.name), scan.columns)


def _fill(
    engine: Any,
    scan: Scan,
    connection: Connection,
    place: str,
    relations: Iterable[sql.Composable],
    progress: Progress,
) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        for relation in relations:
            yield from pgcopy.read_batches(connection, relation, scan.columns, where=scan.where)

    fill(engine, scan, place, batches(), progress)
