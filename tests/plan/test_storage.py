"""The ladder of storage classes: which rung is next, and from when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiering.model import Span, StorageClass, Tier
from tiering.plan import storage
from tiering.plan.spans import add, subtract

IA, IR, DEEP = StorageClass.STANDARD_IA, StorageClass.GLACIER_IR, StorageClass.DEEP_ARCHIVE
LADDER = ((IA, Span(months=1)), (IR, Span(months=6)), (DEEP, Span(months=24)))
END = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("age", "current", "expected"),
    [
        (timedelta(0), StorageClass.STANDARD, (IA, datetime(2024, 2, 1, tzinfo=UTC))),
        (timedelta(days=30), StorageClass.STANDARD, (IA, datetime(2024, 2, 1, tzinfo=UTC))),
        (timedelta(days=31), StorageClass.STANDARD, (IA, datetime(2024, 2, 1, tzinfo=UTC))),
        (timedelta(days=31), IA, (IR, datetime(2024, 7, 1, tzinfo=UTC))),
        (timedelta(days=400), StorageClass.STANDARD, (IR, datetime(2024, 7, 1, tzinfo=UTC))),
        (timedelta(days=800), StorageClass.STANDARD, (DEEP, datetime(2026, 1, 1, tzinfo=UTC))),
        (timedelta(days=800), DEEP, None),
    ],
)
def test_the_coldest_class_that_is_due_or_the_next_and_its_date(
    age: timedelta, current: StorageClass, expected: tuple[StorageClass, datetime] | None
) -> None:
    assert storage.next_class(LADDER, current, END, END + age) == expected


def test_without_a_reference_nothing_has_an_age() -> None:
    assert storage.next_class(LADDER, StorageClass.STANDARD, END, None) == (IA, datetime(2024, 2, 1, tzinfo=UTC))


def test_without_a_ladder_nothing_moves() -> None:
    assert storage.next_class((), StorageClass.STANDARD, END, END + timedelta(days=9999)) is None


INSTANTS = st.datetimes(datetime(1990, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC))
MONTHS = st.lists(st.integers(1, 120), min_size=3, max_size=3, unique=True).map(sorted)


@given(end=INSTANTS, reference=INSTANTS, months=MONTHS, current=st.sampled_from(StorageClass))
def test_never_warmer_never_early_and_never_twice(
    end: datetime, reference: datetime, months: list[int], current: StorageClass
) -> None:
    ladder = tuple(zip((IA, IR, DEEP), (Span(months=m) for m in months), strict=True))
    found = storage.next_class(ladder, current, end, reference)
    if found is None:
        assert current is DEEP
        return
    name, at = found
    span = dict(ladder)[name]
    assert storage.RANKS[name] > storage.RANKS[current]
    assert at >= add(end, span)
    is_due = end <= subtract(reference, span)
    assert (at <= reference) == is_due
    if is_due:
        again = storage.next_class(ladder, name, end, reference)
        assert again is None or again[1] > reference


@pytest.mark.parametrize(
    ("name", "known", "tier"),
    [
        ("STANDARD", StorageClass.STANDARD, Tier.HOT),
        ("STANDARD_IA", IA, Tier.WARM),
        ("ONEZONE_IA", IA, Tier.WARM),
        ("GLACIER_IR", IR, Tier.COLD),
        ("GLACIER", DEEP, Tier.COLD),
        ("DEEP_ARCHIVE", DEEP, Tier.COLD),
        ("INTELLIGENT_TIERING", StorageClass.STANDARD, Tier.HOT),
    ],
)
def test_every_class_has_a_tier(name: str, known: StorageClass, tier: Tier) -> None:
    assert storage.known_class(name) is known
    assert storage.tier_of(known) is tier


def test_a_restore_is_promised_a_date() -> None:
    assert storage.ready_about(END, "Standard") == END + timedelta(hours=12)
    assert storage.ready_about(END, "Bulk") == END + timedelta(hours=48)
