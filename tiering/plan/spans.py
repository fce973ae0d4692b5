"""Calendar lengths: read them, count back and forth with them, cut time into units.

Everything is UTC and pure. A month is a calendar month, never 30 days: 31 March less one month is the
last of February. Lengths below an hour are refused, so that `6m` can only mean six months.
"""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import UTC, datetime, timedelta

from tiering.errors import PolicyError
from tiering.model import Span

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EARLIEST = datetime.min.replace(tzinfo=UTC)
LATEST = datetime.max.replace(tzinfo=UTC)

YEARS_MAX = 1000
"""Longer than any retention, short enough for every sum below to stay inside `datetime`'s years."""

_PART = re.compile(r"\s*(\d+)\s*([a-z]+)\s*")
_HOURS = dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), Span(hours=1))
_DAYS = dict.fromkeys(("d", "day", "days"), Span(days=1)) | dict.fromkeys(("w", "week", "weeks"), Span(days=7))
_MONTHS = dict.fromkeys(("m", "mo", "mon", "month", "months"), Span(months=1))
_YEARS = dict.fromkeys(("y", "yr", "yrs", "year", "years"), Span(months=12))
_LETTERS = _HOURS | _DAYS | _MONTHS | _YEARS
_TOO_SHORT = {"min", "mins", "minute", "minutes", "s", "sec", "secs", "second", "seconds", "ms", "us", "ns"}
_HINT = "Write a whole number and h, d, w, mo or y, for example 4h, 7d, 6mo, 2y."

# The first of every month in a leap cycle: enough to tell whether one length is ever longer than another.
_LEAP_CYCLE = tuple(datetime(year, month, 1, tzinfo=UTC) for year in range(2021, 2025) for month in range(1, 13))


def parse_span(text: str) -> Span:
    """Read a length as people write it: `7d`, `4h`, `2y`, `6m` (= `6mo`), `3 months`, `1y6mo`.

    Raises:
        PolicyError: nothing that is a length, or one counted in minutes or seconds.
    """
    total, position = Span(), 0
    lowered = text.strip().lower() if isinstance(text, str) else ""
    while position < len(lowered):
        part = _PART.match(lowered, position)
        if part is None:
            raise _refuse(text, "not a length of time")
        total = _plus(total, int(part[1]), part[2], text)
        position = part.end()
    if not lowered:
        raise _refuse(text, "not a length of time")
    if total.months > YEARS_MAX * 12 or total.days > YEARS_MAX * 366 or total.hours > YEARS_MAX * 8784:
        raise _refuse(text, f"longer than {YEARS_MAX} years")
    return total


def _plus(total: Span, count: int, letters: str, text: str) -> Span:
    if letters in _TOO_SHORT:
        raise _refuse(text, "minutes and seconds are refused: `m` means months, and nothing moves sooner than an hour")
    one = _LETTERS.get(letters)
    if one is None:
        raise _refuse(text, f"{letters!r} is no unit of time")
    return Span(
        months=total.months + one.months * count,
        days=total.days + one.days * count,
        hours=total.hours + one.hours * count,
    )


def _refuse(text: object, cause: str) -> PolicyError:
    return PolicyError("read length", repr(text), cause, _HINT)


def in_utc(instant: datetime) -> datetime:
    """Express an instant in UTC.

    Raises:
        ValueError: the instant has no time zone, so it is no instant.
    """
    if instant.tzinfo is UTC:
        return instant
    if instant.utcoffset() is None:
        raise ValueError(f"{instant.isoformat()} has no time zone; write it with one, e.g. {instant.isoformat()}Z")
    return instant.astimezone(UTC)


def subtract(instant: datetime, span: Span) -> datetime:
    """Count back: months first (clipped to the month's last day), then days and hours.

    The result never leaves `datetime`'s years; it stops at the first or last instant of them.
    """
    moved = _months_later(in_utc(instant), -span.months)
    delta = _delta(span)
    return EARLIEST if moved - EARLIEST < delta else moved - delta


def add(instant: datetime, span: Span) -> datetime:
    """Count forth: days and hours first, then months, so that it mirrors `subtract`."""
    delta = _delta(span)
    start = in_utc(instant)
    return _months_later(LATEST if LATEST - start < delta else start + delta, span.months)


def due(end: datetime, span: Span) -> datetime:
    """Find the first instant from which `subtract(instant, span)` is `end` or later.

    Not simply `add`: 31 January plus a month is 28 February, but a month before 28 February is still
    28 January; only on 1 March is 31 January a month ago.
    """
    found = add(end, span)
    if not span.months:
        return found
    if subtract(found, span) >= in_utc(end) or found.year == LATEST.year:
        return found
    return _months_later(found.replace(day=1, hour=0, minute=0, second=0, microsecond=0), 1)


def never_longer(one: Span, other: Span) -> bool:
    """Tell whether `one` is at most as long as `other` whatever the date.

    Judged at every month of a leap cycle instead of one date, because 30d is longer than a month in
    February and shorter in March; an order that holds only for part of the year is no order.
    """
    return all(subtract(day, one) >= subtract(day, other) for day in _LEAP_CYCLE)


def unit_of(instant: datetime, unit: Span) -> tuple[datetime, datetime]:
    """Find the `[begin, end)` that an instant falls into; days are counted from 1970-01-01 UTC.

    Raises:
        ValueError: the instant is naive, or the length is not a unit (see `unit_problem`).
    """
    when, problem = in_utc(instant), unit_problem(unit)
    if problem:
        raise ValueError(f"unit {unit}: {problem}")
    if unit.months:
        first = (when.year * 12 + when.month - 1) // unit.months * unit.months
        return _month(first), _month(first + unit.months)
    length = _delta(unit)
    elapsed = (when - EPOCH) % length
    begin = EARLIEST if when - EARLIEST < elapsed else when - elapsed
    return begin, LATEST if LATEST - when < length - elapsed else when + (length - elapsed)


def unit_problem(unit: Span) -> str:
    """Say why a length cannot be the unit of a dataset; empty when it can."""
    set_fields = [name for name in ("months", "days", "hours") if getattr(unit, name)]
    if len(set_fields) != 1:
        return "a unit is hours, days, months or years, not a mixture and not nothing"
    if unit.hours and 24 % unit.hours:
        return "hours must divide the day (1, 2, 3, 4, 6, 8, 12, 24)"
    if unit.months and 12 % unit.months and unit.months % 12:
        return "months must divide the year (1, 2, 3, 4, 6, 12) or be whole years"
    return ""


def _delta(span: Span) -> timedelta:
    return timedelta(days=span.days, hours=span.hours)


def _months_later(instant: datetime, months: int) -> datetime:
    if not months:
        return instant
    first = _month(instant.year * 12 + instant.month - 1 + months)
    if first in (EARLIEST, LATEST):
        return first
    return instant.replace(year=first.year, month=first.month, day=min(instant.day, _length(first)))


def _length(month: datetime) -> int:
    return monthrange(month.year, month.month)[1]


def _month(index: int) -> datetime:
    """The first instant of the month that is `index` months after year 0, within `datetime`'s years."""
    year, month = divmod(index, 12)
    if year < EARLIEST.year:
        return EARLIEST
    return LATEST if year > LATEST.year else datetime(year, month + 1, 1, tzinfo=UTC)
