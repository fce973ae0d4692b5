"""Predicates as pyiceberg has them: what is true in SQL, said to a library of two-valued logic.

pyiceberg leaves NULL to Arrow (`NOT IN` keeps it) and NaN to IEEE (no comparison holds), so both are spelt out: a
predicate is translated into the rows where it is true and, below a NOT, into those where it is false.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, timedelta
from decimal import Decimal
from functools import reduce
from typing import Any

from pyiceberg import expressions as ice

from tests.ops.predicates import (
    EPOCH,
    MICROSECOND,
    Between,
    Compare,
    Distinct,
    In,
    IsNull,
    Join,
    Literal,
    Not,
    Predicate,
)
from tiering.model import Column, Kind

_OPERATORS = {
    "=": ice.EqualTo,
    "<>": ice.NotEqualTo,
    "<": ice.LessThan,
    "<=": ice.LessThanOrEqual,
    ">": ice.GreaterThan,
    ">=": ice.GreaterThanOrEqual,
}
_INVERSE = {"=": "<>", "<>": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


class NotExpressible(Exception):
    """pyiceberg has no such predicate, or no such literal."""


def translate(predicate: Predicate, columns: Mapping[str, Column], wanted: bool = True) -> ice.BooleanExpression:
    """Translate into the rows where the predicate is true (or, not wanted, false).

    Raises:
        NotExpressible: it cannot be said.
    """
    match predicate:
        case Compare(name, operator, literal):
            return _compare(columns[name], operator if wanted else _INVERSE[operator], literal)
        case In(name, literals, negated):
            if not any(literal.value is None for literal in literals) and columns[name].kind is not Kind.FLOAT8:
                values = {_value(columns[name], literal) for literal in literals}
                if negated == wanted:
                    return ice.And(ice.NotNull(name), ice.NotIn(name, values))
                return ice.In(name, values)
            same = [Compare(name, "=", literal) for literal in literals]
            return translate(Join("OR", tuple(same)), columns, wanted != negated)
        case Between(name, low, high, negated):
            inside = Join("AND", (Compare(name, ">=", low), Compare(name, "<=", high)))
            return translate(inside, columns, wanted != negated)
        case IsNull(name, negated):
            return ice.IsNull(name) if negated != wanted else ice.NotNull(name)
        case Distinct(name, literal, negated):
            if literal.value is None:
                return ice.NotNull(name) if negated != wanted else ice.IsNull(name)
            if negated == wanted:
                return _compare(columns[name], "=", literal)
            return ice.Or(ice.IsNull(name), _compare(columns[name], "<>", literal))
        case Join(word, parts):
            both = ice.And if (word == "AND") == wanted else ice.Or
            return reduce(both, [translate(part, columns, wanted) for part in parts])
        case Not(part):
            return translate(part, columns, not wanted)
    raise NotExpressible(predicate)


def _compare(column: Column, operator: str, literal: Literal) -> ice.BooleanExpression:
    if literal.value is None:
        return ice.AlwaysFalse()
    name = column.name
    if column.kind is Kind.FLOAT8:
        return _compare_float(name, operator, float(literal.value))
    found: ice.BooleanExpression = _OPERATORS[operator](name, _value(column, literal))
    return ice.And(ice.NotNull(name), found) if operator == "<>" else found


def _compare_float(name: str, operator: str, value: float) -> ice.BooleanExpression:
    is_nan, is_number = ice.IsNaN(name), ice.And(ice.NotNull(name), ice.NotNaN(name))
    if math.isnan(value):
        return {"=": is_nan, ">=": is_nan, "<>": is_number, "<": is_number, "<=": ice.NotNull(name)}.get(
            operator, ice.AlwaysFalse()
        )
    found: ice.BooleanExpression = _OPERATORS[operator](name, value)
    return ice.Or(found, is_nan) if operator in (">", ">=", "<>") else found


def _value(column: Column, literal: Literal) -> Any:
    value = literal.value
    match column.kind:
        case Kind.TIMESTAMPTZ:
            return (EPOCH + value * MICROSECOND).isoformat()
        case Kind.DATE:
            return EPOCH.date() + timedelta(days=value)
        case Kind.DECIMAL:
            return _decimal(column, value)
        case Kind.INT2 | Kind.INT4 | Kind.INT8:
            if value != int(value) or abs(value) >= (2**63 if column.kind is Kind.INT8 else 2**31):
                raise NotExpressible(value)
            return int(value)
    assert not isinstance(value, date)
    return value


def _decimal(column: Column, value: Decimal) -> Decimal:
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)
    if -exponent > column.scale or abs(value) >= Decimal(10) ** (column.precision - column.scale):
        raise NotExpressible(value)
    return value.quantize(Decimal(1).scaleb(-column.scale))
