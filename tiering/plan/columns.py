"""Choose how the lake carries each PostgreSQL column. Pure.

Does not: ask a database; `stores/` describes the table and hands the description in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tiering.errors import SchemaMismatch
from tiering.model import EXACT_COLUMN, Column, Kind, LakeColumn

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


def plan_columns(
    described: Sequence[tuple[str, str, bool]], field_ids: Mapping[str, int] | None = None
) -> tuple[Column, ...]:
    """Choose a kind for each (name, `format_type()` text, is NOT NULL), in table order.

    Whatever has no exact typed form in Parquet travels as PostgreSQL's own text.

    Args:
        described: the table.
        field_ids: by name, as the ledger remembers them; without it they count from 1, which is right for a table
            that nobody remembers anything of.

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
        _plan_column(name, pg_type, field_ids[name] if field_ids else number, is_not_null)
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


@dataclass(frozen=True, slots=True)
class Lineage:
    """The columns of a dataset through time: live ones in the hot table's order, then the retired ones.

    Attributes:
        columns: each with the type that warm and cold copies have.
        problems: changes that stored data cannot follow, in words; such a column keeps its old type here.
    """

    columns: tuple[LakeColumn, ...]
    problems: tuple[str, ...] = ()


def trace_columns(
    dataset: str,
    described: Sequence[tuple[int, str, str]],
    known: Sequence[LakeColumn],
    *,
    is_same_table: bool,
    highest_id: int = 0,
) -> Lineage:
    """Recognise the hot table's columns again and give field ids to new ones.

    In the table that the ledger knows, a column is its attnum: a new name is a rename, an attnum that is gone is a
    drop, and one that was dropped never returns. In another table (restored from a dump, made anew) attnums mean
    nothing, so names decide, and all of them must be there: what is missing may have been renamed or dropped.

    Args:
        dataset: for the error's text.
        described: (attnum, name, type) of the hot table, in order.
        known: what the ledger remembers.
        is_same_table: the known attnums are of this table.
        highest_id: of any field id ever given away, where the ledger does not know it.

    Raises:
        SchemaMismatch: another table, which lacks columns.
    """
    live = {(c.attnum if is_same_table else c.name): c for c in known if c.is_live}
    if not is_same_table:
        _demand_all(dataset, {name for _, name, _ in described}, [c.name for c in known if c.is_live])
    taken = max([highest_id, *(c.field_id for c in known)], default=0)
    found: list[LakeColumn] = []
    problems: list[str] = []
    for attnum, name, pg_type in described:
        old = live.pop(attnum if is_same_table else name, None)
        if old is None:
            taken += 1
            found.append(LakeColumn(taken, name, pg_type, attnum))
            continue
        if not follows(old.pg_type, pg_type):
            problems.append(f"column {name} was {old.pg_type} and is {pg_type}")
            pg_type = old.pg_type
        found.append(LakeColumn(old.field_id, name, pg_type, attnum))
    return Lineage((*found, *_retired(found, known, live.values())), tuple(problems))


def _demand_all(dataset: str, there: set[str], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in there]
    if missing:
        raise SchemaMismatch(
            "recognise columns of",
            dataset,
            f"the hot table is another one than before and lacks {', '.join(missing)}",
            "Give the columns their old names until one run has seen the table; then rename or drop them.",
        )


def _retired(live: Sequence[LakeColumn], known: Sequence[LakeColumn], lost: Iterable[LakeColumn]) -> list[LakeColumn]:
    """List the columns that the hot table has lost; one whose name is taken again steps aside."""
    names = {c.name for c in live}
    gone = [c for c in known if not c.is_live] + [replace(c, is_live=False) for c in lost]
    return [
        replace(c, name=f"{c.name[:50]}_f{c.field_id}") if c.name in names else c
        for c in sorted(gone, key=lambda c: c.field_id)
    ]


def follows(old: str, new: str) -> bool:
    """Tell whether data stored as one PostgreSQL type can be read as another without loss, in every tier.

    What Iceberg promotes (int to bigint, a decimal of more digits, real to double), and lengths that only grow.
    Source: https://iceberg.apache.org/spec/#schema-evolution
    """
    if old == new:
        return True
    (kind, precision, scale), (new_kind, new_precision, new_scale) = _choose_kind(old), _choose_kind(new)
    if kind is Kind.DECIMAL and new_kind is Kind.DECIMAL:
        return scale == new_scale and precision <= new_precision
    if kind is Kind.TEXT and new_kind is Kind.TEXT:
        return _length(old) <= _length(new)
    wider = {(Kind.INT2, Kind.INT4), (Kind.INT2, Kind.INT8), (Kind.INT4, Kind.INT8), (Kind.FLOAT4, Kind.FLOAT8)}
    return (kind, new_kind) in wider


def _length(pg_type: str) -> float:
    match = re.search(r"\((\d+)\)", pg_type)
    return int(match[1]) if match else float("inf")
