"""Which keys of the cache a row changes the answer of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from tiering.access import keys
from tiering.access.keys import Key, escaped, market_of
from tiering.model import Dataset
from tiering.plan.calendars import ZONES

Row = Mapping[str, Any]

DECIDING = ("symbol", "market", "ts", "indicator", "user_id", "publish_time", "session_id")
"""The columns that `touched` looks at."""


def row_key(dataset: str, key: Sequence[str], row: Row) -> Key:
    """The cache key of a row, by the values of its primary key."""
    return keys.ROW.key(dataset, "|".join(_as_text(row[name]) for name in key))


def _as_text(value: Any) -> str:
    """Write a value so that equal values are equal texts, and no text holds the separator."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Decimal):
        return format(value.normalize(), "f")
    return str(value).replace("\\", "\\\\").replace("|", "\\p")


def touched(dataset: Dataset, row: Row) -> list[Key]:
    """The keys of the table that a row changes the answer of, besides its own.

    Left out are those that may be stale by declaration and sum up many rows (`summary:`, `sentiment:`): each write
    of a bar would fetch them anew.
    """
    symbol = str(row.get("symbol") or "")
    if dataset.name == "market_bars" and symbol:
        found = [keys.PRICE.key(symbol), keys.VOLUME.key(symbol)]
        if row.get("market"):
            found.append(keys.QUOTE.key(symbol, str(row["market"])))
        return found + _dated(keys.OHLCV, symbol, row.get("ts"))
    if dataset.name == "technical_indicators" and symbol and row.get("indicator"):
        return [keys.TECH.key(symbol, str(row["indicator"]))]
    if dataset.name == "user_configurations" and row.get("user_id"):
        return [keys.PREFS.key(str(row["user_id"])), keys.WATCHLIST.key(str(row["user_id"]))]
    if dataset.name == "news" and symbol:
        return _dated(keys.NEWS, symbol, row.get("publish_time"))
    if dataset.name == "analysis_sessions" and symbol and row.get("session_id"):
        return [keys.ANALYSIS.key(symbol, str(row["session_id"]))]
    return []


def _dated(kind: keys.Kind, symbol: str, at: Any) -> list[Key]:
    if not isinstance(at, datetime):
        return []
    market = market_of(kind.key(symbol, "1970-01-01"))
    day: date = at.astimezone(ZONES.get(market, UTC)).date()
    return [kind.key(symbol, day.isoformat())]


def touched_by_many(dataset: Dataset, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> set[Key]:
    """As `touched`, of many rows at once: rows alike in all that decides, to the quarter of an hour, count once."""
    places = [(place, name) for place, name in enumerate(columns) if name in DECIDING]
    seen: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        decides = tuple(
            (value.year, value.month, value.day, value.hour, value.minute // 15, value.tzinfo)
            if isinstance(value, datetime)
            else value
            for value in [row[place] for place, _ in places]
        )
        if decides not in seen:
            seen[decides] = {name: row[place] for place, name in places}
    return {key for row in seen.values() for key in touched(dataset, row)}


def row_texts(dataset: str, places: Sequence[int], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """The texts of the `row_key`s of many rows, given where their key's values are."""
    prefix = keys.ROW.key(dataset, "x").text[:-1]
    return (prefix + escaped("|".join([_as_text(row[place]) for place in places])) for row in rows)
