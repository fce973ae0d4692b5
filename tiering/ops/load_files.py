"""Read CSV and Parquet files as text, column by column, with the line that each row stands in.

Does not: judge a value; it goes on exactly as written (a Parquet float as its shortest text that reads back equal).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from tiering import errors

BLOCK_BYTES = 4 << 20
ROWS_AT_ONCE = 50_000
_PARQUET = (".parquet", ".pq")
_HINT = "Give a CSV file with a header line, or a Parquet file; nothing was loaded."


def header(path: Path) -> list[str]:
    """List a file's columns.

    Raises:
        NotFound: no such file.
        SchemaMismatch: neither CSV with a header nor Parquet.
    """
    with _mapped(path):
        if path.suffix.lower() in _PARQUET:
            return [str(name) for name in parquet.read_schema(path).names]
        with path.open("rb") as file:
            # One line is enough, and a file with bad rows still has a header.
            line = file.readline(1 << 20)
        if not line.strip():
            raise errors.SchemaMismatch("load", path.name, "the file is empty", _HINT)
        return [str(name) for name in csv.read_csv(pa.BufferReader(line)).column_names]


def text_batches(path: Path, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (line of the first row, batch of text columns); lines of a Parquet file are its rows, from 1.

    Raises:
        SchemaMismatch: a line with too few or too many fields (named), text that is not UTF-8, damaged Parquet.
    """
    with _mapped(path):
        if path.suffix.lower() in _PARQUET:
            yield from _parquet_batches(path, columns)
        else:
            yield from _csv_batches(path, columns)


def _csv_batches(path: Path, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    ragged: list[str] = []

    def note(row: Any) -> str:
        # `number` counts the file's lines as they are: the header is line 1.
        where = f"line {row.number}" if row.number is not None else repr(row.text[:80])
        ragged.append(f"{where}: {row.actual_columns} fields instead of {row.expected_columns}")
        return "skip"  # to the end of the block, to report more than one

    reader = csv.open_csv(
        path,
        read_options=csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
        parse_options=csv.ParseOptions(invalid_row_handler=note, ignore_empty_lines=False),
        convert_options=csv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    line = 2
    with reader:
        for batch in reader:
            if ragged:
                shown = "; ".join(ragged[:20]) + (f"; and {len(ragged) - 20} more" if len(ragged) > 20 else "")
                raise errors.SchemaMismatch("load", path.name, f"{len(ragged)} bad lines: {shown}", _HINT)
            yield line, batch
            line += batch.num_rows
    if ragged:
        raise errors.SchemaMismatch("load", path.name, "; ".join(ragged[:20]), _HINT)


def _parquet_batches(path: Path, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    row = 1
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
            yield row, pa.RecordBatch.from_arrays([_text(batch.column(c), c) for c in columns], names=columns)
            row += batch.num_rows


def _text(array: pa.Array, name: str) -> pa.Array:
    kind = array.type
    if pa.types.is_dictionary(kind):
        array = array.dictionary_decode()
        kind = array.type
    if pa.types.is_timestamp(kind):
        text = array.cast(pa.timestamp("us")).cast(pa.string())  # refuses to cut nanoseconds
        return pc.binary_join_element_wise(text, "Z", "") if kind.tz else text
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise errors.SchemaMismatch("load", name, f"a Parquet column of type {kind} cannot be loaded", _HINT)
    return array.cast(pa.string())


@contextmanager
def _mapped(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        raise errors.NotFound("load", str(path), "no such file", "Check the path.") from exc
    except OSError as exc:
        raise errors.PermanentError("load", str(path), exc.strerror or str(exc), "Can the file be read?") from exc
    except pa.ArrowException as exc:
        raise errors.SchemaMismatch("load", path.name, " ".join(str(exc).split()), _HINT) from exc
