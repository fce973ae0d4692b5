"""COPY through libpq's C functions, on a connection that psycopg2 has opened.

psycopg2 keeps authentication, TLS and settings; the rows never become Python objects. The functions are
those of the very library that psycopg2 has loaded, found through its extension module.

Source: https://www.psycopg.org/docs/connection.html#connection.pgconn_ptr
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
import psycopg2._psycopg
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering.errors import (
    AccessDenied,
    CommitConflict,
    NotFound,
    PermanentError,
    StoreFull,
    StoreUnavailable,
    Throttled,
    TieringError,
    TransientError,
)

_COMMAND_OK, _TUPLES_OK, _COPY_OUT, _COPY_IN = 1, 2, 3, 4
_CONNECTION_OK = 0
_SQLSTATE = ord("C")
_PRIMARY = ord("M")

_lib = ctypes.CDLL(psycopg2._psycopg.__file__)
_pointer, _text, _int = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int


def _function(name: str, result: object, *arguments: object) -> ctypes._NamedFuncPointer:
    function = getattr(_lib, name)
    function.restype, function.argtypes = result, arguments
    return function  # type: ignore[no-any-return]


_exec = _function("PQexec", _pointer, _pointer, _text)
_result_status = _function("PQresultStatus", _int, _pointer)
_result_field = _function("PQresultErrorField", _text, _pointer, _int)
_command_tuples = _function("PQcmdTuples", _text, _pointer)
_get_result = _function("PQgetResult", _pointer, _pointer)
_clear = _function("PQclear", None, _pointer)
_status = _function("PQstatus", _int, _pointer)
_error_message = _function("PQerrorMessage", _text, _pointer)
_put_copy_data = _function("PQputCopyData", _int, _pointer, _pointer, _int)
_put_copy_end = _function("PQputCopyEnd", _int, _pointer, _text)

GET_COPY_DATA: int = ctypes.cast(_lib.PQgetCopyData, _pointer).value or 0
FREE: int = ctypes.cast(_lib.PQfreemem, _pointer).value or 0

_FAMILIES: tuple[tuple[str, type[TieringError]], ...] = (
    ("08", StoreUnavailable),
    ("57P", StoreUnavailable),
    ("57014", TransientError),  # query_canceled: a timeout or an operator
    ("40", CommitConflict),
    ("55P03", TransientError),  # lock_not_available
    ("53100", StoreFull),
    ("53", Throttled),
    ("42501", AccessDenied),
    ("28", AccessDenied),
    ("42P01", NotFound),
    ("42703", NotFound),
    ("3F", NotFound),
)


def error_of(sqlstate: str, message: str, operation: str, subject: str) -> TieringError:
    """Choose our error for a SQLSTATE; no SQLSTATE at all means that the connection broke."""
    cause = " ".join(message.split()) or "the connection broke"
    if not sqlstate:
        return StoreUnavailable(
            operation, subject, cause, "Check that PostgreSQL is up; the next run goes on from here."
        )
    for prefix, family in _FAMILIES:
        if sqlstate.startswith(prefix):
            return family(operation, subject, f"{cause} (SQLSTATE {sqlstate})")
    return PermanentError(operation, subject, f"{cause} (SQLSTATE {sqlstate})")


@contextmanager
def mapped(operation: str, subject: str) -> Iterator[None]:
    """Turn psycopg2's exceptions into ours."""
    try:
        yield
    except psycopg2.InterfaceError as exc:
        raise StoreUnavailable(operation, subject, str(exc)) from exc
    except psycopg2.Error as exc:
        raise error_of(exc.pgcode or "", exc.pgerror or str(exc), operation, subject) from exc


class CopyStream:
    """One COPY in progress. Leave it by `finish`; `copying` closes the connection on any other way out.

    Args:
        connection: an open psycopg2 connection; nobody else may use it meanwhile.
        operation, subject: for errors.
    """

    def __init__(self, connection: Connection, operation: str, subject: str) -> None:
        self.address: int = connection.pgconn_ptr or 0
        self.operation = operation
        self.subject = subject
        self.is_done = False

    def start(self, statement: str, is_out: bool) -> None:
        """Send the COPY statement.

        Raises:
            TieringError: the server refused it, or is gone.
        """
        result = _exec(self.address, statement.encode())
        wanted = _COPY_OUT if is_out else _COPY_IN
        try:
            if _result_status(result) != wanted:
                raise self.error(result)
        finally:
            _clear(result)

    def put(self, address: int, length: int) -> None:
        """Send bytes of a COPY IN stream, in pieces that libpq takes.

        Raises:
            StoreUnavailable: the connection broke.
        """
        piece = 1 << 30
        for begin in range(0, length, piece):
            if _put_copy_data(self.address, address + begin, min(piece, length - begin)) != 1:
                raise self.error(None)

    def end_input(self) -> None:
        """Say that a COPY IN stream is complete.

        Raises:
            StoreUnavailable: the connection broke.
        """
        if _put_copy_end(self.address, None) != 1:
            raise self.error(None)

    def finish(self) -> int:
        """Wait for the command to complete and give the rows that the server counted.

        Raises:
            TieringError: the command failed, even if only at its end.
        """
        rows: int | None = None
        failure: TieringError | None = None
        while result := _get_result(self.address):
            try:
                if _result_status(result) in (_COMMAND_OK, _TUPLES_OK):
                    rows = int(_command_tuples(result) or b"0")
                else:
                    failure = failure or self.error(result)
                    if _result_status(result) in (_COPY_OUT, _COPY_IN):
                        break  # still streaming: only closing the connection ends it
            finally:
                _clear(result)
        if failure is None and (rows is None or _status(self.address) != _CONNECTION_OK):
            failure = self.error(None)
        if failure is not None:
            raise failure
        self.is_done = True
        assert rows is not None  # else `failure` was set
        return rows

    def error(self, result: int | None) -> TieringError:
        """Make our error from a result, or from the connection when there is none."""
        state = _result_field(result, _SQLSTATE) if result else None
        is_broken = _status(self.address) != _CONNECTION_OK
        message = (_result_field(result, _PRIMARY) if result and state else None) or _error_message(self.address)
        sqlstate = "" if is_broken and not state else (state or b"").decode()
        return error_of(sqlstate, (message or b"").decode(errors="replace"), self.operation, self.subject)


@contextmanager
def copying(
    connection: Connection, statement: sql.Composable, is_out: bool, operation: str, subject: str
) -> Iterator[CopyStream]:
    """Run one COPY with PostgreSQL's text output set so that it can be read back exactly.

    The connection is left usable after success and closed after anything else, an abandoned iterator included.

    Raises:
        TieringError: psycopg2's or libpq's failure, mapped.
    """
    with mapped(operation, subject):
        prepare_session(connection)
        text = statement.as_string(connection)
    stream = CopyStream(connection, operation, subject)
    try:
        stream.start(text, is_out)
        yield stream
    finally:
        if not stream.is_done:
            connection.close()


def prepare_session(connection: Connection) -> None:
    """Fix the settings that a value's text form depends on: exact, in UTC, the same on every server."""
    settings = {
        "client_encoding": "UTF8",
        "TimeZone": "UTC",
        "DateStyle": "ISO, YMD",
        "IntervalStyle": "postgres",
        "extra_float_digits": "3",
        "bytea_output": "hex",
        "lc_monetary": "C",
    }
    calls = [sql.SQL("set_config({}, {}, false)").format(sql.Literal(k), sql.Literal(v)) for k, v in settings.items()]
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("SELECT {}").format(sql.SQL(", ").join(calls)))
