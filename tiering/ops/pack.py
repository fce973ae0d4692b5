"""COMPRESS: replace a warm unit's rows by their packed form, behind the same view.

Reversible: a merge reads the packed copy as rows and puts an unpacked one in its place.
"""

from __future__ import annotations

from tiering.model import State, Tier
from tiering.ops.export import warm_unit
from tiering.ops.work import Work, demand_equal, fingerprint_of
from tiering.stores import tables
from tiering.stores.ledger import MoveRecord, UnitRecord


def seal(work: Work) -> MoveRecord:
    """Record the source. Warm copies are fenced from birth."""
    unit = warm_unit(work)
    with work.stores.warm.transaction("measure", str(work.unit)) as connection:
        size = tables.size_bytes(connection, unit.location) or unit.size_bytes
    return work.advance_alone(State.SEALED, source=unit.location, bytes_before=size, row_count=unit.row_count)


def copy(work: Work) -> MoveRecord:
    """Write the packed copy beside the rows."""
    unit, columns = warm_unit(work), work.columns()
    with work.stores.warm.transaction("pack", str(work.unit)) as connection:
        packed = work.stores.warm_tables.pack(connection, work.dataset, unit, work.unit, columns)
        size = tables.size_bytes(connection, packed)
    return work.advance_alone(State.COPIED, target=packed, bytes_after=size)


def verify(work: Work) -> MoveRecord:
    """Compare the rows with what the packed copy unpacks to."""
    unit, columns, subject = warm_unit(work), work.columns(), str(work.unit)
    stores, dataset = work.stores, work.dataset
    with stores.warm.transaction("find", subject) as connection:
        rows = stores.warm_tables.relation(connection, dataset, unit, columns)
        packed = stores.warm_tables.packed_relation(connection, dataset, work.unit, work.record.target, columns)
    source = fingerprint_of(stores.warm, rows, dataset, columns, subject)
    demand_equal(subject, source, fingerprint_of(stores.warm, packed, dataset, columns, subject))
    return work.advance_alone(State.VERIFIED, row_count=source.row_count)


def commit(work: Work) -> MoveRecord:
    """Swap the packed copy in."""
    unit = warm_unit(work)
    with work.commit() as connection:
        trash = tables.trash_table(work.unit, work.record.move_id, "rows")
        location, left = work.stores.warm_tables.swap_packed(connection, work.dataset, unit, work.record.target, trash)
        if left:
            work.trash(connection, "warm", left, unit.size_bytes)
        record = work.record
        work.stores.ledger.put_unit(
            connection,
            UnitRecord(work.unit, Tier.WARM, location, True, record.row_count, record.bytes_after),
        )
        work.audit(connection, "compress", before=record.bytes_before, after=record.bytes_after)
        return work.advance(connection, State.COMMITTED, target=location)
