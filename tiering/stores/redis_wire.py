"""Redis as backups see it: who serves which slots, and each master's snapshot as its replicas would get it.

A snapshot comes over the replication protocol, so the server may be anywhere: nothing is read from its disk.

Does not: load a snapshot into a server; that takes a server of its own (`infra/local/scratch_redis.py`).
"""

from __future__ import annotations

import io
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, cast
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tiering import errors
from tiering.stores.beats import redis_mapped

SLOTS = 16384
TIMEOUT_SECONDS = 60.0
BLOCK = 1 << 16
HEAD_BYTES = 1 << 16
RESIZE_DB, SELECT_DB, AUX, FUNCTION, END = 0xFB, 0xFE, 0xFA, 0xF5, 0xFF
Slots = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Master:
    """One master of a cluster, or the whole of a server that is none.

    Attributes:
        node_id: its name in the cluster; its run id outside of one.
        host, port: where it is.
        config_epoch: of its claim to its slots.
        slots: inclusive ranges; empty outside of a cluster.
    """

    node_id: str
    host: str
    port: int
    config_epoch: int
    slots: Slots


@dataclass(frozen=True, slots=True)
class Topology:
    """Who serves what.

    Attributes:
        is_cluster: whether there are slots at all.
        epoch: the cluster's current one.
        masters: those with slots, by their first.
        moving: slots on their way between masters, in Redis's own words.
        version: of the server.
    """

    is_cluster: bool
    epoch: int
    masters: tuple[Master, ...]
    moving: tuple[str, ...]
    version: str

    @property
    def slots_served(self) -> int:
        """Count the slots that have a master."""
        return sum(end - begin + 1 for master in self.masters for begin, end in master.slots)


def look(url: SecretStr) -> Topology:
    """Ask a server, and in a cluster every master, who serves what.

    Raises:
        StoreUnavailable: a master does not answer, or calls itself not well.
        AccessDenied: the password is wrong.
    """
    with redis_mapped("look at", "Redis"), closing(_connect(url)) as client:
        info = client.info("server") | client.info("cluster")
        version = str(info["redis_version"])
        if not int(info.get("cluster_enabled", 0)):
            parts = urlsplit(url.get_secret_value())
            only = Master(str(info["run_id"]), parts.hostname or "127.0.0.1", parts.port or 6379, 0, ())
            return Topology(False, 0, (only,), (), version)
        masters = _masters(str(client.execute_command("CLUSTER NODES")))
        moving: list[str] = []
        epochs = set()
        for master in masters:
            with closing(_connect(at(url, master))) as node:
                mine = next(line for line in _lines(node.execute_command("CLUSTER NODES")) if "myself" in line)
                moving += re.findall(r"\[[^\]]*\]", mine)
                epochs.add(int(_info(node)["cluster_current_epoch"]))
        return Topology(True, max(epochs), masters, tuple(moving), version)


def at(url: SecretStr, master: Master) -> SecretStr:
    """Return the URL of one master, with the user and password of the cluster's."""
    parts = urlsplit(url.get_secret_value())
    login, at_sign, _ = parts.netloc.rpartition("@")
    host = f"[{master.host}]" if ":" in master.host else master.host
    return SecretStr(parts._replace(netloc=f"{login}{at_sign}{host}:{master.port}").geturl())


@dataclass
class Snapshot:
    """What a snapshot said of itself while it was read; complete once its stream has ended.

    Attributes:
        replication_id: of the history its offset counts in.
        offset: how far the master was.
        keys: that it holds, by its own count.
        expiring: how many of them have a time to live.
    """

    replication_id: str
    offset: int
    keys: int = 0
    expiring: int = 0


