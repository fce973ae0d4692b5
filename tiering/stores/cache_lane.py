"""One pipelined connection to one Redis server: whatever is asked in one turn of the event loop travels together.

Why not a pool of redis.asyncio connections, which the rest of the system uses: a value may count only if the very
server process that answers also took it (`Lane.stamp`), and a pool does not say who answered; and 64 readers on one
pipelined connection cost a third of what they cost on 64 (docs/decisions). The parser is the same one: hiredis.
Does not: know slots, keys or values.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis
from pydantic import SecretStr

from tiering import errors
from tiering.stores.breaker import Breaker
from tiering.stores.patience import Patience

CALL_SECONDS = 0.05
"""Longest wait for an answer, unless the caller says otherwise: half of the budget of a hot read."""

DEAD_SECONDS = 1.0
"""A connection that answered nothing for so long while something was asked is given up."""

SILENT_SECONDS = 0.025
"""A server that said something so lately is alive: it is we who are behind with reading, and nobody is failed."""

LATE_SECONDS = 0.01
"""A watch that itself runs so late says that this process was held up, not the server."""

STAMP_BYTES = 8

_HINT = "Is Redis up? `tiering stack status`."


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is and who we are there."""

    host: str
    port: int
    password: SecretStr | None = None
    username: str | None = None
    database: int = 0
    ssl: Any = None
    connect_seconds: float = 0.5

    def at(self, host: str, port: int) -> Address:
        """Another server of the same cluster."""
        return Address(host, port, self.password, self.username, self.database, self.ssl, self.connect_seconds)

    def __str__(self) -> str:
        return f"Redis {self.host}:{self.port}"


@dataclass(slots=True)
class _Pending:
    """What was asked, in order; `count` answers belong to it."""

    future: asyncio.Future[Any]
    count: int
    asked_at: float
    deadline: float
    answers: list[Any] = field(default_factory=list)


