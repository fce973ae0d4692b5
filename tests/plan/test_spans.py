"""Calendar lengths: reading, counting back and forth, cutting time into units."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given

from tests.strategies import instants, spans, units_of_time
from tiering.errors import PolicyError
from tiering.model import Span
from tiering.plan.spans import LATEST, add, due, in_utc, never_longer, parse_span, subtract, unit_of, unit_problem


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("7d", "7d"),
        ("4h", "4h"),
        ("2y", "2y"),
        ("6m", "6mo"),
        ("6M", "6mo"),
        ("6mo", "6mo"),
        ("3 months", "3mo"),
        ("1 month", "1mo"),
        ("18 months", "1y6mo"),
        ("1y6mo", "1y6mo"),
        (" 2 weeks ", "14d"),
        ("24 hours", "24h"),
        ("0d", "0h"),
    ],
)
def test_lengths_are_read_as_people_write_them(text: str, canonical: str) -> None:
    assert str(parse_span(text)) == canonical


@pytest.mark.parametrize("text", ["30min", "5 minutes", "90s", "1 minute", "10 secs", "1h30min", "250ms"])
def test_anything_below_an_hour_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(PolicyError) as refused:
        parse_span(text)
    assert "minutes and seconds are refused" in refused.value.cause
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", " ", "7", "d", "-7d", "7.5d", "7 fortnights", "P7D", "7d ago", "1001y", "99999999999d"]
)
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(PolicyError):
        parse_span(text)


def test_a_number_without_unit_is_refused_even_when_it_is_no_text() -> None:
    with pytest.raises(PolicyError, match="not a length of time"):
        parse_span(7)  # type: ignore[arg-type]


@given(spans)
def test_the_canonical_text_reads_back_as_the_same_length(span: Span) -> None:
    assert parse_span(str(span)) == span


@pytest.mark.parametrize(
    ("instant", "text", "expected"),
    [
        (utc(2023, 3, 31), "1mo", utc(2023, 2, 28)),
        (utc(2024, 3, 31), "1mo", utc(2024, 2, 29)),
        (utc(2024, 2, 29, 8), "1y", utc(2023, 2, 28, 8)),
        (utc(2024, 1, 15), "1mo", utc(2023, 12, 15)),
        (utc(2024, 3, 1), "1d", utc(2024, 2, 29)),
        (utc(2024, 3, 1, 3), "4h", utc(2024, 2, 29, 23)),
        (utc(2024, 1, 1), "1000y1000y", None),
        (utc(900, 1, 1), "1000y", utc(1, 1, 1)),
    ],
)
def test_months_are_calendar_months(instant: datetime, text: str, expected: datetime | None) -> None:
    if expected is None:
        with pytest.raises(PolicyError):
            parse_span(text)
    else:
        assert subtract(instant, parse_span(text)) == expected


def test_adding_stops_at_the_last_instant() -> None:
    assert add(utc(9999, 12, 1), Span(months=2)) == LATEST
    assert add(utc(9999, 12, 1), Span(days=90)) == LATEST
    assert due(utc(9999, 12, 31), Span(months=120)) == LATEST


def test_a_month_end_is_due_when_a_month_ago_really_reaches_it() -> None:
    assert due(utc(2023, 1, 31), Span(months=1)) == utc(2023, 3, 1)
    assert due(utc(2024, 2, 29), Span(months=12)) == utc(2025, 3, 1)
    assert due(utc(2024, 1, 15), Span(months=1)) == utc(2024, 2, 15)


@given(instants, spans)
def test_due_is_the_first_instant_that_is_old_enough(end: datetime, span: Span) -> None:
    at = due(end, span)
    assert subtract(at, span) >= end
    assert subtract(at - timedelta(microseconds=1), span) < end


@given(instants, instants, spans)
def test_counting_back_keeps_the_order_of_instants(one: datetime, other: datetime, span: Span) -> None:
    early, late = sorted((one, other))
    assert subtract(early, span) <= subtract(late, span) <= late


@given(instants, units_of_time)
def test_units_tile_time_without_gap_or_overlap(instant: datetime, unit: Span) -> None:
    begin, end = unit_of(instant, unit)
    assert begin <= instant < end
    assert unit_of(begin, unit) == (begin, end)
    assert unit_of(end, unit)[0] == end
    assert unit_of(end - timedelta(microseconds=1), unit) == (begin, end)


@pytest.mark.parametrize(
    ("instant", "text", "begin", "end"),
    [
        (utc(2024, 1, 5, 23, 59), "1d", utc(2024, 1, 5), utc(2024, 1, 6)),
        (utc(2024, 1, 5, 9), "4h", utc(2024, 1, 5, 8), utc(2024, 1, 5, 12)),
        (utc(2024, 2, 29), "1mo", utc(2024, 2, 1), utc(2024, 3, 1)),
        (utc(2024, 5, 2), "3mo", utc(2024, 4, 1), utc(2024, 7, 1)),
        (utc(2024, 5, 2), "1y", utc(2024, 1, 1), utc(2025, 1, 1)),
        (utc(1970, 1, 9), "7d", utc(1970, 1, 8), utc(1970, 1, 15)),
        (utc(1969, 12, 31), "7d", utc(1969, 12, 25), utc(1970, 1, 1)),
    ],
)
def test_units_are_aligned_in_utc(instant: datetime, text: str, begin: datetime, end: datetime) -> None:
    assert unit_of(instant, parse_span(text)) == (begin, end)


def test_other_time_zones_are_turned_into_utc() -> None:
    shanghai = timezone(timedelta(hours=8))
    assert unit_of(datetime(2024, 1, 6, 7, tzinfo=shanghai), Span(days=1))[0] == utc(2024, 1, 5)


def test_an_instant_without_time_zone_is_an_error() -> None:
    naive = datetime(2024, 1, 5)
    for use in (in_utc, lambda at: subtract(at, Span(days=1)), lambda at: unit_of(at, Span(days=1))):
        with pytest.raises(ValueError, match="no time zone"):
            use(naive)


@pytest.mark.parametrize(
    "unit", [Span(), Span(hours=5), Span(hours=48), Span(months=5), Span(months=18), Span(1, 1, 0)]
)
def test_lengths_that_do_not_tile_are_no_units(unit: Span) -> None:
    assert unit_problem(unit)
    with pytest.raises(ValueError, match="unit"):
        unit_of(utc(2024, 1, 5), unit)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("7d", "2y", True),
        ("7d", "7d", True),
        ("28d", "1mo", True),
        ("29d", "1mo", False),
        ("1mo", "30d", False),
        ("1mo", "31d", True),
        ("365d", "1y", True),
        ("1y", "365d", False),
        ("12mo", "1y", True),
        ("24h", "1d", True),
        ("8d", "7d", False),
    ],
)
def test_an_order_of_lengths_holds_in_every_month(one: str, other: str, expected: bool) -> None:
    assert never_longer(parse_span(one), parse_span(other)) is expected
