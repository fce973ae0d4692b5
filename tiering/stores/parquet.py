"""Lake files: write sorted Parquet in bounded memory, read it back for verification.

The same rows make the same bytes (so the same sha256) in whatever order they arrive, given that `sort` is
unique, on the same pyarrow. Statistics are kept but for floats: a NaN makes min and max lie.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tiering.errors import CorruptCopy, SchemaMismatch, StoreFull, StoreUnavailable
from tiering.model import EXACT_COLUMN, Column, Kind
from tiering.stores.arrow import texts
from tiering.stores.parquet_schema import EXACT_FIELD_ID, arrow_type, batch_schema, field_names
from tiering.stores.parquet_sort import SortedRows, release_memory
from tiering.stores.pgcopy_exact import exact_json

ROW_GROUP_ROWS_MAX = 131_072
_ROW_GROUP_BYTES = 16 << 20
_WIDE_ROW_BYTES, _WIDE_GROUP_BYTES = 512, 2 << 20
"""Of wide rows (whole documents) a group holds less: it is in memory a few times while it is made and written."""
_READ_ROWS = 16_384
_ENCODED_ROWS = 16_384
"""Encoded at a time: of Arrow's own 1,024 the calls alone take a twentieth of the writing."""

# Sorted integers differ little from row to row; decimals of up to 18 digits are stored as integers too.
_DELTA = (Kind.INT2, Kind.INT4, Kind.INT8, Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ)
# Of fixed-size bytes too, says the format; DuckDB 1.5 reads it of floats only.
_SPLIT = (Kind.FLOAT4, Kind.FLOAT8)
_DICTIONARY = (Kind.TEXT, Kind.EXACT_TEXT)


@dataclass(frozen=True, slots=True)
class ParquetReceipt:
    """What was written: enough to name the object by its content."""

    row_count: int
    size_bytes: int
    sha256: str
    row_group_count: int


def write_parquet(
    batches: Iterable[pa.RecordBatch],
    columns: Sequence[Column],
    sort: Sequence[str],
    sink: Path | BinaryIO,
    *,
    scratch: Path | None = None,
) -> ParquetReceipt:
    """Write the batches, globally sorted, as one Parquet file.

    Args:
        batches: of `batch_schema(columns)` or `arrow_schema(columns)`; text may be dictionary-encoded.
        columns: of the table, without `_exact`.
        sort: column names; unique together for bytes that do not depend on the order of arrival.
        sink: a path (a partial file is removed on failure), or a file open for writing and reading ("w+b").
        scratch: directory for spilled runs; default: the system's.

    Raises:
        SchemaMismatch: `sort` names no column.
        StoreFull: no room in scratch or sink.
        TieringError: whatever `batches` raises.
    """
    unknown = sorted(set(sort) - {c.name for c in columns})
    if unknown or not sort:
        raise SchemaMismatch("write parquet", ", ".join(unknown) or "sort", "the sort columns are not in the table")
    path = sink if isinstance(sink, Path) else None
    try:
        if path is not None:
            with path.open("w+b") as file:
                return _write(batches, columns, sort, file, scratch)
        return _write(batches, columns, sort, sink, scratch)  # type: ignore[arg-type]
    except BaseException as exc:
        if path is not None:
            path.unlink(missing_ok=True)
        if isinstance(exc, OSError):
            raise StoreFull("write parquet", str(path or "file"), str(exc)) from exc
        raise


def _write(
    batches: Iterable[pa.RecordBatch],
    columns: Sequence[Column],
    sort: Sequence[str],
    file: BinaryIO,
    scratch: Path | None,
) -> ParquetReceipt:
    rows = SortedRows(batch_schema(columns), sort, scratch)
    for batch in batches:
        rows.add(batch)
    per_group = _group_rows(rows.row_bytes)
    schema = _file_schema(columns, rows)
    hashed = _Hashed(file)
    with pq.ParquetWriter(hashed, schema, **_options(columns, sort)) as writer:
        count = 0
        for group in _ahead(_groups(rows, schema, per_group)):
            writer.write_table(group, row_group_size=per_group)
            release_memory()
            count += 1
    file.flush()
    return ParquetReceipt(rows.row_count, hashed.size_bytes, hashed.digest.hexdigest(), count)


