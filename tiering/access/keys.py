"""The one table of cache keys and how long they live, from the owner's document.

A kind makes keys: `QUOTE.key("600519", "CN")` is `quote:600519:CN`. Parts are escaped, so that no symbol or user id,
however it is spelt, can reach into another key or choose a slot of the cluster by braces.
Does not: read or write a cache.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from tiering.errors import PermanentError

_UNSAFE = re.compile(r"[%:{}\s\x00-\x1f]")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of key: its pattern, how long its entries live, and what shortens that.

    Attributes:
        name: unique; label of its metrics.
        pattern: parts in braces, in the order in which `key` takes them.
        seconds: the longest that an entry lives.
        by_session: trading hours of its market shorten that (plan/freshness.py).
        by_volatility: so does its symbol's volatility.
        stale_seconds: an entry this much too old may still be given while a new one is fetched; 0: never.
        missing_seconds: how long "there is none" is remembered; 0: it is not.
        source: what a miss asks, by the name of a loader (access/sources.py); empty: the caller's own.
    """

    name: str
    pattern: str
    seconds: int
    by_session: bool = False
    by_volatility: bool = False
    stale_seconds: int = 0
    missing_seconds: int = 5
    source: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of its parts, in order."""
        return tuple(re.findall(r"{(\w+)}", self.pattern))

    def key(self, *parts: str) -> Key:
        """Make the key of these parts.

        Raises:
            PermanentError: too many parts, too few, or an empty one.
        """
        return _make(self, parts)


@dataclass(frozen=True, slots=True)
class Key:
    """One key: its kind, its parts as given, and its text in Redis."""

    kind: Kind
    parts: tuple[str, ...]
    text: str

    def part(self, name: str) -> str:
        """A part by its name; empty where the kind has none of that name."""
        names = self.kind.parts
        return self.parts[names.index(name)] if name in names else ""

    def __str__(self) -> str:
        return self.text


def escaped(part: str) -> str:
    """A part as it stands in a key's text."""
    return _UNSAFE.sub(_hex, part)


def _hex(found: re.Match[str]) -> str:
    return f"%{ord(found[0]):02X}"


@lru_cache(maxsize=65536)
def _make(kind: Kind, parts: tuple[str, ...]) -> Key:
    names = kind.parts
    if len(parts) != len(names) or not all(parts):
        raise PermanentError("make key", kind.pattern, f"takes {', '.join(names)}, each not empty", "Give every part.")
    text = kind.pattern
    for name, part in zip(names, parts, strict=True):
        text = text.replace("{" + name + "}", escaped(part), 1)
    return Key(kind, parts, text)


# The owner's document, line by line.
QUOTE: Final = Kind(
    "quote", "quote:{symbol}:{market}", 60, by_session=True, by_volatility=True, stale_seconds=60, source="quote"
)
PRICE: Final = Kind(
    "price", "price:{symbol}:latest", 300, by_session=True, by_volatility=True, stale_seconds=300, source="price"
)
VOLUME: Final = Kind("volume", "volume:{symbol}:spike", 600, by_session=True, stale_seconds=300, source="volume")
OHLCV: Final = Kind("ohlcv", "ohlcv:{symbol}:{date}", _DAY, by_session=True, source="ohlcv")
TECH: Final = Kind("tech", "tech:{symbol}:{indicator}", _HOUR, by_session=True, stale_seconds=300, source="tech")
SUMMARY: Final = Kind(
    "summary", "summary:{market}:{timeframe}", 30 * _MINUTE, by_session=True, stale_seconds=300, source="summary"
)
ANALYSIS: Final = Kind("analysis", "analysis:{symbol}:{session_id}", 2 * _HOUR, source="analysis")
SENTIMENT: Final = Kind(
    "sentiment", "sentiment:{symbol}:{timeframe}", 30 * _MINUTE, stale_seconds=300, source="sentiment"
)
NEWS: Final = Kind("news", "news:{symbol}:{date}", _HOUR, stale_seconds=300, source="news")
SESSION: Final = Kind("session", "session:{user_id}", _DAY, missing_seconds=0)
WATCHLIST: Final = Kind("watchlist", "watchlist:{user_id}", _HOUR, source="watchlist")
PREFS: Final = Kind("prefs", "prefs:{user_id}", _DAY, source="prefs")

# Its three classes: for answers that have no line of their own. The caller names the dataset and what was asked.
LATEST: Final = Kind("latest", "latest:{dataset}:{name}", _HOUR, by_session=True, stale_seconds=300)
SIGNALS: Final = Kind("signals", "signals:{dataset}:{name}", 4 * _HOUR)
INFERENCE: Final = Kind("inference", "inference:{model}:{name}", 30 * _MINUTE)

# The row of a table by its key: what `real_time` writes keep in step (access/write.py). Never stale, never guessed.
ROW: Final = Kind("row", "row:{dataset}:{name}", _HOUR)

KINDS: Final = (
    QUOTE, PRICE, VOLUME, OHLCV, TECH, SUMMARY, ANALYSIS, SENTIMENT, NEWS, SESSION, WATCHLIST, PREFS,
    LATEST, SIGNALS, INFERENCE, ROW,
)  # fmt: skip

MARKET_SUFFIXES: Final = {"SH": "CN", "SZ": "CN", "BJ": "CN", "SS": "CN", "HK": "HK"}


def market_of(key: Key) -> str:
    """The market whose trading hours count for a key: as it says, else by its symbol (`600519.SH`, `00700`, `AAPL`)."""
    if market := key.part("market"):
        return market
    symbol = key.part("symbol")
    suffix = symbol.rpartition(".")[2].upper() if "." in symbol else ""
    if suffix in MARKET_SUFFIXES:
        return MARKET_SUFFIXES[suffix]
    if symbol.isdigit():
        return "CN" if len(symbol) == 6 else "HK"
    return "US" if symbol else ""
