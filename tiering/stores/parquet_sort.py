"""Sort Arrow batches of any total size in bounded memory: sorted runs, spilled, then merged slice by slice.

Repetitive text is held as codes of one dictionary per column; `SortedRows.slices` gives plain tables of
codes, and `decode` turns a row group's codes into a dictionary of exactly its own words, in order, so that
the same rows make the same bytes whatever order they came in.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiering.errors import SchemaMismatch
from tiering.stores.arrow import numbers, valid_of, values_of, with_nulls
from tiering.stores.parquet_keys import (
    Words,
    integers,
    is_rankable,
    is_variable,
    order_rows,
    storage,
)
from tiering.stores.parquet_runs import FixedRuns, suits

_RUN_BYTES = 8 << 20
_BLOCK_ROWS = 1_024
_FIXED_BYTES = 8
_DRAIN_ROWS = 16_384


class SortedRows:
    """Take batches in any order, give them back sorted by `sort`.

    Args:
        schema: of the batches; text columns may come as dictionaries.
        sort: column names; unique together when the result shall be the same for any order of arrival.
        scratch: directory for the spill file, which has no name and dies with the process.
    """

    def __init__(self, schema: pa.Schema, sort: Sequence[str], scratch: Path | None = None) -> None:
        self.schema, self.sort, self._scratch = schema, tuple(sort), scratch
        self.words = {f.name: Words() for f in schema if f.type == pa.string()}
        self.row_count = 0
        self.text_bytes = 0
        self._batches: list[pa.RecordBatch] = []
        self._batch_bytes = 0
        self._runs: list[_Run] = []
        self._short_way = FixedRuns(schema, sort, self.words, scratch) if suits(schema, sort) else None

    @property
    def row_bytes(self) -> int:
        """Average width of a row, the same for the same rows."""
        fixed = sum(1 for f in self.schema if not is_variable(f.type)) * _FIXED_BYTES
        text_bytes = self.text_bytes + (self._short_way.text_bytes if self._short_way else 0)
        return fixed + text_bytes // max(1, self.row_count)

    def add(self, batch: pa.RecordBatch) -> None:
        """Take one batch."""
        self.row_count += batch.num_rows
        if self._short_way is not None:
            if self._short_way.add(batch):
                return
            self._leave_short_way(self._short_way)
        open_before = {name for name, words in self.words.items() if words.is_open}
        arrays = [self._stored(name, batch.column(name)) for name in self.schema.names]
        if any(not self.words[name].is_open for name in open_before):
            self._batches = [self._plain(waiting) for waiting in self._batches]
        self._take(pa.RecordBatch.from_arrays(arrays, names=self.schema.names))

    def _leave_short_way(self, short_way: FixedRuns) -> None:
        """Sort in the general way from here on, what is there already too."""
        self._short_way = None
        self.text_bytes = short_way.text_bytes
        for batch in short_way.drain():
            for begin in range(0, batch.num_rows, _DRAIN_ROWS):
                self._take(self._plain(batch.slice(begin, _DRAIN_ROWS)))

    def _take(self, stored: pa.RecordBatch) -> None:
        self._batches.append(stored)
        self._batch_bytes += stored.nbytes
        if self._batch_bytes >= _RUN_BYTES:
            self._close_run()

    def _stored(self, name: str, array: pa.Array) -> pa.Array:
        if array.null_count == len(array):
            return pa.nulls(len(array))
        self.text_bytes += _text_bytes(array)
        if not isinstance(array, pa.DictionaryArray):
            if name in self.words:
                self.words[name].is_open = False
            return array
        codes = self.words[name].code(array) if self.words[name].is_open else None
        return array.dictionary_decode() if codes is None else codes

    def _close_run(self, is_last: bool = False) -> None:
        table = self._arrange(pa.Table.from_batches(_unified(self._batches)))
        self._batches, self._batch_bytes = [], 0
        keys = self._keys(table, range(0, table.num_rows, _BLOCK_ROWS))
        if is_last and not self._runs:
            self._runs.append(_Run(keys, table))  # all there is: no need of a file
        else:
            file = tempfile.TemporaryFile(dir=self._scratch, prefix="tiering-sort-")  # noqa: SIM115 - the run closes it
            self._runs.append(_Run(keys, _spill(table, file), file))
        del table
        release_memory()

    def slices(self, rows: int) -> Iterator[pa.Table]:
        """Give all rows in order, in tables of about `rows` rows; call once, after the last `add`."""
        if self._short_way is not None:
            yield from self._short_way.slices(rows)
            return
        if self._batches:
            self._close_run(is_last=True)
        samples = sorted(key for run in self._runs for key in run.keys)
        step = max(1, rows // _BLOCK_ROWS)
        pending: pa.Table | None = None
        for edge in [*samples[step::step], None]:
            parts = [part for run in self._runs for part in run.take_until(edge)]
            tables = ([pending] if pending is not None and pending.num_rows else []) + parts
            if not tables:
                continue
            table = self._arrange(pa.concat_tables(_unified([self._plain(t) for t in tables])))
            cut = table.num_rows if edge is None else self._cut(table, edge)
            del tables, parts
            pending = _compact(table.slice(cut))
            if cut:
                yield table.slice(0, cut)
            del table
        self._close()

    def _close(self) -> None:
        for run in self._runs:
            run.close()
        self._runs = []

    def decode(self, table: pa.Table) -> pa.Table:
        """Turn codes into dictionaries of this table's own words, sorted."""
        return pa.Table.from_arrays(
            [self._decoded(f, table.column(f.name)) for f in self.schema], names=table.column_names
        )

    def _decoded(self, field: pa.Field, column: pa.ChunkedArray) -> pa.Array:
        if pa.types.is_null(column.type):
            return pa.nulls(len(column), self.decoded_type(field))
        if field.name not in self.words or not self.words[field.name].is_open:
            return column
        array = column.combine_chunks()
        codes = values_of(array)
        used = np.zeros(len(self.words[field.name].words), bool)
        used[codes[valid_of(array)] if array.null_count else codes] = True
        mine = np.flatnonzero(used)
        words = self.words[field.name].words.take(numbers(mine))
        order = pc.sort_indices(words)
        place = np.zeros(len(used), np.int32)
        place[mine[values_of(order)]] = np.arange(len(mine), dtype=np.int32)
        indices = with_nulls(numbers(place[codes]), array)
        return pa.DictionaryArray.from_arrays(indices, words.take(order), safe=False)

    def decoded_type(self, field: pa.Field) -> pa.DataType:
        """Name the type that `decode` gives a column."""
        if field.name in self.words and self.words[field.name].is_open:
            return pa.dictionary(pa.int32(), pa.string())
        return field.type

    def _plain(self, part: Any) -> Any:
        """Bring a batch or table that was coded before its dictionary overflowed to plain text."""
        for name, words in self.words.items():
            if not words.is_open and pa.types.is_integer(part.schema.field(name).type):
                codes = part.column(name)
                text = words.words.take(codes.combine_chunks() if isinstance(codes, pa.ChunkedArray) else codes)
                part = part.set_column(part.schema.get_field_index(name), name, text)
        return part

    def _arrange(self, table: pa.Table) -> pa.Table:
        """Sort a table in memory: by one packed integer where the keys allow it."""
        table = table.combine_chunks()
        keys = [word for name in self.sort for word in self._sort_words(name, table.column(name))]
        return table.take(numbers(order_rows(keys, table.num_rows)))

    def _sort_words(self, name: str, column: pa.ChunkedArray) -> list[Any]:
        """Express a column as integers in the same order, nulls first."""
        if pa.types.is_null(column.type):
            return []
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        valid = [valid_of(array).astype(np.int64)] if array.null_count else []
        if name in self.words and pa.types.is_integer(array.type):
            ranks = self.words[name].rank()[values_of(array)]
        else:
            ranks = integers(array)
        if valid:
            ranks = np.where(valid[0], ranks, 0)
        return [*valid, ranks]

    def _keys(self, table: pa.Table, positions: Sequence[int]) -> list[tuple[Any, ...]]:
        """Give rows' sort keys as Python values that compare like the rows."""
        some = table.select(self.sort).take(numbers(np.array(positions, np.int64)))
        return list(zip(*(self._comparable(name, some.column(name)) for name in self.sort), strict=True))

    def _comparable(self, name: str, column: pa.ChunkedArray) -> list[tuple[Any, ...]]:
        if pa.types.is_null(column.type):
            return [()] * len(column)
        array = column.combine_chunks()
        if name in self.words and pa.types.is_integer(array.type):
            values = self.words[name].words.take(array).to_pylist()
        elif is_rankable(array.type):
            values = storage(array).to_pylist()
        else:
            values = [
                v if ok else None for v, ok in zip(integers(array).tolist(), valid_of(array).tolist(), strict=True)
            ]
        return [() if value is None else (value,) for value in values]

    def _cut(self, table: pa.Table, edge: tuple[Any, ...]) -> int:
        """Find the first row whose key is not below `edge`."""
        return bisect_left(range(table.num_rows), edge, key=lambda i: self._keys(table, [i])[0])


