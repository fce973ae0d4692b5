"""The deployments as operators meet them: applied to a server, run by a worker, watched from the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from uuid import uuid4

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events import emit_event
from prefect.events.schemas.automations import AutomationCore
from prefect.states import Completed, Running

from infra.local import Stack
from infra.local.processes import Command, inherited_environment, spawn, stop
from tests.flows.world import PROJECT, environment, refuse_unit, states
from tests.ops.world import NOW, World, days_ago
from tests.test_deployments import DEPLOYMENTS as ENTRIES
from tests.test_deployments import flow_of
from tiering.settings import Settings

DEPLOYMENTS = sorted(f"{flow_of(entry).name}/{entry['name']}" for entry in ENTRIES)
SCHEDULES = sum(len(entry["schedules"]) for entry in ENTRIES)
WAIT_SECONDS_MAX = 120.0

T = TypeVar("T")


def wait_for(what: str, look: Callable[[], T]) -> T:
    """Look until something is there."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.25)
    return found


@pytest.fixture
def client(prefect: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def applied(prefect_environment: dict[str, str]) -> dict[str, str]:
    """Apply prefect.yaml, limits and automations, as `make up` does; yields a client's variables."""
    variables = inherited_environment() | prefect_environment | {"PREFECT_WORKER_QUERY_SECONDS": "1"}
    apply(variables)
    return variables


def apply(variables: dict[str, str]) -> None:
    command = [sys.executable, "-m", "deployments.apply", str(PROJECT)]
    done = subprocess.run(command, env=variables, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def watch(
    applied: dict[str, str], fresh_settings: Settings, stack: Stack
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Start a worker whose flows find the test's databases; yields `prefect deployment run … --watch`."""
    variables = applied | environment(fresh_settings)
    log = stack.directory / "logs" / "prefect-worker.log"
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "local", "--type", "process"]
    process = spawn(Command("prefect-worker", command, log, variables, PROJECT))

    def run(deployment: str, **parameters: Any) -> subprocess.CompletedProcess[str]:
        given = [word for item in parameters.items() for word in ("--param", "{}={}".format(*item))]
        words = ["deployment", "run", deployment, *given, "--watch", "--watch-interval", "1"]
        command = [sys.executable, "-m", "prefect", *words]
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)

    yield run
    stop(process, signal.SIGTERM, 15.0)


def test_each_deployment_gets_scheduled_runs(applied: dict[str, str], client: SyncPrefectClient) -> None:
    flows = {flow["id"]: flow["name"] for flow in client.request("POST", "/flows/filter", json={}).json()}
    found = client.request("POST", "/deployments/filter", json={}).json()
    names = {deployment["id"]: f"{flows[deployment['flow_id']]}/{deployment['name']}" for deployment in found}
    assert sorted(names.values()) == DEPLOYMENTS
    missing = {deployment["id"] for deployment in found if deployment["schedules"]}

    def scheduled() -> bool:
        # Asked for each: runs of all, also of other tests, are more than the server returns at once.
        missing.difference_update([one for one in missing if count_runs(client, one, StateType.SCHEDULED)])
        return not missing

    wait_for("scheduled runs of every deployment", scheduled)
    untimed = [deployment["id"] for deployment in found if not deployment["schedules"]]
    assert not any(count_runs(client, one, StateType.SCHEDULED) for one in untimed)


def count_runs(client: SyncPrefectClient, deployment: str, state: StateType) -> int:
    body = {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"state": {"type": {"any_": [state.value]}}}}
    return int(client.request("POST", "/flow_runs/count", json=body).json())


def test_applying_again_keeps_a_schedule_that_was_paused(applied: dict[str, str], client: SyncPrefectClient) -> None:
    def schedules() -> list[dict[str, Any]]:
        found = client.request("POST", "/deployments/filter", json={}).json()
        return sorted((one for d in found for one in d["schedules"]), key=lambda one: str(one["slug"]))

    before = schedules()
    assert len(before) == SCHEDULES
    paused = before[0]
    path = f"/deployments/{paused['deployment_id']}/schedules/{paused['id']}"
    client.request("PATCH", path, json={"active": False})
    apply(applied)
    after = schedules()
    assert [(one["id"], one["slug"]) for one in after] == [(one["id"], one["slug"]) for one in before]
    assert [one["active"] for one in after] == [False] + [True] * (SCHEDULES - 1)
    client.request("PATCH", path, json={"active": True})


def test_a_run_by_hand_tells_by_its_exit_code(
    world: World, watch: Callable[..., subprocess.CompletedProcess[str]], client: SyncPrefectClient
) -> None:
    for days in (30, 800, 0):
        world.insert_day(days_ago(days))
    done = watch("hot-to-warm/market-data", at=NOW.isoformat())
    assert done.returncode == 0, done.stdout + done.stderr
    assert [state for _, _, state in states(world)] == ["COMMITTED", "COMMITTED"]
    (run,) = runs_named(client, "hot-to-warm market_data 2024-06-20")
    assert run.start_time
    assert run.expected_start_time
    seconds = (run.start_time - run.expected_start_time).total_seconds()
    print(f"submit to flow body: {seconds:.1f} s")

    refuse_unit(world, days_ago(800), "XX001")
    failed = watch("warm-to-cold/market-data", at=NOW.isoformat())
    assert failed.returncode == 1, failed.stdout + failed.stderr
    (run,) = runs_named(client, "warm-to-cold market_data 2024-06-20")
    assert run.state
    assert run.state.message
    assert "refused by the test" in run.state.message


def runs_named(client: SyncPrefectClient, name: str) -> list[FlowRun]:
    found = client.request("POST", "/flow_runs/filter", json={"flow_runs": {"name": {"any_": [name]}}}).json()
    runs = [FlowRun.model_validate(one) for one in found]
    return [run for run in runs if run.deployment_id]  # other tests call the flows without a deployment


def test_a_run_without_heartbeat_is_crashed_and_a_finished_one_is_not(client: SyncPrefectClient) -> None:
    (entry,) = yaml.safe_load((PROJECT / "deployments" / "automations.yaml").read_text())["automations"]
    entry["name"] += f"-{uuid4()}"
    entry["trigger"]["within"] = 10
    automation = AutomationCore.model_validate(entry)
    created = client.request("POST", "/automations/", json=json.loads(automation.model_dump_json())).json()
    flow_id = client.create_flow_from_name("dies")
    dead, done = (begin_run(client, flow_id) for _ in range(2))
    try:
        # The server must know the automation before the events come: it is told of it by an event as well.
        for run in (dead, done):
            emit_event("prefect.flow-run.heartbeat", {"prefect.resource.id": f"prefect.flow-run.{run}"})
        client.set_flow_run_state(done, Completed(name="Quarantined"), force=True)
        emit_event("prefect.flow-run.Quarantined", {"prefect.resource.id": f"prefect.flow-run.{done}"})
        wait_for("the crash", lambda: state_type(client, dead) is StateType.CRASHED)
        assert state_type(client, done) is StateType.COMPLETED
    finally:
        client.request("DELETE", f"/automations/{created['id']}")


def begin_run(client: SyncPrefectClient, flow_id: Any) -> Any:
    body = {"flow_id": str(flow_id), "state": {"type": "RUNNING", "name": "Running"}}
    run = client.request("POST", "/flow_runs/", json=body).json()["id"]
    client.set_flow_run_state(run, Running(), force=True)
    return run


def state_type(client: SyncPrefectClient, run: Any) -> StateType | None:
    state = client.read_flow_run(run).state
    return state.type if state else None
