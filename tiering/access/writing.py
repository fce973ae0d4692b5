"""Write through: the database first, then the cache, and no reader ever sees older than acknowledged.

1. A fence goes up before every key that the rows touch: from now on readers ask the database, and nobody fills.
2. The database commits.
3. The fences come down; where nobody else wrote meanwhile, the new row stands in the cache.
4. The write is acknowledged.

Where Redis cannot be told, the database is (stores/trust.py): every client leaves its cache alone until this is over;
the first write of an outage waits a second for that, the next ones do not. Where the database does not answer in
time, the outcome is unknown: TimedOut, and the fences stay until the server's own limit for the statement is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tiering import errors
from tiering.access.codec import encode
from tiering.access.keys import Key
from tiering.access.metrics import Metrics
from tiering.access.reading import Reading
from tiering.access.shapes import Directory, Shape
from tiering.access.touched import Row, row_key, touched
from tiering.model import Dataset, Form
from tiering.stores.cache import Cache
from tiering.stores.cache_entries import VALUE, new_token, pack_header
from tiering.stores.documents_async import AsyncDocuments
from tiering.stores.postgres_async import AsyncPostgres, quoted
from tiering.stores.trust import Trust

STATEMENT_SECONDS = 4.0
"""The server ends a write that takes longer."""

FENCE_MS = 6000
"""A fence stands longer than its write can take, even one whose client died."""

DISTRUST_SECONDS = 7.0
FENCED_MAX = 1000
"""Keys that one call may fence: who writes more rows at once means `analytical`."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did.

    Attributes:
        row_count: acknowledged.
        is_durable: in the database; False: in the journal, and on its way (analytical).
        is_cached: the cache was told; False: the database was told to distrust it.
    """

    row_count: int
    is_durable: bool = True
    is_cached: bool = True


class Writing:
    """The write-through path. Belongs to one event loop."""

    def __init__(
        self,
        cache: Cache,
        trust: Trust,
        directory: Directory,
        reading: Reading,
        hot: AsyncPostgres,
        documents: AsyncDocuments,
        metrics: Metrics,
    ) -> None:
        self._cache, self._trust, self._directory, self._reading = cache, trust, directory, reading
        self._hot, self._documents, self._metrics = hot, documents, metrics
        self._statements: dict[tuple[str, tuple[str, ...], bool], str] = {}

    async def write(self, dataset: Dataset, rows: Sequence[Row], seconds: float) -> Written:
        """Write rows through; all of them or, where the database refuses one, none.

        Raises:
            TimedOut: no answer within `seconds`: the rows may be written or not; writing them again is safe.
            StoreUnavailable: the database is away; or Redis is, and the ledger's database too. Nothing was written.
        """
        if dataset.form is Form.FILES:
            raise errors.PermanentError("write", dataset.name, "its units are files")
        shape = await self._directory.shape(dataset, seconds) if dataset.form is Form.TABLE else None
        key = shape.key if shape is not None else ("_id",)
        for row in rows:
            if missing := [name for name in key if row.get(name) is None]:
                raise errors.PermanentError("write", dataset.name, f"a row without {', '.join(missing)}", "Its key.")
        own = [row_key(dataset.name, key, row) for row in rows]
        others = dict.fromkeys(k for row in rows for k in touched(dataset, row))
        if len(own) + len(others) > FENCED_MAX:
            hint = "Write them in parts, or with mode='analytical'."
            raise errors.PermanentError("write", dataset.name, f"more than {FENCED_MAX} keys at once", hint)
        token, epoch = new_token(), self._trust.epoch
        is_fenced = await self._fence([k.text for k in (*own, *others)], token)
        try:
            stored = await self._store(dataset, shape, rows, seconds)
        except errors.TieringError as exc:
            if is_fenced and not isinstance(exc, errors.StoreUnavailable):
                await self._settle(dict.fromkeys((*own, *others)), token, epoch)  # refused: nothing was written
            raise
        values: dict[Key, Row | None] = {**dict.fromkeys(others), **dict(zip(own, stored, strict=True))}
        if is_fenced:
            is_fenced = await self._settle(values, token, epoch)
        self._metrics.writes.labels(dataset.name, "real_time").inc(len(rows))
        return Written(len(rows), is_cached=is_fenced)

    async def _fence(self, texts: Iterable[str], token: bytes) -> bool:
        """Put up the fences; where that fails, have everybody leave their caches alone."""
        if not self._trust.is_bypassed(time.monotonic(), DISTRUST_SECONDS / 2):
            try:
                await self._cache.fence(texts, token, FENCE_MS)
                return True
            except errors.StoreUnavailable:
                pass
        self._metrics.bypassed.inc()
        await self._trust.distrust(DISTRUST_SECONDS)
        return False

    async def _settle(self, values: Mapping[Key, Row | None], token: bytes, epoch: int) -> bool:
        """Take the fences down; where one may have been lost with its server, have everybody leave their caches."""
        try:
            await self._cache.settle(token, [self._left(key, row, epoch) for key, row in values.items()])
        except errors.StoreUnavailable:
            self._metrics.bypassed.inc()
            await self._trust.distrust(DISTRUST_SECONDS)
            return False
        return True

    def _left(self, key: Key, row: Row | None, epoch: int) -> tuple[str, Callable[[bytes], bytes] | None, int]:
        """What is left in a fence's place: the row, unless somebody may have written past the fences meanwhile."""
        if row is None:
            return key.text, None, 1
        seconds = self._reading.lifetime(key)
        until, payload = time.time() + seconds, encode(row)

        def content(stamp: bytes) -> bytes:
            return pack_header(VALUE, stamp, until) + payload if self._trust.epoch == epoch else b""

        return key.text, content, int(seconds * 1000)

    # -- the database --------------------------------------------------------------------------------------

    async def _store(
        self, dataset: Dataset, shape: Shape | None, rows: Sequence[Row], seconds: float
    ) -> Sequence[Row | None]:
        if shape is None:
            await self._documents.put(dataset.name, rows, seconds=seconds, may_exist=True)
            return list(rows)
        try:
            return await self._insert(dataset, shape, rows, seconds)
        except errors.SchemaMismatch:
            self._directory.forget_shape(dataset.name)
            raise

    async def _insert(self, dataset: Dataset, shape: Shape, rows: Sequence[Row], seconds: float) -> list[Row | None]:
        """Put rows in; None for one that a trigger of the table's owner swallowed."""
        columns = tuple(rows[0])
        if any(tuple(row) != columns for row in rows):
            columns = tuple(dict.fromkeys(name for row in rows for name in row))
        statement = self._statement(dataset.name, shape, columns, len(rows) == 1)
        values: list[Any]
        if len(rows) == 1:
            values = [rows[0].get(name) for name in columns]
        else:
            last = {tuple(row[name] for name in shape.key): row for row in rows}  # one statement meets a key once
            values = [[row.get(name) for row in last.values()] for name in columns]
        found = await self._hot.fetch(statement, *values, seconds=seconds, subject=dataset.name)
        if len(rows) == 1:
            return [dict(found[0]) if found else None]
        by_key = {row_key(dataset.name, shape.key, row): dict(row) for row in found}
        return [by_key.get(row_key(dataset.name, shape.key, row)) for row in rows]

    def _statement(self, dataset: str, shape: Shape, columns: tuple[str, ...], is_one: bool) -> str:
        known = self._statements.get((dataset, columns, is_one))
        if known is None:
            known = self._statements[dataset, columns, is_one] = upsert(f"hot.{dataset}", shape, columns, is_one)
        return known


def upsert(table: str, shape: Shape, columns: Sequence[str], is_one: bool) -> str:
    """Write the statement that puts rows in by key: a row that is there gets the new values."""
    listed = ", ".join(map(quoted, columns))
    if is_one:
        source = f"VALUES ({', '.join(f'${i}::{shape.type_of(c)}' for i, c in enumerate(columns, 1))})"
    else:
        arrays = ", ".join(f"${i}::{shape.type_of(c)}[]" for i, c in enumerate(columns, 1))
        source = f"SELECT * FROM unnest({arrays})"
    changed = [name for name in columns if name not in shape.key] or list(shape.key[:1])
    sets = ", ".join(f"{quoted(name)} = EXCLUDED.{quoted(name)}" for name in changed)
    conflict = ", ".join(map(quoted, shape.key))
    return (
        f"INSERT INTO {quoted(*table.split('.'))} ({listed}) {source} ON CONFLICT ({conflict}) DO UPDATE SET {sets} "
        f"RETURNING {', '.join(map(quoted, shape.names))}"
    )
