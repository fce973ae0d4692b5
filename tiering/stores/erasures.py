"""The ledger of erasures: who asked and why, every place with what became of it. The person's name is not in it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection

from tiering import errors
from tiering.model import Unit
from tiering.stores.ledger import LEASE_SPACE, audit
from tiering.stores.postgres import Postgres, execute, fetch, fetch_one, mapped

_ONE_AT_A_TIME = "hashtextextended('tiering.erase', 0)"


@dataclass(frozen=True, slots=True)
class Erasure:
    """One row of tiering.erasure."""

    erasure_id: int
    subject_hash: str
    reason: str
    asked_by: str
    opened_at: datetime


@contextmanager
def alone(database: Postgres) -> Iterator[None]:
    """Let no second erasure run while the body does; a killed one stands in nobody's way.

    Raises:
        LeaseHeld: another one runs now.
    """
    connection = database.connect("lease erasure")
    try:
        with mapped("lease erasure", database.name):
            connection.autocommit = True
            got = fetch_one(connection, f"SELECT pg_try_advisory_lock({_ONE_AT_A_TIME})")
        if not got or not got[0]:
            raise errors.LeaseHeld("erase", "the person", "another erasure is running", "Run it again when it is done.")
        yield
    finally:
        with suppress(psycopg2.Error):
            execute(connection, "SELECT pg_advisory_unlock_all()")
            connection.close()


def open_erasure(database: Postgres, digest: Callable[[bytes], str], reason: str, asked_by: str) -> Erasure:
    """Find the person's unfinished erasure, or begin one."""
    with database.transaction("open", "erasure") as connection:
        for row in fetch(
            connection,
            """SELECT erasure_id, subject_hash, reason, asked_by, opened_at, salt FROM tiering.erasure
               WHERE state = 'OPEN' ORDER BY erasure_id""",
        ):
            if digest(bytes(row[5])) == row[1]:
                return Erasure(*row[:5])
        salt = secrets.token_bytes(32)
        made = fetch_one(
            connection,
            """INSERT INTO tiering.erasure (salt, subject_hash, reason, asked_by) VALUES (%s, %s, %s, %s)
               RETURNING erasure_id, subject_hash, reason, asked_by, opened_at""",
            (salt, digest(salt), reason, asked_by),
        )
        assert made is not None
        erasure = Erasure(*made)
        details = {"erasure": erasure.erasure_id, "subject_hash": erasure.subject_hash, "reason": reason}
        audit(connection, asked_by, "erase-begun", "", None, details)
        return erasure


def note_found(
    connection: Connection, erasure: Erasure, place: str, store: str, dataset: str, begin: datetime | None, count: int
) -> None:
    """Remember what was found before it is touched: a run that is killed forgets nothing it has erased."""
    execute(
        connection,
        """INSERT INTO tiering.erasure_place (erasure_id, place, store, dataset, begin_at, row_count)
           VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (erasure_id, place) DO UPDATE SET
               state = 'FOUND', changed_at = clock_timestamp(),
               row_count = CASE WHEN erasure_place.state = 'ERASED' THEN erasure_place.row_count + excluded.row_count
                           ELSE greatest(erasure_place.row_count, excluded.row_count) END""",
        (erasure.erasure_id, place, store, dataset, begin, count),
    )


def note_done(
    connection: Connection, erasure: Erasure, place: str, details: Mapping[str, Any], state: str = "ERASED"
) -> None:
    """Remember that a place was erased (or `KEPT`), in the caller's transaction."""
    execute(
        connection,
        """UPDATE tiering.erasure_place SET state = %s, details = details || %s::jsonb,
                  changed_at = clock_timestamp() WHERE erasure_id = %s AND place = %s""",
        (state, json.dumps(dict(details), default=str), erasure.erasure_id, place),
    )


def places(database: Postgres, erasure: Erasure) -> list[dict[str, Any]]:
    """List the places of an erasure, in order of their names."""
    with database.transaction("list places of", "erasure", read_only=True) as connection:
        rows = fetch(
            connection,
            """SELECT place, store, dataset, begin_at, row_count, state, details FROM tiering.erasure_place
               WHERE erasure_id = %s ORDER BY store, place""",
            (erasure.erasure_id,),
        )
    names = ("place", "store", "dataset", "begin", "row_count", "state", "details")
    return [dict(zip(names, row, strict=True)) for row in rows]


