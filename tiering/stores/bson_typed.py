"""Documents as rows of the lake: `_id` and declared fields as typed columns, the whole document as raw bytes.

A value that is not of its column's type never fails: the column is null, the value's text is in `_exact`, and it is
counted. The document itself is in `_raw`, byte for byte, so that nothing depends on the typed columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from tiering.errors import CorruptCopy
from tiering.model import Column, Dataset, Kind
from tiering.stores import bson_kernels as kernel
from tiering.stores.arrow import texts
from tiering.stores.bson_batches import Array, Cells, RawBatch, locate
from tiering.stores.bson_text import canonical_text, id_text, relaxed_text
from tiering.stores.parquet_schema import batch_schema, batch_type
from tiering.stores.pgcopy_exact import exact_json

ID_COLUMN = "_id"
RAW_COLUMN = "_raw"
_FIRST_FIELD_ID = 4
_PG_TYPES = {
    Kind.TEXT: "text",
    Kind.FLOAT8: "double precision",
    Kind.INT8: "bigint",
    Kind.BOOL: "boolean",
    Kind.TIMESTAMPTZ: "timestamp with time zone",
    Kind.UUID: "uuid",
    Kind.EXACT_TEXT: "text",
}


def document_columns(dataset: Dataset) -> tuple[Column, ...]:
    """List the lake columns of a documents dataset; a field's id is its place in the declaration."""
    fixed = (
        Column(ID_COLUMN, "text", Kind.TEXT, field_id=1, nullable=False),
        Column(RAW_COLUMN, "bytea", Kind.BYTES, field_id=2, nullable=False),
        Column(dataset.time_column, _PG_TYPES[Kind.TIMESTAMPTZ], Kind.TIMESTAMPTZ, field_id=3),
    )
    return fixed + tuple(
        Column(field.name, _PG_TYPES[field.kind], field.kind, field_id=field_id)
        for field_id, field in enumerate(dataset.fields, start=_FIRST_FIELD_ID)
    )


def typed(batch: RawBatch, dataset: Dataset) -> tuple[pa.RecordBatch, dict[str, int]]:
    """Lay documents out as `parquet.write_parquet` wants them, and count the untyped values per column.

    Raises:
        CorruptCopy: a document is malformed or has no `_id`.
    """
    columns = document_columns(dataset)
    cells = locate(batch, [ID_COLUMN, dataset.time_column, *(field.path for field in dataset.fields)])
    arrays = [_id_array(batch, cells), _raw_array(batch)]
    exact: dict[int, dict[str, str]] = {}
    untyped: dict[str, int] = {}
    for path, column in enumerate(columns[2:], start=1):
        array, states = _CONVERT[column.kind](batch, cells, path, batch_type(column))
        arrays.append(array)
        rows = np.flatnonzero(states == kernel.UNTYPED).tolist()
        if rows:
            untyped[column.name] = len(rows)
        for row in rows:
            exact.setdefault(row, {})[column.name] = relaxed_text(cells.element(batch, path, row))
    arrays.append(_exact_array(exact, len(batch)))
    return pa.RecordBatch.from_arrays(arrays, schema=batch_schema(columns)), untyped


def _id_array(batch: RawBatch, cells: Cells) -> pa.Array:
    if not cells.kinds[0].all():
        raise CorruptCopy("read documents", f"{len(batch)} documents", "one has no _id")
    array, states = _text(batch, cells, 0, pa.string())
    kernel.mark_quoted(batch.bytes_view, cells.kinds[0], cells.starts[0], cells.lengths[0], states)
    others = np.flatnonzero(states != kernel.FOUND).tolist()
    if not others:
        return array
    found = array.to_pylist()
    for row in others:
        found[row] = id_text(cells.element(batch, 0, row))
    return texts(found)


