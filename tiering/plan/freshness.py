"""How long a cached answer stays good: by kind of key, by trading session, by volatility; the strictest counts.

Pure: sessions come in as intervals (plan/calendars.py makes them), the instant and the dice as arguments.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum


class Phase(StrEnum):
    """What an exchange does at an instant."""

    TRADING = "trading"
    AFTER_HOURS = "after_hours"
    CLOSED = "closed"


PHASE_SECONDS = {Phase.TRADING: 300, Phase.AFTER_HOURS: 1800, Phase.CLOSED: 3600}
"""After hours: any other hour of a trading day, lunch included. Closed: weekends and holidays, by the local date."""

VOLATILE, LIVELY = 0.40, 0.20
"""Realised volatility, annualised, from which prices count as volatile or lively; below, they are calm."""

VOLATILITY_SECONDS = ((VOLATILE, 60), (LIVELY, 300), (0.0, 900))

JITTER = 0.1
"""The most by which an entry expires early, as a share of its time: those written together do not expire together."""


@dataclass(frozen=True, slots=True)
class Sessions:
    """When an exchange trades: half-open intervals in order of time, a lunch break between two of them.

    Attributes:
        market: "CN", "HK" or "US".
        opens, closes: of each interval, in UTC.
        days: the local dates of trading days.
        offsets: (instant from which it counts, offset of local time from UTC), in order of time: daylight saving.
        begin, end: what the calendar covers; outside, the exchange counts as closed only by the weekday.
    """

    market: str
    opens: tuple[datetime, ...]
    closes: tuple[datetime, ...]
    days: frozenset[date]
    offsets: tuple[tuple[datetime, timedelta], ...]
    begin: datetime
    end: datetime

    def local_date(self, now: datetime) -> date:
        """The date at the exchange."""
        place = bisect_right(self.offsets, now, key=lambda pair: pair[0]) - 1
        return (now + self.offsets[max(place, 0)][1]).date()

    def phase(self, now: datetime) -> Phase:
        """Tell what the exchange does at an instant.

        An instant that the calendar does not cover is after hours on weekdays: neither too fresh nor too stale.
        """
        place = bisect_right(self.opens, now) - 1
        if place >= 0 and now < self.closes[place]:
            return Phase.TRADING
        day = self.local_date(now)
        if self.begin <= now < self.end:
            return Phase.AFTER_HOURS if day in self.days else Phase.CLOSED
        return Phase.CLOSED if day.weekday() >= 5 else Phase.AFTER_HOURS

    def next_open(self, now: datetime) -> datetime | None:
        """The next instant at which trading begins or goes on after lunch; None beyond the calendar."""
        place = bisect_right(self.opens, now)
        return self.opens[place] if place < len(self.opens) else None


def session_seconds(sessions: Sessions, now: datetime) -> float:
    """Choose a time to live by what the exchange does.

    Why it ends soon after the next opening: an answer stored a minute before trading begins would otherwise be
    given for half an hour of trading.
    """
    phase = sessions.phase(now)
    seconds = float(PHASE_SECONDS[phase])
    opens = sessions.next_open(now)
    if phase is not Phase.TRADING and opens is not None:
        seconds = min(seconds, (opens - now).total_seconds() + PHASE_SECONDS[Phase.TRADING])
    return seconds


def realised_volatility(closes: Sequence[float], per_year: float) -> float | None:
    """Annualise the standard deviation of log returns; None where fewer than three positive prices tell nothing.

    Args:
        closes: prices in order of time, evenly spaced.
        per_year: how many such spaces a year of trading has, e.g. 252 for days.
    """
    usable = [price for price in closes if price > 0 and math.isfinite(price)]
    if len(usable) < 3:
        return None
    returns = [math.log(after / before) for before, after in zip(usable, usable[1:], strict=False)]
    mean = math.fsum(returns) / len(returns)
    variance = math.fsum((r - mean) ** 2 for r in returns) / (len(returns) - 1)
    return math.sqrt(variance * per_year)


def volatility_seconds(volatility: float | None) -> float:
    """Choose a time to live by realised volatility; unknown counts as lively."""
    if volatility is None or not math.isfinite(volatility):
        volatility = LIVELY
    return float(next(seconds for least, seconds in VOLATILITY_SECONDS if volatility >= least))


def time_to_live(
    base: float,
    sessions: Sessions | None,
    now: datetime,
    volatility: float | None = None,
    *,
    by_volatility: bool = False,
) -> float:
    """Choose the seconds that an entry lives: the least of its kind's, the session's and the volatility's.

    Args:
        base: seconds of its kind of key.
        sessions: of its market; None: trading hours do not matter to it.
        now: when it is stored.
        volatility: of its symbol, realised and annualised; None: unknown.
        by_volatility: whether volatility matters to it.
    """
    limits = [base]
    if sessions is not None:
        limits.append(session_seconds(sessions, now))
    if by_volatility:
        limits.append(volatility_seconds(volatility))
    return min(limits)


def jittered(seconds: float, dice: float) -> float:
    """Shorten a time to live by up to JITTER of it; `dice` is a random number in [0, 1). Never longer than declared."""
    return seconds * (1.0 - JITTER * dice)
