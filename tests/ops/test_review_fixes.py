"""What reviewers found and was mended: each of these failed before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.fakes import Tripwire, wired
from tests.ops.test_faults_named import begin_cold, demand_clear, with_settings
from tests.ops.world import World, days_ago, open_world
from tests.stores.faulty_proxy import Fault, FaultyProxy, http_answer
from tiering import errors
from tiering.model import State, Transition
from tiering.ops import handover, lifecycle, pack
from tiering.ops.export import fetched
from tiering.ops.sweep import Swept, sweep
from tiering.ops.work import Work
from tiering.plan.spans import add
from tiering.settings import Settings
from tiering.stores import tables
from tiering.stores.postgres import execute, fetch
from tiering.stores.records import MoveRecord, TrashRecord, UnitRecord


@pytest.fixture
def world(fresh_settings: Settings) -> Iterator[World]:
    with open_world(fresh_settings) as opened:
        yield opened


@pytest.fixture
def two(fresh_two_database_settings: Settings) -> Iterator[World]:
    """A world of two databases."""
    with open_world(fresh_two_database_settings) as opened:
        yield opened


def after_window(world: World, since: datetime | None = None) -> datetime:
    """The first minute in which a sweep may take what was superseded at an instant, by default the real now.

    Snapshots of the lake are as old as they really are, whatever the run's now was.
    """
    return add(since or datetime.now(UTC), world.stores.policies.undo_window) + timedelta(minutes=1)


def waiting(world: World) -> list[TrashRecord]:
    return world.stores.ledger.trash(world.dataset.name)


# --- holds beside a sweep ---------------------------------------------------------------------------------------


def superseded(world: World, store: str) -> datetime:
    """Let one copy be superseded in a store, where it waits to be swept; return its unit's begin."""
    day = days_ago(3660 if store == "lake" else 30)
    world.insert_day(day)
    world.insert_day(days_ago(0))
    if store == "lake":
        earlier = world.now - timedelta(days=3 * 365)
        world.run(Transition.HOT_TO_WARM, at=earlier)
        world.run(Transition.WARM_TO_COLD, at=earlier)
        sweep(world.stores, after_window(world, earlier), "test")
        world.run(Transition.EXPIRE)
    else:
        world.run(Transition.HOT_TO_WARM)
        world.run(Transition.COMPRESS if store == "warm" else Transition.MERGE)
    assert {item.store for item in waiting(world)} == {store}
    return day


def is_there(world: World, item: TrashRecord) -> bool:
    if item.store == "lake":
        return any(world.stores.location(found.key) == item.location for found in world.stores.objects.list("lake/"))
    database = world.stores.hot if item.store == "hot" else world.stores.warm
    with database.transaction("look for", item.location) as connection:
        return tables.exists(connection, item.location)


def sweep_struck(world: World, call: str, strike: Callable[[], None], *, at: int = 1, after: bool) -> list[Swept]:
    """Sweep, and let something happen at the `at`-th store call of a name."""
    wire = Tripwire(strike)
    wire.arm(at, after=after, name=("", call))
    swept = sweep(wired(world.stores, wire), after_window(world), "test")
    assert wire.struck, wire.names
    return swept


@pytest.mark.parametrize(
    ("mode", "store"),
    [("fresh_settings", "warm"), ("fresh_settings", "lake"), ("fresh_two_database_settings", "hot")],
)
def test_a_hold_placed_between_a_sweep_s_look_and_its_destruction_is_seen(
    request: pytest.FixtureRequest, mode: str, store: str
) -> None:
    with open_world(request.getfixturevalue(mode)) as world:
        day = superseded(world, store)
        (item,) = waiting(world)

        def hold() -> None:
            world.stores.ledger.place_hold(world.dataset.name, day, "case 7", "counsel")

        # The sweep has listed holds and trash, and has destroyed nothing yet.
        swept = sweep_struck(world, "warm.commit list trash of", hold, after=True)
        assert item.location not in {one.location for one in swept}
        assert waiting(world) == [item]
        assert is_there(world, item)

        world.stores.ledger.lift_hold(world.dataset.name, day, "settled", "counsel")
        assert item.location in {one.location for one in sweep(world.stores, after_window(world), "test")}
        assert not is_there(world, item)
        assert waiting(world) == []


