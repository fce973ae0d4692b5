"""Two schedulers at once: whatever one did since the other looked, nothing is begun twice or made twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.fakes import Tripwire, wired
from tests.ops.world import World, days_ago, open_world
from tiering import errors
from tiering.model import Plan, State, Transition
from tiering.ops import handover, install, lifecycle
from tiering.ops.sweep import sweep
from tiering.ops.work import Work
from tiering.settings import Settings
from tiering.stores import tables
from tiering.stores.ledger import Ledger
from tiering.stores.postgres import execute, fetch
from tiering.stores.records import UnitRecord

CORRECTION = "INSERT INTO hot.market_bars VALUES ('S1','US','1m',%s,1,2,1,1,7,7,'test')"


@pytest.fixture(params=["one database", "two databases"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    name = "fresh_settings" if request.param == "one database" else "fresh_two_database_settings"
    with open_world(request.getfixturevalue(name)) as opened:
        yield opened


def planned(world: World, transition: Transition) -> Plan:
    """What a scheduler would do now."""
    install.prepare_units(world.stores, world.dataset, world.now)
    plan = lifecycle.plan_dataset(world.stores, world.dataset, world.now, [transition])
    assert {move.transition for move in plan.moves} == {transition}
    return plan


def test_plans_that_somebody_else_carried_out_meanwhile_are_not_begun_again(world: World) -> None:
    for days in (30, 800, 3700, 0):
        world.insert_day(days_ago(days))
    for days, transition in (
        (0, Transition.HOT_TO_WARM),
        (0, Transition.COMPRESS),
        (30, Transition.MERGE),
        (0, Transition.WARM_TO_COLD),
        (800, Transition.MERGE),
        (0, Transition.EXPIRE),
    ):
        if days:
            world.insert_day(days_ago(days), symbols=4, minutes=1, source="late")
        stale = planned(world, transition)
        done = lifecycle.begin_moves(world.stores, stale)
        for move_id in done:
            lifecycle.run_move(world.stores, move_id, world.now, "first")
        rows = world.rows()

        assert lifecycle.begin_moves(world.stores, stale) == done
        for move_id in done:
            assert lifecycle.run_move(world.stores, move_id, world.now, "second").state is State.COMMITTED
        assert world.rows() == rows, transition
    with world.stores.warm.transaction("count", "open moves") as connection:
        assert fetch(connection, "SELECT count(*) FROM tiering.move WHERE state <> 'COMMITTED'") == [(0,)]


def test_a_unit_that_leaves_while_another_scheduler_prepares_is_not_made_again(world: World) -> None:
    """The other scheduler has looked, is slow, and acts when the unit is gone and a correction of it waits."""
    day = days_ago(30)
    world.insert_day(day)
    world.insert_day(days_ago(0))
    first = Ledger(world.stores.warm)

    class Slow(Ledger):
        """A ledger whose first answer was read before everything else happened."""

        def units(self, dataset: str) -> list[UnitRecord]:
            found = first.units(dataset)
            if not found:
                world.run(Transition.HOT_TO_WARM)
                with world.stores.hot.transaction("correct", "a bar") as connection:
                    execute(
                        connection, "INSERT INTO hot.market_bars VALUES ('S1','US','1m',%s,1,2,1,1,7,7,'test')", (day,)
                    )
            return found

    slow = replace(world.stores, ledger=Slow(world.stores.warm))
    install.prepare_units(slow, world.dataset, world.now)
    with world.stores.hot.transaction("look", "partitions") as connection:
        attached = {part.begin for part in tables.partitions(connection, tables.hot_parent(world.dataset.name))}
    assert day not in attached, "its correction would be seen beside the old row, and never merge"
    assert [receipt.state for receipt in world.run(Transition.MERGE)] == [State.COMMITTED]
    assert [row[8] for row in world.rows() if row[0] == "S1" and row[3] == day] == [7]


def test_a_unit_that_leaves_while_another_scheduler_surveys_is_looked_for_again(world: World) -> None:
    """Its table is in the catalog's list and, a moment later, has another name: at every statement of the survey."""
    world.insert_day(days_ago(0))
    for at in range(1, 9):
        world.insert_day(days_ago(30 + at), minutes=1)
        (move_id,) = lifecycle.begin_moves(world.stores, planned(world, Transition.HOT_TO_WARM))
        for step in (lifecycle.seal, lifecycle.check, lifecycle.copy, lifecycle.verify):
            step(world.stores, move_id, world.now, "second")
        wire = Tripwire(lambda id=move_id: hand_over(world, id), statements=True)
        wire.arm(at, after=True)
        lifecycle.plan_dataset(wired(world.stores, wire), world.dataset, world.now)
        lifecycle.run_move(world.stores, move_id, world.now, "second")
    assert len(world.rows()) == 60 + 8 * 3


