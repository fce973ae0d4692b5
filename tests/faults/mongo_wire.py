"""The wire to MongoDB: a relay inside the mover that tells a tripwire of every command and its answer.

A struck mover dies with its relay, as with that of PostgreSQL (wire.py): what was not passed on was never sent, and
an answer that was not passed on was never seen.

Source: https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

import bson
from pydantic import SecretStr

from tests.fakes import Tripwire
from tiering.settings import Settings

_HEAD = struct.Struct("<iiii")
_MESSAGE = 2013
_EFFECTS = {
    "find", "getMore", "aggregate", "insert", "delete", "update", "commitTransaction", "drop", "renameCollection",
    "createIndexes", "listIndexes", "listCollections",
}  # fmt: skip
"""Commands that are calls; not the driver's talk with the server, nor an abort, after which nothing has happened."""


def mongo_through_wire(settings: Settings, wire: Tripwire) -> Settings:
    """Put relays in front of the MongoDB servers; one database stays one.

    Why directConnection: the driver would ask the server for its own address and go there, past the relay.
    """
    relays: dict[str, SecretStr] = {}
    changed = {}
    for name in ("hot_mongo_url", "warm_mongo_url"):
        secret = getattr(settings, name)
        if secret is None:
            continue
        url = secret.get_secret_value()
        if url not in relays:
            parts = urlsplit(url)
            relay = MongoRelay(parts.hostname or "", parts.port or 27017, wire)
            relays[url] = SecretStr(direct(url, relay.port))
        changed[name] = relays[url]
    return settings.model_copy(update=changed)


def direct(url: str, port: int) -> str:
    """Point a URL to a port of this machine, and nowhere else."""
    parts = urlsplit(url)
    login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    query = "&".join(filter(None, (parts.query, "directConnection=true")))
    return urlunsplit(parts._replace(netloc=f"{login}127.0.0.1:{port}", query=query))


class MongoRelay:
    """Listens for one server; ends with the process."""

    def __init__(self, host: str, port: int, wire: Tripwire) -> None:
        self._target, self._wire = (host, port), wire
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self._target) as server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _Session(client, server, self._wire).run()


class _Session:
    """One connection: whole messages in both directions, and which calls wait for an answer."""

    def __init__(self, client: socket.socket, server: socket.socket, wire: Tripwire) -> None:
        self._client, self._server, self._wire = client, server, wire
        self._waiting: dict[int, Callable[[], None]] = {}

    def run(self) -> None:
        down = threading.Thread(target=self._down, daemon=True)
        down.start()
        try:
            with self._client.makefile("rb") as reader:
                while message := _read(reader):
                    self._up(message)
        finally:
            for end in (self._client, self._server):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            down.join()

    def _up(self, message: bytes) -> None:
        name = _name(message)
        if name:
            self._waiting[_HEAD.unpack_from(message)[1]] = self._wire.enter(f"mongo.{name}")
        if name.startswith("insert"):
            half = len(message) // 2
            self._server.sendall(message[:half])
            with self._wire.call(f"mongo.{name}, half sent"):
                self._server.sendall(message[half:])
        else:
            self._server.sendall(message)

    def _down(self) -> None:
        with contextlib.suppress(OSError), self._server.makefile("rb") as reader:
            while message := _read(reader):
                leave = self._waiting.pop(_HEAD.unpack_from(message)[2], None)
                if leave:
                    leave()
                self._client.sendall(message)
        with contextlib.suppress(OSError):  # also when a killed server reset the connection: the client would wait
            self._client.shutdown(socket.SHUT_RDWR)


def _read(reader: socket.SocketIO) -> bytes:
    head = reader.read(_HEAD.size) or b""
    if len(head) < _HEAD.size:
        return b""
    return head + (reader.read(_HEAD.unpack(head)[0] - _HEAD.size) or b"")


def _name(message: bytes) -> str:
    """Name a message's command and what it is of; empty if it is no call."""
    if _HEAD.unpack_from(message)[3] != _MESSAGE or message[20] != 0:
        return ""
    size = int.from_bytes(message[21:25], "little")
    command = bson.decode(message[21 : 21 + size])
    verb = next(iter(command))
    if verb not in _EFFECTS:
        return ""
    of = command.get("collection", "") if verb == "getMore" else command[verb]
    collection = next((name for name in ("warm", "trash") if isinstance(of, str) and of.startswith(name)), "hot")
    return f"{verb} {collection}" if isinstance(of, str) and verb != "listCollections" else verb
