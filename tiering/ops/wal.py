"""The log of PostgreSQL in the vault: streamed as it is written, pushed by archive_command, merged, and looked after.

A stretch of log is stored as `log/postgresql/<source>/<system id>/<timeline>/<begins>-<ends>`, never across a segment;
a timeline's history file as `history/postgresql/<source>/<system id>/<timeline>`. Stretches may overlap: bytes of one
timeline at one position are always the same.

The server is told that log is safe only after the bucket has it: so after any crash of either side the stream goes on
where the bucket's log ends, and with the receiver's name in synchronous_standby_names no acknowledged commit is lost.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from tiering.errors import AlreadyExists, NotFound, PermanentError, TieringError, TransientError
from tiering.ops.catalogue import Catalogue
from tiering.ops.wal_archive import STORE, LogArchive, store_history
from tiering.plan import recovery
from tiering.stores.pg_tools import lsn_text
from tiering.stores.pg_wal import (
    HISTORY_NAME,
    SEGMENT_NAME,
    ServerPosition,
    WalServer,
    WalStream,
    read_segment_file,
    read_system_id,
)

log = logging.getLogger(__name__)

SLOT = "tiering"
APPLICATION_NAME = "tiering"
BATCH_BYTES = 1 << 20
BATCH_SECONDS = 0.2
MARK_SECONDS = 30.0
_PUTS = 4
_WAITING_MAX = 12
_CONFIRM_SECONDS = 5.0
_RETRY_SECONDS = 0.5

Tell = Callable[[str], None]
"""Told, in a sentence, of what a person should know."""


@dataclass
class Progress:
    """How far a receiver is; positions are numbers."""

    timeline: int = 0
    received: int = 0
    stored: int = 0
    server: int = 0
    objects: int = 0
    problem: str = ""

    @property
    def behind_bytes(self) -> int:
        """Count what the server has and the bucket does not."""
        return max(0, self.server - self.stored)

    @property
    def stored_lsn(self) -> str:
        """Return up to where the log is stored, in PostgreSQL's words."""
        return lsn_text(self.stored)

    def __str__(self) -> str:
        line = f"stored {self.stored_lsn} on timeline {self.timeline}, {self.behind_bytes} bytes behind"
        return f"{line}; {self.problem}" if self.problem else line


