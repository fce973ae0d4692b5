"""Read by key, cache first: a hit is one GET; a miss asks the database once, whoever and how many ask.

| Redis | database | answer |
|---|---|---|
| up | up | the cache's value; a miss is filled under a lease |
| down | up | the database's, in single flight; nothing is stored |
| up | down | what the cache has, `is_confirmed=False`: a writer that cannot reach Redis could not say so now |
| down | down | StoreUnavailable, at once while the breakers are open, and never later than the budget |

Does not: know where a value comes from (sources.py); write for a caller (writing.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from tiering import errors
from tiering.access.calendars import Calendars
from tiering.access.codec import decode, encode
from tiering.access.flight import Flights, Landing, Trip
from tiering.access.keys import Key, market_of
from tiering.access.metrics import Metrics
from tiering.plan.freshness import PHASE_SECONDS, Phase, jittered, time_to_live
from tiering.stores.cache import Cache
from tiering.stores.cache_entries import FENCE, LEASE, NOTHING, VALUE, Found, Lease, new_token, pack_header, stamp_of
from tiering.stores.cache_lane import CALL_SECONDS
from tiering.stores.patience import Patience
from tiering.stores.trust import Trust

Load = Callable[[], Awaitable[Any]]
"""Asks the database; None: there is no such thing."""

LEASE_MS, LEASE_OLD_MS = 60_000, 5000
"""Longer than any load takes, even in a process that is held up: who lets it run out must not fill. But another process
may take it over when it is old."""

LEASE_SHARE, LEASE_SECONDS_MAX = 0.25, 1.0
"""Of its budget a caller waits at most so much for the lease: without one, what it fetches is not stored."""

CLAIM_SECONDS = 5.0
LEASE_WAIT_SECONDS = 0.05
"""How long another process is given to fill before we ask the database ourselves."""

CLOSE_SECONDS = 0.5
HIT_SAMPLE = 64
_LOOKS_MAX = 4


@dataclass(frozen=True, slots=True)
class Budgets:
    """Seconds that a call may take before it raises TimedOut, by path."""

    hot: float = 0.1
    warm: float = 1.0
    cold: float = 30.0
    write: float = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A value and where it comes from.

    Attributes:
        value: None: there is no such thing.
        source: "cache", "stale" (older than its time to live, and being renewed) or "database".
        is_confirmed: False while the database could not be asked whether the cache may be believed.
    """

    value: Any
    source: str
    is_confirmed: bool = True


