"""Bytes of a compressed warm unit beside its heap: packed segments, and TimescaleDB's columnstore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import psycopg2
from psycopg2.extensions import connection as Connection

import infra.sql
from infra.local.errors import StackError
from infra.local.timescale import Timescale, find_missing_program
from tests.bench import bars
from tests.bench.ground import Ground, fill, lay_out
from tests.bench.rows import Group, Row
from tests.bench.world import DATASET, DAY, POLICIES, YEAR, begin, carry_out, opened
from tiering.model import Dataset, Span, Tier, Transition, Unit
from tiering.plan.columns import plan_columns
from tiering.plan.policies import parse_policies
from tiering.plan.spans import unit_of
from tiering.stores import tables
from tiering.stores.postgres import SESSION, fetch_one
from tiering.stores.records import UnitRecord
from tiering.stores.timescale import TimescaleWarm

FIRST = bars.day("2023-01-02")
"""Old enough to be compressed, too young for the lake."""

SEGMENTS_MAX, COLUMNSTORE_MAX = 0.45, 0.30
SEGMENTS_SHARE = 4
"""Segments are measured on a quarter of the bench's rows: the ratio does not depend on how many there are."""

COLUMNSTORE_MINUTES = 120
"""Bars reach the WebAssembly build by INSERTs of one network packet each: 60,000 of them are enough for a ratio."""

INSERT_ROWS = 200


