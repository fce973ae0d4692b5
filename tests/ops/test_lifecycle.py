"""The life of units on real servers, in one database and in two: nothing lost, nothing doubled, nothing changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ops.world import World, days_ago, open_world
from tiering import errors
from tiering.model import State, Tier, Transition, Unit
from tiering.ops import lifecycle
from tiering.ops.sweep import sweep
from tiering.plan.spans import add
from tiering.stores import tables
from tiering.stores.postgres import execute, fetch


@pytest.fixture(params=["one database", "two databases"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    name = "fresh_settings" if request.param == "one database" else "fresh_two_database_settings"
    with open_world(request.getfixturevalue(name)) as opened:
        yield opened


def test_a_unit_lives_its_whole_life_and_keeps_every_value(world: World) -> None:
    old, young = days_ago(800), days_ago(0)
    world.insert_day(old)
    world.insert_day(young)
    rows = world.rows()

    for transition in (Transition.HOT_TO_WARM, Transition.COMPRESS, Transition.WARM_TO_COLD):
        receipts = world.run(transition)
        if transition is Transition.COMPRESS:
            assert receipts == [], "past warm_to_cold already: packing it first would be work for nothing"
            continue
        assert [r.state for r in receipts] == [State.COMMITTED]
        assert receipts[0].row_count == 60
        assert world.rows() == rows, transition

    assert [record.tier for record in world.stores.ledger.units(world.dataset.name)] == [Tier.COLD]
    assert len(world.cold_rows()) == 60


def test_rows_without_a_partition_are_planned_like_any_other(world: World) -> None:
    world.insert_day(days_ago(30))
    world.insert_day(days_ago(0))
    rows = world.rows()
    plan = lifecycle.plan_dataset(world.stores, world.dataset, world.now)
    assert [(move.transition, move.unit.begin) for move in plan.moves] == [(Transition.HOT_TO_WARM, days_ago(30))]
    (move_id,) = lifecycle.begin_moves(world.stores, plan)
    assert lifecycle.run_move(world.stores, move_id, world.now, "test").state is State.COMMITTED
    assert world.rows() == rows


def test_running_again_changes_nothing(world: World) -> None:
    world.insert_day(days_ago(30))
    world.insert_day(days_ago(0))
    first = world.run()
    assert [r.transition for r in first] == [Transition.HOT_TO_WARM]
    assert [r.transition for r in world.run()] == [Transition.COMPRESS]
    rows = world.rows()
    assert world.run() == []
    assert world.rows() == rows


def test_packed_units_read_the_same_and_can_be_merged_again(world: World) -> None:
    day = days_ago(30)
    world.insert_day(day)
    world.insert_day(days_ago(0))
    rows = world.rows()
    world.run()
    packed = world.run(Transition.COMPRESS)
    assert [r.transition for r in packed] == [Transition.COMPRESS]
    assert world.rows() == rows

    late = world.insert_day(day, symbols=1, minutes=1, source="late")
    assert late == 1
    assert len(world.rows()) == len(rows) + 1, "a late row is seen before it is merged"
    merged = world.run(Transition.MERGE)
    assert [(r.transition, r.unit.generation) for r in merged] == [(Transition.MERGE, 2)]
    assert len(world.rows()) == len(rows) + 1
    assert not world.stores.ledger.units(world.dataset.name)[0].is_compressed


@pytest.mark.parametrize("tier", [Tier.WARM, Tier.COLD])
def test_a_late_row_wins_over_the_older_row_of_its_key(world: World, tier: Tier) -> None:
    day = days_ago(30 if tier is Tier.WARM else 900)
    world.insert_day(day)
    world.insert_day(days_ago(0))
    world.run()
    if tier is Tier.COLD:
        world.run(Transition.WARM_TO_COLD)
    count = len(world.rows())
    with world.stores.hot.transaction("correct", "a bar") as connection:
        execute(
            connection,
            "INSERT INTO hot.market_bars VALUES ('S1','US','1m',%s,1,2,1,1.5,7,7,'test')",
            (day,),
        )
    receipts = world.run(Transition.MERGE)
    assert [r.state for r in receipts] == [State.COMMITTED]
    rows = world.rows()
    assert len(rows) == count
    assert [row[8] for row in rows if row[0] == "S1" and row[3] == day] == [7]
    assert world.stores.ledger.units(world.dataset.name)[0].unit.generation == 2


def test_expiry_leaves_an_audit_row_and_the_sweep_removes_the_bytes(world: World) -> None:
    world.insert_day(days_ago(3660))
    world.insert_day(days_ago(0))
    world.run()
    world.run(Transition.EXPIRE)
    assert {row[3].date() for row in world.rows()} == {days_ago(0).date()}  # type: ignore[attr-defined]
    with world.stores.warm.transaction("read", "audit") as connection:
        assert fetch(connection, "SELECT count(*) FROM tiering.audit WHERE action = 'expire'") == [(1,)]
        with pytest.raises(Exception, match="append-only"):
            execute(connection, "DELETE FROM tiering.audit")

    assert sweep(world.stores, world.now, "test") == []
    later = add(world.now, world.stores.policies.undo_window)
    later = later.replace(minute=1)
    planned = sweep(world.stores, later, "test", dry_run=True)
    swept = sweep(world.stores, later, "test")
    assert planned == swept
    assert swept
    for item in swept:
        database = world.stores.hot if item.store == "hot" else world.stores.warm
        with database.transaction("look", item.location) as connection:
            assert not tables.exists(connection, item.location)


def test_rows_that_come_after_their_unit_expired_are_seen_until_they_expire_too(world: World) -> None:
    day = days_ago(3660)
    world.insert_day(day)
    world.insert_day(days_ago(0))
    world.run()
    world.run(Transition.EXPIRE)
    kept = world.rows()
    assert world.insert_day(day, symbols=1, minutes=2, source="late") == 2
    assert len(world.rows()) == len(kept) + 2
    assert [r.state for r in world.run(Transition.EXPIRE)] == [State.COMMITTED]
    assert world.rows() == kept
    assert world.run(Transition.EXPIRE) == []


def test_a_hold_stops_expiry_even_when_placed_after_the_plan(world: World) -> None:
    world.insert_day(days_ago(3660))
    world.insert_day(days_ago(0))
    world.run()
    (move_id,) = world.begin(Transition.EXPIRE)
    world.stores.ledger.place_hold(world.dataset.name, None, "case 12/2024", "counsel")
    rows = world.rows()
    with pytest.raises(errors.HeldError, match="case 12/2024"):
        lifecycle.run_move(world.stores, move_id, world.now, "test")
    assert world.rows() == rows
    stays = lifecycle.plan_dataset(world.stores, world.dataset, world.now).stays
    assert "held" in {reason.code for stay in stays for reason in stay.reasons}


def test_a_bad_unit_is_quarantined_and_the_others_go_on(world: World) -> None:
    for days in (30, 31):
        world.insert_day(days_ago(days))
    world.insert_day(days_ago(0))
    with world.stores.hot.transaction("spoil", "a bar") as connection:
        execute(connection, "UPDATE hot.market_bars SET low = high + 1 WHERE ts = %s", (days_ago(30),))
    receipts = world.run(Transition.HOT_TO_WARM)
    assert sorted(r.state for r in receipts) == [State.COMMITTED, State.QUARANTINED]
    bad = next(r for r in receipts if r.state is State.QUARANTINED)
    assert "low" in bad.problem
    begin = days_ago(30)
    unit = Unit(world.dataset.name, begin, days_ago(29))
    lifecycle.release(world.stores, unit, "test", "prices checked against the exchange")
    receipts = world.run(Transition.HOT_TO_WARM)
    assert [r.state for r in receipts] == [State.COMMITTED]


def test_writing_to_a_sealed_partition_by_name_is_refused_and_to_the_hot_table_is_kept(world: World) -> None:
    day = days_ago(30)
    world.insert_day(day)
    world.insert_day(days_ago(0))
    (move_id,) = world.begin()
    record = lifecycle.seal(world.stores, move_id, world.now, "test")
    with (
        pytest.raises(errors.PermanentError, match="is sealed"),
        world.stores.hot.transaction("write", record.source) as connection,
    ):
        execute(connection, f"DELETE FROM {record.source}")
    assert world.insert_day(day, symbols=1, minutes=1, source="late") == 1
    assert len(world.rows()) == 121
    lifecycle.run_move(world.stores, move_id, world.now, "test")
    assert len(world.rows()) == 121
    assert [r.transition for r in world.run()] == [Transition.MERGE]
    assert len(world.rows()) == 121


def test_a_second_run_cannot_take_a_leased_move_and_a_fenced_one_cannot_commit(world: World) -> None:
    world.insert_day(days_ago(30))
    world.insert_day(days_ago(0))
    (move_id,) = world.begin()
    assert world.begin() == [move_id]
    with world.stores.ledger.lease(move_id, "first") as record:
        with pytest.raises(errors.LeaseHeld, match="first"):
            lifecycle.seal(world.stores, move_id, world.now, "second")
        with world.stores.warm.transaction("take over", "the lease") as connection:
            execute(connection, "UPDATE tiering.move SET lease_epoch = lease_epoch + 1 WHERE move_id=%s", (move_id,))
        with pytest.raises(errors.LeaseHeld, match="lost"):
            world.stores.ledger.advance_alone(record, State.SEALED)


def test_a_copy_that_fails_verification_is_quarantined_and_made_anew_after_release(world: World) -> None:
    """Spoil the stage or the lake object between copy and verify: nothing is committed, and release starts over."""
    world.insert_day(days_ago(900))
    world.insert_day(days_ago(0))
    world.run(Transition.HOT_TO_WARM)
    rows = world.rows()
    (move_id,) = world.begin(Transition.WARM_TO_COLD)
    lifecycle.seal(world.stores, move_id, world.now, "test")
    lifecycle.check(world.stores, move_id, world.now, "test")
    record = lifecycle.copy(world.stores, move_id, world.now, "test")
    with world.stores.warm.transaction("spoil", "the hash") as connection:
        execute(
            connection,
            'UPDATE tiering.move SET details = details || \'{"sha256": "00"}\' WHERE move_id = %s',
            (move_id,),
        )
    with pytest.raises(errors.VerificationError, match="sha256"):
        lifecycle.verify(world.stores, move_id, world.now, "test")
    assert world.stores.ledger.move(move_id).state is State.QUARANTINED
    assert world.rows() == rows
    lifecycle.release(world.stores, record.unit, "test")
    assert [r.state for r in world.run(Transition.WARM_TO_COLD)] == [State.COMMITTED]
    assert world.rows() == rows


def test_a_hold_keeps_superseded_copies_from_the_sweep(world: World) -> None:
    world.insert_day(days_ago(30))
    world.insert_day(days_ago(0))
    world.run(Transition.HOT_TO_WARM)
    world.run(Transition.COMPRESS)
    later = add(world.now, world.stores.policies.undo_window).replace(minute=1)
    assert sweep(world.stores, later, "test", dry_run=True)
    world.stores.ledger.place_hold(world.dataset.name, days_ago(30), "case 7", "counsel")
    assert sweep(world.stores, later, "test") == []
    world.stores.ledger.lift_hold(world.dataset.name, days_ago(30), "settled", "counsel")
    assert sweep(world.stores, later, "test")
