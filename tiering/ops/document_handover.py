"""HOT_TO_WARM of documents: copy a unit into the warm collection, prove it, make it count, empty the hot one.

The copies are invisible until the ledger says that the unit is warm: warm documents count only in warm units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

from tiering import errors
from tiering.model import State, Tier
from tiering.ops import documents
from tiering.ops.document_judge import Judge, Refused
from tiering.ops.document_pipe import ahead, behind
from tiering.ops.work import Work
from tiering.stores.bson_batches import RawBatch
from tiering.stores.records import MoveRecord, UnitRecord

Passing = Callable[[Iterable[RawBatch]], Iterator[RawBatch]]


def seal(work: Work) -> MoveRecord:
    """Record the source. Writers cannot be fenced off: what changes from here on stays and supersedes the copy."""
    return work.advance_alone(State.SEALED, source=documents.hot_of(work).collection)


def copy_judged(work: Work, judge: Judge) -> None:
    """Copy the unit's documents as they are now and judge them; those of a unit that fails are taken back."""
    try:
        _copy(work, judge.passing, judge.demand_good, State.SEALED)
    except Refused:
        _take_back(work)


def copy(work: Work) -> MoveRecord:
    """Copy the unit's documents as they are now, unless the checkpoint has done so."""
    return documents.copied_at_check(work) or _copy(work, iter, lambda: None, State.COPIED)


def _copy(work: Work, passing: Passing, end: Callable[[], None], state: State) -> MoveRecord:
    source, target, unit = documents.hot_of(work), documents.warm_of(work), work.unit
    if work.record.target:
        # An earlier attempt of this move wrote here. What it copied may have changed or gone since.
        _take_back(work)
    begun = work.at(work.advance_alone(State.SEALED, target=target.collection))
    tally = documents.Tally()
    with closing(ahead(source.read(unit))) as coming:
        read = passing(documents.each_once(coming))
        for batch in behind(lambda found: documents.put(begun, target, found), read):
            tally.note(batch)
    end()
    return begun.advance_alone(
        state,
        row_count=tally.fingerprint.row_count,
        bytes_before=tally.size_bytes,
        bytes_after=tally.size_bytes,
        details=tally.details(state),
    )


def _take_back(work: Work) -> None:
    target, unit = documents.warm_of(work), work.unit
    with documents.fenced(work):
        target.documents.remove_range(target.collection, target.time_field, unit.begin, unit.end)


def verify(work: Work) -> MoveRecord:
    """Read the warm range back in full.

    A document may have left it meanwhile: its time was changed, and another unit's move brought it. The copy is
    then made anew.

    Raises:
        FingerprintMismatch: they differ; both are kept.
    """
    place = documents.warm_of(work)
    for attempt in range(documents.RECOPIES_MAX + 1):
        try:
            documents.prove_written(work, ahead(place.read(work.unit)))
            break
        except errors.FingerprintMismatch:
            is_fewer = place.count(work.unit) < documents.copied_print(work).row_count
            if not is_fewer or attempt == documents.RECOPIES_MAX:
                raise
            work = work.at(work.advance_alone(State.SEALED))
            work = work.at(copy(work))
    return work.advance_alone(State.VERIFIED, checkpoints_passed=work.record.checkpoints_passed + 1)


def commit(work: Work) -> MoveRecord:
    """Make the warm copy the unit's authoritative one; the hot documents leave when the move is settled."""
    place = documents.warm_of(work)
    work = documents.renewed(work, documents.hot_of(work), lambda work: place.ids(work.unit), (copy, verify))
    record = work.record
    with work.commit() as connection:
        documents.trash_superseded(work, connection)
        unit = UnitRecord(work.unit, Tier.WARM, place.collection, False, record.row_count, record.bytes_after)
        work.stores.ledger.put_unit(connection, unit)
        work.audit(connection, "hot-to-warm", rows=record.row_count, location=place.collection)
        return work.advance(connection, State.COMMITTED, details={"unsettled": True})
