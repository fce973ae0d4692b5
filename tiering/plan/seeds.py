"""Choose the times that seeded history is of: sample days in every tier's age range, and never too near an edge.

Does not: make rows (ops/seed.py), read a clock or throw dice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from math import ceil

from tiering.model import Dataset, Form, Policy, Span
from tiering.plan.spans import in_utc, subtract, unit_of

SESSION_BEGIN = time(14, 30)
SESSION_MINUTES = 390
"""A trading session as minute bars: 14:30 to 21:00 UTC."""

EDGE = timedelta(days=4)
"""Sample days keep this far from the edge of an age range: a holiday's length, so that what a day is seeded for
is what happens to it."""

BEYOND_RETENTION = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class AgeRange:
    """The time `[begin, end)` whose rows a policy wants in one place: "hot", "warm", "cold" or "expired"."""

    name: str
    begin: datetime
    end: datetime


def age_ranges(policy: Policy, now: datetime) -> list[AgeRange]:
    """Cut the past into the policy's age ranges, oldest first; a stage that never happens leaves its range out."""
    now = in_utc(now)
    edges: list[tuple[str, Span | None]] = [
        ("hot", policy.hot_to_warm),
        ("warm", policy.warm_to_cold),
        ("cold", policy.retention),
    ]
    found, end = [], now
    for name, span in edges:
        begin = subtract(now, span) if span else end - BEYOND_RETENTION
        if begin < end:
            found.append(AgeRange(name, begin, end))
            end = begin
        if span is None:
            return found[::-1]
    return [AgeRange("expired", end - BEYOND_RETENTION, end), *found[::-1]]


def trading_days(dataset: Dataset, now: datetime, per_range: int) -> list[datetime]:
    """Choose up to `per_range` trading days (midnights UTC) in each age range, oldest first, each day once.

    The hot range's are its newest ones, and end with the newest day whose session has begun: its last row is the
    reference that every age is measured against.
    """
    chosen: set[datetime] = set()
    for span in age_ranges(dataset.policy, now):
        chosen.update(_newest_days(span, now, per_range) if span.name == "hot" else _spread_days(span, per_range))
    return sorted(chosen)


def sample_units(dataset: Dataset, now: datetime, per_range: int) -> list[tuple[datetime, datetime]]:
    """Choose up to `per_range` units in each age range, oldest first, each once.

    The hot range's are its newest ones and end with that of `now`, whose newest row is of that instant: the
    reference that every age is measured against. The others lie whole inside their range and not at its edges.
    """
    now = in_utc(now)
    newest, *older = _ranges(dataset, now)[::-1]
    unit = unit_of(now, dataset.unit)
    found = {unit}
    while len(found) < per_range and unit[1] > newest.begin:
        found.add(unit)
        unit = unit_of(unit[0] - timedelta(microseconds=1), dataset.unit)
    for span in older:
        edge = min(EDGE, (span.end - span.begin) / 8)
        begin, length = span.begin + edge, span.end - span.begin - 2 * edge
        for number in range(per_range):
            unit = unit_of(begin + length * (number + 0.5) / per_range, dataset.unit)
            if span.begin <= unit[0] and unit[1] <= span.end - edge:
                found.add(unit)
    return sorted(found)


def _ranges(dataset: Dataset, now: datetime) -> list[AgeRange]:
    """The age ranges of a dataset, oldest first; of files those of their storage classes."""
    if dataset.form is not Form.FILES:
        return age_ranges(dataset.policy, now)
    ages = [*(age for _, age in dataset.storage), *filter(None, [dataset.policy.retention])]
    edges = [now, *(subtract(now, age) for age in ages)]
    edges.append(edges[-1] - BEYOND_RETENTION)
    return [AgeRange("hot" if end == now else "older", begin, end) for end, begin in pairwise(edges)][::-1]


def days_for_rows(rows: int, symbols: int, ranges: int) -> int:
    """Say how many days per age range make at least `rows` minute bars."""
    return max(1, ceil(rows / (symbols * SESSION_MINUTES * max(1, ranges))))


def report_dates(dataset: Dataset, now: datetime) -> list[tuple[datetime, datetime]]:
    """List (quarter's end, publication) of every quarter published inside the retention and the year before it."""
    now = in_utc(now)
    oldest = age_ranges(dataset.policy, now)[0].begin
    found = []
    for year in range(oldest.year, now.year + 1):
        for month, day in ((3, 31), (6, 30), (9, 30), (12, 31)):
            quarter = datetime(year, month, day, tzinfo=UTC)
            published = quarter + timedelta(days=45, hours=21)
            if oldest <= published <= now:
                found.append((quarter, published))
    return found


def is_trading_day(day: datetime) -> bool:
    """Tell whether markets are open: Monday to Friday."""
    return day.weekday() < 5


def _newest_days(span: AgeRange, now: datetime, count: int) -> Sequence[datetime]:
    found: list[datetime] = []
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    while len(found) < count and day >= span.begin:
        if is_trading_day(day) and datetime.combine(day, SESSION_BEGIN, UTC) <= now:
            found.append(day)
        day -= timedelta(days=1)
    return found


def _spread_days(span: AgeRange, count: int) -> Sequence[datetime]:
    # Two edges: a whole unit must be inside, and the reference clock lags `now` by a weekend.
    begin, end = span.begin + EDGE, span.end - 2 * EDGE
    if end <= begin:
        begin, end = span.begin, span.end
    found = []
    for number in range(count):
        day = begin + (end - begin) * (number + 0.5) / count
        day = day.replace(hour=0, minute=0, second=0, microsecond=0)
        while not is_trading_day(day):
            day -= timedelta(days=1)
        found.append(day)
    return found
