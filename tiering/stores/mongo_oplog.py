"""Follow a server's oplog: every entry since a position, as raw BSON, complete, in order, and as a majority has it.

Does not: store it (`ops/oplog.py`) or carry it out (`mongo_replay`).

Why two readings when one begins to follow: the embedded server collects what there is and only then notes where to go
on, so that what is written in between would be in neither. So a cursor is opened first, and then everything is read
once more; positions tell what came twice. On MongoDB the second reading says nothing new.

Why an entry waits a moment before it is handed out: on the embedded server a transaction may come behind an entry that
has a later position. One that is later still is handed out all the same, and `merged` puts it in its place.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from pymongo import CursorType
from pymongo.cursor import RawBatchCursor

from tiering.errors import StoreUnavailable
from tiering.stores.bson_batches import RawBatch
from tiering.stores.documents_errors import mapped
from tiering.stores.documents_remove import raw
from tiering.stores.mongo_entries import Position, positions
from tiering.stores.mongo_server import MongoServer, timestamp_of

HOLD_SECONDS = 0.25
AWAIT_MS = 100
_OPEN_TRIES = 5
_COLLECTED_SECONDS = 10
_NEVER = Position(2**62, 0)

RawEntry = tuple[Position, bytes]


class Following:
    """One reading of the oplog, from a position on; for one thread.

    Attributes:
        through: every entry up to here, at the least, was taken.
        is_idle: at last the server had nothing more.
    """

    def __init__(self, server: MongoServer, since: Position) -> None:
        self._server = server
        self._opened_at = server.now()
        self._filter = {"ts": {"$gte": timestamp_of(since)}}
        self._cursor, first = self._open()
        self._batches = raw(self._cursor)
        self._seen: set[Position] = set()
        self._seen_last = Position(0, 0)
        self._past = self._read_past()
        self._reads_past = True
        self._first = [first] if first else []
        self._held: list[tuple[Position, bytes, float]] = []
        self.through = Position(since.seconds, since.increment)
        self.is_idle = False

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the server's cursor."""
        with mapped("close", self._server.name):
            self._cursor.close()

    def take(self, seconds: float, bytes_max: int = 16 << 20) -> list[RawEntry]:
        """Wait for entries for so long at most; return those that are settled, in order.

        Raises:
            StoreUnavailable: the server went away, or an election took the cursor: follow anew from where you are.
        """
        deadline, size = time.monotonic() + seconds, 0
        while size < bytes_max:
            data = self._next()
            if data:
                size += len(data)
                self._hold(data)
            if time.monotonic() >= deadline:
                break
        return self._settled()

    def rest(self) -> list[RawEntry]:
        """Return what is held back, of a server from which nothing more comes."""
        rest = [] if self._reads_past else sorted(self._held, key=lambda one: one[0])
        self._held = []
        return [(position, entry) for position, entry, _ in rest]

    def _next(self) -> bytes:
        with mapped("read oplog", self._server.name):
            if self._reads_past:
                if (data := next(self._past, None)) is not None:
                    return data
                self._reads_past = False
            if self._first:
                return self._first.pop()
            try:
                data = next(self._batches)
                self.is_idle = False
                return data
            except StopIteration:
                if not self._cursor.alive:
                    raise StoreUnavailable("read oplog", self._server.name, "the cursor ended") from None
                self.is_idle = True
                return b""

    def _hold(self, data: bytes) -> None:
        batch, now = RawBatch.from_bytes(data), time.monotonic()
        for position, entry in zip(positions(batch), batch.documents(), strict=True):
            if self._reads_past:
                self._seen.add(position)
                self._seen_last = max(self._seen_last, position)
            elif position in self._seen:
                continue
            self._held.append((position, entry, now))

    def _settled(self) -> list[RawEntry]:
        """Take out what has waited, never a part of a position."""
        ripe = time.monotonic() - HOLD_SECONDS
        fresh = min((position for position, _, at in self._held if at > ripe), default=_NEVER)
        # What was collected of the last seconds may have holes that only the cursor fills.
        end = min(fresh, Position(self._opened_at.seconds - _COLLECTED_SECONDS, 0)) if self._reads_past else fresh
        limit = max((position for position, _, _ in self._held if position < end), default=None)
        if limit is None:
            return []
        taken = sorted((one for one in self._held if one[0] <= limit), key=lambda one: one[0])
        self._held = [one for one in self._held if one[0] > limit]
        self.through = max(self.through, limit)
        if self._seen and limit > self._seen_last:
            self._seen.clear()
        return [(position, entry) for position, entry, _ in taken]

    @property
    def has_all(self) -> bool:
        """Say whether nothing is held back, and the server had nothing more."""
        return self.is_idle and not self._held and not self._reads_past

    def _open(self) -> tuple[RawBatchCursor[dict[str, Any]], bytes]:
        """Open the cursor and have the server place it. One that finds nothing at once may be dead: try again."""
        with mapped("read oplog", self._server.name):
            for _ in range(_OPEN_TRIES):
                cursor = self._server.oplog().find_raw_batches(self._filter, cursor_type=CursorType.TAILABLE_AWAIT)
                cursor.max_await_time_ms(AWAIT_MS)
                try:
                    return cursor, next(raw(cursor))
                except StopIteration:
                    if cursor.alive:
                        return cursor, b""
        raise StoreUnavailable("read oplog", self._server.name, "there is nothing to follow yet", "It is tried again.")

    def _read_past(self) -> Iterator[bytes]:
        with closing(self._server.oplog().find_raw_batches(self._filter).sort("$natural", 1)) as cursor:
            yield from raw(cursor)
