"""Arrow batches as plain integer matrices, the form that the encoding and hashing kernels take.

One row of the matrices per column, in PostgreSQL's terms: days and microseconds since 2000, floats as bits,
decimals as unscaled 128-bit integers, texts as address and length of their bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tiering.errors import CorruptCopy, SchemaMismatch
from tiering.model import EXACT_COLUMN, Column, Kind
from tiering.stores.arrow import truths, valid_of
from tiering.stores.pgcopy_decode import UNIX_TO_PG_DAYS, UNIX_TO_PG_MICROSECONDS
from tiering.stores.pgcopy_exact import exact_raw

NULL, PRESENT, SPECIAL = 0, 1, 2
"""A cell's state; SPECIAL is a numeric NaN or infinity, whose value is numeric's sign word."""


class Matrix:
    """A batch's columns as integers. Keeps the Arrow buffers alive that its addresses point to.

    Raises:
        SchemaMismatch: a column is missing or has a type that cannot be its kind.
        CorruptCopy: `_exact` holds something that no export writes.
    """

    def __init__(self, batch: pa.RecordBatch, columns: Sequence[Column]) -> None:
        count = batch.num_rows
        self.row_count = count
        self.values = np.zeros((len(columns), count), np.int64)
        self.extra = np.zeros((len(columns), count), np.int64)
        self.state = np.ones((len(columns), count), np.uint8)
        self._alive: list[Any] = [batch]
        for i, column in enumerate(columns):
            at = batch.schema.get_field_index(column.name)
            if at < 0:
                raise SchemaMismatch("take rows", column.name, "the column is not in the batch")
            array = batch.column(at)
            try:
                self._fill(i, column, array)
            except (pa.ArrowException, ValueError, TypeError, AttributeError) as exc:
                raise SchemaMismatch("take rows", column.name, f"{array.type} is no {column.kind}: {exc}") from exc
            if array.null_count:
                self.state[i] = valid_of(array)
        at = batch.schema.get_field_index(EXACT_COLUMN)
        if at >= 0 and batch.column(at).null_count < count:
            self._fill_exact(columns, batch.column(at))

    def _fill(self, i: int, column: Column, array: pa.Array) -> None:
        kind = column.kind
        if kind in (Kind.TEXT, Kind.EXACT_TEXT, Kind.BYTES, Kind.UUID):
            self._fill_bytes(i, array)
        elif kind is Kind.BOOL:
            self.values[i] = truths(array.fill_null(False))
        elif kind is Kind.DECIMAL:
            if array.type.scale != column.scale:
                raise TypeError("other scale")
            words = _words(array, np.int64)
            if pa.types.is_decimal128(array.type):
                self.values[i], self.extra[i] = words[::2], words[1::2]
            else:
                self.values[i], self.extra[i] = words, words >> 63
        else:
            width = {16: np.int16, 32: np.int32, 64: np.int64}[array.type.bit_width]
            self.values[i] = _words(array, width)
            if kind is Kind.DATE:
                self.values[i] -= UNIX_TO_PG_DAYS
            elif kind in (Kind.TIMESTAMP, Kind.TIMESTAMPTZ):
                if array.type.unit != "us":
                    raise TypeError("not microseconds")
                self.values[i] -= UNIX_TO_PG_MICROSECONDS

    def _fill_bytes(self, i: int, array: pa.Array) -> None:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        if isinstance(array, pa.DictionaryArray):
            starts, lengths = self._places(array.dictionary)
            if not len(starts):
                return
            width = np.dtype(f"i{array.indices.type.bit_width // 8}")
            codes = _words(array.indices, width)
            if array.null_count:
                codes = np.where(valid_of(array), codes, 0)
            self.values[i], self.extra[i] = starts[codes], lengths[codes]
        else:
            self.values[i], self.extra[i] = self._places(array)

    def _places(self, array: pa.Array) -> tuple[Any, Any]:
        """Give the address and the length of each value of a text or binary array."""
        count = len(array)
        if pa.types.is_fixed_size_binary(array.type):
            size = array.type.byte_width
            starts = array.buffers()[1].address + size * np.arange(array.offset, array.offset + count, dtype=np.int64)
            return starts, np.full(count, size, np.int64)
        is_large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
        _, offsets_buffer, data = array.buffers()
        if offsets_buffer is None or count == 0:
            return np.zeros(count, np.int64), np.zeros(count, np.int64)
        offsets = np.frombuffer(offsets_buffer, np.int64 if is_large else np.int32).astype(np.int64)
        offsets = offsets[array.offset : array.offset + count + 1]
        self._alive.append(array)
        return (data.address if data is not None else 0) + offsets[:-1], np.diff(offsets)

    def _fill_exact(self, columns: Sequence[Column], exact: pa.Array) -> None:
        """Put the values of `_exact` in their cells."""
        if isinstance(exact, pa.DictionaryArray):
            exact = exact.dictionary_decode()
        places = {c.name: i for i, c in enumerate(columns)}
        for row in np.flatnonzero(valid_of(exact)).tolist():
            try:
                for name, text in json.loads(exact[row].as_py()).items():
                    if name in places:
                        i = places[name]
                        self.values[i, row] = exact_raw(columns[i].kind, text)
                        self.state[i, row] = SPECIAL if columns[i].kind is Kind.DECIMAL else PRESENT
            except (ValueError, KeyError, AttributeError) as exc:
                raise CorruptCopy("take rows", EXACT_COLUMN, f"unreadable: {exc}") from exc


def _words(array: pa.Array, dtype: Any) -> Any:
    """View a fixed-width array's memory as integers; decimals of 128 bits take two words each."""
    per_value = array.type.bit_width // (8 * np.dtype(dtype).itemsize)
    if array.buffers()[1] is None:
        return np.zeros(len(array) * per_value, dtype)
    words = np.frombuffer(array.buffers()[1], dtype)
    return words[array.offset * per_value : (array.offset + len(array)) * per_value]
