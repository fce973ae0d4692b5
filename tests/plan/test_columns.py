"""Every PostgreSQL type gets a kind that can hold it exactly."""

from __future__ import annotations

import pytest

from tiering.errors import SchemaMismatch
from tiering.model import EXACT_COLUMN, Kind, LakeColumn
from tiering.plan.columns import follows, plan_columns, trace_columns


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


KNOWN = [LakeColumn(1, "a", "integer", 1), LakeColumn(2, "b", "text", 2), LakeColumn(3, "c", "numeric(18,2)", 3)]


def traced(*described: tuple[int, str, str], same: bool = True) -> list[tuple[int, str, str, bool]]:
    found = trace_columns("bars", described, KNOWN, is_same_table=same)
    return [(c.field_id, c.name, c.pg_type, c.is_live) for c in found.columns]


def test_a_column_dropped_in_the_middle_shifts_nobody() -> None:
    found = traced((1, "a", "integer"), (3, "c", "numeric(18,2)"), (4, "d", "date"))
    assert found == [(1, "a", "integer", True), (3, "c", "numeric(18,2)", True), (4, "d", "date", True),
                     (2, "b", "text", False)]  # fmt: skip


def test_a_rename_keeps_the_id_and_a_returning_name_gets_a_new_one() -> None:
    found = traced((1, "b", "integer"), (3, "c", "numeric(18,2)"), (4, "a", "integer"))
    assert found == [(1, "b", "integer", True), (3, "c", "numeric(18,2)", True), (4, "a", "integer", True),
                     (2, "b_f2", "text", False)]  # fmt: skip


def test_columns_that_took_each_others_name_keep_their_ids() -> None:
    assert [c[:2] for c in traced((1, "b", "integer"), (2, "a", "text"), (3, "c", "numeric(18,2)"))] == [
        (1, "b"),
        (2, "a"),
        (3, "c"),
    ]


def test_in_another_table_names_decide_and_all_must_be_there() -> None:
    found = traced((1, "c", "numeric(18,2)"), (2, "a", "integer"), (3, "b", "text"), (4, "d", "date"), same=False)
    assert [c[:2] for c in found] == [(3, "c"), (1, "a"), (2, "b"), (4, "d")]
    with pytest.raises(SchemaMismatch, match="lacks b"):
        traced((1, "a", "integer"), (2, "c", "numeric(18,2)"), same=False)


@pytest.mark.parametrize(
    ("old", "new", "is_followed"),
    [
        ("integer", "bigint", True),
        ("smallint", "integer", True),
        ("bigint", "integer", False),
        ("real", "double precision", True),
        ("numeric(18,2)", "numeric(38,2)", True),
        ("numeric(18,2)", "numeric(18,4)", False),
        ("numeric(18,2)", "numeric", False),
        ("character varying(8)", "text", True),
        ("character varying(8)", "character varying(16)", True),
        ("text", "character varying(8)", False),
        ("text", "jsonb", False),
        ("integer", "text", False),
    ],
)
def test_only_changes_that_lose_nothing_anywhere_are_followed(old: str, new: str, is_followed: bool) -> None:
    assert follows(old, new) is is_followed
    known = [LakeColumn(1, "a", old, 1)]
    found = trace_columns("bars", [(1, "a", new)], known, is_same_table=True)
    assert bool(found.problems) is not is_followed
    assert found.columns[0].pg_type == (new if is_followed else old)