@contextmanager
def snapshot(url: SecretStr, subject: str) -> Iterator[tuple[Snapshot, IO[bytes]]]:
    """Have a master make a snapshot and send it; reading the stream to its end checks that all of it came.

    Raises:
        StoreUnavailable: the master refuses, breaks off, or does not send for a minute.
        AccessDenied: the user may not replicate.
    """
    parts = urlsplit(url.get_secret_value())
    try:
        with socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 6379), TIMEOUT_SECONDS) as wire:
            if parts.scheme == "rediss":
                raise errors.PermanentError(
                    "copy", subject, "snapshots over TLS are not taken yet", "Reach it through a local TLS tunnel."
                )
            file = wire.makefile("rb")
            _log_in(wire, file, parts.username, parts.password, subject)
            _call(wire, file, subject, b"REPLCONF", b"capa", b"eof")
            with suppress(errors.StoreUnavailable):  # before 7.0 there is none, and the snapshot comes all the same
                _call(wire, file, subject, b"REPLCONF", b"rdb-only", b"1")
            answer = _call(wire, file, subject, b"PSYNC", b"?", b"-1")
            found = re.fullmatch(r"FULLRESYNC (\w+) (-?\d+)", answer)
            if not found:
                raise errors.StoreUnavailable("copy", subject, f"it answered {answer!r} to a replica")
            about = Snapshot(found[1], int(found[2]))
            yield about, cast(IO[bytes], io.BufferedReader(_Rdb(file, about, subject), BLOCK))
    except OSError as exc:
        raise errors.StoreUnavailable("copy", subject, str(exc) or type(exc).__name__, "Is Redis up?") from exc


class _Rdb(io.RawIOBase):
    """The snapshot in a replication stream: of announced length, or up to a mark of forty bytes."""

    def __init__(self, file: IO[bytes], about: Snapshot, subject: str) -> None:
        super().__init__()
        self._file, self._about, self._subject = file, about, subject
        line = file.readline()
        while line == b"\n":  # the master is still writing its snapshot, and says that it lives
            line = file.readline()
        self._mark = line[5:].strip() if line.startswith(b"$EOF:") else b""
        if not line.startswith(b"$"):
            raise self._broken(f"it sent {line[:40]!r} for a snapshot")
        self._left = -1 if self._mark else int(line[1:])
        self._held = b""
        self._head = bytearray()
        self._is_over = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._is_over:
            return 0
        block = self._marked() if self._mark else self._counted(len(buffer))
        if len(block) > len(buffer):
            block, self._held = block[: len(buffer)], block[len(buffer) :] + self._held
        if len(self._head) < HEAD_BYTES:
            self._head += block[: HEAD_BYTES - len(self._head)]
        if not block:
            self._is_over = True
            self._about.keys, self._about.expiring = _sizes(bytes(self._head), self._subject)
        buffer[: len(block)] = block
        return len(block)

    def _counted(self, wanted: int) -> bytes:
        block = self._file.read1(min(wanted, self._left)) if self._left else b""  # type: ignore[attr-defined]
        if self._left and not block:
            raise self._broken(f"{self._left} bytes of the snapshot did not come")
        self._left -= len(block)
        return cast(bytes, block)

    def _marked(self) -> bytes:
        """Hand out all but what may be the beginning of the mark at the end."""
        while self._mark and self._left:
            if self._held.endswith(self._mark):
                block, self._held, self._left = self._held[: -len(self._mark)], b"", 0
                return block
            if len(self._held) > len(self._mark):
                keep = len(self._held) - len(self._mark)
                block, self._held = self._held[:keep], self._held[keep:]
                return block
            more = self._file.read1(BLOCK)  # type: ignore[attr-defined]
            if not more:
                raise self._broken("it broke off before the end of the snapshot")
            self._held += more
        block, self._held = self._held, b""
        return block

    def _broken(self, cause: str) -> errors.StoreUnavailable:
        return errors.StoreUnavailable("copy", self._subject, cause, "Try again: another snapshot will be made.")