class Lane(asyncio.Protocol):
    """One connection, opened when first needed and again after it broke. Belongs to one event loop.

    Args:
        address: of the server.
        epoch: part of the stamp.
        scripts: that the server is to know before anything else is asked.
    """

    def __init__(self, address: Address, epoch: int = 0, scripts: Sequence[bytes] = ()) -> None:
        self.address = address
        self._scripts = scripts
        self.breaker = Breaker()
        self.stamp = bytes(STAMP_BYTES)
        self._incarnation = b"\0\0\0\0"
        self._epoch = epoch
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._reader = hiredis.Reader()
        self._pending: deque[_Pending] = deque()
        self._out: list[bytes] = []
        self._opening: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._watch_at = 0.0
        self._alive_at = 0.0
        self._was_idle = True
        self.is_closed = False

    def __repr__(self) -> str:
        return f"Lane({self.address})"

    def set_epoch(self, epoch: int) -> None:
        """Begin a new epoch: what was stored in an earlier one carries another stamp."""
        self._epoch = epoch
        self.stamp = self._incarnation + (epoch & 0xFFFFFFFF).to_bytes(4, "big")

    @property
    def is_open(self) -> bool:
        """Whether there is a connection now, and it is known to which process."""
        return self._transport is not None and self._opening is None

    # -- asking --------------------------------------------------------------------------------------------

    async def ready(self, seconds: float) -> None:
        """Connect if need be: only then the stamp is that of the server that will answer. Raises as `call`."""
        if self._transport is None or self._opening is not None or self.breaker.is_tripped:
            await self._opened(seconds)

    async def call(self, *words: Any, seconds: float = CALL_SECONDS) -> Any:
        """Send one command and return its answer; an error that the server answers is returned as a value.

        Raises:
            StoreUnavailable: no connection, no answer in time, or the breaker is open. The command may have run.
        """
        if self._transport is None or self.breaker.is_tripped:
            await self._opened(seconds)
        return await self._ask(hiredis.pack_command(words), 1, seconds)

    async def call_many(self, commands: Sequence[tuple[Any, ...]], seconds: float = CALL_SECONDS) -> list[Any]:
        """Send commands together and return their answers in order; as `call`."""
        if self._transport is None or self.breaker.is_tripped:
            await self._opened(seconds)
        answers = await self._ask(b"".join(map(hiredis.pack_command, commands)), len(commands), seconds)
        return answers if len(commands) > 1 else [answers]

    def _ask(self, packed: bytes, count: int, seconds: float) -> asyncio.Future[Any]:
        now = time.monotonic()
        future = self._loop.create_future()
        if self._transport is None:
            raise errors.StoreUnavailable("ask", str(self.address), "the connection broke", _HINT)
        if not self._out:
            self._was_idle = not self._pending
            self._loop.call_soon(self._flush)
        self._out.append(packed)
        self._pending.append(_Pending(future, count, now, now + seconds))
        if self._watch is None:
            self._arm(now, seconds)
        elif now + seconds < self._watch_at - LATE_SECONDS:
            self._watch.cancel()
            self._arm(now, seconds)
        return future

    def _flush(self) -> None:
        if self._was_idle:
            self._alive_at = time.monotonic()  # the server's time begins now, not when we began to be busy
        if self._transport is not None and self._out:
            self._transport.write(b"".join(self._out) if len(self._out) > 1 else self._out[0])
        self._out.clear()

    # -- the connection ------------------------------------------------------------------------------------

    async def _opened(self, seconds: float) -> None:
        if self.is_closed:
            raise errors.StoreUnavailable("ask", str(self.address), "the client is closed")
        if self._opening is None:
            if not self.breaker.allows(time.monotonic()):
                raise errors.StoreUnavailable("ask", str(self.address), "it failed a moment ago and rests", _HINT)
            if self._transport is not None:
                return  # connected, but it did not answer lately: this call is the trial
            self._opening = self._loop.create_task(self._open())
        # Whoever gives up waiting leaves the opening to the others.
        try:
            async with Patience(max(seconds, self.address.connect_seconds)):
                await asyncio.shield(self._opening)
        except TimeoutError:
            raise errors.StoreUnavailable("connect", str(self.address), "no answer in time", _HINT) from None

    async def _open(self) -> None:
        address = self.address
        try:
            async with Patience(address.connect_seconds):
                self._reader = hiredis.Reader()
                await self._loop.create_connection(lambda: self, address.host, address.port, ssl=address.ssl)
                await self._greet()
        except (OSError, TimeoutError, errors.StoreUnavailable) as exc:
            self._lose(f"{type(exc).__name__}: {exc}" if str(exc) else "no answer in time")
            self.breaker.failed(time.monotonic())
            raise errors.StoreUnavailable("connect", str(address), str(exc) or "no answer in time", _HINT) from exc
        except errors.TieringError:
            self._lose("refused")
            raise
        finally:
            self._opening = None
        self.breaker.succeeded()

    async def _greet(self) -> None:
        """Log in, and learn which process this is: a server that was restarted or promoted is another one."""
        address = self.address
        commands: list[tuple[Any, ...]] = []
        if address.password is not None:
            secret = address.password.get_secret_value()
            commands.append(("AUTH", address.username, secret) if address.username else ("AUTH", secret))
        if address.database:
            commands.append(("SELECT", address.database))
        commands.append(("INFO", "server"))
        packed = b"".join(map(hiredis.pack_command, [*commands, *(("SCRIPT", "LOAD", one) for one in self._scripts)]))
        answers = await self._ask(packed, len(commands) + len(self._scripts), address.connect_seconds)
        # Scripts that it will not take now are given again when they are used.
        answers = answers[: len(commands)] if len(commands) + len(self._scripts) > 1 else [answers]
        for answer in answers:
            if isinstance(answer, Exception):
                text = str(answer)
                if text.startswith(("WRONGPASS", "NOAUTH", "NOPERM", "ERR AUTH")):
                    raise errors.AccessDenied("connect", str(address), text, "Check the password in TIERING_REDIS_URL.")
                raise errors.StoreUnavailable("connect", str(address), text, _HINT)
        for line in bytes(answers[-1]).split(b"\r\n"):
            if line.startswith(b"run_id:"):
                self._incarnation = hashlib.sha256(line).digest()[:4]
        self.set_epoch(self._epoch)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport (asyncio calls this)."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand answers to those who asked, in order (asyncio calls this)."""
        reader, pending = self._reader, self._pending
        reader.feed(data)
        self._alive_at = time.monotonic()
        while pending:
            answer = reader.gets()
            if answer is False:
                return
            first = pending[0]
            if first.count > 1:
                first.answers.append(answer)
                if len(first.answers) < first.count:
                    continue
                answer = first.answers
            pending.popleft()
            if not first.future.done():
                first.future.set_result(answer)
        self.breaker.succeeded()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who waits (asyncio calls this)."""
        if self._transport is not None:
            self._lose(str(exc) if exc else "the server closed the connection")

    def _lose(self, cause: str) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        self._out.clear()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        waiting, self._pending = self._pending, deque()
        for pending in waiting:
            if not pending.future.done():
                pending.future.set_exception(errors.StoreUnavailable("ask", str(self.address), cause, _HINT))

    # -- time ----------------------------------------------------------------------------------------------

    def _arm(self, now: float, seconds: float) -> None:
        self._watch_at = now + seconds
        self._watch = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """Fail what waited too long. One timer for all that is asked: a timer each would cost more than the GET."""
        self._watch = None
        now = time.monotonic()
        if not self._pending:
            return
        if now - self._watch_at > LATE_SECONDS:
            self._arm(now, LATE_SECONDS / 2)  # the answers may be here, unread: look at them first
            return
        if now - self._alive_at < SILENT_SECONDS:
            self._arm(now, SILENT_SECONDS)
            return
        oldest = self._pending[0]
        has_failed = False
        for pending in self._pending:
            if pending.deadline <= now and not pending.future.done():
                has_failed = True
                pending.future.set_exception(
                    errors.StoreUnavailable("ask", str(self.address), "no answer in time", _HINT)
                )
        if has_failed:
            self.breaker.failed(now)
        if now - oldest.asked_at > max(DEAD_SECONDS, oldest.deadline - oldest.asked_at):
            self._lose("no answer in time")
            return
        waiting = [pending.deadline for pending in self._pending if not pending.future.done()]
        self._arm(now, max(min(waiting, default=now + DEAD_SECONDS / 4) - now, 0.001))

    def close(self) -> None:
        """Close the connection for good."""
        self.is_closed = True
        if self._opening is not None:
            self._opening.cancel()
        self._lose("the client is closed")
