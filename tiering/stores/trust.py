"""Whether the cache may be believed: the database keeps an epoch, and tells every client when it changes.

A client that heard from the database less than TRUST_SECONDS ago knows the epoch. A writer that cannot put its fence
into the cache begins a new epoch instead, and waits for TRUST_SECONDS: after that every client has heard, or knows
that it has not. Until `distrust_until` nobody uses the cache at all; after it, what was stored in an earlier epoch
carries another stamp and does not count. So a write is never older in the cache than acknowledged, whoever can
reach whom. On the same connection the client is told when units move (`tiering_units`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from tiering import errors
from tiering.stores.patience import Patience
from tiering.stores.postgres_async import AsyncPostgres

log = logging.getLogger(__name__)

TRUST_SECONDS = 1.0
POLL_SECONDS = 0.3
AGAIN_SECONDS = 0.25
DISTRUST_SECONDS = 10.0
"""How long a writer without a cache keeps everybody from theirs; renewed while it goes on writing."""

_ASK = """SELECT epoch, extract(epoch FROM distrust_until - clock_timestamp())::float8
          FROM tiering.access_epoch"""
_BEGIN = """UPDATE tiering.access_epoch
            SET epoch = epoch + 1, distrust_until = greatest(distrust_until, clock_timestamp() + $1 * interval '1 s')
            RETURNING epoch, extract(epoch FROM distrust_until - clock_timestamp())::float8"""


class Trust:
    """What this client knows of the epoch. Started once, in the client's event loop.

    Args:
        database: that keeps the ledger.
        epoch_changed: called with a new epoch.
        units_moved: called when units moved, or may have while nobody listened.
    """

    def __init__(
        self, database: AsyncPostgres, epoch_changed: Callable[[int], None], units_moved: Callable[[], None]
    ) -> None:
        self._database = database
        self._epoch_changed, self._units_moved = epoch_changed, units_moved
        self.epoch = 0
        self._heard_at = float("-inf")
        self._told_until = float("-inf")
        self._may_use_until = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self._beginning: asyncio.Task[None] | None = None
        self._first = asyncio.Event()
        self._hurry = asyncio.Event()
        self._word: asyncio.Future[None] | None = None
        self._is_listening = False
        self.confirmed_at = float("-inf")

    def allows(self, now: float) -> bool:
        """Tell whether the cache counts at this instant of the monotonic clock: one comparison, on every read."""
        return now < self._may_use_until

    async def confirm(self, began: float) -> bool:
        """Tell whether the cache counts for who began then; ask the database where its last word is too old.

        It is when this process was busy, and had no ear for it. Whoever asked before the database answered may use the
        cache by that answer however late it is read: in the instant of the answer the cache was right.
        Returns False at once where the database does not answer, and while the cache is distrusted.
        """
        while not self.allows(time.monotonic()):
            if self.confirmed_at >= began:
                return True
            if not self._is_listening or self._heard_at >= began:
                return False
            if self._word is None:
                self._word = asyncio.get_running_loop().create_future()
            self._hurry.set()
            await asyncio.shield(self._word)
        return True

    def is_confirmed(self, now: float) -> bool:
        """Tell whether the database was heard of lately."""
        return now - self._heard_at < TRUST_SECONDS

    async def start(self, seconds: float) -> None:
        """Begin to listen; wait for the first word at most so long, and go on without it."""
        self._task = asyncio.get_running_loop().create_task(self._listen())
        try:
            async with asyncio.timeout(seconds):
                await self._first.wait()
        except TimeoutError:
            log.warning("the ledger's database does not answer: the cache is used only where it does not either")

    async def _listen(self) -> None:
        while True:
            try:
                async with self._database.listening("tiering_units", heard=lambda _: self._units_moved()) as connection:
                    self._units_moved()  # who was not listening may have missed it
                    self._is_listening = True
                    while True:
                        await self._ask(connection)
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(POLL_SECONDS):
                                await self._hurry.wait()
            except errors.TieringError as exc:
                log.info("not listening: %s", exc)
            finally:
                self._is_listening = False
                self._say()
            await asyncio.sleep(AGAIN_SECONDS)

    async def _ask(self, connection: Any) -> None:
        self._hurry.clear()
        asked = time.monotonic()
        async with Patience(TRUST_SECONDS):
            row = await connection.fetchrow(_ASK)
        if row is None:  # not installed: nothing is known, and nobody need wait for it
            self._heard_at = asked
        else:
            self._note(asked, row[0], row[1])
        self._say()

    def _say(self) -> None:
        """Wake who waits for the database's word: it is here, or there will be none."""
        word, self._word = self._word, None
        if word is not None and not word.done():
            word.set_result(None)

    def _note(self, asked: float, epoch: int, distrust: float) -> None:
        if epoch != self.epoch:
            self.epoch = epoch
            self._epoch_changed(epoch)
        self._heard_at = asked
        if distrust <= 0:
            self.confirmed_at = asked
        # While it is distrusted the cache cannot be used at all, however freshly we heard.
        self._may_use_until = float("-inf") if distrust > 0 else asked + TRUST_SECONDS
        self._first.set()

    def is_bypassed(self, now: float, seconds: float) -> bool:
        """Tell whether every client is known to leave the cache alone for at least so long."""
        return now + seconds < self._told_until

    async def distrust(self, seconds: float) -> None:
        """Have every client leave its cache alone for at least so long from now; return when all of them do.

        Calls that come together share one round. The first of an outage takes TRUST_SECONDS, the next ones nothing.

        Raises:
            StoreUnavailable: the ledger's database is away too: then nothing may be written.
        """
        if self.is_bypassed(time.monotonic(), seconds):
            return
        if self._beginning is None:
            self._beginning = asyncio.get_running_loop().create_task(self._begin())
            self._beginning.add_done_callback(_heard)
        await asyncio.shield(self._beginning)

    async def _begin(self) -> None:
        try:
            was_bypassed = self.is_bypassed(time.monotonic(), 0.0)
            asked = time.monotonic()
            rows = await self._database.fetch(_BEGIN, DISTRUST_SECONDS, seconds=TRUST_SECONDS, subject="access epoch")
            if not rows:
                raise errors.StoreUnavailable("begin", "access epoch", "no ledger", "Run `tiering install`.")
            self._note(asked, rows[0][0], rows[0][1])
            if not was_bypassed:
                await asyncio.sleep(TRUST_SECONDS)
            self._told_until = asked + rows[0][1]
        finally:
            self._beginning = None

    async def close(self) -> None:
        """Stop listening."""
        for task in (self._task, self._beginning):
            if task is not None:
                task.cancel()


def _heard(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()
