"""Arrow → PostgreSQL by binary COPY, and the pump that streams COPY from one PostgreSQL to another."""

from __future__ import annotations

import queue
import re
import secrets
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering.errors import CorruptCopy
from tiering.model import Column, Kind
from tiering.stores import pgcopy_encode as kernel
from tiering.stores.pgcopy_decode import release
from tiering.stores.pgcopy_libpq import FREE, GET_COPY_DATA, CopyStream, copying, mapped
from tiering.stores.pgcopy_matrix import Matrix
from tiering.stores.pgcopy_read import Relation, identify

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_ENCODE_ROWS = 16_384
_CHUNK_BYTES = 1 << 20
_CHUNKS = 4

_PUT: dict[Kind, int] = {
    Kind.BOOL: kernel.PUT_1,
    Kind.INT2: kernel.PUT_2,
    Kind.INT4: kernel.PUT_4,
    Kind.FLOAT4: kernel.PUT_4,
    Kind.DATE: kernel.PUT_4,
    Kind.INT8: kernel.PUT_8,
    Kind.FLOAT8: kernel.PUT_8,
    Kind.TIMESTAMP: kernel.PUT_8,
    Kind.TIMESTAMPTZ: kernel.PUT_8,
    Kind.DECIMAL: kernel.PUT_NUMERIC,
}
# Types whose binary form is their text; every other EXACT_TEXT is cast by PostgreSQL from a staging table.
_TEXT_ON_WIRE = re.compile(r"json|xml|character(\(\d+\))?")


def write_rows(
    connection: Connection, table: Relation, columns: Sequence[Column], batches: Iterable[pa.RecordBatch]
) -> int:
    """Insert batches (as read from a lake file, `_exact` included) into a table, exactly as they once were.

    Runs in the caller's transaction, or opens one; never commits.

    Args:
        connection: not in autocommit mode; closed on failure, so that its transaction is gone.
        table: has at least `columns`, with their PostgreSQL types.
        columns: what to write; others get their defaults.
        batches: of `batch_schema` or `arrow_schema`; consumed once.

    Returns:
        The rows written, as counted by the server and by us.

    Raises:
        TieringError: the server refused a row or is gone, or a batch does not fit `columns`.
    """
    if all(_is_direct(c) for c in columns):
        return _copy_in(connection, table, columns, batches)
    with mapped("write", "staging table"):
        stage = _create_stage(connection, table, columns)
    count = _copy_in(connection, stage, [_staged(c) for c in columns], batches)
    subject = identify(table).as_string(connection)
    try:
        with mapped("write", subject), connection.cursor() as cursor:
            cursor.execute(_insert_from(stage, table, columns))
            inserted = cursor.rowcount
            cursor.execute(sql.SQL("DROP TABLE {}").format(stage))
    except BaseException:
        connection.close()
        raise
    if inserted != count:
        connection.close()
        raise CorruptCopy("write", subject, f"{inserted} rows inserted of {count}")
    return count


def _is_direct(column: Column) -> bool:
    is_text = column.kind is Kind.EXACT_TEXT
    return not is_text or column.pg_type == "jsonb" or _TEXT_ON_WIRE.fullmatch(column.pg_type) is not None


def _staged(column: Column) -> Column:
    """Give the column as the staging table has it."""
    return column if _is_direct(column) else Column(column.name, "text", Kind.TEXT, field_id=column.field_id)


def _create_stage(connection: Connection, table: Relation, columns: Sequence[Column]) -> sql.Identifier:
    """Create a temporary table like the target, with text where PostgreSQL itself must parse the value."""
    stage = sql.Identifier(f"tiering_rows_{secrets.token_hex(6)}")
    empty = sql.SQL("CREATE TEMPORARY TABLE {} AS SELECT {} FROM {} WHERE false").format(
        stage,
        sql.SQL(", ").join(
            sql.SQL("{0}" if _is_direct(c) else "{0}::text AS {0}").format(sql.Identifier(c.name)) for c in columns
        ),
        identify(table),
    )
    with connection.cursor() as cursor:
        cursor.execute(empty)
    return stage


def _insert_from(stage: sql.Identifier, table: Relation, columns: Sequence[Column]) -> sql.Composable:
    # pg_type is format_type() output, already quoted by PostgreSQL.
    values = sql.SQL(", ").join(
        sql.SQL("{}").format(sql.Identifier(c.name))
        if _is_direct(c)
        else sql.SQL("{}::" + c.pg_type).format(sql.Identifier(c.name))
        for c in columns
    )
    return sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}").format(
        identify(table), _names(columns), values, stage
    )


def _names(columns: Sequence[Column]) -> sql.Composable:
    return sql.SQL(", ").join(sql.Identifier(c.name) for c in columns)


