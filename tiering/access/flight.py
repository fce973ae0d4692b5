"""Single flight: who asks for one thing at once shares one trip, and nobody gets an answer older than the question.

Who asked before a trip left for the database may have its answer as soon as it is there, also when they come to ask
for it after it landed: on a busy machine the answer of their GET may be read that late. The others wait until the
trip proves itself *current*: nothing was written since before it looked at the database (the cache's lease says so).
Then everybody who came before that proof may have its answer; else they take the next trip, together.
So ten thousand simultaneous misses cost one query, whatever the load, with a cache or without.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tiering.errors import TieringError

KEPT_SECONDS = 2.0
"""How long a landing that the cache does not have is kept: longer than a look into the cache may take."""

KEPT_MAX = 1000
LATE_SECONDS = 0.1


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

    __slots__ = ("following", "is_boarding", "left_at", "loaded", "task")

    def __init__(self, loaded: asyncio.Future[Landing]) -> None:
        self.is_boarding = True
        self.left_at = math.inf
        self.loaded = loaded
        self.task: asyncio.Task[Landing]
        self.following: Trip | None = None

    def leave(self, now: float) -> None:
        """Note when the database is looked at: who asked before that may have the answer, proven current or not."""
        self.left_at = now

    def arrive(self, value: Any) -> None:
        """Give the answer to those who asked before it left, and take nobody aboard any more.

        Whoever asks from now on, asks after the proof was sent.
        """
        self.is_boarding = False
        if not self.loaded.done():
            self.loaded.set_result(Landing(value, is_current=False))


class Flights:
    """The trips under way, by name. Belongs to one event loop."""

    def __init__(self) -> None:
        self._trips: dict[str, Trip] = {}
        self._landed: dict[str, Trip] = {}
        self._landings: deque[tuple[float, str, Trip]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._trips)

    async def ride(self, name: str, fly: Callable[[Trip], Awaitable[Landing]], began: float) -> Landing | None:
        """Make the trip, or share one; errors are shared as answers are. Cancelling a passenger cancels no trip.

        Args:
            name: of what is asked for.
            fly: makes the trip; calls `Trip.leave` before it looks, and `Trip.arrive` if proof is still to come.
            began: when the passenger asked.

        Returns:
            None where a trip landed whose doors were closed when we came: what it left in the cache answers us.
        """
        trip = self._trips.get(name)
        if trip is None:
            landed = self._landed.get(name)
            if landed is not None and began < landed.left_at:
                return landed.loaded.result()
            return await asyncio.shield(self._depart(name, fly).loaded)
        was_boarding = trip.is_boarding
        landing: Landing | None = None
        try:
            landing = await asyncio.shield(trip.loaded)
            if began < trip.left_at:
                return landing
            landing = await asyncio.shield(trip.task)
        except TieringError:
            if began < trip.left_at:
                raise
        if landing is not None and landing.is_current:
            return landing if was_boarding else None
        # It left before we asked. All who are in this place share one trip after it.
        if trip.following is None:
            trip.following = self._trips.get(name) or self._depart(name, fly)
        return await asyncio.shield(trip.following.loaded)

    def _depart(self, name: str, fly: Callable[[Trip], Awaitable[Landing]]) -> Trip:
        loop = asyncio.get_running_loop()
        trip = self._trips[name] = Trip(loop.create_future())

        async def run() -> Landing:
            try:
                landing = await fly(trip)
            except asyncio.CancelledError:
                trip.loaded.cancel()
                raise
            except BaseException as exc:
                if not trip.loaded.done():
                    trip.loaded.set_exception(exc)
                raise
            if not trip.loaded.done():
                trip.loaded.set_result(landing)
            return landing

        def landed(done: asyncio.Task[Landing]) -> None:
            if self._trips.get(name) is trip:
                del self._trips[name]
            # Whoever waits is told; a trip that nobody waits for any more is nobody's error.
            if done.cancelled():
                trip.loaded.cancel()
            elif done.exception() is not None:
                trip.loaded.exception()
            elif not done.result().is_current:
                self._keep(name, trip)

        trip.task = loop.create_task(run())
        trip.task.add_done_callback(landed)
        return trip

    # -- what landed ---------------------------------------------------------------------------------------

    def _keep(self, name: str, trip: Trip) -> None:
        """Keep what the cache does not have for those who asked before the trip left, and were not here in time."""
        loop = asyncio.get_running_loop()
        self._landed[name] = trip
        self._landings.append((loop.time(), name, trip))
        if len(self._landings) > KEPT_MAX:
            self._drop()
        if self._sweeper is None:
            self._sweeper = loop.call_later(KEPT_SECONDS, self._sweep, loop.time() + KEPT_SECONDS)

    def _drop(self) -> None:
        _, name, trip = self._landings.popleft()
        if self._landed.get(name) is trip:
            del self._landed[name]

    def _sweep(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._sweeper = None
        # A sweep that is late itself says that others are too.
        while now - due < LATE_SECONDS and self._landings and now - self._landings[0][0] >= KEPT_SECONDS:
            self._drop()
        if self._landings:
            self._sweeper = loop.call_later(KEPT_SECONDS / 4, self._sweep, now + KEPT_SECONDS / 4)

    async def close(self, seconds: float) -> None:
        """Let the trips that have their answer leave it in the cache, and end the others."""
        trips = list(self._trips.values())
        for trip in trips:
            if not trip.loaded.done():
                trip.task.cancel()
        if trips:
            await asyncio.wait([trip.task for trip in trips], timeout=seconds)
        for trip in trips:
            trip.task.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._landings.clear()
        self._landed.clear()
