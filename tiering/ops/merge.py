"""MERGE: join late rows, a unit's next generation, to its copy in the warm or cold tier.

The merged unit is built beside the old copy (copy-on-write) and swapped for it in one transaction, so no
reader ever sees a key twice or not at all. A late row wins over the older row of the same key.
"""

from __future__ import annotations

from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering import errors
from tiering.model import Column, Dataset, Fingerprint, State, Tier
from tiering.ops import archive, export, handover
from tiering.ops.columns import recorded_print
from tiering.ops.work import Work, demand_equal, fingerprint_of, prove_copy
from tiering.stores import parquet, pgcopy, pghash, tables
from tiering.stores.copies import forget_copy
from tiering.stores.opening import Stores
from tiering.stores.parquet_schema import columns_in
from tiering.stores.postgres import LOCK_TIMEOUT_MS, Postgres, execute, fetch_one, identifier, names
from tiering.stores.records import MoveRecord, UnitRecord, fingerprint_to_json


def seal(work: Work) -> MoveRecord:
    """Take the late rows that are there now into a sealed table of their own; later ones wait for the next time."""
    work.columns()  # before anything moves: what stored data cannot follow stays where it is
    table = tables.hot_partition(work.unit)
    with work.stores.hot.transaction("seal", str(work.unit), lock_timeout_ms=LOCK_TIMEOUT_MS) as connection:
        if not tables.exists(connection, table):
            tables.create_like(
                connection, table, tables.hot_parent(work.dataset.name), work.unit, work.dataset.time_column
            )
            tables.adopt_rows(
                connection, tables.late_partition(work.dataset.name), table, work.unit, work.dataset.time_column
            )
            tables.fence(connection, table)
            tables.attach(connection, tables.sealed_parent(work.dataset.name), table, work.unit)
        size = tables.size_bytes(connection, table)
    return work.advance_alone(State.SEALED, source=table, bytes_before=size)


def copy(work: Work) -> MoveRecord:
    """Build the merged unit in a stage table; for a cold unit also write and upload its new lake file."""
    old = _old_copy(work)
    columns, stored = work.columns(), work.stored_columns()
    late = _late_in_warm(work)
    stage = tables.stage_table(work.unit, "rows")
    with work.stores.warm.transaction("stage", str(work.unit)) as connection:
        work.stores.ledger.demand_lease(connection, work.record)
        tables.drop(connection, stage)
        tables.create_like(
            connection, stage, tables.warm_parent(work.dataset.name), work.unit, work.dataset.time_column
        )
    if old.tier is Tier.COLD:
        archive.ask_for(work.stores, old, work.now)
        load_cold(work.stores, work.dataset, old, stage, stored)
    with work.stores.warm.transaction("merge", str(work.unit)) as connection:
        if old.tier is Tier.WARM:
            relation = work.stores.warm_tables.relation(connection, work.dataset, old, stored)
            _insert(connection, stage, relation, stored)
        _overlay(connection, stage, late, work, columns)
        execute(connection, sql.SQL("ANALYZE {}").format(identifier(stage)))
        rows = fetch_one(connection, sql.SQL("SELECT count(*) FROM {}").format(identifier(stage)))
    assert rows is not None
    work = work.at(work.advance_alone(State.SEALED, row_count=rows[0], details={"stage": stage, "late": late}))
    if old.tier is Tier.COLD:
        return export.write_object(work, identifier(stage), stored)
    return work.advance_alone(State.COPIED, target=stage)


def verify(work: Work) -> MoveRecord:
    """Prove that the merged unit is the old copy less the replaced keys, and the late rows, and nothing else."""
    old, columns, stored, subject = _old_copy(work), work.columns(), work.stored_columns(), str(work.unit)
    stage, late = work.record.details["stage"], work.record.details["late"]
    source = fingerprint_of(work.stores.hot, identifier(work.record.source), work.dataset, columns, subject)
    details = {}
    if old.tier is Tier.COLD:
        before = None  # the old file's fingerprint was compared when it was loaded
        details["fingerprint"] = fingerprint_to_json(export.verify_object(work, identifier(stage), stored))
    else:
        with work.stores.warm.transaction("verify", subject) as connection:
            relation = work.stores.warm_tables.relation(connection, work.dataset, old, stored)
        before = _print(work, work.stores.warm, _against(relation, late, work, stored, keep=False), stored)
    replaced = _print(work, work.stores.warm, _against(identifier(stage), late, work, columns, keep=True), columns)
    prove_copy(f"{subject} (late rows)", source, replaced, work.record.bytes_before)
    if before is not None:
        kept = _print(work, work.stores.warm, _against(identifier(stage), late, work, stored, keep=False), stored)
        demand_equal(f"{subject} (older rows)", before, kept)
    return work.advance_alone(State.VERIFIED, checkpoints_passed=work.record.checkpoints_passed + 1, details=details)


