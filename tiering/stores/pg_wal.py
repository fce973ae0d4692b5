"""Follow a PostgreSQL server's log over a physical replication slot, and read what segment files say of themselves.

Does not: store anything; `ops/wal.py` does, and confirms to the server only what the bucket has.

Why a slot: the server keeps every byte that was not confirmed, so a receiver that was away goes on where it ended.
"""

from __future__ import annotations

import re
import select
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import psycopg2
from psycopg2.extensions import parse_dsn
from psycopg2.extras import REPLICATION_PHYSICAL, PhysicalReplicationConnection
from pydantic import SecretStr

from tiering.errors import CorruptCopy, NotFound, PermanentError
from tiering.stores.pg_tools import lsn_text, parse_lsn
from tiering.stores.postgres import execute, fetch, fetch_one, mapped, translate

SEGMENT_NAME = re.compile(r"[0-9A-F]{24}")
HISTORY_NAME = re.compile(r"([0-9A-F]{8})\.history")
_LONG_HEADER = struct.Struct("<HHIQI4xQII")  # magic, info, timeline, address, rest, system id, segment, block
_LONG = 0x0002
_PLACE = (("host", ""), ("hostaddr", ""), ("port", "5432"))
_OPTIONS = "-c statement_timeout=0 -c TimeZone=UTC"


@dataclass(frozen=True, slots=True)
class ServerPosition:
    """Which history a server is in, and how far its log is written."""

    system_id: str
    timeline: int
    flushed: int


