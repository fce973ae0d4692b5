"""Keep the decisions of placement: one row per dataset or unit and transition, in the ledger's database.

Lapsed rows stay, because residency counts from them; there are at most two per unit, and each is written over.
Does not: decide (plan/placement.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from psycopg2.extensions import connection as Connection

from tiering.model import Pin, Term, Transition
from tiering.stores.postgres import Postgres, execute, fetch


def list_pins(database: Postgres, dataset: str | None = None) -> list[Pin]:
    """List the recorded decisions about a dataset (None: all), lapsed ones too."""
    with database.transaction("list pins of", dataset or "all datasets", read_only=True) as connection:
        rows = fetch(
            connection,
            """SELECT dataset, begin_at, transition, shift_seconds, terms, decided_at, until_at, symbol
               FROM tiering.pin WHERE %(dataset)s::text IS NULL OR dataset = %(dataset)s
               ORDER BY dataset, begin_at NULLS FIRST, symbol, transition""",
            {"dataset": dataset},
        )
    return [
        Pin(name, begin, Transition(step), shift, tuple(Term(**term) for term in terms), decided, until, symbol)
        for name, begin, step, shift, terms, decided, until, symbol in rows
    ]


def put_pin(connection: Connection, pin: Pin, expected: Pin | None) -> bool:
    """Record a decision in the caller's transaction, if what it was decided upon still stands; tell whether it did.

    Why compare: two runs of placement at once would each begin a residency, and the shift could change twice in one.
    """
    values = (
        pin.shift_seconds,
        json.dumps([asdict(term) for term in pin.terms]),
        pin.decided_at,
        pin.until,
        *_key(pin),
    )
    if expected is None:
        statement = """INSERT INTO tiering.pin (shift_seconds, terms, decided_at, until_at,
                                                dataset, begin_at, symbol, transition)
                       VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"""
        return execute(connection, statement, values) == 1
    statement = """UPDATE tiering.pin SET shift_seconds = %s, terms = %s, decided_at = %s, until_at = %s
                   WHERE dataset = %s AND begin_at IS NOT DISTINCT FROM %s AND symbol = %s AND transition = %s
                     AND shift_seconds = %s AND decided_at = %s AND until_at = %s"""
    seen = (expected.shift_seconds, expected.decided_at, expected.until)
    return execute(connection, statement, (*values, *seen)) == 1


def _key(pin: Pin) -> Sequence[object]:
    return (pin.dataset, pin.begin, pin.symbol, pin.transition)