class Receiver:
    """Stream a server's log into the vault.

    Args:
        catalogue: where it goes.
        url: of the server; its user may replicate and read pg_replication_slots.
        source: which of the servers it is, e.g. "main".
        slot: of the server; made when missing.
        application_name: by which synchronous_standby_names knows it.
        tell: told of gaps and of reconnections.
        mark_seconds: how often an empty commit proves that nothing happened meanwhile; 0: never.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        url: SecretStr,
        source: str,
        slot: str = SLOT,
        application_name: str = APPLICATION_NAME,
        tell: Tell = log.warning,
        mark_seconds: float = MARK_SECONDS,
    ) -> None:
        self._catalogue = catalogue
        self._url = url
        self._server = WalServer(url)
        self._source = source
        self._slot = slot
        self._name = application_name
        self._tell = tell
        self._mark_seconds = mark_seconds
        self._is_gap_accepted = False
        self.progress = Progress()
        self.incarnation = ""

    def run(self, stop: threading.Event) -> None:
        """Stream until told to stop; what was received is then stored first.

        Connects again after every interruption, without end. A gap that the server cannot fill is told, and the
        stream goes on behind it.

        Raises:
            PermanentError: this server's log does not continue what is stored, or its credentials are refused.
        """
        while not stop.is_set():
            try:
                self._stream(stop)
            except TransientError as exc:
                self.progress.problem = str(exc)
                self._tell(f"{self._source}: the log stream was interrupted, and is tried again: {exc}")
                stop.wait(_RETRY_SECONDS)
            except NotFound as exc:
                self.progress.problem = str(exc)
                self._tell(f"{self._source}: GAP in the log; a new full backup is needed: {exc}")
                self._is_gap_accepted = True
                stop.wait(_RETRY_SECONDS)

    def _stream(self, stop: threading.Event) -> None:
        stream = WalStream(self._url, self._name)
        try:
            here = stream.identify()
            self.incarnation = here.system_id
            for timeline, begins, ends in self._todo(stream, here):
                stream.start(self._slot, begins, timeline)
                self.progress.timeline, self.progress.problem = timeline, ""
                self._pump(stream, timeline, begins, ends, stop)
                if stop.is_set():
                    return
                # The stream of a timeline that is over ends the connection's copy mode: begin with a new one.
                stream.close()
                stream = WalStream(self._url, self._name)
        finally:
            stream.close()

    def _todo(self, stream: WalStream, here: ServerPosition) -> list[tuple[int, int, int | None]]:
        """Say what to stream: (timeline, from, to); to is None for the one that goes on."""
        ranges = self._catalogue.logs(STORE, self._source, here.system_id)
        newest = max((one.timeline for one in ranges), default=0)
        if newest > here.timeline:
            cause = f"it is on timeline {here.timeline}, and its stored log on {newest} already: an old primary?"
            hint = "Stream from the server that took over, or give this one a source of its own."
            raise PermanentError("stream log", self._source, cause, hint)
        text = stream.history(here.timeline) if here.timeline > 1 else ""
        if text:
            store_history(self._catalogue, self._source, here.system_id, here.timeline, text)
        segment_bytes = self._server.segment_bytes()
        restart = self._own_slot()
        path = recovery.parse_history(here.timeline, text)
        if not newest or self._is_gap_accepted:
            self._is_gap_accepted = False
            return [(here.timeline, restart - restart % segment_bytes, None)]
        todo: list[tuple[int, int, int | None]] = []
        for stretch in path:
            if stretch.timeline < newest:
                continue
            is_last = stretch is path[-1]
            begins = recovery.resume_at(ranges, stretch, restart, segment_bytes)
            if is_last or begins < stretch.ends:
                todo.append((stretch.timeline, begins, None if is_last else stretch.ends))
        return todo

    def _own_slot(self) -> int:
        """Make sure that the server keeps the log for us; return from where it does."""
        slot = self._server.slot(self._slot)
        if slot is not None and slot.is_lost:
            self._tell(f"{self._source}: the server gave up slot {self._slot}; it is made anew")
            self._server.drop_slot(self._slot)
            slot = None
        return (slot or self._server.create_slot(self._slot)).restart

    def _pump(self, stream: WalStream, timeline: int, begins: int, ends: int | None, stop: threading.Event) -> None:
        """Store what comes, in batches, several at a time; confirm in order."""
        progress = self.progress
        progress.received = progress.stored = begins
        is_waited_for = self._server.waits_for(self._name)
        confirmed = marked = time.monotonic()
        with _Storing(self._store(timeline, stop), begins, self._server.segment_bytes(), is_waited_for) as storing:
            while True:
                is_over = stop.is_set() or (ends is not None and progress.received >= ends)
                if not is_over and storing.has_room:
                    # While somebody waits for us, look often for what was stored.
                    storing.add(stream.read(0.003 if storing.is_busy else 0.05))
                stored = storing.settle(is_over)
                now = time.monotonic()
                if stored > progress.stored or now - confirmed > _CONFIRM_SECONDS:
                    stream.confirm(stored)
                    confirmed = now
                progress.received, progress.stored, progress.objects = storing.received, stored, storing.count
                progress.server = max(stream.server_end, stored)
                if is_over:
                    return
                if self._mark_seconds and now - marked > self._mark_seconds:
                    marked = now
                    self._mark()

    def _mark(self) -> None:
        try:
            self._server.mark()
        except TieringError as exc:
            self._tell(f"{self._source}: the log could not be marked: {exc}")

    def _store(self, timeline: int, stop: threading.Event) -> Callable[[int, bytes], None]:
        def store(begins: int, data: bytes) -> None:
            """Store a stretch, however long the bucket is away: the server keeps it meanwhile."""
            where = (self._source, self.incarnation, timeline, lsn_text(begins), lsn_text(begins + len(data)))
            while True:
                try:
                    self._catalogue.put_log(STORE, *where, data)
                    return
                except TransientError as exc:
                    self.progress.problem = str(exc)
                    if stop.wait(_RETRY_SECONDS):
                        raise
                except AlreadyExists as exc:
                    hint = "Two servers write the same timeline: stop one, or give it a source of its own."
                    raise PermanentError("stream log", self._source, str(exc), hint) from exc

        return store


class _Storing:
    """Bytes on their way into the bucket: gathered into batches, stored by threads, settled in order."""

    def __init__(self, store: Callable[[int, bytes], None], begins: int, segment_bytes: int, at_once: bool) -> None:
        self._store = store
        self._segment_bytes = segment_bytes
        self._at_once = at_once
        self._batch = bytearray()
        self._since = 0.0
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._pool = ThreadPoolExecutor(_PUTS, "log")
        self._stored = begins
        self.received = begins
        self.count = 0

    def __enter__(self) -> _Storing:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def has_room(self) -> bool:
        return len(self._waiting) < _WAITING_MAX

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting)

    def add(self, data: bytes) -> None:
        """Take what was received; an object never crosses a segment."""
        while data:
            room = min(self._segment_bytes - self.received % self._segment_bytes, BATCH_BYTES - len(self._batch))
            if not self._batch:
                self._since = time.monotonic()
            self._batch += data[:room]
            self.received += len(data[:room])
            data = data[room:]
            if len(self._batch) >= BATCH_BYTES or self.received % self._segment_bytes == 0:
                self._submit()

    def settle(self, everything: bool) -> int:
        """Submit a batch that is due, take in what was stored, and return up to where everything is.

        Raises: what storing raised.
        """
        is_due = time.monotonic() - self._since >= BATCH_SECONDS or (self._at_once and not self._waiting)
        if self._batch and (everything or is_due):
            self._submit()
        while self._waiting and (everything or not self.has_room or self._waiting[0][1].done()):
            ends, future = self._waiting[0]
            try:
                future.result(None if everything else 1.0)
            except FutureTimeout:
                break
            self._waiting.popleft()
            self._stored = ends
        return self._stored

    def _submit(self) -> None:
        data = bytes(self._batch)
        self._batch.clear()
        self._waiting.append((self.received, self._pool.submit(self._store, self.received - len(data), data)))
        self.count += 1


def fill(catalogue: Catalogue, url: SecretStr, source: str, system_id: str, stretch: recovery.Stretch) -> None:
    """Store a stretch of log that the server still has, without a slot: a backup's own, where no stream runs.

    Raises:
        NotFound: the server does not have it any more.
    """
    segment_bytes = WalServer(url).segment_bytes()
    stream = WalStream(url, f"{APPLICATION_NAME} fill")
    try:
        begins = stretch.begins - stretch.begins % segment_bytes

        def store(position: int, data: bytes) -> None:
            where = (source, system_id, stretch.timeline, lsn_text(position), lsn_text(position + len(data)))
            catalogue.put_log(STORE, *where, data)

        stream.start(None, begins, stretch.timeline)
        with _Storing(store, begins, segment_bytes, at_once=False) as storing:
            while storing.received < stretch.ends:
                storing.add(stream.read(0.05))
                storing.settle(everything=False)
            storing.settle(everything=True)
    finally:
        stream.close()


def push(catalogue: Catalogue, source: str, path: Path) -> str:
    """Store a finished file of pg_wal, as archive_command asks; return what was done.

    A stretch that is stored already is compared: the same bytes are no error, other bytes are never replaced.

    Raises:
        AlreadyExists: the vault has other bytes for it. Two servers write the same history.
        CorruptCopy: the file is not what its name says.
    """
    if found := HISTORY_NAME.fullmatch(path.name):
        system_id = read_system_id(path.parent.parent)
        store_history(catalogue, source, system_id, int(found[1], 16), path.read_text())
        return "stored"
    if not SEGMENT_NAME.fullmatch(path.name):
        # .backup is a note for people; .partial repeats what the next timeline's first segment holds.
        return "not needed"
    header, data = read_segment_file(path)
    timeline = int(path.name[:8], 16)
    archive = LogArchive(catalogue, source, header.system_id, header.segment_bytes)
    ends = header.begins + len(data)
    for begins, stored in archive.pieces(timeline, header.begins):
        if stored != data[begins - header.begins :][: len(stored)]:
            hint = "Nothing was replaced. Two servers archive as the same source: stop one."
            raise AlreadyExists("push", path.name, f"other bytes are stored from {lsn_text(begins)} on", hint)
    if archive.is_whole(timeline, header.begins):
        return "stored already"
    where = (source, header.system_id, timeline, lsn_text(header.begins), lsn_text(ends))
    catalogue.put_log(STORE, *where, data)
    return "stored"
