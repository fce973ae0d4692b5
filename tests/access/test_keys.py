"""The table of keys says what the owner's document says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiering.access import keys
from tiering.access.keys import KINDS, Kind, market_of
from tiering.errors import PermanentError

DOCUMENT = {
    "quote:{symbol}:{market}": 60,
    "price:{symbol}:latest": 300,
    "volume:{symbol}:spike": 600,
    "ohlcv:{symbol}:{date}": 86400,
    "tech:{symbol}:{indicator}": 3600,
    "summary:{market}:{timeframe}": 1800,
    "analysis:{symbol}:{session_id}": 7200,
    "sentiment:{symbol}:{timeframe}": 1800,
    "news:{symbol}:{date}": 3600,
    "session:{user_id}": 86400,
    "watchlist:{user_id}": 3600,
    "prefs:{user_id}": 86400,
}


def test_every_line_of_the_document_is_there() -> None:
    known = {kind.pattern: kind.seconds for kind in KINDS}
    assert {pattern: known.get(pattern) for pattern in DOCUMENT} == DOCUMENT
    assert [kind.seconds for kind in (keys.LATEST, keys.SIGNALS, keys.INFERENCE)] == [3600, 14400, 1800]
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_what_one_user_owns_is_never_stale() -> None:
    assert not any(kind.stale_seconds for kind in KINDS if "user_id" in kind.parts or kind is keys.ROW)


def test_keys_read_as_the_document_writes_them() -> None:
    assert str(keys.QUOTE.key("600519", "CN")) == "quote:600519:CN"
    assert str(keys.PRICE.key("AAPL")) == "price:AAPL:latest"
    assert keys.QUOTE.key("600519", "CN") is keys.QUOTE.key("600519", "CN")
    assert keys.QUOTE.key("600519", "CN").part("market") == "CN"
    assert keys.PRICE.key("AAPL").part("market") == ""


@pytest.mark.parametrize("parts", [(), ("a",), ("a", "b", "c"), ("a", ""), ("", "b")])
def test_wrong_parts_are_refused(parts: tuple[str, ...]) -> None:
    with pytest.raises(PermanentError, match="takes symbol, market"):
        keys.QUOTE.key(*parts)


@given(st.sampled_from([keys.QUOTE, keys.ANALYSIS, keys.ROW]), *[st.text(min_size=1) for _ in range(4)])
def test_no_two_keys_meet_and_no_part_picks_its_slot(kind: Kind, a: str, b: str, c: str, d: str) -> None:
    one, other = kind.key(a, b), kind.key(c, d)
    assert (one.text == other.text) == ((a, b) == (c, d))
    assert "{" not in one.text
    assert one.text.count(":") == kind.pattern.count(":")


@pytest.mark.parametrize(
    ("symbol", "market"),
    [("600519", "CN"), ("600519.SH", "CN"), ("430047.BJ", "CN"), ("00700", "HK"), ("AAPL", "US"), ("BRK.B", "US")],
)
def test_the_market_of_a_symbol(symbol: str, market: str) -> None:
    assert market_of(keys.PRICE.key(symbol)) == market
    assert market_of(keys.QUOTE.key(symbol, "HK")) == "HK"
    assert market_of(keys.PREFS.key("u-1")) == ""
