"""Columns that come, go, change their names and widen, between generations of real tables, read back everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pyarrow as pa
import pytest

from tests.ops.world import NOW, World, days_ago, open_world
from tests.stores.test_lake import outside_catalog
from tiering import errors
from tiering.model import State, Transition
from tiering.ops import columns, install, lifecycle
from tiering.ops.fsck import fsck
from tiering.ops.query import query
from tiering.settings import Settings
from tiering.stores import duck
from tiering.stores.postgres import execute, fetch, fetch_one

OLD, MIDDLE, NEW = 800, 780, 760
NAMES = "open, high, low, close, volume, amount, source, fee, trades"
OLDER = "WHERE source <> 'now'"
ALL = (Transition.HOT_TO_WARM, Transition.MERGE, Transition.COMPRESS, Transition.WARM_TO_COLD)


@pytest.fixture(params=["one database", "two databases"])
def settings(request: pytest.FixtureRequest) -> Settings:
    name = "fresh_settings" if request.param == "one database" else "fresh_two_database_settings"
    found: Settings = request.getfixturevalue(name)
    return found


@pytest.fixture
def world(settings: Settings) -> Iterator[World]:
    with open_world(settings) as opened:
        alter(
            opened,
            "ALTER TABLE hot.market_bars ADD COLUMN fee numeric(18, 2)",
            "ALTER TABLE hot.market_bars ADD COLUMN trades integer",
        )
        install.install_dataset(opened.stores, opened.dataset)
        # Age counts from the newest row.
        insert(opened, days_ago(0), NAMES, "1, 9, 0.5, s, s, s, 'now', NULL, NULL")
        yield opened


def alter(world: World, *statements: str) -> None:
    """Change the hot table as a person would; what reads it through the view goes first where PostgreSQL wants that."""
    with world.stores.hot.transaction("alter", "by hand") as connection:
        for statement in statements:
            execute(connection, statement)


def insert(world: World, day: datetime, names: str, values: str) -> None:
    """Insert three rows of a day with these columns besides the key."""
    with world.stores.hot.transaction("insert", str(day)) as connection:
        execute(
            connection,
            f"""INSERT INTO hot.market_bars (symbol, market, timeframe, ts, {names})
                SELECT 'S' || s, 'US', '1m', %s::timestamptz, {values} FROM generate_series(1, 3) s""",
            (day,),
        )


def settle_all(world: World) -> None:
    install.install_dataset(world.stores, world.dataset)
    for transition in ALL:
        for receipt in world.run(transition):
            assert receipt.state is State.COMMITTED, receipt


def in_lake(world: World, settings: Settings, column: str) -> dict[str, list[Any]]:
    """Read one column of the whole lake, by our query, by DuckDB's Iceberg reader and by pyiceberg."""
    statement = f"SELECT ts, symbol, {column} AS v FROM %s ORDER BY ts, symbol"
    ours = query(world.stores, statement % "market_bars WHERE ts < TIMESTAMPTZ '2022-06-01 00:00:00+00'")
    with_duck = duck.duckdb_connection(world.stores.objects)
    try:
        location = world.stores.lake.metadata_location("market_bars")
        theirs = with_duck.execute(statement % f"iceberg_scan('{location}')").to_arrow_table()
    finally:
        with_duck.close()
    table = outside_catalog(settings).load_table(("lake", "market_bars")).scan().to_arrow()
    table = table.sort_by([("ts", "ascending"), ("symbol", "ascending")])
    return {"query": values(ours, "v"), "duckdb": values(theirs, "v"), "pyiceberg": values(table, column)}


def values(table: pa.Table, column: str) -> list[Any]:
    return [str(value) if value is not None else None for value in table.column(column).to_pylist()]


def field_ids(world: World) -> dict[str, int]:
    return {c.name: c.field_id for c in columns.look(world.stores, "market_bars").stored}


def test_columns_change_and_old_files_are_read_by_field_id(world: World, settings: Settings) -> None:
    insert(world, days_ago(OLD), NAMES, "1, 9, 0.5, s, s, s, 'old', s + 0.25, 5")
    with world.stores.hot.transaction("special", "values") as connection:
        execute(connection, "UPDATE hot.market_bars SET fee = 'NaN' WHERE symbol = 'S3'")
    settle_all(world)
    before = field_ids(world)
    alter(
        world,
        "ALTER TABLE hot.market_bars RENAME COLUMN fee TO charge",
        "ALTER TABLE hot.market_bars ADD COLUMN venue text",
        "ALTER TABLE hot.market_bars DROP COLUMN trades CASCADE",
        "ALTER TABLE hot.market_bars ADD COLUMN trades text",
    )
    names = NAMES.replace("fee", "charge") + ", venue"
    insert(world, days_ago(MIDDLE), names, "1, 9, 0.5, s, s, s, 'mid', s + 0.5, 'many', 'X'")
    settle_all(world)
    now = field_ids(world)
    assert now["charge"] == before["fee"]
    assert now[f"trades_f{before['trades']}"] == before["trades"]
    assert min(now["trades"], now["venue"]) > max(before.values())
    expected = {
        "charge": ["1.25", "2.25", None, "1.50", "2.50", "3.50"],
        "venue": [None, None, None, "X", "X", "X"],
        "trades": [None, None, None, "many", "many", "many"],
    }
    for column, wanted in expected.items():
        for reader, found in in_lake(world, settings, column).items():
            assert found == wanted, (reader, column)
    retired = outside_catalog(settings).load_table(("lake", "market_bars")).scan().to_arrow()
    assert sorted(map(str, retired.column(f"trades_f{before['trades']}").to_pylist())) == ["5"] * 3 + ["None"] * 3
    assert fsck(world.stores, NOW, deep=True).findings == ()


