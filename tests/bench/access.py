"""The access client beside bare drivers, on one Redis and one PostgreSQL: hits, misses, writes through and behind.

The peers are written by hand as a careful developer would: redis.asyncio (with hiredis), asyncpg with a pool, msgpack.
Ours and theirs alternate in slices; numbers are medians of slices, ratios medians of pairs.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import asyncpg
import msgpack
import redis.asyncio

from tests.access.world import EASY, OneRedis, bar, one_redis
from tests.bench.ground import Ground
from tests.bench.rows import Group, Row, higher, lower
from tests.ops.world import POLICIES, open_world
from tiering.access import PREFS, PRICE, Access, Key, open_access
from tiering.access.codec import decode, encode
from tiering.plan.policies import parse_policies
from tiering.settings import Settings

DATABASE = "bench_access"
KEYS = 500
SLICE = 400
READERS, READS = 64, 60
STAMPEDE = 10_000
BEHIND_ROWS, BY_ROW = 10_000, 300
WRITERS = 250
COPY_ROWS = 1000

Call = Callable[[int], Awaitable[Any]]


@dataclass(frozen=True)
class Bare:
    """The drivers without us."""

    redis: redis.asyncio.Redis
    pool: asyncpg.Pool[Any]


def run(ground: Ground) -> Iterator[Row]:
    """Measure everything in one run on servers of its own."""
    settings = ground.create(DATABASE)
    slices = max(3, 2 * ground.repeats + 1)
    with one_redis() as server, open_world(settings) as world:
        journal = ground.directory / "journal"
        ours = settings.model_copy(update={"redis_url": server.url, "journal_dir": journal, "policies": POLICIES})
        world.insert_day(bar("S1", 0)["ts"].replace(hour=0, minute=0), symbols=1, minutes=1)
        yield from asyncio.run(_measure(ground, ours, server, slices))
    ground.drop(DATABASE)


@asynccontextmanager
async def opened(settings: Settings, server: OneRedis) -> AsyncIterator[tuple[Access, Bare]]:
    """Open our client and the bare drivers."""
    policies = parse_policies(POLICIES.read_text(), str(POLICIES))
    bare_redis = redis.asyncio.Redis.from_url(server.url.get_secret_value())
    async with (
        asyncpg.create_pool(settings.hot_pg_url.get_secret_value(), min_size=4, max_size=16) as pool,
        open_access(settings, policies=policies, budgets=EASY) as access,
    ):
        await pool.execute(
            """INSERT INTO hot.user_configurations
               SELECT 'u' || n, jsonb_build_object('theme', 'dark', 'depth', n), now() FROM generate_series(0, 99999) n
               ON CONFLICT DO NOTHING"""
        )
        await pool.execute("VACUUM ANALYZE hot.user_configurations")
        yield access, Bare(bare_redis, pool)
        await bare_redis.aclose()


async def _measure(ground: Ground, settings: Settings, server: OneRedis, slices: int) -> list[Row]:
    found: list[Row] = []
    async with opened(settings, server) as (access, bare):
        for part in (_hits, _misses, _stampede, _through, _behind):
            ground.say(f"access: {part.__name__.strip('_')}")
            rows = await part(access, bare, slices)
            for row in rows:
                ground.say(f"  {row.name}: {row.ours:,.4g} beside {row.peer or 0:,.4g} {row.unit}")
            found += rows
    return found


async def _times(call: Call, numbers: range) -> list[float]:
    """Seconds of each call, one after the other."""
    found = []
    for number in numbers:
        began = time.perf_counter()
        await call(number)
        found.append(time.perf_counter() - began)
    return sorted(found)


async def _rate(call: Call, at_once: int, each: int) -> float:
    """Calls per second of so many callers at once."""

    async def caller(first: int) -> None:
        for number in range(each):
            await call(first * each + number)

    began = time.perf_counter()
    await asyncio.gather(*(caller(first) for first in range(at_once)))
    return at_once * each / (time.perf_counter() - began)


async def _hits(access: Access, bare: Bare, slices: int) -> list[Row]:
    """A quote of eleven fields, under 500 keys, read by both with the same codec."""
    value = bar("600519", 1)

    async def load() -> Any:
        return value

    keys = [PRICE.key(f"H{number}") for number in range(KEYS)]
    for key in keys:
        await access.get(key, load)
        await bare.redis.set(f"bare:{key.text}", encode(value))

    async def ours(number: int) -> Any:
        return await access.get(keys[number % KEYS], load)

    async def theirs(number: int) -> Any:
        return decode(await bare.redis.get(f"bare:{keys[number % KEYS].text}"))

    p50, p99, rates = [], [], []
    for place in range(slices + 1):
        a, b = await _times(ours, range(SLICE)), await _times(theirs, range(SLICE))
        rate = await _rate(ours, READERS, READS), await _rate(theirs, READERS, READS)
        if place:  # the first warms up
            p50.append((a[SLICE // 2] * 1e6, b[SLICE // 2] * 1e6))
            p99.append((a[SLICE * 99 // 100] * 1e6, b[SLICE * 99 // 100] * 1e6))
            rates.append(rate)
    note = f"{slices} pairs of {SLICE} reads, one after the other; GET + decode of the same msgpack"
    many = f"{READERS} readers at once, {READS} reads each; ours share one pipelined connection, theirs a pool"
    return [
        lower("access.hit_p50", "us", p50, "redis.asyncio GET + decode", 1.25, note),
        lower("access.hit_p99", "us", p99, "redis.asyncio GET + decode", 1.5, note),
        higher("access.hit_rate_64", "reads/s", rates, "redis.asyncio GET + decode", 0.8, many),
    ]


async def _misses(access: Access, bare: Bare, slices: int) -> list[Row]:
    """A row of 100,000 by its key: cache, database, cache."""
    fresh = itertools.count()
    query = "SELECT settings FROM hot.user_configurations WHERE user_id = $1"

    async def ours(_: int) -> Any:
        return await access.get(PREFS.key(f"u{next(fresh)}"))

    async def theirs(_: int) -> Any:
        user = f"u{next(fresh)}"
        if await bare.redis.get(f"bare:{user}") is None:
            row = await bare.pool.fetchrow(query, user)
            value = {"settings": row[0]} if row else None
            await bare.redis.set(f"bare:{user}", msgpack.packb(value), ex=60)

    pairs = []
    for place in range(slices + 1):
        a, b = await _times(ours, range(SLICE)), await _times(theirs, range(SLICE))
        if place:
            pairs.append((median(a) * 1e6, median(b) * 1e6))
    note = f"{slices} pairs of {SLICE} misses; ours takes a lease in between, so that no filler overwrites a writer"
    return [lower("access.miss_p50", "us", pairs, "GET, asyncpg pool, SET by hand", 1.15, note)]


async def _stampede(access: Access, _: Bare, __: int) -> list[Row]:
    """Ten thousand ask for one missing key at once."""
    asked = []

    async def load() -> int:
        asked.append(1)
        rows = await access.hot.fetch("SELECT 1 FROM pg_sleep(0.05)", seconds=10)
        return len(rows)

    key: Key = PRICE.key("STAMPEDE")
    began = time.perf_counter()
    await asyncio.gather(*(access.get(key, load, budget=60) for _ in range(STAMPEDE)))
    note = f"{STAMPEDE:,} simultaneous misses of one key, answered in {time.perf_counter() - began:.2f} s"
    queries = float(len(asked))
    return [Row("access.stampede_queries", "queries", queries, 1.0, "one", queries, 1.0, queries == 1, note)]


async def _through(access: Access, bare: Bare, slices: int) -> list[Row]:
    """A row by its key, and its cache entry."""
    numbers = itertools.count()
    statement = """INSERT INTO hot.user_configurations (user_id, settings, updated_at) VALUES ($1, $2, $3)
                   ON CONFLICT (user_id) DO UPDATE
                   SET settings = EXCLUDED.settings, updated_at = EXCLUDED.updated_at"""
    dice = random.Random(1)
    now = bar("W", 0)["ts"]

    async def ours(_: int) -> Any:
        user = f"u{dice.randrange(100_000)}"
        await access.write(
            "user_configurations",
            [{"user_id": user, "settings": {"theme": "dark", "n": next(numbers)}, "updated_at": now}],
        )

    async def theirs(_: int) -> Any:
        user, value = f"u{dice.randrange(100_000)}", {"theme": "dark", "n": next(numbers)}
        await bare.pool.execute(statement, user, f'{{"theme": "dark", "n": {value["n"]}}}', now)
        await bare.redis.set(f"bare:{user}", msgpack.packb(value), ex=60)

    pairs = []
    for place in range(slices + 1):
        a, b = await _times(ours, range(SLICE // 2)), await _times(theirs, range(SLICE // 2))
        if place:
            pairs.append((median(a) * 1e6, median(b) * 1e6))
    note = f"{slices} pairs of {SLICE // 2} writes; synchronous_commit on; ours fences four keys before and after"
    return [lower("access.write_through_p50", "us", pairs, "upsert, SET by hand", 1.15, note)]


async def _behind(access: Access, bare: Bare, slices: int) -> list[Row]:
    """Bars until they are in the database: row by row, by COPY, and through the journal."""
    batch = itertools.count()

    def rows(count: int) -> list[dict[str, Any]]:
        name = f"J{next(batch)}"
        return [bar(f"{name}.{number // 60}", number % 60) for number in range(count)]

    columns = list(bar("X", 0))
    listed, marks = ", ".join(columns), ", ".join(f"${place}" for place in range(1, len(columns) + 1))

    async def one_by_one() -> float:
        many = [tuple(row.values()) for row in rows(BY_ROW)]
        began = time.perf_counter()
        for row in many:
            await bare.pool.execute(f"INSERT INTO hot.market_bars ({listed}) VALUES ({marks})", *row)
        return BY_ROW / (time.perf_counter() - began)

    async def by_copy() -> float:
        many = [tuple(row.values()) for row in rows(BEHIND_ROWS)]
        began = time.perf_counter()
        for first in range(0, len(many), COPY_ROWS):
            await bare.pool.copy_records_to_table(
                "market_bars", schema_name="hot", columns=columns, records=many[first : first + COPY_ROWS]
            )
        return BEHIND_ROWS / (time.perf_counter() - began)

    async def singly() -> float:
        """Many callers, a row each: until the last one is in the database."""
        many = rows(BEHIND_ROWS)
        began = time.perf_counter()
        await asyncio.gather(*(_each(access, many[first::WRITERS]) for first in range(WRITERS)))
        assert await access.flush(120)
        return BEHIND_ROWS / (time.perf_counter() - began)

    async def by_batch() -> float:
        many = rows(BEHIND_ROWS)
        began = time.perf_counter()
        for first in range(0, len(many), COPY_ROWS):
            await access.write("market_bars", many[first : first + COPY_ROWS], mode="analytical", budget=60)
        assert await access.flush(120)
        return BEHIND_ROWS / (time.perf_counter() - began)

    by_row, by_copies = [], []
    for place in range(max(3, slices // 2) + 1):
        pair = await singly(), await one_by_one()
        other = await by_batch(), await by_copy()
        if place:
            by_row.append(pair)
            by_copies.append(other)
    one = f"{WRITERS} callers with a row each, until all {BEHIND_ROWS:,} are in the database, against {BY_ROW} INSERTs"
    two = f"{BEHIND_ROWS:,} rows in calls of {COPY_ROWS:,}, journal included, until they are in the database"
    return [
        higher("access.write_behind_rows", "rows/s", by_row, "INSERT row by row", 20.0, one),
        higher("access.write_behind_copy", "rows/s", by_copies, "COPY by hand", 0.8, two),
    ]


async def _each(access: Access, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        await access.write("market_bars", [row], mode="analytical", budget=60)


NAMES = (
    "access.hit_p50", "access.hit_p99", "access.hit_rate_64", "access.miss_p50", "access.stampede_queries",
    "access.write_through_p50", "access.write_behind_rows", "access.write_behind_copy",
)  # fmt: skip
GROUPS = (Group(NAMES, run),)
