"""COMPRESS: replace a warm unit's rows by their packed form, behind the same view.

Reversible: a merge reads the packed copy as rows and puts an unpacked one in its place.
"""

from __future__ import annotations

from tiering.model import State, Tier
from tiering.ops.export import warm_unit
from tiering.ops.work import Work, compared_columns, demand_equal, fingerprint_of
from tiering.stores import pghash, tables
from tiering.stores.records import MoveRecord, UnitRecord, fingerprint_from_json, fingerprint_to_json


def seal(work: Work) -> MoveRecord:
    """Record the source. Warm copies are fenced from birth."""
    unit = warm_unit(work)
    with work.stores.warm.transaction("measure", str(work.unit)) as connection:
        size = tables.size_bytes(connection, unit.location) or unit.size_bytes
    return work.advance_alone(State.SEALED, source=unit.location, bytes_before=size, row_count=unit.row_count)


def copy(work: Work) -> MoveRecord:
    """Write the packed copy: beside the rows, or in their place where the engine compresses in place.

    The rows' fingerprint is taken first, because in place there is no source left to read afterwards. In place
    the comparison is part of the transaction: a difference rolls it back, and the rows are as they were.
    """
    unit, columns = warm_unit(work), work.stored_columns()
    warm, dataset, subject = work.stores.warm_tables, work.dataset, str(work.unit)
    compared = compared_columns(dataset, columns)
    with work.stores.warm.transaction("pack", subject) as connection:
        work.stores.ledger.demand_lease(connection, work.record)
        rows = warm.relation(connection, dataset, unit, columns)
        source = pghash.fingerprint(connection, rows, compared, dataset.key)
        packed = warm.pack(connection, dataset, unit, work.unit, columns)
        if packed == unit.location:
            relation = warm.packed_relation(connection, dataset, work.unit, packed, columns)
            demand_equal(subject, source, pghash.fingerprint(connection, relation, compared, dataset.key))
        size = warm.size_bytes(connection, dataset, packed)
    return work.advance_alone(
        State.COPIED, target=packed, bytes_after=size, details={"rows": fingerprint_to_json(source)}
    )


def verify(work: Work) -> MoveRecord:
    """Compare the rows, as they were before packing, with what the packed copy unpacks to."""
    columns, subject, stores = work.stored_columns(), str(work.unit), work.stores
    with stores.warm.transaction("find", subject) as connection:
        packed = stores.warm_tables.packed_relation(connection, work.dataset, work.unit, work.record.target, columns)
    source = fingerprint_from_json(work.record.details["rows"])
    assert source is not None, "written by copy"
    demand_equal(subject, source, fingerprint_of(stores.warm, packed, work.dataset, columns, subject))
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
