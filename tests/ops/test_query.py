"""One SELECT over all tiers, in one database and in two: each row exactly once, in every state of every unit."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest

from tests.ops.world import NOW, World, days_ago, open_world
from tiering import errors
from tiering.model import Transition
from tiering.ops import install, lifecycle
from tiering.ops.query import query
from tiering.ops.sweep import sweep
from tiering.plan.queries import BadQuery
from tiering.plan.spans import add
from tiering.stores.postgres import execute

COUNTS = "SELECT count(*) AS n, count(DISTINCT (symbol, ts, source)) AS keys, sum(volume) AS volume FROM market_bars"


@pytest.fixture(params=["one database", "two databases"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    name = "fresh_settings" if request.param == "one database" else "fresh_two_database_settings"
    with open_world(request.getfixturevalue(name)) as opened:
        yield opened


def ask(world: World, statement: str) -> list[dict[str, object]]:
    return list(query(world.stores, statement).to_pylist())


def fill(world: World) -> None:
    for days in (0, 30, 900, 3660):
        world.insert_day(days_ago(days))
    install.prepare_units(world.stores, world.dataset, NOW)


def test_the_answer_is_the_same_in_every_tier_and_state(world: World) -> None:
    fill(world)
    expected = ask(world, COUNTS)
    assert expected[0]["n"] == expected[0]["keys"] == 240
    everything = ask(world, "SELECT * FROM market_bars ORDER BY ALL")

    plan = lifecycle.plan_dataset(world.stores, world.dataset, NOW)
    for move_id in lifecycle.begin_moves(world.stores, plan):
        for step in (lifecycle.seal, lifecycle.check, lifecycle.copy, lifecycle.verify, lifecycle.commit):
            step(world.stores, move_id, NOW, "test")
            assert ask(world, COUNTS) == expected, step.__name__
    assert ask(world, "SELECT * FROM market_bars ORDER BY ALL") == everything
    for transition in (Transition.COMPRESS, Transition.WARM_TO_COLD):
        assert world.run(transition)
        assert ask(world, "SELECT * FROM market_bars ORDER BY ALL") == everything, transition
    world.run(Transition.EXPIRE)
    assert ask(world, COUNTS)[0]["n"] == 180
    later = add(NOW, world.stores.policies.undo_window).replace(minute=1)
    assert sweep(world.stores, later, "test")
    assert ask(world, COUNTS)[0]["n"] == 180


@pytest.mark.parametrize("days", [30, 900])
def test_a_late_row_wins_over_the_older_row_of_its_key_before_and_after_its_merge(world: World, days: int) -> None:
    fill(world)
    world.run()
    world.run()
    with world.stores.hot.transaction("correct", "a bar") as connection:
        execute(
            connection,
            "INSERT INTO hot.market_bars VALUES ('S1','US','1m',%s,1,2,1,1.5,7777,7,'test')",
            (days_ago(days),),
        )
    corrected = f"SELECT volume, close FROM market_bars WHERE symbol = 'S1' AND ts = '{days_ago(days).isoformat()}'"
    plan = lifecycle.plan_dataset(world.stores, world.dataset, NOW, [Transition.MERGE])
    assert ask(world, corrected) == [{"volume": 7777, "close": Decimal("1.50000000")}]
    (move_id,) = lifecycle.begin_moves(world.stores, plan)
    for step in (lifecycle.seal, lifecycle.check, lifecycle.copy, lifecycle.verify, lifecycle.commit):
        step(world.stores, move_id, NOW, "test")
        assert ask(world, corrected) == [{"volume": 7777, "close": Decimal("1.50000000")}], step.__name__
        found = ask(world, COUNTS)[0]
        assert found["n"] == found["keys"], step.__name__


CONDITIONS = {
    "ts >= '2024-05-21' AND ts < '2024-05-22'": 60,
    "ts BETWEEN '2024-05-21' AND '2024-05-21 00:04'": 15,
    "symbol = 'S2'": 80,
    "symbol IN ('S1', 'S3') AND ts > TIMESTAMPTZ '2024-01-01'": 80,
    "ts >= now() - INTERVAL 3 DAY": 0,
    "ts < '2000-01-01'": 0,
    "'2024-06-20' <= ts": 60,
    "symbol = 'S2' OR ts > '2024-06-01'": 120,
    "upper(symbol) = 'S2' AND volume > 1800": 4,
    "symbol = 'nobody''s'": 0,
}


def test_conditions_narrow_what_is_fetched_and_not_what_is_found(world: World) -> None:
    fill(world)
    world.run()
    world.run(Transition.WARM_TO_COLD)
    for condition, rows in CONDITIONS.items():
        found = ask(world, f"SELECT count(*) AS n FROM market_bars WHERE {condition}")
        assert found == [{"n": rows}], condition
        # The same where nothing can be pushed down.
        everything = f"SELECT count(*) AS n FROM (SELECT * FROM market_bars LIMIT 100000) WHERE {condition}"
        assert ask(world, everything) == [{"n": rows}], condition


def test_joins_subqueries_and_windows_see_the_same_rows(world: World) -> None:
    fill(world)
    world.run()
    pairs = ask(
        world,
        """SELECT count(*) AS n FROM market_bars a JOIN market_bars b USING (ts, market)
           WHERE a.symbol = 'S1' AND b.symbol = 'S2'""",
    )
    assert pairs == [{"n": 80}]
    newest = ask(world, "SELECT max(ts) AS t FROM market_bars WHERE ts < (SELECT max(ts) FROM market_bars)")
    assert newest[0]["t"] == days_ago(0).replace(minute=18)
    first = "SELECT symbol FROM market_bars QUALIFY row_number() OVER (PARTITION BY symbol ORDER BY ts) = 1 ORDER BY 1"
    assert [row["symbol"] for row in ask(world, first)] == ["S1", "S2", "S3"]


def test_values_that_no_decimal_holds_are_null_and_named_in_exact(world: World) -> None:
    fill(world)
    with world.stores.hot.transaction("spoil", "a bar") as connection:
        execute(connection, "UPDATE hot.market_bars SET open = 'NaN' WHERE symbol = 'S1' AND ts = %s", (days_ago(900),))
    at = f"WHERE symbol = 'S1' AND ts = '{days_ago(900).isoformat()}'"
    assert ask(world, f"SELECT open, _exact FROM market_bars {at}") == [{"open": None, "_exact": '{"open":"NaN"}'}]


WRONG = {
    "SELEC 1": "syntax error",
    "DROP TABLE market_bars": "only SELECT",
    "SELECT 1; SELECT 2": "2 statements",
    "": "0 statements",
    "SELECT * FROM market_barz": "does not exist",
    "SELECT closing FROM market_bars": "closing",
    "SELECT symbol::INTEGER FROM market_bars": "Could not convert",
}


def test_wrong_sql_is_refused_with_its_cause(world: World) -> None:
    world.insert_day(days_ago(0))
    for statement, cause in WRONG.items():
        with pytest.raises(BadQuery, match=cause):
            query(world.stores, statement)


def test_a_dataset_that_is_not_installed_says_so(world: World) -> None:
    with world.stores.hot.transaction("drop", "table") as connection:
        execute(connection, "DROP TABLE hot.financial_statements")
    with pytest.raises(errors.NotFound, match="financial_statements"):
        query(world.stores, "SELECT * FROM financial_statements")


def test_a_hundred_days_of_bars_fit_a_small_memory(world: World) -> None:
    for days in range(8, 20):
        world.insert_day(days_ago(days), symbols=40, minutes=390)
    answer = query(world.stores, "SELECT symbol, ts, close FROM market_bars ORDER BY close, ts", memory_limit="100MB")
    assert answer.num_rows == 12 * 40 * 390
