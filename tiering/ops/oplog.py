"""Archive MongoDB's oplog continuously: what a majority has is in the vault within a second or two.

Ranges follow one another without a hole, each `[begins, ends)`; the name of a range says which history (incarnation) it
is of, so that a server that was restored never writes over what was archived before. Whenever archiving begins again,
the last entry archived must still be in the server's oplog, byte for byte: if it is not, the oplog has rolled over or
is another one, and there is a gap. That is told aloud, the archive goes on behind it, and a new full backup is due.

Does not: take that backup, or say when the archive is stale; whoever calls does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile

from pydantic import SecretStr

from tiering.errors import AlreadyExists, CommitConflict, CorruptCopy, StoreUnavailable, TransientError
from tiering.model_backup import BackupState, StoreName
from tiering.ops.backup_mongo import oplog_of, settled_incarnation
from tiering.ops.catalogue import Catalogue
from tiering.stores.mongo_entries import Position, joined, merged, parse, wall_of_raw
from tiering.stores.mongo_oplog import Following, RawEntry
from tiering.stores.mongo_server import RECOVERY, MongoServer

BATCH_SECONDS = 0.5
QUIET_SECONDS = 5.0
RETRY_SECONDS, PATIENCE_SECONDS = 0.5, 1.0
_SIGN_OF_LIFE_BYTES = 300
Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of the oplog that no archive has.

    Attributes:
        source: which server.
        incarnation: which history.
        after: the last position archived before it.
        resumes: where the archive goes on.
        reason: what was found.
    """

    source: str
    incarnation: str
    after: str
    resumes: str
    reason: str


@dataclass(frozen=True, slots=True)
class Archived:
    """How far the archive is, told after every range.

    Attributes:
        source: which server.
        through: the last position in the vault.
        entries: in this range.
        written_at: when the last entry was written, by the server's clock.
        stored_at: when the vault had it.
    """

    source: str
    through: str
    entries: int
    written_at: datetime | None
    stored_at: datetime

    @property
    def behind(self) -> timedelta:
        """Say how long the last entry took from the server to the vault."""
        return self.stored_at - self.written_at if self.written_at else timedelta(0)


@dataclass(frozen=True, slots=True)
class _Archive:
    """How far the archive of one history is, and its last entries."""

    at: Position
    ends: Position
    last: list[bytes]


def stream(
    catalogue: Catalogue,
    url: SecretStr,
    source: str,
    *,
    clock: Clock,
    stop: threading.Event,
    told: Callable[[Archived], None] = lambda _: None,
    on_gap: Callable[[Gap], None] = lambda _: None,
    on_trouble: Callable[[TransientError], None] = lambda _: None,
) -> None:
    """Archive until told to stop; servers that are away are waited for.

    Args:
        catalogue: where it goes.
        url: of the server.
        source: which of the servers it is.
        clock: tells the time.
        stop: ends it, with everything archived that was taken.
        told: after every range.
        on_gap: when entries are lost to the archive: alarm, and take a full backup.
        on_trouble: when server, bucket or lease are not to be had; it is tried again.
    """
    while not stop.is_set():
        try:
            with (
                MongoServer(url, source, PATIENCE_SECONDS) as server,
                catalogue.lease(StoreName.MONGODB, f"{source}.oplog", f"archiver {threading.get_native_id()}", clock()),
            ):
                _Archiver(catalogue, server, source, clock, told, on_gap).run(stop)
        except TransientError as exc:
            on_trouble(exc)
            stop.wait(RETRY_SECONDS)


