"""Write-through is linearizable: concurrent clients, a slow filler, a Redis that hangs, dies and remembers wrongly."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
import time
from collections.abc import Iterator
from math import inf
from pathlib import Path

import pytest

from tests.access.registers import Operation, explain
from tests.access.test_client import configuration
from tests.access.world import OneRedis, client, installed, one_redis, run
from tiering import errors
from tiering.access import PREFS, Access
from tiering.settings import Settings

SEED = 20261123
USERS = ("u-1", "u-2", "u-3")


@pytest.fixture
def redis() -> Iterator[OneRedis]:
    with one_redis() as running:
        yield running


@pytest.fixture
def settings(fresh_settings: Settings, redis: OneRedis, tmp_path: Path) -> Iterator[Settings]:
    with installed(fresh_settings, tmp_path / "journal", redis.url) as (_, found):
        yield found


def test_the_checker_finds_what_is_wrong() -> None:
    write = Operation(0, 1, True, 1)
    assert not explain([write, Operation(2, 3, False, 1)])
    assert not explain([write, Operation(0.5, 0.6, False, None), Operation(0.7, 0.8, False, 1)])
    assert "no order" in explain([write, Operation(2, 3, False, None)])  # older than acknowledged
    assert "no order" in explain([write, Operation(0.5, 0.6, False, 1), Operation(0.7, 0.8, False, None)])  # back again
    assert not explain([Operation(0, inf, True, 1), Operation(5, 6, False, None), Operation(7, 8, False, 1)])
    assert "no order" in explain([Operation(0, inf, True, 1), Operation(5, 6, False, 1), Operation(7, 8, False, None)])


def test_a_slow_filler_does_not_bring_back_the_past(settings: Settings) -> None:
    async def work() -> None:
        async with client(settings) as one, client(settings) as other:
            await one.write("user_configurations", [configuration("s", v=1)])
            await one.forget(PREFS.key("s"))
            looked, go_on = asyncio.Event(), asyncio.Event()

            async def slow() -> object:
                rows = await one.hot.fetch(
                    "SELECT settings FROM hot.user_configurations WHERE user_id = 's'", seconds=10
                )
                looked.set()
                await go_on.wait()
                return dict(rows[0][0])

            filler = asyncio.create_task(one.get(PREFS.key("s"), slow))
            await looked.wait()
            await other.write("user_configurations", [configuration("s", v=2)])
            # Who asks now, of the very client whose filler is on its way, gets the new value.
            late = asyncio.create_task(one.get(PREFS.key("s"), None))
            go_on.set()
            assert await filler == {"v": 1}  # it asked before the write was acknowledged
            assert await late == {"v": 2}
            for access in (one, other):
                assert await access.get(PREFS.key("s")) == {"v": 2}

    run(work())


def test_two_writers_of_one_key_leave_the_last_in_the_cache(settings: Settings) -> None:
    async def work() -> None:
        async with client(settings) as one, client(settings) as other:
            for number in range(0, 40, 2):
                await asyncio.gather(
                    one.write("user_configurations", [configuration("w", v=number)]),
                    other.write("user_configurations", [configuration("w", v=number + 1)]),
                )
                rows = await one.hot.fetch(
                    "SELECT settings FROM hot.user_configurations WHERE user_id = 'w'", seconds=10
                )
                for access in (one, other):
                    assert await access.get(PREFS.key("w")) == rows[0][0]
                    row = await access.read_row("user_configurations", user_id="w")
                    assert row is not None
                    assert row["settings"] == rows[0][0]

    run(work())


async def _play(
    access: Access, dice: random.Random, numbers: Iterator[int], ends_at: float
) -> list[tuple[str, Operation]]:
    """Read and write at random, and note what came of it."""
    noted = []
    while time.monotonic() < ends_at:
        user = dice.choice(USERS)
        began = time.monotonic()
        if dice.random() < 0.35:
            number = next(numbers)
            ended = inf
            with contextlib.suppress(errors.TransientError):
                await access.write("user_configurations", [configuration(user, v=number)])
                ended = time.monotonic()
            noted.append((user, Operation(began, ended, True, number)))
        else:
            with contextlib.suppress(errors.TransientError):
                if dice.random() < 0.5:
                    found = await access.get(PREFS.key(user))
                    value = found["v"] if found else None
                else:
                    row = await access.read_row("user_configurations", user_id=user)
                    value = row["settings"]["v"] if row else None
                noted.append((user, Operation(began, time.monotonic(), False, value)))
        await asyncio.sleep(dice.random() * 0.02)
    return noted


async def _disturb(redis: OneRedis, dice: random.Random, ends_at: float) -> None:
    """Pause, kill and restart Redis at random."""
    while time.monotonic() < ends_at:
        await asyncio.sleep(dice.random() * 1.5)
        assert redis.process is not None
        if dice.random() < 0.5:
            redis.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(dice.random() * 0.6)
            redis.process.send_signal(signal.SIGCONT)
        else:
            redis.kill()
            await asyncio.sleep(dice.random() * 0.3)
            await asyncio.to_thread(redis.start)


@pytest.mark.parametrize("is_disturbed", [False, True], ids=["quiet", "disturbed"])
def test_histories_are_linearizable(settings: Settings, redis: OneRedis, is_disturbed: bool) -> None:
    print(f"seed {SEED}")
    dice = random.Random(SEED + is_disturbed)

    async def work() -> list[tuple[str, Operation]]:
        async with client(settings) as one, client(settings) as two, client(settings) as three:
            ends_at, numbers = time.monotonic() + (6 if is_disturbed else 3), itertools.count(1)
            players = [
                _play(access, random.Random(dice.random()), numbers, ends_at)
                for access in (one, two, three) for _ in range(2)
            ]  # fmt: skip
            trouble = asyncio.create_task(_disturb(redis, dice, ends_at)) if is_disturbed else None
            noted = [operation for part in await asyncio.gather(*players) for operation in part]
            if trouble is not None:
                await trouble
            return noted

    history = run(work(), 150)
    assert len(history) > 50
    for user in USERS:
        problem = explain([operation for who, operation in history if who == user])
        assert not problem, f"{user}: {problem}"
