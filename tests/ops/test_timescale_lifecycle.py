"""The life of units whose warm tier is TimescaleDB. Runs where the PostgreSQL server here offers the extension;
the WebAssembly build has one connection and no COPY in, so it cannot carry a move (tests/stores/test_timescale.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.local import Stack
from tests.ops.world import World, days_ago, open_world
from tiering import errors
from tiering.model import State, Tier, Transition
from tiering.ops import lifecycle
from tiering.ops.fsck import fsck
from tiering.ops.sweep import sweep
from tiering.plan.spans import add
from tiering.stores import tables
from tiering.stores.postgres import Postgres, execute, fetch


@pytest.fixture(params=["one database", "two databases"])
def world(request: pytest.FixtureRequest, stack: Stack) -> Iterator[World]:
    with stack.postgres.connect("postgres") as connection:
        if not fetch(connection, "SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'"):
            pytest.skip("the PostgreSQL server here has no TimescaleDB")
    name = "fresh_settings" if request.param == "one database" else "fresh_two_database_settings"
    settings = request.getfixturevalue(name)
    warm = Postgres(settings.warm_pg_url, "warm PostgreSQL")
    with warm.transaction("create", "the extension") as connection:
        execute(connection, "CREATE EXTENSION timescaledb")
    warm.close()
    with open_world(settings) as opened:
        yield opened


def chunks(world: World) -> list[tuple[str, bool]]:
    """List the warm tier's chunks and whether they are columnstore."""
    with world.stores.warm.transaction("list", "chunks") as connection:
        found = fetch(
            connection,
            """SELECT chunk_schema || '.' || chunk_name, is_compressed FROM timescaledb_information.chunks
               WHERE hypertable_schema = 'warm' AND hypertable_name = %s ORDER BY 1""",
            (world.dataset.name,),
        )
    return [(name, packed) for name, packed in found]


def test_a_unit_is_handed_over_compressed_merged_and_compressed_again(world: World) -> None:
    day = days_ago(30)
    world.insert_day(day, minutes=1440)
    world.insert_day(days_ago(0))
    rows = world.rows()
    assert [r.state for r in world.run(Transition.HOT_TO_WARM)] == [State.COMMITTED]
    (record,) = world.stores.ledger.units(world.dataset.name)
    assert chunks(world) == [(record.location, False)]
    assert world.rows() == rows

    (packed,) = world.run(Transition.COMPRESS)
    assert packed.state is State.COMMITTED
    assert chunks(world) == [(record.location, True)]
    assert world.rows() == rows
    print(
        f"before {packed.bytes_before} after {packed.bytes_after} ratio {packed.bytes_after / packed.bytes_before:.3f}"
    )
    assert packed.bytes_after <= 0.30 * packed.bytes_before

    assert world.insert_day(day, symbols=1, minutes=1, source="late") == 1
    assert len(world.rows()) == len(rows) + 1, "a late row is seen before it is merged"
    assert [r.state for r in world.run(Transition.MERGE)] == [State.COMMITTED]
    assert [packed for _, packed in chunks(world)] == [False]
    assert len(world.rows()) == len(rows) + 1
    assert [r.state for r in world.run(Transition.COMPRESS)] == [State.COMMITTED]
    assert len(world.rows()) == len(rows) + 1
    assert world.run() == []
    found = fsck(world.stores, world.now, deep=True).findings
    assert [f for f in found if "market_bars" in f.subject] == []


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_unit_goes_cold_in_one_transaction_and_can_be_undone_until_the_sweep(world: World, is_packed: bool) -> None:
    day = days_ago(30)
    world.insert_day(day)
    world.insert_day(days_ago(0))
    world.run(Transition.HOT_TO_WARM)
    if is_packed:
        world.run(Transition.COMPRESS)
    rows = world.rows()
    later = add(world.now, world.dataset.policy.warm_to_cold)
    world.insert_day(later.replace(hour=0))
    rows = world.rows()
    receipts = world.run(Transition.WARM_TO_COLD, at=later)
    assert [(r.state, r.row_count) for r in receipts] == [(State.COMMITTED, 60)]
    assert chunks(world) == []
    assert world.rows() == rows
    with world.stores.warm.transaction("look", "trash") as connection:
        waiting = [t.location for t in world.stores.ledger.trash(world.dataset.name) if t.store == "warm"]
        assert [fetch(connection, f"SELECT count(*) FROM {location}") for location in waiting[-1:]] == [[(60,)]]

    over = add(later, world.stores.policies.undo_window).replace(minute=1)
    sweep(world.stores, over, "test")
    with world.stores.warm.transaction("look", "trash") as connection:
        assert not any(tables.exists(connection, location) for location in waiting)
    assert world.rows() == rows


