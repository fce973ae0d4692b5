"""Take one person's rows out of PostgreSQL: every table of a dataset in every schema, whatever its unit is doing.

Warm units are built anew without the person and swapped in, proven by fingerprints; other tables lose the rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering import errors
from tiering.model import Dataset, Fingerprint, Tier, Unit
from tiering.ops.erase_lake import demand_free
from tiering.ops.work import demand_equal
from tiering.plan.columns import plan_columns
from tiering.plan.erase import Found, Person, minus
from tiering.plan.spans import EPOCH, unit_of
from tiering.stores import erasures, pghash, tables
from tiering.stores.erasures import Erasure
from tiering.stores.ledger import audit, units
from tiering.stores.opening import Stores
from tiering.stores.person_tables import (
    PersonTable,
    clear_statistics,
    count_by_day,
    forget_statistics,
    is_person,
    person_tables,
    remove_rows,
    statistics_mentions,
)
from tiering.stores.postgres import LOCK_TIMEOUT_MS, Postgres, execute, identifier, names
from tiering.stores.records import UnitRecord, fingerprint_to_json

Spared = Sequence[tuple[datetime, datetime]]


def find(stores: Stores, dataset: Dataset, person: Person) -> list[Found]:
    """Find every table that holds rows of the person, with their number by unit."""
    found = []
    for store, database in databases(stores):
        with database.transaction("look for", dataset.name, read_only=True) as connection:
            for table in _tables(stores, connection, dataset):
                counts: dict[datetime | None, int] = {}
                for instant, count in count_by_day(connection, dataset, table, person.name):
                    begin = unit_of(instant, dataset.unit)[0] if instant and dataset.state != "state" else None
                    counts[begin] = counts.get(begin, 0) + count
                if counts:
                    found.append(Found(store, table.name, dataset.name, counts))
    return found


def databases(stores: Stores) -> list[tuple[str, Postgres]]:
    """Name the databases, one of them only once."""
    if stores.is_one_database:
        return [("warm", stores.warm)]
    return [("hot", stores.hot), ("warm", stores.warm)]


def _tables(stores: Stores, connection: Connection, dataset: Dataset) -> list[PersonTable]:
    return person_tables(connection, dataset, [d.name for d in stores.policies.datasets])


def erase(
    stores: Stores,
    dataset: Dataset,
    found: Sequence[Found],
    person: Person,
    erasure: Erasure,
    spared: Spared,
    actor: str,
) -> None:
    """Take the person out of the tables found, but for the ranges that are spared.

    Raises:
        LeaseHeld, CommitConflict: a unit is being moved or a table is in use; the caller tries again.
    """
    for store, database in databases(stores):
        mine = {item.place: item for item in found if item.store == store}
        with database.transaction("look for", dataset.name, read_only=True) as connection:
            there = [table for table in _tables(stores, connection, dataset) if table.name in mine]
        warm = {r.location: r for r in stores.ledger.units(dataset.name) if r.tier is Tier.WARM}
        for table in there:
            if all(begin in {b for b, _ in spared} for begin in mine[table.name].counts):
                continue
            if store == "warm" and table.name in warm:
                _rebuild(stores, dataset, warm[table.name], person, erasure, actor)
            elif table.schema == "tiering_stage" or (table.is_packed and table.subject_type.endswith("[]")):
                _drop(stores, database, dataset, table, mine[table.name], erasure)
            else:
                _remove(stores, database, dataset, table, mine[table.name], person, erasure, spared)


def forget_samples(stores: Stores, person: Person, places: Sequence[str]) -> None:
    """Vacuum the tables that lost rows, and sample those anew whose planner statistics quote the person.

    Why at the end, and by what the ledger and the statistics say: a run that was killed has not come so far.
    """
    for _, database in databases(stores):
        with database.transaction("look into", "statistics", read_only=True) as connection:
            quoting = [column.rsplit(".", 1)[0] for column in statistics_mentions(connection, person.name)]
        parents = [table for table in quoting if table not in places]
        # Where a reader holds a table for long, the server's own vacuum does it; the proof says so.
        with suppress(errors.CommitConflict):
            forget_statistics(database, [place for place in places if "." in place], parents)
        with database.transaction("clear", "statistics") as connection:
            clear_statistics(connection, statistics_mentions(connection, person.name))


def _stop(connection: Connection, dataset: Dataset, begins: Sequence[datetime | None]) -> None:
    for begin in begins:
        if begin is not None:
            unit = Unit(dataset.name, *unit_of(begin, dataset.unit))
            demand_free(connection, unit)
            erasures.stop_moves(connection, dataset.name, begin)
    if None in begins:
        demand_free(connection, Unit(dataset.name, EPOCH, EPOCH))


def _remove(
    stores: Stores,
    database: Postgres,
    dataset: Dataset,
    table: PersonTable,
    found: Found,
    person: Person,
    erasure: Erasure,
    spared: Spared,
) -> None:
    """Delete the rows. The ledger's transaction is around the table's own: it ends last, and can be made again."""
    kept = {begin for begin, _ in spared}
    begins = [begin for begin in found.counts if begin not in kept]
    with (
        stores.warm.transaction("erase", table.name, lock_timeout_ms=LOCK_TIMEOUT_MS) as ledger,
        database.transaction("erase", table.name, lock_timeout_ms=LOCK_TIMEOUT_MS) as connection,
    ):
        if table.is_sealed:
            # Before the moves are looked at: whoever begins to read the table after this reads it without the person.
            tables.lock(connection, table.name, "ACCESS EXCLUSIVE")
        _stop(ledger, dataset, begins)
        removed = remove_rows(connection, dataset, table, person.name, spared)
        if table.schema == "tier_trash" and not tables.has_rows(connection, table.name):
            # The unit may be gone altogether, and come again: an empty table would stand in the way of its names.
            tables.drop(connection, table.name)
            _forget_trash(ledger, table.name)
        erasures.recount_rehydrated(ledger, table.name, removed)
        erasures.note_done(ledger, erasure, table.name, {"removed": removed})


def _drop(
    stores: Stores, database: Postgres, dataset: Dataset, table: PersonTable, found: Found, erasure: Erasure
) -> None:
    """Drop an unfinished copy (its move makes it anew) or a superseded packed one (only an undo would miss it)."""
    with (
        stores.warm.transaction("erase", table.name, lock_timeout_ms=LOCK_TIMEOUT_MS) as ledger,
        database.transaction("erase", table.name, lock_timeout_ms=LOCK_TIMEOUT_MS) as connection,
    ):
        tables.lock(connection, table.name, "ACCESS EXCLUSIVE")
        _stop(ledger, dataset, list(found.counts))
        tables.drop(connection, table.name)
        _forget_trash(ledger, table.name)
        erasures.note_done(ledger, erasure, table.name, {"dropped": True})


def _forget_trash(ledger: Connection, table: str) -> None:
    for store in ("hot", "warm"):
        erasures.forget_trash(ledger, store, table)


def _rebuild(
    stores: Stores, dataset: Dataset, record: UnitRecord, person: Person, erasure: Erasure, actor: str
) -> None:
    """Build a warm unit anew without the person, prove it, swap it in and drop the old copy, in one transaction."""
    warm, unit = stores.warm_tables, record.unit
    with stores.warm.transaction("erase", str(unit), lock_timeout_ms=LOCK_TIMEOUT_MS) as connection:
        tables.lock(connection, record.location, "ACCESS EXCLUSIVE")
        _stop(connection, dataset, [unit.begin])
        if record not in units(connection, dataset.name, unit.begin):
            return  # another run has moved it since: the next round finds it where it is now
        parent = tables.warm_parent(dataset.name)
        columns = plan_columns(tables.described_columns(connection, parent))
        kind = next(c.pg_type for c in columns if c.name == dataset.subject)
        rows = warm.relation(connection, dataset, record, columns)
        mine = is_person(dataset.subject, kind, person.name)
        before = pghash.fingerprint(connection, _where(rows, sql.SQL("true")), columns, dataset.key)
        removed = pghash.fingerprint(connection, _where(rows, mine), columns, dataset.key)
        stage = tables.stage_table(unit, "erased")
        tables.drop(connection, stage)
        tables.create_like(connection, stage, parent, unit, dataset.time_column)
        listed = names([c.name for c in columns])
        execute(
            connection,
            sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} WHERE ({}) IS NOT TRUE").format(
                identifier(stage), listed, listed, rows, mine
            ),
        )
        after = pghash.fingerprint(connection, identifier(stage), columns, dataset.key)
        demand_equal(str(unit), minus(before, removed), after)
        _swap(stores, connection, dataset, record, stage, after.row_count, erasure)
        details = {"before": _short(before), "after": _short(after), "rows_before": before.row_count,
                   "rows_after": after.row_count}  # fmt: skip
        erasures.note_done(connection, erasure, record.location, details)
        audit(connection, actor, "erase-rebuild", dataset.name, unit.begin,
              {"erasure": erasure.erasure_id, "rows": removed.row_count})  # fmt: skip


def _swap(
    stores: Stores,
    connection: Connection,
    dataset: Dataset,
    record: UnitRecord,
    stage: str,
    rows: int,
    erasure: Erasure,
) -> None:
    warm, unit = stores.warm_tables, record.unit
    columns = plan_columns(tables.described_columns(connection, stage))
    old = f"tier_trash.{dataset.name}_{unit.slug}_e{erasure.erasure_id}"
    _drop_if(connection, warm.take(connection, dataset, record, old))
    if rows == 0:
        tables.drop(connection, stage)
        erasures.forget_unit(connection, unit)
        return
    location = warm.put(connection, dataset, unit, stage)
    made = UnitRecord(unit, Tier.WARM, location, False, rows, warm.size_bytes(connection, dataset, location))
    if record.is_compressed:
        packed = warm.pack(connection, dataset, made, unit, columns)
        location, left = warm.swap_packed(connection, dataset, made, packed, f"{old}_rows")
        _drop_if(connection, left)
        made = UnitRecord(unit, Tier.WARM, location, True, rows, warm.size_bytes(connection, dataset, location))
    stores.ledger.put_unit(connection, made)


def _drop_if(connection: Connection, table: str | None) -> None:
    if table:
        tables.drop(connection, table)


def _where(rows: sql.Composable, condition: sql.Composable) -> sql.Composed:
    return sql.SQL("(SELECT * FROM {} WHERE {}) AS chosen").format(rows, condition)


def _short(fingerprint: Fingerprint) -> str:
    """One hash for a whole fingerprint, as the certificate shows it."""
    return hashlib.sha256(json.dumps(fingerprint_to_json(fingerprint)).encode()).hexdigest()
