"""The wire itself: what a mover sends to PostgreSQL and S3, message by message, told to a tripwire.

PostgreSQL is reached through a relay that runs inside the mover. A struck mover dies with its relay: what the relay
had not passed on was never sent, and what it had received and not passed on was never seen. Of S3 the library's own
events tell: `before-send` just before a request leaves, `response-received` when its answer is here, for every
attempt. So COPY streams and pyiceberg's own requests are calls like any other.

Source: https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr

from tests.fakes import Tripwire
from tiering.settings import Settings
from tiering.stores.objects import S3Objects

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104
_HEAD = struct.Struct("!cI")
_LENGTH = struct.Struct("!I")
_VERB = re.compile(rb"\s*(\w+)")
_COPY = re.compile(rb"\s*COPY\b.*\b(FROM STDIN|TO STDOUT)\b", re.DOTALL)
_CATALOG = re.compile(rb"\biceberg_(?:tables|namespace_properties)\b")


def through_wire(settings: Settings, wire: Tripwire) -> Settings:
    """Put relays in front of the databases; one database stays one."""
    relays: dict[str, SecretStr] = {}
    changed = {}
    for name, label in (("warm_pg_url", "warm"), ("hot_pg_url", "hot")):
        url = getattr(settings, name).get_secret_value()
        if url not in relays:
            parts = urlsplit(url)
            relay = PostgresRelay(parts.hostname or "", parts.port or 5432, label, wire)
            netloc = f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{relay.port}"
            relays[url] = SecretStr(urlunsplit(parts._replace(netloc=netloc)))
        changed[name] = relays[url]
    return settings.model_copy(update=changed)


class PostgresRelay:
    """Listens for one server; ends with the process."""

    def __init__(self, host: str, port: int, name: str, wire: Tripwire) -> None:
        self._target, self._name, self._wire = (host, port), name, wire
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            server = socket.create_connection(self._target)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with server:
                _Session(client, server, self._name, self._wire).run()


class _Session:
    """One connection: messages in both directions, and which call is under way."""

    def __init__(self, client: socket.socket, server: socket.socket, name: str, wire: Tripwire) -> None:
        self._client, self._server, self._name, self._wire = client, server, name, wire
        self._waiting: list[tuple[bytes, Callable[[], None]]] = []
        self._sent = self._received = 0
        self._changes_catalog = False

    def run(self) -> None:
        self._greet()
        down = threading.Thread(target=self._down, daemon=True)
        down.start()
        try:
            reader = _Reader(self._client)
            while message := reader.message():
                self._up(*message)
        finally:
            for end in (self._client, self._server):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            down.join()

    def _greet(self) -> None:
        """Pass on what comes before messages have types: offers of encryption, and the start-up packet."""
        while True:
            head = _exactly(self._client, 4)
            packet = head + _exactly(self._client, _LENGTH.unpack(head)[0] - 4)
            self._server.sendall(packet)
            if _LENGTH.unpack(packet[4:8])[0] not in (_SSL_REQUEST, _GSS_REQUEST):
                return
            self._client.sendall(_exactly(self._server, 1))  # no encryption on loopback: `N`

    def _up(self, kind: bytes, message: bytes) -> None:
        if kind == b"d":
            self._put(message)
            return
        name, until = self._call_of(kind, message)
        if name:
            self._waiting.append((until, self._wire.enter(f"{self._name}.{name}")))
        self._server.sendall(message)

    def _call_of(self, kind: bytes, message: bytes) -> tuple[str, bytes]:
        """Name the call that a message is, and the answers that end it; no name for all others."""
        if kind == b"c":
            return "COPY in done", b"CE"
        if kind != b"Q":
            return "", b""
        text = message[5:]
        found = _VERB.match(text)
        verb = found[1].decode().upper() if found else ""
        if copy := _COPY.match(text):
            self._sent = self._received = 0
            return ("COPY in", b"GE") if copy[1] == b"FROM STDIN" else ("COPY out", b"HE")
        if _CATALOG.search(text):
            self._changes_catalog |= verb != "SELECT"
            return f"catalog {verb}", b"Z"
        if verb in ("COMMIT", "ROLLBACK"):
            changes, self._changes_catalog = self._changes_catalog and verb == "COMMIT", False
            return ("catalog COMMIT", b"Z") if changes else ("", b"")
        return "", b""

    def _put(self, message: bytes) -> None:
        """Pass on one piece of a COPY IN stream: none of it, half of it, all but a byte, all of it."""
        self._sent += 1
        leave = self._wire.enter(f"{self._name}.COPY in {'first' if self._sent == 1 else 'later'} data")
        half = len(message) // 2
        self._server.sendall(message[:half])
        with self._wire.call(f"{self._name}.COPY in part of data"):
            self._server.sendall(message[half:-1])
        self._server.sendall(message[-1:])
        leave()

    def _down(self) -> None:
        with contextlib.suppress(OSError):
            reader = _Reader(self._server)
            while message := reader.message():
                self._answer(*message)
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)

    def _answer(self, kind: bytes, message: bytes) -> None:
        if kind in b"dc":  # of a COPY OUT stream
            self._received += kind == b"d"
            what = "done" if kind == b"c" else "first data" if self._received == 1 else "later data"
            with self._wire.call(f"{self._name}.COPY out {what}"):
                self._client.sendall(message)
            return
        while self._waiting and kind in self._waiting[0][0]:
            self._waiting.pop(0)[1]()
        self._client.sendall(message)


class _Reader:
    """Cuts a stream into messages."""

    def __init__(self, source: socket.socket) -> None:
        self._file = source.makefile("rb", 1 << 16)

    def message(self) -> tuple[bytes, bytes] | None:
        """Read the next one, its type and all of it; None at the end of the stream."""
        head = self._file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return None
        kind, length = _HEAD.unpack(head)
        rest = self._file.read(length - 4)
        return (kind, head + rest) if len(rest) == length - 4 else None


def _exactly(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = source.recv(count - len(data))
        if not more:
            raise ConnectionResetError
        data += more
    return data


# --- S3 ---------------------------------------------------------------------------------------------------------


def wire_s3(settings: Settings, wire: Tripwire) -> None:
    """Tell of every request that this process' client of the store sends, whoever asked for it."""
    objects = S3Objects(
        settings.s3_url, settings.lake_bucket, settings.s3_access_key, settings.s3_secret_key, settings.s3_region
    )
    mine = threading.local()

    def sending(request: Any, **_: Any) -> None:
        mine.leave = wire.enter(f"s3.{request_name(request.method, request.url)}")

    def received(**_: Any) -> None:
        leave, mine.leave = getattr(mine, "leave", None), None
        if leave:
            leave()

    events = objects._client.meta.events
    events.register("before-send.s3", sending)
    events.register("response-received.s3", received)


def request_name(method: str, url: str) -> str:
    """Name the kind of a request: its method, and what its key is of.

    >>> request_name("PUT", "http://h/bucket/iceberg/market_bars/metadata/snap-1-0-2.avro")
    'PUT manifest list'
    """
    parts = urlsplit(url)
    key = parts.path.split("/", 2)[2] if parts.path.count("/") > 1 else ""
    if not key:
        what = "uploads" if "uploads" in parts.query else "objects"
        return f"LIST {what}" if method == "GET" else f"DELETE {what}"
    if key.startswith("charts/"):
        return f"{method} object"
    if key.endswith(".parquet"):
        return f"{method} data"
    if key.endswith(".metadata.json"):
        return f"{method} metadata"
    return f"{method} manifest list" if key.rpartition("/")[2].startswith("snap-") else f"{method} manifest"
