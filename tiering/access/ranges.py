"""Read a range of a dataset, wherever its rows are: one answer, each row once.

Hot and warm rows come in one statement of the database that has both (`live.<dataset>`), or in two where they are
apart: hot first, so that a unit which moves in between is seen twice and not never, and what is seen twice counts at
its newer place. The statement that reads the warm rows counts in its own snapshot the units that are cold: an answer
that does not fit what the client remembered of the ledger is not given. A range with cold units is asked of
`ops/query`, which joins all tiers (tickets.py).
Does not: store anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from tiering import errors
from tiering.access.codec import encode
from tiering.access.shapes import Directory, Shape
from tiering.model import Dataset, Form, Tier
from tiering.stores.documents_async import AsyncDocuments
from tiering.stores.postgres_async import AsyncPostgres, quoted

LOOKS_MAX = 4


@dataclass(frozen=True, slots=True)
class Range:
    """What is asked for: rows of a dataset in `[begin, end)`.

    Attributes:
        where: (column, values) any of which a row must have.
        columns: wanted; empty: all.
        limit: rows at most, the newest when `newest_first`; 0: all.
    """

    dataset: str
    begin: datetime
    end: datetime
    where: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    columns: tuple[str, ...] = ()
    newest_first: bool = False
    limit: int = 0

    @property
    def digest(self) -> str:
        """A name for the question: equal for equal questions."""
        content = [self.dataset, self.begin, self.end, self.where, self.columns, self.newest_first, self.limit]
        return sha256(encode(content)).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as they came: names, and a tuple for each."""

    columns: tuple[str, ...]
    tuples: list[Sequence[Any]]


def make_range(
    dataset: str,
    begin: datetime,
    end: datetime,
    where: Mapping[str, Any] | None,
    columns: Sequence[str],
    newest_first: bool,
    limit: int,
) -> Range:
    """Make a question of what a caller gives; PermanentError where it makes no sense."""
    if begin.utcoffset() is None or end.utcoffset() is None:
        raise errors.PermanentError("read", dataset, "begin and end need a time zone", "Use datetime(…, tzinfo=UTC).")
    wanted = []
    for column, value in sorted((where or {}).items()):
        values = tuple(value) if isinstance(value, list | tuple | set | frozenset) else (value,)
        wanted.append((column, values))
    return Range(
        dataset, begin.astimezone(UTC), end.astimezone(UTC), tuple(wanted), tuple(columns), newest_first, limit
    )


class Ranges:
    """The read path by range, for hot and warm rows. Belongs to one event loop."""

    def __init__(
        self,
        directory: Directory,
        hot: AsyncPostgres,
        warm: AsyncPostgres,
        hot_documents: AsyncDocuments,
        warm_documents: AsyncDocuments,
    ) -> None:
        self._directory = directory
        self._hot, self._warm = hot, warm
        self._hot_documents, self._warm_documents = hot_documents, warm_documents

    async def read(self, asked: Range, seconds: float) -> Rows:
        """Read hot and warm rows.

        Raises:
            NotFound: a unit of the range is cold by now.
            TimedOut, StoreUnavailable: a database does not answer.
        """
        dataset = self._directory.dataset(asked.dataset)
        if dataset.form is Form.FILES:
            raise errors.PermanentError("read", dataset.name, "its units are files", "Use `tiering objects`.")
        read = self._read_documents if dataset.form is Form.DOCUMENTS else self._read_table
        return await read(dataset, asked, seconds)

    # -- tables --------------------------------------------------------------------------------------------

    async def _read_table(self, dataset: Dataset, asked: Range, seconds: float) -> Rows:
        shape = await self._directory.shape(dataset, seconds)
        if dataset.state != "moves":
            rows = await self._hot.fetch(*_select(dataset, asked, shape, f"hot.{dataset.name}"), seconds=seconds)
            return Rows(asked.columns or shape.names, [tuple(row) for row in rows])
        columns = asked.columns or shape.names
        if self._hot is self._warm:
            found = await self._with_ledger(self._warm, dataset, asked, shape, seconds)
            return Rows(columns, found)
        # Hot rows first: what moves to warm in between is then seen twice.
        with_key = _with_key(asked, shape)
        # A hot row hides its warm copy even where it no longer has what is asked for: by its key alone it is fetched.
        others = tuple(test for test in asked.where if test[0] not in shape.key)
        by_key = replace(with_key, where=tuple(test for test in asked.where if test[0] in shape.key))
        statement, *values = _select(dataset, replace(by_key, limit=0), shape, f"live.{dataset.name}")
        hot = [tuple(row) for row in await self._hot.fetch(statement, *values, seconds=seconds, subject=dataset.name)]
        warm = await self._with_ledger(self._warm, dataset, with_key, shape, seconds)
        names = with_key.columns or shape.names
        return Rows(columns, _merged(names, columns, shape.key, dataset.time_column, hot, warm, asked, others))

    async def _with_ledger(
        self, database: AsyncPostgres, dataset: Dataset, asked: Range, shape: Shape, seconds: float
    ) -> list[Sequence[Any]]:
        """Read rows and, in the same snapshot, how many units of the range are cold: none may be."""
        statement, *values = _select(dataset, asked, shape, f"live.{dataset.name}")
        place = len(values)
        joined = f"""SELECT u.cold, r.* FROM (SELECT count(*) AS cold FROM tiering.unit
                     WHERE dataset = ${place + 1} AND tier = 'cold' AND begin_at < ${place + 2}
                       AND end_at > ${place + 3}) u
                     LEFT JOIN LATERAL (SELECT true AS is_row, q.* FROM ({statement}) q) r ON true"""
        rows = await database.fetch(
            joined, *values, dataset.name, asked.end, asked.begin, seconds=seconds, subject=dataset.name
        )
        if rows and rows[0][0]:
            self._directory.units_moved()
            raise errors.NotFound("read", dataset.name, "a unit of the range is in the lake", "Ask with tier='auto'.")
        return [tuple(row)[2:] for row in rows if row[1]]

    # -- documents -----------------------------------------------------------------------------------------

    async def _read_documents(self, dataset: Dataset, asked: Range, seconds: float) -> Rows:
        """Hot documents first, then warm ones in the ranges of units that the ledger calls warm before and after."""
        where = {column: {"$in": list(values)} for column, values in asked.where}
        sort = [(dataset.time_column, -1 if asked.newest_first else 1)]
        for _ in range(LOOKS_MAX):
            spans = {dataset.time_column: {"$gte": asked.begin, "$lt": asked.end}}
            hot = await self._hot_documents.find(dataset.name, {**where, **spans}, seconds=seconds, sort=sort)
            before = await self._directory.homes(dataset.name, asked.begin, asked.end, seconds)
            if any(home.tier is Tier.COLD for home in before):
                raise errors.NotFound("read", dataset.name, "a unit is in the lake", "Ask with tier='auto'.")
            parts = [
                {dataset.time_column: {"$gte": max(home.begin, asked.begin), "$lt": min(home.end, asked.end)}}
                for home in before
            ]
            warm = []
            if parts:
                warm = await self._warm_documents.find(
                    f"warm_{dataset.name}", {**where, "$or": parts}, seconds=seconds, sort=sort
                )
                # A document that changed its time or its fields in the hot tier hides its warm copy there too.
                ids = [document["_id"] for document in warm]
                newer = await self._hot_documents.find(
                    dataset.name, {"_id": {"$in": ids}}, seconds=seconds, fields=["_id"]
                )
                hidden = {document["_id"] for document in newer}
                warm = [document for document in warm if document["_id"] not in hidden]
            self._directory.units_moved()
            if before == await self._directory.homes(dataset.name, asked.begin, asked.end, seconds):
                return _documents(dataset, asked, hot, warm)
        raise errors.StoreUnavailable("read", dataset.name, "units kept moving", "Try again.")


