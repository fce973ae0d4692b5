"""Arrow arrays to NumPy and back, by their buffers.

Why not `pa.array` and `to_numpy`: they import pandas, to see whether they have to do with something of it, and that is
50 MB and a quarter of a second of every process that only copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def numbers(values: Any) -> pa.Array:
    """Make an array of a NumPy array's numbers, without a copy where they lie in a row; it has no nulls."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), values.size, [None, pa.py_buffer(values)])


def texts(values: Sequence[str | None]) -> pa.Array:
    """Make an array of text, None as null.

    Raises:
        UnicodeEncodeError: one has half a surrogate pair, which UTF-8 cannot say.
    """
    encoded = [b"" if value is None else value.encode() for value in values]
    ends = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value) for value in encoded], out=ends[1:])
    if ends[-1] > np.iinfo(np.int32).max:
        raise OverflowError(f"{ends[-1]} bytes of text are more than one array holds")
    present = np.array([value is not None for value in values], np.uint8)
    valid = None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))
    offsets = pa.py_buffer(ends.astype(np.int32))
    return pa.Array.from_buffers(pa.string(), len(values), [valid, offsets, pa.py_buffer(b"".join(encoded))])


def values_of(array: pa.Array, dtype: Any = None) -> Any:
    """View a fixed-width array's values, whatever stands under its nulls; unsigned ones as signed."""
    width = array.type.bit_width // 8
    floats = {4: np.float32, 8: np.float64}
    kind = dtype or (floats[width] if pa.types.is_floating(array.type) else np.dtype(f"i{width}"))
    if array.buffers()[1] is None:
        return np.zeros(len(array), kind)
    return np.frombuffer(array.buffers()[1], kind)[array.offset : array.offset + len(array)]


def truths(array: pa.BooleanArray) -> Any:
    """Copy a boolean array's values, whatever stands under its nulls.

    Raises:
        TypeError: it holds something else.
    """
    if not pa.types.is_boolean(array.type):
        raise TypeError(f"{array.type} is no boolean")
    if not len(array):
        return np.zeros(0, bool)
    bits = np.unpackbits(
        np.frombuffer(array.buffers()[1], np.uint8), count=array.offset + len(array), bitorder="little"
    )
    return bits[array.offset :].view(bool)


def valid_of(array: pa.Array) -> Any:
    """Tell of each value whether it is there."""
    return truths(array.is_valid())


def with_nulls(array: pa.Array, like: pa.Array) -> pa.Array:
    """Give an array the nulls of another."""
    if not like.null_count:
        return array
    return pc.if_else(like.is_valid(), array, pa.scalar(None, array.type))
