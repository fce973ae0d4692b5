"""PostgreSQL → Arrow: `COPY … TO STDOUT (FORMAT binary)` decoded column by column.

Never a silent short read: the stream's trailer must come, the command must complete, and the server's
row count must be ours; a decoder that meets anything unexpected raises.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering.errors import CorruptCopy, SchemaMismatch, TieringError
from tiering.model import Column, Kind
from tiering.stores import pgcopy_decode as kernel
from tiering.stores.arrow import texts
from tiering.stores.parquet_schema import DECIMAL64_DIGITS_MAX, batch_schema, batch_type
from tiering.stores.pgcopy_exact import exact_json, exact_text
from tiering.stores.pgcopy_libpq import FREE, GET_COPY_DATA, CopyStream, copying, mapped

ROWS_PER_BATCH = 32_768
DICTIONARY_WORDS_MAX = 1 << 15
"""A text column with more distinct values than this is not kept as a dictionary."""
_DICTIONARY_BYTES_MAX = 1 << 21
_HEAP_BYTES = 1 << 20
_SPECIALS_MAX = 8_192

_VARIABLE = (Kind.TEXT, Kind.BYTES, Kind.UUID, Kind.EXACT_TEXT)
_NARROW: dict[Kind, Any] = {
    Kind.INT2: np.int32,
    Kind.INT4: np.int32,
    Kind.FLOAT4: np.int32,
    Kind.DATE: np.int32,
}

Relation: TypeAlias = str | tuple[str, ...] | sql.Composable


def identify(relation: Relation) -> sql.Composable:
    """Quote a relation: a name, a (schema, name) pair, or SQL that is safe already."""
    if isinstance(relation, sql.Composable):
        return relation
    return sql.Identifier(*(relation if isinstance(relation, tuple) else (relation,)))


def select_list(columns: Sequence[Column]) -> sql.Composable:
    """List the columns as COPY fetches them: EXACT_TEXT ones as PostgreSQL's text."""
    casts = {True: sql.SQL("{}::text"), False: sql.SQL("{}")}
    return sql.SQL(", ").join(casts[c.kind is Kind.EXACT_TEXT].format(sql.Identifier(c.name)) for c in columns)


def read_batches(
    connection: Connection,
    relation: Relation,
    columns: Sequence[Column],
    *,
    where: sql.Composable | None = None,
    rows_per_batch: int = ROWS_PER_BATCH,
) -> Iterator[pa.RecordBatch]:
    """Read a table, or any relation, as Arrow batches (`batch_schema`; repetitive text comes as dictionaries).

    Args:
        connection: used alone by this iterator; closed if it fails or is abandoned half way.
        relation: table, view, or a subselect in parentheses with an alias.
        columns: what to read, in this order.
        where: a condition without parameters, e.g. a ctid range.
        rows_per_batch: rows in a batch at most; wide rows make smaller batches.

    Raises:
        StoreUnavailable: the connection broke.
        SchemaMismatch: a value does not fit its column.
        CorruptCopy: the stream is not what PostgreSQL sends, or rows are missing.
        TieringError: any other refusal of the server.
    """
    condition = sql.SQL(" WHERE {}").format(where) if where is not None else sql.SQL("")
    statement = sql.SQL("COPY (SELECT {} FROM {}{}) TO STDOUT (FORMAT binary)").format(
        select_list(columns), identify(relation), condition
    )
    subject = str(relation) if isinstance(relation, str) else identify(relation).as_string(connection)
    with copying(connection, statement, True, "read", subject) as stream:
        yield from _Decoder(stream, columns, rows_per_batch).batches()


def read_parallel(
    connect: Callable[[], Connection],
    table: str | tuple[str, ...],
    columns: Sequence[Column],
    *,
    readers: int = 2,
    rows_per_batch: int = ROWS_PER_BATCH,
) -> Iterator[pa.RecordBatch]:
    """Read one plain table over several connections: ranges of its blocks, in one snapshot, in no order.

    Args:
        connect: opens a connection outside any transaction; it is closed here.
        table: a plain table (a leaf partition): blocks have no meaning in a view or a partitioned parent.
        columns: what to read, in this order.
        readers: connections at most; small tables take one.
        rows_per_batch: rows in a batch at most.

    Raises:
        TieringError: as `read_batches`; the first failure of any reader.
    """
    with mapped("read", ".".join(table) if isinstance(table, tuple) else table):
        leader = connect()
        try:
            blocks, snapshot = _export_snapshot(leader, table)
        except BaseException:
            leader.close()
            raise
    ranges = _split_blocks(blocks, readers)
    found: queue.Queue[pa.RecordBatch | BaseException | None] = queue.Queue(maxsize=len(ranges))
    stop = threading.Event()

    def read_range(number: int, where: sql.Composable) -> None:
        follower: Connection | None = None
        try:
            if number == 0:
                follower = leader
            else:
                with mapped("read", "snapshot"):
                    follower = connect()
                    _import_snapshot(follower, snapshot)
            for batch in read_batches(follower, table, columns, where=where, rows_per_batch=rows_per_batch):
                if not _offer(found, batch, stop):
                    return
            _offer(found, None, stop)
        except BaseException as exc:
            _offer(found, exc, stop)
        finally:
            # The leader's snapshot must outlive its followers' start: it is closed last, below.
            if follower is not None and follower is not leader:
                follower.close()

    threads = [
        threading.Thread(target=read_range, args=(i, where), name=f"read-{i}", daemon=True)
        for i, where in enumerate(ranges)
    ]
    for thread in threads:
        thread.start()
    try:
        waiting = len(threads)
        while waiting:
            item = found.get()
            if item is None:
                waiting -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        leader.close()


