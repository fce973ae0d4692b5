"""Fan-out over a Dask cluster by setting: a scheduler and two workers, processes of their own on loopback."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import distributed
import pytest

from flows.lifecycle import hot_to_warm
from infra.local.processes import Command, inherited_environment, spawn, stop
from infra.local.state import choose_port
from tests.flows.world import PROJECT, environment, run, states
from tests.ops.world import World, days_ago
from tiering.settings import Settings

WAIT_SECONDS_MAX = 120


@pytest.fixture
def cluster(
    tmp_path: Path, prefect_environment: dict[str, str], fresh_settings: Settings
) -> Iterator[distributed.Client]:
    """Start scheduler and workers with the environment of the flows; yields a client once both workers are there."""
    address = f"tcp://127.0.0.1:{choose_port(set())}"
    variables = inherited_environment() | prefect_environment | environment(fresh_settings)
    scheduler = ["scheduler", "--host", address, "--no-dashboard", "--no-show"]
    worker = ["worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny", "--local-directory", str(tmp_path)]
    with ExitStack() as ending:
        for name, arguments in (("scheduler", scheduler), ("worker-1", worker), ("worker-2", worker)):
            command = [sys.executable, "-m", "dask", *arguments]
            process = spawn(Command(name, command, tmp_path / f"{name}.log", variables, PROJECT))
            ending.callback(stop, process, signal.SIGKILL, 10.0)  # it keeps nothing
        client = ending.enter_context(distributed.Client(address, timeout=WAIT_SECONDS_MAX, set_as_default=False))
        client.wait_for_workers(2, timeout=WAIT_SECONDS_MAX)
        yield client


def test_units_are_moved_by_both_workers(
    world: World, cluster: distributed.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = range(20, 28)
    for day in (*days, 0):
        world.insert_day(days_ago(day))
    with world.stores.hot.transaction("spoil", "bars") as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE hot.market_bars SET low = high + 1 WHERE ts = %s", (days_ago(20),))
    rows = world.rows()
    monkeypatch.setenv("TIERING_DASK_SCHEDULER", cluster.scheduler.address)
    with distributed.get_task_stream(client=cluster) as stream:
        ended = run(hot_to_warm, dataset="market_bars")
    assert ended.name == "Quarantined", ended.message
    assert sorted(state for _, _, state in states(world)) == ["COMMITTED"] * 7 + ["QUARANTINED"]
    assert len({record["worker"] for record in stream.data}) == 2, stream.data
    assert world.rows() == rows
