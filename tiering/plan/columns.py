"""Choose how the lake carries each PostgreSQL column. Pure.

Does not: ask a database; `stores/` describes the table and hands the description in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tiering.errors import SchemaMismatch
from tiering.model import EXACT_COLUMN, Column, Kind

DECIMAL_DIGITS_MAX = 38
"""The widest decimal that Parquet readers and Iceberg agree on."""

_PLAIN = {
    "boolean": Kind.BOOL,
    "smallint": Kind.INT2,
    "integer": Kind.INT4,
    "bigint": Kind.INT8,
    "real": Kind.FLOAT4,
    "double precision": Kind.FLOAT8,
    "text": Kind.TEXT,
    "character varying": Kind.TEXT,
    "bytea": Kind.BYTES,
    "date": Kind.DATE,
    "uuid": Kind.UUID,
}
_VARCHAR = re.compile(r"character varying\(\d+\)")
_NUMERIC = re.compile(r"numeric\((\d+),(-?\d+)\)")
_TIMESTAMP = re.compile(r"timestamp(?:\(\d\))? (with|without) time zone")


def plan_columns(described: Sequence[tuple[str, str, bool]]) -> tuple[Column, ...]:
    """Choose a kind for each (name, `format_type()` text, is NOT NULL), in table order; field ids from 1.

    Whatever has no exact typed form in Parquet travels as PostgreSQL's own text.

    Raises:
        SchemaMismatch: no columns, a name twice, or a name that the lake needs for itself.
    """
    names = [name for name, _, _ in described]
    if not names:
        raise SchemaMismatch("plan columns", "table", "it has no columns")
    for name in names:
        if name == EXACT_COLUMN or names.count(name) > 1:
            raise SchemaMismatch(
                "plan columns", name, "the name is taken", f"`{EXACT_COLUMN}` is the lake's own column."
            )
    return tuple(
        _plan_column(name, pg_type, number, is_not_null)
        for number, (name, pg_type, is_not_null) in enumerate(described, start=1)
    )


def _plan_column(name: str, pg_type: str, field_id: int, is_not_null: bool) -> Column:
    kind, precision, scale = _choose_kind(pg_type)
    return Column(name, pg_type, kind, precision, scale, field_id, nullable=not is_not_null)


def _choose_kind(pg_type: str) -> tuple[Kind, int, int]:
    if pg_type in _PLAIN:
        return _PLAIN[pg_type], 0, 0
    if _VARCHAR.fullmatch(pg_type):
        return Kind.TEXT, 0, 0
    if match := _TIMESTAMP.fullmatch(pg_type):
        return (Kind.TIMESTAMPTZ if match[1] == "with" else Kind.TIMESTAMP), 0, 0
    if match := _NUMERIC.fullmatch(pg_type):
        precision, scale = int(match[1]), int(match[2])
        # A scale above the precision is legal in PostgreSQL 15+ and unknown to Parquet.
        if precision <= DECIMAL_DIGITS_MAX and 0 <= scale <= precision:
            return Kind.DECIMAL, precision, scale
    return Kind.EXACT_TEXT, 0, 0
