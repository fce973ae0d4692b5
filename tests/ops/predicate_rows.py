"""Rows and documents whose values sit at the edges, and constants to compare them with."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import bson

from tests.ops.predicates import EPOCH, MICROSECOND, Literal, float_literal, text_literal, time_literal
from tiering.model import EXACT_COLUMN, Column, Dataset, Kind, Unit
from tiering.plan.spans import unit_of

NAN, INFINITY = float("nan"), float("inf")
TEXTS = (
    "", " ", "a", "A", "S1", "S2", "S10", "é", "e\u0301", "💹", "\uffff", "ﬃ", "NULL", "null", "NaN", "\\N", "it's",
    "%", "_", "a\tb\n", "600519.SH", "600519.SH ", "~", "x" * 200, "x" * 200 + "y",
)  # fmt: skip
FLOATS = (NAN, INFINITY, -INFINITY, -0.0, 0.0, 5e-324, 1.7976931348623157e308, 0.1, 0.30000000000000004, 0.3, -1.5, 2.0)
WHOLES = (0, 1, -1, 100, 2**31 - 1, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63))
DATES = ("2024-02-29", "1970-01-01", "1969-12-31", "0001-01-01", "9999-12-31", "2021-12-31", "2022-03-31")
FAR_DATES = ("infinity", "-infinity", "0044-03-15 BC", "12000-01-01")
JSON = ("{}", "null", '{"a": 1.10}', '{"a": 1.1}', "[1, 2]", '"x"', '{"big": 123456789012345678901234567890.5}')
ADDRESSES = ("10.0.0.1", "10.0.0.0/8", "::1", "2001:db8::1", "10.0.0.1/31")
UUIDS = (UUID(int=0), UUID(int=2**128 - 1), UUID(int=1 << 127), UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"))
DECIMAL_EDGES = ("0", "1", "-1", "0.1", "99.99", "-0.01", "100.0", "12.5")
LABELS = {
    "market_bars": "source",
    "technical_indicators": "indicator",
    "financial_statements": "source",
    "user_activity": "activity_id",
    "audit_log": "event_id",
}
"""The column by which this test knows a row: unique here, and of the key."""

# Instants where calendars turn: leap days, ends of years and months, the nights when New York and Berlin change clocks.
TURNS = tuple(
    datetime(year, month, day, tzinfo=UTC)
    for year in range(2015, 2025)
    for month, day in ((1, 1), (2, 28), (3, 1), (3, 10), (3, 13), (3, 31), (5, 31), (10, 29), (11, 5), (12, 31))
)


def unit_times(dice: random.Random, unit: Unit, step: timedelta, count: int) -> list[datetime]:
    """Choose instants of a unit: its first and last, its neighbours' midnights elsewhere, and any others."""
    length = (unit.end - unit.begin) // step
    found = [unit.begin, unit.end - step, unit.begin + step, unit.begin + timedelta(hours=2, minutes=30)]
    found += [unit.begin + dice.randrange(length) * step for _ in range(count)]
    return [at if unit.begin <= at < unit.end else unit.begin for at in found][:count]


def choose_units(dice: random.Random, dataset: Dataset, oldest: datetime, newest: datetime, count: int) -> list[Unit]:
    """Choose whole units of `[oldest, newest)`, those in which a calendar turns first."""
    turns = [at for at in TURNS if oldest <= at < newest]
    dice.shuffle(turns)
    length = int((newest - oldest).total_seconds())
    turns = turns[: count - 1] + [oldest + timedelta(seconds=dice.randrange(length)) for _ in range(20)]
    found: list[Unit] = []
    for at in turns:
        begin, end = unit_of(at, dataset.unit)
        unit = Unit(dataset.name, begin, end)
        if begin >= oldest and end <= newest and unit not in found and len(found) < count:
            found.append(unit)
    return sorted(found)


# -- rows of tables -----------------------------------------------------------------------------------------------


def decimals(column: Column) -> list[str]:
    """Give decimals at the edges of a column's type."""
    digits = "9" * (column.precision - column.scale)
    largest = f"{digits}.{'9' * column.scale}"
    return [*DECIMAL_EDGES, largest, f"-{largest}", f"0.{'0' * (column.scale - 1)}1"]


