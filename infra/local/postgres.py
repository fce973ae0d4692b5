"""PostgreSQL 18 of the stack: initdb, one configuration file, databases and extensions."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg2
from psycopg2 import sql

from infra.local.binaries import find_postgres_bin
from infra.local.errors import read_log_tail
from infra.local.processes import Command, bare_environment, give_away, run_tool
from infra.local.state import State, write_private

USER = "tiering"
DATABASES = ("trading", "trading_warm", "prefect")
EXTENSIONS = ("pg_trgm", "btree_gist")
# sockaddr_un holds 107 characters, and the name ends in "/.s.PGSQL.<port>.lock".
SOCKET_DIRECTORY_LENGTH_MAX = 85

CONFIGURATION = """\
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{sockets}'
max_connections = 200
shared_buffers = 256MB
effective_cache_size = 2GB
work_mem = 16MB
maintenance_work_mem = 256MB
wal_level = replica
max_wal_senders = 10
max_wal_size = 2GB
checkpoint_timeout = 10min
wal_compression = pglz
summarize_wal = on
track_commit_timestamp = on
max_worker_processes = 8
max_parallel_workers = 2
random_page_cost = 1.1
password_encryption = scram-sha-256
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %a '
log_lock_waits = on
"""


class Postgres:
    """The PostgreSQL server. Its programs refuse to run as root, so for root they run as `nobody`."""

    name = "postgres"
    port_names = ("postgres",)

    def __init__(self, state: State) -> None:
        self._state = state
        self._data = state.directory / "postgres"
        self._log = state.directory / "logs" / "postgres.log"
        self.bin = find_postgres_bin()

    def url(self, database: str) -> str:
        """Build the URL of a database, password included."""
        return (
            f"postgresql://{USER}:{self._state.secret('postgres')}@127.0.0.1:{self._state.port('postgres')}/{database}"
        )

    def prepare(self) -> None:
        """Create the database cluster once, rewrite its configuration, clear what a crash left."""
        if not self._data.exists():
            self._initdb()
        long = len(str(self._data)) > SOCKET_DIRECTORY_LENGTH_MAX
        sockets = "" if long else str(self._data).replace("'", "''")
        configuration = CONFIGURATION.format(port=self._state.port("postgres"), sockets=sockets)
        (self._data / "stack.conf").write_text(configuration)
        self._clear_stale_lock()

    def commands(self) -> Sequence[Command]:
        """Start the postmaster."""
        return [self._command("postgres", [self.bin / "postgres", "-D", self._data])]

    def is_ready(self) -> bool:
        """Log in and ask; a server still in recovery refuses."""
        try:
            with self.connect("postgres") as connection, connection.cursor() as cursor:
                cursor.execute("SELECT NOT pg_is_in_recovery()")
                return bool(cursor.fetchall()[0][0])
        except psycopg2.OperationalError:
            return False

    def settle(self) -> None:
        """Create extensions (in template1, so that every database made later has them) and databases."""
        self._create_extensions("template1")
        with self.connect("postgres") as connection, connection.cursor() as cursor:
            cursor.execute("SELECT datname FROM pg_database")
            present = {name for (name,) in cursor.fetchall()}
            for name in DATABASES:
                if name not in present:
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def blames_leftovers(self) -> bool:
        """Say whether the server ended only because children of its killed predecessor had not gone yet."""
        return "pre-existing shared memory block" in read_log_tail(self._log)

    @contextlib.contextmanager
    def connect(self, database: str) -> Iterator[psycopg2.extensions.connection]:
        """Open a connection in autocommit, and close it after use."""
        connection = psycopg2.connect(self.url(database), connect_timeout=3)
        try:
            connection.autocommit = True
            yield connection
        finally:
            connection.close()

    def _initdb(self) -> None:
        """Build the cluster beside its place and move it there: a crash half way leaves nothing half made."""
        new = self._data.with_name("postgres.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        password = self._data.with_name("postgres.pw")
        write_private(password, self._state.secret("postgres"))
        give_away([new, password])
        options: list[str | Path] = [
            "--username",
            USER,
            "--pwfile",
            password,
            "--auth",
            "scram-sha-256",
            "--encoding",
            "UTF8",
        ]
        options += ["--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C", "--data-checksums"]
        try:
            run_tool(self._command("initdb", [self.bin / "initdb", "-D", new, *options]))
        finally:
            password.unlink()
        with (new / "postgresql.conf").open("a") as file:
            file.write("include 'stack.conf'\n")
        new.rename(self._data)

    def _create_extensions(self, database: str) -> None:
        with self.connect(database) as connection, connection.cursor() as cursor:
            for name in EXTENSIONS:
                cursor.execute(sql.SQL("CREATE EXTENSION IF NOT EXISTS {}").format(sql.Identifier(name)))

    def _clear_stale_lock(self) -> None:
        """Remove postmaster.pid when its pid now belongs to another program: PostgreSQL would believe it."""
        lock = self._data / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError, ValueError):
            pid = int(lock.read_text().splitlines()[0])
            command_line = Path(f"/proc/{pid}/cmdline")
            if not command_line.exists() or os.fsencode(self._data) not in command_line.read_bytes():
                lock.unlink()

    def _command(self, name: str, arguments: Sequence[str | Path]) -> Command:
        environment = bare_environment(self._state.directory)
        return Command(name, arguments, self._log, environment, self._state.directory, unprivileged=True)