def test_late_rows_merge_into_a_file_with_other_names(world: World) -> None:
    insert(world, days_ago(OLD), NAMES, "1, 9, 0.5, s, s, s, 'old', 'NaN', 5")
    settle_all(world)
    alter(
        world,
        "ALTER TABLE hot.market_bars RENAME COLUMN fee TO charge",
        "ALTER TABLE hot.market_bars ADD COLUMN venue text",
        "ALTER TABLE hot.market_bars DROP COLUMN trades CASCADE",
    )
    with world.stores.hot.transaction("late", "row") as connection:
        execute(
            connection,
            """INSERT INTO hot.market_bars (symbol, market, timeframe, ts, source, open, high, low, close, volume,
                   charge, venue)
               VALUES ('S3', 'US', '1m', %s, 'old', 1, 9, 1, 8, 1, 4.5, 'X')""",
            (days_ago(OLD),),
        )
    settle_all(world)
    found = query(world.stores, f"SELECT symbol, close, charge, venue, _exact FROM market_bars {OLDER} ORDER BY symbol")
    assert [tuple(map(str, row.values())) for row in found.to_pylist()] == [
        ("S1", "1.00000000", "None", "None", '{"charge":"NaN"}'),
        ("S2", "2.00000000", "None", "None", '{"charge":"NaN"}'),
        ("S3", "8.00000000", "4.50", "X", "None"),
    ]
    assert world.stores.ledger.units("market_bars")[0].unit.generation == 2
    assert fsck(world.stores, NOW, deep=True).findings == ()


def test_warm_units_follow_and_lose_nothing(world: World) -> None:
    """Two columns that took each other's name, and an added one, while units are warm, packed and half way."""
    for age in (30, 40, 50):
        insert(world, days_ago(age), NAMES, "1, 9, 0.5, s, s, s, 'a', 2, 7")
    install.install_dataset(world.stores, world.dataset)
    world.run(Transition.HOT_TO_WARM)
    moves = world.begin(Transition.COMPRESS)
    assert len(moves) == 3
    lifecycle.run_move(world.stores, moves[0], NOW, "test")
    for step in (lifecycle.seal, lifecycle.copy, lifecycle.verify):
        step(world.stores, moves[1], NOW, "test")
    with world.stores.hot.transaction("grant", "view") as connection:
        execute(connection, "GRANT SELECT ON live.market_bars TO PUBLIC")
    alter(
        world,
        "ALTER TABLE hot.market_bars RENAME COLUMN amount TO other",
        "ALTER TABLE hot.market_bars RENAME COLUMN fee TO amount",
        "ALTER TABLE hot.market_bars RENAME COLUMN other TO fee",
        "ALTER TABLE hot.market_bars ADD COLUMN venue text",
    )
    statement = f"SELECT symbol, ts, amount, fee, venue FROM market_bars {OLDER} ORDER BY ALL"
    before = query(world.stores, statement).to_pylist()
    found = {(float(row["amount"]), float(row["fee"]), row["venue"]) for row in before}
    assert found == {(2.0, 1.0, None), (2.0, 2.0, None), (2.0, 3.0, None)}
    install.install_dataset(world.stores, world.dataset)
    assert query(world.stores, statement).to_pylist() == before
    for move in moves[1:]:
        assert lifecycle.run_move(world.stores, move, NOW, "test").state is State.COMMITTED
    assert query(world.stores, statement).to_pylist() == before
    with world.stores.warm.transaction("read", "view") as connection:
        seen = fetch(connection, f"SELECT symbol, ts, amount, fee, venue FROM live.market_bars {OLDER} ORDER BY 1, 2")
    assert len(seen) == len(before)
    assert {(float(row[2]), float(row[3])) for row in seen} == {(2.0, 1.0), (2.0, 2.0), (2.0, 3.0)}
    with world.stores.hot.transaction("look", "grants") as connection:
        row = fetch_one(connection, "SELECT relacl::text FROM pg_class WHERE oid = 'live.market_bars'::regclass")
    assert row is not None
    assert "=r/" in row[0], "the view's grants are kept"