def release_memory() -> None:
    """Give Arrow's free memory back to the system: its pool would keep a run's worth of it."""
    pa.default_memory_pool().release_unused()


class _Run:
    """One sorted run, in memory or in a file, read once from the front in blocks."""

    def __init__(self, keys: list[tuple[Any, ...]], source: Any, file: BinaryIO | None = None) -> None:
        self.keys, self._source, self._file = keys, source, file
        self._next = 0

    def take_until(self, edge: tuple[Any, ...] | None) -> Iterator[pa.Table]:
        """Give the blocks not given yet that may hold rows below `edge`."""
        end = len(self.keys) if edge is None else bisect_left(self.keys, edge)
        if end > self._next and self._file is None:
            begin = self._next * _BLOCK_ROWS
            yield self._source.slice(begin, end * _BLOCK_ROWS - begin)
        elif end > self._next:
            yield pa.Table.from_batches([self._source.get_batch(i) for i in range(self._next, end)])
        self._next = max(self._next, end)

    def close(self) -> None:
        """Give the spill file's room back."""
        self._source = None
        if self._file is not None:
            self._file.close()


def _spill(table: pa.Table, file: BinaryIO) -> Any:
    """Write a table to a nameless file and open it for reading by block; no memory map, which would count as ours."""
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=_BLOCK_ROWS)
    return pa.ipc.open_file(file)