def _offer(target: queue.Queue[Any], item: object, stop: threading.Event) -> bool:
    """Put an item unless the consumer has left."""
    while not stop.is_set():
        try:
            target.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


def _export_snapshot(connection: Connection, table: str | tuple[str, ...]) -> tuple[int, str]:
    name = identify(table).as_string(connection)
    with connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        cursor.execute(
            "SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::int, pg_export_snapshot()", (name,)
        )
        blocks, snapshot = cursor.fetchone() or (0, "")
    return int(blocks), str(snapshot)


def _import_snapshot(connection: Connection, snapshot: str) -> None:
    with connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        cursor.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))


def _split_blocks(blocks: int, readers: int) -> list[sql.Composable]:
    """Cut a table into block ranges; the last one is open, for rows that came behind the measured end."""
    readers = max(1, min(readers, blocks // 64))
    edges = [blocks * i // readers for i in range(readers)]
    ranges: list[sql.Composable] = []
    for i, begin in enumerate(edges):
        condition = sql.SQL("ctid >= {}").format(sql.Literal(f"({begin},0)"))
        if i + 1 < readers:
            condition += sql.SQL(" AND ctid < {}").format(sql.Literal(f"({edges[i + 1]},0)"))
        ranges.append(condition)
    return ranges


class _Dictionary:
    """The words of one text column so far; gives up for good when they are many."""

    def __init__(self) -> None:
        self.table = np.zeros(4 * DICTIONARY_WORDS_MAX, np.int32)
        self.words = np.empty(_DICTIONARY_BYTES_MAX, np.uint8)
        self.word_ends = np.zeros(DICTIONARY_WORDS_MAX, np.int64)
        self.used = np.zeros(2, np.int64)
        self._array: pa.Array | None = None

    def encode(self, heap: Any, starts: Any, lengths: Any, valid: Any, count: int) -> pa.Array | None:
        codes = np.empty(count, np.int32)
        if not kernel.encode_words(
            heap, starts, lengths, valid, count, codes, self.table, self.words, self.word_ends, self.used
        ):
            return None
        if self._array is None or len(self._array) != self.used[0]:
            self._array = self._build()
        small = codes.astype(np.int16)
        indices = pa.Array.from_buffers(pa.int16(), count, [_bitmap(valid), pa.py_buffer(small)])
        return pa.DictionaryArray.from_arrays(indices, self._array, safe=False)

    def _build(self) -> pa.Array:
        count, size = int(self.used[0]), int(self.used[1])
        offsets = np.zeros(count + 1, np.int32)
        offsets[1:] = self.word_ends[:count]
        data = self.words[:size].copy()
        return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


class _Decoder:
    """One COPY stream into batches. Owns the kernels' buffers and reuses them."""

    def __init__(self, stream: CopyStream, columns: Sequence[Column], rows_per_batch: int) -> None:
        self.stream, self.columns, self.capacity = stream, tuple(columns), rows_per_batch
        self.schema = batch_schema(columns)
        self.wire = np.array([_wire(c) for c in columns], np.int64)
        self.scale = np.array([c.scale for c in columns], np.int64)
        needs_extra = (self.wire == kernel.WIRE_BYTES) | (self.wire == kernel.WIRE_WIDE)
        self.slot = np.where(needs_extra, np.cumsum(needs_extra) - 1, -1).astype(np.int64)
        count = len(self.columns)
        self.values = np.empty((count, rows_per_batch), np.int64)
        self.extra = np.empty((max(1, int(needs_extra.sum())), rows_per_batch), np.int64)
        self.valid = np.empty((count, rows_per_batch), np.uint8)
        self.heap = np.empty(_HEAP_BYTES, np.uint8)
        self.special = np.empty((_SPECIALS_MAX + count, 3), np.int64)
        self.state = np.zeros(kernel.STATE_SIZE, np.int64)
        self.dictionaries = {i: _Dictionary() for i, c in enumerate(self.columns) if c.kind is Kind.TEXT}
        self.row_count = 0

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Decode to the end of the stream, then check that it was whole."""
        pointer = np.zeros(1, np.int64)
        try:
            while True:
                reason = kernel.decode_rows(
                    GET_COPY_DATA, FREE, self.stream.address, pointer, self.state, self.wire, self.scale, self.slot,
                    self.values, self.extra, self.valid, self.heap, self.special,
                )  # fmt: skip
                if reason in (kernel.FAILED, kernel.MALFORMED, kernel.INEXACT):
                    raise self._failure(reason)
                if self.state[kernel.ROWS]:
                    yield self._take_batch()
                elif reason == kernel.FULL:
                    # Not one row fits: a row wider than the heap (up to PostgreSQL's 1 GB).
                    self.heap = np.empty(int(self.state[kernel.LENGTH]) + _HEAP_BYTES, np.uint8)
                if reason == kernel.ENDED:
                    break
        finally:
            if self.state[kernel.BUFFER]:
                kernel.release(FREE, int(self.state[kernel.BUFFER]))
                self.state[kernel.BUFFER] = 0
        self._check_end()

    def _failure(self, reason: int) -> TieringError:
        if reason == kernel.FAILED:
            return self.stream.error(None)
        subject, where = self.stream.subject, f"row {self.row_count + int(self.state[kernel.ROWS]) + 1}"
        if reason == kernel.INEXACT:
            hint = "Describe the table again: its columns have changed since."
            return SchemaMismatch("read", subject, f"{where}: a numeric does not fit its declared type", hint)
        return CorruptCopy("read", subject, f"{where}: the COPY stream is malformed")

    def _check_end(self) -> None:
        counted = self.stream.finish()
        if not self.state[kernel.TRAILER]:
            raise CorruptCopy("read", self.stream.subject, "the COPY stream has no trailer")
        if counted != self.row_count:
            raise CorruptCopy("read", self.stream.subject, f"{self.row_count} rows came of {counted} that were sent")

    def _take_batch(self) -> pa.RecordBatch:
        count = int(self.state[kernel.ROWS])
        arrays = [self._array(i, column, count) for i, column in enumerate(self.columns)]
        arrays.append(self._exact_array(count))
        self.row_count += count
        self.state[kernel.ROWS] = self.state[kernel.HEAP_USED] = self.state[kernel.SPECIALS] = 0
        fields = [f if f.type == a.type else f.with_type(a.type) for f, a in zip(self.schema, arrays, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    def _array(self, i: int, column: Column, count: int) -> pa.Array:
        values, valid = self.values[i, :count], self.valid[i, :count]
        if column.kind in _VARIABLE:
            return self._variable_array(i, column, values, self.extra[self.slot[i], :count], valid, count)
        data: Any
        if column.kind is Kind.BOOL:
            data = np.packbits(values.astype(np.uint8), bitorder="little")
        elif column.kind is Kind.DECIMAL and column.precision > DECIMAL64_DIGITS_MAX:
            data = np.stack((values, self.extra[self.slot[i], :count]), axis=1)
        else:
            data = values.astype(_NARROW.get(column.kind, np.int64))
        return pa.Array.from_buffers(batch_type(column), count, [_bitmap(valid), pa.py_buffer(data)])

    def _variable_array(self, i: int, column: Column, starts: Any, lengths: Any, valid: Any, count: int) -> pa.Array:
        words = self.dictionaries.get(i)
        if words is not None:
            encoded = words.encode(self.heap, starts, lengths, valid, count)
            if encoded is not None:
                return encoded
            del self.dictionaries[i]
        if column.kind is Kind.UUID:
            lengths[:] = 16  # nulls take room too in a fixed-size layout
        size = int(lengths.sum())
        offsets, data = np.empty(count + 1, np.int32), np.empty(size, np.uint8)
        present = np.ones(count, np.uint8) if column.kind is Kind.UUID else valid
        kernel.gather_bytes(self.heap, starts, lengths, present, count, offsets, data)
        if column.kind is Kind.UUID:
            stored = pa.Array.from_buffers(pa.binary(16), count, [_bitmap(valid), pa.py_buffer(data)])
            return pa.ExtensionArray.from_storage(pa.uuid(), stored)
        return pa.Array.from_buffers(
            batch_type(column), count, [_bitmap(valid), pa.py_buffer(offsets), pa.py_buffer(data)]
        )

    def _exact_array(self, count: int) -> pa.Array:
        specials = self.special[: int(self.state[kernel.SPECIALS])].tolist()
        if not specials:
            return pa.nulls(count, pa.string())
        rows: dict[int, dict[str, str]] = {}
        for row, at, raw in specials:
            rows.setdefault(row, {})[self.columns[at].name] = exact_text(self.columns[at].kind, raw)
        return texts([exact_json(rows[i]) if i in rows else None for i in range(count)])


def _bitmap(valid: Any) -> pa.Buffer | None:
    """Pack a validity vector for Arrow; None when nothing is null."""
    return None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))


def _wire(column: Column) -> int:
    if column.kind in _VARIABLE:
        return kernel.WIRE_BYTES
    if column.kind is Kind.DECIMAL:
        return kernel.WIRE_DECIMAL if column.precision <= DECIMAL64_DIGITS_MAX else kernel.WIRE_WIDE
    if column.kind in (Kind.TIMESTAMP, Kind.TIMESTAMPTZ):
        return kernel.WIRE_TIMESTAMP
    return kernel.WIRE_DATE if column.kind is Kind.DATE else kernel.WIRE_INT