def test_a_commit_that_fails_leaves_the_chunk_frozen_where_it_was(world: World) -> None:
    world.insert_day(days_ago(30))
    world.insert_day(days_ago(0))
    world.run(Transition.HOT_TO_WARM)
    world.run(Transition.COMPRESS)
    later = add(world.now, world.dataset.policy.warm_to_cold)
    world.insert_day(later.replace(hour=0))
    rows, before = world.rows(), chunks(world)

    plan = lifecycle.plan_dataset(world.stores, world.dataset, later, [Transition.WARM_TO_COLD])
    (move_id,) = lifecycle.begin_moves(world.stores, plan)
    for step in (lifecycle.seal, lifecycle.check, lifecycle.copy, lifecycle.verify):
        step(world.stores, move_id, later, "test")
    with world.stores.warm.transaction("forbid", "the last statement of the commit") as connection:
        execute(connection, "ALTER TABLE tiering.audit ADD CONSTRAINT no CHECK (action <> 'warm-to-cold') NOT VALID")
    with pytest.raises(errors.TieringError, match="violates check constraint"):
        lifecycle.commit(world.stores, move_id, later, "test")
    assert chunks(world) == before
    assert world.rows() == rows
    with (
        pytest.raises(errors.TieringError, match="frozen"),
        world.stores.warm.transaction("write", "a frozen chunk") as connection,
    ):
        execute(connection, f"INSERT INTO {before[0][0]} SELECT * FROM {before[0][0]} LIMIT 1")

    with world.stores.warm.transaction("allow", "the commit") as connection:
        execute(connection, "ALTER TABLE tiering.audit DROP CONSTRAINT no")
    lifecycle.commit(world.stores, move_id, later, "test")
    assert chunks(world) == []
    assert world.rows() == rows


def test_a_packed_unit_expires_from_the_warm_tier(world: World) -> None:
    world.insert_day(days_ago(30))
    world.insert_day(days_ago(0))
    world.run(Transition.HOT_TO_WARM)
    world.run(Transition.COMPRESS)
    later = add(world.now, world.dataset.policy.retention)
    world.insert_day(later.replace(hour=0))
    world.run(Transition.EXPIRE, at=later)
    assert chunks(world) == []
    tiers = {r.unit.begin: r.tier for r in world.stores.ledger.units(world.dataset.name)}
    assert tiers[days_ago(30)] is Tier.EXPIRED


def test_a_crash_between_packing_and_the_ledger_goes_on_from_there(world: World) -> None:
    world.insert_day(days_ago(30))
    world.insert_day(days_ago(0))
    world.run(Transition.HOT_TO_WARM)
    rows = world.rows()
    (record,) = world.stores.ledger.units(world.dataset.name)
    with world.stores.warm.transaction("pack", "and crash") as connection:
        world.stores.warm_tables.pack(connection, world.dataset, record, record.unit, ())
    assert [packed for _, packed in chunks(world)] == [True]
    assert [r.state for r in world.run(Transition.COMPRESS)] == [State.COMMITTED]
    assert world.rows() == rows
