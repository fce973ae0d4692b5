"""Read where every unit of a dataset is, set by set: a few statements however many units there are. Writes nothing.

Does not: decide what is due (plan/lifecycle.py), or put the answers together (ops/lifecycle.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering.model import StorageClass, Tier, Unit
from tiering.stores.ledger import LEASE_SPACE
from tiering.stores.postgres import fetch, fetch_one, identifier
from tiering.stores.records import UnitRecord

PROBES_MAX = 100
"""Tables looked into by one statement: longer ones take longer to plan than they save in round trips."""


@dataclass(frozen=True, slots=True)
class Past:
    """What one finished move took and did."""

    dataset: str
    transition: str
    row_count: int
    bytes_before: int
    bytes_after: int
    stage_seconds: Mapping[str, float]


def filled(connection: Connection, tables: Sequence[str]) -> set[str]:
    """Name those of the tables that hold a row. A table without a page is not even opened.

    Raises:
        NotFound: (from the server) one has another name by now: look again.
    """
    paged = fetch(
        connection,
        """SELECT t FROM unnest(%s::text[]) t WHERE coalesce(pg_relation_size(to_regclass(t)), 1) > 0""",
        ([_quoted(table) for table in tables],),
    )
    by_quoted = {_quoted(table): table for table in tables}
    candidates = [by_quoted[quoted] for (quoted,) in paged]
    found: set[str] = set()
    for start in range(0, len(candidates), PROBES_MAX):
        chunk = candidates[start : start + PROBES_MAX]
        probes = [
            sql.SQL("SELECT {} WHERE EXISTS (SELECT FROM {})").format(sql.Literal(at), identifier(table))
            for at, table in enumerate(chunk)
        ]
        found |= {chunk[at] for (at,) in fetch(connection, sql.SQL(" UNION ALL ").join(probes))}
    return found


def newest_in(connection: Connection, table: str, time_column: str) -> datetime | None:
    """Return the newest time in a table that lies inside the calendar."""
    row = fetch_one(
        connection,
        sql.SQL("SELECT max({ts}) FROM {t} WHERE {ts} < '9999-01-01' AND {ts} >= '0001-01-02'").format(
            ts=sql.Identifier(time_column), t=identifier(table)
        ),
    )
    return row[0] if row else None


def undated_rows(connection: Connection, table: str, time_column: str) -> int:
    """Count the rows whose time lies outside the calendar: they belong to no unit and never move."""
    row = fetch_one(
        connection,
        sql.SQL("SELECT count(*) FROM {t} WHERE {ts} >= '9999-01-01' OR {ts} < '0001-01-02'").format(
            ts=sql.Identifier(time_column), t=identifier(table)
        ),
    )
    return int(row[0]) if row else 0


def homes(connection: Connection, dataset: str) -> list[UnitRecord]:
    """List a dataset's units as `ledger.units` does, without their fingerprints, which take long to read."""
    rows = fetch(
        connection,
        """SELECT begin_at, end_at, generation, tier, location, is_compressed, row_count, size_bytes, storage_class,
                  changed_at
           FROM tiering.unit WHERE dataset = %s ORDER BY begin_at""",
        (dataset,),
    )
    tiers, classes = {str(tier): tier for tier in Tier}, {str(name): name for name in StorageClass}
    return [
        UnitRecord(
            Unit(dataset, begin, end, generation),
            tiers[tier],
            location,
            is_compressed,
            row_count,
            size_bytes,
            storage_class=classes[storage],
            changed_at=changed,
        )
        for begin, end, generation, tier, location, is_compressed, row_count, size_bytes, storage, changed in rows
    ]


def lease_owners(connection: Connection, dataset: str) -> dict[int, str]:
    """Return move → the run that holds its lease at this moment, whatever the ledger remembers of dead ones."""
    rows = fetch(
        connection,
        """SELECT m.move_id, m.lease_owner FROM pg_locks l JOIN tiering.move m ON m.move_id = l.objid::bigint
           WHERE l.locktype = 'advisory' AND l.classid = %s AND l.objsubid = 2 AND l.granted AND m.dataset = %s
             AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())""",
        (LEASE_SPACE, dataset),
    )
    return {move_id: owner or "another run" for move_id, owner in rows}


def read_copies(connection: Connection, dataset: str) -> dict[datetime, datetime]:
    """Return begin → until when a cold unit has a read copy in the warm tier."""
    return dict(fetch(connection, "SELECT begin_at, until_at FROM tiering.rehydrated WHERE dataset = %s", (dataset,)))


def past_moves(connection: Connection, most: int) -> list[Past]:
    """List the last finished moves of all datasets, newest first: what a move takes is learnt from them."""
    rows = fetch(
        connection,
        """SELECT dataset, transition, row_count, bytes_before, bytes_after, stage_seconds
           FROM (SELECT * FROM tiering.move ORDER BY move_id DESC LIMIT %s) recent
           WHERE state IN ('COMMITTED', 'RECLAIMED') ORDER BY move_id DESC""",
        (most,),
    )
    return [Past(*row) for row in rows]


def position(connection: Connection) -> int:
    """Return the number of the last move that was ever recorded, 0 before the first."""
    row = fetch_one(connection, "SELECT coalesce(max(move_id), 0) FROM tiering.move")
    return int(row[0]) if row else 0


def moves_of(connection: Connection, dataset: str, begins: Sequence[datetime]) -> list[tuple[Any, ...]]:
    """List (move, begin, generation, transition, state) of some of a dataset's units, oldest move first."""
    return fetch(
        connection,
        """SELECT move_id, begin_at, generation, transition, state FROM tiering.move
           WHERE dataset = %s AND begin_at = ANY(%s) ORDER BY move_id""",
        (dataset, list(begins)),
    )


def _quoted(table: str) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in table.split(".", 1))
