"""Small lake files joined for readers, apart again the moment that one of them changes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from multiprocessing.connection import Connection

import pytest

from tests.children import GO, kill_after
from tests.ops.document_world import open_documents, raw
from tests.ops.world import NOW, World, days_ago, open_world
from tests.stores.test_lake import outside_catalog
from tiering import errors
from tiering.model import State, Transition
from tiering.ops.compact import Joined, compact
from tiering.ops.fsck import fsck
from tiering.ops.query import query
from tiering.ops.sweep import sweep
from tiering.settings import Settings
from tiering.stores.joined import list_joined
from tiering.stores.postgres import execute

DAYS = (803, 802, 801, 800)
COLD = (Transition.HOT_TO_WARM, Transition.COMPRESS, Transition.WARM_TO_COLD)


@pytest.fixture
def world(fresh_settings: Settings) -> Iterator[World]:
    with open_world(fresh_settings) as opened:
        for age in (*DAYS, 0):
            opened.insert_day(days_ago(age))
        for transition in COLD:
            for receipt in opened.run(transition):
                assert receipt.state is State.COMMITTED
        yield opened


def join(world: World, **limits: int) -> list[Joined]:
    return compact(world.stores, world.dataset, "test", **limits)


def published(world: World) -> int:
    """Count the files that Iceberg readers open."""
    return len(world.stores.lake.files("market_bars"))


def rows(world: World) -> list[dict[str, object]]:
    return query(world.stores, "SELECT * FROM market_bars ORDER BY ALL").to_pylist()


def in_iceberg(settings: Settings) -> int:
    return int(outside_catalog(settings).load_table(("lake", "market_bars")).scan().to_arrow().num_rows)


def late_row(world: World, age: int) -> None:
    with world.stores.hot.transaction("late", "row") as connection:
        execute(
            connection,
            "INSERT INTO hot.market_bars VALUES ('S9', 'US', '1m', %s, 5, 6, 4, 5.5, 1, 1, 'test')",
            (days_ago(age),),
        )


def test_small_files_become_one_and_every_reader_sees_the_same_rows(world: World, fresh_settings: Settings) -> None:
    before, units = rows(world), world.stores.ledger.units("market_bars")
    assert published(world) == 4
    assert [one.files for one in compact(world.stores, world.dataset, "test", dry_run=True)] == [4]
    assert published(world) == 4, "a dry run changes nothing"
    [done] = join(world)
    assert (done.files, done.row_count) == (4, 240)
    assert published(world) == 1
    assert in_iceberg(fresh_settings) == 240
    assert rows(world) == before
    assert world.stores.ledger.units("market_bars") == units, "the units keep their own objects"
    assert join(world) == [], "nothing is left to do"
    assert fsck(world.stores, NOW, deep=True).findings == ()
    sweep(world.stores, NOW + timedelta(days=400), "test")
    assert fsck(world.stores, NOW, deep=True).is_clean


def test_a_merge_takes_the_file_apart_and_the_next_run_joins_again(world: World, fresh_settings: Settings) -> None:
    join(world)
    late_row(world, 802)
    [receipt] = world.run(Transition.MERGE)
    assert receipt.state is State.COMMITTED
    assert published(world) == 4
    assert in_iceberg(fresh_settings) == 241
    assert fsck(world.stores, NOW).is_clean
    before = rows(world)
    assert [one.row_count for one in join(world)] == [241]
    assert published(world) == 1
    assert rows(world) == before


def test_a_unit_expires_to_the_day(world: World, fresh_settings: Settings) -> None:
    join(world)
    first = days_ago(803) + timedelta(days=1)
    later = first.replace(year=first.year + 10) + timedelta(hours=1)
    with world.stores.hot.transaction("newer", "row") as connection:
        execute(
            connection,
            "INSERT INTO hot.market_bars VALUES ('S1', 'US', '1m', %s, 5, 6, 4, 5.5, 1, 1, 'test')",
            (later,),
        )
    [receipt] = world.run(Transition.EXPIRE, at=later)
    assert (receipt.unit.begin, receipt.state) == (days_ago(803), State.COMMITTED)
    assert published(world) == 3
    assert in_iceberg(fresh_settings) == 180


def test_files_of_different_ages_of_the_table_are_joined(world: World, fresh_settings: Settings) -> None:
    from tiering.ops import install

    with world.stores.hot.transaction("alter", "by hand") as connection:
        execute(connection, "ALTER TABLE hot.market_bars ADD COLUMN venue text, ADD COLUMN lot uuid, ADD COLUMN fee "
                            "numeric(12, 2)")  # fmt: skip
    install.install_dataset(world.stores, world.dataset)
    with world.stores.hot.transaction("late", "row") as connection:
        execute(
            connection,
            """INSERT INTO hot.market_bars VALUES ('S9', 'US', '1m', %s, 5, 6, 4, 5.5, 1, 1, 'test', 'X',
               '6ec0bd7f-11c0-43da-975e-2a8ad9ebae0b', 1.25)""",
            (days_ago(801),),
        )
    assert [(r.state, r.problem) for r in world.run(Transition.MERGE)] == [(State.COMMITTED, "")]
    before = rows(world)
    assert [one.row_count for one in join(world)] == [241]
    assert rows(world) == before
    table = outside_catalog(fresh_settings).load_table(("lake", "market_bars")).scan().to_arrow()
    found = [table.column(name).drop_null().to_pylist() for name in ("venue", "fee")]
    assert found == [["X"], [Decimal("1.25")]]


def test_documents_are_joined_too(fresh_settings: Settings) -> None:
    with open_documents(fresh_settings) as world:
        wanted = [article for age in (400, 399, 398) for article in world.news(days_ago(age), 40)]
        world.insert(wanted)
        for transition in (Transition.HOT_TO_WARM, Transition.WARM_TO_COLD):
            for receipt in world.run(transition):
                assert receipt.state is State.COMMITTED
        assert world.seen() == raw(wanted)
        files = len(world.stores.lake.files(world.dataset.name))
        [done] = compact(world.stores, world.dataset, "test")
        assert (done.files, done.row_count) == (files, 120)
        assert len(world.stores.lake.files(world.dataset.name)) == 1
        assert world.seen() == raw(wanted)
        assert compact(world.stores, world.dataset, "test") == []


def test_a_damaged_part_is_refused_and_nothing_changes(world: World) -> None:
    record = world.stores.ledger.units("market_bars")[1]
    key = world.stores.key(record.location)
    client = world.stores.objects._client
    body = bytearray(client.get_object(Bucket=world.stores.lake_bucket, Key=key)["Body"].read())
    body[len(body) // 2] ^= 1
    client.put_object(Bucket=world.stores.lake_bucket, Key=key, Body=bytes(body))
    with pytest.raises(errors.CorruptCopy, match="sha256"):
        join(world)
    assert published(world) == 4


def test_killed_at_any_moment_the_rows_are_there_once(fresh_settings: Settings, world: World) -> None:
    before = rows(world)
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    for _ in range(4):
        assert not kill_after(dice.uniform(0, 1.5), work_for_ever, fresh_settings)
        assert in_iceberg(fresh_settings) == 240
        assert rows(world) == before
    join(world)
    assert published(world) == 1
    with world.stores.warm.transaction("list", "joined") as connection:
        assert len(list_joined(connection, "market_bars")) == 1
    assert fsck(world.stores, NOW, deep=True).is_clean


def work_for_ever(line: Connection, settings: Settings) -> None:
    """Join by twos and by fours for ever, until somebody ends this process."""
    with open_world(settings) as world:
        size = world.stores.ledger.units("market_bars")[0].size_bytes
        line.send(GO)
        while True:
            join(world, target_bytes=2 * size + size // 2)
            join(world)
