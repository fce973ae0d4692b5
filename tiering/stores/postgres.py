"""Reach PostgreSQL: pooled connections with one fixed session, transactions, and driver errors in our words.

Does not: know a table. `tables.py`, `warm.py` and `ledger.py` hold the statements.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import psycopg2
import sqlalchemy
import sqlalchemy.exc
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import parse_dsn
from pydantic import SecretStr
from sqlalchemy.pool import QueuePool

from tiering import errors

# Text forms and hashes of values must not depend on who asks: every session is pinned to the same settings.
SESSION = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "client_encoding": "UTF8",
    "synchronous_commit": "on",
    # The server's own keepalives: the lease of a host that vanished must not last until TCP gives up, in hours.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "statement_timeout": "2h",  # Prefect's time-outs cannot interrupt a driver: a hung server must not hold a run
    "jit": "off",  # our scans are short; compiling them costs more than it saves
}

LOCK_TIMEOUT_MS = 2000
"""Longest that a move may queue for a lock: while it queues, everybody behind it waits too."""

_BY_CODE: tuple[tuple[str, type[errors.TieringError], str], ...] = (
    ("28", errors.AccessDenied, "Check the user and password in the TIERING_*_PG_URL."),
    ("3D000", errors.NotFound, "Create the database, or correct its name in the TIERING_*_PG_URL."),
    ("42501", errors.AccessDenied, "Grant the tiering role the right that the message names."),
    ("42P01", errors.NotFound, "Run `tiering install` to create the tables."),
    ("3F000", errors.NotFound, "Run `tiering install` to create the schemas."),
    ("427", errors.SchemaMismatch, "Compare the table's columns with the ledger's: `tiering fsck`."),
    ("428", errors.SchemaMismatch, "Compare the table's columns with the ledger's: `tiering fsck`."),
    ("53100", errors.StoreFull, "Free space on the PostgreSQL server's disk."),
    ("53", errors.StoreUnavailable, "The server is out of connections or memory; it is tried again."),
    ("55P03", errors.CommitConflict, "A long transaction holds the table; it is tried again."),
    ("40", errors.CommitConflict, "Another transaction was in the way; it is tried again."),
    ("25006", errors.AccessDenied, "The server is read-only: is it a standby?"),
    ("57P", errors.StoreUnavailable, "The server is starting or stopping; it is tried again."),
    ("57014", errors.StoreUnavailable, "The statement was cancelled or timed out; it is tried again."),
    ("58", errors.StoreUnavailable, "The server has a problem of its own; see its log."),
    ("08", errors.StoreUnavailable, "The connection broke; it is tried again."),
    ("XX", errors.PermanentError, "The server reports damage or a bug; see its log before anything else."),
)


@contextlib.contextmanager
def mapped(operation: str, subject: str) -> Iterator[None]:
    """Turn psycopg2's and SQLAlchemy's exceptions into ours, naming the operation and its subject."""
    try:
        yield
    except psycopg2.Error as exc:
        raise translate(exc, operation, subject) from exc
    except sqlalchemy.exc.TimeoutError as exc:
        raise errors.StoreUnavailable(operation, subject, "no free connection in the pool") from exc
    except sqlalchemy.exc.DBAPIError as exc:
        cause = exc.orig if isinstance(exc.orig, psycopg2.Error) else psycopg2.OperationalError(str(exc.orig))
        raise translate(cause, operation, subject) from exc
    except sqlalchemy.exc.SQLAlchemyError as exc:
        raise errors.SettingsError(operation, subject, type(exc).__name__, "Check the TIERING_*_PG_URL.") from exc


def family_of(code: str) -> tuple[type[errors.TieringError], str]:
    """Choose our exception, and its hint, for an SQLSTATE: for every driver that has one."""
    for prefix, family, hint in _BY_CODE:
        if code.startswith(prefix):
            return family, hint
    return errors.PermanentError, "Read the server's message; nothing was changed."


def translate(exc: psycopg2.Error, operation: str, subject: str) -> errors.TieringError:
    """Choose our exception for one of psycopg2's, by SQLSTATE; without one it is the connection's fault.

    Why the password cannot leak: libpq's messages name host, port, user and database only.
    """
    code = exc.pgcode or ""
    detail = " ".join(str(exc).split()) or type(exc).__name__
    for prefix, family, hint in _BY_CODE:
        if code.startswith(prefix):
            return family(operation, subject, detail, hint)
    if code:
        return errors.PermanentError(operation, subject, detail, "Read the server's message; nothing was changed.")
    if isinstance(exc, psycopg2.OperationalError | psycopg2.InterfaceError | psycopg2.DatabaseError):
        if "authentication failed" in detail or "no password supplied" in detail or "no pg_hba.conf" in detail:
            return errors.AccessDenied(operation, subject, detail, _BY_CODE[0][2])
        if 'database "' in detail and "does not exist" in detail:
            return errors.NotFound(operation, subject, detail, _BY_CODE[1][2])
        return errors.StoreUnavailable(operation, subject, detail, "Is the server up? `tiering stack status`.")
    return errors.PermanentError(operation, subject, detail)


class Postgres:
    """One database. Opens no connection until asked; safe to share between threads."""

    def __init__(self, url: SecretStr, name: str) -> None:
        self.name = name
        self.url = url
        self._engine = sqlalchemy.create_engine(
            "postgresql+psycopg2://",
            creator=self._connect,
            poolclass=QueuePool,
            pool_size=4,
            max_overflow=16,
            pool_timeout=30,
            pool_pre_ping=True,
        )

    def __repr__(self) -> str:
        return f"Postgres({self.name})"

    def _connect(self) -> Connection:
        options = " ".join(f"-c {key}={value.replace(' ', chr(92) + ' ')}" for key, value in SESSION.items())
        try:
            dsn = parse_dsn(self.url.get_secret_value())
        except psycopg2.Error:  # its text quotes the URL, password and all
            raise errors.SettingsError(
                "read settings",
                self.name,
                "its URL is malformed",
                "Write postgresql://user:password@host:port/database; in a password write % / @ : as %25 %2F %40 %3A.",
            ) from None
        # our keepalives: a half-dead server must not keep us waiting for ever
        connection: Connection = psycopg2.connect(
            **{
                "connect_timeout": 5,
                "application_name": "tiering",
                "keepalives_idle": 30,
                "keepalives_interval": 10,
                "keepalives_count": 3,
                **dsn,
                "options": f"{dsn.get('options', '')} {options}".strip(),
            }
        )
        return connection

    def connect(self, operation: str = "connect") -> Connection:
        """Open a connection of its own, outside the pool; the caller closes it. For COPY and leases."""
        with mapped(operation, self.name):
            return self._connect()

    @contextlib.contextmanager
    def transaction(
        self, operation: str, subject: str, *, lock_timeout_ms: int | None = None, read_only: bool = False
    ) -> Iterator[Connection]:
        """Run the body in one transaction: commit at its end, roll back when it raises.

        Args:
            operation: for the error message.
            subject: for the error message.
            lock_timeout_ms: give up waiting for a lock after this long (raises CommitConflict).
            read_only: one repeatable snapshot, and the server refuses any write.

        Raises:
            TieringError: the driver's error in our words.
        """
        with mapped(operation, subject):
            pooled = self._engine.raw_connection()
            try:
                raw = cast(Connection, pooled.driver_connection)
                raw.set_session(
                    isolation_level="REPEATABLE READ" if read_only else "READ COMMITTED",
                    # Not False: a URL that says default_transaction_read_only=on must be believed.
                    readonly=True if read_only else "default",
                )
                if lock_timeout_ms is not None:
                    execute(raw, "SELECT set_config('lock_timeout', %s, true)", (f"{lock_timeout_ms}ms",))
                yield raw
                raw.commit()
            except BaseException as exc:
                # The connection may be the very thing that failed: drop it rather than reason about it.
                with contextlib.suppress(psycopg2.Error):
                    raw.rollback()
                if not isinstance(exc, errors.TieringError):
                    pooled.invalidate()
                raise
            finally:
                pooled.close()

    def close(self) -> None:
        """Close idle connections; the object may be used again."""
        self._engine.dispose()


def execute(connection: Connection, statement: str | sql.Composable, arguments: Any = None) -> int:
    """Run one statement; return the number of rows it touched."""
    with connection.cursor() as cursor:
        cursor.execute(statement, arguments)
        return int(cursor.rowcount)


def fetch(connection: Connection, statement: str | sql.Composable, arguments: Any = None) -> list[tuple[Any, ...]]:
    """Run one query; return all its rows."""
    with connection.cursor() as cursor:
        cursor.execute(statement, arguments)
        return list(cursor.fetchall())


def fetch_one(connection: Connection, statement: str | sql.Composable, arguments: Any = None) -> tuple[Any, ...] | None:
    """Run one query; return its first row, or None."""
    with connection.cursor() as cursor:
        cursor.execute(statement, arguments)
        row = cursor.fetchone()
        return None if row is None else tuple(row)


def identifier(qualified: str) -> sql.Identifier:
    """Quote `schema.table` (or `table`) as an identifier."""
    return sql.Identifier(*qualified.split(".", 1))


def names(columns: Sequence[str], prefix: str | None = None) -> sql.Composed:
    """Quote a comma-separated column list, each `prefix.column` if a prefix is given."""
    return sql.SQL(", ").join(sql.Identifier(prefix, c) if prefix else sql.Identifier(c) for c in columns)
