"""Warm units as TimescaleDB chunks, on the WebAssembly build (everywhere) and on a native server where it is there."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

import infra.sql
from infra.local import Stack
from infra.local.timescale import Timescale, find_missing_program
from tests.builders import BAR_COLUMNS, bars, dataset, unit
from tiering.model import Dataset, Span, Tier, Unit
from tiering.plan.columns import plan_columns
from tiering.stores import tables
from tiering.stores.lineage import Wanted, follow
from tiering.stores.postgres import SESSION, execute, fetch, fetch_one
from tiering.stores.records import UnitRecord
from tiering.stores.timescale import TimescaleWarm, choose_for
from tiering.stores.warm import NativeWarm

WARM = TimescaleWarm()
BARS = dataset()
DAY = unit("2024-01-05")
DAY_ROWS = 5 * 1440
COLUMNSTORE_RATIO_MAX = 0.30
TORTURE = """
    ('a', 'x', '2024-01-05 00:00+00', 'NaN', 'NaN', '{}', NULL, '', E'\\\\x00ff'::bytea, '-infinity'),
    ('a', 'x', '2024-01-05 00:01+00', 'Infinity', '-0', '{{1,NULL},{3,4}}', '{"a": [1, null]}', NULL, ''::bytea, NULL),
    ('a', 'x', '2024-01-05 00:02+00', '-Infinity', 'Infinity', NULL, '"\\u00e9"', '😀', NULL, '0044-03-15 BC'),
    ('a', 'x', '2024-01-05 00:03+00', 1.10, 1e-300, '{1}', 'null', 'NULL', NULL, '294276-12-31'),
    ('b', 'x', '2024-01-05 23:59:59.999999+00', 123456789012345678901234567890.000, 0.1, NULL, '1', E'\\t', NULL, NULL)
