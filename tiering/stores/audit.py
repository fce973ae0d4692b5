"""Read the audit trail's chain beside its rows. Rows are written by `ledger.audit`, links by PostgreSQL itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from tiering.stores.postgres import Postgres, fetch_one

_BATCH_ROWS = 10_000

# The row's content is spelt out here as in infra/sql/ledger.sql: a function in the database could be replaced.
_LINKS = """
    SELECT c.position, coalesce(a.audit_id, c.audit_id),
        CASE WHEN a.audit_id IS NOT NULL THEN
            jsonb_build_object('audit_id', a.audit_id, 'at', encode(timestamptz_send(a.at), 'hex'), 'actor', a.actor,
                'action', a.action, 'dataset', a.dataset, 'begin_at', encode(timestamptz_send(a.begin_at), 'hex'),
                'details', a.details)::text END,
        coalesce(c.hash, '')
    FROM tiering.audit_chain c FULL JOIN tiering.audit a USING (audit_id)
    ORDER BY c.position NULLS LAST, a.audit_id
"""


def links(database: Postgres) -> Iterator[tuple[int | None, int, str | None, bytes]]:
    """Yield (position, audit id, the row's canonical text, hash) in the chain's order, in bounded memory.

    A row without a link comes last, with position None; a link without its row has the text None.
    """
    with (
        database.transaction("read", "the audit chain", read_only=True) as connection,
        connection.cursor("audit_chain") as cursor,
    ):
        cursor.itersize = _BATCH_ROWS
        cursor.execute(_LINKS)
        for position, audit_id, content, digest in cursor:
            yield position, audit_id, content, bytes(digest)


def head(database: Postgres) -> tuple[int, str, datetime] | None:
    """Read the chain's last position, its hash and the server's clock; None while there is no chain."""
    with database.transaction("read", "the audit chain's head", read_only=True) as connection:
        row = fetch_one(
            connection,
            """SELECT position, encode(hash, 'hex'), clock_timestamp() FROM tiering.audit_chain
               ORDER BY position DESC LIMIT 1""",
        )
    return None if row is None else (int(row[0]), str(row[1]), row[2])
