"""One person's rows in lake files: count them by reading little, keep or take them, look through every value."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tiering.errors import SchemaMismatch
from tiering.model import EXACT_COLUMN, Column, Kind

_KINDS: tuple[tuple[Callable[[Any], bool], Kind], ...] = (
    (pa.types.is_boolean, Kind.BOOL),
    (pa.types.is_int32, Kind.INT4),
    (pa.types.is_int64, Kind.INT8),
    (pa.types.is_float32, Kind.FLOAT4),
    (pa.types.is_float64, Kind.FLOAT8),
    (pa.types.is_decimal, Kind.DECIMAL),
    (pa.types.is_string, Kind.TEXT),
    (pa.types.is_binary, Kind.BYTES),
    (pa.types.is_date32, Kind.DATE),
    (lambda t: t in (pa.uuid(), pa.binary(16)), Kind.UUID),  # its storage, without Arrow's own schema
    (lambda t: pa.types.is_timestamp(t) and t.tz is not None, Kind.TIMESTAMPTZ),
    (pa.types.is_timestamp, Kind.TIMESTAMP),
)


def columns_of(file: IO[bytes]) -> tuple[Column, ...]:
    """Read a lake file's columns from itself: names and types as they were when it was written. Rewinds it."""
    with pq.ParquetFile(file, pre_buffer=False) as found:
        schema = found.schema_arrow
    file.seek(0)
    columns = []
    for field in schema:
        if field.name == EXACT_COLUMN:
            continue
        kind = next((kind for matches, kind in _KINDS if matches(field.type)), None)
        if kind is None:
            raise SchemaMismatch("read columns of", "lake file", f"column {field.name} is {field.type}")
        precision, scale = (field.type.precision, field.type.scale) if kind is Kind.DECIMAL else (0, 0)
        number = int((field.metadata or {}).get(b"PARQUET:field_id", b"0"))
        columns.append(Column(field.name, str(field.type), kind, precision, scale, number))
    return tuple(columns)


def count_person(file: IO[bytes], subject: str, name: str) -> int:
    """Count a person's rows: the footer, and of row groups whose statistics allow it the one column."""
    with pq.ParquetFile(file, pre_buffer=False) as found:
        names = found.schema_arrow.names
        if subject not in names:
            return 0
        at, count = names.index(subject), 0
        for group in range(found.metadata.num_row_groups):
            if _may_hold(found.metadata.row_group(group).column(at), name):
                table = found.read_row_group(group, columns=[subject, EXACT_COLUMN], use_threads=False)
                for batch in table.to_batches():
                    count += pc.sum(is_person(batch, subject, name)).as_py() or 0
        return int(count)


def _may_hold(chunk: Any, name: str) -> bool:
    found = chunk.statistics
    if found is None or not found.has_min_max or found.null_count is None or found.null_count:
        return True  # a null may stand for a value that only `_exact` holds
    return not isinstance(found.min, str) or bool(found.min <= name <= found.max)


def is_person(batch: pa.RecordBatch, subject: str, name: str) -> pa.Array:
    """Tell of each row whether it is the person's: exactly the value, or its text where the column is no text."""
    column = batch.column(subject)
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_fixed_size_binary(column.type):
        texts = pa.array(
            [None if value is None else str(UUID(bytes=value)) for value in column.to_pylist()], pa.string()
        )
    else:
        texts = column.cast(pa.string())
    found = pc.fill_null(pc.equal(texts, name), False)
    exact = batch.column(EXACT_COLUMN)
    if exact.null_count == len(exact):
        return found
    told = [value is not None and _told(value, subject) == name for value in exact.to_pylist()]
    return pc.or_(found, pa.array(told))


def _told(exact: str, subject: str) -> str | None:
    """Read what `_exact` says of the person: text, or a document's value in canonical extended JSON."""
    value = json.loads(exact).get(subject)
    if isinstance(value, str):
        try:
            inner = json.loads(value)
        except ValueError:
            return value
        value = next(iter(inner.values())) if isinstance(inner, dict) and len(inner) == 1 else inner
    return None if value is None else str(value)


def split(batches: Iterable[pa.RecordBatch], subject: str, name: str, *, keep: bool) -> Iterator[pa.RecordBatch]:
    """Yield the rows that are not the person's (`keep`), or those that are; empty batches are left out."""
    for batch in batches:
        mask = is_person(batch, subject, name)
        part = batch.filter(pc.invert(mask) if keep else mask)
        if part.num_rows:
            yield part


def mentions(file: IO[bytes], subject: str, name: str, is_in: Callable[[bytes], bool]) -> list[tuple[str, int]]:
    """Count by column the values that name the person: exactly in the person's column, as a word in every text,
    byte string and statistics of the others.
    """
    found: dict[str, int] = {}
    with pq.ParquetFile(file, pre_buffer=False) as source:
        schema = source.schema_arrow
        looked = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_binary(f.type)]
        if subject in schema.names and subject not in looked:
            looked.append(subject)
        for batch in source.iter_batches(65_536, columns=looked, use_threads=False):
            for column in looked:
                if column == subject and EXACT_COLUMN in looked:
                    count = pc.sum(is_person(batch, subject, name)).as_py() or 0
                else:
                    count = _mentions(batch.column(column), name.encode(), is_in)
                if count:
                    found[column] = found.get(column, 0) + int(count)
        for group in range(source.metadata.num_row_groups):
            for at in range(source.metadata.num_columns):
                chunk = source.metadata.row_group(group).column(at)
                edges = (
                    (chunk.statistics.min, chunk.statistics.max)
                    if chunk.statistics and chunk.statistics.has_min_max
                    else ()
                )
                if any(isinstance(e, str | bytes) and is_in(e.encode() if isinstance(e, str) else e) for e in edges):
                    found[f"statistics of {chunk.path_in_schema}"] = 1
    return sorted(found.items())


def _mentions(column: pa.Array, name: bytes, is_in: Callable[[bytes], bool]) -> int:
    if column.null_count == len(column):
        return 0
    candidates = column.cast(pa.binary()).filter(pc.match_substring(column.cast(pa.binary()), name))
    return sum(value is not None and is_in(value) for value in candidates.to_pylist())
