"""The lake's types: what Arrow and Parquet call each `model.Column`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from tiering.model import EXACT_COLUMN, Column, Kind

EXACT_FIELD_ID = 1000
"""Iceberg field id of `_exact`: far from those of the table's own columns."""

DECIMAL64_DIGITS_MAX = 18

_TYPES: dict[Kind, pa.DataType] = {
    Kind.BOOL: pa.bool_(),
    Kind.INT2: pa.int32(),  # Iceberg has no 16-bit integer
    Kind.INT4: pa.int32(),
    Kind.INT8: pa.int64(),
    Kind.FLOAT4: pa.float32(),
    Kind.FLOAT8: pa.float64(),
    Kind.TEXT: pa.string(),
    Kind.BYTES: pa.binary(),
    Kind.DATE: pa.date32(),
    Kind.TIMESTAMP: pa.timestamp("us"),
    Kind.TIMESTAMPTZ: pa.timestamp("us", "UTC"),
    Kind.UUID: pa.uuid(),
    Kind.EXACT_TEXT: pa.string(),
}


def arrow_type(column: Column) -> pa.DataType:
    """Name the Arrow type of a column as other programs see it."""
    if column.kind is Kind.DECIMAL:
        return pa.decimal128(column.precision, column.scale)
    return _TYPES[column.kind]


def batch_type(column: Column) -> pa.DataType:
    """Name the Arrow type of a column in our own batches: short decimals take 8 bytes instead of 16."""
    if column.kind is Kind.DECIMAL and column.precision <= DECIMAL64_DIGITS_MAX:
        return pa.decimal64(column.precision, column.scale)
    return arrow_type(column)


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """Describe a lake file: the columns and `_exact`, with Iceberg field ids.

    Every field is optional, NOT NULL ones too: a value that only `_exact` can hold leaves its column null.
    """
    return _schema(columns, arrow_type)


def batch_schema(columns: Sequence[Column]) -> pa.Schema:
    """Describe our own batches: as `arrow_schema`, with short decimals as 64-bit integers."""
    return _schema(columns, batch_type)


def _schema(columns: Sequence[Column], type_of: Callable[[Column], pa.DataType]) -> pa.Schema:
    fields = [
        pa.field(c.name, type_of(c), nullable=True, metadata={"PARQUET:field_id": str(c.field_id)}) for c in columns
    ]
    exact = pa.field(EXACT_COLUMN, pa.string(), nullable=True, metadata={"PARQUET:field_id": str(EXACT_FIELD_ID)})
    return pa.schema([*fields, exact])


def field_names(schema: pa.Schema) -> dict[int, str]:
    """Name a lake file's columns by field id: the names are those of the day when it was written."""
    return {number: field.name for number, field in _by_id(schema).items()}


def columns_in(file: IO[bytes], columns: Sequence[Column]) -> tuple[Column, ...]:
    """Choose those of the columns that a lake file has, by field id: a file may be older than a column.

    Rewinds the file.
    """
    have = fields_in(file)
    return tuple(column for column in columns if column.field_id in have)


def fields_in(file: IO[bytes]) -> dict[int, pa.Field]:
    """Describe an open lake file's columns by field id. Rewinds the file."""
    with pq.ParquetFile(file, pre_buffer=False) as found:
        fields = _by_id(found.schema_arrow)
    file.seek(0)
    return fields


def _by_id(schema: pa.Schema) -> dict[int, pa.Field]:
    ids = {(field.metadata or {}).get(b"PARQUET:field_id"): field for field in schema}
    return {int(number): field for number, field in ids.items() if number is not None}
