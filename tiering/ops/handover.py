"""HOT_TO_WARM: hand a sealed unit to the warm tier.

One database: detach here, attach there, in the commit's transaction; no row is read. Two databases: the rows
are pumped into a stage table, compared by fingerprint, and the stage table becomes the warm partition; the
hot copy leaves in a transaction of its own afterwards, and until then readers drop it by key.
"""

from __future__ import annotations

from psycopg2.extensions import connection as Connection

from tiering import errors
from tiering.model import State, Tier, Transition, Unit
from tiering.ops.install import create_units
from tiering.ops.work import Work, both, fingerprint_of, prove_copy
from tiering.stores import pgcopy, tables
from tiering.stores.postgres import LOCK_TIMEOUT_MS, identifier
from tiering.stores.records import MoveRecord, UnitRecord


def seal(work: Work) -> MoveRecord:
    """Fence the unit: one short transaction moves its partition from the hot parent to the sealed one.

    Writers in flight are waited for; rows that come later fall into the late partition.
    """
    name = work.dataset.name
    work.columns()  # before anything moves: what stored data cannot follow stays where it is
    # Rows that came before their partition did may be planned before it was made.
    create_units(work.stores, work.dataset, [(work.unit.begin, work.unit.end)])
    with work.stores.hot.transaction("seal", str(work.unit), lock_timeout_ms=LOCK_TIMEOUT_MS) as connection:
        found = tables.find(connection, tables.hot_parent(name), work.unit)
        if found:
            tables.detach(connection, tables.hot_parent(name), found.name)
            tables.fence(connection, found.name)
            tables.attach(connection, tables.sealed_parent(name), found.name, work.unit)
        sealed = tables.find(connection, tables.sealed_parent(name), work.unit)
        if sealed is None:
            raise errors.NotFound(
                "seal", str(work.unit), "no such hot partition", "It may have been detached by hand: `tiering fsck`."
            )
    return work.advance_alone(State.SEALED, source=sealed.name, bytes_before=sealed.size_bytes)


def copy(work: Work) -> MoveRecord:
    """Pump the rows into a stage table of the warm database; nothing to do in one database."""
    if work.stores.is_one_database:
        return work.advance_alone(State.COPIED, target=tables.warm_partition(work.unit))
    stage = tables.stage_table(work.unit, "rows")
    rows = pump_into_stage(work, work.record.source, stage)
    return work.advance_alone(State.COPIED, target=stage, row_count=rows)


def pump_into_stage(work: Work, source: str, stage: str) -> int:
    """Stream a hot table into a new stage table of the warm database; return the rows."""
    stores, columns = work.stores, work.columns()
    with stores.warm.transaction("stage", str(work.unit)) as connection:
        stores.ledger.demand_lease(connection, work.record)
        tables.drop(connection, stage)
        tables.create_like(
            connection, stage, tables.warm_parent(work.dataset.name), work.unit, work.dataset.time_column
        )
    with (
        stores.hot.transaction("read", source, read_only=True) as reading,
        stores.warm.transaction("write", stage) as writing,
    ):
        rows, _ = pgcopy.pump(reading, identifier(source), writing, identifier(stage), columns)
    return rows


def verify(work: Work) -> MoveRecord:
    """Compare both databases' own fingerprints; in one database the copy is the source itself."""
    if work.stores.is_one_database:
        return work.advance_alone(State.VERIFIED)
    columns, subject = work.columns(), str(work.unit)
    source, target = both(
        lambda: fingerprint_of(work.stores.hot, identifier(work.record.source), work.dataset, columns, subject),
        lambda: fingerprint_of(work.stores.warm, identifier(work.record.target), work.dataset, columns, subject),
    )
    prove_copy(subject, source, target, work.record.bytes_before)
    return work.advance_alone(
        State.VERIFIED, row_count=source.row_count, checkpoints_passed=work.record.checkpoints_passed + 1
    )


def commit(work: Work) -> MoveRecord:
    """Make the warm copy the unit's only one."""
    with work.commit() as connection:
        table = work.record.target
        if work.stores.is_one_database:
            table = work.record.source
            tables.detach(connection, tables.sealed_parent(work.dataset.name), table)
        location = work.stores.warm_tables.put(connection, work.dataset, work.unit, table)
        size = tables.size_bytes(connection, location)
        rows = work.record.row_count
        work.stores.ledger.put_unit(connection, UnitRecord(work.unit, Tier.WARM, location, False, rows, size))
        work.audit(connection, "hot-to-warm", rows=rows, location=location)
        if not work.stores.is_one_database:
            trash = tables.trash_table(work.unit, work.record.move_id, "hot")
            work.trash(connection, "hot", trash, work.record.bytes_before)
        return work.advance(connection, State.COMMITTED, target=location, bytes_after=size)


def settle(work: Work) -> None:
    """Take the hot copy of a committed move out of sight (two databases only). May be called again."""
    if work.stores.is_one_database or work.record.transition in (Transition.COMPRESS, Transition.WARM_TO_COLD):
        return
    trash = tables.trash_table(work.unit, work.record.move_id, "hot")
    with work.stores.hot.transaction("settle", str(work.unit), lock_timeout_ms=LOCK_TIMEOUT_MS) as connection:
        retire_hot(connection, work.dataset.name, work.unit, work.record.source, trash)


def retire_hot(connection: Connection, dataset: str, unit: Unit, source: str, trash: str) -> None:
    """Detach a sealed table, if it still is attached, and put it into the trash schema."""
    sealed = tables.sealed_parent(dataset)
    # Locked before looked at: two runs may settle the same move.
    tables.lock(connection, sealed, "ACCESS EXCLUSIVE")
    if tables.parent_of(connection, source) == sealed:
        tables.detach(connection, sealed, source)
        tables.rename(connection, source, trash)