@dataclass(slots=True)
class _Archiver:
    """One connection's archiving."""

    catalogue: Catalogue
    server: MongoServer
    source: str
    clock: Clock
    told: Callable[[Archived], None]
    on_gap: Callable[[Gap], None]

    def run(self, stop: threading.Event) -> None:
        """Archive until told to stop.

        Raises:
            TransientError: server or bucket went away, or the server begins another history: begin anew.
        """
        incarnation = settled_incarnation(self.server, self.clock()).name
        archived = self._resume(incarnation)
        with Following(self.server, archived.at if archived else self.server.now()) as following:
            waiting: list[RawEntry] = []
            ends = following.through
            if archived is not None:
                waiting, ends = self._overlapping(following, archived, incarnation)
            elif self.catalogue.logs(StoreName.MONGODB, self.source):
                reason = "the server has another history than what is archived: it was restored, or is a new one"
                self.on_gap(Gap(self.source, incarnation, "", str(ends), reason))
            stored_at, is_last = time.monotonic(), False
            while not is_last:
                is_last = stop.is_set()
                try:
                    waiting += following.take(BATCH_SECONDS)
                except TransientError:
                    # The server may be gone for good: what it gave last is all the more precious.
                    if waiting := waiting + following.rest():
                        self._store(incarnation, ends, waiting)
                    raise
                is_quiet = all(_says_nothing(raw) for _, raw in waiting)
                if waiting and (is_last or not is_quiet or time.monotonic() - stored_at > QUIET_SECONDS):
                    ends = self._store(incarnation, ends, waiting)
                    waiting, stored_at = [], time.monotonic()

    def _resume(self, incarnation: str) -> _Archive | None:
        """Find how far this history is archived, by ranges or else by the newest backup, and the last entries."""
        ranges = self.catalogue.logs(StoreName.MONGODB, self.source, incarnation)
        if not ranges:
            return self._resume_backup(incarnation)
        newest = max(ranges, key=lambda one: Position.parse(one.ends))
        entries = merged([self.catalogue.vault.read(newest.stored.name)])
        if not entries:
            raise CorruptCopy("read", newest.stored.name, "the last range of the archive is empty")
        at = entries[-1][0]
        return _Archive(at, Position.parse(newest.ends), [raw for position, raw in entries if position == at])

    def _resume_backup(self, incarnation: str) -> _Archive | None:
        entries = self.catalogue.entries(StoreName.MONGODB, self.source)
        usable = [
            e.backup for e in entries if e.backup.incarnation == incarnation and e.state is not BackupState.FAILED
        ]
        if not usable:
            return None
        ends = Position.parse(usable[-1].ends)
        window = merged([b"".join(self.catalogue.vault.fetch(part) for part in oplog_of(usable[-1]))])
        at = window[-1][0] if window else ends
        return _Archive(at, ends.following, [raw for position, raw in window if position == at])

    def _overlapping(
        self, following: Following, archived: _Archive, incarnation: str
    ) -> tuple[list[RawEntry], Position]:
        """Demand that the last entry archived is still there; return what follows it, and from where."""
        found: list[RawEntry] = []
        while not found and not following.has_all:
            found = following.take(0.1)
        there = [raw for position, raw in found if position == archived.at]
        if there == archived.last and (there or self.server.oldest() <= archived.at):
            return [one for one in found if one[0] > archived.at], archived.ends
        resumes = found[0][0] if found else self.server.now()
        has_last = bool(found) and found[0][0] == archived.at
        reason = "the oplog has another entry there" if has_last else "the oplog no longer reaches back to it"
        self.on_gap(Gap(self.source, incarnation, str(archived.at), str(resumes), reason))
        return found, max(resumes, archived.ends)

    def _store(self, incarnation: str, ends: Position, entries: list[RawEntry]) -> Position:
        """Put entries into the vault; return where the archive ends then."""
        late = [one for one in entries if one[0] < ends]
        entries = [one for one in entries if one[0] >= ends]
        if late:
            # They belong into a range that is stored already; whoever reads both puts them in their place.
            self._put(incarnation, late[0][0], late[-1][0].following, late)
        if not entries:
            return ends
        kept = list(takewhile(lambda one: not self._is_other_history(one[1], incarnation), entries))
        if kept:
            ends = self._put(incarnation, ends, kept[-1][0].following, kept)
        if len(kept) < len(entries):
            raise StoreUnavailable("archive", self.source, "the server is being restored", "Its new history follows.")
        return ends

    def _is_other_history(self, raw: bytes, incarnation: str) -> bool:
        if RECOVERY.encode() not in raw or parse(raw).database != RECOVERY:
            return False
        found = self.server.incarnation()
        return found is None or found.is_restoring or found.name != incarnation

    def _put(self, incarnation: str, begins: Position, ends: Position, entries: list[RawEntry]) -> Position:
        data = joined(entries)
        try:
            self.catalogue.put_log(StoreName.MONGODB, self.source, incarnation, 0, str(begins), str(ends), data)
        except AlreadyExists as exc:
            hint = "Two archivers of one server? Only one holds the lease."
            raise CommitConflict("archive", self.source, f"range {begins} is there already", hint) from exc
        wall = wall_of_raw(entries[-1][1])
        self.told(Archived(self.source, str(ends), len(entries), wall, self.clock()))
        return ends


def _says_nothing(raw: bytes) -> bool:
    """Say whether an entry is a mere sign of life, which can wait."""
    return len(raw) < _SIGN_OF_LIFE_BYTES and parse(raw).kind == "n"
