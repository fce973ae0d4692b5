"""Reasons and their dates: storage classes, leases, overlaps, pins; and that a date given is the date of a change."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import NOW, dataset, policy, residence, unit
from tests.plan.test_lifecycle import BARS, apply, plan_one
from tests.strategies import ledgers, recent_instants
from tiering.model import Dataset, Move, Pin, Placement, Residence, Span, State, Stay, StorageClass, Tier, Transition
from tiering.plan.lifecycle import plan_moves
from tiering.plan.placement import collect

LADDER = (
    (StorageClass.STANDARD_IA, Span(months=27)),
    (StorageClass.GLACIER_IR, Span(months=36)),
    (StorageClass.DEEP_ARCHIVE, Span(months=60)),
)
CHARTS = dataset(
    name="charts",
    hot="s3",
    warm="s3",
    policy=policy(hot_to_warm=None, warm_to_cold=None, compression=None),
    storage=((StorageClass.STANDARD_IA, Span(months=1)), (StorageClass.GLACIER_IR, Span(months=6))),
)


@pytest.mark.parametrize(
    ("day", "at_class", "expected"),
    [
        ("2024-01-05", StorageClass.STANDARD, Transition.ARCHIVE),
        ("2024-01-05", StorageClass.STANDARD_IA, None),
        ("2023-01-05", StorageClass.STANDARD_IA, Transition.ARCHIVE),
        ("2020-01-05", StorageClass.STANDARD, Transition.ARCHIVE),
        ("2020-01-05", StorageClass.DEEP_ARCHIVE, None),
        ("2016-01-05", StorageClass.STANDARD_IA, Transition.EXPIRE),
    ],
)
def test_cold_units_go_down_the_storage_classes(day: str, at_class: StorageClass, expected: Transition | None) -> None:
    found = plan_one(residence(day, Tier.COLD, storage_class=at_class), of=dataset(storage=LADDER))
    assert (found.transition if isinstance(found, Move) else None) is expected


@pytest.mark.parametrize("tier", [Tier.HOT, Tier.WARM, Tier.COLD])
def test_files_only_change_class_and_expire(tier: Tier) -> None:
    def step(day: str, at_class: StorageClass = StorageClass.STANDARD) -> Transition | str:
        found = plan_one(residence(unit(day, dataset="charts"), tier, storage_class=at_class), of=CHARTS)
        return found.transition if isinstance(found, Move) else found.reasons[0].code

    assert step("2026-06-15") == "young"
    assert step("2026-05-15") is Transition.ARCHIVE
    assert step("2026-05-15", StorageClass.STANDARD_IA) == "young"
    assert step("2016-01-05", StorageClass.GLACIER_IR) is Transition.EXPIRE


def test_late_rows_of_a_unit_in_deep_archive_wait_for_its_restore() -> None:
    deep = residence("2020-01-05", Tier.COLD, storage_class=StorageClass.DEEP_ARCHIVE, late_count=3)
    stay = plan_one(deep, of=dataset(storage=LADDER))
    assert isinstance(stay, Stay)
    assert [reason.code for reason in stay.reasons] == ["deep_archive", "young"]
    restored = plan_one(replace(deep, rehydrated_until=NOW + timedelta(days=1)), of=dataset(storage=LADDER))
    assert isinstance(restored, Move)
    assert restored.transition is Transition.MERGE


def test_a_leased_unit_stays_and_names_the_run() -> None:
    home = residence("2024-01-05", move_state=State.SEALED, move_transition=Transition.HOT_TO_WARM, lease_owner="run 7")
    stay = plan_one(home)
    assert isinstance(stay, Stay)
    assert stay.reasons[0].code == "leased"
    assert "run 7" in stay.reasons[0].text
    assert isinstance(plan_one(replace(home, lease_owner="")), Move)


def test_a_unit_that_cuts_into_another_says_so() -> None:
    stay = plan_one(residence("2024-01-05", overlaps="market_bars/2024-01-01"))
    assert isinstance(stay, Stay)
    assert stay.reasons[0].code == "overlap"
    assert "market_bars/2024-01-01" in stay.reasons[0].text


def pin(days: int, step: Transition, until: datetime, begin: datetime | None = None) -> Pin:
    return Pin("market_bars", begin, step, days * 86400, (), NOW - timedelta(days=1), until)


def test_a_pin_gives_another_date_and_is_told() -> None:
    home, week = residence("2026-06-23"), NOW + timedelta(days=7)
    pins = collect([pin(3, Transition.HOT_TO_WARM, week)], Placement(), NOW)
    (stay,) = plan_moves(BARS, [home], NOW, NOW, pins=pins).stays
    assert [(reason.code, reason.until) for reason in stay.reasons] == [
        ("young", datetime(2026, 7, 4, tzinfo=UTC)),
        ("pinned", datetime(2026, 7, 4, tzinfo=UTC)),
    ]
    earlier = collect([pin(-3, Transition.HOT_TO_WARM, week)], Placement(), NOW)
    assert plan_moves(BARS, [residence("2026-06-26")], NOW, NOW, pins=earlier).moves


def test_a_pin_that_lapses_before_its_date_counts_only_so_long() -> None:
    soon = NOW + timedelta(hours=36)
    pins = collect([pin(3, Transition.HOT_TO_WARM, soon)], Placement(), NOW)
    (stay,) = plan_moves(BARS, [residence("2026-06-23")], NOW, NOW, pins=pins).stays
    assert {reason.until for reason in stay.reasons} == {soon}


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Dataset, list[Residence], datetime, list[Pin]]:
    """Units in every condition there is, with pins, storage classes, leases and read copies."""
    of, homes = draw(ledgers(units_max=6))
    now = draw(recent_instants)
    ladder = [(name, Span(months=months)) for name, months in zip(list(StorageClass)[1:], (3, 9, 30), strict=True)]
    of = replace(of, storage=tuple(ladder[: draw(st.integers(0, 3))]))
    ends = st.timedeltas(timedelta(minutes=1), timedelta(days=60)).map(lambda ahead: now + ahead)
    dressed = [
        replace(
            home,
            storage_class=draw(st.sampled_from(StorageClass)) if home.tier is Tier.COLD else StorageClass.STANDARD,
            lease_owner=draw(st.sampled_from(["", "", "run 7"])),
            rehydrated_until=draw(st.none() | ends) if home.tier is Tier.COLD else None,
            overlaps=draw(st.sampled_from(["", "", "", "market_bars/2020-01-01"])) if home.tier is Tier.HOT else "",
        )
        for home in homes
    ]
    subjects = st.sampled_from([None, *(home.unit.begin for home in homes)])
    drawn = draw(
        st.lists(
            st.builds(
                Pin,
                dataset=st.just(of.name),
                begin=subjects,
                transition=st.sampled_from([Transition.HOT_TO_WARM, Transition.WARM_TO_COLD]),
                shift_seconds=st.integers(-(10**7), 10**7),
                terms=st.just(()),
                decided_at=st.just(now),
                until=ends,
            ),
            max_size=4,
            unique_by=lambda one: (one.begin, one.transition),
        )
    )
    return of, dressed, now, drawn


@given(worlds())
def test_whatever_stays_has_reasons_and_its_dates_are_those_of_changes(
    world: tuple[Dataset, list[Residence], datetime, list[Pin]],
) -> None:
    of, homes, now, pins = world

    def verdicts(at: datetime) -> dict[datetime, Move | Stay]:
        plan = plan_moves(of, homes, at, at, pins=collect(pins, Placement(), at))
        moves: dict[datetime, Move | Stay] = {move.unit.begin: move for move in plan.moves}
        return moves | {stay.unit.begin: stay for stay in plan.stays}

    found = verdicts(now)
    assert found.keys() == {home.unit.begin for home in homes}
    for begin, stay in found.items():
        if not isinstance(stay, Stay):
            continue
        assert stay.reasons
        assert all(reason.code and reason.text for reason in stay.reasons)
        for reason in stay.reasons:
            if reason.until is None:
                continue
            assert reason.until > now
            then = verdicts(reason.until)[begin]
            if reason.code in ("young", "future"):
                assert isinstance(then, Move), (reason, then)
                assert isinstance(verdicts(reason.until - timedelta(microseconds=1))[begin], Stay)
            else:
                assert isinstance(then, Move) or reason not in then.reasons, (reason, then)


def test_an_archive_goes_to_the_coldest_class_that_is_due_and_then_rests() -> None:
    of = dataset(storage=LADDER)
    homes = apply(
        plan_moves(of, [residence("2020-01-05", Tier.COLD)], NOW, NOW), [residence("2020-01-05", Tier.COLD)], of
    )
    assert homes[0].storage_class is StorageClass.DEEP_ARCHIVE
    assert plan_moves(of, homes, NOW, NOW).moves == ()


SAVED = dataset(wait_for_backup=True)


@pytest.mark.parametrize(
    ("day", "tier", "step"),
    [
        ("2026-06-10", Tier.HOT, Transition.HOT_TO_WARM),
        ("2024-01-05", Tier.WARM, Transition.WARM_TO_COLD),
        ("2016-01-05", Tier.COLD, Transition.EXPIRE),
    ],
)
def test_a_unit_stays_until_a_backup_holds_it(day: str, tier: Tier, step: Transition) -> None:
    """A backup that began before the copy was written may lack it, and one that began with it does not."""
    written = None if tier is Tier.HOT else datetime(2026, 6, 30, 9, tzinfo=UTC)
    home = residence(day, tier, is_compressed=True, written_at=written)
    at = written or home.unit.end
    for backed_up_at in (None, at - timedelta(microseconds=1)):
        found = plan_one(replace(home, backed_up_at=backed_up_at), of=SAVED)
        assert isinstance(found, Stay)
        assert [reason.code for reason in found.reasons] == ["waiting_for_backup"]
        assert f"{step} is due" in found.reasons[0].text
        assert ("tiering backup lake" if tier is Tier.COLD else "tiering backup postgresql") in found.reasons[0].text
    move = plan_one(replace(home, backed_up_at=at), of=SAVED)
    assert isinstance(move, Move)
    assert move.transition is step
    assert isinstance(plan_one(home), Move), "nobody else waits"


@pytest.mark.parametrize("home", [residence("2024-01-05", Tier.WARM, late_count=3), residence("2026-06-01", Tier.WARM)])
def test_what_leaves_nothing_behind_waits_for_no_backup(home: Residence) -> None:
    """A merge and a compression stay in their store."""
    assert isinstance(plan_one(home, of=SAVED), Move)


def test_a_move_that_was_begun_is_carried_on_without_a_backup() -> None:
    home = residence("2024-01-05", Tier.WARM, move_state=State.COPIED, move_transition=Transition.WARM_TO_COLD)
    assert isinstance(plan_one(home, of=SAVED), Move)