def hand_over(world: World, move_id: int) -> None:
    """Commit by plain statements, unless the survey has a lock on the table already: then it is not in danger."""
    with suppress(errors.TransientError), world.stores.ledger.lease(move_id, "second") as record:
        work = Work(world.stores, world.dataset, record, world.now, "second")
        with world.stores.hot.transaction("try", "lock", lock_timeout_ms=50) as connection:
            execute(connection, f"LOCK TABLE {record.source} IN ACCESS EXCLUSIVE MODE")
        handover.commit(work)


class Crash(BaseException):
    """Ends a mover like a kill, for a store call deep inside."""


def crash() -> None:
    raise Crash


def test_a_sweep_takes_the_hot_copy_that_a_crash_left_attached(fresh_two_database_settings: Settings) -> None:
    """Else the ledger calls it reclaimed, nobody takes it away any more, and it hides every later generation."""
    with open_world(fresh_two_database_settings) as world:
        for days in (0, 30, 31):
            world.insert_day(days_ago(days))
        plan = planned(world, Transition.HOT_TO_WARM)
        learn = Tripwire()
        at = None
        for move_id in lifecycle.begin_moves(world.stores, plan):
            for step in (lifecycle.seal, lifecycle.check, lifecycle.copy, lifecycle.verify):
                step(world.stores, move_id, world.now, "test")
            wire = learn if at is None else Tripwire(crash)
            wire.arm(at)
            with suppress(Crash):
                lifecycle.commit(wired(world.stores, wire), move_id, world.now, "test")
            at = learn.names.index("hot.begin settle") + 1
        assert lifecycle.receipt(world.stores, move_id).state is State.COMMITTED

        sweep(world.stores, world.now + timedelta(days=3), "test")
        with world.stores.hot.transaction("look", "sealed") as connection:
            assert tables.partitions(connection, tables.sealed_parent(world.dataset.name)) == []
        with world.stores.warm.transaction("look", "warm") as connection:
            assert fetch(connection, "SELECT count(*) FROM warm.market_bars") == [(120,)]


def test_a_run_that_lost_its_lease_does_not_make_the_copy_again(fresh_two_database_settings: Settings) -> None:
    """It only seemed dead; the run that took over has verified the stage table of the same name."""
    with open_world(fresh_two_database_settings) as world:
        world.insert_day(days_ago(0))
        world.insert_day(days_ago(30))
        (move_id,) = lifecycle.begin_moves(world.stores, planned(world, Transition.HOT_TO_WARM))
        for step in (lifecycle.seal, lifecycle.check):
            step(world.stores, move_id, world.now, "first")
        with world.stores.ledger.lease(move_id, "first") as record:
            stale = Work(world.stores, world.dataset, record, world.now, "first")
        for step in (lifecycle.copy, lifecycle.verify):
            done = step(world.stores, move_id, world.now, "second")
        with pytest.raises(errors.LeaseHeld, match="lost"):
            handover.copy(stale)
        with world.stores.warm.transaction("look", "stage") as connection:
            assert fetch(connection, f"SELECT count(*) FROM {done.target}") == [(60,)]
        assert lifecycle.commit(world.stores, move_id, world.now, "second").state is State.COMMITTED
