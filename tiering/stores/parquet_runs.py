"""The short way of `parquet_sort`: rows of fixed width, spilled by column in the order of their first sort column.

That column is repetitive text, whose words keep their order among each other whatever words come later. So every
run holds each word's rows together and the words in their final order, and the rows of some neighbouring words
are one stretch of every run: read, sorted by the other sort columns, and given out.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiering.stores.arrow import valid_of, values_of
from tiering.stores.parquet_keys import WORDS_MAX, Words, integers, order_rows
from tiering.stores.parquet_radix import gather, order_by_word, places_of, recode

RUN_ROWS = 131_072
WORD_ROWS_MAX = 262_144
"""One word's rows are sorted together in memory: with more of them than this the general way takes over."""
_INDEX_MAX = 3_000_000
_ALL_PRESENT = np.empty(0, np.uint8)


def suits(schema: pa.Schema, sort: Sequence[str]) -> bool:
    """Tell whether a table's columns allow the short way."""
    return schema.field(sort[0]).type == pa.string() and all(f.type == pa.string() or _width(f) for f in schema)


def _width(field: pa.Field) -> int:
    """Give a fixed-width column's bytes per value; 0 for any other column."""
    try:
        bits = int(field.type.bit_width)
    except ValueError:
        return 0
    return bits // 8 if bits in (32, 64) else 0


@dataclass(slots=True)
class _Run:
    """Where a spilled run's columns begin in the file, and where its words' rows end (`places`: ascending)."""

    places: Any
    ends: Any
    columns: list[int]
    present: list[int | None]

    def stretch(self, first: int, end: int) -> tuple[int, int]:
        """Give the rows of the words from place `first` to before place `end`."""
        at, until = np.searchsorted(self.places, (first, end))
        return int(self.ends[at - 1]) if at else 0, int(self.ends[until - 1]) if until else 0