def test_wider_types_are_followed(world: World, settings: Settings) -> None:
    insert(world, days_ago(OLD), NAMES, "1, 9, 0.5, s, s, s, 'a', s, 2147483647")
    install.install_dataset(world.stores, world.dataset)
    for transition in ALL:
        world.run(transition)
    for age in (30, 10):
        insert(world, days_ago(age), NAMES, "1, 9, 0.5, s, s, s, 'a', s, 5")
    for transition in (Transition.HOT_TO_WARM, Transition.COMPRESS):
        world.run(transition)
    alter(
        world,
        "DROP VIEW live.market_bars",
        "ALTER TABLE hot.market_bars ALTER COLUMN trades TYPE bigint",
        "ALTER TABLE hot.market_bars ALTER COLUMN fee TYPE numeric(30, 2)",
    )
    insert(world, days_ago(MIDDLE), NAMES, "1, 9, 0.5, s, s, s, 'a', 9999999999999999999999999.25, 3000000000")
    total = "SELECT sum(trades)::bigint AS n, max(fee)::varchar AS f FROM market_bars"
    expected = [{"n": 3 * (2147483647 + 5 + 5 + 3000000000), "f": "9999999999999999999999999.25"}]
    assert query(world.stores, total).to_pylist() == expected
    settle_all(world)
    assert query(world.stores, total).to_pylist() == expected
    for found in in_lake(world, settings, "trades").values():
        assert found == ["2147483647"] * 3 + ["3000000000"] * 3
    assert fsck(world.stores, NOW, deep=True).findings == ()


def test_a_change_that_stored_data_cannot_follow_quarantines_what_it_touches(world: World) -> None:
    insert(world, days_ago(OLD), NAMES, "1, 9, 0.5, s, s, s, 'a', s, 5")
    install.install_dataset(world.stores, world.dataset)
    world.run(Transition.HOT_TO_WARM)
    alter(world, "DROP VIEW live.market_bars", "ALTER TABLE hot.market_bars ALTER COLUMN trades TYPE text")
    insert(world, days_ago(MIDDLE), NAMES, "1, 9, 0.5, s, s, s, 'a', s, '5'")
    install.install_dataset(world.stores, world.dataset)
    [receipt] = world.run(Transition.HOT_TO_WARM)
    assert receipt.state is State.QUARANTINED
    assert "column trades was integer and is text. HINT: Give the column its old type back" in receipt.problem
    assert [r.state for r in world.run(Transition.WARM_TO_COLD)] == [State.COMMITTED], "the older unit goes on"
    # The hot database's own view is there again, and stands in the way of the type.
    drop = "DROP VIEW IF EXISTS live.market_bars"
    alter(world, drop, "ALTER TABLE hot.market_bars ALTER COLUMN trades TYPE integer USING trades::integer")
    install.install_dataset(world.stores, world.dataset)
    lifecycle.release(world.stores, receipt.unit, "test")
    assert [r.state for r in world.run(Transition.HOT_TO_WARM)] == [State.COMMITTED]
    assert query(world.stores, f"SELECT count(*) AS n FROM market_bars {OLDER}").column("n").to_pylist() == [6]


def test_a_restored_table_with_other_numbers_keeps_its_field_ids(world: World) -> None:
    settle_all(world)
    before = field_ids(world)
    alter(world, *recreate(swapped=True))
    install.install_dataset(world.stores, world.dataset)
    assert field_ids(world) == before


def test_a_restored_table_that_lacks_a_column_is_refused(world: World) -> None:
    settle_all(world)
    before = field_ids(world)
    alter(world, *recreate(swapped=False), "ALTER TABLE hot.market_bars RENAME COLUMN amount TO turnover")
    with pytest.raises(errors.SchemaMismatch, match="lacks amount.*HINT: Give the columns their old names"):
        install.install_dataset(world.stores, world.dataset)
    alter(world, "ALTER TABLE hot.market_bars RENAME COLUMN turnover TO amount")
    install.install_dataset(world.stores, world.dataset)
    alter(world, "ALTER TABLE hot.market_bars RENAME COLUMN amount TO turnover")
    install.install_dataset(world.stores, world.dataset)
    assert field_ids(world)["turnover"] == before["amount"]


def recreate(swapped: bool) -> list[str]:
    """Make the hot table anew, as a restore from a dump would: other numbers, perhaps another order."""
    late = "source text NOT NULL, amount numeric(18, 2)" if swapped else "amount numeric(18, 2), source text NOT NULL"
    return [
        "DROP TABLE hot.market_bars CASCADE",
        f"""CREATE TABLE hot.market_bars (symbol text NOT NULL, market text NOT NULL, timeframe text NOT NULL,
            ts timestamptz NOT NULL, close numeric(18, 8), open numeric(18, 8), high numeric(18, 8),
            low numeric(18, 8), volume bigint, trades integer, fee numeric(18, 2), {late},
            PRIMARY KEY (symbol, market, timeframe, ts, source)) PARTITION BY RANGE (ts)""",
    ]
