"""Every PostgreSQL type gets a kind that can hold it exactly."""

from __future__ import annotations

import pytest

from tiering.errors import SchemaMismatch
from tiering.model import EXACT_COLUMN, Kind
from tiering.plan.columns import plan_columns


@pytest.mark.parametrize(
    ("pg_type", "kind", "precision", "scale"),
    [
        ("boolean", Kind.BOOL, 0, 0),
        ("smallint", Kind.INT2, 0, 0),
        ("integer", Kind.INT4, 0, 0),
        ("bigint", Kind.INT8, 0, 0),
        ("real", Kind.FLOAT4, 0, 0),
        ("double precision", Kind.FLOAT8, 0, 0),
        ("numeric(18,8)", Kind.DECIMAL, 18, 8),
        ("numeric(38,0)", Kind.DECIMAL, 38, 0),
        ("numeric(39,0)", Kind.EXACT_TEXT, 0, 0),
        ("numeric(5,-2)", Kind.EXACT_TEXT, 0, 0),
        ("numeric(2,4)", Kind.EXACT_TEXT, 0, 0),
        ("numeric", Kind.EXACT_TEXT, 0, 0),
        ("text", Kind.TEXT, 0, 0),
        ("character varying", Kind.TEXT, 0, 0),
        ("character varying(32)", Kind.TEXT, 0, 0),
        ("character(4)", Kind.EXACT_TEXT, 0, 0),
        ("bytea", Kind.BYTES, 0, 0),
        ("date", Kind.DATE, 0, 0),
        ("timestamp without time zone", Kind.TIMESTAMP, 0, 0),
        ("timestamp(3) with time zone", Kind.TIMESTAMPTZ, 0, 0),
        ("time without time zone", Kind.EXACT_TEXT, 0, 0),
        ("interval", Kind.EXACT_TEXT, 0, 0),
        ("uuid", Kind.UUID, 0, 0),
        ("jsonb", Kind.EXACT_TEXT, 0, 0),
        ("integer[]", Kind.EXACT_TEXT, 0, 0),
        ("int4range", Kind.EXACT_TEXT, 0, 0),
        ("my_schema.mood", Kind.EXACT_TEXT, 0, 0),
    ],
)
def test_a_type_has_its_kind(pg_type: str, kind: Kind, precision: int, scale: int) -> None:
    (column,) = plan_columns([("c", pg_type, False)])
    assert (column.kind, column.precision, column.scale) == (kind, precision, scale)
    assert column.pg_type == pg_type


def test_field_ids_count_from_one_in_table_order() -> None:
    columns = plan_columns([("b", "text", True), ("a", "integer", False)])
    assert [(c.name, c.field_id, c.nullable) for c in columns] == [("b", 1, False), ("a", 2, True)]


@pytest.mark.parametrize("names", [[], ["a", "a"], [EXACT_COLUMN]])
def test_names_that_the_lake_cannot_carry_are_refused(names: list[str]) -> None:
    with pytest.raises(SchemaMismatch):
        plan_columns([(name, "text", False) for name in names])
