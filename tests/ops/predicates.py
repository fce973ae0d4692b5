"""Random predicates over a dataset's columns, in every language that has to agree on them.

A predicate is drawn once and then rendered as SQL (the same text for PostgreSQL and DuckDB, but for the columns),
worked out in Python in three-valued logic, and translated for pyiceberg. The order is PostgreSQL's: NaN equals itself
and is above every number, -0 equals 0, text compares by code points (`COLLATE "C"`), uuids by bytes.
Times are microseconds since 1970 and dates are days, because Python's own end with the year 9999.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

from tiering.model import EXACT_COLUMN, Column, Kind

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
OPERATORS = ("=", "<>", "<", "<=", ">", ">=")
ZONES = ("+00:00", "+08:00", "-05:00", "+05:30", "-09:30", "+14:00")
Row = Mapping[str, Any]
Truth = bool | None


@dataclass(frozen=True)
class Literal:
    """A constant: its SQL and its value; None is NULL."""

    sql: str
    value: Any


NULL = Literal("NULL", None)


@dataclass(frozen=True)
class Compare:
    """`column operator literal`."""

    column: str
    operator: str
    literal: Literal


@dataclass(frozen=True)
class In:
    """`column [NOT] IN (…)`."""

    column: str
    literals: tuple[Literal, ...]
    negated: bool


@dataclass(frozen=True)
class Between:
    """`column [NOT] BETWEEN low AND high`."""

    column: str
    low: Literal
    high: Literal
    negated: bool


@dataclass(frozen=True)
class IsNull:
    """`column IS [NOT] NULL`."""

    column: str
    negated: bool


@dataclass(frozen=True)
class Distinct:
    """`column IS [NOT] DISTINCT FROM literal`."""

    column: str
    literal: Literal
    negated: bool


@dataclass(frozen=True)
class Exact:
    """What only `_exact` holds of the column is this text."""

    column: str
    text: str


@dataclass(frozen=True)
class Join:
    """Parts joined by AND or OR."""

    word: str
    parts: tuple[Predicate, ...]


@dataclass(frozen=True)
class Not:
    """NOT of a part."""

    part: Predicate


Predicate = Compare | In | Between | IsNull | Distinct | Exact | Join | Not


# -- drawing ----------------------------------------------------------------------------------------------------


def draw(
    dice: random.Random,
    columns: Sequence[Column],
    literals: Callable[[random.Random, Column], Literal],
    exact: Mapping[str, Sequence[str]],
    narrowing: Sequence[str],
) -> Predicate:
    """Draw one predicate; nearly half of them narrow by a column of the key first, as people's queries do.

    Args:
        dice: seeded.
        columns: to choose from.
        literals: draws a constant to compare a column with.
        exact: per column, texts that `_exact` may hold of it.
        narrowing: the columns that a query pushes down.
    """

    def atom(column: Column) -> Predicate:
        form = dice.random()
        if form < 0.45:
            return Compare(column.name, dice.choice(OPERATORS), literals(dice, column))
        if form < 0.60:
            some = tuple(literals(dice, column) for _ in range(dice.randrange(1, 5)))
            return In(column.name, (*some, NULL) if dice.random() < 0.1 else some, dice.random() < 0.4)
        if form < 0.72:
            return Between(column.name, literals(dice, column), literals(dice, column), dice.random() < 0.3)
        if form < 0.82:
            return IsNull(column.name, dice.random() < 0.5)
        if form < 0.94 or column.name not in exact:
            literal = NULL if dice.random() < 0.1 else literals(dice, column)
            return Distinct(column.name, literal, dice.random() < 0.5)
        return Exact(column.name, dice.choice(exact[column.name]))

    def tree(depth: int) -> Predicate:
        form = dice.random()
        if depth == 0 or form < 0.4:
            return atom(dice.choice(columns))
        if form < 0.55:
            return Not(tree(depth - 1))
        word = "AND" if form < 0.75 else "OR"
        return Join(word, tuple(tree(depth - 1) for _ in range(dice.randrange(2, 4))))

    whole = tree(3)
    if dice.random() < 0.45:
        column = dice.choice([column for column in columns if column.name in narrowing])
        whole = Join("AND", (atom(column), whole))
    return whole


def time_literal(dice: random.Random, instant: datetime) -> Literal:
    """Write an instant in some zone and some form; a date or a text without zone is UTC's."""
    value = (instant - EPOCH) // MICROSECOND
    if instant.astimezone(UTC).timetz() == EPOCH.timetz() and dice.random() < 0.5:
        return Literal(f"DATE '{instant:%Y-%m-%d}'", value)
    zone = dice.choice(ZONES)
    sign = -1 if zone[0] == "-" else 1
    there = instant.astimezone(timezone(sign * timedelta(hours=int(zone[1:3]), minutes=int(zone[4:]))))
    text = there.strftime("%Y-%m-%d %H:%M:%S.%f") + zone
    bare = instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    forms = (f"TIMESTAMPTZ '{text}'", f"CAST('{text}' AS timestamptz)", f"'{text}'", f"TIMESTAMPTZ '{bare}'")
    return Literal(dice.choice(forms), value)


def text_literal(text: str) -> Literal:
    """Quote a text; a NUL has no place in SQL's own text."""
    parts = ["'" + part.replace("'", "''") + "'" for part in text.split("\0")]
    return Literal(" || chr(0) || ".join(parts) if len(parts) == 1 else f"({' || chr(0) || '.join(parts)})", text)


