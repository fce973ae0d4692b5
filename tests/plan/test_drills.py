"""What an incident needs, which moments, and how a search for the last good one goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tiering.errors import PolicyError
from tiering.model_backup import StoreName
from tiering.model_drill import Component, Incident, Pick, Recovery, Window
from tiering.plan import drills

POLICIES = Path(__file__).resolve().parents[2] / "deployments" / "policies.yaml"
TEXT = POLICIES.read_text(encoding="utf-8")
OBJECTIVES = drills.parse_objectives(TEXT, "policies.yaml")
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def test_the_owners_objectives() -> None:
    told = {one.tier: (set(map(str, one.components)), one.rto, one.rpo) for one in OBJECTIVES.tiers}
    minutes = {n: timedelta(minutes=n) for n in (1, 15, 60, 240)}
    assert told == {
        1: ({"redis", "postgresql_primary", "trading_api"}, minutes[15], minutes[1]),
        2: ({"mongodb", "analytics_api", "user_interface"}, minutes[60], minutes[15]),
        3: ({"reporting", "batch_jobs", "archival_data"}, minutes[240], minutes[60]),
    }
    assert {str(incident): str(kind) for incident, kind in OBJECTIVES.recoveries.items()} == {
        "complete_outage": "full",
        "data_corruption": "full",
        "partial_outage": "partial",
        "performance_degradation": "partial",
    }


BREAKS: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("missing", lambda d: d.pop("disaster_recovery")),
    ("unknown key", lambda d: d["disaster_recovery"].update(tier=1)),
    ("numbered from 1", lambda d: d["disaster_recovery"]["tiers"].pop(1)),
    ("exactly", lambda d: d["disaster_recovery"]["tiers"][1].pop("rpo")),
    ("unknown component", lambda d: d["disaster_recovery"]["tiers"][1]["components"].append("postgres")),
    ("in two tiers", lambda d: d["disaster_recovery"]["tiers"][1]["components"].append("mongodb")),
    ("in no tier", lambda d: d["disaster_recovery"]["tiers"][1]["components"].pop()),
    ("no length of time", lambda d: d["disaster_recovery"]["tiers"][1].update(rto="15m")),
    ("no length of time", lambda d: d["disaster_recovery"].update(detection="0s")),
    ("promises more", lambda d: d["disaster_recovery"]["tiers"][2].update(rto="1min")),
    ("must say full or partial", lambda d: d["disaster_recovery"]["incidents"].pop("data_corruption")),
    ("unknown recovery", lambda d: d["disaster_recovery"]["incidents"].update(data_corruption="later")),
]


@pytest.mark.parametrize(("said", "break_it"), BREAKS)
def test_a_rule_that_is_broken_is_named(said: str, break_it: Callable[[dict[str, Any]], Any]) -> None:
    document = yaml.safe_load(TEXT)
    break_it(document)
    with pytest.raises(PolicyError, match=said):
        drills.parse_objectives(yaml.safe_dump(document), "policies.yaml")


@given(st.sampled_from(OBJECTIVES.tiers), st.sampled_from(list(Incident)), st.integers(0, 10**6))
def test_every_component_in_scope_is_asked_something_that_the_restored_stores_can_answer(
    objective: Any, incident: Incident, seed: int
) -> None:
    scope = drills.scope_of(objective, incident, OBJECTIVES.recoveries[incident], seed)
    probes = drills.probes_of(scope)
    assert {probe.component for probe in probes} == set(scope.components)
    assert all(probe.stores <= set(scope.stores) for probe in probes)
    assert set(scope.failed) <= set(scope.stores)
    if scope.recovery is Recovery.FULL:
        assert scope.components == objective.components
    else:
        assert len(scope.failed) == 1


def test_every_component_has_a_probe() -> None:
    assert {probe.component for probe in drills.PROBES} == set(Component)


def test_seeds_reach_every_store_of_a_partial_outage() -> None:
    objective = OBJECTIVES.of(1)
    failed = {drills.scope_of(objective, Incident.PARTIAL_OUTAGE, Recovery.PARTIAL, seed).failed for seed in range(40)}
    assert failed == {(StoreName.POSTGRESQL,), (StoreName.REDIS,)}


def test_points_are_the_latest_a_random_and_the_oldest_that_all_logs_reach() -> None:
    windows = [
        Window(StoreName.POSTGRESQL, "main", NOON - timedelta(days=3), NOON),
        Window(StoreName.MONGODB, "main", NOON - timedelta(days=2), NOON - timedelta(seconds=4)),
        Window(StoreName.REDIS, "main", NOON, NOON, (NOON - timedelta(hours=9),)),
    ]
    points = drills.choose_points(windows, 7)
    assert [point.pick for point in points] == [Pick.LATEST, Pick.RANDOM, Pick.OLDEST]
    assert points[0].at == NOON - timedelta(seconds=4)
    assert points[2].at == NOON - timedelta(hours=9)
    assert points[2].at <= points[1].at <= points[0].at
    assert points == drills.choose_points(windows, 7)
    assert points[1] != drills.choose_points(windows, 8)[1]


def test_windows_that_do_not_meet_have_no_point() -> None:
    early = Window(StoreName.POSTGRESQL, "main", NOON - timedelta(days=3), NOON - timedelta(days=2))
    late = Window(StoreName.MONGODB, "main", NOON - timedelta(days=1), NOON)
    assert drills.choose_points([early, late], 1) == ()
    assert drills.choose_points([], 1) == ()


@given(st.integers(1, 300), st.data())
def test_the_last_good_point_is_found_in_at_most_log2_n_plus_1_restores(count: int, data: st.DataObject) -> None:
    first_bad = data.draw(st.integers(0, count))
    verdicts: dict[int, bool] = {}
    while (index := drills.next_to_try(count, verdicts)) is not None:
        assert index not in verdicts
        verdicts[index] = index < first_bad
    assert drills.last_good(verdicts) == (first_bad - 1 if first_bad else None)
    assert len(verdicts) <= int(math.log2(count)) + 1


def test_candidates_end_with_the_newest_moment() -> None:
    window = Window(StoreName.POSTGRESQL, "main", NOON - timedelta(hours=1), NOON)
    found = drills.corruption_candidates(window, 16)
    assert (found[0], found[-1], len(found)) == (window.begins, window.ends, 16)
    assert list(found) == sorted(found)
    moments = (NOON, NOON - timedelta(hours=6))
    snapshots = Window(StoreName.REDIS, "main", NOON - timedelta(hours=6), NOON, moments)
    assert drills.corruption_candidates(snapshots, 16) == (moments[1], moments[0])
    assert drills.snapshot_before(moments, NOON - timedelta(minutes=1)) == moments[1]
    assert drills.snapshot_before(moments, NOON - timedelta(days=1)) is None


def test_a_backup_is_stale_when_the_next_one_is_overdue() -> None:
    day, hour = timedelta(days=1), timedelta(hours=1)
    assert drills.stale_by(NOON - day, day, NOON, hour) is None
    assert drills.stale_by(NOON - day - 3 * hour, day, NOON, hour) == 2 * hour
    assert drills.stale_by(None, day, NOON, hour) == day