def cell(dice: random.Random, column: Column) -> str | None:
    """Draw a column's value as PostgreSQL reads it."""
    if column.nullable and dice.random() < 0.18:
        return None
    match column.kind:
        case Kind.TEXT:
            return dice.choice(TEXTS)
        case Kind.DECIMAL:
            return "NaN" if dice.random() < 0.15 else dice.choice(decimals(column))
        case Kind.FLOAT8:
            return repr(dice.choice(FLOATS))
        case Kind.INT4:
            return str(dice.choice([n for n in WHOLES if abs(n) <= 2**31 - 1]))
        case Kind.INT8:
            return str(dice.choice(WHOLES))
        case Kind.BOOL:
            return dice.choice(["true", "false"])
        case Kind.DATE:
            return dice.choice(DATES + FAR_DATES)
        case Kind.UUID:
            return str(dice.choice(UUIDS))
        case Kind.EXACT_TEXT:
            return dice.choice(ADDRESSES if column.pg_type == "inet" else JSON)
    raise AssertionError(column)


def label(column: Column, number: int) -> str:
    """Name the row of a number, in the type of the column that labels it."""
    return (
        str(UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128))
        if column.kind is Kind.UUID
        else f"r{number}"
    )


def table_row(
    dice: random.Random, dataset: Dataset, columns: Sequence[Column], at: datetime, number: int
) -> dict[str, str | None]:
    """Make one row."""
    row = {column.name: cell(dice, column) for column in columns if column.name != dataset.time_column}
    by_name = {column.name: column for column in columns}
    row[dataset.time_column] = at.isoformat()
    row[LABELS[dataset.name]] = label(by_name[LABELS[dataset.name]], number)
    return row


def corrected(dice: random.Random, dataset: Dataset, columns: Sequence[Column], row: Mapping[str, str | None]) -> Any:
    """Give a row other values under its own key."""
    return {c.name: row[c.name] if c.name in dataset.key else cell(dice, c) for c in columns}


# -- documents ----------------------------------------------------------------------------------------------------


def document_value(dice: random.Random, kind: Kind) -> Any:
    """Draw a field's value; now and then one that is not of its declared type."""
    if dice.random() < 0.15:
        return None
    if dice.random() < 0.15:
        return dice.choice([7, "0.5", True, bson.Decimal128("1.50"), {"a": 1}, [1], bson.Int64(2**53 + 1), 0.5])
    match kind:
        case Kind.TEXT:
            return dice.choice([*TEXTS, "a\0b", "\0", bson.ObjectId(b"\x01" * 12)])
        case Kind.FLOAT8:
            return dice.choice([*FLOATS, 1, bson.Int64(-3)])
        case Kind.INT8:
            return dice.choice([0, 1, -1, 2**31 - 1, *map(bson.Int64, WHOLES), 5.0, -0.0])
        case Kind.TIMESTAMPTZ:
            return dice.choice([*TURNS, datetime(1, 1, 1, tzinfo=UTC), datetime(1969, 12, 31, 23, 59, 59, 999000, UTC)])
        case Kind.EXACT_TEXT:
            return dice.choice([bson.Decimal128(text) for text in ("NaN", "-0", "1.50", "1.5", "Infinity")] + ["x", ""])
    raise AssertionError(kind)


def document(dice: random.Random, dataset: Dataset, at: datetime, number: int) -> dict[str, Any]:
    """Make one document; fields may be missing."""
    found: dict[str, Any] = {
        "_id": bson.ObjectId(number.to_bytes(12, "big")) if number % 2 else f"d{number}",
        dataset.time_column: at,
    }
    for field in dataset.fields:
        if dice.random() < 0.1:
            continue
        *above, last = field.path.split(".")
        place = found
        for name in above:
            place = place.setdefault(name, {})
        place[last] = document_value(dice, field.kind)
    return found