def float_literal(dice: random.Random, value: float) -> Literal:
    """Write a double, as a number or as a cast text."""
    if math.isfinite(value) and dice.random() < 0.5 and abs(value) < 1e6:
        return Literal(f"({value!r})" if "e" not in repr(value) else f"CAST('{value!r}' AS double precision)", value)
    name = {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN" if math.isnan(value) else repr(value))
    return Literal(f"CAST('{name}' AS double precision)", value)


# -- SQL --------------------------------------------------------------------------------------------------------


def render(predicate: Predicate, column: Callable[[str], str], exact: Callable[[str, str], str]) -> str:
    """Write a predicate as SQL, its columns and its questions to `_exact` as the callables say."""

    def sql(node: Predicate) -> str:
        match node:
            case Compare(name, operator, literal):
                return f"{column(name)} {operator} {literal.sql}"
            case In(name, literals, negated):
                listed = ", ".join(literal.sql for literal in literals)
                return f"{column(name)} {'NOT ' if negated else ''}IN ({listed})"
            case Between(name, low, high, negated):
                return f"{column(name)} {'NOT ' if negated else ''}BETWEEN {low.sql} AND {high.sql}"
            case IsNull(name, negated):
                return f"{column(name)} IS {'NOT ' if negated else ''}NULL"
            case Distinct(name, literal, negated):
                return f"{column(name)} IS {'NOT ' if negated else ''}DISTINCT FROM {literal.sql}"
            case Exact(name, text):
                return exact(name, text)
            case Join(word, parts):
                return "(" + f" {word} ".join(map(sql, parts)) + ")"
            case Not(part):
                return f"(NOT ({sql(part)}))"
        raise AssertionError(node)

    return sql(predicate)


def lake_sql(predicate: Predicate) -> str:
    """Write a predicate for the columns as queries and the lake have them."""
    return render(predicate, lambda name: f'"{name}"', _exact_sql)


def _exact_sql(name: str, text: str) -> str:
    return f"json_extract_string({EXACT_COLUMN}, '$.\"{name}\"') IS NOT DISTINCT FROM {text_literal(text).sql}"


def source_sql(predicate: Predicate, columns: Sequence[Column]) -> str:
    """Write a predicate for PostgreSQL's own columns, where a value that only `_exact` can hold counts as NULL."""
    kinds = {column.name: column.kind for column in columns}

    def column(name: str) -> str:
        quoted = f'"{name}"'
        match kinds[name]:
            case Kind.TEXT:
                return f'({quoted} COLLATE "C")'
            case Kind.EXACT_TEXT:
                return f'({quoted}::text COLLATE "C")'
            case Kind.DECIMAL:
                return f"NULLIF({quoted}, 'NaN')"
            case Kind.DATE:
                return f"(CASE WHEN isfinite({quoted}) THEN {quoted} END)"
        return quoted

    return render(predicate, column, lambda name, text: f"\"{name}\" IS NOT DISTINCT FROM '{text}'")


# -- Python -----------------------------------------------------------------------------------------------------


def ordered(value: Any) -> Any:
    """Give what a value is compared by."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, float):
        return (1, 0.0) if math.isnan(value) else (0, value)
    return value


def _compared(one: Any, operator: str, other: Any) -> Truth:
    if one is None or other is None:
        return None
    if isinstance(one, float) != isinstance(other, float):
        one, other = float(one), float(other)
    a, b = ordered(one), ordered(other)
    return {"=": a == b, "<>": a != b, "<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}[operator]


def _all(truths: Sequence[Truth]) -> Truth:
    return False if False in truths else None if None in truths else True


def _not(truth: Truth) -> Truth:
    return None if truth is None else not truth


def truth_of(predicate: Predicate, row: Row) -> Truth:
    """Work a predicate out for one row of canonical values, `_exact` a mapping or its JSON."""
    match predicate:
        case Compare(name, operator, literal):
            return _compared(row[name], operator, literal.value)
        case In(name, literals, negated):
            none = _all([_compared(row[name], "<>", literal.value) for literal in literals])
            return none if negated else _not(none)
        case Between(name, low, high, negated):
            inside = _all([_compared(row[name], ">=", low.value), _compared(row[name], "<=", high.value)])
            return _not(inside) if negated else inside
        case IsNull(name, negated):
            return (row[name] is None) != negated
        case Distinct(name, literal, negated):
            same = _compared(row[name], "=", literal.value)
            same = row[name] is None and literal.value is None if same is None else same
            return same == negated
        case Exact(name, text):
            exact = row.get(EXACT_COLUMN) or {}
            return (json.loads(exact) if isinstance(exact, str) else exact).get(name) == text
        case Join(word, parts):
            truths = [truth_of(part, row) for part in parts]
            return _all(truths) if word == "AND" else _not(_all([_not(truth) for truth in truths]))
        case Not(part):
            return _not(truth_of(part, row))


# -- values that Python's own types do not reach ------------------------------------------------------------------


def canonical(kind: Kind, value: Any) -> Any:
    """Turn a driver's value into the one that is compared here."""
    if value is None:
        return None
    if kind is Kind.TIMESTAMPTZ and isinstance(value, datetime):
        return (value - EPOCH) // MICROSECOND
    if kind is Kind.DATE and isinstance(value, date):
        return (value - EPOCH.date()).days
    if kind is Kind.UUID and not isinstance(value, UUID):
        return UUID(bytes=value) if isinstance(value, bytes) else UUID(str(value))
    if kind is Kind.DECIMAL:
        return Decimal(value)
    return value
