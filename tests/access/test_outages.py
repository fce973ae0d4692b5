"""Every outage has its documented answer, in time: Redis away, hung or forgetful; PostgreSQL away or hung; both."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from infra.local import Stack
from tests.access.test_client import configuration
from tests.access.world import EASY, OneRedis, bar, client, eventually, installed, one_redis, run
from tiering import errors
from tiering.access import PREFS, QUOTE, Access, Budgets, Key
from tiering.settings import Settings
from tiering.stores.breaker import BreakerState

HASTY = Budgets(hot=4.0, warm=4.0, cold=30.0, write=6.0)
SLACK = 1.0
"""On top of a budget. Most of the time is the budget's: a busy machine may take a second to ask the database."""


@pytest.fixture(scope="module")
def own() -> Iterator[Stack]:
    """A PostgreSQL of this module's own, to be paused and killed."""
    with tempfile.TemporaryDirectory(prefix="tiering-outage-") as directory:
        Path(directory).chmod(0o711)
        with Stack(Path(directory) / "stack", services={"postgres", "s3"}) as running:
            yield running


@pytest.fixture
def redis() -> Iterator[OneRedis]:
    with one_redis() as running:
        yield running


@pytest.fixture
def settings(own: Stack, redis: OneRedis, tmp_path: Path) -> Iterator[Settings]:
    with installed(own.settings(), tmp_path / "journal", redis.url) as (_, found):
        yield found


def pause(own: Stack, how: signal.Signals) -> None:
    from infra.local.processes import find_descendants

    for pid in own.pids("postgres"):
        for process in [pid, *(child.pid for child in find_descendants(pid))]:
            os.kill(process, how)


async def cached(access: Access, key: Key) -> None:
    """Read a key until the cache answers: on a busy machine trust may lapse for a moment, and nothing is filled."""
    while (await access.look(key)).source != "cache":
        await asyncio.sleep(0.05)


async def back(access: Access, key: Key) -> None:
    """Wait until a read is answered: a store that has just failed is left alone for some seconds."""
    async with asyncio.timeout(60):
        while True:
            try:
                await access.get(key)
                return
            except errors.StoreUnavailable:
                await asyncio.sleep(0.05)


def test_redis_away(settings: Settings, redis: OneRedis) -> None:
    async def work() -> None:
        async with client(settings) as access:
            await access.write("user_configurations", [configuration("a", v=1)])
            assert await access.get(PREFS.key("a")) == {"v": 1}
            redis.kill()
            answer = await access.look(PREFS.key("a"))
            assert (answer.value, answer.source) == ({"v": 1}, "database")
            written = await access.write("user_configurations", [configuration("a", v=2)])
            assert not written.is_cached
            began = time.monotonic()
            await access.write("user_configurations", [configuration("a", v=3)])
            assert time.monotonic() - began < HASTY.hot + SLACK, "only the first write of an outage waits"
            assert await access.get(PREFS.key("a")) == {"v": 3}
            # It comes back with what its AOF kept: the first value, which must not count.
            redis.start()
            for _ in range(20):
                assert await access.get(PREFS.key("a")) == {"v": 3}
            await eventually(lambda: access.trust.allows(time.monotonic()), 30)
            assert await access.get(PREFS.key("a")) == {"v": 3}
            access.observe()

    run(work())


def test_redis_hangs(settings: Settings, redis: OneRedis) -> None:
    async def work() -> None:
        async with client(settings, HASTY) as access:
            await access.write("user_configurations", [configuration("h", v=1)])
            assert await access.get(PREFS.key("h")) == {"v": 1}
            assert redis.process is not None
            redis.process.send_signal(signal.SIGSTOP)
            try:
                slowest = 0.0
                for _ in range(10):
                    began = time.monotonic()
                    assert (await access.look(PREFS.key("h"))).value == {"v": 1}
                    slowest = max(slowest, time.monotonic() - began)
                assert slowest < HASTY.hot + SLACK
                assert BreakerState.CLOSED not in access.cache.breakers(time.monotonic()).values()
                # A reader that reaches Redis when it wakes up must not be told the old value.
                assert not (await access.write("user_configurations", [configuration("h", v=2)])).is_cached
            finally:
                redis.process.send_signal(signal.SIGCONT)
            async with client(settings, HASTY) as other:
                for _ in range(50):
                    assert await other.get(PREFS.key("h")) == {"v": 2}

    run(work())


