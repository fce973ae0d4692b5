"""The stack: its services started in parallel, recognised when already up, stopped, killed and restarted one by one."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from infra.local.errors import StackError, read_log_tail
from infra.local.mongo import Mongo
from infra.local.postgres import Postgres
from infra.local.processes import (
    POLL_SECONDS,
    Command,
    Process,
    find_descendants,
    inherited_environment,
    is_running,
    spawn,
    stop,
    wait_ended,
)
from infra.local.redis_cluster import RedisCluster
from infra.local.s3 import BUCKETS, REGION, S3
from infra.local.service import Service
from infra.local.state import State, is_port_free, write_private
from tiering.settings import Settings

START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 20.0
SERVICES = ("postgres", "redis", "mongo", "s3")
# A service is the user's own, and not started here, when the environment says where it is.
GIVEN_BY = {
    "postgres": ("TIERING_HOT_PG_URL", "TIERING_WARM_PG_URL"),
    "redis": ("TIERING_REDIS_URL",),
    "mongo": ("TIERING_HOT_MONGO_URL", "TIERING_WARM_MONGO_URL"),
    "s3": ("TIERING_S3_URL",),
}
BACKUP_KEY = "TIERING_BACKUP_KEY"
Report = Callable[[str, str], None]


def find_given_services() -> set[str]:
    """Return the services that the user brings, by environment variables that hold their URLs."""
    present = inherited_environment().keys()
    return {service for service, variables in GIVEN_BY.items() if present & set(variables)}


def _say_nothing(service: str, news: str) -> None:
    """Report to nobody."""


class Stack:
    """Real servers with all their state in one directory; as a context manager, up inside and down after.

    Args:
        directory: where ports, passwords, data and logs live; made when missing, kept by `down`.
        services: which of SERVICES to run; default: all.
        report: told (service, news) as things happen, from several threads.
    """

    def __init__(self, directory: Path, services: Collection[str] = SERVICES, report: Report = _say_nothing) -> None:
        if unknown := set(services) - set(SERVICES):
            raise StackError("start", ", ".join(sorted(unknown)), "no such service", f"Known: {', '.join(SERVICES)}.")
        self.directory = directory.resolve()
        self._open_directory()
        self.state = State(self.directory)
        self._report = report
        self.postgres = Postgres(self.state)
        self.s3 = S3(self.state)
        self.redis = RedisCluster(self.state)
        self.mongo = Mongo(self.state)
        every: tuple[Service, ...] = (self.postgres, self.redis, self.mongo, self.s3)
        self._services = {service.name: service for service in every if service.name in services}

    def __enter__(self) -> Stack:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def up(self) -> None:
        """Start what does not run yet. Running servers are left alone; leftovers of a crash are cleared.

        Raises:
            StackError: a server did not come up; the end of its log is in the message.
        """
        with self.state.locked(), ThreadPoolExecutor(len(self._services)) as pool:
            for started in [pool.submit(self._start, service) for service in self._services.values()]:
                started.result()

    def down(self) -> None:
        """Stop every recorded process of the directory, whichever services this object was made with."""
        with self.state.locked():
            self._stop(self.state.processes())

    def status(self) -> dict[str, Process | None]:
        """Return every server's process; None for one that should run and does not."""
        names = {command.name for service in self._services.values() for command in service.commands()}
        recorded = self.state.processes()
        alive = {name: process if is_running(process) else None for name, process in recorded.items()}
        return dict.fromkeys(sorted(names)) | dict(sorted(alive.items()))

    def port(self, server: str) -> int | None:
        """Return the port a server (a name from `status`) listens on; None when it has none, as a worker."""
        return self.state.known_port({"s3": "s3.s3"}.get(server, server))

    def pids(self, service: str) -> list[int]:
        """Return the pids of a service's (or one server's) living processes."""
        return [process.pid for process in self._find(service).values() if is_running(process)]

    def kill(self, service: str) -> None:
        """SIGKILL a service, or one server of it ("redis-2"), with all its children: as a power cut would."""
        for name, process in self._find(service).items():
            everybody = [process, *find_descendants(process.pid)]
            for victim in everybody:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim.pid, signal.SIGKILL)
            for victim in everybody:
                wait_ended(victim, STOP_SECONDS_MAX)
            self.state.record_process(name, None)

    def stop(self, service: str) -> None:
        """Stop a service, or one server of it, in good order."""
        self._stop(self._find(service))

    def restart(self, service: str) -> None:
        """Start a stopped or killed service again; one still running is first stopped in good order."""
        with self.state.locked():
            self._stop(self._find(service))
            self._start(self._services[service.split("-")[0]])

    def settings(self, two_databases: bool = False) -> Settings:
        """Build the library's settings for these servers.

        Args:
            two_databases: keep warm tables, ledger and catalog in a database of their own.
        """
        values: dict[str, Any] = {name.lower(): value for name, value in self._values(two_databases).items()}
        return Settings(_env_file=None, **values)  # type: ignore[call-arg]

    def write_env(self, file: Path, more: Mapping[str, str] | None = None, given: Collection[str] = ()) -> None:
        """Write the settings (of the services of this object) as TIERING_* lines, readable by the owner only.

        Args:
            file: usually `.env`; its other lines stay.
            more: further variables to set.
            given: services that the user brings: their URLs are the user's to set, in the file or elsewhere.
        """
        ours = {f"TIERING_{name}": value for name, value in self._values(two_databases=False).items()} | dict(
            more or {}
        )
        ours = {name: value for name, value in ours.items() if not any(name in GIVEN_BY[g] for g in given)}
        kept = file.read_text().splitlines() if file.exists() else []
        if any(line.partition("=")[0].strip() == BACKUP_KEY and line.partition("=")[2].strip() for line in kept):
            # Somebody may have turned the key over: without the older ones behind it, older backups are lost.
            ours.pop(BACKUP_KEY, None)
        kept = [line for line in kept if line.partition("=")[0].strip() not in ours]
        lines = [*kept, *(f"{name}={value}" for name, value in ours.items())]
        write_private(file, "\n".join(lines) + "\n")

    def _values(self, two_databases: bool) -> dict[str, str]:
        values: dict[str, str] = {}
        if "postgres" in self._services:
            values["HOT_PG_URL"] = self.postgres.url("trading")
            values["WARM_PG_URL"] = self.postgres.url("trading_warm" if two_databases else "trading")
        if "redis" in self._services:
            values["REDIS_URL"] = self.redis.url
        if "mongo" in self._services:
            values["HOT_MONGO_URL"] = self.mongo.url("trading")
            values["WARM_MONGO_URL"] = self.mongo.url("trading_warm" if two_databases else "trading")
        if "s3" in self._services:
            access_key, secret_key = self.s3.credentials
            values |= {"S3_URL": self.s3.url, "S3_ACCESS_KEY": access_key, "S3_SECRET_KEY": secret_key}
            values |= {"S3_REGION": REGION, "LAKE_BUCKET": BUCKETS[0], "BACKUP_BUCKET": BUCKETS[1]}
        values["BACKUP_KEY"] = self.state.key("backup")
        return values

    def _open_directory(self) -> None:
        """Make the directory: private, but for root passable, since `nobody` keeps his database in it."""
        (self.directory / "logs").mkdir(parents=True, exist_ok=True)
        if self.directory.stat().st_uid == os.geteuid():
            self.directory.chmod(0o711 if os.geteuid() == 0 else 0o700)

    def _start(self, service: Service) -> None:
        began = time.monotonic()
        missing = [cmd for cmd in service.commands() if not is_running(self.state.process(cmd.name))]
        if missing:
            self._report(service.name, "starting")
            if len(missing) == len(service.commands()):
                self.state.drop_ports(*(name for name in service.port_names if not is_port_free(self.state.port(name))))
            service.prepare()
            names = {command.name for command in missing}
            self._spawn(command for command in service.commands() if command.name in names)
        self._wait_ready(service)
        service.settle()
        self._report(service.name, f"up in {time.monotonic() - began:.1f} s" if missing else "already up")

    def _spawn(self, commands: Iterable[Command]) -> None:
        for command in commands:
            if command.log.exists():
                command.log.replace(command.log.with_suffix(".previous.log"))
            self.state.record_process(command.name, spawn(command))

    def _wait_ready(self, service: Service) -> None:
        """Probe until the service serves; a process that ends meanwhile is an error, told with its log."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while not service.is_ready():
            for command in service.commands():
                if not is_running(self.state.process(command.name)):
                    if service.name == "postgres" and self.postgres.blames_leftovers() and time.monotonic() < deadline:
                        self._spawn([command])
                        continue
                    raise StackError("start", command.name, f"it ended. Its log says:\n{read_log_tail(command.log)}")
            if time.monotonic() > deadline:
                tails = "\n".join(read_log_tail(command.log) for command in service.commands()[:1])
                raise StackError("start", service.name, f"not ready after {START_SECONDS_MAX:.0f} s. Log:\n{tails}")
            time.sleep(POLL_SECONDS)

    def _find(self, service: str) -> dict[str, Process]:
        recorded = self.state.processes()
        return {name: process for name, process in recorded.items() if name == service or name.split("-")[0] == service}

    def _stop(self, processes: dict[str, Process]) -> None:
        """Stop processes side by side, each with the signal that its program takes for a fast orderly end."""

        def end(name: str, process: Process) -> None:
            # PostgreSQL takes SIGTERM as "wait for every client to leave", SIGINT as "orderly, now".
            how = signal.SIGINT if name == "postgres" else signal.SIGTERM
            self._report(name, "stopping")
            stop(process, how, STOP_SECONDS_MAX)
            self.state.record_process(name, None)
            self._report(name, "stopped")

        with ThreadPoolExecutor(max(1, len(processes))) as pool:
            for ended in [pool.submit(end, name, process) for name, process in processes.items()]:
                ended.result()
