"""Reach PostgreSQL from an event loop: pooled asyncpg connections in our one session, time limits that hold, a breaker.

Why asyncpg beside the prescribed psycopg2: docs/decisions/0015-access-drivers.md.
Does not: know a dataset; statements come in with their identifiers quoted (`quoted`) and their values as $1, $2 …
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg
from psycopg2 import ProgrammingError
from psycopg2.extensions import parse_dsn
from pydantic import SecretStr

from tiering import errors
from tiering.stores.breaker import Breaker
from tiering.stores.patience import Patience
from tiering.stores.postgres import SESSION, family_of

CONNECT_SECONDS = 2.0
POOL_MAX = 16
_UP = "Is the server up? `tiering stack status`."
_DIED = (
    OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError, ConnectionError,
    asyncpg.InternalClientError,  # of a connection that broke in the middle of something
)  # fmt: skip

Result = TypeVar("Result")


def quoted(*names: str) -> str:
    """Quote an identifier, or a qualified one by its parts, as the server itself does it."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


class AsyncPostgres:
    """One database. Opens no connection until asked; belongs to one event loop.

    Args:
        url: postgresql://user:password@host:port/database.
        name: for messages.
        size: connections at most; who comes later waits, within the time it was given.
        statement_seconds: after which the server itself ends a statement; None: as every session of ours.
    """

    def __init__(self, url: SecretStr, name: str, size: int = POOL_MAX, statement_seconds: float | None = None) -> None:
        self.name = name
        self.breaker = Breaker()
        self._url, self._size, self._statement_seconds = url, size, statement_seconds
        self._pool: asyncpg.Pool[Any] | None = None

    def __repr__(self) -> str:
        return f"AsyncPostgres({self.name})"

    async def fetch(self, statement: str, *arguments: Any, seconds: float, subject: str = "") -> list[Any]:
        """Run a query and return its rows.

        Raises:
            TimedOut: no answer in time; the connection is given up, and the server stops when it notices.
            StoreUnavailable: the server is away, or was a moment ago.
            TieringError: the server's own refusal, in our words.
        """
        return await self.run(lambda connection: connection.fetch(statement, *arguments), seconds, "read", subject)

    async def execute(self, statement: str, *arguments: Any, seconds: float, subject: str = "") -> str:
        """Run a statement and return what the server says of it; raises as `fetch`."""
        return str(
            await self.run(lambda connection: connection.execute(statement, *arguments), seconds, "write", subject)
        )

    async def execute_many(
        self, statement: str, rows: Iterable[Sequence[Any]], *, seconds: float, subject: str = ""
    ) -> None:
        """Run a statement for every row, all or nothing; raises as `fetch`."""
        await self.run(lambda connection: connection.executemany(statement, rows), seconds, "write", subject)

    async def run(
        self, work: Callable[[Any], Awaitable[Result]], seconds: float, operation: str, subject: str = ""
    ) -> Result:
        """Give a connection to `work` for so long, and no longer; raises as `fetch`."""
        subject = subject or self.name
        now = time.monotonic()
        if self.breaker.is_tripped and not self.breaker.allows(now):
            raise errors.StoreUnavailable(operation, subject, f"{self.name} failed a moment ago and rests", _UP)
        connection = None
        try:
            async with Patience(seconds):
                pool = self._pool or await self._opened()
                connection = await pool.acquire()
                result = await work(connection)
        except TimeoutError:
            self.breaker.failed(time.monotonic())
            self._give_up(connection)
            raise errors.TimedOut(operation, subject, f"{self.name} gave no answer within {seconds:g} s", _UP) from None
        except asyncpg.PostgresError as exc:
            raise self._translated(exc, operation, subject) from exc
        except _DIED as exc:
            self.breaker.failed(time.monotonic())
            self._give_up(connection)
            raise errors.StoreUnavailable(operation, subject, str(exc) or type(exc).__name__, _UP) from exc
        except asyncio.CancelledError:
            self._give_up(connection)
            raise
        except (ValueError, TypeError) as exc:  # asyncpg.DataError is no PostgresError where the client refuses a value
            raise errors.PermanentError(operation, subject, " ".join(str(exc).split())) from exc
        finally:
            if connection is not None and self._pool is not None:
                await self._pool.release(connection)
        self.breaker.succeeded()
        return result

    @staticmethod
    def _give_up(connection: Any) -> None:
        """Cut a connection whose state is unknown; asking the server to cancel could wait for the same silence."""
        if connection is not None:
            with contextlib.suppress(asyncpg.InterfaceError):
                connection.terminate()

    def _translated(self, exc: asyncpg.PostgresError, operation: str, subject: str) -> errors.TieringError:
        family, hint = family_of(exc.sqlstate or "")
        if issubclass(family, errors.StoreUnavailable):
            self.breaker.failed(time.monotonic())
        else:
            self.breaker.succeeded()
        return family(operation, subject, " ".join(str(exc).split()), hint)

    async def _opened(self) -> asyncpg.Pool[Any]:
        if self._pool is None:
            arguments = connection_arguments(self._url, self.name)
            if self._statement_seconds is not None:
                arguments["server_settings"]["statement_timeout"] = f"{self._statement_seconds * 1000:.0f}"
            pool = asyncpg.create_pool(
                **arguments,
                min_size=0,
                max_size=self._size,
                init=_prepare,
                # Nobody leaves anything behind on our connections: the statement that clears them costs a round trip.
                reset=_nothing_to_reset,
            )
            self._pool = pool
        await self._pool  # asyncpg's own lock: whoever comes meanwhile waits for the same opening
        return self._pool

    @contextlib.asynccontextmanager
    async def listening(self, *channels: str, heard: Callable[[str], None]) -> AsyncIterator[Any]:
        """Hold a connection of its own that listens to channels; `heard` gets the channel's name.

        Raises:
            StoreUnavailable: the server is away.
        """
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await asyncpg.connect(**connection_arguments(self._url, self.name))
        except (TimeoutError, asyncpg.PostgresError, *_DIED) as exc:
            raise errors.StoreUnavailable("listen to", self.name, str(exc) or type(exc).__name__, _UP) from exc
        try:
            for channel in channels:
                await connection.add_listener(channel, lambda _c, _pid, name, _text: heard(name))
            yield connection
        except (TimeoutError, asyncpg.PostgresError, *_DIED) as exc:
            raise errors.StoreUnavailable("listen to", self.name, str(exc) or type(exc).__name__, _UP) from exc
        finally:
            connection.terminate()

    async def close(self) -> None:
        """Close the connections, at once."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.terminate()


async def _prepare(connection: Any) -> None:
    for kind in ("json", "jsonb"):
        await connection.set_type_codec(kind, schema="pg_catalog", encoder=_to_json, decoder=json.loads)


def _to_json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


async def _nothing_to_reset(_connection: Any) -> None:
    pass


def connection_arguments(url: SecretStr, name: str) -> dict[str, Any]:
    """Take a URL apart for asyncpg, with the session that every driver of ours has.

    Raises:
        SettingsError: it is malformed; its text is not shown.
    """
    try:
        parts = parse_dsn(url.get_secret_value())
        urlsplit(url.get_secret_value())
    except (ProgrammingError, ValueError):
        raise errors.SettingsError(
            "read settings", name, "its URL is malformed", "Write postgresql://user:password@host:port/database."
        ) from None
    session = {key: value for key, value in SESSION.items() if key != "client_encoding"}
    arguments: dict[str, Any] = {
        "host": parts.get("host"),
        "port": int(parts["port"]) if "port" in parts else None,
        "user": parts.get("user"),
        "password": parts.get("password"),
        "database": parts.get("dbname"),
        "timeout": CONNECT_SECONDS,
        "server_settings": {**session, "application_name": parts.get("application_name", "tiering-access")},
    }
    if "sslmode" in parts:
        arguments["ssl"] = parts["sslmode"]
    return {key: value for key, value in arguments.items() if value is not None}
