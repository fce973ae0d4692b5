"""What the access tests stand on: installed databases, a Redis of their own where one is broken, and a client."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from redis import Redis
from redis.exceptions import RedisError

from infra.local.binaries import find_redis_server
from tests.ops.world import POLICIES, World, open_world
from tests.wait import wait_until
from tiering.access import Access, Budgets, open_access
from tiering.plan.policies import parse_policies
from tiering.settings import Settings

EASY = Budgets(hot=5.0, warm=10.0, cold=60.0, write=10.0)
"""Where a test is not about time: this machine may be busy."""

TODAY = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


@contextmanager
def installed(settings: Settings, journal: Path, redis: SecretStr | None) -> Iterator[tuple[World, Settings]]:
    """Install the tables; return the settings with a cache and a journal."""
    with open_world(settings) as world:
        yield world, settings.model_copy(update={"redis_url": redis, "journal_dir": journal, "policies": POLICIES})


@asynccontextmanager
async def client(settings: Settings, budgets: Budgets = EASY, drain: float = 30.0) -> AsyncIterator[Access]:
    """Open the client with patience."""
    policies = parse_policies(POLICIES.read_text(), str(POLICIES))
    async with open_access(settings, policies=policies, budgets=budgets, drain_seconds=drain) as access:
        await eventually(lambda: access.trust.epoch > 0 or settings.warm_pg_url is None, 20.0)
        yield access


def run(work: Awaitable[Any], seconds: float = 90.0) -> Any:
    """Run a coroutine, and never for ever: a hang is a failure that says so."""

    async def limited() -> Any:
        async with asyncio.timeout(seconds):
            return await work

    return asyncio.run(limited())


async def eventually(test: Callable[[], object], seconds: float = 20.0) -> None:
    """Let the loop run until `test()` is true."""
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline, f"still not so after {seconds:.0f} s: {test}"
        await asyncio.sleep(0.01)


def bar(symbol: str, minute: int, close: str = "10.5", source: str = "test", **more: Any) -> dict[str, Any]:
    """A bar of the current hour, as an application would write it."""
    from decimal import Decimal

    at = TODAY - timedelta(hours=1) + timedelta(minutes=minute)
    price = Decimal(close)
    row = {"symbol": symbol, "market": "CN", "timeframe": "1m", "ts": at, "open": price, "high": price, "low": price}
    return {**row, "close": price, "volume": 100 + minute, "amount": price * 100, "source": source, **more}


class OneRedis:
    """A single redis-server with AOF, to be paused, killed and started again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> SecretStr:
        return SecretStr(f"redis://127.0.0.1:{self.port}/0")

    def start(self) -> None:
        command = [str(find_redis_server()), "--port", str(self.port), "--bind", "127.0.0.1", "--dir",
                   str(self._directory), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self.is_up, 30, "redis")

    def is_up(self) -> bool:
        try:
            with Redis(port=self.port, socket_timeout=1) as connection:
                return bool(connection.ping())
        except RedisError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def one_redis() -> Iterator[OneRedis]:
    """A Redis of this test's own."""
    with tempfile.TemporaryDirectory(prefix="tiering-redis-") as directory:
        redis = OneRedis(Path(directory))
        redis.start()
        try:
            yield redis
        finally:
            redis.kill()
