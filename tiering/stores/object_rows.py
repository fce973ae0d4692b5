"""What the ledger knows of single objects: created when, in which class, restored or not (tiering.object).

Does not: ask the object store. Functions that take a connection join the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg2.extensions import connection as Connection

from tiering.stores.ports import RestoreState
from tiering.stores.postgres import execute, fetch

_COLUMNS = """bucket, object_key, dataset, begin_at, etag, size_bytes, created_at, storage_class, restore_state,
    restore_asked_at, restore_ready_at, restore_until"""


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """One row of tiering.object.

    Attributes:
        begin: of its unit.
        etag: as the store's head gave it when it was last looked at.
        created_at: its age counts from here: a change of class renews the store's own date.
        storage_class: as the store spells it.
        restore_state, asked_at, ready_at, until: of its restore; `ready_at` is expected while REQUESTED.
    """

    bucket: str
    key: str
    dataset: str
    begin: datetime
    etag: str
    size: int
    created_at: datetime
    storage_class: str
    restore_state: RestoreState = RestoreState.NONE
    asked_at: datetime | None = None
    ready_at: datetime | None = None
    until: datetime | None = None

    @property
    def location(self) -> str:
        """`s3://bucket/key`."""
        return f"s3://{self.bucket}/{self.key}"


def list_objects(
    connection: Connection,
    *,
    dataset: str | None = None,
    begin: datetime | None = None,
    bucket: str | None = None,
    prefix: str = "",
    state: RestoreState | None = None,
    limit: int | None = None,
) -> list[ObjectRecord]:
    """List the rows that match all that is given, by bucket and key."""
    rows = fetch(
        connection,
        f"""SELECT {_COLUMNS} FROM tiering.object
            WHERE (%(dataset)s::text IS NULL OR dataset = %(dataset)s)
              AND (%(begin)s::timestamptz IS NULL OR begin_at = %(begin)s)
              AND (%(bucket)s::text IS NULL OR bucket = %(bucket)s)
              AND starts_with(object_key, %(prefix)s)
              AND (%(state)s::text IS NULL OR restore_state = %(state)s)
            ORDER BY bucket, object_key LIMIT %(limit)s""",
        {"limit": limit, "dataset": dataset, "begin": begin, "bucket": bucket, "prefix": prefix, "state": state},
    )
    return [ObjectRecord(*(*row[:8], RestoreState(row[8]), *row[9:])) for row in rows]


def put_objects(connection: Connection, records: Sequence[ObjectRecord]) -> None:
    """Record what objects are now; of one that is known, the time of creation and its restore stay as they were."""
    execute(
        connection,
        """INSERT INTO tiering.object (bucket, object_key, dataset, begin_at, etag, size_bytes, created_at,
                                       storage_class)
           SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::timestamptz[], %s::text[], %s::bigint[],
                                %s::timestamptz[], %s::text[])
           ON CONFLICT (bucket, object_key) DO UPDATE SET
               dataset = excluded.dataset, begin_at = excluded.begin_at, etag = excluded.etag,
               size_bytes = excluded.size_bytes, created_at = excluded.created_at,
               storage_class = excluded.storage_class, changed_at = clock_timestamp()""",
        tuple(
            [getattr(record, name) for record in records]
            for name in ("bucket", "key", "dataset", "begin", "etag", "size", "created_at", "storage_class")
        ),
    )


def note_restore(
    connection: Connection,
    record: ObjectRecord,
    state: RestoreState,
    *,
    asked_at: datetime | None = None,
    ready_at: datetime | None = None,
    until: datetime | None = None,
) -> bool:
    """Record where an object's restore stands; False if another run has recorded the same state already.

    Why tell: of several polls at once, one announces that an object is ready.
    """
    return bool(
        execute(
            connection,
            """UPDATE tiering.object SET restore_state = %s, restore_asked_at = coalesce(%s, restore_asked_at),
                      restore_ready_at = %s, restore_until = %s, changed_at = clock_timestamp()
               WHERE bucket = %s AND object_key = %s AND (restore_state <> %s OR restore_until IS DISTINCT FROM %s)""",
            (state, asked_at, ready_at, until, record.bucket, record.key, state, until),
        )
    )


def forget_objects(connection: Connection, bucket: str, keys: Iterable[str]) -> None:
    """Drop the rows of objects that are gone, or that are other objects now."""
    statement = "DELETE FROM tiering.object WHERE bucket = %s AND object_key = ANY(%s)"
    execute(connection, statement, (bucket, list(keys)))
