"""Read a query's syntax tree: which datasets it asks for, which of their columns, and which rows surely not.

The tree is what DuckDB's `json_serialize_sql` says. Everything found here only narrows what is fetched; the engine
applies the whole query afterwards, so where the tree is not understood the answer is "all of it".
Does not: know SQL text, or run anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiering.errors import PermanentError
from tiering.model import EXACT_COLUMN

Node = dict[str, Any]

_COMPARE = {
    "COMPARE_EQUAL": "=",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_LESSTHANOREQUALTO": "<=",
}
_MIRRORED = {"=": "=", ">": "<", ">=": "<=", "<": ">", "<=": ">="}
_JOINS = ("INNER", "LEFT", "RIGHT", "OUTER")
_NOW = ("now", "get_current_timestamp", "current_timestamp", "transaction_timestamp", "current_date", "today")
_ARITHMETIC = ("+", "-")
_FIXED = ("to_years", "to_months", "to_weeks", "to_days", "to_hours", "to_minutes", "to_seconds", "trunc", "date_trunc")


class BadQuery(PermanentError):
    """The query is wrong, not the stores."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition `column operator value` that every wanted row meets; values are constant expressions.

    With several values the operator is `=` and one of them has to match.
    """

    column: str
    operator: str
    values: tuple[Node, ...] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Need:
    """What a query needs of one dataset."""

    dataset: str
    columns: tuple[str, ...]
    filters: tuple[Filter, ...]
    wants_exact: bool


def demand_select(tree: Node) -> Node:
    """Return the one SELECT of a parsed text.

    Raises:
        BadQuery: a syntax error, another kind of statement, or more than one.
    """
    if tree.get("error"):
        cause = str(tree.get("error_message", "not understood"))
        if tree.get("error_type") == "not implemented":
            cause = "only SELECT statements are answered"
        raise BadQuery("query", "SQL", cause, "Write one SELECT statement; nothing can be changed through it.")
    statements = tree.get("statements", [])
    if len(statements) != 1:
        raise BadQuery("query", "SQL", f"{len(statements)} statements", "Write exactly one SELECT statement.")
    node: Node = statements[0]["node"]
    return node


def find_needs(select: Node, columns_of: Mapping[str, Sequence[str]]) -> list[Need]:
    """Say what a query needs of each dataset that it names.

    Args:
        select: as `demand_select` returns it.
        columns_of: the columns of every dataset there is, in order.
    """
    tables = [node for node in _walk(select) if node.get("type") == "BASE_TABLE"]
    words = set(_words(select))
    found = []
    for dataset, columns in columns_of.items():
        named = [node for node in tables if _is_dataset(node, dataset)]
        if named:
            wanted = columns if _wants_all(select, named, columns) else [c for c in columns if c.lower() in words]
            filters = tuple(_filters(select, named[0], columns)) if len(named) == 1 else ()
            found.append(Need(dataset, tuple(wanted), filters, EXACT_COLUMN in words))
    return found


def _is_dataset(table: Node, dataset: str) -> bool:
    return str(table["table_name"]).lower() == dataset and not table["schema_name"]


def _wants_all(select: Node, named: Sequence[Node], columns: Sequence[str]) -> bool:
    """Tell whether columns may be meant that are not spelt out: `*`, a whole row by its table's name, NATURAL."""
    rows = {str(node["alias"] or node["table_name"]).lower() for node in named}
    names = {column.lower() for column in columns}
    for node in _walk(select):
        if node.get("class") == "STAR" or node.get("type") in ("PIVOT", "SHOW_REF", "COLUMN_DATA", "TABLE_FUNCTION"):
            return True
        if node.get("ref_type") in ("NATURAL", "POSITIONAL"):
            return True
        if node.get("class") == "COLUMN_REF":
            first = str(node["column_names"][0]).lower()
            if first in rows and (len(node["column_names"]) == 1 and first not in names):
                return True
    return any(node["column_name_alias"] for node in named)