def test_a_hold_placed_while_a_copy_is_being_destroyed_waits_until_it_is_gone(world: World) -> None:
    superseded(world, "lake")
    (item,) = waiting(world)
    refused: list[errors.TieringError] = []
    placing = threading.Thread(
        target=world.stores.ledger.place_hold, args=(world.dataset.name, None, "case 7", "counsel")
    )

    def try_to_hold() -> None:
        with (
            pytest.raises(errors.CommitConflict) as caught,
            world.stores.warm.transaction("hold", "a dataset", lock_timeout_ms=50) as connection,
        ):
            execute(
                connection, "INSERT INTO tiering.hold (dataset, reason, placed_by) VALUES ('market_bars', 'x', 'x')"
            )
        refused.append(caught.value)
        placing.start()

    # Leftovers of crashed runs, which nobody can hold, are deleted by a call before this one.
    swept = sweep_struck(world, "objects.delete", try_to_hold, at=2, after=False)
    assert item.location in {one.location for one in swept}
    placing.join()
    assert refused
    assert not is_there(world, item)
    with world.stores.warm.transaction("look", "at the trail") as connection:
        told = fetch(connection, "SELECT action FROM tiering.audit ORDER BY audit_id DESC LIMIT 2")
    assert told == [("hold",), ("reclaim",)]


# --- settling ---------------------------------------------------------------------------------------------------


def verified(world: World, days: int) -> int:
    """Bring one unit's hand-over to the point where only its commit is missing."""
    world.insert_day(days_ago(days))
    (move_id,) = world.begin(Transition.HOT_TO_WARM)
    for step in (lifecycle.seal, lifecycle.check, lifecycle.copy, lifecycle.verify):
        step(world.stores, move_id, world.now, "test")
    return move_id


def test_a_conflict_while_settling_does_not_repeat_the_commit(two: World) -> None:
    two.insert_day(days_ago(0))
    move_id = verified(two, 30)
    rows = two.rows()

    def conflict() -> None:
        raise errors.CommitConflict("settle", "a unit", "a reader is in the way")

    wire = Tripwire(conflict)
    wire.arm(1, name=("", "hot.begin settle"))
    assert lifecycle.commit(wired(two.stores, wire), move_id, two.now, "test").state is State.COMMITTED
    assert wire.names.count("warm.begin commit") == 1
    assert wire.names.count("hot.begin settle") == 2
    with two.stores.hot.transaction("look", "sealed") as connection:
        assert tables.partitions(connection, tables.sealed_parent(two.dataset.name)) == []
    assert two.rows() == rows


@pytest.mark.parametrize("at", [1, 2, 3])
def test_two_movers_settle_the_same_move_at_once(two: World, at: int) -> None:
    """The second comes after each statement of the first, and either waits in vain or finds it done."""
    two.insert_day(days_ago(0))
    move_id = verified(two, 30)
    with two.stores.ledger.lease(move_id, "first") as leased:
        work = Work(two.stores, two.dataset, leased, two.now, "first")
        committed = handover.commit(work)
    met: list[errors.TieringError | None] = []

    def second() -> None:
        try:
            handover.settle(work.at(committed))
            met.append(None)
        except errors.CommitConflict as exc:
            met.append(exc)

    wire = Tripwire(second, statements=True)
    wire.arm(at, after=True, name=("", "hot.execute"))
    handover.settle(Work(wired(two.stores, wire), two.dataset, committed, two.now, "first"))
    assert len(met) == 1
    handover.settle(work.at(committed))
    with two.stores.hot.transaction("look", "sealed") as connection:
        assert tables.partitions(connection, tables.sealed_parent(two.dataset.name)) == []
        assert tables.exists(connection, tables.trash_table(committed.unit, move_id, "hot"))


# --- sweeping ---------------------------------------------------------------------------------------------------


def test_the_undo_window_of_a_late_run_counts_from_its_own_now(world: World) -> None:
    """The move was planned long ago, by a run that died; what it supersedes is superseded only when it commits."""
    world.insert_day(days_ago(30))
    world.insert_day(days_ago(0))
    world.run(Transition.HOT_TO_WARM)
    (move_id,) = world.begin(Transition.COMPRESS)
    lifecycle.seal(world.stores, move_id, world.now, "died")
    late = world.now + timedelta(days=40)
    assert lifecycle.run_move(world.stores, move_id, late, "late").state is State.COMMITTED
    assert [item.trashed_at for item in waiting(world)] == [late]
    assert sweep(world.stores, late + timedelta(minutes=1), "test") == []
    assert sweep(world.stores, after_window(world, late), "test")


