"""A PostgreSQL server on a restored directory, apart from everything: for proofs, drills and a look at the past."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
from psycopg2 import sql
from pydantic import SecretStr

from infra.local.binaries import find_postgres_bin
from infra.local.processes import (
    Command,
    Process,
    bare_environment,
    find_descendants,
    give_away,
    is_running,
    spawn,
    stop,
    wait_ended,
)
from infra.local.state import choose_port, write_private
from tiering.errors import VerificationError
from tiering.stores.scratch import ScratchServer

STOP_SECONDS_MAX = 60.0
POLL_SECONDS = 0.1
_REFUSAL = re.compile("the database system is (starting up|not (yet )?accepting)|[Hh]ot standby mode is disabled")
# Nobody but us: the private directory is closed, and over TCP the password is one drawn for this server.
HBA = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "shared_buffers": "64MB",
    "max_connections": "40",
    "huge_pages": "off",
    "fsync": "off",  # a scratch server is thrown away
    "autovacuum": "off",
    "ssl": "off",
    "archive_mode": "off",
    "primary_conninfo": "",
    "primary_slot_name": "",
    "synchronous_standby_names": "",
    "hot_standby": "off",  # else the primary's max_connections and the like would be asked for
    "max_worker_processes": "0",  # no job of an extension runs on a copy
    "max_logical_replication_workers": "0",
    "summarize_wal": "off",
    "logging_collector": "off",
    "log_min_messages": "log",
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] ",
    "external_pid_file": "",
}


class LocalScratchPostgres:
    """Starts scratch servers with the embedded (or found) programs. Implements `stores.scratch.ScratchPostgres`.

    Args:
        parent: below which private directories are made; default: the system's place for temporary files.
        recover_seconds_max: how long a recovery may last.
    """

    def __init__(self, parent: Path | None = None, recover_seconds_max: float = 3600.0) -> None:
        self._parent = parent
        self._recover_seconds_max = recover_seconds_max
        self.bin = find_postgres_bin()

    @contextlib.contextmanager
    def directory(self) -> Iterator[Path]:
        """See `ScratchPostgres.directory`."""
        directory = Path(tempfile.mkdtemp(prefix="tpg-", dir=self._parent))
        give_away([directory])
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    @contextlib.contextmanager
    def start(self, directory: Path, superuser: str) -> Iterator[ScratchServer]:
        """See `ScratchPostgres.start`."""
        private = Path(tempfile.mkdtemp(prefix="tpg-", dir=self._parent))
        try:
            port = choose_port(set())
            process, log = self._spawn(directory, private, port)
            try:
                password = SecretStr(secrets.token_urlsafe(18))
                self._await_recovery(process, log, private, port, superuser, password)
                yield ScratchServer(directory, port, superuser, password)
            finally:
                end(process)
        finally:
            shutil.rmtree(private, ignore_errors=True)

    def _spawn(self, directory: Path, private: Path, port: int) -> tuple[Process, Path]:
        hba, log = private / "pg_hba.conf", private / "log"
        write_private(hba, HBA)
        log.touch(mode=0o600)
        give_away([private, hba, *_everything(directory)])
        settings = SETTINGS | {"port": str(port), "hba_file": str(hba), "unix_socket_directories": str(private)}
        arguments: list[str | Path] = [self.bin / "postgres", "-D", directory]
        for key, value in settings.items():
            arguments += ["-c", f"{key}={value}"]
        environment = bare_environment(private)
        return spawn(Command("scratch", arguments, log, environment, directory, unprivileged=True)), log

    def _await_recovery(
        self, process: Process, log: Path, private: Path, port: int, superuser: str, password: SecretStr
    ) -> None:
        deadline = time.monotonic() + self._recover_seconds_max
        while not _is_promoted(private, port, superuser, password):
            if not is_running(process):
                raise VerificationError(
                    "start", "restored PostgreSQL", _last_words(log), "Nothing was opened on it; read its words."
                )
            if time.monotonic() > deadline:
                raise VerificationError("start", "restored PostgreSQL", f"still recovering: {_last_words(log)}")
            time.sleep(POLL_SECONDS)


def end(process: Process) -> None:
    """Stop a server in good order, and whatever is left of it by force."""
    if not is_running(process):
        return
    everybody = find_descendants(process.pid)
    stop(process, signal.SIGINT, STOP_SECONDS_MAX)
    for left in everybody:
        if not wait_ended(left, 5.0):
            with contextlib.suppress(ProcessLookupError):
                os.kill(left.pid, signal.SIGKILL)


def _is_promoted(private: Path, port: int, superuser: str, password: SecretStr) -> bool:
    """Ask over the private socket, and set the password once the server takes writes."""
    try:
        connection = psycopg2.connect(
            host=str(private),
            port=port,
            user=superuser,
            dbname="template1",
            connect_timeout=5,
            application_name="proof",
        )
    except psycopg2.OperationalError:
        return False
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_is_in_recovery()")
            if cursor.fetchall()[0][0]:
                return False
            cursor.execute("SET password_encryption = 'scram-sha-256'")
            statement = sql.SQL("ALTER ROLE {} PASSWORD {} VALID UNTIL 'infinity'")
            cursor.execute(statement.format(sql.Identifier(superuser), sql.Literal(password.get_secret_value())))
        return True
    finally:
        connection.close()


def _everything(directory: Path) -> Iterator[Path]:
    if os.geteuid() == 0:
        yield directory
        yield from directory.rglob("*")


def _last_words(log: Path) -> str:
    """Pick what matters out of a log: not that it refused us while it recovered."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if not _REFUSAL.search(line)]
    grave = [line for line in lines if "FATAL" in line or "PANIC" in line]
    return "; ".join(" ".join(line.split()) for line in (grave or lines)[-4:]) or "it said nothing"