def _raw_array(batch: RawBatch) -> pa.Array:
    """The documents as they lie, not copied: a batch is far below the 2 GiB that 32-bit offsets reach."""
    offsets = batch.offsets.astype(np.int32)
    return pa.BinaryArray.from_buffers(
        pa.binary(), len(batch), [None, pa.py_buffer(offsets), pa.py_buffer(batch.data)], null_count=0
    )


def _exact_array(exact: dict[int, dict[str, str]], count: int) -> pa.Array:
    if not exact:
        return pa.nulls(count, pa.string())
    return texts([exact_json(exact[row]) if row in exact else None for row in range(count)])


def _validity(states: Array) -> tuple[pa.Buffer | None, int]:
    found = states == kernel.FOUND
    nulls = int(states.size - np.count_nonzero(found))
    return (pa.py_buffer(np.packbits(found, bitorder="little")) if nulls else None), nulls


def _fixed(
    convert: Callable[..., object], item: str
) -> Callable[[RawBatch, Cells, int, pa.DataType], tuple[pa.Array, Array]]:
    """Make the converter of a kind whose values have a fixed width."""

    def run(batch: RawBatch, cells: Cells, path: int, arrow: pa.DataType) -> tuple[pa.Array, Array]:
        count = len(batch)
        values, states = np.empty(count, item), np.empty(count, np.uint8)
        convert(batch.bytes_view, cells.kinds[path], cells.starts[path], values, states)
        if pa.types.is_boolean(arrow):
            values = np.packbits(values, bitorder="little")
        valid, nulls = _validity(states)
        return pa.Array.from_buffers(arrow, count, [valid, pa.py_buffer(values)], null_count=nulls), states

    return run


def _uuid(batch: RawBatch, cells: Cells, path: int, arrow: Any) -> tuple[pa.Array, Array]:
    count = len(batch)
    values, states = np.empty(16 * count, np.uint8), np.empty(count, np.uint8)
    kernel.to_uuid(batch.bytes_view, cells.kinds[path], cells.starts[path], cells.lengths[path], values, states)
    valid, nulls = _validity(states)
    stored = pa.Array.from_buffers(arrow.storage_type, count, [valid, pa.py_buffer(values)], null_count=nulls)
    return pa.ExtensionArray.from_storage(arrow, stored), states


def _text(batch: RawBatch, cells: Cells, path: int, arrow: pa.DataType) -> tuple[pa.Array, Array]:
    count = len(batch)
    ends, states = np.zeros(count + 1, np.int32), np.empty(count, np.uint8)
    view, kinds, starts = batch.bytes_view, cells.kinds[path], cells.starts[path]
    total = int(kernel.measure_text(view, kinds, starts, cells.lengths[path], ends, states))
    out = np.empty(total, np.uint8)
    kernel.write_text(view, kinds, starts, ends, out)
    valid, nulls = _validity(states)
    return pa.Array.from_buffers(arrow, count, [valid, pa.py_buffer(ends), pa.py_buffer(out)], null_count=nulls), states


def _exact_text(batch: RawBatch, cells: Cells, path: int, arrow: pa.DataType) -> tuple[pa.Array, Array]:
    states = np.zeros(len(batch), np.uint8)
    found: list[str | None] = [None] * len(batch)
    for row in np.flatnonzero(~np.isin(cells.kinds[path], (0, kernel.NULL, kernel.UNDEFINED))).tolist():
        found[row] = canonical_text(cells.element(batch, path, row))
        states[row] = kernel.UNTYPED if found[row] is None else kernel.FOUND
    return texts(found), states


_CONVERT: dict[Kind, Callable[[RawBatch, Cells, int, Any], tuple[pa.Array, Array]]] = {
    Kind.TEXT: _text,
    Kind.FLOAT8: _fixed(kernel.to_float8, "f8"),
    Kind.INT8: _fixed(kernel.to_int8, "i8"),
    Kind.BOOL: _fixed(kernel.to_bool, "u1"),
    Kind.TIMESTAMPTZ: _fixed(kernel.to_timestamp, "i8"),
    Kind.UUID: _uuid,
    Kind.EXACT_TEXT: _exact_text,
}
