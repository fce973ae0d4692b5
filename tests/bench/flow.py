"""What Prefect adds: from a deployment's submission to the flow's first line, and per unit beside the data's time."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

from deployments import bringup
from infra.local import Stack
from infra.local.errors import StackError
from tests.bench import bars
from tests.bench.ground import OLD, Ground, fill, lay_out
from tests.bench.rows import Group, Row, at_most
from tests.bench.world import DATASET, DAY, NOW, opened
from tiering.model import State, Unit
from tiering.plan.spans import unit_of

DEPLOYMENT = "hot-to-warm/market-data"
UNITS = 12
SECONDS_MAX = 6.0
WAIT_SECONDS_MAX = 180.0
POLL_SECONDS = 0.25
FIRST_LINE = "begun"
"""The flow's first log line tells how long after its schedule it has begun."""


@dataclass(frozen=True)
class Api:
    """The Prefect server, asked by its REST API."""

    url: str

    def get(self, path: str) -> Any:
        """Read one thing."""
        return self._ask(urllib.request.Request(self.url + path))

    def post(self, path: str, **body: object) -> Any:
        """Create or search."""
        return self._ask(
            urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        )

    def _ask(self, request: urllib.request.Request) -> Any:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


def run(ground: Ground) -> Iterator[Row]:
    """Bring everything up as `make up` does, in a project of its own, and run the real deployment."""
    project = ground.directory / "project"
    (project / "deployments").mkdir(parents=True)
    shutil.copy(bringup.PROJECT / "prefect.yaml", project)
    for file in (bringup.PROJECT / "deployments").glob("*.yaml"):
        shutil.copy(file, project / "deployments")
    ground.say("Prefect: server, deployments, worker")
    try:
        try:
            # A port of its own: the well-known one may be another stack's at any moment.
            Stack(project / ".stack").state.port(bringup.SERVER)
            timings = bringup.up(project / ".stack", project)
        except StackError as exc:
            ground.say(f"no rows of flow_overhead: {' '.join(str(exc).split())[:300]}")
            return
        ground.say(f"up: {timings}")
        yield from _measure(ground, Stack(project / ".stack"))
    finally:
        bringup.down(project / ".stack")


def _measure(ground: Ground, stack: Stack) -> Iterator[Row]:
    api = Api(bringup.client_environment(stack)["PREFECT_API_URL"])
    with opened(stack.settings(), DAY) as (stores, dataset):
        lay_out(stores, dataset)
        walk = bars.Walk(ground.seed)
        for number in range(UNITS):
            unit = Unit(DATASET, *unit_of(OLD + timedelta(days=number), DAY))
            fill(stores, dataset, unit, [walk.chunk(unit.begin, 20)])
        ground.say("from submission to the flow's first line, by dry runs")
        waits = [_submit(api, dry_run=True)[1] for _ in range(ground.repeats + 1)][1:]
        note = f"submit by the API → worker → the flow's first log line; median of {len(waits)} dry runs, after one"
        yield at_most("flow_overhead_seconds", "s", median(waits), SECONDS_MAX, note, None, "")

        ground.say(f"{UNITS} units through the deployment")
        run_id, _ = _submit(api, dry_run=False)
        data = {
            record.unit.name: sum(record.stage_seconds.values())
            for record in stores.ledger.moves(DATASET, [State.COMMITTED])
        }
    assert len(data) == UNITS, f"{len(data)} units were moved, not {UNITS}"
    whole = _wait("the task runs to be recorded", lambda: _task_seconds(api, run_id))
    note = "a unit's six task runs less the time in the stores, two units at once; beside it the time in the stores"
    extra = median(whole[name] - data[name] for name in data)
    yield at_most("flow_overhead_per_unit_seconds", "s", extra, None, note, median(data.values()), "our own data time")


def _submit(api: Api, dry_run: bool) -> tuple[str, float]:
    """Run the deployment to its end; return the run's id and the seconds to its first line."""
    deployment = api.get(f"/deployments/name/{DEPLOYMENT}")["id"]
    parameters = {"data_class": None, "dataset": DATASET, "at": NOW.isoformat(), "dry_run": dry_run}
    began = datetime.now(UTC)
    run_id = api.post(f"/deployments/{deployment}/create_flow_run", parameters=parameters)["id"]
    ended = _wait("the flow run to end", lambda: _terminal(api, run_id))
    assert ended["type"] == "COMPLETED", ended["message"]
    first = _wait("the flow's first line", lambda: _first_line(api, run_id))
    return run_id, (first - began).total_seconds()


def _terminal(api: Api, run_id: str) -> Any:
    state = api.get(f"/flow_runs/{run_id}")["state"]
    return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def _first_line(api: Api, run_id: str) -> datetime | None:
    logs = api.post("/logs/filter", logs={"flow_run_id": {"any_": [run_id]}}, sort="TIMESTAMP_ASC")
    found = [log["timestamp"] for log in logs if FIRST_LINE in log["message"]]
    return datetime.fromisoformat(found[0].replace("Z", "+00:00")) if found else None


def _task_seconds(api: Api, run_id: str) -> dict[str, float] | None:
    """Seconds of each unit's `move` task run, once all of them are recorded as ended (events, so a little later)."""
    runs = api.post("/task_runs/filter", flow_runs={"id": {"any_": [run_id]}}, task_runs={"name": {"like_": "move "}})
    ended = {r["name"].removeprefix("move "): r["total_run_time"] for r in runs if r["state_type"] == "COMPLETED"}
    return ended if len(ended) == UNITS else None


def _wait(what: str, test: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not (found := test()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(POLL_SECONDS)
    return found


GROUPS = (Group(("flow_overhead_seconds", "flow_overhead_per_unit_seconds"), run),)
