"""Fixtures for tests of flows: a real Prefect server on PostgreSQL, and a world that the flows find by environment."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_HOME,
    PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW,
    temporary_settings,
)

from deployments.bringup import QUIET, SERVER_TUNING
from infra.local import Stack
from infra.local.errors import read_log_tail
from infra.local.processes import POLL_SECONDS, Command, inherited_environment, is_running, spawn, stop
from infra.local.state import choose_port
from tests.flows.world import environment
from tests.ops.world import World, open_world
from tiering.settings import Settings

SERVER_SECONDS_MAX = 120.0


@pytest.fixture(scope="session")
def prefect_environment(stack: Stack) -> Iterator[dict[str, str]]:
    """A Prefect server for the session; yields the variables that a process needs to be its client."""
    port = choose_port(set())
    home = stack.directory / "prefect-test"
    client = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_HOME": str(home), **QUIET}
    url = stack.postgres.url("prefect").replace("postgresql://", "postgresql+asyncpg://", 1)
    server = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url, **SERVER_TUNING}
    arguments = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    log = stack.directory / "logs" / "prefect-server.log"
    process = spawn(Command("prefect-server", arguments, log, inherited_environment() | client | server))
    try:
        deadline = time.monotonic() + SERVER_SECONDS_MAX
        while not _is_healthy(port):
            assert is_running(process), read_log_tail(log)
            assert time.monotonic() < deadline, read_log_tail(log)
            time.sleep(POLL_SECONDS)
        yield client
    finally:
        # What this process still has for the server must leave before it: at exit it would be tried for a minute.
        APILogWorker.drain_all(timeout=10)
        EventsWorker.drain_all(timeout=10)
        stop(process, signal.SIGTERM, 15.0)


def _is_healthy(port: int) -> bool:
    url = f"http://127.0.0.1:{port}/api/health"
    with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=2) as answer:
        return bool(answer.status == 200)
    return False


@pytest.fixture
def prefect(prefect_environment: dict[str, str]) -> Iterator[None]:
    """Make this process a client of the session's Prefect server."""
    with temporary_settings(
        {
            PREFECT_API_URL: prefect_environment["PREFECT_API_URL"],
            PREFECT_HOME: Path(prefect_environment["PREFECT_HOME"]),
            # It makes a run's end wait for its next second, and only matters where processes die.
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
            PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW: "ignore",
        }
    ):
        yield


@pytest.fixture
def world(prefect: None, fresh_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Market data in an empty database, which the tasks find by the environment as they always do."""
    for name, value in environment(fresh_settings).items():
        monkeypatch.setenv(name, value)
    with open_world(fresh_settings) as opened:
        yield opened