def close_erasure(
    database: Postgres, erasure: Erasure, certificate: Mapping[str, Any], sha256: str, actor: str
) -> None:
    """Store the certificate and sign it into the audit chain, together."""
    with database.transaction("close", "erasure") as connection:
        done = execute(
            connection,
            """UPDATE tiering.erasure SET state = 'DONE', certificate = %s, closed_at = clock_timestamp()
               WHERE erasure_id = %s AND state = 'OPEN'""",
            (json.dumps(dict(certificate), default=str), erasure.erasure_id),
        )
        if done:
            details = {
                "erasure": erasure.erasure_id,
                "subject_hash": erasure.subject_hash,
                "certificate_sha256": sha256,
                "rows": sum(place["row_count"] for place in certificate["places"] if place["state"] == "ERASED"),
            }
            audit(connection, actor, "erase", "", None, details)


def stop_moves(connection: Connection, dataset: str, begin: datetime | None) -> list[tuple[str, str]]:
    """Send the unit's open moves back to make and judge their copies anew, and keep them still until the caller's
    transaction ends.

    Why: they hold, or are about to publish, a copy of the rows as they were.

    Returns:
        (source, target) of each, as they were.

    Raises:
        LeaseHeld: a run works on one of them now; the caller waits and tries again.
    """
    stopped = []
    for move_id, owner, source, target in fetch(
        connection,
        """SELECT move_id, lease_owner, source, target FROM tiering.move WHERE dataset = %(dataset)s
             AND (begin_at = %(begin)s OR %(begin)s::timestamptz IS NULL)
             AND state IN ('SEALED', 'COPIED', 'VERIFIED', 'QUARANTINED') ORDER BY move_id""",
        {"dataset": dataset, "begin": begin},
    ):
        got = fetch_one(connection, "SELECT pg_try_advisory_xact_lock(%s, %s)", (LEASE_SPACE, move_id))
        if not got or not got[0]:
            raise errors.LeaseHeld("erase", f"move {move_id}", f"held by {owner}", "It is waited for.")
        execute(
            connection,
            """UPDATE tiering.move SET lease_epoch = lease_epoch + 1, details = details - 'checked',
                      state = CASE WHEN state IN ('COPIED', 'VERIFIED') THEN 'SEALED' ELSE state END,
                      problem = CASE WHEN state = 'QUARANTINED' THEN 'stopped by an erasure: release it' ELSE '' END
               WHERE move_id = %s""",
            (move_id,),
        )
        stopped.append((source, target))
    return stopped


def forget_unit(connection: Connection, unit: Unit) -> None:
    """Take a unit out of the ledger that has no rows left, in the caller's transaction."""
    execute(connection, "DELETE FROM tiering.unit WHERE dataset = %s AND begin_at = %s", (unit.dataset, unit.begin))


def forget_trash(connection: Connection, store: str, location: str) -> None:
    """Note that a superseded copy is gone already, so that the sweep does not look for it."""
    execute(
        connection,
        """UPDATE tiering.trash SET reclaimed_at = clock_timestamp()
           WHERE store = %s AND location = %s AND reclaimed_at IS NULL""",
        (store, location),
    )


def recount_unit(connection: Connection, unit: Unit, row_count: int) -> None:
    """Set how many documents a warm unit has, without the fingerprint of those it had before."""
    if row_count == 0:
        forget_unit(connection, unit)
        return
    execute(
        connection,
        """UPDATE tiering.unit SET row_count = %s, fingerprint = NULL, changed_at = clock_timestamp(),
                  size_bytes = size_bytes * %s / greatest(row_count, 1)
           WHERE dataset = %s AND begin_at = %s AND tier = 'warm'""",
        (row_count, row_count, unit.dataset, unit.begin),
    )


def forget_object(connection: Connection, bucket: str, key: str) -> None:
    """Take an object that was destroyed out of the list of those with a storage class."""
    execute(connection, "DELETE FROM tiering.object WHERE bucket = %s AND object_key = %s", (bucket, key))


def recount_rehydrated(connection: Connection, location: str, removed: int) -> None:
    """Take the rows removed off the count of a read copy, if the table is one."""
    execute(
        connection,
        "UPDATE tiering.rehydrated SET row_count = greatest(row_count - %s, 0) WHERE location = %s",
        (removed, location),
    )