class FixedRuns:
    """Rows of fixed width, in any order; gives them back sorted, as tables of codes.

    Args:
        schema: one that `suits`.
        sort: column names, the first of them text.
        words: the dictionaries of the text columns, shared with the general way.
        scratch: directory for the spill file, which has no name.
    """

    def __init__(self, schema: pa.Schema, sort: Sequence[str], words: dict[str, Words], scratch: Path | None) -> None:
        self.schema, self.sort, self.words, self._scratch = schema, tuple(sort), words, scratch
        self.counts = {name: np.zeros(WORDS_MAX + 1, np.int64) for name in words}
        self._kinds = [np.dtype(np.int16 if f.name in words else f"i{_width(f)}") for f in schema]
        self._columns = [np.empty(RUN_ROWS, kind) for kind in self._kinds]
        self._spare = np.empty(RUN_ROWS, np.int64)
        self._present: list[Any] = [None] * len(schema)
        self._used = 0
        self._index_size = 0
        self._runs: list[_Run] = []
        self._file: Any = None

    @property
    def text_bytes(self) -> int:
        """Sum the lengths of all text values."""
        lengths = {name: values_of(pc.binary_length(words.words)) for name, words in self.words.items()}
        return sum(int((self.counts[name][1 : len(found) + 1] * found).sum()) for name, found in lengths.items())

    def add(self, batch: pa.RecordBatch) -> bool:
        """Take one batch; False (and nothing taken) when it, or what there is already, needs the general way."""
        if self._index_size > _INDEX_MAX or self.counts[self.sort[0]].max() > WORD_ROWS_MAX:
            return False
        arrays = batch.columns
        mappings: dict[str, Any] = {}
        for field, array in zip(self.schema, arrays, strict=True):
            if array.null_count == len(array):
                continue
            if field.name not in self.words:
                if array.type != field.type:
                    return False
                continue
            if not isinstance(array, pa.DictionaryArray) or not self.words[field.name].is_open:
                return False
            mappings[field.name] = self.words[field.name].mapping(array.dictionary)
            if mappings[field.name] is None:
                return False
        begin = 0
        while begin < batch.num_rows:
            count = min(batch.num_rows - begin, RUN_ROWS - self._used)
            for i, array in enumerate(arrays):
                self._put(i, array.slice(begin, count), mappings)
            self._used += count
            begin += count
            if self._used == RUN_ROWS:
                self._close_run()
        return True

    def _put(self, i: int, array: pa.Array, mappings: dict[str, Any]) -> None:
        """Copy a piece of one column behind what the run has."""
        name, count = self.schema.names[i], len(array)
        is_empty = array.null_count == count
        present = valid_of(array).view(np.uint8) if array.null_count else _ALL_PRESENT
        target = self._columns[i][self._used : self._used + count]
        if name in self.words:
            if is_empty:
                target[:] = -1
                self.counts[name][0] += count
            else:
                # A copy: views of Arrow's memory are read-only, another type to the kernel.
                codes = values_of(array.indices).astype(np.int16)
                recode(codes, present, mappings[name], target, self.counts[name])
            return
        target[:] = 0 if is_empty else values_of(array, self._kinds[i])
        if present.size and self._present[i] is None:
            self._present[i] = np.ones(RUN_ROWS, np.uint8)
        if self._present[i] is not None:
            self._present[i][self._used : self._used + count] = present if present.size else 1

    def _close_run(self) -> None:
        """Spill what there is, each column in the order of the first sort column's words."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._scratch, prefix="tiering-sort-")  # noqa: SIM115 - slices closes
        name = self.sort[0]
        codes = self._columns[self.schema.names.index(name)][: self._used]
        ranks = _places(self.words[name])
        order, ends = np.empty(self._used, np.uint32), np.empty(ranks.size, np.int32)
        order_by_word(codes, ranks, order, ends)
        places = np.flatnonzero(np.diff(ends, prepend=np.int32(0)))
        by_place = np.argsort(ranks)
        run = _Run(by_place[places].astype(np.int32), ends[places], [], [])
        for i in range(len(self.schema)):
            run.columns.append(self._spill(self._columns[i], order))
            run.present.append(None if self._present[i] is None else self._spill(self._present[i], order))
        self._file.flush()
        self._runs.append(run)
        self._index_size += len(places)
        self._used = 0

    def _spill(self, values: Any, order: Any) -> int:
        target = self._spare.view(values.dtype)[: order.size]
        gather(values, order, target)
        at = int(self._file.tell())
        self._file.write(target.data)
        return at

    def slices(self, rows: int) -> Iterator[pa.Table]:
        """Give all rows in order, whole words together, in tables of `rows` rows or more; call once, at the end."""
        if self._used:
            self._close_run()
        self._columns, self._present = [], []
        name = self.sort[0]
        ranks = {text: _places(words) for text, words in self.words.items()}
        for run in self._runs:
            run.places = ranks[name][run.places]
        counts = self.counts[name][np.argsort(ranks[name])]
        first = waiting = 0
        for place, count in enumerate(counts.tolist(), 1):
            waiting += count
            if waiting >= rows or (place == counts.size and waiting):
                yield self._sorted(first, place, waiting, ranks)
                first, waiting = place, 0
        self._close()

    def drain(self) -> Iterator[pa.RecordBatch]:
        """Give all rows back in no order, in pieces of a run; the end of this object."""
        if self._used:
            self._close_run()
        self._columns, self._present = [], []
        for run in self._runs:
            count = int(run.ends[-1])
            stretches = [(run, 0, count)]
            arrays = [self._array(i, *self._read(i, stretches, count), None) for i in range(len(self.schema))]
            yield pa.RecordBatch.from_arrays(arrays, names=self.schema.names)
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._runs = []

    def _sorted(self, first: int, end: int, count: int, ranks: dict[str, Any]) -> pa.Table:
        """Read the rows of the words from place `first` to before place `end`, and sort them."""
        stretches = [(run, *run.stretch(first, end)) for run in self._runs]
        read: dict[int, tuple[Any, Any]] = {}
        keys: list[Any] = []
        for name in self.sort:
            i = self.schema.names.index(name)
            read[i] = self._read(i, stretches, count)
            keys += self._keys(i, *read[i], ranks.get(name), first if name == self.sort[0] else 0)
        order = order_rows(keys, count).astype(np.uint32, copy=False)
        del keys
        arrays = [
            self._array(i, *(read.pop(i) if i in read else self._read(i, stretches, count)), order)
            for i in range(len(self.schema))
        ]
        return pa.Table.from_arrays(arrays, names=self.schema.names)

    def _keys(self, i: int, values: Any, present: Any, ranks: Any, low: int) -> list[Any]:
        """Express a column as integers in the same order, nulls first."""
        if ranks is not None:
            return [places_of(values, ranks, low)]
        found = integers(pa.Array.from_buffers(self.schema.field(i).type, len(values), [None, pa.py_buffer(values)]))
        return [found] if present is None else [present.astype(np.int64), np.where(present, found, 0)]

    def _read(self, i: int, stretches: list[tuple[_Run, int, int]], count: int) -> tuple[Any, Any]:
        """Read stretches of one column, and which of its values are present (None: all)."""
        values = np.empty(count, self._kinds[i])
        has_present = any(run.present[i] is not None for run, *_ in stretches)
        present = np.ones(count, np.uint8) if has_present else None
        at = 0
        for run, begin, end in stretches:
            if end > begin:
                self._fill(values[at : at + end - begin], run.columns[i], begin)
                where = run.present[i]
                if present is not None and where is not None:
                    self._fill(present[at : at + end - begin], where, begin)
                at += end - begin
        return values, present

    def _fill(self, target: Any, offset: int, begin: int) -> None:
        got = os.preadv(self._file.fileno(), [target.data], offset + begin * target.itemsize)
        if got != target.nbytes:
            raise OSError(f"the spill file gave {got} bytes of {target.nbytes}")

    def _array(self, i: int, values: Any, present: Any, order: Any) -> pa.Array:
        """Make an Arrow array of a column's values, in order."""
        if order is not None:
            values = _ordered(values, order)
            present = None if present is None else _ordered(present, order)
        field = self.schema.field(i)
        kind = field.type
        if field.name in self.words:
            kind = pa.int16()
            if not len(self.words[field.name].words):
                return pa.nulls(len(values))
            if self.counts[field.name][0] and (values < 0).any():
                present = values >= 0
                values = np.maximum(values, 0)
        bitmap = None if present is None or present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))
        return pa.Array.from_buffers(kind, len(values), [bitmap, pa.py_buffer(values)])


def _places(words: Words) -> Any:
    """Give each word's place in order at its code + 1; the null's place, 0, comes first."""
    ranks = words.rank() if len(words.words) else np.empty(0, np.int64)
    return np.concatenate((np.zeros(1, np.int64), ranks)).astype(np.int32)


def _ordered(values: Any, order: Any) -> Any:
    target = np.empty_like(values)
    gather(values, order, target)
    return target