def segments(ground: Ground) -> Iterator[Row]:
    """Compress one long unit and one of a single trading day by the real move."""
    day = bars.SYMBOLS * bars.SESSION_MINUTES
    rows = max(ground.rows // SEGMENTS_SHARE, day)
    yield from _segments(ground, YEAR, rows, ("segment_bytes", "segment_bytes_of_heap_alone"))
    yield next(_segments(ground, DAY, day, ("segment_bytes_day_unit", "")))


def _segments(ground: Ground, length: Span, rows: int, names: tuple[str, str]) -> Iterator[Row]:
    name = f"bench_{names[0]}"
    settings = ground.create(name)
    ground.say(f"packed segments of {rows:,} rows in one unit")
    with opened(settings, length) as (stores, dataset):
        lay_out(stores, dataset)
        fill(stores, dataset, Unit(DATASET, *unit_of(FIRST, length)), bars.sessions(FIRST, rows, ground.seed))
        carry_out(stores, begin(stores, dataset, Transition.HOT_TO_WARM))
        (warm,) = stores.ledger.units(DATASET)
        with stores.warm.transaction("measure", warm.location) as connection:
            whole, heap = _sizes(connection, warm.location)
        (receipt,) = carry_out(stores, begin(stores, dataset, Transition.COMPRESS))
    ground.drop(name)
    per_symbol = rows // bars.SYMBOLS
    note = f"pg_total_relation_size, indexes and TOAST on both sides; {per_symbol:,} bars per symbol and unit"
    yield _share(names[0], receipt.bytes_after, whole, "heap with its indexes", SEGMENTS_MAX, note)
    note = "segments with index and TOAST beside pg_relation_size of the heap, its indexes left out"
    yield _share(names[1], receipt.bytes_after, heap, "heap alone", None, note)


def columnstore(ground: Ground) -> Iterator[Row]:
    """Compress one chunk of a hypertable; no row where there is no TimescaleDB, and it says why."""
    ground.say("TimescaleDB's columnstore")
    with _timescale(ground) as found:
        if isinstance(found, str):
            ground.say(f"no row columnstore_bytes: {found}")
            return
        connection, where = found
        after, before = _pack_chunk(connection, ground.seed)
        connection.close()
    rows = COLUMNSTORE_MINUTES * bars.SYMBOLS
    note = f"{rows:,} rows, heap, columnstore and indexes by TimescaleDB's own account; {where}"
    yield _share("columnstore_bytes", after, before, "heap with its indexes", COLUMNSTORE_MAX, note)


@contextmanager
def _timescale(ground: Ground) -> Iterator[tuple[Connection, str] | str]:
    """Connect to a TimescaleDB: the stack's own server if it has it, else the WebAssembly build; or say why none."""
    with ground.stack.postgres.connect("postgres") as connection:
        row = fetch_one(connection, "SELECT default_version FROM pg_available_extensions WHERE name = 'timescaledb'")
    if row:
        settings = ground.create("bench_timescale")
        yield _prepared(settings.warm_pg_url.get_secret_value()), f"TimescaleDB {row[0]}, native"
        ground.drop("bench_timescale")
        return
    missing = find_missing_program()
    if missing:
        yield f"this PostgreSQL has no TimescaleDB, and its WebAssembly build needs {missing}"
        return
    server = Timescale(ground.directory / "timescale")
    try:
        server.__enter__()
    except StackError as exc:
        yield f"its WebAssembly build did not start: {' '.join(str(exc).split())[:200]}"
        return
    try:
        yield _prepared(server.url), "TimescaleDB in WebAssembly"
    finally:
        server.__exit__(None, None, None)


def _prepared(url: str) -> Connection:
    connection = psycopg2.connect(url)
    with connection.cursor() as cursor:
        for name, value in SESSION.items():
            cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
        for statement in ("CREATE EXTENSION IF NOT EXISTS timescaledb", *map(infra.sql.read, ("rooms", "market_data"))):
            cursor.execute(statement)
    connection.commit()
    return connection


def _pack_chunk(connection: Connection, seed: int) -> tuple[int, int]:
    """Put one unit into a hypertable and pack it; return the bytes after and before."""
    warm, dataset = TimescaleWarm(), _dataset()
    unit = Unit(DATASET, *unit_of(FIRST, DAY))
    columns = plan_columns(tables.described_columns(connection, tables.hot_parent(DATASET)))
    warm.install(connection, dataset, columns)
    table = tables.hot_partition(unit)
    tables.create_like(connection, table, tables.hot_parent(DATASET), unit, dataset.time_column)
    _insert(connection, table, seed)
    connection.commit()
    record = UnitRecord(unit, Tier.WARM, warm.put(connection, dataset, unit, table), False, 0, 0)
    connection.commit()
    before = warm.size_bytes(connection, dataset, record.location)
    packed = warm.pack(connection, dataset, record, unit, columns)
    connection.commit()
    return warm.size_bytes(connection, dataset, packed), before


def _dataset() -> Dataset:
    found = parse_policies(POLICIES.read_text(), str(POLICIES)).dataset(DATASET)
    assert found is not None
    return replace(found, unit=DAY)


def _insert(connection: Connection, table: str, seed: int) -> None:
    chunk = bars.Walk(seed).chunk(FIRST.replace(hour=1, minute=30), COLUMNSTORE_MINUTES)
    pattern = "(" + ", ".join(["%s"] * chunk.num_columns) + ")"
    with connection.cursor() as cursor:
        for part in chunk.to_batches(max_chunksize=INSERT_ROWS):
            values = [cursor.mogrify(pattern, tuple(row.values())) for row in part.to_pylist()]
            cursor.execute(b"INSERT INTO " + table.encode() + b" VALUES " + b",".join(values))


def _sizes(connection: Connection, table: str) -> tuple[int, int]:
    row = fetch_one(
        connection, "SELECT pg_total_relation_size(%s::regclass), pg_relation_size(%s::regclass)", [table] * 2
    )
    assert row is not None
    return int(row[0]), int(row[1])


def _share(name: str, after: int, before: int, peer_name: str, bar: float | None, note: str) -> Row:
    ratio = after / before
    return Row(name, "bytes", after, before, peer_name, ratio, bar, bar is None or ratio <= bar, note)


GROUPS = (
    Group(("segment_bytes", "segment_bytes_of_heap_alone", "segment_bytes_day_unit"), segments),
    Group(("columnstore_bytes",), columnstore),
)