def test_a_table_that_a_reader_holds_does_not_keep_the_rest_from_being_swept(world: World) -> None:
    for days in (30, 31, 32, 0):
        world.insert_day(days_ago(days))
    world.run(Transition.HOT_TO_WARM)
    world.run(Transition.COMPRESS)
    read = waiting(world)[0]
    with world.stores.warm.transaction("read", read.location) as connection:
        fetch(connection, f"SELECT count(*) FROM {read.location}")
        with pytest.raises(errors.CommitConflict):
            sweep(world.stores, after_window(world), "test")
        assert waiting(world) == [read]
    assert [swept.location for swept in sweep(world.stores, after_window(world), "test")] == [read.location]


# --- leases -----------------------------------------------------------------------------------------------------


def test_a_run_that_lost_its_lease_does_not_pack_again(world: World) -> None:
    world.insert_day(days_ago(30))
    world.insert_day(days_ago(0))
    world.run(Transition.HOT_TO_WARM)
    rows = world.rows()
    (move_id,) = world.begin(Transition.COMPRESS)
    lifecycle.seal(world.stores, move_id, world.now, "first")
    with world.stores.ledger.lease(move_id, "first") as record:
        stale = Work(world.stores, world.dataset, record, world.now, "first")
    done = lifecycle.copy(world.stores, move_id, world.now, "second")
    before = oid_of(world, done)
    with pytest.raises(errors.LeaseHeld, match="lost"):
        pack.copy(stale)
    assert oid_of(world, done) == before, "the second run's copy must be the same table still"
    assert lifecycle.run_move(world.stores, move_id, world.now, "second").state is State.COMMITTED
    assert world.rows() == rows


def oid_of(world: World, record: MoveRecord) -> int:
    with world.stores.warm.transaction("look", record.target) as connection:
        ((oid,),) = fetch(connection, "SELECT %s::regclass::oid::bigint", (record.target,))
    return int(oid)


def test_a_lease_s_connection_is_watched_from_both_ends(world: World) -> None:
    """The lease of a host that vanished ends when the server notices: within a minute, not with TCP's own hours."""
    world.insert_day(days_ago(30))
    world.insert_day(days_ago(0))
    (move_id,) = world.begin(Transition.HOT_TO_WARM)
    with world.stores.ledger.database.connect(f"lease move {move_id}") as connection:
        idle, interval, count = (
            int(fetch(connection, f"SHOW tcp_keepalives_{name}")[0][0]) for name in ("idle", "interval", "count")
        )
        assert 0 < idle + interval * count <= 60
        parameters = connection.get_dsn_parameters()
        ours = [int(parameters[f"keepalives_{name}"]) for name in ("idle", "interval", "count")]
        assert 0 < ours[0] + ours[1] * ours[2] <= 60
        assert fetch(connection, "SHOW statement_timeout") == [("2h",)]
    connection.close()


# --- a wrong bucket ---------------------------------------------------------------------------------------------


def test_a_bucket_that_does_not_exist(world: World, fresh_settings: Settings) -> None:
    """SeaweedFS makes a bucket that is written to; S3 itself answers so."""
    move_id, rows = begin_cold(world)
    proxy = FaultyProxy(fresh_settings.s3_url)
    answer = http_answer("404 Not Found", "NoSuchBucket", "The specified bucket does not exist")
    try:
        with (
            with_settings(world, fresh_settings, s3_url=proxy.url) as stores,
            proxy.fault(Fault("up", 0, answer)),
            pytest.raises(errors.NotFound) as caught,
        ):
            lifecycle.run_move(stores, move_id, world.now, "test")
    finally:
        proxy.close()
    demand_clear(caught.value, fresh_settings.lake_bucket, "TIERING_LAKE_BUCKET")
    assert world.rows() == rows
    assert lifecycle.run_move(world.stores, move_id, world.now, "test").state is State.COMMITTED
    assert world.rows() == rows


def test_another_bucket_than_the_one_the_units_are_in(world: World, fresh_settings: Settings) -> None:
    """Nothing is looked for under a name that only seems to be a key, and nothing counts as destroyed."""
    superseded(world, "lake")
    (item,) = waiting(world)
    other = fresh_settings.backup_bucket
    with with_settings(world, fresh_settings, lake_bucket=other) as stores:
        with pytest.raises(errors.NotFound) as caught:
            sweep(stores, after_window(world), "test")
        demand_clear(caught.value, item.location, other, "TIERING_LAKE_BUCKET")
        (unit,) = (u for u in stores.ledger.units(world.dataset.name) if u.tier == "expired")
        with pytest.raises(errors.NotFound, match="TIERING_LAKE_BUCKET"), fetched(stores, at(unit, item.location)):
            pass
    assert waiting(world) == [item]
    assert is_there(world, item)


def at(unit: UnitRecord, location: str) -> UnitRecord:
    return replace(unit, location=location)
