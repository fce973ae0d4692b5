"""Write behind: a row is acknowledged when it is in the journal on this machine's disk, and reaches its database in
batches of BATCH_ROWS or after BATCH_SECONDS, each exactly once.

The database keeps how far the journal is written, in the transaction of the rows: after `kill -9` of this process, of
Redis or of PostgreSQL nothing that was acknowledged is lost or doubled. Documents go in by their `_id`s, before that
position moves. When the database falls behind, writers wait; what it refuses for good is kept beside the journal, and
the rest goes on. Order is kept within a journal, so that the last write of a key wins.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiering import errors
from tiering.access.codec import decode, encode
from tiering.access.metrics import Metrics
from tiering.access.shapes import Directory
from tiering.access.touched import row_texts, touched_by_many
from tiering.model import Dataset, Form
from tiering.stores.cache import Cache
from tiering.stores.documents_async import AsyncDocuments
from tiering.stores.journal import Journal, open_journals
from tiering.stores.postgres_async import AsyncPostgres
from tiering.stores.postgres_rows import Batch, position_of, put_batches

log = logging.getLogger(__name__)

BATCH_ROWS = 1000
BATCH_SECONDS = 0.2
WAITING_ROWS_MAX = 50_000
"""Beyond these, writers wait until the database has caught up."""

FLUSH_SECONDS = 30.0
AGAIN_SECONDS, AGAIN_SECONDS_MAX = 0.1, 3.0
MERGE_BATCHES = 20
"""After a key was there, so many batches of the table expect others."""


@dataclass(frozen=True, slots=True)
class _Record:
    """A call of `write`, as it stands in the journal."""

    number: int
    dataset: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    arrived_at: float


class Behind:
    """The write-behind path. Belongs to one event loop."""

    def __init__(
        self,
        root: Path,
        directory: Directory,
        hot: AsyncPostgres,
        documents: AsyncDocuments,
        cache: Cache,
        metrics: Metrics,
    ) -> None:
        self._root, self._directory = root, directory
        self._hot, self._documents, self._cache, self._metrics = hot, documents, cache, metrics
        self._journal: Journal | None = None
        self._old: list[Journal] = []
        self._waiting: deque[_Record] = deque()
        self._waiting_rows = 0
        self._merging: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._empty = asyncio.Event()
        self._is_closing = False
        self._starting = asyncio.Lock()
        self._recovering: asyncio.Event | None = None
        self._flusher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take over what earlier processes left, and begin to flush it; those who come together wait for one opening.

        Raises:
            StoreUnavailable: the journal's directory cannot be used.
        """
        async with self._starting:
            if self._journal is not None:
                return
            journal, *self._old = await asyncio.to_thread(open_journals, self._root)
            self._recovering = asyncio.Event()
            self._journal = journal
            self._flusher = asyncio.get_running_loop().create_task(self._flush_all())

    @property
    def is_started(self) -> bool:
        """Whether the journal is open."""
        return self._journal is not None

    # -- taking --------------------------------------------------------------------------------------------

    async def write(self, dataset: Dataset, rows: Sequence[Mapping[str, Any]], seconds: float) -> int:
        """Take rows; return when they are on disk.

        Raises:
            Throttled: the database is so far behind that there was no room within `seconds`; nothing was taken.
            StoreFull: the journal's disk is full; nothing was taken.
        """
        if dataset.form is Form.FILES:
            raise errors.PermanentError("write", dataset.name, "its units are files")
        if self._is_closing or self._journal is None or self._recovering is not None:
            await self._ready(seconds)
        if not self._room.is_set():
            await self._make_room(dataset.name, seconds)
        columns = tuple(rows[0])
        if any(tuple(row) != columns for row in rows):
            columns = tuple(dict.fromkeys(name for row in rows for name in row))
        values = [tuple(row.values()) if len(row) == len(columns) else tuple(map(row.get, columns)) for row in rows]
        assert self._journal is not None
        number, on_disk = self._journal.append(encode([dataset.name, columns, values]))
        record = _Record(number, dataset.name, columns, values, time.monotonic())
        # In the order of the journal, whoever of its writers is cancelled: the position may never pass a record by.
        on_disk.add_done_callback(lambda done: None if done.exception() else self._take(record))
        await asyncio.shield(on_disk)
        self._metrics.writes.labels(dataset.name, "analytical").inc(len(rows))
        return len(rows)

    async def _ready(self, seconds: float) -> None:
        if self._is_closing or self._journal is None:
            raise errors.StoreUnavailable("write", "journal", "the client is closed")
        try:
            async with asyncio.timeout(seconds):
                assert self._recovering is not None
                await self._recovering.wait()
        except TimeoutError:
            hint = "What an earlier process left must be numbered after what the database has."
            raise errors.StoreUnavailable("write", "journal", "its database does not answer yet", hint) from None

    def _take(self, record: _Record) -> None:
        self._waiting.append(record)
        self._waiting_rows += len(record.rows)
        self._empty.clear()
        if self._waiting_rows > WAITING_ROWS_MAX:
            self._room.clear()
        if self._waiting_rows >= BATCH_ROWS or len(self._waiting) == 1:
            self._wake.set()

    async def _make_room(self, subject: str, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._room.wait()
        except TimeoutError:
            hint = "Write more slowly, or see why the database is slow."
            raise errors.Throttled("write", subject, f"{self._waiting_rows:,} rows wait for it", hint) from None

    # -- flushing ------------------------------------------------------------------------------------------

    async def _flush_all(self) -> None:
        assert self._journal is not None
        assert self._recovering is not None
        for journal in (*self._old, self._journal):
            await self._recover(journal)
            while self._waiting and journal is not self._journal:
                await self._flush_some(journal)
            if journal is not self._journal:
                journal.close()
        self._old.clear()
        waited, self._recovering = self._recovering, None
        waited.set()
        while True:
            while not self._waiting:
                self._empty.set()
                self._wake.clear()
                await self._wake.wait()
            if self._waiting_rows < BATCH_ROWS and not self._is_closing:
                await self._gather()
            await self._flush_some(self._journal)

    async def _gather(self) -> None:
        """Wait for a whole batch, as long as its oldest row may wait."""
        self._wake.clear()
        left = BATCH_SECONDS - (time.monotonic() - self._waiting[0].arrived_at)
        if left > 0:
            try:
                async with asyncio.timeout(left):
                    await self._wake.wait()
            except TimeoutError:
                return

    async def _recover(self, journal: Journal) -> None:
        wait = AGAIN_SECONDS
        while True:
            try:
                position = await position_of(self._hot, journal.name, FLUSH_SECONDS)
                break
            except errors.TieringError as exc:
                log.info("journal waits for its database: %s", exc)
                await asyncio.sleep(wait)
                wait = min(wait * 2, AGAIN_SECONDS_MAX)
        for number, payload in await asyncio.to_thread(lambda: list(journal.recover())):
            if number > position:
                dataset, columns, rows = decode(payload)
                self._take(_Record(number, dataset, tuple(columns), rows, time.monotonic()))
        journal.advance_to(position)

    async def _flush_some(self, journal: Journal) -> None:
        """Write the next batch, again and again until it is written or refused for good."""
        records: list[_Record] = []
        count = 0
        for record in self._waiting:
            if records and count + len(record.rows) > BATCH_ROWS:
                break
            records.append(record)
            count += len(record.rows)
        wait = AGAIN_SECONDS
        while True:
            self._note()
            try:
                await self._put(journal, records)
                break
            except errors.TransientError as exc:
                log.info("journal is tried again: %s", exc)
                await asyncio.sleep(wait)
                wait = min(wait * 2, AGAIN_SECONDS_MAX)
            except errors.TieringError as exc:
                if len(records) == 1 and len(records[0].rows) == 1:
                    await self._reject(journal, records[0], exc)
                    break
                await self._put_apart(journal, records)
                break
        for _ in records:
            self._waiting.popleft()
        self._waiting_rows -= count
        if self._waiting_rows <= WAITING_ROWS_MAX // 2:
            self._room.set()
        await asyncio.to_thread(journal.release, records[-1].number)
        self._note()

    async def _put(self, journal: Journal, records: Sequence[_Record], *, advances: bool = True) -> None:
        groups: dict[tuple[str, tuple[str, ...]], list[Sequence[Any]]] = {}
        for record in records:
            groups.setdefault((record.dataset, record.columns), []).extend(record.rows)
        batches = []
        for (name, columns), rows in groups.items():
            dataset = self._directory.dataset(name)
            if dataset.form is Form.DOCUMENTS:
                documents = [dict(zip(columns, row, strict=True)) for row in rows]
                last = {str(document.get("_id")): document for document in documents}
                await self._documents.put(name, list(last.values()), seconds=FLUSH_SECONDS, may_exist=False)
                continue
            shape = await self._directory.shape(dataset, FLUSH_SECONDS)
            batches.append(Batch("hot", name, columns, shape.key, _last_by_key(rows, columns, shape.key)))
        position = records[-1].number if advances else None
        merge = any(self._merging.get(batch.table, 0) > 0 for batch in batches)
        for batch in batches:
            self._merging[batch.table] = max(0, self._merging.get(batch.table, 0) - 1)
        done = await put_batches(self._hot, batches, journal.name, position, merge=merge, seconds=FLUSH_SECONDS)
        if not done:
            self._merging.update((batch.table, MERGE_BATCHES) for batch in batches)
            await put_batches(self._hot, batches, journal.name, position, merge=True, seconds=FLUSH_SECONDS)
        await self._forget(groups)

    async def _forget(self, groups: Mapping[tuple[str, tuple[str, ...]], Sequence[Sequence[Any]]]) -> None:
        """Drop what the rows changed the answer of from the cache; without a cache, it expires by itself."""
        texts: set[str] = set()
        for (name, columns), rows in groups.items():
            dataset = self._directory.dataset(name)
            key = ("_id",) if dataset.form is Form.DOCUMENTS else (await self._directory.shape(dataset, 1.0)).key
            texts.update(row_texts(name, [columns.index(one) for one in key], rows))
            texts.update(k.text for k in touched_by_many(dataset, columns, rows))
        try:
            await self._cache.forget_many(list(texts))
        except errors.StoreUnavailable as exc:
            log.info("not dropped from the cache: %s", exc)

    async def _put_apart(self, journal: Journal, records: Sequence[_Record]) -> None:
        """Write row by row: one that its database refuses must not hold up the others.

        The position moves with the last row: after a crash in between, the rows before it are written again by key.
        """
        rows = [
            _Record(record.number, record.dataset, record.columns, [row], record.arrived_at)
            for record in records
            for row in record.rows
        ]
        for place, row in enumerate(rows):
            advances = place == len(rows) - 1
            self._merging[row.dataset] = MERGE_BATCHES
            while True:
                try:
                    await self._put(journal, [row], advances=advances)
                    break
                except errors.TransientError:
                    await asyncio.sleep(AGAIN_SECONDS)
                except errors.TieringError as exc:
                    await self._reject(journal, row, exc, advances=advances)
                    break

    async def _reject(
        self, journal: Journal, record: _Record, problem: errors.TieringError, *, advances: bool = True
    ) -> None:
        log.error("a row of %s is refused, and kept in %s/rejected.jsonl: %s", record.dataset, journal.name, problem)
        line = {"dataset": record.dataset, "problem": problem.cause, "columns": record.columns, "rows": record.rows}
        await asyncio.to_thread(journal.keep_rejected, json.dumps(line, default=str))
        self._metrics.rejected.inc(len(record.rows))
        if advances:
            await put_batches(self._hot, [], journal.name, record.number, merge=False, seconds=FLUSH_SECONDS)

    def _note(self) -> None:
        self._metrics.journal_rows.set(self._waiting_rows)
        age = time.monotonic() - self._waiting[0].arrived_at if self._waiting else 0.0
        self._metrics.journal_seconds.set(age)

    async def drain(self, seconds: float) -> bool:
        """Wait until every acknowledged row is in its database, at most so long; tell whether that is so."""
        if self._flusher is None or (not self._waiting and self._recovering is None):
            return True
        self._wake.set()
        try:
            async with asyncio.timeout(seconds):
                while self._waiting or self._recovering is not None:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def close(self, seconds: float) -> None:
        """Take no more, flush what is there for so long at most, and leave the rest to whoever opens next."""
        self._is_closing = True
        self._wake.set()
        if not await self.drain(seconds):
            log.warning("%d rows stay in the journal until a client opens it again", self._waiting_rows)
        if self._flusher is not None:
            self._flusher.cancel()
        for journal in (*self._old, *([self._journal] if self._journal else [])):
            await asyncio.to_thread(journal.close)


def _last_by_key(rows: Sequence[Sequence[Any]], columns: Sequence[str], key: Sequence[str]) -> Sequence[Sequence[Any]]:
    """Keep the last row of each key: COPY would refuse the second."""
    try:
        places = [columns.index(name) for name in key]
    except ValueError:
        raise errors.PermanentError("write", "journal", f"rows without {', '.join(key)}", "Their key.") from None
    last = {tuple(row[place] for place in places): row for row in rows}
    return rows if len(last) == len(rows) else list(last.values())
