"""Hypothesis strategies for the nouns."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from tests import builders
from tiering.model import Dataset, Policy, Residence, Span, State, Tier, Transition, Unit
from tiering.plan.spans import never_longer, unit_of

instants = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
recent_instants = st.datetimes(datetime(2010, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))

spans = st.one_of(
    st.builds(Span, hours=st.integers(1, 200)),
    st.builds(Span, days=st.integers(1, 900)),
    st.builds(Span, months=st.integers(1, 200)),
    st.builds(Span, months=st.integers(0, 30), days=st.integers(0, 40), hours=st.integers(0, 30)),
)

units_of_time = st.one_of(
    st.sampled_from([Span(hours=hours) for hours in (1, 2, 3, 4, 6, 8, 12, 24)]),
    st.builds(Span, days=st.integers(1, 40)),
    st.sampled_from([Span(months=months) for months in (1, 2, 3, 4, 6, 12, 24, 60)]),
)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Ages in order; any stage but retention may be missing."""
    hot, compression, cold = (draw(st.none() | spans) for _ in range(3))
    retention = draw(spans)
    ages = {"hot_to_warm": hot, "compression": compression, "warm_to_cold": cold, "retention": retention}
    floor: Span | None = None
    for stage, age in ages.items():
        if age is None:
            continue
        if floor is not None and not never_longer(floor, age):
            age = ages[stage] = floor
        floor = age
    return builders.policy(**ages)


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    """Any policy in order with any unit length."""
    return builders.dataset(policy=draw(policies()), unit=draw(units_of_time))


@st.composite
def residences(draw: st.DrawFn, dataset: Dataset) -> Residence:
    """One unit in any condition that a ledger can hold."""
    begin, end = unit_of(draw(recent_instants), dataset.unit)
    home = builders.residence(
        Unit(dataset.name, begin, end, draw(st.integers(1, 3))),
        draw(st.sampled_from(Tier)),
        row_count=draw(st.integers(0, 10**9)),
        late_count=draw(st.sampled_from([0, 0, 0, 1, 7])),
        is_compressed=draw(st.booleans()),
        hold=draw(st.sampled_from(["", "", "", "case 12/2026"])),
    )
    return draw(st.just(home) | open_moves(home))


def open_moves(home: Residence) -> st.SearchStrategy[Residence]:
    """The same unit with a move under way that its tier allows."""
    possible = {
        Tier.HOT: [Transition.HOT_TO_WARM],
        Tier.WARM: [Transition.MERGE, Transition.COMPRESS, Transition.WARM_TO_COLD, Transition.EXPIRE],
        Tier.COLD: [Transition.MERGE, Transition.EXPIRE],
        Tier.EXPIRED: [],
    }[home.tier]
    if not possible:
        return st.just(home)
    return st.builds(
        lambda step, state: Residence(
            **{slot: getattr(home, slot) for slot in home.__slots__ if slot not in ("move_state", "move_transition")},
            move_state=state,
            move_transition=step,
        ),
        st.sampled_from(possible),
        st.sampled_from(State),
    )


@st.composite
def ledgers(draw: st.DrawFn, units_max: int = 12) -> tuple[Dataset, list[Residence]]:
    """A dataset and some of its units, each at most once."""
    dataset = draw(datasets())
    found = draw(st.lists(residences(dataset), max_size=units_max, unique_by=lambda home: home.unit.name))
    return dataset, found


later = st.timedeltas(timedelta(0), timedelta(days=4000))
