"""Documents in cold files that count no more: the same `_id` went on with another time, into another unit.

Functions join the caller's transaction.
Does not: find them (ops/documents.py), or take them out of the files (ops/document_merge.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from psycopg2.extensions import connection as Connection
from psycopg2.extras import execute_values

from tiering.model import Unit
from tiering.stores.postgres import execute, fetch


@dataclass(frozen=True, slots=True)
class Superseded:
    """One row of tiering.superseded: which `_id`, as `bson_batches.ids` writes it, in the cold file of which unit."""

    begin: datetime
    end: datetime
    key: bytes


def put_superseded(connection: Connection, unit: Unit, keys: Iterable[bytes]) -> None:
    """Record documents of a unit's file; those that are recorded stay so."""
    rows = [(unit.dataset, unit.begin, unit.end, key) for key in keys]
    with connection.cursor() as cursor:
        statement = "INSERT INTO tiering.superseded (dataset, begin_at, end_at, id) VALUES %s ON CONFLICT DO NOTHING"
        execute_values(cursor, statement, rows)


def list_superseded(connection: Connection, dataset: str, begin: datetime | None = None) -> list[Superseded]:
    """List a dataset's, or those of the unit that begins then."""
    rows = fetch(
        connection,
        """SELECT begin_at, end_at, id FROM tiering.superseded WHERE dataset = %(dataset)s
             AND (%(begin)s::timestamptz IS NULL OR begin_at = %(begin)s) ORDER BY begin_at""",
        {"dataset": dataset, "begin": begin},
    )
    return [Superseded(first, last, bytes(key)) for first, last, key in rows]


def clear_superseded(connection: Connection, unit: Unit) -> None:
    """Forget a unit's, because its file is another one or none from this transaction on."""
    statement = "DELETE FROM tiering.superseded WHERE dataset = %s AND begin_at = %s"
    execute(connection, statement, (unit.dataset, unit.begin))
