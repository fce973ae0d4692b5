"""Prefect on the stack, for real: schedules are scheduled, a run runs, a killed worker leaves nothing running."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments import bringup
from infra.local import Stack
from infra.local.processes import find_descendants, is_running

FLOW = """\
import time
from pathlib import Path

from prefect import flow


@flow
def leave_mark(file: str, seconds: float = 0.0) -> None:
    Path(file).write_text("here")
    time.sleep(seconds)
"""
PREFECT_YAML = """\
deployments:
- name: every-hour
  entrypoint: marking.leave_mark
  parameters: {file: /dev/null}
  work_pool: {name: local}
  schedules: [{cron: "0 * * * *", timezone: UTC, slug: hourly}]
"""
LIMIT_SECONDS = 120.0


@pytest.fixture(scope="module")
def project() -> Iterator[Path]:
    """A small project of its own, brought up with everything."""
    directory = Path(tempfile.mkdtemp(prefix="tiering-up-"))
    (directory / "marking.py").write_text(FLOW)
    (directory / "prefect.yaml").write_text(PREFECT_YAML)
    (directory / "deployments").mkdir()
    for file in (bringup.PROJECT / "deployments").glob("*.yaml"):
        shutil.copy(file, directory / "deployments")
    try:
        bringup.up(directory / ".stack", directory)
        yield directory
    finally:
        bringup.down(directory / ".stack")
        shutil.rmtree(directory, ignore_errors=True)


def _ask(project: Path, path: str, **body: object) -> Any:
    url = bringup.client_environment(Stack(project / ".stack"))["PREFECT_API_URL"] + path
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def _wait(what: str, test: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (found := test()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.2)
    return found


def _run(project: Path, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = ["deployment", "run", "leave-mark/every-hour", *more]
    # In the project's directory, so that Prefect finds the server by the .env that bring-up wrote.
    return subprocess.run(
        [sys.executable, "-m", "prefect", *arguments], cwd=project, capture_output=True, text=True, check=False
    )


def test_a_cron_deployment_gets_scheduled_runs(project: Path) -> None:
    # A health check stays green while schedules are dead: so ask for the runs.
    states = {"state": {"type": {"any_": ["SCHEDULED"]}}}
    assert len(_wait("scheduled runs", lambda: _ask(project, "/flow_runs/filter", flow_runs=states))) >= 1


def test_a_killed_worker_takes_its_runs_along_and_the_next_start_says_so(project: Path, tmp_path: Path) -> None:
    stack = Stack(project / ".stack")
    mark = tmp_path / "mark"
    assert _run(project, "--param", f"file={mark}", "--param", "seconds=600").returncode == 0
    _wait("the flow body", mark.exists)
    worker = stack.state.process(bringup.WORKER)
    assert worker is not None
    children = find_descendants(worker.pid)
    assert children
    os.kill(worker.pid, signal.SIGKILL)
    _wait("the flow run's process to end", lambda: not any(is_running(child) for child in children))

    bringup.up(project / ".stack", project)

    # At a full hour there is a scheduled run as well.
    ours = [run for run in _ask(project, "/flow_runs/filter") if run["parameters"].get("file") == str(mark)]
    assert [run["state_type"] for run in ours] == ["CRASHED"]


def test_a_schedule_gone_from_the_yaml_is_gone_from_the_server(project: Path) -> None:
    (project / "prefect.yaml").write_text(PREFECT_YAML.replace("hourly", "daily").replace("0 * * * *", "0 1 * * *"))
    bringup.up(project / ".stack", project)
    (deployment,) = _ask(project, "/deployments/filter")
    assert [schedule["slug"] for schedule in deployment["schedules"]] == ["daily"]


def test_what_runs_calls_nobody_outside(project: Path) -> None:
    text = (project / ".env").read_text()
    for line in textwrap.dedent("""\
        PREFECT_SERVER_ANALYTICS_ENABLED=false
        DO_NOT_TRACK=1""").splitlines():
        assert line in text
    log = (project / ".stack" / "logs" / f"{bringup.SERVER}.log").read_text()
    assert "telemetry" not in log.lower()
