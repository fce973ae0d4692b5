"""The record of one stack: its ports, its passwords, its processes. One JSON file, readable by its owner only."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import random
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.local.processes import Process

# Below the kernel's ephemeral range (32768…), so that no outgoing connection can take a port while its server is down.
PORTS = range(20000, 32000)


class State:
    """Ports and passwords, chosen once and kept; processes, as last seen. Safe to use from several threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file = directory / "stack.json"
        self._guard = threading.RLock()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the stack against another `up` or `down`; the lock goes away with the process that holds it."""
        with (self.directory / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def port(self, name: str, preferred: int | None = None) -> int:
        """Return the port of a server, choosing a free one the first time: the preferred one when it is free."""
        with self._guard:
            record = self._read()
            if name not in record["ports"]:
                free = preferred is not None and is_port_free(preferred)
                record["ports"][name] = preferred if free else choose_port(set(record["ports"].values()))
                self._write(record)
            return int(record["ports"][name])

    def known_port(self, name: str) -> int | None:
        """Return the port of a server when one was chosen already."""
        with self._guard:
            port: int | None = self._read()["ports"].get(name)
            return port

    def drop_ports(self, *names: str) -> None:
        """Forget ports that another program has taken; the next call of `port` chooses new ones."""
        with self._guard:
            record = self._read()
            for name in names:
                record["ports"].pop(name, None)
            self._write(record)

    def secret(self, name: str) -> str:
        """Return a password, drawing it the first time."""
        with self._guard:
            record = self._read()
            if name not in record["secrets"]:
                record["secrets"][name] = secrets.token_urlsafe(18)
                self._write(record)
            return str(record["secrets"][name])

    def key(self, name: str) -> str:
        """Return 32 bytes in base64, drawing them the first time."""
        with self._guard:
            record = self._read()
            if name not in record["secrets"]:
                record["secrets"][name] = base64.b64encode(secrets.token_bytes(32)).decode()
                self._write(record)
            return str(record["secrets"][name])

    def process(self, name: str) -> Process | None:
        """Return the process last started under this name; it may have ended since."""
        with self._guard:
            found = self._read()["processes"].get(name)
            return Process(**found) if found else None

    def processes(self) -> dict[str, Process]:
        """Return every recorded process by name."""
        with self._guard:
            return {name: Process(**found) for name, found in self._read()["processes"].items()}

    def record_process(self, name: str, process: Process | None) -> None:
        """Remember (or, with None, forget) the process of a name."""
        with self._guard:
            record = self._read()
            if process is None:
                record["processes"].pop(name, None)
            else:
                record["processes"][name] = {"pid": process.pid, "started": process.started}
            self._write(record)

    def _read(self) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(self._file.read_text())
        except FileNotFoundError:
            return {"ports": {}, "secrets": {}, "processes": {}}
        return record

    def _write(self, record: dict[str, Any]) -> None:
        write_private(self._file, json.dumps(record, indent=1) + "\n")


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step, readable by its owner only from its first byte on."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with open(new, "w", opener=lambda name, flags: os.open(name, flags | os.O_EXCL, 0o600)) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def choose_port(taken: set[int]) -> int:
    """Choose a free port at random: two stacks starting at once then hardly ever choose the same."""
    while True:
        port = random.choice(PORTS)  # noqa: S311 - not a secret
        if port not in taken and is_port_free(port):
            return port


def is_port_free(port: int) -> bool:
    """Say whether a server could listen on the port now."""
    with socket.socket() as sock:
        # As servers do: otherwise a port stays "taken" for a minute after its server ended.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
