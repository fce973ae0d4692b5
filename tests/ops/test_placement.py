"""Placement on real PostgreSQL and a real Redis Cluster: what is read stays, what is not goes, and all is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis import RedisCluster

from infra.local import Stack
from tests.ops.world import NOW, World, days_ago, open_world
from tests.test_cli import environment
from tiering.cli import main
from tiering.model import Plan, Tier, Transition
from tiering.ops import install, lifecycle, placement
from tiering.settings import Settings
from tiering.stores import pins
from tiering.stores.heat import HeatCounters, Touch
from tiering.stores.postgres import fetch

BARS = "market_bars"
READ, UNREAD = days_ago(8), days_ago(7)
"""Units past the policy's 7 days by minutes, and not yet past them by a day."""


@pytest.fixture
def cluster_settings(fresh_settings: Settings, redis_url: SecretStr) -> Settings:
    """Empty databases, and a cluster that has counted nothing."""
    with RedisCluster.from_url(redis_url.get_secret_value()) as cluster:
        cluster.flushall(target_nodes=RedisCluster.PRIMARIES)
    return fresh_settings.model_copy(update={"redis_url": redis_url})


@pytest.fixture
def world(cluster_settings: Settings) -> Iterator[World]:
    """Three hot days: one read 500 times yesterday, one never, and today."""
    with open_world(cluster_settings) as world:
        for day in (READ, UNREAD, days_ago(0)):
            world.insert_day(day)
        install.prepare_units(world.stores, world.dataset, NOW)
        heat = patient(cluster_settings)
        heat.record(Touch(BARS, NOW - timedelta(days=10), [READ]))
        heat.record(Touch(BARS, NOW - timedelta(hours=1), [READ], ["AAPL"], weight=500))
        heat.record(Touch(BARS, NOW - timedelta(hours=1), symbols=["MSFT"], weight=3))
        heat.close()
        yield world


def patient(settings: Settings) -> HeatCounters:
    return HeatCounters(settings.redis_url, timeout_seconds=10)


def place(world: World, at: datetime = NOW) -> placement.Applied:
    outcome = placement.place(world.stores, patient_of(world), world.dataset, at)
    return placement.apply(world.stores, outcome, "test")


def patient_of(world: World) -> HeatCounters:
    return HeatCounters(world.stores.heat.url, timeout_seconds=10)


def planned(world: World, at: datetime = NOW) -> Plan:
    return lifecycle.plan_dataset(world.stores, world.dataset, at, [Transition.HOT_TO_WARM])


def days(plan: Plan) -> list[datetime]:
    return [move.unit.begin for move in plan.moves]


def audit(world: World) -> list[tuple[Any, ...]]:
    with world.stores.warm.transaction("read", "audit") as connection:
        return fetch(
            connection,
            """SELECT action, begin_at, actor, details FROM tiering.audit
               WHERE action IN ('pin', 'change', 'lift') ORDER BY audit_id""",
        )


def test_a_read_unit_is_pinned_and_not_moved_and_an_unread_one_goes_before_its_date(world: World) -> None:
    assert days(planned(world)) == [READ]
    applied = place(world)
    assert [(d.score.begin, d.verb, d.score.tier) for d in applied.written] == [
        (READ, "pin", Tier.HOT),
        (UNREAD, "pin", Tier.COLD),
    ]
    plan = planned(world)
    assert days(plan) == [UNREAD]
    reasons = next(stay.reasons for stay in plan.stays if stay.unit.begin == READ)
    (reason,) = [reason for reason in reasons if reason.code == "pinned"]
    # 7 d and 30 % of it, after the end of the unit.
    assert reason.text.startswith("hot-to-warm at 2024-06-22 02:00Z, later than the policy's 2024-06-20 00:00Z: ")
    assert "heat 336.7/day (> 100/day): +60" in reason.text

    receipts = world.run(Transition.HOT_TO_WARM)
    assert [receipt.unit.begin for receipt in receipts] == [UNREAD]
    assert [unit.unit.begin for unit in world.stores.ledger.units(BARS)] == [UNREAD]


def test_a_pin_ends_at_the_latest_date_of_the_policy(world: World) -> None:
    place(world)
    world.insert_day(READ + timedelta(days=10))
    world.insert_day(READ + timedelta(days=12))
    at = READ + timedelta(days=12, hours=13)
    heat = patient_of(world)
    heat.record(Touch(BARS, at, [READ], weight=100_000))
    heat.close()
    place(world, at)
    assert READ in days(planned(world, at))


def test_applied_twice_the_second_time_writes_nothing(world: World) -> None:
    assert place(world).shifts_changed == 2
    told = audit(world)
    again = place(world, NOW + timedelta(hours=1))
    assert (again.written, again.left) == ((), ())
    assert audit(world) == told
    assert [(action, begin, actor) for action, begin, actor, _ in told] == [
        ("pin", READ, "test"),
        ("pin", UNREAD, "test"),
    ]
    details = told[0][3]
    assert details["shift"] == "2d 2h later"
    assert details["score"].startswith(
        "heat 336.7/day (> 100/day): +60; age 7.0 d (7d to 2y): +0; importance important"
    )


