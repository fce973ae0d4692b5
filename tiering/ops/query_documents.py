"""Fetch documents for a query: by their typed columns, each once by `_id`, hot before warm before cold.

Hot first, the ledger second, warm third, and the ledger again: a unit that moved meanwhile is looked at anew. Time
bounds are widened to whole units, so that a document that changed its time within its unit still hides its old copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from tiering.errors import NotFound
from tiering.model import EXACT_COLUMN, Tier, Unit
from tiering.ops import archive, documents
from tiering.ops.query_engine import Progress, Scan, define_view, fill, fill_superseded
from tiering.plan.spans import EARLIEST, LATEST, unit_of
from tiering.stores.bson_batches import only_ids
from tiering.stores.bson_typed import typed
from tiering.stores.opening import Stores
from tiering.stores.parquet_schema import arrow_schema
from tiering.stores.records import UnitRecord
from tiering.stores.superseded import list_superseded


def fetch(engine: Any, stores: Stores, scan: Scan, progress: Progress) -> list[datetime]:
    """Fill the engine with a dataset's hot and warm documents and define its view over them and the lake's files.

    Returns:
        Where the units begin that had to be looked at, beside the hot ones.

    Raises:
        NotFound: a unit moved meanwhile: look again.
    """
    dataset = scan.dataset
    begin, end = _widened(scan)
    hot, warm = documents.hot(stores, dataset), documents.warm(stores, dataset)
    fill(engine, scan, "late", _rows(scan, hot, [(begin, end)]), progress)
    before = stores.ledger.units(dataset.name)
    homes = [r.unit for r in before if r.tier in (Tier.WARM, Tier.COLD) and r.unit.end > begin and r.unit.begin < end]
    fill(engine, scan, "sealed", _rows(scan, warm, _joined(homes)), progress)
    fill(engine, scan, "hot", (), progress)
    fill(engine, scan, "warm", (), progress)
    if stores.ledger.units(dataset.name) != before:
        raise NotFound("query", dataset.name, "units moved while they were read")
    cold = [r for r in before if r.tier is Tier.COLD and r.unit.end > begin and r.unit.begin < end]
    if scan.now:
        archive.ask_for_all(stores, cold, scan.now)
    _fill_superseded(engine, stores, scan, cold)
    define_view(engine, scan, [record.location for record in cold])
    progress("cold files", len(cold))
    return [unit.begin for unit in homes]


def _fill_superseded(engine: Any, stores: Stores, scan: Scan, cold: Sequence[UnitRecord]) -> None:
    """Tell the engine which documents of the files count no more: they went on in another unit."""
    with stores.warm.transaction("query", scan.dataset.name, read_only=True) as connection:
        found = list_superseded(connection, scan.dataset.name)
    groups = []
    for unit in (record.unit for record in cold):
        if keys := [one.key for one in found if one.begin == unit.begin]:
            groups.append((typed(only_ids(keys), scan.dataset)[0].column("_id"), unit.begin, unit.end))
    fill_superseded(engine, scan, groups)


def _widened(scan: Scan) -> tuple[datetime, datetime]:
    """The time bounds of the query, out to the edges of units."""
    begin, end = EARLIEST, LATEST
    for bound in scan.bounds:
        if bound.column == scan.dataset.time_column:
            if bound.operator in (">", ">=", "="):
                begin = max(begin, unit_of(min(bound.values), scan.dataset.unit)[0])
            if bound.operator in ("<", "<=", "="):
                end = min(end, unit_of(max(bound.values), scan.dataset.unit)[1])
    return begin, end


def _joined(units: Sequence[Unit]) -> list[tuple[datetime, datetime]]:
    """Join units that touch, so that a long range is one read."""
    found: list[tuple[datetime, datetime]] = []
    for unit in sorted(units):
        if found and found[-1][1] == unit.begin:
            found[-1] = (found[-1][0], unit.end)
        else:
            found.append((unit.begin, unit.end))
    return found


def _rows(scan: Scan, place: documents.Place, ranges: Sequence[tuple[datetime, datetime]]) -> Iterator[pa.RecordBatch]:
    names = [*arrow_schema(scan.columns).names]
    for begin, end in ranges:
        if begin < end:
            for batch in place.documents.read(place.collection, place.time_field, begin, end):
                rows, _ = typed(batch, scan.dataset)
                yield rows.select([name for name in names if name != EXACT_COLUMN] + [EXACT_COLUMN])
