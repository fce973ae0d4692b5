"""Read copies of cold units in the warm tier: recorded in tiering.rehydrated, partitions of the warm table.

A copy is never authoritative: the ledger says that the unit is cold, and whoever changes the unit drops its copy in
the same transaction. Functions join the caller's transaction.
Does not: make a copy (ops/rehydrate.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg2.extensions import connection as Connection

from tiering.model import Dataset, Tier, Unit
from tiering.stores import tables
from tiering.stores.postgres import execute, fetch
from tiering.stores.records import UnitRecord
from tiering.stores.warm import WarmTables


@dataclass(frozen=True, slots=True)
class CopyRecord:
    """One row of tiering.rehydrated."""

    unit: Unit
    location: str
    row_count: int
    size_bytes: int
    made_at: datetime
    until: datetime

    @property
    def as_warm(self) -> UnitRecord:
        """The copy as if it were the unit's warm copy, for those who read it."""
        return UnitRecord(self.unit, Tier.WARM, self.location, False, self.row_count, self.size_bytes)


def list_copies(connection: Connection, dataset: str, begin: datetime | None = None) -> list[CopyRecord]:
    """List a dataset's read copies, or the one of the unit that begins then."""
    rows = fetch(
        connection,
        """SELECT begin_at, end_at, generation, location, row_count, size_bytes, made_at, until_at
           FROM tiering.rehydrated WHERE dataset = %(dataset)s
             AND (%(begin)s::timestamptz IS NULL OR begin_at = %(begin)s) ORDER BY begin_at""",
        {"dataset": dataset, "begin": begin},
    )
    return [CopyRecord(Unit(dataset, row[0], row[1], row[2]), *row[3:]) for row in rows]


def lock_copy(connection: Connection, dataset: str, begin: datetime) -> None:
    """Let nobody else make or drop this unit's copy until the transaction ends."""
    key = f"tiering.rehydrate.{dataset}.{begin.isoformat()}"
    execute(connection, "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (key,))


def lock_copies(connection: Connection, dataset: str, *, shared: bool) -> None:
    """Hold a dataset's copies together: shared by those who make one, alone by who looks for leftovers."""
    function = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
    execute(connection, f"SELECT {function}(hashtextextended(%s, 0))", (f"tiering.rehydrate.{dataset}",))


def take_record(connection: Connection, dataset: str, begin: datetime) -> list[CopyRecord]:
    """Remove the record of a unit's copy and return it; the copy itself is the caller's to drop."""
    found = list_copies(connection, dataset, begin)
    execute(connection, "DELETE FROM tiering.rehydrated WHERE dataset = %s AND begin_at = %s", (dataset, begin))
    return found


def put_copy(connection: Connection, copy: CopyRecord) -> None:
    """Record a copy."""
    unit = copy.unit
    execute(
        connection,
        """INSERT INTO tiering.rehydrated (dataset, begin_at, end_at, generation, location, row_count, size_bytes,
                                           made_at, until_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)""",
        (
            unit.dataset,
            unit.begin,
            unit.end,
            unit.generation,
            copy.location,
            copy.row_count,
            copy.size_bytes,
            copy.made_at,
            copy.until,
        ),
    )


def extend_copy(connection: Connection, unit: Unit, until: datetime) -> datetime | None:
    """Keep a copy of this generation at least until then; return until when, None where there is no such copy."""
    rows = fetch(
        connection,
        """UPDATE tiering.rehydrated SET until_at = greatest(until_at, %s)
           WHERE dataset = %s AND begin_at = %s AND generation = %s RETURNING until_at""",
        (until, unit.dataset, unit.begin, unit.generation),
    )
    return rows[0][0] if rows else None


def forget_copy(connection: Connection, warm: WarmTables, dataset: Dataset, begin: datetime) -> bool:
    """Drop a unit's read copy because the unit changes in this transaction; tell whether there was one.

    Every merge, expiry and erasure of a cold unit calls this before it changes the ledger.
    """
    lock_copy(connection, dataset.name, begin)
    return drop_copy(connection, warm, dataset, begin) is not None


def drop_copy(connection: Connection, warm: WarmTables, dataset: Dataset, begin: datetime) -> CopyRecord | None:
    """Drop a unit's read copy, whatever its generation, and its record; return it, None where there was none."""
    found = list_copies(connection, dataset.name, begin)
    for copy in found:
        if tables.exists(connection, copy.location):
            left = warm.take(connection, dataset, copy.as_warm, tables.trash_table(copy.unit, 0, "copy"))
            if left:
                tables.drop(connection, left)
    take_record(connection, dataset.name, begin)
    return found[0] if found else None
