"""EXPIRE: end a unit's life after its retention. Metadata only: the sweep removes the bytes after the grace.

A legal hold is looked at inside the commit's transaction: placed a moment before, it stops the expiry.
"""

from __future__ import annotations

from psycopg2.extensions import connection as Connection

from tiering import errors
from tiering.model import State, StorageClass, Tier
from tiering.ops import handover, merge
from tiering.ops.work import Work
from tiering.stores import tables
from tiering.stores.copies import forget_copy
from tiering.stores.joined import change_files, lock_publisher
from tiering.stores.ledger import held
from tiering.stores.records import MoveRecord, UnitRecord


def seal(work: Work) -> MoveRecord:
    """Record what is to expire; of a unit that has expired, take the rows that came too late into a table."""
    unit = work.stores.ledger.unit(work.dataset.name, work.unit.begin)
    if unit is None:
        raise errors.NotFound("expire", str(work.unit), "not in the ledger", "Run `tiering fsck`.")
    if unit.tier is Tier.EXPIRED:
        return merge.seal(work)
    return work.advance_alone(
        State.SEALED, source=unit.location, row_count=unit.row_count, bytes_before=unit.size_bytes
    )


def copy(work: Work) -> MoveRecord:
    """Nothing is copied."""
    return work.advance_alone(State.COPIED)


def verify(work: Work) -> MoveRecord:
    """Nothing was copied, so there is nothing to compare."""
    return work.advance_alone(State.VERIFIED)


def commit(work: Work) -> MoveRecord:
    """Take the unit out of every reader's sight and leave its last fingerprint in the ledger and the audit trail.

    Raises:
        HeldError: a legal hold is in force; nothing is changed.
    """
    name = work.dataset.name
    with work.commit() as connection:
        demand_no_hold(work, connection)
        unit = work.stores.ledger.unit(name, work.unit.begin)
        assert unit is not None, "sealed, so it was there, and only this move may end it"
        if unit.tier is Tier.EXPIRED:
            _retire_late(work, connection)
        elif unit.tier is Tier.COLD:
            forget_copy(connection, work.stores.warm_tables, work.dataset, work.unit.begin)
            retire_object(work, connection, unit)
        else:
            trash = tables.trash_table(work.unit, work.record.move_id, "expired")
            left = work.stores.warm_tables.take(connection, work.dataset, unit, trash)
            if left:
                work.trash(connection, "warm", left, unit.size_bytes)
        last = UnitRecord(work.unit, Tier.EXPIRED, "", False, 0, 0, unit.fingerprint, unit.sha256)
        work.stores.ledger.put_unit(connection, last)
        work.audit(
            connection, "expire", rows=unit.row_count, bytes=unit.size_bytes, location=unit.location, sha256=unit.sha256
        )
        return work.advance(connection, State.COMMITTED)


def demand_no_hold(work: Work, connection: Connection) -> None:
    """Raise HeldError if a legal hold is on the unit; a hold placed from now on waits for this transaction."""
    reason = held(connection, work.unit)
    if reason:
        raise errors.HeldError(
            "expire", str(work.unit), f"under legal hold: {reason}", "Lift the hold first: `tiering hold lift`."
        )


def retire_object(work: Work, connection: Connection, unit: UnitRecord) -> None:
    """Take a cold unit's file out of the lake table and hand its object to the sweep, in the commit's transaction."""
    name = work.dataset.name
    lock_publisher(connection, name)
    if unit.storage_class is not StorageClass.DEEP_ARCHIVE:  # then it has left the live table already
        change_files(connection, work.stores.lake, name, remove=[unit.location])
    work.trash(connection, "lake", unit.location, unit.size_bytes)


def _retire_late(work: Work, connection: Connection) -> None:
    trash = tables.trash_table(work.unit, work.record.move_id, "hot")
    work.trash(connection, "hot", trash, work.record.bytes_before)
    if work.stores.is_one_database:
        handover.retire_hot(connection, work.dataset.name, work.unit, work.record.source, trash)
