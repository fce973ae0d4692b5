"""Read copies of cold units: seen once by everybody, proved, dropped with every change, gone by themselves."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from multiprocessing.connection import Connection

import pytest

from tests.children import GO, kill_after
from tests.ops.test_archive import LOOKS, OLD, glacier, look, moto
from tests.ops.world import NOW, World, days_ago, open_world
from tests.stores.test_lake import outside_catalog
from tiering import errors
from tiering.model import Span, State, Tier, Transition
from tiering.ops import rehydrate
from tiering.ops.fsck import fsck
from tiering.ops.lifecycle import survey
from tiering.ops.query import query
from tiering.ops.sweep import sweep
from tiering.settings import Settings
from tiering.stores import tables
from tiering.stores.copies import list_copies
from tiering.stores.postgres import execute, fetch_one

__all__ = ["glacier", "moto"]  # fixtures

WEEK = Span(days=7)
FIRST, SECOND, THIRD = 803, 802, 801
COLD = (Transition.HOT_TO_WARM, Transition.COMPRESS, Transition.WARM_TO_COLD)


@pytest.fixture(params=["one database", "two databases"])
def settings(request: pytest.FixtureRequest) -> Settings:
    name = "fresh_settings" if request.param == "one database" else "fresh_two_database_settings"
    found: Settings = request.getfixturevalue(name)
    return found


@pytest.fixture
def world(settings: Settings) -> Iterator[World]:
    with open_world(settings) as opened:
        for age in (FIRST, SECOND, THIRD, 0):
            opened.insert_day(days_ago(age))
        for transition in COLD:
            for receipt in opened.run(transition):
                assert receipt.state is State.COMMITTED
        yield opened


def bring(world: World, first: int, last: int, at: datetime = NOW, keep: Span = WEEK) -> list[rehydrate.Brought]:
    """Bring the days from `first` to before `last` days ago back."""
    return rehydrate.rehydrate(world.stores, world.dataset, days_ago(first), days_ago(last), at, keep, "test")


def copies(world: World) -> list[int]:
    with world.stores.warm.transaction("list", "copies") as connection:
        found = list_copies(connection, "market_bars")
        attached = tables.children(connection, tables.warm_parent("market_bars"))
    assert sorted(copy.location for copy in found) == sorted(attached)
    return [(days_ago(0) - copy.unit.begin).days for copy in found]


def in_warm(world: World) -> int:
    with world.stores.warm.transaction("count", "rows") as connection:
        row = fetch_one(connection, "SELECT count(*), count(DISTINCT (symbol, ts)) FROM live.market_bars WHERE ts < %s",
                        (days_ago(700),))  # fmt: skip
    assert row is not None
    assert row[0] == row[1], "each row once"
    return int(row[0])


def everything(world: World) -> list[dict[str, object]]:
    return query(world.stores, "SELECT * FROM market_bars ORDER BY ALL").to_pylist()


def test_a_range_comes_back_and_is_seen_once_by_everybody(world: World, settings: Settings) -> None:
    before, pointer = everything(world), world.stores.lake.metadata_location("market_bars")
    done = bring(world, SECOND, THIRD - 1)
    assert [(b.state, b.row_count, b.until) for b in done] == [("copied", 60, NOW + timedelta(days=7))] * 2
    assert copies(world) == [SECOND, THIRD]
    assert in_warm(world) == 120
    seen: list[str] = []
    statement = "SELECT * FROM market_bars ORDER BY ALL"
    again = query(world.stores, statement, progress=lambda place, rows: seen.append(f"{place} {rows}")).to_pylist()
    assert again == before
    assert "cold files 1" in seen, "the two copies are read instead of their files"
    assert world.stores.lake.metadata_location("market_bars") == pointer
    assert outside_catalog(settings).load_table(("lake", "market_bars")).scan().to_arrow().num_rows == 180
    assert fsck(world.stores, NOW, deep=True).findings == ()
    residences, _ = survey(world.stores, world.dataset)
    assert [r.rehydrated_until for r in residences if r.tier is Tier.COLD] == [None] + [NOW + timedelta(days=7)] * 2


def test_again_extends_and_never_shortens(world: World) -> None:
    bring(world, SECOND, THIRD)
    assert [b.state for b in bring(world, FIRST, THIRD, at=NOW + timedelta(days=2))] == ["copied", "extended"]
    [short] = bring(world, SECOND, THIRD, keep=Span(hours=1))
    assert (short.state, short.until) == ("extended", NOW + timedelta(days=9))


def test_it_goes_by_itself(world: World) -> None:
    before = everything(world)
    bring(world, FIRST, THIRD - 1)
    sweep(world.stores, NOW + timedelta(days=6), "test")
    assert copies(world) == [FIRST, SECOND, THIRD]
    assert len(
        [s for s in sweep(world.stores, NOW + timedelta(days=7), "test", dry_run=True) if "read copy" in s.reason]
    )
    assert copies(world) == [FIRST, SECOND, THIRD]
    sweep(world.stores, NOW + timedelta(days=7), "test")
    assert copies(world) == []
    assert everything(world) == before
    assert in_warm(world) == 0


def test_a_merge_drops_the_copy_of_the_old_generation_in_its_own_commit(world: World) -> None:
    bring(world, FIRST, THIRD - 1)
    with world.stores.hot.transaction("late", "row") as connection:
        execute(
            connection,
            "INSERT INTO hot.market_bars VALUES ('S1', 'US', '1m', %s, 5, 6, 4, 5.5, 1, 1, 'test')",
            (days_ago(SECOND),),
        )
    late = f"SELECT close::double AS c FROM market_bars WHERE symbol = 'S1' AND ts = TIMESTAMPTZ '{days_ago(SECOND)}'"
    assert query(world.stores, late).to_pylist() == [{"c": 5.5}], "a late row wins over the copy as over the file"
    [receipt] = world.run(Transition.MERGE)
    assert receipt.state is State.COMMITTED
    assert copies(world) == [FIRST, THIRD]
    assert query(world.stores, late).to_pylist() == [{"c": 5.5}]
    assert [b.state for b in bring(world, FIRST, THIRD - 1)] == ["extended", "copied", "extended"]
    with world.stores.warm.transaction("read", "copy") as connection:
        statement = "SELECT close FROM warm.market_bars WHERE symbol = 'S1' AND ts = %s"
        row = fetch_one(connection, statement, (days_ago(SECOND),))
    assert row is not None
    assert float(row[0]) == 5.5
    assert fsck(world.stores, NOW, deep=True).findings == ()


def test_an_expiry_drops_the_copy(world: World) -> None:
    bring(world, FIRST, THIRD - 1)
    years_later = NOW + timedelta(days=365 * 9)
    world.stores.ledger.place_hold("market_bars", days_ago(THIRD), "test", "test")
    with world.stores.hot.transaction("newer", "row") as connection:
        execute(
            connection,
            "INSERT INTO hot.market_bars VALUES ('S1', 'US', '1m', %s, 5, 6, 4, 5.5, 1, 1, 'test')",
            (years_later,),
        )
    for receipt in world.run(Transition.EXPIRE, at=years_later):
        assert receipt.state is State.COMMITTED
    assert copies(world) == [THIRD]


def test_a_damaged_object_is_refused_and_leaves_nothing(world: World) -> None:
    record = world.stores.ledger.unit("market_bars", days_ago(SECOND))
    assert record is not None
    client = world.stores.objects._client
    key = world.stores.key(record.location)
    body = bytearray(client.get_object(Bucket=world.stores.lake_bucket, Key=key)["Body"].read())
    body[len(body) // 2] ^= 1
    client.put_object(Bucket=world.stores.lake_bucket, Key=key, Body=bytes(body))
    with pytest.raises(errors.CorruptCopy, match="sha256"):
        bring(world, SECOND, THIRD)
    assert copies(world) == []


def test_an_empty_range_and_a_hot_one(world: World) -> None:
    with pytest.raises(errors.PermanentError, match="an empty range"):
        bring(world, THIRD, SECOND)
    assert [b.state for b in bring(world, 0, -1)] == ["as it is"]


def test_deep_archive_is_asked_for_and_a_later_run_goes_on(glacier: World) -> None:
    range_of = (glacier.stores, glacier.dataset, OLD, OLD + timedelta(days=1))
    look(glacier, LOOKS)
    [first] = rehydrate.rehydrate(*range_of, NOW, WEEK, "test")
    ready = NOW + timedelta(hours=48)
    assert (first.state, first.ready_about) == ("waiting", ready)
    assert first.text == f"cold, restore requested, ready about {ready:%Y-%m-%d %H:%M}Z"
    [again] = rehydrate.rehydrate(*range_of, NOW + timedelta(hours=1), WEEK, "test")
    assert (again.state, again.ready_about) == ("waiting", ready), "asked for once"
    assert copies(glacier) == []
    look(glacier, LOOKS)
    [done] = rehydrate.rehydrate(*range_of, ready, WEEK, "test")
    assert (done.state, done.row_count) == ("copied", 60)


def test_killed_at_any_moment_it_leaves_nothing_half_done(settings: Settings, world: World) -> None:
    before = everything(world)
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    for _ in range(5):
        assert not kill_after(dice.uniform(0, 1.5), work_for_ever, settings)
        assert set(copies(world)) <= {FIRST, SECOND, THIRD}
        assert in_warm(world) == 60 * len(copies(world))
        assert everything(world) == before
    bring(world, FIRST, THIRD - 1)
    assert copies(world) == [FIRST, SECOND, THIRD]
    assert fsck(world.stores, NOW, deep=True).findings == ()


def work_for_ever(line: Connection, settings: Settings) -> None:
    """Bring everything back and drop it again, until somebody ends this process."""
    with open_world(settings) as world:
        line.send(GO)
        while True:
            bring(world, FIRST, THIRD - 1)
            rehydrate.expire(world.stores, NOW + timedelta(days=30), "test")
