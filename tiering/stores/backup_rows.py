"""The catalogue of backups as rows, for those who ask in SQL. A mirror: the bucket is the truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

from psycopg2.extensions import connection as Connection

from tiering.model_backup import CatalogueEntry
from tiering.stores.postgres import Postgres, execute, fetch

_COLUMNS = """backup_id, store, source, kind, parent_id, incarnation, began_at, ended_at, begins, ends, state,
    proven_at, problem, objects, size_bytes, stored_bytes, facts"""

_REMOVE = "DELETE FROM tiering.backup WHERE NOT backup_id = ANY(%s)"

_WRITE = f"""
    INSERT INTO tiering.backup ({_COLUMNS})
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (backup_id) DO UPDATE SET state = excluded.state, proven_at = excluded.proven_at,
        problem = excluded.problem, mirrored_at = clock_timestamp()
    WHERE (backup.state, backup.proven_at, backup.problem)
        IS DISTINCT FROM (excluded.state, excluded.proven_at, excluded.problem)
"""


def mirror(database: Postgres, entries: Sequence[CatalogueEntry]) -> None:
    """Make the table say what the catalogue says, in one transaction."""
    with database.transaction("mirror", "the catalogue of backups") as connection:
        execute(connection, _REMOVE, ([entry.backup.backup_id for entry in entries],))
        for entry in entries:
            execute(connection, _WRITE, _row(entry))


def newest(connection: Connection) -> dict[tuple[str, str], datetime]:
    """Return (store, source) → when the newest backup began that did not fail."""
    rows = fetch(
        connection,
        "SELECT store, source, max(began_at) FROM tiering.backup WHERE state <> 'FAILED' GROUP BY store, source",
    )
    return {(store, source): began for store, source, began in rows}


def _row(entry: CatalogueEntry) -> tuple[object, ...]:
    backup = entry.backup
    return (
        backup.backup_id, str(backup.store), backup.source, str(backup.kind), backup.parent_id, backup.incarnation,
        backup.began_at, backup.ended_at, backup.begins, backup.ends, str(entry.state), entry.proven_at,
        entry.problem, len(backup.objects), backup.size_bytes, backup.stored_bytes, json.dumps(dict(backup.facts)),
    )  # fmt: skip
