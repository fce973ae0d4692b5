"""Cold rows take their time: who asks gets a ticket, and is told when the answer is there.

A ticket resolves by waiting, by callback, or by a message on its channel in Redis; its state and, up to ANSWER_BYTES,
its answer stand in the cache for an hour, so that another process may ask for them by the ticket's id. Rows in deep
archive are asked back by `ops/archive`; the ticket says when they are expected, and tries again then.
The query runs in a thread: `ops/query` joins all tiers, each row once. Equal questions share a ticket.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from io import BytesIO
from typing import Any
from uuid import UUID

import pyarrow as pa

from tiering import errors
from tiering.access.codec import decode, encode
from tiering.access.ranges import Range
from tiering.model import Policies
from tiering.ops.query import query
from tiering.settings import Settings
from tiering.stores.cache import Cache
from tiering.stores.cache_entries import VALUE, pack_header
from tiering.stores.opening import Stores, open_stores

KEPT_SECONDS = 3600
ANSWER_BYTES = 8 << 20
AGAIN_SECONDS_MAX = 300.0
LANES = 2
"""Cold queries at once in one client: each may take a core and half a gigabyte."""


class TicketState(StrEnum):
    """Where the answer is."""

    WORKING = "working"
    READY = "ready"
    ARCHIVED = "archived"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TicketStatus:
    """What is known of a ticket.

    Attributes:
        ready_about: of an ARCHIVED one: when its rows are expected back, as far as that is known.
        row_count: of a READY one.
        problem: of a FAILED one.
    """

    state: TicketState
    ready_about: datetime | None = None
    row_count: int = 0
    problem: str = ""


class Ticket:
    """An answer on its way. Made by `Access.fetch`."""

    def __init__(self, number: str) -> None:
        self.id = number
        self.channel = f"tiering:ticket:{number}"
        self.status = TicketStatus(TicketState.WORKING)
        self._done: asyncio.Future[pa.Table] = asyncio.get_running_loop().create_future()
        self._told: asyncio.Event = asyncio.Event()
        self._callbacks: list[Callable[[Ticket], None]] = []

    def __repr__(self) -> str:
        return f"Ticket({self.id}, {self.status.state})"

    def on_ready(self, callback: Callable[[Ticket], None]) -> None:
        """Call back when the answer is there or has failed: at once where that is so already."""
        if self._done.done():
            callback(self)
        else:
            self._callbacks.append(callback)

    async def result(self, seconds: float = 30.0) -> pa.Table:
        """Wait for the answer.

        Raises:
            TimedOut: not within so long; the ticket goes on.
            InDeepArchive: rows must be restored first; it says when that is expected. The ticket goes on.
            TieringError: what went wrong.
        """
        waiting = {asyncio.ensure_future(asyncio.shield(self._done)), asyncio.ensure_future(self._told.wait())}
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
        if self._done.done():
            return self._done.result()
        if self.status.state is TicketState.ARCHIVED:
            raise errors.InDeepArchive(
                "read", self.id, "rows must be restored from deep archive", "The ticket resolves when they are back.",
                is_requested=True, ready_about=self.status.ready_about,
            )  # fmt: skip
        raise errors.TimedOut("read", self.id, f"no answer within {seconds:g} s", "Wait for the ticket again.")

    def note(self, status: TicketStatus, answer: pa.Table | None = None, error: Exception | None = None) -> None:
        """Take note of what became of it."""
        self.status = status
        if status.state is TicketState.ARCHIVED:
            self._told.set()
        if self._done.done():
            return
        if answer is not None:
            self._done.set_result(answer)
        elif error is not None:
            self._done.set_exception(error)
            self._done.exception()  # nobody need be waiting
        else:
            return
        for callback in self._callbacks:
            callback(self)


class Tickets:
    """The cold read path. Belongs to one event loop."""

    def __init__(self, settings: Settings, policies: Policies, cache: Cache) -> None:
        self._settings, self._policies, self._cache = settings, policies, cache
        self._threads = ThreadPoolExecutor(LANES, thread_name_prefix="cold")
        self._stack = contextlib.ExitStack()
        self._stores: Stores | None = None
        self._open: dict[str, Ticket] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def fetch(self, asked: Range) -> Ticket:
        """Begin to fetch a range from every tier it is in; share the ticket of an equal question under way."""
        ticket = self._open.get(asked.digest)
        if ticket is None:
            ticket = self._open[asked.digest] = Ticket(secrets.token_hex(8))
            task = asyncio.get_running_loop().create_task(self._work(ticket, asked))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return ticket

    async def _work(self, ticket: Ticket, asked: Range) -> None:
        try:
            await self._tell(ticket, TicketStatus(TicketState.WORKING))
            while True:
                try:
                    table = await asyncio.get_running_loop().run_in_executor(self._threads, self._query, asked)
                except errors.InDeepArchive as exc:
                    status = TicketStatus(TicketState.ARCHIVED, exc.ready_about)
                    ticket.note(status)
                    await self._tell(ticket, status)
                    left = (exc.ready_about - datetime.now(UTC)).total_seconds() if exc.ready_about else 60.0
                    await asyncio.sleep(min(max(left, 1.0), AGAIN_SECONDS_MAX))
                    continue
                break
            await self._keep(ticket, table)
            status = TicketStatus(TicketState.READY, row_count=table.num_rows)
            await self._tell(ticket, status)
            ticket.note(status, answer=table)
        except errors.TieringError as exc:
            status = TicketStatus(TicketState.FAILED, problem=str(exc))
            await self._tell(ticket, status)
            ticket.note(status, error=exc)
        finally:
            self._open.pop(asked.digest, None)

    def _query(self, asked: Range) -> pa.Table:
        if self._stores is None:
            self._stores = self._stack.enter_context(open_stores(self._settings, self._policies))
        dataset = self._policies.dataset(asked.dataset)
        assert dataset is not None
        return query(self._stores, as_sql(asked, dataset.time_column), now=datetime.now(UTC))

    async def _tell(self, ticket: Ticket, status: TicketStatus) -> None:
        """Write the state down for other processes, and publish it. Without Redis, waiting and callbacks still do."""
        content = encode([str(status.state), status.ready_about, status.row_count, status.problem])
        with contextlib.suppress(errors.StoreUnavailable):
            await self._put(f"ticket:{ticket.id}", content)
            await self._cache.publish(ticket.channel, str(status.state).encode())

    async def _keep(self, ticket: Ticket, table: pa.Table) -> None:
        if table.nbytes <= ANSWER_BYTES:
            buffer = BytesIO()
            with pa.ipc.new_stream(buffer, table.schema) as writer:
                writer.write_table(table)
            with contextlib.suppress(errors.StoreUnavailable):
                await self._put(f"ticket:{ticket.id}:rows", buffer.getvalue())

    async def _put(self, key: str, content: bytes) -> None:
        until = time.time() + KEPT_SECONDS
        await self._cache.put(key, lambda stamp: pack_header(VALUE, stamp, until) + content, KEPT_SECONDS * 1000)

    async def poll(self, number: str) -> TicketStatus:
        """Ask for the state of a ticket by its id, in whichever process it was made.

        Raises:
            NotFound: no such ticket, or it is older than an hour.
            StoreUnavailable: the cache does not answer.
        """
        found = await self._cache.get(f"ticket:{number}")
        if found.state != VALUE:
            raise errors.NotFound("poll", number, "no such ticket", "They are kept for an hour.")
        state, *rest = decode(found.payload)
        return TicketStatus(TicketState(state), *rest)

    async def collect(self, number: str) -> pa.Table:
        """Take the answer of a READY ticket by its id, in whichever process; raises as `poll`."""
        found = await self._cache.get(f"ticket:{number}:rows")
        if found.state != VALUE:
            raise errors.NotFound("collect", number, "no answer is kept", "It is not ready, too big, or an hour old.")
        return pa.ipc.open_stream(found.payload).read_all()

    def close(self) -> None:
        """End the work; a query that runs in a thread ends by itself."""
        for task in list(self._tasks):
            task.cancel()
        for ticket in self._open.values():
            closed = errors.StoreUnavailable("read", ticket.id, "the client is closed")
            ticket.note(TicketStatus(TicketState.FAILED, problem="closed"), error=closed)
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._stack.close()


def as_sql(asked: Range, time_column: str) -> str:
    """Write a question as DuckDB's SQL, for ops/query."""

    def name(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    tests = [
        f"{name(time_column)} >= {_literal(asked.begin)}",
        f"{name(time_column)} < {_literal(asked.end)}",
        *(f"{name(column)} IN ({', '.join(map(_literal, values)) or 'NULL'})" for column, values in asked.where),
    ]
    columns = ", ".join(map(name, asked.columns)) or "*"
    order = f"ORDER BY {name(time_column)}{' DESC' if asked.newest_first else ''}"
    limit = f" LIMIT {int(asked.limit)}" if asked.limit else ""
    return f"SELECT {columns} FROM {name(asked.dataset)} WHERE {' AND '.join(tests)} {order}{limit}"


def _literal(value: Any) -> str:
    """Write a value as SQL; text doubles its quotes, and DuckDB knows no other escape."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int) or (isinstance(value, Decimal) and value.is_finite()):
        return str(value)
    if isinstance(value, datetime):
        return f"TIMESTAMPTZ '{value.astimezone(UTC).isoformat()}'"
    if isinstance(value, str | float | UUID | Decimal):
        text = "'" + str(value).replace("'", "''") + "'"
        return f"CAST({text} AS DOUBLE)" if isinstance(value, float) else text
    raise errors.PermanentError("read", type(value).__name__, "cannot be compared with")
