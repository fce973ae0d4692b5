"""How long a cached answer stays good, on days that trip calendars up."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiering.plan.calendars import sessions_for
from tiering.plan.freshness import (
    JITTER,
    Phase,
    jittered,
    realised_volatility,
    session_seconds,
    time_to_live,
    volatility_seconds,
)


def phase(market: str, text: str) -> Phase:
    now = datetime.fromisoformat(text).astimezone(UTC)
    sessions = sessions_for(market, now)
    assert sessions is not None
    return sessions.phase(now)


@pytest.mark.parametrize(
    ("market", "local", "expected"),
    [
        # An ordinary Wednesday, with the lunch breaks of Shanghai and Hong Kong.
        ("CN", "2024-06-19T09:29:59+08:00", "after_hours"),
        ("CN", "2024-06-19T09:30:00+08:00", "trading"),
        ("CN", "2024-06-19T11:29:59+08:00", "trading"),
        ("CN", "2024-06-19T11:30:00+08:00", "after_hours"),
        ("CN", "2024-06-19T12:59:59+08:00", "after_hours"),
        ("CN", "2024-06-19T13:00:00+08:00", "trading"),
        ("CN", "2024-06-19T15:00:00+08:00", "after_hours"),
        ("HK", "2024-06-19T12:00:00+08:00", "after_hours"),
        ("HK", "2024-06-19T13:00:00+08:00", "trading"),
        ("HK", "2024-06-19T15:59:59+08:00", "trading"),
        ("US", "2024-06-18T12:00:00-04:00", "trading"),
        # Holidays: Juneteenth, the Chinese national week, the day of a new lunar year.
        ("US", "2024-06-19T12:00:00-04:00", "closed"),
        ("CN", "2024-10-01T10:00:00+08:00", "closed"),
        ("CN", "2024-10-07T10:00:00+08:00", "closed"),
        ("HK", "2024-10-02T10:00:00+08:00", "trading"),
        ("HK", "2024-02-12T10:00:00+08:00", "closed"),
        # China works on some Saturdays before holidays; its exchange does not.
        ("CN", "2024-09-29T10:00:00+08:00", "closed"),
        # Half days: the Friday after Thanksgiving ends at 13:00, a lunar new year's eve in Hong Kong at noon.
        ("US", "2024-11-29T12:59:59-05:00", "trading"),
        ("US", "2024-11-29T13:00:00-05:00", "after_hours"),
        ("HK", "2024-02-09T11:59:59+08:00", "trading"),
        ("HK", "2024-02-09T13:30:00+08:00", "after_hours"),
        # Daylight saving: New York opens at 14:30 UTC in winter, at 13:30 UTC from 11 March 2024.
        ("US", "2024-03-08T13:45:00+00:00", "after_hours"),
        ("US", "2024-03-11T13:45:00+00:00", "trading"),
        ("US", "2024-11-01T13:45:00+00:00", "trading"),
        ("US", "2024-11-04T13:45:00+00:00", "after_hours"),
        # Friday evening in New York is Saturday in UTC; Sunday evening is Monday.
        ("US", "2024-06-14T21:00:00-04:00", "after_hours"),
        ("US", "2024-06-16T21:00:00-04:00", "closed"),
        # Shanghai announces its holidays a year ahead: 2027 is not known here, and counts by the weekday.
        ("CN", "2027-06-15T10:00:00+08:00", "after_hours"),
        ("CN", "2027-06-19T10:00:00+08:00", "closed"),
        # Saturday morning in Shanghai is Friday in UTC.
        ("CN", "2024-06-15T06:00:00+08:00", "closed"),
    ],
)
def test_what_an_exchange_does(market: str, local: str, expected: str) -> None:
    assert phase(market, local) == expected


def test_a_market_without_calendar_has_no_sessions() -> None:
    assert sessions_for("CRYPTO", datetime(2024, 6, 19, tzinfo=UTC)) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2024-06-19T10:00:00+08:00", 300),
        ("2024-06-19T20:00:00+08:00", 1800),
        ("2024-06-15T12:00:00+08:00", 3600),
        ("2024-06-19T12:59:00+08:00", 60 + 300),  # not half an hour into the afternoon
        ("2024-06-19T09:20:00+08:00", 600 + 300),
    ],
)
def test_seconds_by_session(text: str, seconds: float) -> None:
    now = datetime.fromisoformat(text).astimezone(UTC)
    sessions = sessions_for("CN", now)
    assert sessions is not None
    assert session_seconds(sessions, now) == seconds


def test_the_stricter_wins() -> None:
    now = datetime(2024, 6, 19, 2, tzinfo=UTC)  # trading in Shanghai
    sessions = sessions_for("CN", now)
    assert time_to_live(60, sessions, now, 0.1, by_volatility=True) == 60
    assert time_to_live(3600, sessions, now, 0.1, by_volatility=True) == 300
    assert time_to_live(3600, sessions, now, 0.5, by_volatility=True) == 60
    assert time_to_live(3600, sessions, now, 0.5) == 300
    assert time_to_live(86400, None, now) == 86400
    closed = now + timedelta(days=3)
    assert time_to_live(86400, sessions, closed) == 3600
    assert time_to_live(86400, sessions, closed, 0.3, by_volatility=True) == 300


def test_classes_of_volatility() -> None:
    assert [volatility_seconds(v) for v in (0.0, 0.1999, 0.20, 0.3999, 0.40, 3.0)] == [900, 900, 300, 300, 60, 60]
    assert volatility_seconds(None) == volatility_seconds(math.nan) == volatility_seconds(math.inf) == 300


def test_realised_volatility_of_known_prices() -> None:
    # Returns alternate between +1 % and -1 % in logarithms: the deviation is 0.01 * sqrt(n / (n - 1)).
    closes = [100.0]
    for number in range(100):
        closes.append(closes[-1] * math.exp(0.01 if number % 2 else -0.01))
    found = realised_volatility(closes, 252)
    assert found == pytest.approx(0.01 * math.sqrt(100 / 99) * math.sqrt(252))
    assert realised_volatility([1.0, 2.0], 252) is None
    assert realised_volatility([0.0, math.nan, -1.0, 5.0], 252) is None
    assert realised_volatility([7.0] * 10, 252) == 0.0


@given(seconds=st.floats(0.001, 1e6), dice=st.floats(0, 1, exclude_max=True))
def test_jitter_only_shortens(seconds: float, dice: float) -> None:
    assert seconds * (1 - JITTER) <= jittered(seconds, dice) <= seconds


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(["CN", "HK", "US"]),
    st.datetimes(datetime(2024, 1, 1), datetime(2024, 12, 31)),
    st.floats(1, 1e5),
    st.none() | st.floats(0, 2),
)
def test_no_limit_is_ever_passed(market: str, naive: datetime, base: float, volatility: float | None) -> None:
    now = naive.replace(tzinfo=UTC)
    sessions = sessions_for(market, now)
    assert sessions is not None
    seconds = time_to_live(base, sessions, now, volatility, by_volatility=True)
    assert 0 < seconds <= min(base, 3600, volatility_seconds(volatility))
    opens = sessions.next_open(now)
    if sessions.phase(now) is not Phase.TRADING and opens is not None:
        assert now + timedelta(seconds=seconds) <= opens + timedelta(seconds=300)
