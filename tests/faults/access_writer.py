"""A writer to be killed: it writes through and behind as fast as it is let, and notes each row that was acknowledged.

A note is one line, written with one call of the system: it stays when this process is killed right after it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.ops.world import POLICIES
from tiering import errors
from tiering.access import Access, Budgets, open_access
from tiering.plan.policies import parse_policies
from tiering.settings import Settings

THROUGH, BEHIND = "through", "behind"
PATIENT = Budgets(hot=5.0, warm=5.0, cold=30.0, write=5.0)
CALLERS = 4
ROWS = 10
"""In one call."""


def write_for_ever(settings: Settings, notes: Path, name: str) -> None:
    """Write until this process is killed."""
    asyncio.run(_write(settings, notes, name))


async def _write(settings: Settings, notes: Path, name: str) -> None:
    file = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    policies = parse_policies(POLICIES.read_text(), str(POLICIES))
    numbers = itertools.count()
    async with open_access(settings, policies=policies, budgets=PATIENT) as access:
        work = [_through(access, file, f"{name}-{caller}", numbers) for caller in range(CALLERS)]
        work += [_behind(access, file, f"{name}-{caller}", numbers) for caller in range(CALLERS)]
        await asyncio.gather(*work)


def _note(file: int, mode: str, keys: list[str]) -> None:
    os.write(file, "".join(f"{mode} {key}\n" for key in keys).encode())


async def _through(access: Access, file: int, name: str, numbers: itertools.count[int]) -> None:
    while True:
        user = f"{name}-{next(numbers)}"
        row = {"user_id": user, "settings": {"of": user}, "updated_at": datetime.now(UTC)}
        try:
            await access.write("user_configurations", [row], mode="real_time")
        except errors.TransientError:
            await asyncio.sleep(0.02)  # refused or unknown: neither is an acknowledgement
        else:
            _note(file, THROUGH, [user])


async def _behind(access: Access, file: int, name: str, numbers: itertools.count[int]) -> None:
    while True:
        rows = [bar(f"{name}-{next(numbers)}") for _ in range(ROWS)]
        try:
            await access.write("market_bars", rows, mode="analytical")
        except errors.TransientError:
            await asyncio.sleep(0.02)
        else:
            _note(file, BEHIND, [row["symbol"] for row in rows])
        await asyncio.sleep(0.005)


def bar(symbol: str) -> dict[str, Any]:
    """A bar of an hour ago."""
    at = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    price = Decimal("10.5")
    row = {"symbol": symbol, "market": "CN", "timeframe": "1m", "ts": at, "open": price, "high": price, "low": price}
    return {**row, "close": price, "volume": 100, "amount": price * 100, "source": "kills"}