class _Hashed:
    """A file that Parquet is written to, from front to end, and hashed on the way: no second pass over the bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size_bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Write all of the bytes and add them to the hash."""
        size = memoryview(data).nbytes
        self.digest.update(data)
        self._file.write(data)
        self.size_bytes += size
        return size

    def tell(self) -> int:
        """Give the position, which is the end."""
        return self.size_bytes

    def flush(self) -> None:
        """Hand everything to the system."""
        self._file.flush()

    def close(self) -> None:
        """Leave the file open: it is the caller's."""
        self.closed = True


def _group_rows(row_bytes: int) -> int:
    """Choose rows per row group from the average row alone, so that the same rows give the same groups."""
    group_bytes = _ROW_GROUP_BYTES if row_bytes < _WIDE_ROW_BYTES else _WIDE_GROUP_BYTES
    return max(1, min(ROW_GROUP_ROWS_MAX, group_bytes // max(1, row_bytes)))


def _groups(rows: SortedRows, schema: pa.Schema, per_group: int) -> Iterator[pa.Table]:
    """Cut the sorted slices into groups of exactly `per_group` rows."""
    waiting: list[pa.Table] = []
    count = 0
    # Half a group at a time: sorting takes a few times the room of what it sorts.
    for part in rows.slices(max(1, per_group // 2)):
        waiting.append(part)
        count += part.num_rows
        while count >= per_group:
            table = pa.concat_tables(waiting, promote_options="default")
            # In one chunk: page ends follow chunk ends, and those depend on the order of arrival.
            yield rows.decode(table.slice(0, per_group)).cast(schema).combine_chunks()
            waiting, count = [table.slice(per_group)], count - per_group
    if count:
        yield rows.decode(pa.concat_tables(waiting, promote_options="default")).cast(schema).combine_chunks()


def _ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Prepare the next table on another thread while this one is written."""
    with ThreadPoolExecutor(1, thread_name_prefix="sort") as pool:
        coming = pool.submit(next, tables, None)
        while (table := coming.result()) is not None:
            coming = pool.submit(next, tables, None)
            yield table


def _file_schema(columns: Sequence[Column], rows: SortedRows) -> pa.Schema:
    return pa.schema([field.with_type(rows.decoded_type(field)) for field in batch_schema(columns)])


def _options(columns: Sequence[Column], sort: Sequence[str]) -> dict[str, Any]:
    names = [c.name for c in columns]
    is_float = {c.name: c.kind in (Kind.FLOAT4, Kind.FLOAT8) for c in columns}
    encodings = {c.name: encoding for c in columns if (encoding := _encoding(c))}
    return {
        "compression": "zstd",
        "compression_level": 2,  # of a million bars smaller than 3 makes them, and sooner; 1 is a tenth larger
        "write_batch_size": _ENCODED_ROWS,
        "use_dictionary": [c.name for c in columns if c.kind in _DICTIONARY] + [EXACT_COLUMN],
        "column_encoding": encodings,
        "write_statistics": [name for name in names if not is_float[name]] + [EXACT_COLUMN],
        "write_page_index": True,
        "store_schema": False,
        "store_decimal_as_integer": True,
        "sorting_columns": [pq.SortingColumn(names.index(name), nulls_first=True) for name in sort],
    }


def _encoding(column: Column) -> str:
    if column.kind in _DELTA or (column.kind is Kind.DECIMAL and column.precision <= 18):
        return "DELTA_BINARY_PACKED"
    if column.kind in _SPLIT:
        return "BYTE_STREAM_SPLIT"
    return "DELTA_LENGTH_BYTE_ARRAY" if column.kind is Kind.BYTES else ""


def read_parquet_batches(
    source: Path | BinaryIO | pa.NativeFile, columns: Sequence[Column], *, names: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Read a lake file back in bounded memory, in file order; text comes as dictionaries.

    Columns are found by field id: under another name or a narrower type they come as they are called and typed now.

    Args:
        source: a path or an open, seekable file.
        columns: what the file must hold.
        names: read only these columns (and `_exact`).

    Raises:
        CorruptCopy: the file is no Parquet file, is damaged, or lacks rows.
        SchemaMismatch: its columns are not `columns`.
    """
    subject = str(source) if isinstance(source, Path) else "parquet file"
    wanted = [c for c in columns if names is None or c.name in names]
    try:
        with pq.ParquetFile(source, pre_buffer=False) as file:
            known = _match(file.schema_arrow, columns, subject)
        if not isinstance(source, Path):
            source.seek(0)
        text = [known[c.name] for c in wanted if c.kind in _DICTIONARY]
        asked = [*(known[c.name] for c in wanted), EXACT_COLUMN]
        with pq.ParquetFile(source, read_dictionary=text, pre_buffer=False) as file:
            translate = _translator(file.schema_arrow, wanted, known)
            count = 0
            for batch in file.iter_batches(_read_rows(file.metadata), columns=asked, use_threads=False):
                count += batch.num_rows
                yield translate(batch)
            if count != file.metadata.num_rows:
                raise CorruptCopy("read parquet", subject, f"{count} rows of {file.metadata.num_rows}")
    except FileNotFoundError as exc:
        raise StoreUnavailable("read parquet", subject, str(exc)) from exc
    except (pa.ArrowException, OSError) as exc:
        raise CorruptCopy("read parquet", subject, str(exc)) from exc


def _read_rows(metadata: pq.FileMetaData) -> int:
    """Choose rows per batch: no more than a row group has, which of wide rows is few."""
    first = metadata.row_group(0).num_rows if metadata.num_row_groups else 0
    return min(_READ_ROWS, first) if first else _READ_ROWS


def _match(found: pa.Schema, columns: Sequence[Column], subject: str) -> dict[str, str]:
    """Find every column's name in the file by its field id, and see that its type there fits."""
    names = field_names(found)
    if names.get(EXACT_FIELD_ID) != EXACT_COLUMN:
        raise SchemaMismatch("read parquet", subject, f"column {EXACT_COLUMN} is missing")
    known = {}
    for column in columns:
        name = names.get(column.field_id)
        if name is None:
            cause = f"column {column.name} (field id {column.field_id}) is missing"
            raise SchemaMismatch("read parquet", subject, cause)
        have = found.field(name).type
        if not _fits(have, arrow_type(column)):
            raise SchemaMismatch("read parquet", subject, f"column {column.name} is {have}, not {arrow_type(column)}")
        known[column.name] = name
    return known


def _fits(have: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_decimal(have) and pa.types.is_decimal(wanted):
        return bool(have.scale == wanted.scale and have.precision <= wanted.precision)
    if isinstance(wanted, pa.BaseExtensionType):  # as written without Arrow's own schema, a UUID is its storage
        return have in (wanted, wanted.storage_type)
    return have == wanted or (have, wanted) in ((pa.int32(), pa.int64()), (pa.float32(), pa.float64()))


def _translator(
    found: pa.Schema, columns: Sequence[Column], known: Mapping[str, str]
) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
    """Make the function that gives a batch of the file the columns' names and types of today."""
    cast = {c.name: arrow_type(c) for c in columns if _is_narrower(found.field(known[c.name]).type, arrow_type(c))}
    renamed = {old: new for new, old in known.items()}
    is_same = not cast and all(old == new for new, old in known.items())
    names = [*(c.name for c in columns), EXACT_COLUMN]

    def translate(batch: pa.RecordBatch) -> pa.RecordBatch:
        if is_same:
            return batch
        arrays = [batch.column(known[c.name]) for c in columns]
        arrays = [a.cast(cast[c.name]) if c.name in cast else a for c, a in zip(columns, arrays, strict=True)]
        exact = batch.column(EXACT_COLUMN)
        if exact.null_count < len(exact):
            exact = texts([_renamed_exact(text, renamed) for text in exact.to_pylist()])
        return pa.RecordBatch.from_arrays([*arrays, exact], names=names)

    return translate


def _is_narrower(have: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_decimal(have):
        return bool(have.precision < wanted.precision)
    return have != wanted and (have, wanted) in ((pa.int32(), pa.int64()), (pa.float32(), pa.float64()))


def _renamed_exact(text: str | None, renamed: Mapping[str, str]) -> str | None:
    if text is None:
        return None
    kept = {renamed[name]: value for name, value in json.loads(text).items() if name in renamed}
    return exact_json(kept) if kept else None
