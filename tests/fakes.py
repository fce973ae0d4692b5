"""Wrappers around real stores that count the calls made to them and strike at a chosen one.

No fake answers: every call goes through to the real store. The wire is told of each call before its effect and
after it, so that whoever dies there dies with the request lost, or with the reply lost.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from tiering.stores.ledger import Ledger
from tiering.stores.opening import Stores

PURE = {"location", "key", "bucket", "metadata_prefix", "close"}
"""Attributes of stores that reach no server."""

BEFORE, AFTER = "before", "after"


def kill_self() -> None:
    """End this process as a power cut would: no handler, no finally, no goodbye to any server."""
    os.kill(os.getpid(), signal.SIGKILL)


class Tripwire:
    """Counts store calls once armed; strikes at the `at`-th, before its effect or after it.

    Args:
        strike: what to do there.
        statements: count every SQL statement as a call too.

    Attributes:
        work: what the calls are made for, as whoever makes them says.
        calls: work and name of every call.
        struck: work, name and phase of the call that it strikes at, once it does.
    """

    def __init__(self, strike: Callable[[], None] = kill_self, *, statements: bool = False) -> None:
        self.statements = statements
        self.work = ""
        self.calls: list[tuple[str, str]] = []
        self.struck: tuple[str, str, str] | None = None
        self._strike = strike
        self._at: int | None = None
        self._after = False
        self._name: tuple[str, str] | None = None
        self._counts: Counter[tuple[str, str]] = Counter()
        self._is_armed = False
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """The names of all calls so far."""
        return [name for _, name in self.calls]

    def arm(self, at: int | None, *, after: bool = False, name: tuple[str, str] | None = None) -> None:
        """Begin to count; `at` None only counts. With the work and name of a call: the `at`-th one of these."""
        self._at, self._after, self._name, self._is_armed = at, after, name, True

    def enter(self, name: str) -> Callable[[], None]:
        """Tell of a call before its effect; call what this returns after it."""
        with self._lock:
            if not self._is_armed:
                return _nothing
            call = (self.work, name)
            self.calls.append(call)
            self._counts[call] += 1
            if self._name is None:
                strikes = len(self.calls) == self._at
            else:
                strikes = call == self._name and self._counts[call] == self._at
        if strikes and self._after:
            return lambda: self._strike_at(*call, AFTER)
        if strikes:
            self._strike_at(*call, BEFORE)
        return _nothing

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Surround one store call."""
        leave = self.enter(name)
        yield
        leave()

    def _strike_at(self, work: str, name: str, phase: str) -> None:
        self.struck = (work, name, phase)
        self._strike()


def _nothing() -> None:
    """Follow a call at which nobody is struck."""


class Wired:
    """Any store: every method is a call on the wire."""

    def __init__(self, inner: Any, name: str, wire: Tripwire) -> None:
        self._inner, self._name, self._wire = inner, name, wire

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._inner, attribute)
        if attribute in PURE or not callable(found):
            return found

        def through(*args: Any, **kwargs: Any) -> Any:
            with self._wire.call(f"{self._name}.{attribute}"):
                return found(*args, **kwargs)

        return through


class WiredPostgres(Wired):
    """A database: connecting, beginning and committing are calls; on a fine wire, every statement is."""

    def connect(self, operation: str = "connect") -> Connection:
        # A lease names its move, which is another one each time; the kind of call is the same.
        with self._wire.call(f"{self._name}.connect {operation.split()[0]}"):
            return self._listening(self._inner.connect(operation))

    @contextmanager
    def transaction(self, operation: str, subject: str, **options: Any) -> Iterator[Connection]:
        manager = self._inner.transaction(operation, subject, **options)
        with self._wire.call(f"{self._name}.begin {operation}"):
            connection = manager.__enter__()
        try:
            yield self._listening(connection)
        except BaseException:
            if not manager.__exit__(*sys.exc_info()):
                raise
        else:
            with self._wire.call(f"{self._name}.commit {operation}"):
                manager.__exit__(None, None, None)

    def _listening(self, connection: Connection) -> Connection:
        if self._wire.statements:
            wire, name = self._wire, self._name

            class Listening(Cursor):
                def execute(self, query: Any, vars: Any = None) -> None:
                    with wire.call(f"{name}.execute"):
                        super().execute(query, vars)

                def copy_expert(self, *args: Any, **kwargs: Any) -> None:
                    with wire.call(f"{name}.copy"):
                        super().copy_expert(*args, **kwargs)

            connection.cursor_factory = Listening
        return connection


def wired(stores: Stores, wire: Tripwire) -> Stores:
    """Put every store of a set on one wire."""
    return replace(
        wired_databases(stores, wire),
        lake=Wired(stores.lake, "lake", wire),
        objects=Wired(stores.objects, "objects", wire),
    )


def wired_databases(stores: Stores, wire: Tripwire) -> Stores:
    """Put the databases of a set on one wire, for whoever watches the others' requests themselves."""
    warm = WiredPostgres(stores.warm, "warm", wire)
    hot = warm if stores.hot is stores.warm else WiredPostgres(stores.hot, "hot", wire)
    return replace(stores, hot=hot, warm=warm, ledger=Ledger(warm))  # type: ignore[arg-type]
