"""Single flight: who asks for one thing at once shares one trip, and nobody gets an answer older than the question.

A trip proves itself *current* when nothing was written since before it looked at the database (the cache's lease says
so): then everybody who asked before that proof may have its answer. Otherwise only who asked before it left may; the
others take the next one, together. So ten thousand misses cost one query, or two while there is no cache.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tiering.errors import TieringError


@dataclass(frozen=True, slots=True)
class Landing:
    """What a trip brought.

    Attributes:
        value: the answer.
        is_current: it is what the database would have answered at the landing.
        source: who answered, for metrics.
    """

    value: Any
    is_current: bool
    source: str = "database"


class Trip:
    """One trip under way. It closes its doors before it asks whether its answer is current."""

    __slots__ = ("following", "is_boarding", "left_at", "task")

    def __init__(self) -> None:
        self.is_boarding = True
        self.left_at = math.inf
        self.task: asyncio.Task[Landing]
        self.following: Trip | None = None

    def leave(self, now: float) -> None:
        """Note when the database is looked at: who asked before that may have the answer, proven current or not."""
        self.left_at = now

    def close_doors(self) -> None:
        """Take nobody aboard any more: whoever asks from now on, asks after the proof was sent."""
        self.is_boarding = False


class Flights:
    """The trips under way, by name. Belongs to one event loop."""

    def __init__(self) -> None:
        self._trips: dict[str, Trip] = {}

    def __len__(self) -> int:
        return len(self._trips)

    async def ride(self, name: str, fly: Callable[[Trip], Awaitable[Landing]], began: float) -> Landing | None:
        """Make the trip, or share one; errors are shared as answers are. Cancelling a passenger cancels no trip.

        Args:
            name: of what is asked for.
            fly: makes the trip.
            began: when the passenger asked.

        Returns:
            None where a trip landed whose doors were closed when we came: what it left in the cache answers us.
        """
        trip = self._trips.get(name)
        if trip is None:
            return await asyncio.shield(self._depart(name, fly).task)
        was_boarding = trip.is_boarding
        landing: Landing | None = None
        try:
            landing = await asyncio.shield(trip.task)
        except TieringError:
            if began < trip.left_at:
                raise
        if landing is not None and began < trip.left_at:
            return landing
        if landing is not None and landing.is_current:
            return landing if was_boarding else None
        # It left before we asked. All who are in this place share one trip after it.
        if trip.following is None:
            trip.following = self._trips.get(name) or self._depart(name, fly)
        return await asyncio.shield(trip.following.task)

    def _depart(self, name: str, fly: Callable[[Trip], Awaitable[Landing]]) -> Trip:
        trip = self._trips[name] = Trip()

        async def run() -> Landing:
            return await fly(trip)

        def landed(done: asyncio.Task[Landing]) -> None:
            if self._trips.get(name) is trip:
                del self._trips[name]
            if not done.cancelled():
                done.exception()  # whoever waits is told; a trip that nobody waits for any more is nobody's error

        trip.task = asyncio.get_running_loop().create_task(run())
        trip.task.add_done_callback(landed)
        return trip

    def close(self) -> None:
        """End every trip."""
        for trip in list(self._trips.values()):
            trip.task.cancel()