def _copy_in(
    connection: Connection, table: Relation, columns: Sequence[Column], batches: Iterable[pa.RecordBatch]
) -> int:
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(identify(table), _names(columns))
    count = 0
    with copying(connection, statement, False, "write", identify(table).as_string(connection)) as stream:
        encoder = _Encoder(columns)
        _put_bytes(stream, _HEADER)
        for batch in batches:
            for begin in range(0, batch.num_rows, _ENCODE_ROWS):
                part = batch.slice(begin, _ENCODE_ROWS)
                size = encoder.encode(part)
                stream.put(encoder.out.ctypes.data, size)
                count += part.num_rows
        _put_bytes(stream, _TRAILER)
        stream.end_input()
        counted = stream.finish()
        if counted != count:
            stream.is_done = False  # closes the connection: nothing of this may be committed
            raise CorruptCopy("write", stream.subject, f"{counted} rows arrived of {count} that were sent")
    return count


def _put_bytes(stream: CopyStream, data: bytes) -> None:
    buffer = np.frombuffer(data, np.uint8)
    stream.put(buffer.ctypes.data, len(data))


class _Encoder:
    """Batches into COPY bytes, in a buffer that grows to the widest batch."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = tuple(columns)
        self.put = np.array([_put_of(c) for c in columns], np.int64)
        self.scale = np.array([c.scale for c in columns], np.int64)
        self.out = np.empty(_CHUNK_BYTES, np.uint8)

    def encode(self, batch: pa.RecordBatch) -> int:
        matrix = Matrix(batch, self.columns)
        is_bytes = self.put >= kernel.PUT_BYTES
        room = batch.num_rows * (2 + len(self.columns) * (5 + kernel.NUMERIC_BYTES_MAX))
        room += int(matrix.extra[is_bytes].sum())
        if room > self.out.size:
            self.out = np.empty(room, np.uint8)
        size: int = kernel.encode_rows(self.put, self.scale, matrix.values, matrix.extra, matrix.state, self.out)
        return size


def _put_of(column: Column) -> int:
    return kernel.PUT_JSONB if column.pg_type == "jsonb" else _PUT.get(column.kind, kernel.PUT_BYTES)


def pump(
    source: Connection,
    source_table: Relation,
    target: Connection,
    target_table: Relation,
    columns: Sequence[Column],
) -> tuple[int, int]:
    """Stream a table from one PostgreSQL into another by binary COPY, reading and writing overlapped.

    The target's transaction is the caller's to commit. Both tables must have the columns with equal types.

    Returns:
        Rows, as both servers count them, and bytes of the stream.

    Raises:
        TieringError: either side failed; both connections are closed then, so nothing can be committed.
    """
    names = _names(columns)
    read = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT (FORMAT binary)").format(names, identify(source_table))
    write = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(identify(target_table), names)
    source_subject = identify(source_table).as_string(source)
    target_subject = identify(target_table).as_string(target)
    with (
        copying(target, write, False, "pump into", target_subject) as sink,
        copying(source, read, True, "pump from", source_subject) as tap,
    ):
        chunks = _Chunks(tap)
        total = 0
        try:
            for chunk, size in chunks:
                sink.put(chunk.ctypes.data, size)
                total += size
                chunks.give_back(chunk)
        finally:
            chunks.close()
        sent = tap.finish()
        sink.end_input()
        arrived = sink.finish()
        if sent != arrived:
            sink.is_done = False
            raise CorruptCopy("pump into", target_subject, f"{arrived} rows arrived of {sent}")
    return arrived, total


class _Chunks:
    """A thread that fetches a COPY OUT stream into a ring of chunks; iterate to get them in order."""

    def __init__(self, tap: CopyStream) -> None:
        self._tap = tap
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(_CHUNKS):
            self._free.put(np.empty(_CHUNK_BYTES, np.uint8))
        self._thread = threading.Thread(target=self._fetch, name="pump", daemon=True)
        self._thread.start()

    def __iter__(self) -> Any:
        while (item := self._full.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def give_back(self, chunk: Any) -> None:
        """Let a chunk be filled again."""
        self._free.put(chunk)

    def close(self) -> None:
        """Stop the thread, after the chunk it is filling."""
        self._free.put(None)
        self._thread.join()

    def _fetch(self) -> None:
        state, pointer = np.zeros(3, np.int64), np.zeros(1, np.int64)
        try:
            while (chunk := self._free.get()) is not None:
                if state[kernel.LENGTH] > chunk.size:
                    chunk = np.empty(int(state[kernel.LENGTH]), np.uint8)
                outcome = kernel.fill_chunk(GET_COPY_DATA, FREE, self._tap.address, pointer, state, chunk)
                if outcome < 0:
                    raise self._tap.error(None)
                if state[kernel.BYTES]:
                    self._full.put((chunk, int(state[kernel.BYTES])))
                else:
                    self._free.put(chunk)
                if outcome == 0:
                    break
            self._full.put(None)
        except BaseException as exc:
            self._full.put(exc)
        finally:
            if state[kernel.BUFFER]:
                release(FREE, int(state[kernel.BUFFER]))
