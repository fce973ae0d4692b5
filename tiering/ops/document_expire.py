"""EXPIRE of documents: end a unit's life after its retention. The sweep removes the documents after the undo window."""

from __future__ import annotations

from psycopg2.extensions import connection as Connection

from tiering import errors
from tiering.model import State, Tier
from tiering.ops import documents, expire, rehydrate_documents
from tiering.ops.work import Work
from tiering.stores.records import MoveRecord, UnitRecord, fingerprint_to_json
from tiering.stores.superseded import clear_superseded


def seal(work: Work) -> MoveRecord:
    """Record what is to expire."""
    unit = _unit(work)
    return work.advance_alone(
        State.SEALED, source=unit.location, row_count=unit.row_count, bytes_before=unit.size_bytes
    )


def copy(work: Work) -> MoveRecord:
    """Copy documents that came after their unit's end into the move's trash; nothing is copied of a living unit."""
    if _unit(work).tier is not Tier.EXPIRED:
        return work.advance_alone(State.COPIED)
    source, trash = documents.hot_of(work), documents.trash_of(work)
    tally = documents.Tally()
    for batch in tally.passing(source.read(work.unit)):
        with documents.fenced(work):
            trash.documents.insert_missing(trash.collection, batch)
    return work.advance_alone(
        State.COPIED,
        row_count=tally.fingerprint.row_count,
        bytes_before=tally.size_bytes,
        details={"print": fingerprint_to_json(tally.fingerprint), "late": True},
    )


def verify(work: Work) -> MoveRecord:
    """Nothing to compare: what is removed is compared byte by byte with the trash when the move is settled."""
    return work.advance_alone(State.VERIFIED)


def commit(work: Work) -> MoveRecord:
    """Take the unit out of every reader's sight.

    Raises:
        HeldError: a legal hold is in force; nothing is changed.
    """
    with work.commit() as connection:
        expire.demand_no_hold(work, connection)
        unit = _unit(work)
        if unit.tier is Tier.COLD:
            rehydrate_documents.forget(work.stores, connection, work.dataset, work.unit.begin)
            clear_superseded(connection, work.unit)
        _retire(work, connection, unit)
        last = UnitRecord(work.unit, Tier.EXPIRED, "", False, 0, 0, unit.fingerprint, unit.sha256)
        work.stores.ledger.put_unit(connection, last)
        work.audit(
            connection, "expire", rows=unit.row_count, bytes=unit.size_bytes, location=unit.location, sha256=unit.sha256
        )
        return work.advance(connection, State.COMMITTED, details={"unsettled": unit.tier is Tier.EXPIRED or None})


def _retire(work: Work, connection: Connection, unit: UnitRecord) -> None:
    if unit.tier is Tier.COLD:
        expire.retire_object(work, connection, unit)
    if unit.tier in (Tier.COLD, Tier.WARM):
        # Of a cold unit as well: documents that changed while it was copied may have stayed in the warm collection.
        place = documents.warm_of(work)
        work.trash(connection, "documents", documents.trash_location(place, "warm", work.unit), unit.size_bytes)
    else:
        trash = documents.trash_of(work)
        work.trash(connection, "documents", documents.trash_location(trash, "hot"), work.record.bytes_before)


def _unit(work: Work) -> UnitRecord:
    unit = work.stores.ledger.unit(work.dataset.name, work.unit.begin)
    if unit is None:
        raise errors.NotFound("expire", str(work.unit), "not in the ledger", "Run `tiering fsck`.")
    return unit