@dataclass(frozen=True, slots=True)
class Slot:
    """The state of a slot: `restart` is what the server keeps the log from; lost, when it did not."""

    restart: int
    is_lost: bool


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What the first page of a segment file says."""

    system_id: str
    timeline: int
    begins: int
    segment_bytes: int


class WalStream:
    """One replication connection. Not to be shared between threads.

    Args:
        url: of the server; its user may replicate.
        application_name: by which synchronous_standby_names knows it.
    """

    def __init__(self, url: SecretStr, application_name: str) -> None:
        self._url = url
        with mapped("stream log", application_name):
            dsn = _dsn(url)
            self._connection = psycopg2.connect(
                **(dsn | {"application_name": application_name, "connect_timeout": 10, "options": ""}),
                connection_factory=PhysicalReplicationConnection,
            )
        self._cursor = self._connection.cursor()
        self.position = 0
        self.server_end = 0

    def identify(self) -> ServerPosition:
        """Ask the server who and where it is."""
        with mapped("stream log", "identify"):
            self._cursor.execute("IDENTIFY_SYSTEM")
            system_id, timeline, flushed, _ = self._cursor.fetchall()[0]
        return ServerPosition(str(system_id), int(timeline), parse_lsn(flushed))

    def history(self, timeline: int) -> str:
        """Read a timeline's history file."""
        with mapped("stream log", f"history of timeline {timeline}"):
            self._cursor.execute(f"TIMELINE_HISTORY {int(timeline)}")
            content = self._cursor.fetchall()[0][1]
        return bytes(content).decode() if isinstance(content, bytes | memoryview) else str(content)

    def start(self, slot: str | None, position: int, timeline: int) -> None:
        """Begin to stream from a position of a timeline.

        Raises:
            NotFound: the server does not have that log any more.
            CommitConflict: somebody else uses the slot.
        """
        try:
            self._cursor.start_replication(
                slot_name=slot, slot_type=REPLICATION_PHYSICAL, start_lsn=lsn_text(position), timeline=timeline,
                decode=False, status_interval=10,
            )  # fmt: skip
        except psycopg2.Error as exc:
            raise _start_error(exc, slot, position) from exc
        self.position = position

    def read(self, patience_seconds: float) -> bytes:
        """Return the next bytes of the log, from `position` on; empty when none came in time.

        Raises:
            NotFound: the server removed the log that comes next.
            StoreUnavailable: the connection broke.
        """
        try:
            message = self._cursor.read_message()
            if message is None and patience_seconds:
                select.select([self._connection], [], [], patience_seconds)
                message = self._cursor.read_message()
        except psycopg2.Error as exc:
            raise _start_error(exc, None, self.position) from exc
        if message is None:
            self.server_end = max(self.server_end, self._cursor.wal_end)
            return b""
        if message.data_start != self.position:
            hint = "Start the stream again: it goes on from what is stored."
            cause = f"the server sent {lsn_text(message.data_start)} after {lsn_text(self.position)}"
            raise CorruptCopy("stream log", "server", cause, hint)
        payload = bytes(message.payload)
        self.position += len(payload)
        self.server_end = max(self.server_end, message.wal_end)
        return payload

    def confirm(self, stored: int) -> None:
        """Tell the server up to where the log is safe: it may forget what is before, and let commits go on."""
        with mapped("stream log", "confirm"):
            # Never as applied: with remote_apply commits would then wait for what a bucket cannot do.
            self._cursor.send_feedback(write_lsn=stored, flush_lsn=stored, apply_lsn=0, force=True)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class WalServer:
    """The same server over plain SQL: slots, switches, marks."""

    def __init__(self, url: SecretStr) -> None:
        self._url = url

    @contextmanager
    def connected(self, what: str) -> Iterator[Any]:
        """Open a connection in autocommit."""
        with mapped(what, "server"):
            options = {"application_name": "tiering log", "connect_timeout": 10, "options": _OPTIONS}
            connection = psycopg2.connect(**(_dsn(self._url) | options))
            try:
                connection.autocommit = True
                yield connection
            finally:
                connection.close()

    def slot(self, name: str) -> Slot | None:
        """Look at a slot; None: there is none."""
        with self.connected("look at slot") as connection:
            row = fetch_one(
                connection,
                "SELECT restart_lsn::text, wal_status FROM pg_replication_slots WHERE slot_name = %s",
                (name,),
            )
        if row is None:
            return None
        return Slot(parse_lsn(row[0]) if row[0] else 0, row[0] is None or row[1] == "lost")

    def create_slot(self, name: str) -> Slot:
        """Make a slot that keeps the log from now on."""
        with self.connected("create slot") as connection:
            execute(connection, "SELECT pg_create_physical_replication_slot(%s, true)", (name,))
        found = self.slot(name)
        if found is None:
            raise NotFound("create slot", name, "it vanished", "Who drops replication slots here?")
        return found

    def drop_slot(self, name: str) -> None:
        """Drop a slot; the server then keeps no log for it."""
        with self.connected("drop slot") as connection:
            execute(
                connection,
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
                (name,),
            )

    def segment_bytes(self) -> int:
        """Return the size of a segment file."""
        with self.connected("look at log") as connection:
            row = fetch_one(connection, "SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'")
        assert row is not None
        return int(row[0])

    def waits_for(self, application_name: str) -> bool:
        """Say whether commits wait for a receiver of this name."""
        with self.connected("look at settings") as connection:
            row = fetch_one(connection, "SELECT current_setting('synchronous_standby_names')")
        assert row is not None
        return bool(re.search(rf"(?<![\w]){re.escape(application_name)}(?![\w])|\*", str(row[0])))

    def flushed(self) -> int:
        """Return up to where the server's log is on its disk."""
        with self.connected("look at log") as connection:
            row = fetch_one(connection, "SELECT pg_current_wal_flush_lsn()::text")
        return parse_lsn(row[0]) if row else 0

    def now(self) -> datetime:
        """Return what the server's clock says: the one that commits are stamped by."""
        with self.connected("look at clock") as connection:
            row = fetch_one(connection, "SELECT clock_timestamp()")
        assert row is not None
        return cast(datetime, row[0])

    def switch(self) -> int:
        """Let the server begin a new segment; return where the old one ended."""
        with self.connected("switch log") as connection:
            row = fetch_one(connection, "SELECT pg_switch_wal()::text")
        return parse_lsn(row[0]) if row else 0

    def mark(self) -> None:
        """Write an empty commit into the log, so that an idle server's archive proves up to when nothing happened."""
        with self.connected("mark log") as connection:
            execute(connection, "SET synchronous_commit = off")
            execute(connection, "SELECT pg_logical_emit_message(true, 'tiering', '')")

    def restore_point(self, name: str) -> int:
        """Name this very moment; return its position."""
        with self.connected("create restore point") as connection:
            row = fetch_one(connection, "SELECT pg_create_restore_point(%s)::text", (name,))
        return parse_lsn(row[0]) if row else 0

    def facts(self) -> dict[str, Any]:
        """Say what a restore of this server has to know.

        Raises:
            PermanentError: it has tablespaces, which one stream cannot carry.
        """
        with self.connected("look at server") as connection:
            places = fetch(connection, "SELECT spcname FROM pg_tablespace WHERE oid NOT IN (1663, 1664) ORDER BY 1")
            if places:
                names = ", ".join(str(name) for (name,) in places)
                hint = "Move their tables to pg_default: ALTER DATABASE … SET TABLESPACE pg_default."
                raise PermanentError("back up", "PostgreSQL", f"it has tablespaces of its own: {names}", hint)
            row = fetch_one(
                connection,
                """SELECT current_setting('server_version_num')::int,
                          (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'),
                          current_setting('data_checksums'), current_setting('summarize_wal'),
                          (SELECT rolname FROM pg_roles WHERE oid = 10),
                          current_setting('shared_preload_libraries')""",
            )
            assert row is not None
            databases = fetch(
                connection, "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1"
            )
        keys = ("server_version", "wal_segment_bytes", "data_checksums", "summarize_wal", "superuser", "preload")
        found = dict(zip(keys, row, strict=True)) | {"databases": [name for (name,) in databases]}
        found["extensions"] = {name: self._extensions(name) for (name,) in databases}
        return found

    def _extensions(self, database: str) -> dict[str, str]:
        with mapped("look at extensions", database):
            connection = psycopg2.connect(
                **(_dsn(self._url) | {"dbname": database, "connect_timeout": 10, "options": _OPTIONS})
            )
            try:
                rows = fetch(connection, "SELECT extname, extversion FROM pg_extension ORDER BY 1")
            finally:
                connection.close()
        return {str(name): str(version) for name, version in rows}


