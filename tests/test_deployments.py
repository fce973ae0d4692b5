"""prefect.yaml, automations and limits say what they seem to say: Prefect itself ignores what it does not know."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.cli.deploy._models import (
    ConcurrencyLimitSpec,
    DeploymentConfig,
    PrefectYamlModel,
    RawScheduleConfig,
    WorkPoolConfig,
)
from prefect.events.schemas.automations import AutomationCore
from prefect.server.schemas.schedules import CronSchedule
from pydantic import BaseModel

from deployments.limits import limits
from tests.test_cli import environment
from tiering.model import Dataset
from tiering.plan.backups import cron_of, parse_strategy
from tiering.plan.policies import parse_policies
from tiering.settings import Settings

PROJECT = Path(__file__).parents[1]
DOCUMENT: dict[str, Any] = yaml.safe_load((PROJECT / "prefect.yaml").read_text())
DEPLOYMENTS: list[dict[str, Any]] = DOCUMENT["deployments"]
NAMES = [f"{entry['entrypoint'].rsplit('.', 1)[-1]}/{entry['name']}" for entry in DEPLOYMENTS]

each_deployment = pytest.mark.parametrize("entry", DEPLOYMENTS, ids=NAMES)


def unknown_keys(given: dict[str, Any], model: type[BaseModel]) -> set[str]:
    known = set(model.model_fields) | {field.alias for field in model.model_fields.values() if field.alias}
    return given.keys() - known


def flow_of(entry: dict[str, Any]) -> Flow[..., Any]:
    module, _, name = entry["entrypoint"].rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, Flow), f"{entry['entrypoint']} is no flow"
    return found


def test_prefect_knows_every_key_of_the_file() -> None:
    # `definitions` only holds anchors.
    assert unknown_keys(DOCUMENT, PrefectYamlModel) == {"definitions"}
    PrefectYamlModel.model_validate(DOCUMENT)


@each_deployment
def test_prefect_knows_every_key_of_a_deployment(entry: dict[str, Any]) -> None:
    assert not unknown_keys(entry, DeploymentConfig)
    assert not unknown_keys(entry["work_pool"], WorkPoolConfig)
    assert not unknown_keys(entry["concurrency_limit"], ConcurrencyLimitSpec)
    for schedule in entry["schedules"]:
        assert not unknown_keys(schedule, RawScheduleConfig)


@each_deployment
def test_its_parameters_fit_the_flow(entry: dict[str, Any]) -> None:
    flow = flow_of(entry)
    assert entry["parameters"].keys() == flow.parameters.properties.keys()
    flow.validate_parameters(entry["parameters"])


@each_deployment
def test_it_says_what_it_does_and_one_run_waits_for_another(entry: dict[str, Any]) -> None:
    assert entry["description"]
    assert entry["tags"]
    assert entry["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert entry["work_pool"]["name"] == "local"


@each_deployment
def test_its_schedules_are_valid_and_named(entry: dict[str, Any]) -> None:
    for schedule in entry["schedules"]:
        assert schedule["timezone"] == "UTC"
        clock = CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
        coming = asyncio.run(clock.get_dates(n=3, start=datetime(2026, 11, 22, tzinfo=UTC)))
        assert len(set(coming)) == 3
        # With a slug a schedule can be changed and pruned; `active` would undo a pause made in the UI.
        assert schedule["slug"]
        assert "active" not in schedule


def test_names_and_slugs_are_used_once() -> None:
    slugs = [schedule["slug"] for entry in DEPLOYMENTS for schedule in entry["schedules"]]
    assert len(set(slugs)) == len(slugs)
    assert len(set(NAMES)) == len(NAMES)


def stages(datasets: Iterable[Dataset]) -> set[str]:
    """The flows that a class's datasets need: those of the stages that any of their policies has."""
    found = {"expire"}
    for dataset in datasets:
        policy = dataset.policy
        ages = {"hot-to-warm": policy.hot_to_warm, "compress": policy.compression, "warm-to-cold": policy.warm_to_cold}
        found |= {name for name, age in ages.items() if age}
    return found


def test_each_data_class_has_every_flow_of_its_life_and_no_other() -> None:
    policies = parse_policies((PROJECT / "deployments/policies.yaml").read_text(), "policies.yaml")
    served: dict[str, set[str]] = {}
    for entry in DEPLOYMENTS:
        if entry["parameters"].get("data_class"):
            served.setdefault(entry["parameters"]["data_class"], set()).add(flow_of(entry).name)
    assert served == {policy.name: stages(policies.of_class(policy.name)) for policy in policies.classes}
    assert len(served) == 6


def test_every_class_and_all_have_their_flows() -> None:
    for_all = {flow_of(entry).name for entry in DEPLOYMENTS if entry["name"] == "all"}
    assert {"archive", "sweep", "placement"} <= for_all
    hourly = next(e for n, e in zip(NAMES, DEPLOYMENTS, strict=True) if n == "hot_to_warm/social-data")
    assert [schedule["cron"].split()[1:] for schedule in hourly["schedules"]] == [["*"] * 4], "posts are hot for 4 h"


def test_backups_are_taken_when_the_owners_strategy_says() -> None:
    strategy = parse_strategy((PROJECT / "deployments/policies.yaml").read_text(), "policies.yaml")
    promised = {
        (str(one.store), str(schedule.kind)): set(cron_of(schedule))
        for one in strategy.stores
        for schedule in one.schedules
    }
    taken = {
        (entry["parameters"]["store"], entry["parameters"]["kind"]): {one["cron"] for one in entry["schedules"]}
        for entry in DEPLOYMENTS
        if flow_of(entry).name == "backup" and not entry["parameters"]["if_changed"]
    }
    assert taken == promised
    looked = {entry["parameters"]["store"] for entry in DEPLOYMENTS if entry["parameters"].get("if_changed")}
    assert looked == {one.store for one in strategy.stores for schedule in one.schedules if schedule.on_change}
    assert {"backup-retention", "log-gaps"} <= {flow_of(entry).name for entry in DEPLOYMENTS}


def test_the_automation_ends_runs_that_no_longer_beat() -> None:
    (entry,) = yaml.safe_load((PROJECT / "deployments/automations.yaml").read_text())["automations"]
    assert not unknown_keys(entry, AutomationCore)
    automation = AutomationCore.model_validate(entry)
    assert automation.enabled
    trigger, (action,) = automation.trigger, automation.actions
    assert not unknown_keys(entry["trigger"], type(trigger))
    assert not unknown_keys(entry["actions"][0], type(action))
    ends = {"Completed", "Quarantined", "Failed", "Cancelled", "Crashed", "TimedOut"}
    assert trigger.expect == {"prefect.flow-run.heartbeat"} | {f"prefect.flow-run.{end}" for end in ends}


def test_each_dataset_that_moves_has_a_limit() -> None:
    assert limits() == {
        f"tiering-{dataset.name}": 1
        for dataset in parse_policies((PROJECT / "deployments/policies.yaml").read_text(), "policies.yaml").datasets
        if dataset.state == "moves"
    }
    assert {"tiering-market_bars", "tiering-news", "tiering-audit_log", "tiering-chart_images"} <= limits().keys()
    assert "tiering-positions" not in limits()


def test_limits_follow_the_policy_file_of_the_settings(
    fresh_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (PROJECT / "deployments" / "policies.yaml").read_text().replace("index_bars", "other_bars")
    (tmp_path / "own.yaml").write_text(text)
    for name, value in environment(fresh_settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TIERING_POLICIES", str(tmp_path / "own.yaml"))
    assert {"tiering-other_bars", "tiering-market_bars"} <= limits().keys()
