"""A time limit for what others do: a process that was itself held up does not blame them for it.

A timer that fires late says that the event loop was busy elsewhere: the answer may be here, unread. It is then given
GRACE_SECONDS more, again and again, until the loop is punctual or LIMIT_SECONDS have gone by. Why not
`asyncio.timeout`: among ten thousand callers who wake in one turn of the loop, it fails most of them for the time
that their neighbours took, and each failure costs more than the answer.
Does not: limit work of this process.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

LATE_SECONDS = 0.01
GRACE_SECONDS = 0.02
LIMIT_SECONDS = 10.0


class Patience:
    """`async with Patience(seconds):` raises TimeoutError as `asyncio.timeout` does, but not for our own delay."""

    __slots__ = ("_due", "_limit", "_loop", "_seconds", "_timeout", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def __aenter__(self) -> None:
        """Begin to count."""
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        await self._timeout.__aenter__()
        self._due = self._loop.time() + self._seconds
        self._limit = self._due + LIMIT_SECONDS
        self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        if now - self._due > LATE_SECONDS and now < self._limit:
            self._due = now + GRACE_SECONDS
            self._timer = self._loop.call_at(self._due, self._look)
        else:
            self._timeout.reschedule(now)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop counting; TimeoutError where the time was up."""
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)
