"""How tasks are run: when they are tried again, and on what they fan out.

A driver's call is tried again by its store (milliseconds), a step by these options (minutes); nothing else retries,
or attempts would multiply. No task has tags: Prefect asks its server for a slot per tag, before every task run.
"""

from __future__ import annotations

from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from tiering.errors import LeaseHeld, TransientError
from tiering.settings import load_settings


def is_transient(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Tell whether trying again may help. A leased unit is being worked on by another run: leave it to that one."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, TransientError) and not isinstance(error, LeaseHeld)


PLAN: dict[str, Any] = {
    # Never cached: the answer depends on the stores, which no cache key can see.
    "cache_policy": NO_CACHE,
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=1),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_transient,
}
"""For tasks that read."""

EFFECT: dict[str, Any] = PLAN | {"retries": 5, "retry_delay_seconds": exponential_backoff(backoff_factor=2)}
"""For tasks that change something: a minute of patience, enough for a database to restart."""

CHAIN: dict[str, Any] = {"cache_policy": NO_CACHE}
"""For tasks that only call others: those have retries of their own."""


def open_runner() -> TaskRunner[Any]:
    """Choose what a flow fans out on: the Dask cluster of TIERING_DASK_SCHEDULER, else TIERING_FAN_OUT threads."""
    settings = load_settings()
    if settings.dask_scheduler is None:
        return ThreadPoolTaskRunner(max_workers=settings.fan_out)
    from prefect_dask.task_runners import DaskTaskRunner  # 1 s, paid only by those who use it

    return DaskTaskRunner(address=settings.dask_scheduler)