def typed_document(dataset: Dataset, body: Mapping[str, Any]) -> dict[str, Any]:
    """Say what a document's typed columns hold by the declared types, and in `_exact` what they cannot."""
    exact: dict[str, str] = {}
    row: dict[str, Any] = {"_id": str(body["_id"]), EXACT_COLUMN: exact}
    row[dataset.time_column] = (body[dataset.time_column] - EPOCH) // MICROSECOND
    for field in dataset.fields:
        value: Any = body
        for name in field.path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        row[field.name] = None if value is None else _declared(field.kind, value)
        if value is not None and row[field.name] is None:
            exact[field.name] = _RELAXED[repr(value)]
    return row


_RELAXED = {
    "7": "7", "'0.5'": '"0.5"', "True": "true", "Decimal128('1.50')": '{"$numberDecimal": "1.50"}', "0.5": "0.5",
    "{'a': 1}": '{"a": 1}', "[1]": "[1]", "Int64(9007199254740993)": "9007199254740993",
    "9007199254740993": "9007199254740993",
}  # fmt: skip
"""The odd values as relaxed extended JSON."""

EXACT_TEXTS = tuple(sorted({*_RELAXED.values()}))


def _declared(kind: Kind, value: Any) -> Any:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if kind is Kind.TEXT and isinstance(value, str | bson.ObjectId):
        return str(value)
    if kind is Kind.FLOAT8 and (isinstance(value, float) or (is_whole and int(float(value)) == value)):
        return float(value)
    if kind is Kind.INT8 and (is_whole or (isinstance(value, float) and value.is_integer())):
        return int(value)
    if kind is Kind.TIMESTAMPTZ and isinstance(value, datetime):
        return (value - EPOCH) // MICROSECOND
    if kind is Kind.EXACT_TEXT:
        return _canonical(value)
    return None


def _canonical(value: Any) -> str:
    """Write a value as canonical extended JSON, a Decimal128 as its digits."""
    if isinstance(value, bson.Int64):
        return f'{{"$numberLong": "{int(value)}"}}'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f'{{"$numberInt": "{value}"}}'
    if isinstance(value, float):
        return f'{{"$numberDouble": "{value}"}}'
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{name}": {_canonical(inner)}' for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_canonical, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


# -- constants ----------------------------------------------------------------------------------------------------


def literals(times: Sequence[datetime]) -> Callable[[random.Random, Column], Literal]:
    """Return what draws a constant for a column; instants are those of the rows, and their neighbours."""

    def draw(dice: random.Random, column: Column) -> Literal:
        match column.kind:
            case Kind.TEXT:
                some = dice.choice([*TEXTS, "a\0b", "S", "T", f"r{dice.randrange(60)}", f"d{dice.randrange(60)}"])
                return text_literal(some if "\0" not in some or column.name == "title" else "a")
            case Kind.EXACT_TEXT:
                return text_literal(dice.choice(JSON + ADDRESSES + ("1.50", "NaN", "-0", '"x"', "2")))
            case Kind.DECIMAL:
                text = dice.choice([*decimals(column), f"{dice.uniform(-200, 200):.{column.scale + 1}f}"])
                return Literal(f"({text})", Decimal(text))
            case Kind.INT2 | Kind.INT4 | Kind.INT8:
                number = (
                    dice.choice([*WHOLES, 2, 50, 2**63 + 1]) if column.kind is Kind.INT8 else dice.choice([0, 1, 7])
                )
                return Literal(f"({number})", number) if dice.random() < 0.8 else Literal("(0.5)", Decimal("0.5"))
            case Kind.FLOAT8:
                return float_literal(dice, dice.choice([*FLOATS, dice.uniform(-2, 2)]))
            case Kind.BOOL:
                value = dice.random() < 0.5
                return Literal(str(value).upper(), value)
            case Kind.DATE:
                day = date.fromisoformat(dice.choice(DATES)) if dice.random() < 0.7 else date(2022, 6, 30)
                return Literal(f"DATE '{day.isoformat()}'", (day - EPOCH.date()).days)
            case Kind.UUID:
                chosen = dice.choice([*UUIDS, UUID(label(column, dice.randrange(60)))])
                return Literal(f"CAST('{chosen}' AS uuid)", chosen)
            case Kind.TIMESTAMPTZ:
                at = dice.choice([*times, *times, *TURNS]) + dice.choice([-1, 0, 0, 1]) * MICROSECOND
                return time_literal(dice, at)
        raise AssertionError(column)

    return draw