"""


@pytest.fixture(scope="module")
def wasm_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    missing = find_missing_program()
    if missing:
        pytest.skip(f"{missing} is not on PATH: the WebAssembly build of TimescaleDB needs node and npm")
    with Timescale(tmp_path_factory.mktemp("timescale")) as server:
        yield server.url


@pytest.fixture(scope="module", params=["wasm", "native"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "wasm":
        yield request.getfixturevalue("wasm_url")
        return
    stack: Stack = request.getfixturevalue("stack")
    with stack.postgres.connect("postgres") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'")
        if not cursor.fetchall():
            pytest.skip("the PostgreSQL server here has no TimescaleDB")
        cursor.execute("CREATE DATABASE timescale_units")
    yield stack.postgres.url("timescale_units")
    with stack.postgres.connect("postgres") as connection, connection.cursor() as cursor:
        cursor.execute("DROP DATABASE timescale_units WITH (FORCE)")


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """The one connection, in empty schemas with a hot table of bars."""
    opened = psycopg2.connect(url)
    with opened.cursor() as cursor:
        for name, value in SESSION.items():
            cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
        cursor.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        cursor.execute(infra.sql.read("rooms"))
        cursor.execute(infra.sql.read("market_data"))
    opened.commit()
    yield opened
    opened.rollback()
    with opened.cursor() as cursor:
        cursor.execute("DROP SCHEMA hot, warm, live, tiering, tiering_stage, tier_trash CASCADE")
    opened.commit()
    opened.close()


def install(connection: Connection, installed: Dataset = BARS) -> None:
    columns = plan_columns(tables.described_columns(connection, tables.hot_parent(installed.name)))
    WARM.install(connection, installed, columns)
    connection.commit()


def stage(connection: Connection, of: Unit = DAY, rows: int = DAY_ROWS, seed: int = 7) -> str:
    """Make a fenced standalone table of bars, as sealing leaves it, and a plain copy of it to compare with."""
    print(f"seed {seed}")
    table = tables.hot_partition(of)
    tables.create_like(connection, table, tables.hot_parent(of.dataset), of, "ts")
    made = bars(rows, seed, begin=of.begin, symbols=5)
    with connection.cursor() as cursor:
        pattern = "(" + ", ".join(["%s"] * len(BAR_COLUMNS)) + ")"
        for start in range(0, len(made), 200):  # the WebAssembly server takes messages of one packet only
            values = b",".join(cursor.mogrify(pattern, row) for row in made[start : start + 200])
            cursor.execute(b"INSERT INTO " + table.encode() + b" VALUES " + values)
    tables.fence(connection, table)
    execute(connection, f"CREATE TABLE IF NOT EXISTS tiering_stage.expected AS TABLE {table}")
    connection.commit()
    return table


def put(connection: Connection, of: Unit = DAY, rows: int = DAY_ROWS) -> UnitRecord:
    location = WARM.put(connection, BARS, of, stage(connection, of, rows))
    connection.commit()
    return UnitRecord(of, Tier.WARM, location, False, rows, 0)


def pack(connection: Connection, record: UnitRecord, of: Dataset = BARS) -> None:
    assert WARM.pack(connection, of, record, record.unit, ()) == record.location
    connection.commit()


def differences(connection: Connection, one: str, other: str) -> int:
    """Count rows that are in one of two tables only, with their repetitions."""
    both = f"(TABLE {one} EXCEPT ALL TABLE {other}) UNION ALL (TABLE {other} EXCEPT ALL TABLE {one})"
    row = fetch_one(connection, f"SELECT count(*) FROM ({both}) d")
    assert row is not None
    return int(row[0])


def count(connection: Connection, table: str) -> int:
    row = fetch_one(connection, f"SELECT count(*) FROM {table}")
    assert row is not None
    return int(row[0])


def test_a_unit_is_put_packed_and_taken_and_keeps_every_row(connection: Connection) -> None:
    install(connection)
    record = put(connection)
    heap = WARM.size_bytes(connection, BARS, record.location)
    assert differences(connection, "warm.market_bars", "tiering_stage.expected") == 0

    pack(connection, record)
    pack(connection, record)
    packed = WARM.size_bytes(connection, BARS, record.location)
    print(f"heap {heap} columnstore {packed} ratio {packed / heap:.3f}")
    assert packed <= COLUMNSTORE_RATIO_MAX * heap
    assert differences(connection, record.location, "tiering_stage.expected") == 0
    assert differences(connection, "warm.market_bars", "tiering_stage.expected") == 0

    trash = tables.trash_table(DAY, 1, "warm")
    assert WARM.take(connection, BARS, record, trash) == trash
    connection.commit()
    assert count(connection, "warm.market_bars") == 0
    assert differences(connection, trash, "tiering_stage.expected") == 0
    tables.drop(connection, trash)


def test_a_heap_unit_is_taken_by_detaching_it(connection: Connection) -> None:
    install(connection)
    record = put(connection, rows=100)
    before = fetch(connection, "SELECT %s::regclass::oid", (record.location,))
    trash = tables.trash_table(DAY, 1, "warm")
    WARM.take(connection, BARS, record, trash)
    connection.commit()
    assert fetch(connection, "SELECT %s::regclass::oid", (trash,)) == before, "the same table, not a copy"
    assert count(connection, "warm.market_bars") == 0


@pytest.mark.parametrize("packed", [False, True])
def test_a_rolled_back_take_brings_every_row_back(connection: Connection, packed: bool) -> None:
    install(connection)
    record = put(connection, rows=500)
    if packed:
        pack(connection, record)
    WARM.take(connection, BARS, record, tables.trash_table(DAY, 1, "warm"))
    assert count(connection, "warm.market_bars") == 0
    connection.rollback()
    assert differences(connection, "warm.market_bars", "tiering_stage.expected") == 0
    assert not tables.exists(connection, tables.trash_table(DAY, 1, "warm"))


def test_a_rolled_back_put_and_pack_leave_nothing(connection: Connection) -> None:
    install(connection)
    table = stage(connection, rows=500)
    WARM.put(connection, BARS, DAY, table)
    connection.rollback()
    assert count(connection, "warm.market_bars") == 0
    assert count(connection, table) == 500
    WARM.put(connection, BARS, DAY, table)
    connection.commit()
    record = UnitRecord(DAY, Tier.WARM, tables.warm_partition(DAY), False, 500, 0)
    heap = WARM.size_bytes(connection, BARS, record.location)
    WARM.pack(connection, BARS, record, DAY, ())
    connection.rollback()
    assert WARM.size_bytes(connection, BARS, record.location) == heap
    assert differences(connection, "warm.market_bars", "tiering_stage.expected") == 0


@pytest.mark.parametrize("packed", [False, True])
def test_nobody_writes_to_a_warm_unit(connection: Connection, packed: bool) -> None:
    install(connection)
    record = put(connection, rows=100)
    if packed:
        pack(connection, record)
    for statement in (
        "INSERT INTO warm.market_bars VALUES ('Z','US','1m','2024-01-05',1,1,1,1,1,1,'late')",
        f"INSERT INTO {record.location} VALUES ('Z','US','1m','2024-01-05',1,1,1,1,1,1,'late')",
        "INSERT INTO warm.market_bars VALUES ('Z','US','1m','1999-01-05',1,1,1,1,1,1,'a range without a unit')",
        "UPDATE warm.market_bars SET volume = 0",
        "DELETE FROM warm.market_bars",
        "TRUNCATE warm.market_bars",
        f"TRUNCATE {record.location}",
    ):
        with pytest.raises(psycopg2.Error, match=r"frozen|is sealed"):
            execute(connection, statement)
        connection.rollback()
    assert differences(connection, "warm.market_bars", "tiering_stage.expected") == 0


def test_the_next_generation_takes_the_place_of_a_packed_one_in_one_transaction(connection: Connection) -> None:
    install(connection)
    record = put(connection, rows=500)
    pack(connection, record)
    merged = unit("2024-01-05", generation=2)
    table = tables.stage_table(merged, "rows")
    tables.create_like(connection, table, "warm.market_bars", merged, "ts")
    execute(connection, f"INSERT INTO {table} SELECT * FROM {record.location}")
    execute(connection, f"INSERT INTO {table} VALUES ('Z','US','1m','2024-01-05',1,1,1,1,1,1,'late')")
    connection.commit()

    for end in (connection.rollback, connection.commit):
        WARM.take(connection, BARS, record, tables.trash_table(DAY, 2, "old"))
        assert WARM.put(connection, BARS, merged, table) == tables.warm_partition(merged)
        assert count(connection, "warm.market_bars") == 501
        end()
    assert count(connection, "warm.market_bars") == 501
    assert differences(connection, tables.trash_table(DAY, 2, "old"), "tiering_stage.expected") == 0


@pytest.mark.parametrize(
    ("length", "name"), [(Span(months=1), "month"), (Span(months=12), "year"), (Span(hours=4), "hours")]
)
def test_units_of_any_length_are_one_chunk_each(connection: Connection, length: Span, name: str) -> None:
    of = replace(BARS, unit=length)
    install(connection, of)
    first = unit("2024-02-29", length=length)
    second = unit(first.end, length=length)
    for each in (first, second):
        execute(connection, "DROP TABLE IF EXISTS tiering_stage.expected")
        WARM.put(connection, of, each, stage(connection, each, rows=100))
        connection.commit()
    chunks = fetch(
        connection,
        """SELECT chunk_name, range_start, range_end FROM timescaledb_information.chunks
           WHERE hypertable_schema = 'warm' ORDER BY 2""",
    )
    assert chunks == [(tables.warm_partition(u).removeprefix("warm."), u.begin, u.end) for u in (first, second)], name


def test_a_row_outside_the_units_bounds_is_refused(connection: Connection) -> None:
    install(connection)
    execute(connection, "CREATE TABLE tiering_stage.wrong (LIKE warm.market_bars INCLUDING ALL)")
    execute(connection, "INSERT INTO tiering_stage.wrong VALUES ('Z','US','1m','2024-01-06',1,1,1,1,1,1,'late')")
    connection.commit()
    with pytest.raises(psycopg2.Error, match="violated by some row"):
        WARM.put(connection, BARS, DAY, "tiering_stage.wrong")
    connection.rollback()
    assert tables.exists(connection, "tiering_stage.wrong")


def test_a_chunk_that_somebody_made_by_hand_is_not_overwritten(connection: Connection) -> None:
    install(connection)
    execute(connection, "DROP TRIGGER sealed_table ON warm.market_bars")
    execute(connection, "INSERT INTO warm.market_bars VALUES ('Z','US','1m','2024-01-05',1,1,1,1,1,1,'by hand')")
    table = stage(connection, rows=100)
    with pytest.raises(Exception, match="chunk"):
        WARM.put(connection, BARS, DAY, table)
    connection.rollback()
    assert count(connection, table) == 100


def test_a_column_that_the_hot_table_gains_reaches_packed_units(connection: Connection) -> None:
    install(connection)
    record = put(connection, rows=100)
    pack(connection, record)
    execute(connection, "ALTER TABLE hot.market_bars ADD COLUMN note text")
    install(connection)
    follow(connection, "warm.market_bars", [Wanted(12, "note", "text")])
    connection.commit()
    assert fetch(connection, "SELECT count(*) FROM warm.market_bars WHERE note IS NULL") == [(100,)]
    again = unit("2024-01-06")
    WARM.put(connection, BARS, again, stage(connection, again, rows=100))
    assert count(connection, "warm.market_bars") == 200


def test_packing_keeps_values_that_break_other_tools(connection: Connection) -> None:
    execute(
        connection,
        """CREATE TABLE hot.torture (symbol text NOT NULL, source text NOT NULL, ts timestamptz NOT NULL, n numeric,
           f float8, a int[], j jsonb, t text, b bytea, d timestamptz, PRIMARY KEY (symbol, ts, source))
           PARTITION BY RANGE (ts)""",
    )
    of = replace(BARS, name="torture", key=("symbol", "ts", "source"))
    install(connection, of)
    day = unit("2024-01-05", dataset="torture")
    table = tables.hot_partition(day)
    tables.create_like(connection, table, "hot.torture", day, "ts")
    execute(connection, f"INSERT INTO {table} VALUES {TORTURE}")
    execute(connection, f"CREATE TABLE tiering_stage.expected AS TABLE {table}")
    record = UnitRecord(day, Tier.WARM, WARM.put(connection, of, day, table), False, 5, 0)
    pack(connection, record, of)
    assert differences(connection, "warm.torture", "tiering_stage.expected") == 0
    same_text = "SELECT count(DISTINCT w::text) FROM (TABLE warm.torture UNION ALL TABLE tiering_stage.expected) w"
    assert fetch(connection, same_text) == [(5,)], "equal to the last digit of scale, not only equal"


def test_a_packed_unit_is_copied_out_whole(connection: Connection) -> None:
    install(connection)
    record = put(connection, rows=1000)
    pack(connection, record)
    copies = []
    for table in (record.location, "tiering_stage.expected"):
        out = io.BytesIO()
        order = "symbol, market, timeframe, ts, source"
        with connection.cursor() as cursor:
            cursor.copy_expert(f"COPY (SELECT * FROM {table} ORDER BY {order}) TO STDOUT (FORMAT binary)", out)
        copies.append(out.getvalue())
    assert copies[0] == copies[1]


def test_timescale_is_chosen_where_it_is_and_native_partitions_stay_what_they_are(connection: Connection) -> None:
    assert isinstance(choose_for(connection, BARS), TimescaleWarm)
    install(connection)
    assert isinstance(choose_for(connection, BARS), TimescaleWarm)
    other = replace(BARS, name="index_bars")
    columns = plan_columns(tables.described_columns(connection, "hot.index_bars"))
    NativeWarm().install(connection, other, columns)
    assert isinstance(choose_for(connection, other), NativeWarm)


def test_plain_postgresql_gets_native_partitions(stack: Stack) -> None:
    with stack.postgres.connect("trading") as connection:
        present = fetch(connection, "SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'")
        chosen = choose_for(connection, replace(BARS, name="not_yet_there"))
    assert isinstance(chosen, TimescaleWarm if present else NativeWarm)


def test_the_server_leaves_nothing_behind(tmp_path: Path) -> None:
    missing = find_missing_program()
    if missing:
        pytest.skip(f"{missing} is not on PATH: the WebAssembly build of TimescaleDB needs node and npm")
    with Timescale(tmp_path) as server:
        opened = psycopg2.connect(server.url)
        assert fetch(opened, "SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'") == [(1,)]
        opened.close()
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(server.url)
