"""The client on real servers, undisturbed: reads, writes, batches, ranges, the journal."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.access.world import TODAY, bar, client, installed, run
from tests.ops.world import World, days_ago
from tiering import errors
from tiering.access import OHLCV, PREFS, PRICE, QUOTE, SESSION, TicketState
from tiering.access.keys import Key, Kind
from tiering.model import Tier, Transition
from tiering.settings import Settings
from tiering.stores.cache_entries import VALUE, pack_header
from tiering.stores.postgres import execute, fetch_one

Place = tuple[World, Settings]


@pytest.fixture
def place(fresh_settings: Settings, redis_url: SecretStr, tmp_path: Path) -> Iterator[Place]:
    with installed(fresh_settings, tmp_path / "journal", redis_url) as found:
        yield found


def count(world: World, table: str) -> int:
    with world.stores.hot.transaction("count", table) as connection:
        row = fetch_one(connection, f"SELECT count(*) FROM {table}")
    assert row is not None
    return int(row[0])


def test_the_quick_start(place: Place) -> None:
    async def work() -> None:
        async with client(place[1]) as access:
            await access.write("market_bars", [bar("600519", 1, "1710.25")])
            quote = await access.get(QUOTE.key("600519", "CN"))
            assert (quote["close"], quote["ts"]) == (Decimal("1710.25"), bar("600519", 1)["ts"])
            assert (await access.look(QUOTE.key("600519", "CN"))).source == "cache"
            rows = await access.read("market_bars", TODAY - timedelta(days=1), TODAY, where={"symbol": "600519"})
            assert [row["close"] for row in rows] == [Decimal("1710.25")]

    run(work())


def test_a_write_changes_what_was_cached_before_it(place: Place) -> None:
    async def work() -> None:
        async with client(place[1]) as one, client(place[1]) as other:
            await one.write("market_bars", [bar("S1", 1, "10")])
            assert (await other.get(QUOTE.key("S1", "CN")))["close"] == 10
            assert (await other.get(PRICE.key("S1")))["price"] == 10
            day = bar("S1", 1)["ts"].astimezone(UTC)
            await other.get(OHLCV.key("S1", day.date().isoformat()))
            await one.write("market_bars", [bar("S1", 2, "11")])
            assert (await other.get(QUOTE.key("S1", "CN")))["close"] == 11
            assert (await other.get(PRICE.key("S1")))["price"] == 11
            await one.write("user_configurations", [configuration("u-1", a=1)])
            assert await other.get(PREFS.key("u-1")) == {"a": 1}
            written = await one.write("user_configurations", [configuration("u-1", a=2)])
            assert written.is_cached
            assert await other.get(PREFS.key("u-1")) == {"a": 2}
            row = await other.read_row("user_configurations", user_id="u-1")
            assert row is not None
            assert row["settings"] == {"a": 2}

    run(work())


def configuration(user: str, **settings: Any) -> dict[str, Any]:
    return {"user_id": user, "settings": settings, "updated_at": datetime.now(UTC)}


def test_one_of_ten_thousand_asks(place: Place) -> None:
    asked = 0

    async def load() -> dict[str, int]:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.05)
        return {"a": 1}

    async def work() -> None:
        async with client(place[1]) as access:
            key = PRICE.key(f"MANY{secrets.token_hex(4)}")
            answers = await asyncio.gather(*(access.get(key, load, budget=60) for _ in range(10_000)))
            assert answers == [{"a": 1}] * 10_000
            assert asked == 1
            assert (await access.look(key, load, budget=60)).source == "cache"
            assert asked == 1

    run(work())


def test_what_is_no_value_of_ours_is_fetched_anew(place: Place) -> None:
    async def work() -> None:
        async with client(place[1]) as access:
            keys = [PRICE.key(f"DAMAGED{number}") for number in range(3)]
            until = datetime.now(UTC).timestamp() + 60
            for key in keys:
                await access.cache.put(key.text, lambda stamp: pack_header(VALUE, stamp, until) + b"\xc1", 60_000)

            async def load(_: Key | None = None) -> int:
                return 7

            assert await access.get(keys[0], load) == 7
            assert (await access.look(keys[1], load)).value == 7
            assert await access.get_many(keys[2:], load) == [7]

    run(work())


def test_two_clients_share_one_miss(place: Place) -> None:
    asked = 0

    async def load() -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.02)
        return 7

    async def work() -> None:
        async with client(place[1]) as one, client(place[1]) as other:
            key = PRICE.key("SHARED")
            answers = await asyncio.gather(*(access.get(key, load) for access in (one, other) for _ in range(100)))
            assert set(answers) == {7}
            assert asked <= 2  # on a busy machine the one gives up waiting for the other's lease

    run(work())


def test_there_is_none_is_remembered(place: Place) -> None:
    asked = 0

    async def load() -> None:
        nonlocal asked
        asked += 1

    async def work() -> None:
        async with client(place[1]) as access:
            key = PRICE.key("NONE")
            assert await access.get(key, load) is None
            assert await access.get(key, load) is None
            assert asked == 1
            unremembered = Kind("other", "other:{name}", 60, missing_seconds=0).key("x")
            await access.get(unremembered, load)
            await access.get(unremembered, load)
            assert asked == 3

    run(work())


def test_a_stale_value_is_given_while_one_renews_it(place: Place) -> None:
    asked = 0
    kind = Kind("brief", "brief:{name}", 1, stale_seconds=60)

    async def load() -> int:
        nonlocal asked
        asked += 1
        return asked

    async def work() -> None:
        async with client(place[1]) as access:
            key = kind.key("x")
            assert await access.get(key, load) == 1
            while (answer := await access.look(key, load)).source == "cache" and answer.value == 1:
                await asyncio.sleep(0.02)
            assert (answer.value, answer.source) == (1, "stale")
            while (answer := await access.look(key, load)).value == 1:
                await asyncio.sleep(0.02)
            assert (answer.value, answer.source, asked) == (2, "cache", 2)

    run(work())


def test_batches_and_values_without_a_source(place: Place) -> None:
    async def work() -> None:
        async with client(place[1]) as access:
            await access.write("market_bars", [bar(f"B{n}", n % 50, str(n + 1)) for n in range(100)])
            wanted = [QUOTE.key(f"B{n}", "CN") for n in range(100)] + [QUOTE.key("NOBODY", "CN")]
            for _ in range(2):
                found = await access.get_many(wanted)
                assert [row["close"] for row in found[:-1]] == [n + 1 for n in range(100)]
                assert found[-1] is None
            await access.put(SESSION.key("u-1"), {"token": b"\x00\xff", "since": TODAY})
            assert await access.get(SESSION.key("u-1")) == {"token": b"\x00\xff", "since": TODAY}
            await access.forget(SESSION.key("u-1"))
            assert await access.get(SESSION.key("u-1")) is None
            with pytest.raises(errors.PermanentError, match="has a source"):
                await access.put(QUOTE.key("B1", "CN"), 1)

    run(work())


def test_a_range_over_all_tiers_is_one_answer(place: Place) -> None:
    world, settings = place
    old, middle, new = days_ago(900), days_ago(30), days_ago(1)
    for day in (old, middle, new):
        world.insert_day(day)
    world.run(Transition.HOT_TO_WARM)
    world.run(Transition.WARM_TO_COLD)
    world.insert_day(old, symbols=1, minutes=2, source="late")
    everything = sorted(world.rows(), key=lambda row: tuple(map(str, row)))

    async def work() -> None:
        async with client(settings) as access:
            assert [await access.tier_of("market_bars", day) for day in (old, middle, new)] == [
                Tier.COLD, Tier.WARM, Tier.HOT,
            ]  # fmt: skip
            begin, end = old - timedelta(days=1), new + timedelta(days=2)
            rows = await access.read("market_bars", begin, end)
            assert sorted((tuple(row.values()) for row in rows), key=lambda row: tuple(map(str, row))) == everything
            warm = await access.read("market_bars", middle, end, where={"symbol": ["S1", "S2"]}, form="arrow")
            assert warm.num_rows == len([row for row in everything if row[0] in ("S1", "S2") and row[3] >= middle])
            newest = await access.read("market_bars", middle, end, newest_first=True, limit=3, form="pandas")
            assert list(newest["ts"]) == sorted((row[3] for row in everything), reverse=True)[:3]
            with pytest.raises(errors.NotFound, match="in the lake"):
                await access.read("market_bars", begin, end, tier="warm")
            ticket = access.fetch("market_bars", begin, middle, columns=["symbol", "ts", "close"])
            assert access.fetch("market_bars", begin, middle, columns=["symbol", "ts", "close"]) is ticket
            called: list[object] = []
            ticket.on_ready(called.append)
            assert (await ticket.result(60)).num_rows == len([row for row in everything if row[3] < middle])
            assert called == [ticket]
            status = await access.poll(ticket.id)
            assert status.state is TicketState.READY
            assert (await access.collect(ticket.id)).num_rows == status.row_count

    run(work(), 150)


def test_units_that_move_are_noticed(place: Place) -> None:
    world, settings = place
    world.insert_day(days_ago(900))
    world.insert_day(days_ago(1))
    world.run(Transition.HOT_TO_WARM)

    async def work() -> None:
        async with client(settings) as access:
            begin, end = days_ago(901), days_ago(898)
            rows = await access.read("market_bars", begin, end)
            await asyncio.to_thread(world.run, Transition.WARM_TO_COLD)
            again = await access.read("market_bars", begin, end)
            assert len(rows) == 60
            for answer in (rows, again):
                answer.sort(key=lambda row: (row["symbol"], row["ts"]))
            assert again == rows

    run(work(), 150)


def test_two_databases(fresh_two_database_settings: Settings, redis_url: SecretStr, tmp_path: Path) -> None:
    with installed(fresh_two_database_settings, tmp_path, redis_url) as (world, settings):
        for day in (30, 1):
            world.insert_day(days_ago(day))
        world.run(Transition.HOT_TO_WARM)
        world.insert_day(days_ago(30), symbols=1, minutes=1, source="late")
        with world.stores.hot.transaction("change", "late row") as connection:
            execute(
                connection,
                """INSERT INTO hot.market_bars SELECT symbol, market, timeframe, ts, open, high, low, 99, volume,
                   amount, 'test' FROM hot.market_bars WHERE source = 'late'""",
            )
        expected = sorted(world.rows(), key=lambda row: tuple(map(str, row)))

        async def work() -> None:
            async with client(settings) as access:
                begin, end = days_ago(31), days_ago(-1)
                rows = await access.read("market_bars", begin, end)
                found = sorted((tuple(row.values()) for row in rows), key=lambda row: tuple(map(str, row)))
                assert len(found) == 121
                assert sum(row[7] == 99 for row in found) == 1
                assert {tuple(row) for row in found} <= set(expected)
                few = await access.read("market_bars", begin, end, columns=["close"], where={"close": Decimal(99)})
                assert few == [{"close": Decimal(99)}]

        run(work())


def test_analytical_rows_arrive_once(place: Place) -> None:
    world, settings = place

    async def work() -> None:
        async with client(settings) as access:
            for number in range(30):
                rows = [bar(f"A{number}", minute) for minute in range(50)]
                assert not (await access.write("market_bars", rows, mode="analytical")).is_durable
            assert await access.flush(60)
            assert await access.get(QUOTE.key("A7", "CN")) is not None
            # Again, and one changed: by key, not twice.
            await access.write(
                "market_bars", [bar("A7", 49, "77")] + [bar("A7", m) for m in range(10)], mode="analytical"
            )
            assert await access.flush(60)
            assert (await access.get(QUOTE.key("A7", "CN")))["close"] == 77

    run(work())
    assert count(world, "hot.market_bars") == 1500


def test_the_first_analytical_writes_may_come_together(place: Place) -> None:
    world, settings = place

    async def work() -> None:
        async with client(settings) as access:
            rows = [bar(f"T{number}", 1) for number in range(100)]
            await asyncio.gather(*(access.write("market_bars", [row], mode="analytical") for row in rows))
            assert await access.flush(60)

    run(work())
    assert count(world, "hot.market_bars") == 100


def test_what_the_database_refuses_holds_nothing_up(place: Place, tmp_path: Path) -> None:
    world, settings = place

    async def work() -> None:
        async with client(settings) as access:
            rows = [bar("R", minute) for minute in range(20)]
            rows[7] = {**rows[7], "timeframe": None}
            await access.write("market_bars", rows, mode="analytical")
            await access.write("market_bars", [bar("R", 30)], mode="analytical")
            assert await access.flush(60)

    run(work())
    assert count(world, "hot.market_bars") == 20
    (rejected,) = (tmp_path / "journal").glob("*/rejected.jsonl")
    assert rejected.read_text().count("\n") == 1


def test_documents(place: Place) -> None:
    async def work() -> None:
        async with client(place[1]) as access:
            one = {"_id": "n-1", "symbol": "600519", "publish_time": TODAY, "title": "t", "source": "s"}
            await access.write("news", [one])
            more = [{**one, "_id": f"n-{n}", "title": str(n)} for n in range(2, 40)]
            await access.write("news", more, mode="analytical")
            await access.write("news", more, mode="analytical")
            assert await access.flush(60)
            rows = await access.read("news", TODAY - timedelta(hours=1), TODAY + timedelta(hours=1))
            assert sorted(row["_id"] for row in rows) == sorted(["n-1", *(row["_id"] for row in more)])

    run(work())
