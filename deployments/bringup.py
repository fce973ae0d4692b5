"""Bring servers, Prefect server, deployments and worker up, or down: `python -m deployments.bringup up|down`."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from infra.local import SERVICES, Stack, find_given_services
from infra.local.errors import StackError, read_log_tail
from infra.local.processes import (
    POLL_SECONDS,
    Command,
    find_descendants,
    inherited_environment,
    is_listening,
    is_running,
    run_tool,
    spawn,
    stop,
)
from infra.local.state import is_port_free
from tiering.errors import TieringError

PROJECT = Path(__file__).resolve().parent.parent
SERVER, WORKER = "prefect-server", "prefect-worker"
UI_PORT = 4200
HOST = "127.0.0.1"
SERVER_SECONDS_MAX = 90.0
STOP_SECONDS_MAX = 15.0

# Nothing calls out: neither the server's telemetry nor the client's, nor the UI's advertisements.
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "GX_ANALYTICS_ENABLED": "false",
}
# Measured on two cores: the server then drains the events of 1000 tasks in 3–6 s instead of 18–24 s.
SERVER_TUNING = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TRIGGERS_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
}
# What `prefect …` typed by hand needs too; it stands in .env, which Prefect reads.
CLIENT_TUNING = {
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}


@dataclass(frozen=True)
class Timings:
    """How long the parts of a bring-up took, in seconds."""

    stack_s: float
    server_s: float
    deploy_s: float
    worker_s: float


Report = Callable[[str, str], None]


def up(stack_dir: Path, project: Path = PROJECT, report: Report = lambda name, news: None) -> Timings:
    """Start what is not running, deploy, and write `.env` in the project.

    Args:
        stack_dir: where the servers keep everything.
        project: the directory with prefect.yaml, from which the flows run.
        report: told (who, news).

    Raises:
        StackError: something did not come up; the end of its log is in the message.
    """
    marks = [time.monotonic()]
    # Prefect's database is the stack's PostgreSQL even when the data lives in the user's own.
    given = find_given_services()
    services = [name for name in SERVICES if name == "postgres" or name not in given]
    stack = Stack(stack_dir, services=services, report=report)
    stack.up()
    marks.append(time.monotonic())
    _start_server(stack, report)
    stack.write_env(project / ".env", more=client_environment(stack), given=given)
    marks.append(time.monotonic())
    _apply(stack, project, report)
    marks.append(time.monotonic())
    _start_worker(stack, project, report)
    marks.append(time.monotonic())
    return Timings(*(round(end - begin, 1) for begin, end in zip(marks, marks[1:], strict=False)))


def down(stack_dir: Path, report: Report = lambda name, news: None) -> None:
    """Stop worker (with the flow runs in its care), server and databases, in this order. Data stays."""
    stack = Stack(stack_dir, report=report)
    for name in (WORKER, SERVER):
        _end(stack, name, report)
    stack.down()


def client_environment(stack: Stack) -> dict[str, str]:
    """Build the variables that any Prefect client of this stack needs; none is secret."""
    return {
        "PREFECT_API_URL": f"http://{HOST}:{_server_port(stack)}/api",
        "PREFECT_HOME": str(stack.directory / "prefect"),
        **QUIET,
        **CLIENT_TUNING,
    }


def _child_environment(stack: Stack) -> dict[str, str]:
    """Build the environment of what we start: the user's, Prefect's settings, our programs and modules first."""
    environment = inherited_environment() | client_environment(stack)
    for name, path in (("PATH", Path(sys.executable).parent), ("PYTHONPATH", PROJECT)):
        environment[name] = os.pathsep.join([str(path), *filter(None, [environment.get(name)])])
    return environment


def _server_port(stack: Stack) -> int:
    return stack.state.port(SERVER, preferred=UI_PORT)


def _start_server(stack: Stack, report: Report) -> None:
    if is_running(stack.state.process(SERVER)):
        report(SERVER, "already up")
    else:
        if not is_port_free(_server_port(stack)):
            stack.state.drop_ports(SERVER)
        _end_leftovers(stack)
        url = stack.postgres.url("prefect").replace("postgresql://", "postgresql+asyncpg://", 1)
        environment = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url, **SERVER_TUNING}
        port = _server_port(stack)
        arguments = ["server", "start", "--host", HOST, "--port", str(port)]
        report(SERVER, "starting")
        _spawn(stack, SERVER, ["prefect", *arguments], stack.directory, environment)
    _wait_healthy(stack)
    report(SERVER, f"up, UI on http://{HOST}:{_server_port(stack)}")


def _apply(stack: Stack, project: Path, report: Report) -> None:
    """Create pool, deployments, automations and limits, in a process that has this stack's Prefect settings."""
    report("deployments", "applying")
    mine = not is_running(stack.state.process(WORKER))
    arguments = ["deployments.apply", str(project), *(["--reconcile"] if mine else [])]
    environment = _child_environment(stack)
    log = stack.directory / "logs" / "deployments.log"
    run_tool(Command("deployments", [sys.executable, "-m", *arguments], log, environment, project))
    report("deployments", "applied")


