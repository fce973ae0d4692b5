"""The flows on real stores and a real Prefect server: what moves, what they show, and how they end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
from prefect.client.orchestration import get_client
from psycopg2 import sql
from pydantic import SecretStr

from flows.lifecycle import archive, compress, expire, hot_to_warm, warm_to_cold
from flows.sweep import sweep
from tests.flows.world import artifact, ask, environment, refuse_unit, run, states
from tests.ops.world import NOW, World, days_ago
from tiering.model import Tier, Unit
from tiering.ops import install, lifecycle
from tiering.ops.seed import Scale, seed
from tiering.plan.spans import add
from tiering.settings import Settings
from tiering.stores.postgres import execute

BARS = "market_bars"


def test_each_flow_moves_what_is_due_and_shows_it(world: World) -> None:
    ages = {"warm": 30, "cold": 800, "gone": 3660, "hot": 0}
    for days in ages.values():
        world.insert_day(days_ago(days))
    rows = world.rows()

    ended = run(hot_to_warm, dataset=BARS)
    assert (ended.is_completed(), ended.message) == (True, "3 units done")
    shown = artifact("hot-to-warm-market-bars")
    assert {row["state"] for row in shown} == {"COMMITTED"}
    assert [row["rows"] for row in shown] == [60, 60, 60]
    assert all(row["checkpoints"] >= 1 for row in shown)
    assert artifact("hot-to-warm-market-bars-progress") == 100.0
    assert artifact("hot-to-warm-market-bars-stays")[0]["why"].startswith("young: ")
    assert world.rows() == rows

    assert run(compress, data_class="market_data").message == "1 units done"
    assert run(expire, data_class="market_data", dataset=BARS).message == "1 units done"
    assert run(warm_to_cold, dataset=BARS).message == "1 units done"
    (shown,) = artifact("warm-to-cold-market-bars")
    assert shown["bytes before"] > 0 < shown["bytes after"]
    assert [unit.tier for unit in world.stores.ledger.units(BARS)] == [Tier.EXPIRED, Tier.COLD, Tier.WARM]
    assert world.rows() == [row for row in rows if not days_ago(3660) <= row[3] < days_ago(3659)]  # type: ignore[operator]

    assert run(warm_to_cold, dataset=BARS).message == "0 units done"
    after_window = add(NOW, world.stores.policies.undo_window).replace(minute=1)
    would = run(sweep, at=after_window, dry_run=True)
    assert would.message
    assert would.message.endswith("would go")
    done = run(sweep, at=after_window)
    assert done.message == would.message.replace("would go", "destroyed")
    assert len(artifact("sweep")) > 0


def test_classes_of_documents_tables_and_files_live_their_lives_through_the_same_flows(world: World) -> None:
    for name in ("news_data", "user_data", "analysis_results"):
        for dataset in world.stores.policies.of_class(name):
            install.install_dataset(world.stores, dataset)
        seed(world.stores, NOW, Scale(symbols=2, days=1, seed=3), data_class=name)
    for name in ("news_data", "user_data"):
        assert run(hot_to_warm, data_class=name).message == "3 units done"
        assert run(warm_to_cold, data_class=name).message == "1 units done"
        assert run(expire, data_class=name).message == "1 units done"
        assert run(hot_to_warm, data_class=name).message == "0 units done"
    assert {row["state"] for row in artifact("warm-to-cold-user-activity")} == {"COMMITTED"}
    ended = run(archive, dataset="chart_images")
    assert (ended.is_completed(), ended.message) == (True, "3 units done")
    assert run(archive, dataset="chart_images").message == "0 units done"
    assert run(expire, dataset="chart_images").message == "1 units done"


def test_a_run_is_named_by_what_it_moves(world: World) -> None:
    ended = run(warm_to_cold, data_class="market_data", dataset=BARS, dry_run=True)
    assert ended.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(ended.state_details.flow_run_id)
    assert found.name == "warm-to-cold market_data/market_bars 2024-06-20 (dry run)"


def test_a_dry_run_needs_no_right_to_write(
    world: World, fresh_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for days in (30, 800, 0):
        world.insert_day(days_ago(days))
    install.prepare_units(world.stores, world.dataset, NOW)
    reader = "reader_" + world.stores.warm.url.get_secret_value().rpartition("/")[2]
    with world.stores.warm.transaction("create", reader) as connection:
        execute(connection, sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'reads'").format(sql.Identifier(reader)))
        for schema in ("hot", "warm", "tiering", "live"):
            for right in ("USAGE ON SCHEMA {}", "SELECT ON ALL TABLES IN SCHEMA {}"):
                grant = sql.SQL("GRANT " + right + " TO {}").format(sql.Identifier(schema), sql.Identifier(reader))
                execute(connection, grant)
    try:
        host = fresh_settings.hot_pg_url.get_secret_value().rpartition("@")[2]
        url = SecretStr(f"postgresql://{reader}:reads@{host}")
        limited = fresh_settings.model_copy(
            update={"hot_pg_url": url, "warm_pg_url": url, "s3_access_key": SecretStr("none")}
        )
        for name, value in environment(limited).items():
            monkeypatch.setenv(name, value)
        ended = run(hot_to_warm, dataset=BARS, dry_run=True)
        assert ended.is_completed(), ended.message
        assert ended.message == "dry run, nothing was changed"
        assert [row["unit"] for row in artifact("hot-to-warm-market-bars-plan")] == [
            str(Unit(BARS, days_ago(days), days_ago(days - 1))) for days in (800, 30)
        ]
        assert states(world) == []
    finally:
        with world.stores.warm.transaction("drop", reader) as connection:
            execute(connection, sql.SQL("DROP OWNED BY {0}").format(sql.Identifier(reader)))
            execute(connection, sql.SQL("DROP ROLE {0}").format(sql.Identifier(reader)))


def test_a_bad_unit_is_quarantined_visibly_until_it_is_released(world: World) -> None:
    for days in (30, 31, 0):
        world.insert_day(days_ago(days))
    with world.stores.hot.transaction("spoil", "bars") as connection:
        execute(connection, "UPDATE hot.market_bars SET low = high + 1 WHERE ts = %s", (days_ago(30),))
    unit = Unit(BARS, days_ago(30), days_ago(29))

    ended = run(hot_to_warm, dataset=BARS)
    assert (ended.is_completed(), ended.name) == (True, "Quarantined")
    assert ended.message == f"1 units done; 1 in quarantine until `tiering release`: {unit}"
    told = artifact("quarantine-market-bars-2024-05-21-g1")
    assert "3 break it" in told
    assert "symbol=S1" in told
    assert {row["state"] for row in artifact("hot-to-warm-market-bars")} == {"COMMITTED", "QUARANTINED"}

    again = run(hot_to_warm, dataset=BARS)
    assert (again.name, again.message) == (
        "Quarantined",
        f"0 units done; 1 in quarantine until `tiering release`: {unit}",
    )
    lifecycle.release(world.stores, unit, "test", "checked against the exchange")
    assert run(hot_to_warm, dataset=BARS).message == "1 units done"


def test_a_failing_unit_fails_the_run_by_name_and_stops_no_other(world: World) -> None:
    for days in (30, 31, 32, 0):
        world.insert_day(days_ago(days))
    rows = world.rows()
    refuse_unit(world, days_ago(31), "XX001")
    ended = run(hot_to_warm, dataset=BARS)
    assert ended.is_failed()
    assert ended.message
    assert ended.message.startswith("1 failed; 2 units done. market_bars/2024-05-20/g1: commit ")
    assert "refused by the test" in ended.message
    assert [state for _, _, state in states(world)] == ["COMMITTED", "VERIFIED", "COMMITTED"]
    assert artifact("hot-to-warm-market-bars")[0]["problem"].startswith("commit ")
    assert world.rows() == rows


def test_a_transient_error_is_tried_again(world: World) -> None:
    for days in (30, 0):
        world.insert_day(days_ago(days))
    refuse_unit(world, days_ago(30), "57P03", times=1)
    assert run(hot_to_warm, dataset=BARS).message == "1 units done"


def test_a_dataset_that_cannot_be_prepared_stops_no_other(world: World) -> None:
    for days in (30, 0):
        world.insert_day(days_ago(days))
    with world.stores.hot.transaction("drop", "a table") as connection:
        execute(connection, "DROP TABLE hot.index_bars CASCADE")
    ended = run(hot_to_warm, data_class="market_data")
    assert ended.is_failed()
    assert ended.message
    assert ended.message.startswith("1 failed; 1 units done. index_bars: ")


def test_two_runs_at_once_move_every_unit_once(world: World) -> None:
    days = range(20, 26)
    for day in (*days, 0):
        world.insert_day(days_ago(day))
    rows = world.rows()
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(copy_context().run, run, hot_to_warm, dataset=BARS) for _ in range(2)]
        ended = [future.result() for future in runs]
    assert all(state.is_completed() for state in ended), ended
    assert [state for _, _, state in states(world)] == ["COMMITTED"] * len(days)
    counted = ask(world, "SELECT begin_at, count(*) FROM tiering.audit WHERE action = 'hot-to-warm' GROUP BY 1")
    assert [count for _, count in counted] == [1] * len(days)
    assert world.rows() == rows


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"dataset": "market_bar"}, "choose datasets market_bar: no such dataset moves. HINT: These do: market_data"),
        ({"data_class": "weather"}, "choose datasets weather: no such dataset moves"),
        ({"dataset": "positions"}, "choose datasets positions: no such dataset moves"),
        ({"at": "2024-06-20T12:00:00"}, "timezone"),
        ({"at": "soon"}, "datetime"),
        ({"datasets": "market_bars"}, "unexpected"),
    ],
)
def test_wrong_parameters_are_refused(world: World, parameters: dict[str, str], told: str) -> None:
    try:
        message = str(run(hot_to_warm, **parameters).result(raise_on_failure=False))
    except TypeError as exc:  # an unknown name is Python's own affair when a flow is called as a function
        message = str(exc)
    assert told in message


def test_the_flow_of_a_late_row_merges_it(world: World) -> None:
    for days in (30, 0):
        world.insert_day(days_ago(days))
    run(hot_to_warm, dataset=BARS)
    world.insert_day(days_ago(30), symbols=1, minutes=1, source="late")
    assert run(hot_to_warm, dataset=BARS).message == "1 units done"
    assert [(transition, state) for _, transition, state in states(world)] == [
        ("hot-to-warm", "COMMITTED"),
        ("merge", "COMMITTED"),
    ]
    assert [record.unit.generation for record in world.stores.ledger.units(BARS)] == [2]