def test_what_is_no_longer_read_is_let_go_after_its_residency(world: World) -> None:
    place(world)
    (pinned, *_) = pins.list_pins(world.stores.warm, BARS)
    assert (pinned.begin, pinned.transition, pinned.shift_seconds) == (READ, Transition.HOT_TO_WARM, 181_440)
    assert [(term.name, term.contribution) for term in pinned.terms] == [("heat", 60), ("age", 0), ("importance", 0)]
    # After two days 84 a day are left, above the threshold that a hot unit is left at; after three 42.
    for day, does, seen in ((1, "renew", "> 50/day"), (2, "renew", "> 50/day"), (3, "lift", "10 to 50/day")):
        at = NOW + timedelta(days=day)
        decision = next(d for d in place(world, at).outcome.decisions if d.score.begin == READ)
        assert (day, decision.verb) == (day, does)
        assert decision.score.terms[0].threshold == seen
        assert (READ in days(planned(world, at))) == (does == "lift")
    assert [(action, begin) for action, begin, _, _ in audit(world)][-1] == ("lift", READ)
    assert audit(world)[-1][3]["shift_seconds_before"] == 181_440


def test_two_runs_at_once_begin_one_residency(world: World) -> None:
    outcomes = [placement.place(world.stores, patient_of(world), world.dataset, NOW) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        applied = list(pool.map(lambda outcome: placement.apply(world.stores, outcome, "test"), outcomes))
    assert sum(one.shifts_changed for one in applied) == 2
    assert sum(len(one.left) for one in applied) == 6
    assert len(audit(world)) == 2


def test_placing_writes_nothing_and_tells_the_hot_symbols(world: World) -> None:
    outcome = placement.place(world.stores, patient_of(world), world.dataset, NOW)
    assert len(outcome.changes) == 2
    assert [score.symbol for score in outcome.hot_symbols] == ["AAPL"]
    assert pins.list_pins(world.stores.warm, BARS) == []
    assert audit(world) == []


def test_without_redis_nothing_is_changed_and_moves_go_on(fresh_settings: Settings) -> None:
    with open_world(fresh_settings.model_copy(update={"redis_url": None})) as world:
        for day in (READ, UNREAD, days_ago(0)):
            world.insert_day(day)
        applied = placement.apply(
            world.stores, placement.place(world.stores, world.stores.heat, world.dataset, NOW), "test"
        )
        assert applied.outcome.heat == "no heat known: nothing is changed"
        assert not applied.written
        assert {d.verb for d in applied.outcome.decisions} == {"unknown", "none"}
        assert [receipt.unit.begin for receipt in world.run(Transition.HOT_TO_WARM)] == [READ]


def test_a_killed_redis_leaves_pins_standing_until_they_lapse(world: World, stack_directory: Path) -> None:
    place(world)
    with Stack(stack_directory / "redis-lost", services={"redis"}) as own:
        heat = HeatCounters(SecretStr(own.redis.url), timeout_seconds=5)
        heat.record(Touch(BARS, NOW, [READ]))
        own.kill("redis")
        outcome = placement.place(world.stores, heat, world.dataset, NOW + timedelta(hours=12))
        heat.close()
    assert outcome.heat == "no heat known: nothing is changed"
    assert not outcome.changes
    assert READ not in days(planned(world, NOW + timedelta(hours=12)))
    lines = placement.lines_of(outcome)
    assert "heat unknown (no counters): +0" in lines[READ]
    # The pin stands for its residency and a day, then the policy holds again.
    assert READ not in days(planned(world, NOW + timedelta(hours=47)))
    assert READ in days(planned(world, NOW + timedelta(hours=48)))


def test_explanations_name_every_term(world: World) -> None:
    place(world)
    told = placement.explain_terms(world.stores, patient_of(world), world.dataset, NOW + timedelta(hours=2))
    assert told[None][0].startswith(
        "heat: 319.7 accesses a day, counted since 2024-06-10 12:00Z, 1 units and 2 symbols"
    )
    assert told[READ] == (
        "heat 317.8/day (> 50/day): +60",
        "age 7.0 d (7d to 2y): +0",
        "importance important (as declared): +0",
        "total +60: hot",
        "hot-to-warm: 2d 2h later, pinned until 2024-06-22 12:00Z",
    )
    assert told[UNREAD][0] == "heat 0.0/day (< 20/day): -60"


def test_the_command_shows_every_term_and_applies_only_when_told(
    world: World, cluster_settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cluster_settings.redis_url
    for name, value in environment(cluster_settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TIERING_REDIS_URL", cluster_settings.redis_url.get_secret_value())

    def run(*arguments: str) -> Any:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["placement", "--dataset", BARS, "--at", NOW.isoformat(), *arguments])
        assert not ended.value.code
        return capsys.readouterr().out

    looked = json.loads(run("--json"))
    assert (looked["applied"], looked["pins_written"]) == (False, 0)
    (bars,) = looked["datasets"]
    assert bars["hot_symbols"] == ["AAPL"]
    read = next(d for d in bars["decisions"] if d["begin"] == "2024-06-12T00:00:00Z")
    assert [(term["name"], term["contribution"]) for term in read["terms"]] == [
        ("heat", 60), ("age", 0), ("importance", 0)
    ]  # fmt: skip
    assert (read["total"], read["tier"], read["verb"], read["shift_seconds"]) == (60, "hot", "pin", 181_440)
    assert json.loads(run("--apply", "--json"))["pins_written"] == 2
    assert "> 50/day" in run()
    assert len(pins.list_pins(world.stores.warm, BARS)) == 2


def test_explain_prints_every_term_of_a_unit_pinned_or_not(
    world: World, cluster_settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cluster_settings.redis_url
    for name, value in environment(cluster_settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TIERING_REDIS_URL", cluster_settings.redis_url.get_secret_value())
    for arguments in ((), ("--json",)):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["explain", BARS, f"{BARS}/2024-06-12", "--at", NOW.isoformat(), *arguments])
        assert not ended.value.code
        said = " ".join(capsys.readouterr().out.split())
        for term in ("heat 336.7/day (> 100/day): +60", "age 7.0 d (7d to 2y): +0", "total +60: hot"):
            assert term in said
