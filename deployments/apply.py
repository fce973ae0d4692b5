"""Make the Prefect server agree with this project: `python -m deployments.apply PROJECT [--reconcile]`. Idempotent.

Runs with the stack's Prefect settings in its environment. `prefect deploy --all` by hand does the deployment part.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from prefect.cli import app as prefect_command
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed
from prefect.workers.process import ProcessWorker

POOL = "local"
UNFINISHED = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


async def apply_pool(client: PrefectClient, project: Path) -> None:
    """Create the process pool, or bring it up to date.

    Why a command: our engine ends with its worker; and Prefect then skips a Python process that only looks for the
    working directory, which saves two seconds of every flow run's start.
    """
    template = ProcessWorker.get_default_base_job_template()
    properties = template["variables"]["properties"]
    properties["command"]["default"] = f"{sys.executable} -m deployments.engine"
    properties["working_dir"]["default"] = str(project)
    try:
        await client.read_work_pool(POOL)
        await client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template))
    except ObjectNotFound:
        await client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))


async def reconcile(client: PrefectClient) -> int:
    """Mark as Crashed what a worker left behind that is no more, with its subflows; return how many.

    Only called while no worker of the pool runs: whatever says that it runs there does not.
    """
    unfinished = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)))
    pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
    todo: list[FlowRun] = await client.read_flow_runs(flow_run_filter=unfinished, work_pool_filter=pool)
    count = 0
    while todo:
        for run in todo:
            message = "Its worker ended before it did; found at start-up."
            await client.set_flow_run_state(run.id, Crashed(message=message), force=True)
        count += len(todo)
        parents = FlowRunFilterParentFlowRunId(any_=[run.id for run in todo])
        children = unfinished.model_copy(update={"parent_flow_run_id": parents})
        todo = await client.read_flow_runs(flow_run_filter=children)
    return count


async def prune_schedules(client: PrefectClient, deployments: list[dict[str, Any]]) -> None:
    """Delete schedules that prefect.yaml no longer has: deploying leaves those with a slug on the server.

    The others stay as they are, so that one paused in the UI stays paused.
    """
    # By entrypoint too: deployments of several flows share a name, and other projects may use the server.
    wanted = {
        (entry["entrypoint"], entry["name"]): {one.get("slug") for one in entry.get("schedules") or []}
        for entry in deployments
    }
    for deployment in await client.read_deployments():
        slugs = wanted.get((deployment.entrypoint or "", deployment.name))
        for schedule in deployment.schedules if slugs is not None else ():
            if schedule.slug not in slugs:
                await client.delete_deployment_schedule(deployment.id, schedule.id)


async def apply_automations(client: PrefectClient, file: Path) -> None:
    """Create the file's automations, or bring those of the same name up to date."""
    document = yaml.safe_load(file.read_text()) or []
    for entry in document["automations"] if isinstance(document, dict) else document:
        automation = AutomationCore.model_validate(entry)
        present = await client.read_automations_by_name(automation.name)
        if present:
            await client.update_automation(present[0].id, automation)
        else:
            await client.create_automation(automation)


async def apply_limits(client: PrefectClient) -> None:
    """Let `deployments/limits.py`, where there is one, set concurrency limits: `limits() -> dict[str, int]`."""
    if importlib.util.find_spec("deployments.limits") is None:
        return
    limits: dict[str, int] = importlib.import_module("deployments.limits").limits()
    for name, limit in limits.items():
        await client.upsert_global_concurrency_limit_by_name(name, limit)


async def apply_before_deploying(project: Path, deployments: list[dict[str, Any]], with_reconcile: bool) -> None:
    """Do everything but the deployments themselves."""
    async with get_client() as client:
        await apply_pool(client, project)
        if with_reconcile:
            print(f"flow runs left by a dead worker: {await reconcile(client)}")
        await prune_schedules(client, deployments)
        await apply_limits(client)
        automations = project / "deployments" / "automations.yaml"
        if automations.exists():
            await apply_automations(client, automations)


def main() -> int:
    """Apply, then deploy all: in this process, which has paid for importing Prefect already."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("--reconcile", action="store_true", help="no worker runs: mark its unfinished runs as Crashed")
    options = parser.parse_args()
    os.chdir(options.project)
    file = options.project / "prefect.yaml"
    deployments = (yaml.safe_load(file.read_text()) or {}).get("deployments") or [] if file.exists() else []
    asyncio.run(apply_before_deploying(options.project, deployments, options.reconcile))
    if deployments:
        sys.argv = ["prefect", "--no-prompt", "deploy", "--all"]
        prefect_command()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