def _documents(dataset: Dataset, asked: Range, hot: list[dict[str, Any]], warm: list[dict[str, Any]]) -> Rows:
    found = [*hot, *warm]
    found.sort(key=lambda document: document[dataset.time_column], reverse=asked.newest_first)
    if asked.limit:
        found = found[: asked.limit]
    if asked.columns:
        return Rows(asked.columns, [tuple(document.get(name) for name in asked.columns) for document in found])
    names = tuple(dict.fromkeys(name for document in found for name in document))
    return Rows(names, [tuple(document.get(name) for name in names) for document in found])


def _with_key(asked: Range, shape: Shape) -> Range:
    """Ask for the key too, by which a row is known at two places, and for what it is tested by."""
    if not asked.columns:
        return asked
    tested = (column for column, _ in asked.where)
    return replace(asked, columns=tuple(dict.fromkeys((*asked.columns, *shape.key, *tested))))


def _select(dataset: Dataset, asked: Range, shape: Shape, relation: str) -> tuple[Any, ...]:
    """Write the statement and its values."""
    columns = asked.columns or shape.names
    time = quoted(dataset.time_column)
    values: list[Any] = [asked.begin, asked.end]
    tests = [f"{time} >= $1", f"{time} < $2"]
    for column, wanted in asked.where:
        kind = shape.type_of(column)
        values.append(list(wanted) if len(wanted) != 1 else wanted[0])
        form = f"= ANY(${len(values)}::{kind}[])" if len(wanted) != 1 else f"= ${len(values)}::{kind}"
        tests.append(f"{quoted(column)} {form}")
    for column in columns:
        shape.type_of(column)
    statement = (
        f"SELECT {', '.join(map(quoted, columns))} FROM {quoted(*relation.split('.'))} WHERE {' AND '.join(tests)} "
        f"ORDER BY {time}{' DESC' if asked.newest_first else ''}"
    )
    return (statement + (f" LIMIT {int(asked.limit)}" if asked.limit else ""), *values)


def _merged(
    names: Sequence[str],
    columns: Sequence[str],
    key: Sequence[str],
    time: str,
    hot: Sequence[Sequence[Any]],
    warm: Sequence[Sequence[Any]],
    asked: Range,
    others: Sequence[tuple[str, tuple[Any, ...]]],
) -> list[Sequence[Any]]:
    """Join hot and warm rows: a row that is at both places counts at the hot one."""
    places = [names.index(name) for name in key]
    at = names.index(time)
    seen = {tuple(row[place] for place in places) for row in hot}
    tests = [(names.index(column), values) for column, values in others]
    hot = [row for row in hot if all(row[place] in values for place, values in tests)]
    found = [*hot, *(row for row in warm if tuple(row[place] for place in places) not in seen)]
    found.sort(key=lambda row: row[at], reverse=asked.newest_first)
    if asked.limit:
        found = found[: asked.limit]
    kept = [names.index(name) for name in columns]
    return [tuple(row[place] for place in kept) for row in found]