class Reading:
    """The read path by key. Belongs to one event loop."""

    def __init__(self, cache: Cache, trust: Trust, metrics: Metrics, budgets: Budgets, calendars: Calendars) -> None:
        self._calendars = calendars
        self._cache, self._trust, self._metrics, self._budgets = cache, trust, metrics, budgets
        self._flights = Flights()
        self._renewals: set[asyncio.Task[None]] = set()
        self._volatility: dict[str, float] = {}
        self._hits: dict[str, Any] = {}
        self._dice = random.Random()
        self._count = 0

    def note_volatility(self, symbol: str, volatility: float) -> None:
        """Tell how much a symbol's price moves: its entries live shorter from now on."""
        self._volatility[symbol] = volatility

    async def get(self, key: Key, load: Load, budget: float | None = None) -> Any:
        """Return the value of a key, from the cache or else from the database; None: there is none.

        Raises:
            TimedOut: the budget is used up.
            StoreUnavailable: neither cache nor database answers.
        """
        began = time.monotonic()
        if self._trust.allows(began):
            try:
                found = await self._cache.get(key.text)
            except errors.StoreUnavailable:
                found = None
            if found is not None and found.state == VALUE and found.fresh_until > time.time():
                try:
                    value = decode(found.payload)
                except errors.CorruptCopy:
                    found = None
                    await self._drop(key)
                else:
                    self._hit(key, began)
                    return value
        else:
            found = None
        return (await self._answer(key, load, found, began, budget)).value

    async def look(self, key: Key, load: Load, budget: float | None = None) -> Answer:
        """As `get`, and say where the value comes from."""
        began = time.monotonic()
        found = await self._peek(key, began)
        if found is not None and found.state == VALUE:
            try:
                decode(found.payload)
            except errors.CorruptCopy:
                found = None
                await self._drop(key)
        return await self._answer(key, load, found, began, budget)

    async def get_many(
        self, keys: Sequence[Key], load: Callable[[Key], Load], budget: float | None = None
    ) -> list[Any]:
        """Return the values of many keys, in one round trip per server and a query for each miss."""
        began = time.monotonic()
        found: list[Found | None] = [None] * len(keys)
        if self._trust.allows(began):
            with contextlib.suppress(errors.StoreUnavailable):
                found = list(await self._cache.get_many([key.text for key in keys]))
        now = time.time()
        values: list[Any] = [None] * len(keys)
        missing: list[int] = []
        for place, one in enumerate(found):
            if one is not None and one.state == VALUE and one.fresh_until > now:
                try:
                    values[place] = decode(one.payload)
                except errors.CorruptCopy:
                    found[place] = None
                    await self._drop(keys[place])
                else:
                    self._hit(keys[place], began)
                    continue
            missing.append(place)
        if missing:
            answers = await asyncio.gather(
                *(self._answer(keys[p], load(keys[p]), found[p], began, budget) for p in missing)
            )
            for place, answer in zip(missing, answers, strict=True):
                values[place] = answer.value
        return values

    async def _drop(self, key: Key) -> None:
        """Drop what is no value of ours: somebody else wrote it; the database has the right one."""
        with contextlib.suppress(errors.StoreUnavailable):
            await self._cache.forget(key.text)

    # -- beyond a hit --------------------------------------------------------------------------------------

    def _hit(self, key: Key, began: float) -> None:
        name = key.kind.name
        counter = self._hits.get(name)
        if counter is None:
            counter = self._hits[name] = self._metrics.reads.labels(name, "hit")
        counter.inc()
        self._count += 1
        if not self._count % HIT_SAMPLE:
            self._metrics.hit_seconds.observe(time.monotonic() - began)

    async def _peek(self, key: Key, now: float) -> Found | None:
        """Look into the cache if it counts and answers."""
        if not self._trust.allows(now):
            return None
        try:
            return await self._cache.get(key.text)
        except errors.StoreUnavailable:
            return None

    async def _answer(self, key: Key, load: Load, found: Found | None, began: float, budget: float | None) -> Answer:
        """Answer by the budget, come what may."""
        seconds = self._budgets.hot if budget is None else budget
        try:
            async with Patience(max(seconds - (time.monotonic() - began), 0.001)):
                answer = await self._resolve(key, load, found, began, seconds)
        except TimeoutError:
            self._metrics.reads.labels(key.kind.name, "timeout").inc()
            raise errors.TimedOut(
                "read", key.text, f"no answer within {seconds:g} s", "Ask again: what was begun goes on."
            ) from None
        except errors.StoreUnavailable:
            self._metrics.reads.labels(key.kind.name, "unavailable").inc()
            raise
        self._metrics.reads.labels(key.kind.name, answer.source).inc()
        self._metrics.seconds.labels("hot").observe(time.monotonic() - began)
        return answer

    async def _resolve(self, key: Key, load: Load, found: Found | None, began: float, seconds: float) -> Answer:
        patience = min(max(seconds * LEASE_SHARE, CALL_SECONDS), LEASE_SECONDS_MAX)
        fly = partial(self._fly, key=key, load=load, patience=patience)
        for _ in range(_LOOKS_MAX):
            if found is not None and found.header:
                now = time.time()
                if found.fresh_until > now:
                    return Answer(decode(found.payload) if found.state == VALUE else None, "cache")
                if found.state == VALUE and found.fresh_until + key.kind.stale_seconds > now:
                    self._renew(key, load, found)
                    return Answer(decode(found.payload), "stale")
            try:
                landing = await self._flights.ride(key.text, partial(fly, found=found), began)
            except errors.StoreUnavailable:
                return await self._last_resort(key)
            if landing is not None:
                return Answer(landing.value, landing.source)
            found = await self._peek(key, time.monotonic())
        # Others fill and writers fence, again and again: ask the database, with all who are in this place.
        alone = await self._flights.ride(f"{key.text} alone", partial(self._ask, load=load), time.monotonic())
        assert alone is not None  # it takes passengers aboard until it lands
        return Answer(alone.value, "database")

    async def _ask(self, trip: Trip, *, load: Load) -> Landing:
        trip.leave(time.monotonic())
        return Landing(await load(), is_current=False)

    async def _last_resort(self, key: Key) -> Answer:
        """The database does not answer: what the cache has is better than nothing, and is called what it is."""
        reason = errors.StoreUnavailable("read", key.text, "neither cache nor database answers", "See `tiering fsck`.")
        try:
            found = await self._cache.get(key.text)
        except errors.StoreUnavailable as exc:
            raise reason from exc
        if found.state not in (VALUE, NOTHING):
            raise reason
        value = decode(found.payload) if found.state == VALUE else None
        return Answer(value, "cache" if found.fresh_until > time.time() else "stale", is_confirmed=False)

    async def _fly(self, trip: Trip, *, key: Key, load: Load, patience: float, found: Found | None) -> Landing:
        """Fetch a value from the database, and leave it in the cache if nobody has written meanwhile."""
        mine = Lease(new_token())
        epoch, has_lease = 0, False
        if (found is None or found.state != FENCE) and await self._trust.confirm(time.monotonic()):
            epoch = self._trust.epoch
            try:
                held = await self._lease(trip, key, mine, patience)
                has_lease = held is None
                if held is not None and held.header and held.fresh_until > time.time():
                    return Landing(decode(held.payload) if held.state == VALUE else None, False, "cache")
            except errors.StoreUnavailable:
                has_lease = False
        trip.leave(time.monotonic())
        try:
            value = await load()
        except BaseException:
            if has_lease:
                self._in_background(self._give_back(key, mine))
            raise
        if not has_lease:
            return Landing(value, is_current=False)
        # The fill is on its way before anybody has the answer: on one connection, whoever asks next finds it there.
        is_trusted = self._trust.allows(time.monotonic()) and self._trust.epoch == epoch
        filling = asyncio.get_running_loop().create_task(self._fill(key, mine.content, value, mine.stamp))
        trip.arrive(value)
        try:
            return Landing(value, is_current=await filling and is_trusted)
        except errors.StoreUnavailable:
            return Landing(value, is_current=False)

    async def _lease(self, trip: Trip, key: Key, mine: Lease, patience: float) -> Found | None:
        """Take the key's lease: None when it is ours, else what stands there: a value, a fence, somebody's lease."""
        deadline = time.monotonic() + LEASE_WAIT_SECONDS
        wait = 0.001
        while True:
            now = time.monotonic()
            # Where the database's word is old by now, it holds for those who asked before it was given.
            trip.leave(now if self._trust.allows(now) else self._trust.confirmed_at)
            held = await self._cache.acquire(key.text, mine, LEASE_MS, patience)
            if held is None or held.state != LEASE:
                return held
            if time.monotonic() > deadline:
                is_ours = await self._cache.take_over(key.text, mine, LEASE_MS, LEASE_MS - LEASE_OLD_MS)
                return None if is_ours else held
            await asyncio.sleep(wait)
            wait = min(wait * 2, 0.01)

    async def _fill(self, key: Key, expected: bytes, value: Any, taken: bytes) -> bool:
        """Put a value where `expected` stands, unless the server or the epoch is another than when that was `taken`."""
        seconds = self.lifetime(key) if value is not None else float(key.kind.missing_seconds)
        if seconds <= 0:
            return await self._cache.fill(key.text, expected, lambda _: b"", 0)
        state, payload = (VALUE, encode(value)) if value is not None else (NOTHING, b"")
        until = time.time() + seconds
        stale = key.kind.stale_seconds if value is not None else 0
        is_same = True

        def content(stamp: bytes) -> bytes:
            nonlocal is_same
            is_same = stamp == taken
            return pack_header(state, stamp, until) + payload if is_same else b""

        return await self._cache.fill(key.text, expected, content, max(1, int((seconds + stale) * 1000))) and is_same

    async def _give_back(self, key: Key, mine: Lease) -> None:
        await self._cache.fill(key.text, mine.content, lambda _: b"", 0)

    def _renew(self, key: Key, load: Load, found: Found) -> None:
        """Fetch a stale value anew in the background; one client at a time does."""

        async def renew() -> None:
            until = time.time() + CLAIM_SECONDS
            header = await self._cache.claim(key.text, found.header, lambda stamp: pack_header(VALUE, stamp, until))
            if header is not None:
                await self._fill(key, header, await load(), stamp_of(header))

        self._in_background(renew())

    def _in_background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._renewals.add(task)

        def done(finished: asyncio.Task[None]) -> None:
            self._renewals.discard(finished)
            if not finished.cancelled():
                finished.exception()  # the value stays stale, and the next reader tries again

        task.add_done_callback(done)

    def lifetime(self, key: Key) -> float:
        """Choose how many seconds an entry of this key lives if it is stored now."""
        kind = key.kind
        if not kind.by_session and not kind.by_volatility:
            return jittered(kind.seconds, self._dice.random())
        now = datetime.now(UTC)
        base, sessions = float(kind.seconds), None
        if kind.by_session:
            market = market_of(key)
            sessions = self._calendars.sessions(market, now)
            if sessions is None and self._calendars.has(market):  # not made yet: as if it traded
                base = min(base, PHASE_SECONDS[Phase.TRADING])
        volatility = self._volatility.get(key.part("symbol"))
        # A volatility that nobody told shortens nothing.
        by_volatility = kind.by_volatility and volatility is not None
        return jittered(time_to_live(base, sessions, now, volatility, by_volatility=by_volatility), self._dice.random())

    async def close(self) -> None:
        """Fill what was fetched, and end what else goes on in the background."""
        await self._flights.close(CLOSE_SECONDS)
        for task in self._renewals:
            task.cancel()
