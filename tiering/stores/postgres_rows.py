"""Put batches of rows into PostgreSQL by COPY, exactly once: the journal's position moves in the same transaction.

A batch goes straight into its table, as a hand-written COPY would. Where a key is there already, the transaction is
taken back, and the batch goes through a temporary table and an upsert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from tiering.stores.postgres_async import AsyncPostgres, quoted

_POSITION = "SELECT position FROM tiering.journal WHERE journal = $1"
_ADVANCE = """INSERT INTO tiering.journal (journal, position) VALUES ($1, $2) ON CONFLICT (journal)
              DO UPDATE SET position = EXCLUDED.position, changed_at = clock_timestamp()
              WHERE journal.position < EXCLUDED.position"""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one table: the same columns for each, no key twice."""

    schema: str
    table: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    rows: Sequence[Sequence[Any]]


async def position_of(database: AsyncPostgres, journal: str, seconds: float) -> int:
    """How far a journal is written: the number of its last record, 0 if none; raises as `AsyncPostgres.fetch`."""
    rows = await database.fetch(_POSITION, journal, seconds=seconds, subject="journal")
    return int(rows[0][0]) if rows else 0


async def put_batches(
    database: AsyncPostgres,
    batches: Sequence[Batch],
    journal: str,
    position: int | None,
    *,
    merge: bool,
    seconds: float,
) -> bool:
    """Write batches and the position up to which they come, or nothing of it.

    Args:
        database: of the tables.
        batches: to write.
        journal: its name.
        position: of the last record in the batches. Where the database has come further already, nothing is done.
            None: more of the record follows, and the position stays.
        merge: expect keys that are there.
        seconds: to wait.

    Returns:
        False where a key was there and `merge` was not expected: nothing was written.

    Raises:
        TieringError: as `AsyncPostgres.fetch`.
    """

    async def work(connection: Any) -> bool:
        try:
            async with connection.transaction():
                if position is not None and (await connection.fetchval(_POSITION, journal) or 0) >= position:
                    return True
                for batch in batches:
                    await (_merge if merge else _copy)(connection, batch)
                if position is not None:
                    await connection.execute(_ADVANCE, journal, position)
        except asyncpg.UniqueViolationError:
            if merge:
                raise
            return False
        return True

    return await database.run(work, seconds, "write", "journal")


async def _copy(connection: Any, batch: Batch) -> None:
    await connection.copy_records_to_table(
        batch.table, schema_name=batch.schema, columns=batch.columns, records=batch.rows
    )


async def _merge(connection: Any, batch: Batch) -> None:
    target, stage = quoted(batch.schema, batch.table), f"journal_{batch.table}"
    listed = ", ".join(map(quoted, batch.columns))
    changed = [name for name in batch.columns if name not in batch.key] or list(batch.key[:1])
    await connection.execute(f"CREATE TEMP TABLE {quoted(stage)} (LIKE {target} INCLUDING DEFAULTS) ON COMMIT DROP")
    await connection.copy_records_to_table(stage, columns=batch.columns, records=batch.rows)
    await connection.execute(
        f"INSERT INTO {target} ({listed}) SELECT {listed} FROM {quoted(stage)} "
        f"ON CONFLICT ({', '.join(map(quoted, batch.key))}) DO UPDATE SET "
        + ", ".join(f"{quoted(name)} = EXCLUDED.{quoted(name)}" for name in changed)
    )
