"""Exchange calendars beside an event loop: making one takes a second, so a thread does, and nobody waits for it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from tiering.plan.calendars import EXCHANGES, sessions_for
from tiering.plan.freshness import Sessions


class Calendars:
    """The calendars that are made so far. Belongs to one event loop."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], Sessions | None] = {}
        self._making: dict[tuple[str, int], asyncio.Task[None]] = {}

    @staticmethod
    def has(market: str) -> bool:
        """Tell whether a market has a calendar at all."""
        return market in EXCHANGES

    def sessions(self, market: str, now: datetime) -> Sessions | None:
        """The sessions of a market, None while they are being made or where there are none."""
        wanted = (market, now.astimezone(UTC).year)
        if wanted in self._known or market not in EXCHANGES:
            return self._known.get(wanted)
        if wanted not in self._making:
            self._making[wanted] = asyncio.get_running_loop().create_task(self._make(wanted, now))
        return None

    async def _make(self, wanted: tuple[str, int], now: datetime) -> None:
        self._known[wanted] = await asyncio.to_thread(sessions_for, wanted[0], now)

    async def ready(self, market: str, now: datetime) -> Sessions | None:
        """Wait until a market's sessions are made, and return them."""
        if (found := self.sessions(market, now)) is None and (market, now.astimezone(UTC).year) in self._making:
            await self._making[market, now.astimezone(UTC).year]
            found = self.sessions(market, now)
        return found

    def close(self) -> None:
        """Forget what is still being made."""
        for task in self._making.values():
            task.cancel()
