"""Damage that a check of the stores against each other has to find, and quiet where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import pytest

from tests.ops.world import NOW, World, days_ago, open_world
from tiering.ops import install, lifecycle
from tiering.ops.fsck import fsck
from tiering.plan.fsck import REMEDIES, Code
from tiering.settings import Settings
from tiering.stores.postgres import execute
from tiering.stores.records import UnitRecord


@pytest.fixture
def world(fresh_settings: Settings) -> Iterator[World]:
    with open_world(fresh_settings) as opened:
        for days in (0, 30, 31, 900):
            opened.insert_day(days_ago(days))
        opened.run()
        opened.run()
        yield opened


def codes(world: World, *, deep: bool = False) -> set[Code]:
    return {finding.code for finding in fsck(world.stores, NOW, deep=deep).findings}


def cold(world: World) -> UnitRecord:
    return next(r for r in world.stores.ledger.units(world.dataset.name) if r.tier == "cold")


def overwrite(world: World, record: UnitRecord, data: bytes) -> None:
    client = world.stores.objects._client
    client.put_object(Bucket=world.stores.lake_bucket, Key=world.stores.key(record.location), Body=data)


def test_a_sound_world_has_no_findings(world: World) -> None:
    checked = fsck(world.stores, NOW, deep=True)
    assert checked.findings == ()
    assert checked.is_clean
    assert (checked.units, checked.objects, checked.rows) == (3, 1, 180)


def test_a_sound_world_of_two_databases_has_none_either(fresh_two_database_settings: Settings) -> None:
    with open_world(fresh_two_database_settings) as opened:
        for days in (0, 30, 900):
            opened.insert_day(days_ago(days))
        opened.run()
        opened.run()
        assert fsck(opened.stores, NOW, deep=True).findings == ()


def test_a_missing_object_and_one_of_another_size(world: World) -> None:
    record = cold(world)
    overwrite(world, record, b"PAR1")
    assert codes(world) == {Code.WRONG_SIZE}
    world.stores.objects.delete([world.stores.key(record.location)])
    assert codes(world) == {Code.MISSING_OBJECT}


def test_a_flipped_bit_is_found_by_the_deep_check(world: World) -> None:
    record = cold(world)
    buffer = BytesIO()
    world.stores.objects.fetch(world.stores.key(record.location), buffer)
    data = bytearray(buffer.getvalue())
    data[len(data) // 2] ^= 1
    overwrite(world, record, bytes(data))
    assert codes(world) == set()
    assert codes(world, deep=True) == {Code.WRONG_HASH}


def test_a_warm_partition_that_was_detached_and_one_that_nobody_knows(world: World) -> None:
    with world.stores.warm.transaction("break", "a partition") as connection:
        warm = next(r for r in world.stores.ledger.units(world.dataset.name) if r.tier == "warm")
        execute(connection, f"ALTER TABLE warm.market_bars_packed DETACH PARTITION {warm.location}")
        execute(
            connection,
            "CREATE TABLE warm.by_hand PARTITION OF warm.market_bars FOR VALUES FROM ('2020-01-01') TO ('2020-01-02')",
        )
    assert codes(world) == {Code.MISSING_TABLE, Code.UNKNOWN_PARTITION}


def test_rows_deleted_behind_our_back_are_counted_by_the_deep_check(world: World) -> None:
    warm = next(r for r in world.stores.ledger.units(world.dataset.name) if r.tier == "warm")
    with world.stores.warm.transaction("break", "a partition") as connection:
        execute(connection, f"ALTER TABLE {warm.location} DISABLE TRIGGER USER")
        execute(connection, f"DELETE FROM {warm.location} WHERE symbol = 'S1'")
    assert codes(world) == set()
    assert codes(world, deep=True) == {Code.WRONG_ROWS}


def test_a_file_that_only_iceberg_or_only_the_ledger_knows(world: World) -> None:
    record = cold(world)
    world.stores.lake.publish(world.stores.lake.stage_remove(world.dataset.name, record.location))
    assert codes(world) == {Code.NOT_IN_LAKE}
    with world.stores.warm.transaction("break", "the ledger") as connection:
        execute(connection, "UPDATE tiering.unit SET tier = 'expired', location = '' WHERE tier = 'cold'")
    assert codes(world) == {Code.ORPHAN_OBJECT}
    assert fsck(world.stores, NOW).is_clean


def test_a_stale_move_and_overdue_trash(world: World) -> None:
    world.insert_day(days_ago(40))
    install.prepare_units(world.stores, world.dataset, NOW)
    lifecycle.begin_moves(world.stores, lifecycle.plan_dataset(world.stores, world.dataset, NOW))
    later = NOW.replace(year=2100)
    found = {finding.code for finding in fsck(world.stores, later).findings}
    assert found == {Code.STALE_MOVE, Code.OVERDUE_TRASH}


def test_a_column_that_the_warm_table_lacks(world: World) -> None:
    with world.stores.hot.transaction("drift", "the hot table") as connection:
        execute(connection, "ALTER TABLE hot.market_bars ADD COLUMN vwap numeric(18, 8)")
    assert codes(world) == {Code.SCHEMA_DRIFT}


def test_every_kind_of_finding_names_a_remedy() -> None:
    assert set(REMEDIES) == set(Code)
