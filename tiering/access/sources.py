"""Where the values of the table's keys come from: one small query for each kind (access/keys.py names them).

Newest first looks at the hot table's last days; only a symbol that has not traded for so long costs a look further.
Does not: cache.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from statistics import fmean
from typing import Any

from tiering import errors
from tiering.access.keys import Key, market_of
from tiering.access.ranges import Ranges, Rows, make_range
from tiering.access.tickets import Tickets
from tiering.plan.calendars import ZONES
from tiering.plan.freshness import realised_volatility
from tiering.stores.documents_async import AsyncDocuments
from tiering.stores.postgres_async import AsyncPostgres

RECENT = timedelta(days=7)
BARS = 21
"""Of which a spike is measured: the newest beside the mean of the twenty before."""

MINUTES_A_YEAR = 252 * 240
NEWS_MAX = 200
SPANS = {"1h": timedelta(hours=1), "4h": timedelta(hours=4), "1d": timedelta(days=1), "7d": timedelta(days=7)}

_NEWEST = """SELECT * FROM {table} WHERE symbol = $1 AND ($2::text = '' OR market = $2) AND ts >= $3
             ORDER BY ts DESC LIMIT $4"""
_TECH = """SELECT ts, timeframe, value, params FROM {table} WHERE symbol = $1 AND indicator = $2 AND ts >= $3
           ORDER BY ts DESC LIMIT 1"""
_SUMMARY = """SELECT count(*) AS symbols, count(*) FILTER (WHERE close > open) AS advancers,
                     count(*) FILTER (WHERE close < open) AS decliners, sum(volume)::bigint AS volume,
                     sum(amount) AS amount, max(ts) AS ts
              FROM (SELECT DISTINCT ON (symbol) symbol, open, close, volume, amount, ts FROM hot.market_bars
                    WHERE market = $1 AND timeframe = $2 AND ts >= $3 ORDER BY symbol, ts DESC) newest"""


class Sources:
    """The loaders. Belongs to one event loop."""

    def __init__(
        self,
        hot: AsyncPostgres,
        documents: AsyncDocuments,
        warm_documents: AsyncDocuments,
        ranges: Ranges,
        tickets: Tickets,
        seconds: float,
        note_volatility: Callable[[str, float], None],
    ) -> None:
        self._hot, self._documents, self._warm_documents = hot, documents, warm_documents
        self._ranges, self._tickets, self._seconds = ranges, tickets, seconds
        self._note_volatility = note_volatility
        self._loaders: dict[str, Callable[[Key], Awaitable[Any]]] = {
            "quote": self._quote,
            "price": self._price,
            "volume": self._volume,
            "ohlcv": self._ohlcv,
            "tech": self._tech,
            "summary": self._summary,
            "analysis": self._analysis,
            "sentiment": self._sentiment,
            "news": self._news,
            "watchlist": self._watchlist,
            "prefs": self._prefs,
        }

    async def load(self, key: Key) -> Any:
        """Ask the database for the value of a key; None: there is none.

        Raises:
            PermanentError: keys of this kind have no source: give `get` a `load` of your own.
            TimedOut, StoreUnavailable: the database does not answer.
        """
        if not key.kind.source:
            return None
        return await self._loaders[key.kind.source](key)

    async def _newest(self, symbol: str, market: str, count: int) -> list[Any]:
        for table, since in (("hot.market_bars", datetime.now(UTC) - RECENT), ("live.market_bars", _EVER)):
            rows = await self._hot.fetch(
                _NEWEST.format(table=table), symbol, market, since, count, seconds=self._seconds, subject="market_bars"
            )
            if rows:
                return rows
        return []

    async def _quote(self, key: Key) -> dict[str, Any] | None:
        rows = await self._newest(key.part("symbol"), key.part("market"), 1)
        return dict(rows[0]) if rows else None

    async def _price(self, key: Key) -> dict[str, Any] | None:
        rows = await self._newest(key.part("symbol"), "", BARS)
        if not rows:
            return None
        closes = [float(row["close"]) for row in reversed(rows) if row["close"] is not None]
        volatility = realised_volatility(closes, MINUTES_A_YEAR) if rows[0]["timeframe"] == "1m" else None
        if volatility is not None:
            self._note_volatility(key.part("symbol"), volatility)
        return {"price": rows[0]["close"], "ts": rows[0]["ts"], "market": rows[0]["market"]}

    async def _volume(self, key: Key) -> dict[str, Any] | None:
        rows = await self._newest(key.part("symbol"), "", BARS)
        if not rows:
            return None
        before = [int(row["volume"]) for row in rows[1:] if row["volume"] is not None]
        mean = fmean(before) if before else 0.0
        volume = rows[0]["volume"]
        ratio = float(volume) / mean if mean and volume is not None else None
        return {"volume": volume, "mean": mean, "ratio": ratio, "ts": rows[0]["ts"]}

    async def _ohlcv(self, key: Key) -> dict[str, Any] | None:
        """The bars of one day at the exchange, from whichever tier they are in."""
        begin, end = _day(key)
        rows = await self._rows("market_bars", begin, end, {"symbol": key.part("symbol")})
        return {"columns": list(rows.columns), "rows": [list(row) for row in rows.tuples]} if rows.tuples else None

    async def _rows(self, dataset: str, begin: datetime, end: datetime, where: dict[str, Any]) -> Rows:
        asked = make_range(dataset, begin, end, where, (), False, 0)
        try:
            return await self._ranges.read(asked, self._seconds)
        except errors.NotFound:
            table = await self._tickets.fetch(asked).result()
            return Rows(tuple(table.column_names), [tuple(row.values()) for row in table.to_pylist()])

    async def _tech(self, key: Key) -> dict[str, Any] | None:
        for table, since in (
            ("hot.technical_indicators", datetime.now(UTC) - RECENT),
            ("live.technical_indicators", _EVER),
        ):
            rows = await self._hot.fetch(
                _TECH.format(table=table), key.part("symbol"), key.part("indicator"), since,
                seconds=self._seconds, subject="technical_indicators",
            )  # fmt: skip
            if rows:
                return dict(rows[0])
        return None

    async def _summary(self, key: Key) -> dict[str, Any] | None:
        rows = await self._hot.fetch(
            _SUMMARY, key.part("market"), key.part("timeframe"), datetime.now(UTC) - RECENT,
            seconds=self._seconds, subject="market_bars",
        )  # fmt: skip
        return dict(rows[0]) if rows and rows[0]["symbols"] else None

    async def _analysis(self, key: Key) -> dict[str, Any] | None:
        wanted = {"session_id": key.part("session_id"), "symbol": key.part("symbol")}
        for documents, collection in (
            (self._documents, "analysis_sessions"),
            (self._warm_documents, "warm_analysis_sessions"),
        ):
            found = await documents.find(collection, wanted, seconds=self._seconds, limit=1)
            if found:
                return found[0]
        return None

    async def _sentiment(self, key: Key) -> dict[str, Any] | None:
        span = SPANS.get(key.part("timeframe"))
        if span is None:
            raise errors.PermanentError("read", key.text, "no such timeframe", f"Known: {', '.join(SPANS)}.")
        end = datetime.now(UTC)
        rows = await self._rows("social_sentiment", end - span, end, {"symbol": key.part("symbol")})
        if not rows.tuples:
            return None
        score, posts = rows.columns.index("score"), rows.columns.index("post_count")
        weights = [float(row[posts] or 1) for row in rows.tuples]
        mean = sum(float(row[score] or 0.0) * w for row, w in zip(rows.tuples, weights, strict=True)) / sum(weights)
        return {"score": mean, "posts": int(sum(weights)), "until": end}

    async def _news(self, key: Key) -> list[dict[str, Any]] | None:
        begin, end = _day(key)
        rows = await self._rows("news", begin, end, {"symbol": key.part("symbol")})
        return [dict(zip(rows.columns, row, strict=True)) for row in rows.tuples[:NEWS_MAX]] or None

    async def _watchlist(self, key: Key) -> list[Any] | None:
        settings = await self._prefs(key)
        found = settings.get("watchlist") if settings else None
        return list(found) if isinstance(found, list) else None

    async def _prefs(self, key: Key) -> dict[str, Any] | None:
        rows = await self._hot.fetch(
            "SELECT settings FROM hot.user_configurations WHERE user_id = $1", key.part("user_id"),
            seconds=self._seconds, subject="user_configurations",
        )  # fmt: skip
        return dict(rows[0][0]) if rows else None


_EVER = datetime(1970, 1, 1, tzinfo=UTC)


def _day(key: Key) -> tuple[datetime, datetime]:
    """The day of a key at its exchange, as instants; PermanentError where it is no date."""
    try:
        midnight = datetime.fromisoformat(key.part("date"))
    except ValueError:
        raise errors.PermanentError("read", key.text, "no date", "Write it as 2024-06-19.") from None
    zone = ZONES.get(market_of(key), UTC)
    begin = midnight.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=zone)
    end = (midnight + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=zone)
    return begin.astimezone(UTC), end.astimezone(UTC)