def sources_of(hot: SecretStr, warm: SecretStr) -> dict[str, SecretStr]:
    """Name the servers behind the two URLs: one, "main", if they lead to the same host and port."""
    places = [tuple(_dsn(url).get(key, default) for key, default in _PLACE) for url in (hot, warm)]
    return {"main": hot} if places[0] == places[1] else {"hot": hot, "warm": warm}


def segment_name(timeline: int, begins: int, segment_bytes: int) -> str:
    """Name a segment file, as PostgreSQL does."""
    per_id = (1 << 32) // segment_bytes
    number = begins // segment_bytes
    return f"{timeline:08X}{number // per_id:08X}{number % per_id:08X}"


def parse_segment_name(name: str, segment_bytes: int) -> tuple[int, int]:
    """Read timeline and first position out of a segment file's name."""
    timeline, high, low = (int(name[at : at + 8], 16) for at in (0, 8, 16))
    return timeline, (high << 32) + low * segment_bytes


def read_header(data: bytes, subject: str) -> SegmentHeader:
    """Read the first page header of a segment.

    Raises:
        CorruptCopy: it is none.
    """
    if len(data) >= _LONG_HEADER.size:
        _, info, timeline, begins, _, system_id, segment_bytes, _ = _LONG_HEADER.unpack_from(data)
        if info & _LONG and segment_bytes and begins % segment_bytes == 0:
            return SegmentHeader(str(system_id), timeline, begins, segment_bytes)
    hint = "It was not stored. Is it a file of pg_wal?"
    raise CorruptCopy("read", subject, "it does not begin like a segment of the log", hint)


def read_system_id(data_directory: Path) -> str:
    """Read which server a data directory belongs to.

    Raises:
        NotFound: it is no data directory.
    """
    try:
        with (data_directory / "global" / "pg_control").open("rb") as file:
            return str(int.from_bytes(file.read(8), "little"))
    except FileNotFoundError:
        hint = "archive_command runs in the data directory, and %p begins there: pass it as it is."
        raise NotFound("read", str(data_directory), "it has no global/pg_control", hint) from None


def read_segment_file(path: Path) -> tuple[SegmentHeader, bytes]:
    """Read a whole segment file and hold it to its name.

    Raises:
        CorruptCopy: name, header and size do not belong together.
        NotFound: no such file.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        hint = "Give the path as PostgreSQL writes it for %p."
        raise NotFound("read", str(path), "no such file", hint) from None
    header = read_header(data, str(path))
    expected = segment_name(header.timeline, header.begins, header.segment_bytes)
    # After a promotion the first segment of a timeline begins with pages of the one before.
    if len(data) != header.segment_bytes or expected[8:] != path.name[8:] or header.timeline > int(path.name[:8], 16):
        cause = f"its header says {expected} of {header.segment_bytes} bytes, and it has {len(data)}"
        raise CorruptCopy("read", str(path), cause, "It was not stored.")
    return header, data


def _dsn(url: SecretStr) -> dict[str, Any]:
    try:
        return dict(parse_dsn(url.get_secret_value()))
    except psycopg2.Error:  # its text quotes the URL, password and all
        hint = "Write postgresql://user:password@host:port/database."
        raise PermanentError("read settings", "PostgreSQL URL", "it is malformed", hint) from None


def _start_error(exc: psycopg2.Error, slot: str | None, position: int) -> Exception:
    said = " ".join(str(exc).split())
    lost = ("has already been removed", "can no longer", "cannot read from replication slot", "is ahead of the WAL",
            "not in this server's history", "invalidated")  # fmt: skip
    if any(words in said for words in lost):
        hint = "A new full backup is needed: what is missing cannot be brought back."
        return NotFound("stream log", lsn_text(position), said, hint)
    return translate(exc, "stream log", slot or lsn_text(position))