def _sizes(head: bytes, subject: str) -> tuple[int, int]:
    """Read the counts of keys and of expiring keys out of the beginning of a snapshot.

    Source: the RDB format's opcodes AUX, FUNCTION2, SELECTDB, RESIZEDB. An empty database has none of the last two.
    """
    if not head.startswith(b"REDIS"):
        raise errors.CorruptCopy("copy", subject, "what it sent is no snapshot")
    reader = io.BytesIO(head[9:])
    while True:
        code = reader.read(1)
        if code == bytes([AUX]):
            _text(reader)
            _text(reader)
        elif code == bytes([FUNCTION]):
            _text(reader)
        elif code == bytes([SELECT_DB]):
            _length(reader)
        elif code == bytes([RESIZE_DB]):
            return _length(reader)[0], _length(reader)[0]
        elif code == bytes([END]):
            return 0, 0
        else:
            raise errors.CorruptCopy("copy", subject, "its snapshot does not say how many keys it holds")


def _length(reader: IO[bytes]) -> tuple[int, bool]:
    first = reader.read(1)[0]
    kind = first >> 6
    if kind == 0:
        return first & 63, False
    if kind == 1:
        return (first & 63) << 8 | reader.read(1)[0], False
    if kind == 3:
        return first & 63, True
    return int(struct.unpack(">Q", reader.read(8))[0] if first & 1 else struct.unpack(">I", reader.read(4))[0]), False


def _text(reader: IO[bytes]) -> None:
    length, is_special = _length(reader)
    if not is_special:
        reader.read(length)
    elif length < 3:  # an integer of 1, 2 or 4 bytes
        reader.read(1 << length)
    else:  # compressed
        packed, _ = _length(reader)
        _length(reader)
        reader.read(packed)


def _log_in(wire: socket.socket, file: IO[bytes], user: str | None, password: str | None, subject: str) -> None:
    if not password:
        return
    words = [unquote(word).encode() for word in ([user] if user else []) + [password]]
    try:
        _call(wire, file, subject, b"AUTH", *words)
    except errors.StoreUnavailable as exc:
        raise errors.AccessDenied("copy", subject, exc.cause, "Check the password in TIERING_REDIS_URL.") from None


def _call(wire: socket.socket, file: IO[bytes], subject: str, *words: bytes) -> str:
    wire.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
    line = file.readline()
    while line == b"\n":
        line = file.readline()
    text = line.decode(errors="replace").strip()
    if text.startswith("-NOPERM") or text.startswith("-NOAUTH"):
        raise errors.AccessDenied("copy", subject, text[1:], "Give the user the rights of a replica: +psync +replconf.")
    if not text.startswith("+"):
        cause = text[1:] if text else "it hung up"
        raise errors.StoreUnavailable("copy", subject, cause, "Is it a master, and not loading?")
    return text[1:]


def _masters(text: str) -> tuple[Master, ...]:
    found = []
    for line in _lines(text):
        words = line.split()
        slots = tuple(_span(word) for word in words[8:] if not word.startswith("["))
        if "master" in words[2] and slots:
            if "fail" in words[2].split(","):
                raise errors.StoreUnavailable(
                    "look at", "Redis", f"master {words[0]} is down", "Wait for its replica to take over."
                )
            host, _, port = words[1].partition("@")[0].rpartition(":")
            found.append(Master(words[0], host.strip("[]"), int(port), int(words[6]), slots))
    return tuple(sorted(found, key=lambda master: master.slots))


def _span(word: str) -> tuple[int, int]:
    begin, _, end = word.partition("-")
    return int(begin), int(end or begin)


def _lines(text: object) -> list[str]:
    return str(text).strip().splitlines()


def _info(client: Any) -> dict[str, str]:
    return dict(line.split(":", 1) for line in str(client.execute_command("CLUSTER INFO")).split())


def _connect(url: SecretStr) -> Any:
    # Retries by the driver would hide a master that goes away in the middle.
    client = Redis.from_url(
        url.get_secret_value(), decode_responses=True, socket_timeout=10, retry=Retry(NoBackoff(), 0)
    )
    for command in ("CLUSTER NODES", "CLUSTER INFO"):
        client.set_response_callback(command, str)
    return client