def _filters(select: Node, table: Node, columns: Sequence[str]) -> Iterator[Filter]:
    """Yield the conditions on a table that occurs once, from the WHERE of the SELECT that it stands in."""
    home = next(
        (n for n in _walk(select) if n.get("type") == "SELECT_NODE" and _stands_in(n["from_table"], table)), None
    )
    if home is None or not home.get("where_clause") or table["column_name_alias"] or table["sample"]:
        return
    is_alone = home["from_table"] is table
    renamed = {str(e.get("alias", "")).lower() for e in home["select_list"]}
    alias = str(table["alias"] or table["table_name"]).lower()

    def column_of(node: Node) -> str | None:
        if node.get("class") != "COLUMN_REF":
            return None
        path = [str(part).lower() for part in node["column_names"]]
        # Unqualified in a join it may be another table's; as an alias of the select list it may be anything.
        is_ours = path[0] == alias if len(path) == 2 else len(path) == 1 and is_alone and path[0] not in renamed
        return next((c for c in columns if c.lower() == path[-1]), None) if is_ours else None

    for condition in _conjuncts(home["where_clause"]):
        yield from _filters_of(condition, column_of)


def _stands_in(source: Node, table: Node) -> bool:
    """Tell whether a FROM holds the table where a WHERE above it may be applied first: alone or in plain joins."""
    if source is table:
        return True
    if source.get("type") != "JOIN" or source.get("join_type") not in _JOINS or source.get("ref_type") == "POSITIONAL":
        return False
    if source.get("ref_type") not in ("REGULAR", "CROSS"):
        return False
    return _stands_in(source["left"], table) or _stands_in(source["right"], table)


def _conjuncts(condition: Node) -> Iterator[Node]:
    if condition.get("type") == "CONJUNCTION_AND":
        for child in condition["children"]:
            yield from _conjuncts(child)
    else:
        yield condition


def _filters_of(condition: Node, column_of: Any) -> Iterator[Filter]:
    kind = condition.get("type")
    if kind in _COMPARE:
        operator = _COMPARE[kind]
        left, right = condition["left"], condition["right"]
        if column_of(left) is None:
            left, right, operator = right, left, _MIRRORED[operator]
        yield from _compared(column_of(left), operator, right)
    elif kind == "COMPARE_BETWEEN":
        column = column_of(condition["input"])
        yield from _compared(column, ">=", condition["lower"])
        yield from _compared(column, "<=", condition["upper"])
    elif kind == "COMPARE_IN":
        column, values = column_of(condition["children"][0]), condition["children"][1:]
        if column and values and all(_is_constant(value) for value in values):
            yield Filter(column, "=", tuple(values))


def _compared(column: str | None, operator: str, value: Node) -> Iterator[Filter]:
    # now() is asked for a moment before the engine asks for its own: that is wider for a lower bound only.
    if column and _is_constant(value, with_now=operator in (">", ">=")):
        yield Filter(column, operator, (value,))


def _is_constant(node: Node, with_now: bool = False) -> bool:
    """Tell whether an expression has one value, which does not shrink as time goes on."""
    kind = node.get("class")
    if kind == "CONSTANT":
        return True
    if kind == "CAST":
        return _is_constant(node["child"], with_now)
    if kind != "FUNCTION":
        return False
    name, children = node["function_name"], node["children"]
    if name in _NOW:
        return with_now and not children
    if name in _ARITHMETIC and len(children) == 2:
        return _is_constant(children[0], with_now) and _is_constant(children[1], with_now and name == "+")
    return name in _FIXED and all(_is_constant(child, with_now and name == "date_trunc") for child in children)


def _walk(value: Any) -> Iterator[Node]:
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from _walk(child)
    elif isinstance(value, list):
        for child in value:
            yield from _walk(child)


def _words(value: Any) -> Iterator[str]:
    """Yield every string in the tree in lower case: whatever a column is called there, it is among them."""
    if isinstance(value, str):
        yield value.lower()
    elif isinstance(value, dict):
        for child in value.values():
            yield from _words(child)
    elif isinstance(value, list):
        for child in value:
            yield from _words(child)
