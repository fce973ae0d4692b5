"""Placement, pure: thresholds to the instant, bounds that hold whatever is pinned, and decisions that do not flap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import builders, strategies
from tiering.model import (
    Dataset,
    Heat,
    Importance,
    Pin,
    Placement,
    Policy,
    Residence,
    Span,
    State,
    Tier,
    Transition,
    Unit,
)
from tiering.plan.placement import (
    NO_PINS,
    WEIGHTS,
    Decision,
    Outcome,
    Pins,
    age_of,
    age_term,
    bounds,
    collect,
    heat_term,
    importance_term,
    nominal_seconds,
    pin_reason,
    plan_placement,
    scaled,
    shifted,
)
from tiering.plan.spans import add, due, subtract

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=30)
HOT, COLD = Transition.HOT_TO_WARM, Transition.WARM_TO_COLD
UNIT = builders.unit("2026-06-25")
DAY = timedelta(days=1)


def pin(transition: Transition, seconds: int, begin: datetime | None = UNIT.begin, until: datetime = NOW + DAY) -> Pin:
    return Pin("market_bars", begin, transition, seconds, (), NOW, until)


def place(
    heat: Heat,
    homes: Sequence[Residence] = (),
    pins: Sequence[Pin] = (),
    now: datetime = NOW,
    dataset: Dataset | None = None,
    placement: Placement | None = None,
) -> Outcome:
    return plan_placement(dataset or builders.dataset(), placement or Placement(), homes, now, heat, pins, now)


def of_unit(outcome: Outcome, unit: Unit = UNIT) -> Decision:
    (found,) = (decision for decision in outcome.decisions if decision.score.begin == unit.begin)
    return found


# -- thresholds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("per_day", "held", "tier"),
    [
        (100.01, "", Tier.HOT),
        (100.0, "", Tier.WARM),
        (10.0, "", Tier.WARM),
        (9.99, "", Tier.COLD),
        (0.0, "", Tier.COLD),
        (50.01, Tier.HOT, Tier.HOT),
        (50.0, Tier.HOT, Tier.WARM),
        (19.99, Tier.COLD, Tier.COLD),
        (20.0, Tier.COLD, Tier.WARM),
        (100.01, Tier.COLD, Tier.HOT),
        (9.99, Tier.HOT, Tier.COLD),
    ],
)
def test_heat_is_judged_at_its_thresholds_and_left_later_than_entered(per_day: float, held: str, tier: Tier) -> None:
    assert heat_term(per_day, LONG_AGO, NOW, held).tier == tier


@pytest.mark.parametrize(
    ("end", "tier"),
    [
        (NOW - timedelta(days=7) + timedelta(microseconds=1), Tier.HOT),
        (NOW - timedelta(days=7), Tier.WARM),
        (datetime(2024, 7, 1, 12, 0, 0, 1, tzinfo=UTC), Tier.WARM),
        (datetime(2024, 7, 1, 12, tzinfo=UTC), Tier.COLD),
        (NOW + DAY, Tier.HOT),
    ],
)
def test_age_is_judged_at_seven_days_and_two_calendar_years(end: datetime, tier: Tier) -> None:
    assert age_term(end, NOW).tier == tier


def test_importance_is_as_declared_and_all_weights_are_a_hundred() -> None:
    assert [importance_term(importance).contribution for importance in Importance] == [20, 0, -20]
    assert sum(WEIGHTS.values()) == 100


def test_what_was_not_watched_long_enough_is_not_called_cold_but_may_be_called_hot() -> None:
    since = NOW - timedelta(days=7) + timedelta(seconds=1)
    assert (heat_term(3, since, NOW).tier, heat_term(3, since, NOW).contribution) == ("", 0)
    assert heat_term(3, NOW - timedelta(days=7), NOW).tier == Tier.COLD
    assert heat_term(300, since, NOW).tier == Tier.HOT
    assert heat_term(0, None, NOW).tier == ""


# -- decisions -------------------------------------------------------------------------------------------------


def test_a_hot_unit_is_pinned_longer_and_every_term_is_told() -> None:
    decision = of_unit(place(Heat(LONG_AGO, 500, {UNIT.begin: 500}), [builders.residence(UNIT)]))
    assert [(t.name, t.tier, t.contribution) for t in decision.score.terms] == [
        ("heat", "hot", 60), ("age", "hot", 20), ("importance", "warm", 0)
    ]  # fmt: skip
    assert (decision.verb, decision.transition, decision.score.total, decision.score.tier) == ("pin", HOT, 80, Tier.HOT)
    assert decision.pin
    assert decision.pin.shift_seconds == 241_920  # 0.4 of 7 d
    in_force = shifted(builders.MARKET_DATA, collect([decision.pin], Placement(), NOW), UNIT)
    assert (in_force.hot_to_warm, in_force.compression) == (Span(days=9, hours=19), Span(days=9, hours=19))
    assert (in_force.warm_to_cold, in_force.retention) == (Span(months=24), Span(months=120))
    reason = pin_reason(builders.MARKET_DATA, collect([decision.pin], Placement(), NOW), UNIT, HOT)
    assert reason
    assert reason.code == "pinned"
    assert reason.until == UNIT.end + timedelta(days=9, hours=19)
    assert "heat 500.0/day (> 100/day): +60; age 5.5 d (< 7d): +20; importance important" in reason.text


def test_a_unit_that_nobody_reads_goes_cold_sooner() -> None:
    unit = builders.unit("2025-03-01")
    heat = Heat(LONG_AGO, 500, {UNIT.begin: 500})
    decision = of_unit(place(heat, [builders.residence(unit, Tier.WARM)]), unit)
    assert (decision.verb, decision.transition, decision.score.total, decision.score.tier) == (
        "pin", COLD, -60, Tier.COLD
    )  # fmt: skip
    assert decision.pin
    in_force = shifted(builders.MARKET_DATA, collect([decision.pin], Placement(), NOW), unit)
    assert in_force.warm_to_cold == Span(months=16, days=24, hours=9)  # 0.7 of 24 months: 16.8


def test_only_units_whose_date_can_change_are_judged() -> None:
    young, old, cold, moving = (builders.unit(day) for day in ("2025-08-01", "2023-06-01", "2023-05-01", "2025-03-01"))
    homes = [
        builders.residence(young, Tier.WARM),
        builders.residence(old, Tier.WARM),
        builders.residence(cold, Tier.COLD),
        builders.residence(moving, Tier.WARM, move_state=State.SEALED, move_transition=COLD),
    ]
    outcome = place(Heat(LONG_AGO, 500, {UNIT.begin: 500}), homes)
    assert not outcome.changes
    assert of_unit(outcome, young).text == "nothing to decide before 2026-08-02"
    assert of_unit(outcome, old).text == "warm-to-cold was due by 2026-06-02 at the latest"
    assert "SEALED" in of_unit(outcome, moving).text
    assert all(decision.score.begin != cold.begin for decision in outcome.decisions)


def test_where_only_the_dataset_is_counted_one_pin_holds_for_all_its_units() -> None:
    outcome = place(Heat(LONG_AGO, 500), [builders.residence(UNIT)])
    assert [(d.pin.begin, d.pin.transition) for d in outcome.changes if d.pin] == [(None, HOT), (None, COLD)]
    assert of_unit(outcome).text == "the dataset is judged as a whole"
    pins = collect([d.pin for d in outcome.changes if d.pin], Placement(), NOW)
    assert shifted(builders.MARKET_DATA, pins, UNIT).hot_to_warm == Span(days=9, hours=19)
    assert shifted(builders.MARKET_DATA, pins, UNIT).warm_to_cold == scaled(Span(months=24), 0.4)


def test_a_units_own_pin_goes_before_the_datasets() -> None:
    pins = collect([pin(HOT, 86400, None), pin(HOT, 0)], Placement(), NOW)
    assert shifted(builders.MARKET_DATA, pins, UNIT) == builders.MARKET_DATA
    assert shifted(builders.MARKET_DATA, pins, builders.unit("2026-06-24")).hot_to_warm == Span(days=8)


@pytest.mark.parametrize("known", [Heat(), Heat(since=NOW - DAY, dataset=3, units={UNIT.begin: 3})])
def test_without_known_heat_nothing_changes(known: Heat) -> None:
    standing = pin(HOT, 86400)
    outcome = place(known, [builders.residence(UNIT)], [standing])
    assert not outcome.changes
    assert (of_unit(outcome).verb, of_unit(outcome).score.tier) == ("unknown", None)
    assert of_unit(outcome).score.terms[0].value.startswith("unknown")


def test_a_dataset_without_rows_is_not_placed() -> None:
    assert plan_placement(builders.dataset(), Placement(), [], None, Heat(LONG_AGO, 500), [], NOW).decisions == ()


@pytest.mark.parametrize(
    ("per_day", "end", "importance", "tier"),
    [
        (500, NOW, Importance.CRITICAL, Tier.HOT),
        (500, LONG_AGO, Importance.IMPORTANT, Tier.HOT),
        (500, LONG_AGO, Importance.ARCHIVE, Tier.HOT),
        (500, NOW - 1000 * DAY, Importance.IMPORTANT, Tier.HOT),
        (500, NOW - 1000 * DAY, Importance.ARCHIVE, Tier.WARM),
        (50, NOW, Importance.CRITICAL, Tier.HOT),
        (50, LONG_AGO, Importance.CRITICAL, Tier.WARM),
        (50, NOW - 1000 * DAY, Importance.ARCHIVE, Tier.COLD),
        (5, NOW, Importance.CRITICAL, Tier.WARM),
        (5, NOW, Importance.IMPORTANT, Tier.COLD),
        (5, LONG_AGO, Importance.CRITICAL, Tier.COLD),
        (5, NOW - 1000 * DAY, Importance.ARCHIVE, Tier.COLD),
    ],
)
def test_the_table_of_the_documentation(per_day: float, end: datetime, importance: Importance, tier: Tier) -> None:
    heat = Heat(LONG_AGO, per_day)
    dataset = builders.dataset(importance=importance)
    outcome = plan_placement(dataset, Placement(), [], end, heat, [], max(end, NOW))
    # The dataset's own age is counted to its newest row, the reference; the age term is judged apart.
    score = replace(outcome.decisions[0].score, terms=(*outcome.decisions[0].score.terms[:1], age_term(end, NOW),
                                                       importance_term(importance)))  # fmt: skip
    assert score.tier is tier


def test_hot_symbols_are_those_that_belong_hot_hottest_first() -> None:
    heat = Heat(LONG_AGO, 900, {}, {"AAPL": 200.0, "MSFT": 600.0, "ZZZ": 4.0, "TSLA": 60.0})
    assert [score.symbol for score in place(heat).hot_symbols] == ["MSFT", "AAPL"]
    assert place(heat, dataset=builders.dataset(key=("ts", "market"))).hot_symbols == ()


def test_a_pin_is_renewed_before_it_lapses_and_then_no_date_changes() -> None:
    heat, homes = Heat(LONG_AGO, 500, {UNIT.begin: 500}), [builders.residence(UNIT)]
    (first,) = place(heat, homes).changes
    assert first.pin
    hours = [timedelta(hours=hour) for hour in range(1, 30)]
    later = [of_unit(place(heat, homes, [first.pin], NOW + hour)).verb for hour in hours]
    assert later == ["keep"] * 11 + ["renew"] * 18
    renewed = of_unit(place(heat, homes, [first.pin], NOW + hours[12])).pin
    assert renewed
    assert (renewed.decided_at, renewed.shift_seconds) == (NOW, first.pin.shift_seconds)
    assert renewed.until > first.pin.until


# -- bounds ----------------------------------------------------------------------------------------------------


def test_a_share_of_an_age_is_calendar_where_it_can_be() -> None:
    assert scaled(Span(months=24), 0.5) == Span(months=36)
    assert scaled(Span(months=24), -0.5) == Span(months=12)
    assert scaled(Span(days=7), 0.5) == Span(days=10, hours=12)
    assert scaled(Span(days=7), -0.5) == Span(days=3, hours=12)
    assert scaled(Span(hours=1), -0.5) == Span(days=0, hours=1)  # to whole hours, towards the age itself
    assert scaled(Span(hours=4), -0.4) == Span(hours=3)
    assert scaled(Span(months=3), 0.25) == Span(months=3, days=22, hours=19)


shifts = st.integers(-(10**10), 10**10)
shares = st.floats(0, 0.99)


@given(policy=strategies.policies(), instant=strategies.recent_instants, length=strategies.units_of_time,
       hot=shifts, cold=shifts, share=shares, scope=st.tuples(st.booleans(), st.booleans()))  # fmt: skip
@example(policy=builders.policy(hot_to_warm=Span(months=1), warm_to_cold=Span(days=31), compression=None),
         instant=datetime(2026, 1, 31, tzinfo=UTC), length=Span(days=1), hot=10**10, cold=-(10**10), share=0.5,
         scope=(False, True))  # fmt: skip
@example(policy=builders.policy(hot_to_warm=Span(months=1), warm_to_cold=Span(months=2), compression=None),
         instant=datetime(2010, 2, 1, tzinfo=UTC), length=Span(hours=1), hot=3600, cold=0, share=0.0625,
         scope=(False, False))  # fmt: skip
@settings(max_examples=500, deadline=None)
def test_whatever_is_pinned_bounds_retention_and_order_hold(
    policy: Policy, instant: datetime, length: Span, hot: int, cold: int, share: float, scope: tuple[bool, bool]
) -> None:
    unit = builders.unit(instant, length=length)
    begins = [unit.begin if own else None for own in scope]
    made = [replace(pin(HOT, hot), begin=begins[0]), replace(pin(COLD, cold), begin=begins[1])]
    placement = Placement(shift_max=share)
    found = shifted(policy, collect(made, placement, NOW), unit)

    def at(age: Span) -> datetime:
        return due(unit.end, age)

    assert found.retention == policy.retention
    for step in (HOT, COLD):
        age, moved = age_of(policy, step), age_of(found, step)
        assert (age is None) == (moved is None)
        if age and moved:
            earliest, latest = bounds(age, placement)
            # In February a month may end before the share of it that is counted in days: the age itself is in bounds.
            assert min(at(earliest), at(age)) <= at(moved) <= max(at(latest), at(age))
    if policy.hot_to_warm and found.hot_to_warm and share:
        was_at, is_at = due(unit.end, policy.hot_to_warm), due(unit.end, found.hot_to_warm)
        assert (
            is_at >= min(was_at, due(unit.end, policy.retention or Span(months=9999))) if hot > 0 else is_at <= was_at
        )
    was = [at(a) for a in (policy.hot_to_warm, policy.compression, policy.warm_to_cold, policy.retention) if a]
    now = [at(a) for a in (found.hot_to_warm, found.compression, found.warm_to_cold, found.retention) if a]
    assert now == sorted(now) or was != sorted(was)


@given(policy=strategies.policies(), instant=strategies.recent_instants)
def test_without_pins_in_force_the_policy_is_untouched(policy: Policy, instant: datetime) -> None:
    unit = builders.unit(instant)
    lapsed = [pin(HOT, 10**6, unit.begin, NOW), replace(pin(HOT, 10**6, unit.begin), symbol="AAPL")]
    assert shifted(policy, NO_PINS, unit) is policy
    assert shifted(policy, collect(lapsed, Placement(), NOW), unit) is policy
    assert shifted(policy, collect([pin(HOT, 10**6, unit.begin)], Placement(shift_max=0), NOW), unit) == policy


@given(age=strategies.spans, share=st.floats(-0.99, 0.99), end=strategies.recent_instants)
@settings(max_examples=300)
def test_a_scaled_age_lies_between_the_age_and_its_share(age: Span, share: float, end: datetime) -> None:
    found = scaled(age, share)
    assert min(found.months, found.days, found.hours) >= 0
    if share >= 0:
        assert due(end, found) >= due(end, age) - timedelta(days=3)  # months have 28 to 31 days
    nominal = nominal_seconds(age) * (1 + share)
    assert abs(nominal_seconds(found) - nominal) <= 3601


# -- nothing flaps ---------------------------------------------------------------------------------------------

rates = st.one_of(
    st.floats(0, 400),
    st.sampled_from([9.9, 10.1, 19.9, 20.1, 49.9, 50.1, 99.9, 100.1]),
    st.none(),
)
traces = st.lists(st.tuples(st.integers(1, 40), rates), min_size=5, max_size=120)


@given(trace=traces, days=st.integers(0, 5), share=st.floats(0.01, 0.9), importance=st.sampled_from(Importance),
       by_unit=st.booleans())  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_a_noisy_trace_changes_a_date_at_most_once_per_residency(
    trace: list[tuple[int, float | None]], days: int, share: float, importance: Importance, by_unit: bool
) -> None:
    placement = Placement(share, Span(days=days, hours=6))
    dataset = builders.dataset(importance=importance)
    begin = builders.unit("2025-03-01").begin if by_unit else None
    home = builders.residence(builders.unit("2025-03-01"), Tier.WARM)
    now, stored, log = NOW, {}, [(NOW, 0)]
    for hours, rate in trace:
        now += timedelta(hours=hours)
        if (standing := stored.get(begin)) and standing.until <= now and log[-1][1]:
            log.append((standing.until, 0))  # lapsed in between
        heat = Heat() if rate is None else Heat(LONG_AGO, rate, {home.unit.begin: rate} if by_unit else {})
        outcome = place(heat, [home], list(stored.values()), now, dataset, placement)
        for decision in outcome.changes:
            if decision.transition is COLD and decision.pin and decision.pin.begin == begin:
                stored[begin] = decision.pin
        standing = stored.get(begin)
        current = standing.shift_seconds if standing and now < standing.until else 0
        if current != log[-1][1]:
            log.append((now, current))
    changes = [at for at, _ in log[1:]]
    for one, other in zip(changes, changes[1:], strict=False):
        assert add(one, placement.residency) <= other, log


def test_noise_around_a_threshold_changes_nothing_at_all_once_pinned() -> None:
    stored: list[Pin] = []
    verbs = []
    for hour in range(24 * 4):
        now = NOW + timedelta(hours=hour)
        home = builders.residence(builders.unit("2025-03-01"), Tier.WARM)
        heat = Heat(LONG_AGO, 0, {home.unit.begin: 100 + (-1) ** hour * 40})
        decision = of_unit(place(heat, [home], stored, now), home.unit)
        verbs.append(decision.verb)
        stored = [decision.pin] if decision.pin else stored
    assert verbs[0] == "pin"
    assert set(verbs[1:]) == {"keep", "renew"}


def test_ten_thousand_units_are_judged_within_a_second_of_cpu() -> None:
    from time import process_time

    begin = builders.unit("2000-01-01").begin
    homes = [builders.residence(builders.unit(begin + day * DAY), Tier.WARM) for day in range(10_000)]
    heat = Heat(LONG_AGO, 900, {home.unit.begin: 500.0 for home in homes})
    began = process_time()
    outcome = place(heat, homes)
    pins: Pins = collect([d.pin for d in outcome.changes if d.pin], Placement(), NOW)
    for home in homes:
        shifted(builders.MARKET_DATA, pins, home.unit)
    took = process_time() - began
    print(f"placed 10,000 units in {took:.2f} s, {len(outcome.changes)} pins")
    assert len(outcome.decisions) == 10_002
    assert took < 3  # 0.3 s when nothing else runs
    assert subtract(NOW, Span(days=1)) < NOW
