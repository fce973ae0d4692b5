"""Reach the cache: one Redis or a cluster of them, told apart by asking. Async, pipelined, each server with a breaker.

In a cluster a key goes to the master of its slot; MOVED teaches the new place, ASK is followed once, and after a
failure the map is asked for anew from whichever node answers.
Does not: know kinds of keys, datasets or a database; decide what to do when there is no cache.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from binascii import crc_hqx
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import SecretStr
from redis.asyncio.connection import parse_url

from tiering import errors
from tiering.stores.breaker import BreakerState
from tiering.stores.cache_entries import (
    CLAIM_SCRIPT,
    FENCE_SCRIPT,
    FILL_SCRIPT,
    SCRIPTS,
    SETTLE_SCRIPT,
    TAKE_SCRIPT,
    Found,
    Lease,
    Script,
    unpack,
)
from tiering.stores.cache_lane import CALL_SECONDS, Address, Lane
from tiering.stores.patience import Patience

SLOTS = 16384
MAP_SECONDS = 0.05
"""After a failure the map of slots is asked for at most so often."""

FILL_SECONDS = 1.0
"""Nobody who has an answer waits for a fill."""

RETRY_SECONDS = 0.005
_REDIRECTS_MAX = 5
_PASSING = ("TRYAGAIN", "CLUSTERDOWN", "LOADING", "READONLY", "MASTERDOWN", "BUSY")

Words = Callable[[Lane], tuple[Any, ...]]
"""Makes a command for the lane that will carry it: a value is stamped with its server."""


def slot_of(key: str) -> int:
    """The slot of a key: of the part in its first braces, where there is one."""
    data = key.encode()
    begin = data.find(b"{")
    if begin >= 0:
        end = data.find(b"}", begin + 1)
        if end > begin + 1:
            data = data[begin + 1 : end]
    return crc_hqx(data, 0) % SLOTS


class Cache:
    """The cache behind one URL. Opens no connection until asked; belongs to one event loop.

    Args:
        url: of a server, or of any node of a cluster; None: there is none, and everything raises StoreUnavailable.
        epoch: of the database that the cache stands before (stores/trust.py).
    """

    def __init__(self, url: SecretStr | None, epoch: int = 0) -> None:
        self._first = _address(url) if url else None
        self._epoch = epoch
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._slots: list[Lane] | None = None
        self._only: Lane | None = None
        self._mapping: asyncio.Task[None] | None = None
        self._mapped_at = 0.0

    def __repr__(self) -> str:
        return f"Cache({self._first or 'none'})"

    def set_epoch(self, epoch: int) -> None:
        """Begin a new epoch: nothing that was stored before counts any more."""
        self._epoch = epoch
        for lane in self._lanes.values():
            lane.set_epoch(epoch)

    def breakers(self, now: float) -> dict[str, BreakerState]:
        """How each server's breaker stands."""
        return {str(lane.address): lane.breaker.state(now) for lane in self._lanes.values()}

    # -- what stands under keys ----------------------------------------------------------------------------

    async def get(self, key: str, seconds: float = CALL_SECONDS) -> Found:
        """Look a key up.

        Raises:
            StoreUnavailable: the cache does not answer in time.
        """
        lane = self._only
        if lane is not None:  # one server, known: the path that counts
            raw = await lane.call("GET", key, seconds=seconds)
            if raw is None or type(raw) is bytes:
                return unpack(raw, lane.stamp)
        lane, raw = await self._run(key, lambda _: ("GET", key), seconds)
        return unpack(raw, lane.stamp)

    async def get_many(self, keys: Sequence[str], seconds: float = CALL_SECONDS) -> list[Found]:
        """Look keys up, in one round trip per server."""
        if not keys:
            return []
        lanes = [await self._lane(key, seconds) for key in keys]
        groups: dict[Lane, list[int]] = {}
        for place, lane in enumerate(lanes):
            groups.setdefault(lane, []).append(place)
        found: list[Found | None] = [None] * len(keys)

        async def ask(lane: Lane, places: list[int]) -> None:
            if self._only is lane:
                answers = await lane.call("MGET", *(keys[place] for place in places), seconds=seconds)
            else:
                answers = await lane.call_many([("GET", keys[place]) for place in places], seconds)
            if isinstance(answers, list):
                for place, raw in zip(places, answers, strict=True):
                    if raw is None or type(raw) is bytes:
                        found[place] = unpack(raw, lane.stamp)

        for outcome in await asyncio.gather(*(ask(*group) for group in groups.items()), return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, errors.TieringError):
                raise outcome
        missing = [place for place, one in enumerate(found) if one is None]
        again = await asyncio.gather(*(self.get(keys[place], seconds) for place in missing))
        for place, one in zip(missing, again, strict=True):
            found[place] = one
        return [one for one in found if one is not None]

    async def acquire(self, key: str, lease: Lease, milliseconds: int, seconds: float = CALL_SECONDS) -> Found | None:
        """Take the lease of a key that does not exist; else return what stands there.

        A value of another stamp counts as nothing: the lease takes its place.
        """

        def words(lane: Lane) -> tuple[Any, ...]:
            lease.stamp = lane.stamp
            return "SET", key, lease.content, "NX", "GET", "PX", milliseconds

        lane, raw = await self._run(key, words, seconds)
        if raw is None:
            return None
        found = unpack(raw, lane.stamp)
        if found.header and not found.fresh_until:
            swapped = await self._eval(FILL_SCRIPT, key, lambda _: (found.header, lease.content, milliseconds), seconds)
            return None if swapped else await self.get(key, seconds)
        return found

    async def take_over(self, key: str, lease: Lease, milliseconds: int, left: int) -> bool:
        """Take another's lease that has no more than `left` milliseconds to live: its holder is held up, or dead."""

        def words(lane: Lane) -> tuple[Any, ...]:
            lease.stamp = lane.stamp
            return lease.content, milliseconds, left

        return bool(await self._eval(TAKE_SCRIPT, key, words, CALL_SECONDS))

    async def fill(self, key: str, expected: bytes, content: Callable[[bytes], bytes], milliseconds: int) -> bool:
        """Put a value in the place of a lease or of a stale value; False when something else stands there by now.

        Args:
            key: of the value.
            expected: the lease, or the header of the stale value.
            content: makes the value from the stamp; empty bytes take the lease back.
            milliseconds: to live.
        """
        return bool(
            await self._eval(FILL_SCRIPT, key, lambda lane: (expected, content(lane.stamp), milliseconds), FILL_SECONDS)
        )

    async def claim(self, key: str, header: bytes, renewed: Callable[[bytes], bytes]) -> bytes | None:
        """Claim the renewal of a stale value: return its new header, None when somebody else was first."""
        made: list[bytes] = []

        def words(lane: Lane) -> tuple[Any, ...]:
            made.append(renewed(lane.stamp))
            return header, made[-1]

        return made[-1] if await self._eval(CLAIM_SCRIPT, key, words, CALL_SECONDS) else None

    async def fence(self, keys: Iterable[str], token: bytes, milliseconds: int) -> None:
        """Put up a writer's fence before each key, whatever stands there.

        Raises:
            StoreUnavailable: not every fence is known to stand.
        """
        await self._eval_many(FENCE_SCRIPT, [(key, lambda _: (token, milliseconds)) for key in keys])

    async def settle(
        self, token: bytes, contents: Sequence[tuple[str, Callable[[bytes], bytes] | None, int]]
    ) -> list[int]:
        """Take fences down and leave values, or nothing: 1 stored, 2 nothing stored, 0 the fence was gone.

        Args:
            token: of the fences.
            contents: for each key what makes its value from the stamp, or None, and how many milliseconds it lives.
        """

        def words(make: Callable[[bytes], bytes] | None, milliseconds: int) -> Words:
            return lambda lane: (token, make(lane.stamp) if make else b"", milliseconds)

        asked = [(key, words(make, milliseconds)) for key, make, milliseconds in contents]
        return [int(answer) for answer in await self._eval_many(SETTLE_SCRIPT, asked)]

    async def put(self, key: str, content: Callable[[bytes], bytes], milliseconds: int) -> None:
        """Store a value whatever stands there: for keys that have no database behind them."""
        await self._run(key, lambda lane: ("SET", key, content(lane.stamp), "PX", milliseconds), 2 * CALL_SECONDS)

    async def forget(self, key: str) -> None:
        """Drop a key that has no database behind it."""
        await self._run(key, lambda _: ("UNLINK", key), 2 * CALL_SECONDS)

    async def forget_many(self, keys: Sequence[str]) -> None:
        """Drop keys, whatever stands there, in one round trip per server; a fence goes too, and its writer sees it."""
        groups: dict[Lane, list[str]] = {}
        for key in keys:
            groups.setdefault(await self._lane(key, CALL_SECONDS), []).append(key)

        async def drop(lane: Lane, texts: list[str]) -> list[str]:
            if self._only is lane and type(await lane.call("UNLINK", *texts, seconds=10 * CALL_SECONDS)) is int:
                return []
            answers = await lane.call_many([("UNLINK", text) for text in texts], 10 * CALL_SECONDS)
            return [text for text, answer in zip(texts, answers, strict=True) if isinstance(answer, Exception)]

        for moved in await asyncio.gather(*(drop(*group) for group in groups.items())):
            await asyncio.gather(*(self.forget(text) for text in moved))

    async def publish(self, channel: str, text: bytes) -> None:
        """Tell whoever listens to a channel."""
        await self._run(channel, lambda _: ("PUBLISH", channel, text), 2 * CALL_SECONDS)

    async def ping(self) -> None:
        """Ask for a sign of life."""
        await self._run("", lambda _: ("PING",), 2 * CALL_SECONDS)

    # -- which server --------------------------------------------------------------------------------------

    async def _eval(self, script: Script, key: str, arguments: Words, seconds: float) -> Any:
        """Run a script by its name; a server that does not know it is given its text, once."""
        lane, answer = await self._run(
            key, lambda lane: ("EVALSHA", script.sha, 1, key, *arguments(lane)), seconds, is_raw=True
        )
        if isinstance(answer, Exception) and str(answer).startswith("NOSCRIPT"):
            await lane.call_many([("SCRIPT", "LOAD", each.text) for each in SCRIPTS], seconds)
            _, answer = await self._run(
                key, lambda lane: ("EVAL", script.text, 1, key, *arguments(lane)), seconds, is_raw=True
            )
        if isinstance(answer, Exception):
            raise errors.StoreUnavailable("change", key, str(answer), "See Redis's log.")
        return answer

    async def _eval_many(self, script: Script, asked: Sequence[tuple[str, Words]]) -> list[Any]:
        """Run a script for many keys in one round trip per server; what does not answer there is asked singly."""
        seconds = 2 * CALL_SECONDS
        if len(asked) == 1:
            return [await self._eval(script, *asked[0], seconds)]
        groups: dict[Lane, list[int]] = {}
        for place, (key, _) in enumerate(asked):
            groups.setdefault(await self._lane(key, seconds), []).append(place)
        found: list[Any] = [None] * len(asked)

        async def ask(lane: Lane, places: list[int]) -> None:
            if not lane.is_open:
                await lane.ready(seconds)
            commands = [("EVALSHA", script.sha, 1, asked[p][0], *asked[p][1](lane)) for p in places]
            for place, answer in zip(places, await lane.call_many(commands, seconds), strict=True):
                found[place] = answer

        if len(groups) == 1:
            await ask(*next(iter(groups.items())))
        else:
            await asyncio.gather(*(ask(*group) for group in groups.items()))
        for place, answer in enumerate(found):
            if isinstance(answer, Exception):
                found[place] = await self._eval(script, *asked[place], seconds)
        return found

    async def _run(self, key: str, words: Words, seconds: float, *, is_raw: bool = False) -> tuple[Lane, Any]:
        """Run a command where its key is, and follow the key when it moves; StoreUnavailable when time is up."""
        deadline = time.monotonic() + seconds
        lane, is_asking = await self._lane(key, seconds), False
        for attempt in range(_REDIRECTS_MAX * 20):
            left = deadline - time.monotonic()
            if left <= 0:
                if attempt:
                    break
                left = RETRY_SECONDS  # it was we who were held up
            if not lane.is_open:
                await lane.ready(left)
            if is_asking:
                answer = (await lane.call_many([("ASKING",), words(lane)], left))[1]
            else:
                answer = await lane.call(*words(lane), seconds=left)
            if not isinstance(answer, Exception):
                return lane, answer
            text = str(answer)
            is_asking = text.startswith("ASK ")
            if is_asking or text.startswith("MOVED "):
                lane = self._redirected(lane, text, is_asking)
            elif text.startswith(_PASSING):
                self._remap()
                await asyncio.sleep(min(RETRY_SECONDS, left))
                lane = await self._lane(key, max(deadline - time.monotonic(), 0.001))
            elif is_raw:
                return lane, answer
            else:
                raise errors.StoreUnavailable("ask", str(lane.address), text, "See Redis's log.")
        raise errors.StoreUnavailable("ask", str(lane.address), "the key keeps moving", "It is tried again.")

    def _redirected(self, lane: Lane, text: str, is_asking: bool) -> Lane:
        _, slot, place = text.split()[:3]
        host, _, port = place.rpartition(":")
        target = self._lane_at(host or lane.address.host, int(port))
        if not is_asking:
            if self._slots is None:
                self._slots, self._only = [target] * SLOTS, None
            self._slots[int(slot)] = target
            self._remap()
        return target

    async def _lane(self, key: str, seconds: float) -> Lane:
        if self._only is not None:
            return self._only
        if self._slots is None:
            await self._mapped(seconds)
        if self._only is not None:
            return self._only
        assert self._slots is not None
        lane = self._slots[slot_of(key)]
        if not lane.is_open and lane.breaker.is_tripped:
            self._remap()  # its master may have been replaced
        return lane

    def _lane_at(self, host: str, port: int) -> Lane:
        assert self._first is not None
        lane = self._lanes.get((host, port))
        if lane is None:
            lane = self._lanes[host, port] = Lane(
                self._first.at(host, port), self._epoch, [script.text for script in SCRIPTS]
            )
        return lane

    def _remap(self) -> None:
        """Ask for the map in the background, unless that was done a moment ago."""
        if self._mapping is None and self._only is None and time.monotonic() - self._mapped_at > MAP_SECONDS:
            self._mapping = asyncio.get_running_loop().create_task(self._learn())
            self._mapping.add_done_callback(_heard)

    async def _mapped(self, seconds: float) -> None:
        if self._first is None:
            raise errors.StoreUnavailable("ask", "Redis", "TIERING_REDIS_URL is not set")
        if self._mapping is None:
            self._mapping = asyncio.get_running_loop().create_task(self._learn())
            self._mapping.add_done_callback(_heard)
        try:
            async with Patience(max(seconds, self._first.connect_seconds)):
                await asyncio.shield(self._mapping)
        except TimeoutError:
            raise errors.StoreUnavailable("ask", str(self._first), "no answer in time", "Is Redis up?") from None

    async def _learn(self) -> None:
        """Learn whether this is a cluster, and where its slots are, from the first node that says."""
        assert self._first is not None
        last: errors.TieringError | None = None
        try:
            first = self._lane_at(self._first.host, self._first.port)
            for lane in sorted({first, *self._lanes.values()}, key=lambda lane: lane.breaker.is_tripped):
                try:
                    answer = await lane.call("CLUSTER", "SLOTS", seconds=2 * CALL_SECONDS)
                except errors.StoreUnavailable as exc:
                    last = exc
                    continue
                if isinstance(answer, list) and answer:
                    self._take(lane, answer)
                    return
                if isinstance(answer, Exception) and "cluster support disabled" in str(answer):
                    self._only = lane
                    return
                last = errors.StoreUnavailable("ask", str(lane.address), str(answer) or "it knows no slots")
            raise last or errors.StoreUnavailable("ask", str(self._first), "no node answers")
        finally:
            self._mapping, self._mapped_at = None, time.monotonic()

    def _take(self, teller: Lane, ranges: Sequence[Sequence[Any]]) -> None:
        slots = self._slots or [teller] * SLOTS
        for first, last, master, *_ in ranges:
            host = bytes(master[0] or b"").decode() or teller.address.host
            lane = self._lane_at(host, int(master[1]))
            slots[int(first) : int(last) + 1] = [lane] * (int(last) - int(first) + 1)
        self._slots = slots

    async def close(self) -> None:
        """Close the connections."""
        if self._mapping is not None:
            self._mapping.cancel()
        for lane in self._lanes.values():
            lane.close()


def _heard(task: asyncio.Task[None]) -> None:
    """Take note of a background failure: whoever waited was told, the next call tries again."""
    if not task.cancelled():
        task.exception()


def _address(url: SecretStr) -> Address:
    hint = "Write redis://:password@host:port/0."
    try:
        parts = parse_url(url.get_secret_value())
    except ValueError:  # its text may quote the URL, password and all
        raise errors.SettingsError("read settings", "TIERING_REDIS_URL", "malformed", hint) from None
    password = parts.get("password")
    return Address(
        host=parts.get("host", "127.0.0.1"),
        port=int(parts.get("port", 6379)),
        password=SecretStr(password) if password else None,
        username=parts.get("username"),
        database=int(parts.get("db", 0)),
        ssl=ssl.create_default_context() if "SSL" in getattr(parts.get("connection_class"), "__name__", "") else None,
    )
