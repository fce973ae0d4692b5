"""Fingerprints: the same numbers from PostgreSQL's own hash functions and, independently, from Arrow batches.

Each value is hashed with the hash of its row's key as seed, and summed modulo 2**64 per column: the order of
rows does not matter, values swapped between rows do. Key columns all carry the sum of the key hashes.

PostgreSQL's numeric hash ignores the sign and gives back the seed for NaN; its float hash makes -0 and 0 equal.
So a negative numeric is hashed with the seed inverted, and floats by the bits they are sent in.
Source: the functions named here exist in PostgreSQL 14 and later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering.errors import SchemaMismatch
from tiering.model import Column, ColumnPrint, Fingerprint, Kind
from tiering.stores import pghash_kernels as kernel
from tiering.stores.pgcopy_matrix import Matrix
from tiering.stores.pgcopy_read import Relation, identify
from tiering.stores.postgres import fetch_one

_MODULUS = 1 << 64
_HASH_ROWS = 16_384

_SQL: dict[Kind, str] = {
    Kind.BOOL: "hashint4extended({c}::integer, {k})",
    Kind.INT2: "hashint2extended({c}, {k})",
    Kind.INT4: "hashint4extended({c}, {k})",
    Kind.INT8: "hashint8extended({c}, {k})",
    Kind.FLOAT4: "CASE WHEN {c} IS NOT NULL THEN hash_record_extended(ROW(float4send({c})), {k}) END",
    Kind.FLOAT8: "CASE WHEN {c} IS NOT NULL THEN hash_record_extended(ROW(float8send({c})), {k}) END",
    Kind.DECIMAL: "hash_numeric_extended({c}, CASE WHEN {c} < 0 THEN ~{k} ELSE {k} END)",
    Kind.TEXT: 'hashtextextended({c} COLLATE "C", {k})',
    Kind.EXACT_TEXT: 'hashtextextended({c}::text COLLATE "C", {k})',
    Kind.BYTES: "CASE WHEN {c} IS NOT NULL THEN hash_record_extended(ROW({c}), {k}) END",
    Kind.DATE: "CASE WHEN {c} IS NOT NULL THEN hash_record_extended(ROW({c}), {k}) END",
    Kind.TIMESTAMP: "timestamp_hash_extended({c}, {k})",
    Kind.TIMESTAMPTZ: "timestamp_hash_extended({c}::timestamp, {k})",
    Kind.UUID: "uuid_hash_extended({c}, {k})",
}

_KERNEL: dict[Kind, int] = {
    Kind.BOOL: kernel.HASH_INT4,
    Kind.INT2: kernel.HASH_INT4,
    Kind.INT4: kernel.HASH_INT4,
    Kind.DATE: kernel.HASH_INT4,
    Kind.INT8: kernel.HASH_INT8,
    Kind.TIMESTAMP: kernel.HASH_INT8,
    Kind.TIMESTAMPTZ: kernel.HASH_INT8,
    Kind.FLOAT4: kernel.HASH_BITS4,
    Kind.FLOAT8: kernel.HASH_BITS8,
    Kind.DECIMAL: kernel.HASH_NUMERIC,
    Kind.TEXT: kernel.HASH_BYTES,
    Kind.EXACT_TEXT: kernel.HASH_BYTES,
    Kind.BYTES: kernel.HASH_BYTES,
    Kind.UUID: kernel.HASH_BYTES,
}


def fingerprint_query(
    relation: Relation, columns: Sequence[Column], key: Sequence[str], where: sql.Composable | None = None
) -> sql.Composed:
    """Make the one-scan query whose single row `parse_fingerprint` reads.

    Run it in a session made ready by `pgcopy.prepare_session`: values are hashed as UTC and as text there.

    Args:
        relation: table, view, or a subselect in parentheses with an alias.
        columns: those to compare, the key's among them.
        key: names of the columns that identify a row.
        where: a condition without parameters.

    Raises:
        SchemaMismatch: a key column is not among `columns`.
    """
    keys = _key_columns(columns, key)
    seeds: sql.Composable = sql.SQL("0")
    for column in keys:
        hashed = _hash_sql(column, seeds)
        seeds = sql.SQL("COALESCE({}, {})").format(hashed, seeds) if column.nullable else hashed
    names = [sql.Identifier(c.name) for c in columns]
    prints: list[sql.Composable] = [sql.SQL("count(*)"), sql.SQL("sum(_seed)")]
    for column in (c for c in columns if c.name not in key):
        value = sql.Identifier(column.name)
        prints += [sql.SQL("count({})").format(value), sql.SQL("sum({})").format(_hash_sql(column, sql.SQL("_seed")))]
    prints += [sql.SQL("count({})").format(sql.Identifier(c.name)) for c in keys if c.nullable]
    condition = sql.SQL(" WHERE {}").format(where) if where is not None else sql.SQL("")
    # The volatile (but parallel-safe) call keeps the planner from pulling the subselect up, which would
    # compute the seed again for every column; OFFSET 0 would too, but forbids a parallel scan.
    return sql.SQL("SELECT {} FROM (SELECT {}, {} AS _seed, pg_is_in_recovery() FROM {}{}) AS rows").format(
        sql.SQL(", ").join(prints), sql.SQL(", ").join(names), seeds, identify(relation), condition
    )


def parse_fingerprint(row: Sequence[Any], columns: Sequence[Column], key: Sequence[str]) -> Fingerprint:
    """Read the row that `fingerprint_query` gives for the same columns and key."""
    cells = iter(row)
    row_count, key_sum = int(next(cells)), int(next(cells) or 0)
    found = {}
    for column in (c for c in columns if c.name not in key):
        found[column.name] = int(next(cells)), int(next(cells) or 0)
    for column in _key_columns(columns, key):
        found[column.name] = (int(next(cells)) if column.nullable else row_count), key_sum
    return Fingerprint(row_count, tuple(_print(c.name, *found[c.name]) for c in columns))


def fingerprint(
    connection: Connection, relation: Relation, columns: Sequence[Column], key: Sequence[str]
) -> Fingerprint:
    """Ask PostgreSQL itself for a relation's fingerprint: one scan in the caller's transaction."""
    row = fetch_one(connection, fingerprint_query(relation, columns, key))
    assert row is not None, "an aggregate gives one row"
    return parse_fingerprint(row, columns, key)


def fingerprint_batches(
    batches: Iterable[pa.RecordBatch], columns: Sequence[Column], key: Sequence[str]
) -> Fingerprint:
    """Compute the same fingerprint from Arrow batches, e.g. a lake file read back.

    Raises:
        SchemaMismatch: a key column is not among `columns`, or a batch does not fit them.
        TieringError: whatever `batches` raises.
    """
    keys = [list(columns).index(c) for c in _key_columns(columns, key)]
    kinds = np.array([_KERNEL[c.kind] for c in columns], np.int64)
    scales = np.array([c.scale for c in columns], np.int64)
    is_key = np.array([c.name in key for c in columns], np.bool_)
    counts, sums = np.zeros(len(columns), np.int64), np.zeros(len(columns), np.uint64)
    row_count = 0
    for batch in batches:
        for begin in range(0, batch.num_rows, _HASH_ROWS):
            part = Matrix(batch.slice(begin, _HASH_ROWS), columns)
            row_count += part.row_count
            kernel.hash_rows(
                kinds, scales, np.array(keys, np.int64), is_key, part.values, part.extra, part.state, counts, sums
            )
    return Fingerprint(row_count, tuple(_print(c.name, int(counts[i]), int(sums[i])) for i, c in enumerate(columns)))


def _key_columns(columns: Sequence[Column], key: Sequence[str]) -> list[Column]:
    by_name = {c.name: c for c in columns}
    missing = [name for name in key if name not in by_name]
    if missing or not key:
        raise SchemaMismatch("fingerprint", ", ".join(missing) or "key", "the key columns are not among the columns")
    return [by_name[name] for name in key]


def _hash_sql(column: Column, seed: sql.Composable) -> sql.Composable:
    return sql.SQL(_SQL[column.kind]).format(c=sql.Identifier(column.name), k=seed)


def _print(name: str, count: int, hash_sum: int) -> ColumnPrint:
    return ColumnPrint(name, count, hash_sum % _MODULUS)
