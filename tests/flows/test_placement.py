"""The placement flow on a real Prefect server, PostgreSQL and Redis Cluster: it pins, and shows every term."""

from __future__ import annotations

from datetime import timedelta

import pytest
from psycopg2 import sql
from pydantic import SecretStr
from redis import RedisCluster

from flows.lifecycle import hot_to_warm
from flows.placement import placement
from tests.flows.world import artifact, ask, run
from tests.ops.world import NOW, World, days_ago
from tiering.stores.heat import HeatCounters, Touch
from tiering.stores.postgres import execute

BARS = "market_bars"
READ = days_ago(8)


@pytest.fixture
def heated(world: World, redis_url: SecretStr, monkeypatch: pytest.MonkeyPatch) -> World:
    """A unit that is due and read 500 times an hour ago, in a world whose tasks find Redis."""
    monkeypatch.setenv("TIERING_REDIS_URL", redis_url.get_secret_value())
    with RedisCluster.from_url(redis_url.get_secret_value()) as cluster:
        cluster.flushall(target_nodes=RedisCluster.PRIMARIES)
    heat = HeatCounters(redis_url, timeout_seconds=10)
    heat.record(Touch(BARS, NOW - timedelta(days=10), [READ]))
    heat.record(Touch(BARS, NOW - timedelta(hours=1), [READ], ["AAPL"], weight=500))
    heat.close()
    for day in (READ, days_ago(0)):
        world.insert_day(day)
    return world


def test_a_run_pins_what_is_read_and_the_next_lifecycle_run_leaves_it(heated: World) -> None:
    assert run(placement, dataset=BARS, dry_run=True).message == "dry run, nothing was changed"
    assert ask(heated, "SELECT * FROM tiering.pin") == []
    assert run(placement, dataset=BARS).message == "1 dates changed"
    shown = artifact("placement-market-bars")
    assert shown[0]["subject"] == "market_bars 2024-06-12T00:00Z"
    assert shown[0]["heat"] == "336.7/day (> 100/day): +60"
    assert (shown[0]["age"], shown[0]["importance"]) == ("7.0 d (7d to 2y): +0", "important (as declared): +0")
    assert (shown[0]["total"], shown[0]["belongs"], shown[0]["does"]) == (60, "hot", "pin")
    assert run(placement, dataset=BARS).message == "0 dates changed"
    ended = run(hot_to_warm, dataset=BARS)
    assert ended.message == "0 units done"
    whys = [row["why"] for row in artifact("hot-to-warm-market-bars-stays")]
    assert any("pinned: hot-to-warm at 2024-06-22 02:00Z" in why for why in whys)


def test_without_redis_a_run_completes_and_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERING_REDIS_URL", "redis://127.0.0.1:1/0")
    for day in (READ, days_ago(0)):
        world.insert_day(day)
    ended = run(placement, dataset=BARS)
    assert (ended.is_completed(), ended.message) == (True, "0 dates changed")
    assert {row["does"] for row in artifact("placement-market-bars")} == {"unknown", "none"}
    assert run(hot_to_warm, dataset=BARS).message == "1 units done"


def test_a_dataset_that_fails_is_named_and_the_others_are_placed(heated: World) -> None:
    with heated.stores.warm.transaction("arrange", "a fault") as connection:
        execute(connection, sql.SQL("ALTER TABLE tiering.pin ADD CHECK (dataset <> {})").format(sql.Literal(BARS)))
    ended = run(placement, data_class="market_data")
    assert ended.is_failed()
    assert ended.message
    assert ended.message.startswith("1 failed; 0 dates changed. market_bars: ")
