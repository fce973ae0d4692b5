"""The MongoDB-protocol server of the stack (SecantusDB: WiredTiger behind MongoDB's wire); never imported."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from infra.local.binaries import find_mongo
from infra.local.errors import StackError, read_log_tail
from infra.local.processes import POLL_SECONDS, Command, Process, bare_environment, is_running, spawn, stop
from infra.local.state import State

USER = "tiering"
PROVISION_SECONDS_MAX = 30.0


class Mongo:
    """One server that calls itself a replica set of one, so that transactions and change streams work."""

    name = "mongo"
    port_names = ("mongo",)

    def __init__(self, state: State) -> None:
        self._state = state
        self._data = state.directory / "mongo"

    def url(self, database: str) -> str:
        """Build the URL of a database, password included."""
        login = f"{USER}:{self._state.secret('mongo')}"
        return f"mongodb://{login}@127.0.0.1:{self._state.port('mongo')}/{database}?authSource=admin"

    def prepare(self) -> None:
        """Create the user, once: the server learns users only while it asks for none, so it runs so for a moment."""
        if (self._data / "has-user").exists():
            return
        self._data.mkdir(exist_ok=True)
        process = spawn(self._command("mongo.provision", auth=False))
        # Recorded, so that after a crash right here `down` finds and ends a server that asks for no password.
        self._state.record_process("mongo.provision", process)
        url = f"mongodb://127.0.0.1:{self._state.port('mongo')}"
        try:
            self._wait_answer(url, process)
            self._create_user(url)
        finally:
            stop(process, signal.SIGTERM, PROVISION_SECONDS_MAX)
            self._state.record_process("mongo.provision", None)
        (self._data / "has-user").touch()

    def commands(self) -> Sequence[Command]:
        """Start with passwords on."""
        return [self._command("mongo", auth=True)]

    def is_ready(self) -> bool:
        """Log in and ask."""
        return _answers(self.url("admin"))

    def settle(self) -> None:
        """Nothing: databases and collections come into being when written to."""

    def _wait_answer(self, url: str, process: Process) -> None:
        deadline = time.monotonic() + PROVISION_SECONDS_MAX
        while not _answers(url):
            if not is_running(process) or time.monotonic() > deadline:
                log = read_log_tail(self._state.directory / "logs" / "mongo.provision.log")
                raise StackError("start", "mongo", f"it ended. Its log says:\n{log}")
            time.sleep(POLL_SECONDS)

    def _create_user(self, url: str) -> None:
        with MongoClient[dict[str, Any]](url) as client:
            users = client.admin.command("usersInfo", USER)["users"]
            # A crash after the user was made and before we noted it: the same password again.
            verb = "updateUser" if users else "createUser"
            client.admin.command(verb, USER, pwd=self._state.secret("mongo"), roles=["root"])

    def _command(self, name: str, auth: bool) -> Command:
        arguments: list[str | Path] = [find_mongo(), "--host", "127.0.0.1", "--port", str(self._state.port("mongo"))]
        arguments += ["--storage-path", self._data / "data", "--cache-size", "256M", "--noop-heartbeat-seconds", "10"]
        # Measured: without it an acknowledged write is gone after SIGKILL.
        arguments += ["--sync-on-commit"]
        # Enough oplog for a day of point-in-time recovery.
        arguments += ["--oplog-retention-seconds", "86400", "--oplog-max-entries", "2000000"]
        log = self._state.directory / "logs" / f"{name}.log"
        environment = bare_environment(self._state.directory)
        return Command(name, [*arguments, *(["--auth"] if auth else [])], log, environment, self._data)


def _answers(url: str) -> bool:
    client = MongoClient[dict[str, Any]](url, serverSelectionTimeoutMS=300, connectTimeoutMS=1000)
    try:
        client.admin.command("ping")
        # "ping" needs no login; this does.
        client.admin.command("usersInfo", USER)
    except PyMongoError:
        return False
    finally:
        client.close()
    return True
