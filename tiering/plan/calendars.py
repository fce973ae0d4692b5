"""When exchanges trade, from `exchange-calendars`: Shanghai for CN, Hong Kong for HK, New York for US.

Holidays, half days, lunch breaks and daylight saving come from there; nothing is fetched, nothing is read.
"""

from __future__ import annotations

import contextlib
import warnings
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from tiering.plan.freshness import Sessions

EXCHANGES = {"CN": "XSHG", "HK": "XHKG", "US": "XNYS"}
ZONES = {"CN": ZoneInfo("Asia/Shanghai"), "HK": ZoneInfo("Asia/Hong_Kong"), "US": ZoneInfo("America/New_York")}

MARGIN = timedelta(days=31)
"""A calendar covers a year and a month on either side: the next opening after New Year's Eve is known."""


def sessions_for(market: str, now: datetime) -> Sessions | None:
    """Find the sessions of a market around an instant; None for a market without a calendar, such as "CRYPTO".

    The first call for a year takes a second or so; the next ones nothing.
    """
    return _sessions(market, now.astimezone(UTC).year) if market in EXCHANGES else None


@lru_cache(maxsize=16)
def _sessions(market: str, year: int) -> Sessions:
    begin = datetime(year, 1, 1, tzinfo=UTC) - MARGIN
    # Shanghai announces its holidays a year at a time: what is not announced yet counts by the weekday alone.
    for end in (datetime(year + 1, 1, 1, tzinfo=UTC) + MARGIN, datetime(year + 1, 1, 1, tzinfo=UTC)):
        with contextlib.suppress(ValueError):
            return _known(market, begin, end)
    return Sessions(market, (), (), frozenset(), _offsets(ZONES[market], begin, end), begin, begin)


def _known(market: str, begin: datetime, end: datetime) -> Sessions:
    import exchange_calendars  # with pandas, a second: paid only by those who ask

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, about pandas
        calendar = exchange_calendars.get_calendar(
            EXCHANGES[market], start=begin.date().isoformat(), end=(end - timedelta(days=1)).date().isoformat()
        )
        intervals = [part for row in calendar.schedule.itertuples() for part in _parts(row)]
        days = frozenset(session.date() for session in calendar.sessions)
    opens, closes = zip(*intervals, strict=True)
    return Sessions(market, opens, closes, days, _offsets(ZONES[market], begin, end), begin, end)


def _parts(row: Any) -> list[tuple[datetime, datetime]]:
    """A day's trading: one interval, or two around lunch. A half day may end before lunch does."""
    opens, closes = _instant(row.open), _instant(row.close)
    leaves, returns = _instant(row.break_start), _instant(row.break_end)
    assert opens is not None
    assert closes is not None
    if leaves is None or returns is None or leaves >= closes:
        return [(opens, closes)]
    return [(opens, leaves), *([(returns, closes)] if returns < closes else [])]


def _instant(value: object) -> datetime | None:
    """Turn pandas' instant into Python's; None for its NaT."""
    text = str(value)
    return None if text == "NaT" else datetime.fromisoformat(text).astimezone(UTC)


def _offsets(zone: ZoneInfo, begin: datetime, end: datetime) -> tuple[tuple[datetime, timedelta], ...]:
    """List where local time changes against UTC, to the hour."""
    found: list[tuple[datetime, timedelta]] = []
    at = begin
    while at < end:
        offset = at.astimezone(zone).utcoffset() or timedelta()
        if not found or found[-1][1] != offset:
            found.append((at, offset))
        at += timedelta(hours=1)
    return tuple(found)
