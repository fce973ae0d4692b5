"""The planner: what is due, what stays and why, and that plans applied come to rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import NOW, dataset, policy, residence, unit
from tests.strategies import later, ledgers, recent_instants
from tiering.errors import VerificationError
from tiering.model import Dataset, Move, Plan, Residence, Span, State, Stay, Tier, Transition
from tiering.plan.lifecycle import OPEN, check_plan, next_storage, plan_moves

BARS = dataset()


def plan_one(home: Residence, now: datetime = NOW, newest: datetime | None = NOW, of: Dataset = BARS) -> Move | Stay:
    plan = plan_moves(of, [home], newest, now)
    return (*plan.moves, *plan.stays)[0]


def apply(plan: Plan, homes: Sequence[Residence], of: Dataset = BARS) -> list[Residence]:
    """Carry a plan out on paper."""
    by_name = {home.unit.name: home for home in homes}
    for move in plan.moves:
        home = by_name[move.unit.name]
        done = replace(home, unit=move.unit, move_state=None, move_transition=None)
        by_name[move.unit.name] = {
            Transition.HOT_TO_WARM: replace(done, tier=Tier.WARM, is_compressed=False),
            Transition.MERGE: replace(done, late_count=0, is_compressed=False),
            Transition.COMPRESS: replace(done, is_compressed=True),
            Transition.WARM_TO_COLD: replace(done, tier=Tier.COLD, is_compressed=False),
            Transition.ARCHIVE: replace(
                done, storage_class=(next_storage(of, home, plan.reference) or (home.storage_class,))[0]
            ),
            Transition.EXPIRE: replace(done, tier=Tier.EXPIRED, late_count=0),
        }[move.transition]
    return list(by_name.values())


def far_along(homes: Sequence[Residence]) -> dict[str, int]:
    """How far each unit has come on its one-way road."""
    order = [Tier.HOT, Tier.WARM, Tier.COLD, Tier.EXPIRED]
    return {home.unit.name: order.index(home.tier) for home in homes}


@pytest.mark.parametrize(
    ("day", "home", "expected"),
    [
        ("2026-06-23", {"tier": Tier.HOT}, Transition.HOT_TO_WARM),
        ("2016-01-05", {"tier": Tier.HOT}, Transition.HOT_TO_WARM),
        ("2026-06-23", {"tier": Tier.WARM}, Transition.COMPRESS),
        ("2024-01-05", {"tier": Tier.WARM}, Transition.WARM_TO_COLD),
        ("2024-01-05", {"tier": Tier.WARM, "is_compressed": True}, Transition.WARM_TO_COLD),
        ("2016-01-05", {"tier": Tier.WARM}, Transition.EXPIRE),
        ("2016-01-05", {"tier": Tier.COLD}, Transition.EXPIRE),
        ("2026-06-23", {"tier": Tier.WARM, "late_count": 3}, Transition.MERGE),
        ("2026-06-30", {"tier": Tier.WARM, "late_count": 3}, Transition.MERGE),
        ("2016-01-05", {"tier": Tier.COLD, "late_count": 3}, Transition.MERGE),
    ],
)
def test_the_transition_that_is_due(day: str, home: dict[str, object], expected: Transition) -> None:
    move = plan_one(residence(day, **home))  # type: ignore[arg-type]
    assert isinstance(move, Move)
    assert move.transition is expected
    assert move.unit.generation == (2 if expected is Transition.MERGE else 1)


@pytest.mark.parametrize(
    ("day", "home", "code", "until"),
    [
        ("2026-06-24", {"tier": Tier.HOT}, "young", datetime(2026, 7, 2, tzinfo=UTC)),
        ("2026-06-29", {"tier": Tier.WARM}, "young", datetime(2026, 7, 7, tzinfo=UTC)),
        ("2026-06-01", {"tier": Tier.WARM, "is_compressed": True}, "young", datetime(2028, 6, 2, tzinfo=UTC)),
        ("2024-01-05", {"tier": Tier.COLD}, "young", datetime(2034, 1, 6, tzinfo=UTC)),
        ("2027-01-05", {"tier": Tier.HOT}, "future", datetime(2027, 1, 13, tzinfo=UTC)),
        ("2016-01-05", {"tier": Tier.EXPIRED}, "expired", None),
        ("2016-01-05", {"tier": Tier.COLD, "hold": "case 12"}, "held", None),
        ("2016-01-05", {"tier": Tier.WARM, "quarantine": "prices_positive"}, "quarantined", None),
        ("2016-01-05", {"tier": Tier.WARM, "move_state": State.QUARANTINED}, "quarantined", None),
    ],
)
def test_what_stays_says_why_and_until_when(
    day: str, home: dict[str, object], code: str, until: datetime | None
) -> None:
    stay = plan_one(residence(day, **home))  # type: ignore[arg-type]
    assert isinstance(stay, Stay)
    assert (stay.reasons[0].code, stay.reasons[0].until) == (code, until)
    assert str(home.get("quarantine", "")) in stay.reasons[0].text


def test_a_unit_is_as_old_as_its_end() -> None:
    home = residence("2026-06-23")
    early, exact = datetime(2026, 6, 30, 23, 59, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC)
    assert isinstance(plan_one(home, early, early), Stay)
    assert isinstance(plan_one(home, exact, exact), Move)


def test_a_stalled_feed_does_not_age_anything_out() -> None:
    stay = plan_one(residence("2026-05-01"), newest=datetime(2026, 5, 3, tzinfo=UTC))
    assert isinstance(stay, Stay)
    assert stay.reasons[0].code == "newest"


def test_rows_of_the_future_do_not_turn_the_clock() -> None:
    assert isinstance(plan_one(residence("2026-06-29"), newest=datetime(2999, 1, 1, tzinfo=UTC)), Stay)


def test_an_empty_dataset_has_no_reference() -> None:
    plan = plan_moves(BARS, [residence("2016-01-05")], None, NOW)
    assert plan.reference is None
    assert plan.stays[0].reasons[0].code == "no_rows"


def test_a_policy_without_stages_moves_nothing() -> None:
    still = dataset(policy=policy(hot_to_warm=None, compression=None, warm_to_cold=None))
    stay = plan_one(residence("2016-01-05"), of=still)
    assert isinstance(stay, Stay)
    assert stay.reasons[0].code == "not_in_policy"


def test_declared_datasets_are_left_alone() -> None:
    stay = plan_one(residence("2016-01-05"), of=dataset(state="declared"))
    assert isinstance(stay, Stay)
    assert stay.reasons[0].code == "not_in_policy"


def test_warm_expires_without_going_cold_when_both_are_due() -> None:
    statements = dataset(policy=policy(warm_to_cold=Span(months=120)))
    move = plan_one(residence("2016-01-05", Tier.WARM), of=statements)
    assert isinstance(move, Move)
    assert move.transition is Transition.EXPIRE


def test_a_held_unit_still_goes_cold() -> None:
    move = plan_one(residence("2016-01-05", Tier.WARM, hold="case 12"))
    assert isinstance(move, Move)
    assert move.transition is Transition.WARM_TO_COLD


def test_a_hold_is_told_before_it_matters() -> None:
    stay = plan_one(residence("2025-01-05", Tier.WARM, is_compressed=True, hold="case 12"))
    assert isinstance(stay, Stay)
    assert [reason.code for reason in stay.reasons] == ["held", "young"]


@pytest.mark.parametrize("state", OPEN)
def test_an_open_move_is_carried_on_whatever_its_age(state: State) -> None:
    home = residence("2026-06-30", Tier.WARM, move_state=state, move_transition=Transition.WARM_TO_COLD)
    move = plan_one(home)
    assert isinstance(move, Move)
    assert move.transition is Transition.WARM_TO_COLD


def test_a_hold_stops_an_expiry_that_is_under_way() -> None:
    home = residence(
        "2016-01-05", Tier.COLD, move_state=State.SEALED, move_transition=Transition.EXPIRE, hold="case 12"
    )
    stay = plan_one(home)
    assert isinstance(stay, Stay)
    assert [reason.code for reason in stay.reasons] == ["held", "moving"]


def test_a_committed_move_does_not_block_the_next() -> None:
    home = residence("2026-06-20", Tier.WARM, move_state=State.COMMITTED, move_transition=Transition.HOT_TO_WARM)
    move = plan_one(home)
    assert isinstance(move, Move)
    assert move.transition is Transition.COMPRESS


def test_one_transition_can_be_planned_alone() -> None:
    homes = [residence("2026-06-20"), residence("2024-01-05", Tier.WARM), residence("2026-06-30")]
    plan = plan_moves(BARS, homes, NOW, NOW, Transition.WARM_TO_COLD)
    assert [str(move) for move in plan.moves] == ["warm-to-cold market_bars/2024-01-05/g1"]
    assert [stay.reasons[0].code for stay in plan.stays] == ["other_transition", "young"]


def test_an_open_move_of_another_kind_is_named() -> None:
    home = residence("2026-06-20", move_state=State.COPIED, move_transition=Transition.HOT_TO_WARM)
    plan = plan_moves(BARS, [home], NOW, NOW, Transition.COMPRESS)
    assert plan.stays[0].reasons[0].code == "moving"


def test_moves_come_oldest_first() -> None:
    days = ["2024-01-07", "2023-12-31", "2024-01-05"]
    plan = plan_moves(BARS, [residence(day) for day in days], NOW, NOW)
    assert [move.unit.slug for move in plan.moves] == ["20231231", "20240105", "20240107"]


def test_a_move_says_since_when_it_is_due_and_how_big_it_is() -> None:
    move = plan_one(residence("2024-01-05", Tier.COLD, late_count=5))
    assert isinstance(move, Move)
    assert (move.row_count, move.due_at) == (100_005, None)
    move = plan_one(residence("2024-01-05"))
    assert isinstance(move, Move)
    assert (move.row_count, move.due_at) == (100_000, datetime(2024, 1, 13, tzinfo=UTC))


def test_wrong_input_is_an_error() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        plan_moves(BARS, [], NOW, datetime(2026, 7, 1))
    with pytest.raises(ValueError, match="no unit of market_bars"):
        plan_moves(BARS, [residence(unit("2024-01-05", dataset="news"))], NOW, NOW)


def test_two_homes_for_one_unit_stop_everything() -> None:
    with pytest.raises(VerificationError, match="planned twice"):
        plan_moves(BARS, [residence("2024-01-05"), residence("2024-01-05", Tier.COLD)], NOW, NOW)


@pytest.mark.parametrize(
    "broken",
    [
        lambda plan: replace(plan, moves=plan.moves * 2),
        lambda plan: replace(plan, moves=()),
        lambda plan: replace(plan, moves=(replace(plan.moves[0], transition=Transition.EXPIRE),)),
        lambda plan: replace(plan, reference=datetime(2024, 1, 6, tzinfo=UTC)),
        lambda plan: replace(plan, moves=(), stays=(Stay(plan.moves[0].unit, Tier.HOT, ()),)),
    ],
)
def test_the_check_of_a_plan_finds_a_broken_one(broken: object) -> None:
    homes = [residence("2024-01-05")]
    plan = plan_moves(BARS, homes, NOW, NOW)
    with pytest.raises(VerificationError):
        check_plan(broken(plan), BARS, homes)  # type: ignore[operator]


@given(ledgers(), recent_instants, st.none() | recent_instants)
def test_every_unit_moves_or_stays_with_a_reason(
    ledger: tuple[Dataset, list[Residence]], now: datetime, newest: datetime | None
) -> None:
    of, homes = ledger
    plan = plan_moves(of, homes, newest, now)
    moving, staying = ({item.unit.name for item in side} for side in (plan.moves, plan.stays))
    assert moving | staying == {home.unit.name for home in homes}
    assert not moving & staying
    assert all(stay.reasons and all(r.code and r.text for r in stay.reasons) for stay in plan.stays)
    assert plan == plan_moves(of, list(reversed(homes)), newest, now)


@given(ledgers(), recent_instants, recent_instants)
def test_held_units_never_expire_and_young_ones_never_move(
    ledger: tuple[Dataset, list[Residence]], now: datetime, newest: datetime
) -> None:
    of, homes = ledger
    plan = plan_moves(of, homes, newest, now)
    by_name = {home.unit.name: home for home in homes}
    for move in plan.moves:
        home = by_name[move.unit.name]
        assert not (move.transition is Transition.EXPIRE and home.hold)
        if home.move_state not in OPEN and move.transition is not Transition.MERGE:
            assert home.unit.end <= min(now, newest)
            assert move.due_at is not None
            assert move.due_at <= min(now, newest)


@given(ledgers(), recent_instants)
def test_applying_plans_at_one_instant_comes_to_rest(ledger: tuple[Dataset, list[Residence]], now: datetime) -> None:
    of, homes = ledger
    rounds = 0
    while (plan := plan_moves(of, homes, now, now)).moves:
        before, homes = far_along(homes), apply(plan, homes)
        assert all(far_along(homes)[name] >= place for name, place in before.items())
        rounds += 1
        assert rounds <= 6, "an open move, hot-to-warm, merge, compress or cold, expire: no road is longer"
    assert plan_moves(of, homes, now, now) == plan


@given(ledgers(), recent_instants, st.data())
def test_a_plan_interrupted_anywhere_comes_to_the_same_rest(
    ledger: tuple[Dataset, list[Residence]], now: datetime, data: st.DataObject
) -> None:
    of, homes = ledger

    def rest(homes: list[Residence]) -> list[Residence]:
        while (plan := plan_moves(of, homes, now, now)).moves:
            homes = apply(plan, homes)
        return sorted(homes, key=lambda home: home.unit)

    plan = plan_moves(of, homes, now, now)
    done = data.draw(st.integers(0, len(plan.moves)))
    assert rest(apply(replace(plan, moves=plan.moves[:done]), homes)) == rest(homes)


@given(ledgers(), recent_instants, later)
def test_later_never_takes_a_move_back(ledger: tuple[Dataset, list[Residence]], now: datetime, more: timedelta) -> None:
    of, homes = ledger
    order = [Transition.HOT_TO_WARM, Transition.MERGE, Transition.COMPRESS, Transition.WARM_TO_COLD, Transition.EXPIRE]
    first = {move.unit.name: move.transition for move in plan_moves(of, homes, now, now).moves}
    then = {move.unit.name: move.transition for move in plan_moves(of, homes, now + more, now + more).moves}
    assert first.keys() <= then.keys()
    assert all(order.index(then[name]) >= order.index(step) for name, step in first.items())


@given(ledgers(), recent_instants)
def test_a_date_that_is_given_is_the_date_it_moves(ledger: tuple[Dataset, list[Residence]], now: datetime) -> None:
    of, homes = ledger
    for stay in plan_moves(of, homes, now, now).stays:
        for reason in stay.reasons:
            if reason.code not in ("young", "future") or reason.until is None:
                continue
            at = reason.until
            eve = plan_moves(of, homes, at - timedelta(microseconds=1), at - timedelta(microseconds=1))
            day = plan_moves(of, homes, at, at)
            assert stay.unit.name not in {move.unit.name for move in eve.moves}
            assert stay.unit.name in {move.unit.name for move in day.moves}


def test_an_expiry_begun_under_another_policy_is_not_carried_on() -> None:
    home = residence("2024-01-05", Tier.COLD, move_state=State.PLANNED, move_transition=Transition.EXPIRE)
    plan = plan_moves(dataset(), [home], NOW, NOW)
    assert plan.moves == ()
    assert [reason.code for reason in plan.stays[0].reasons] == ["moving"]