def commit(work: Work) -> MoveRecord:
    """Swap the merged copy for the old one and retire the late rows."""
    old, stage = _old_copy(work), work.record.details["stage"]
    move_id = work.record.move_id
    with work.commit() as connection:
        # Sealed before warm, the order in which readers of the live view lock them: the other way round we meet.
        if work.stores.is_one_database:
            trash = tables.trash_table(work.unit, move_id, "hot")
            handover.retire_hot(connection, work.dataset.name, work.unit, work.record.source, trash)
        else:
            _retire_table(work, connection, work.record.details["late"], "late")
        work.trash(connection, "hot", tables.trash_table(work.unit, move_id, "hot"), work.record.bytes_before)
        if old.tier is Tier.COLD:
            forget_copy(connection, work.stores.warm_tables, work.dataset, work.unit.begin)
            record = export.publish(work, connection, replaces=old)
            _retire_table(work, connection, stage, "stage")
        else:
            trash = tables.trash_table(work.unit, move_id, "old")
            left = work.stores.warm_tables.take(connection, work.dataset, old, trash)
            if left:
                work.trash(connection, "warm", left, old.size_bytes)
            location = work.stores.warm_tables.put(connection, work.dataset, work.unit, stage)
            size = tables.size_bytes(connection, location)
            unit = UnitRecord(work.unit, Tier.WARM, location, False, work.record.row_count, size)
            work.stores.ledger.put_unit(connection, unit)
            record = work.advance(connection, State.COMMITTED, target=location, bytes_after=size)
        work.audit(connection, "merge", rows=work.record.row_count, tier=str(old.tier))
        return record


def _retire_table(work: Work, connection: Connection, table: str, what: str) -> None:
    if tables.exists(connection, table):
        trash = tables.trash_table(work.unit, work.record.move_id, what)
        tables.rename(connection, table, trash)
        work.trash(connection, "warm", trash)


def _old_copy(work: Work) -> UnitRecord:
    old = work.stores.ledger.unit(work.dataset.name, work.unit.begin)
    if old is None or old.tier not in (Tier.WARM, Tier.COLD):
        raise errors.NotFound("merge", str(work.unit), "the unit has no copy to merge with", "Run `tiering fsck`.")
    return old


def _late_in_warm(work: Work) -> str:
    """Return a table of the warm database with the late rows: the sealed one itself, or a pumped copy."""
    if work.stores.is_one_database:
        return work.record.source
    stage = tables.stage_table(work.unit, "late")
    handover.pump_into_stage(work, work.record.source, stage)
    return stage


def load_cold(stores: Stores, dataset: Dataset, old: UnitRecord, stage: str, columns: tuple[Column, ...]) -> None:
    """Bring a cold unit's rows back into a table of the warm database and prove them equal to what was exported."""
    expected = None
    with export.fetched(stores, old) as file, stores.warm.transaction("bring back", str(old.unit)) as writing:
        known = columns_in(file, columns)  # a file may be older than a column
        if old.fingerprint is not None:
            expected, compared = recorded_print(file, old.fingerprint, known)
        pgcopy.write_rows(writing, identifier(stage), known, parquet.read_parquet_batches(file, known))
    if expected is not None:
        with stores.warm.transaction("fingerprint", str(old.unit), read_only=True) as connection:
            back = pghash.fingerprint(connection, identifier(stage), compared, dataset.key)
        demand_equal(f"{old.unit} (brought back)", expected, back)


def _insert(connection: Connection, stage: str, relation: sql.Composable, columns: tuple[Column, ...]) -> None:
    listed = names([c.name for c in columns])
    execute(
        connection,
        sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(identifier(stage), listed, listed, relation),
    )


def _overlay(connection: Connection, stage: str, late: str, work: Work, columns: tuple[Column, ...]) -> None:
    """Put the late rows over the old ones: same key, the late row wins."""
    same = sql.SQL(" AND ").join(sql.SQL("s.{0} = l.{0}").format(sql.Identifier(name)) for name in work.dataset.key)
    execute(
        connection,
        sql.SQL("DELETE FROM {} s USING {} l WHERE {}").format(identifier(stage), identifier(late), same),
    )
    _insert(connection, stage, identifier(late), columns)


def _against(
    relation: sql.Composable, late: str, work: Work, columns: tuple[Column, ...], *, keep: bool
) -> sql.Composed:
    """Build the subquery of a relation's rows whose key is (`keep`) or is not among the late rows."""
    same = sql.SQL(" AND ").join(sql.SQL("r.{0} = l.{0}").format(sql.Identifier(name)) for name in work.dataset.key)
    source = (
        sql.SQL("{} r").format(relation)
        if isinstance(relation, sql.Identifier)
        else sql.SQL("(SELECT * FROM {}) r").format(relation)
    )
    return sql.SQL("(SELECT {} FROM {} WHERE {} EXISTS (SELECT 1 FROM {} l WHERE {})) AS compared").format(
        names([c.name for c in columns], "r"),
        source,
        sql.SQL("" if keep else "NOT"),
        identifier(late),
        same,
    )


def _print(work: Work, database: Postgres, relation: sql.Composable, columns: tuple[Column, ...]) -> Fingerprint:
    return fingerprint_of(database, relation, work.dataset, columns, str(work.unit))