def _start_worker(stack: Stack, project: Path, report: Report) -> None:
    if is_running(stack.state.process(WORKER)):
        report(WORKER, "already up")
        return
    report(WORKER, "starting")
    _spawn(stack, WORKER, ["prefect", "worker", "start", "--pool", "local", "--type", "process"], project, {})
    report(WORKER, "up")


def _spawn(stack: Stack, name: str, module: list[str], directory: Path, environment: dict[str, str]) -> None:
    # Popen in a session of its own, never `sh &`: under that SIGINT is ignored and Prefect then swallows SIGTERM.
    log = stack.directory / "logs" / f"{name}.log"
    everything = _child_environment(stack) | environment
    process = spawn(Command(name, [sys.executable, "-m", *module], log, everything, directory))
    stack.state.record_process(name, process)


def _wait_healthy(stack: Stack) -> None:
    url = f"http://{HOST}:{_server_port(stack)}/api/health"
    deadline = time.monotonic() + SERVER_SECONDS_MAX
    while True:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=2) as answer:
            # The port was free when we chose it; a stranger who took it since would answer just as well.
            server = stack.state.process(SERVER)
            if answer.status == 200 and server is not None and is_listening(server, _server_port(stack)):
                return
        log = stack.directory / "logs" / f"{SERVER}.log"
        if not is_running(stack.state.process(SERVER)):
            raise StackError("start", SERVER, f"it ended. Its log says:\n{read_log_tail(log)}")
        if time.monotonic() > deadline:
            raise StackError("start", SERVER, f"not healthy in time. Its log says:\n{read_log_tail(log)}")
        time.sleep(POLL_SECONDS)


def _end_leftovers(stack: Stack) -> None:
    """Stop a worker that outlived its server: it would go on with runs that the new server calls crashed."""
    _end(stack, WORKER, lambda name, news: None)


def _end(stack: Stack, name: str, report: Report) -> None:
    process = stack.state.process(name)
    if process is None:
        return
    if is_running(process):
        report(name, "stopping")
        children = find_descendants(process.pid)
        stop(process, signal.SIGTERM, STOP_SECONDS_MAX)
        for child in children:
            stop(child, signal.SIGTERM, 2.0)
    stack.state.record_process(name, None)
    report(name, "stopped")


def main() -> int:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m deployments.bringup", description=__doc__)
    parser.add_argument("verb", choices=["up", "down", "status"])
    parser.add_argument("--dir", type=Path, default=PROJECT / ".stack", help="where the servers keep everything")
    options = parser.parse_args()
    err = Console(stderr=True, highlight=False)

    def report(name: str, news: str) -> None:
        err.print(f"  {name}: {news}", markup=False)

    try:
        if options.verb == "up":
            timings = up(options.dir, report=report)
            err.print(f"up in {timings.stack_s} s servers + {timings.server_s} s Prefect server")
            err.print(f"  + {timings.deploy_s} s deployments + {timings.worker_s} s worker")
        elif options.verb == "down":
            down(options.dir, report=report)
        else:
            for name, process in Stack(options.dir).status().items():
                print(f"{name:16} {'up' if process else 'down':5} {process.pid if process else ''}")
    except TieringError as exc:
        err.print(f"error: {exc}", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