def test_postgresql_away(settings: Settings, own: Stack) -> None:
    async def work() -> None:
        async with client(settings, HASTY) as access:
            await access.write("user_configurations", [configuration("p", v=1)])
            await cached(access, PREFS.key("p"))
            await access.write("market_bars", [bar("P", 1)], mode="analytical")
            assert await access.flush(30)
            await asyncio.to_thread(own.kill, "postgres")
            try:
                await eventually(lambda: not access.trust.is_confirmed(time.monotonic()))
                answer = await access.look(PREFS.key("p"))
                assert (answer.value, answer.source, answer.is_confirmed) == ({"v": 1}, "cache", False)
                for call in (
                    access.get(PREFS.key("other")),
                    access.write("user_configurations", [configuration("p", v=2)]),
                ):
                    began = time.monotonic()
                    with pytest.raises(errors.StoreUnavailable):
                        await call
                    assert time.monotonic() - began < HASTY.write + SLACK
                # Acknowledged: on disk. It reaches the database when that is back.
                await access.write("market_bars", [bar("P", 2, "20")], mode="analytical")
            finally:
                await asyncio.to_thread(own.restart, "postgres")
            assert await access.flush(60)
            await back(access, QUOTE.key("P", "CN"))
            found = await access.get(QUOTE.key("P", "CN"), budget=20)
            assert found["close"] == 20
            # Nobody knows whether a write that got no answer was done; this one was refused before it was sent.
            assert await access.get(PREFS.key("p"), budget=20) == {"v": 1}

    run(work(), 150)


def test_postgresql_hangs(settings: Settings, own: Stack) -> None:
    async def work() -> None:
        async with client(settings, HASTY) as access:
            await access.write("user_configurations", [configuration("q", v=1)])
            pause(own, signal.SIGSTOP)
            try:
                for call in (
                    access.get(PREFS.key("unknown")),
                    access.write("user_configurations", [configuration("q", v=2)]),
                    access.read_row("user_configurations", user_id="unknown"),
                ):
                    began = time.monotonic()
                    with pytest.raises(errors.StoreUnavailable):
                        await call
                    assert time.monotonic() - began < HASTY.write + SLACK
            finally:
                pause(own, signal.SIGCONT)
            await eventually(lambda: access.trust.is_confirmed(time.monotonic()), 30)

    run(work(), 150)


def test_both_away(settings: Settings, own: Stack, redis: OneRedis) -> None:
    async def work() -> None:
        async with client(settings, HASTY, drain=0.1) as access:
            await access.write("user_configurations", [configuration("b", v=1)])
            redis.kill()
            await asyncio.to_thread(own.kill, "postgres")
            try:
                for _ in range(5):
                    began = time.monotonic()
                    with pytest.raises(errors.StoreUnavailable):
                        await access.get(PREFS.key("b"))
                    assert time.monotonic() - began < HASTY.hot + SLACK
                with pytest.raises(errors.StoreUnavailable):
                    await access.write("user_configurations", [configuration("b", v=2)])
            finally:
                await asyncio.to_thread(own.restart, "postgres")
                redis.start()
            await back(access, PREFS.key("b"))
            assert await access.get(PREFS.key("b"), budget=20) == {"v": 1}

    run(work(), 150)


def test_nothing_there_at_all(settings: Settings) -> None:
    """It opens, says what is missing, and closes."""
    nowhere = {"hot_pg_url": SecretStr("postgresql://u:p@127.0.0.1:1/x"), "redis_url": None}
    lost = settings.model_copy(update={**nowhere, "warm_pg_url": nowhere["hot_pg_url"]})

    async def work() -> None:
        from tests.ops.world import POLICIES
        from tiering.access import open_access
        from tiering.plan.policies import parse_policies

        policies = parse_policies(POLICIES.read_text(), str(POLICIES))
        async with open_access(lost, policies=policies, budgets=EASY) as access:
            with pytest.raises(errors.StoreUnavailable):
                await access.get(PREFS.key("x"))

    run(work())