def _unified(parts: list[Any]) -> list[Any]:
    """Give parts one schema: a column that is all null in some takes its type from the others."""
    types: dict[str, pa.DataType] = {}
    for part in parts:
        for field in part.schema:
            if field.name not in types or pa.types.is_null(types[field.name]):
                types[field.name] = field.type
    return [_conform(part, types) for part in parts]


def _conform(part: Any, types: dict[str, pa.DataType]) -> Any:
    wrong = [f.name for f in part.schema if f.type != types[f.name]]
    for name in wrong:
        if not pa.types.is_null(part.schema.field(name).type):
            raise SchemaMismatch("sort rows", name, f"{part.schema.field(name).type} is not {types[name]}")
        filler = pa.nulls(part.num_rows, types[name])
        part = part.set_column(part.schema.get_field_index(name), name, filler)
    return part


def _text_bytes(array: pa.Array) -> int:
    """Count the bytes of a text column's values, coded or not."""
    if isinstance(array, pa.DictionaryArray):
        lengths = values_of(pc.binary_length(array.dictionary))
        codes = values_of(array.indices)
        return int(lengths[codes[valid_of(array)] if array.null_count else codes].sum())
    return int(pc.sum(pc.binary_length(array)).as_py() or 0) if is_variable(array.type) else 0


def _compact(table: pa.Table) -> pa.Table:
    """Copy a slice so that it does not keep the whole table alive."""
    return table.take(numbers(np.arange(table.num_rows)))
