"""MERGE of documents: join those that came or changed after their unit left to its copy; the newer one wins."""

from __future__ import annotations

from collections.abc import Iterator

from tiering import errors
from tiering.model import State, Tier
from tiering.ops import archive, document_export, documents, export, rehydrate_documents
from tiering.ops.work import Work
from tiering.stores.bson_batches import RawBatch, ids, print_of
from tiering.stores.records import MoveRecord, UnitRecord, fingerprint_to_json
from tiering.stores.superseded import clear_superseded, list_superseded


def seal(work: Work) -> MoveRecord:
    """Record the source: whatever of the unit is in the hot collection when it is copied."""
    return work.advance_alone(State.SEALED, source=documents.hot_of(work).collection)


def copy(work: Work) -> MoveRecord:
    """Put the late documents over a warm unit's; of a cold unit write the next file."""
    old = _old_copy(work)
    if old.tier is Tier.COLD:
        archive.ask_for(work.stores, old, work.now)
        return document_export.write_file(work, _merged(work, old))
    source, target = documents.hot_of(work), documents.warm_of(work)
    work = work.at(work.advance_alone(State.SEALED, target=target.collection))
    for batch in source.read(work.unit):
        _prove_batch(work, target, documents.put(work, target, batch))
    return work.advance_alone(State.COPIED)


def verify(work: Work) -> MoveRecord:
    """Read the merged unit back in full."""
    passed = work.record.checkpoints_passed + 1
    if _old_copy(work).tier is Tier.COLD:
        documents.prove_file(work)
        details = {"fingerprint": work.record.details["print"]}
        return work.advance_alone(State.VERIFIED, checkpoints_passed=passed, details=details)
    tally = documents.Tally()
    for _ in tally.passing(documents.warm_of(work).read(work.unit)):
        pass
    return work.advance_alone(
        State.VERIFIED,
        checkpoints_passed=passed,
        row_count=tally.fingerprint.row_count,
        bytes_after=tally.size_bytes,
        details={"print": fingerprint_to_json(tally.fingerprint)},
    )


def commit(work: Work) -> MoveRecord:
    """Make the merged unit the authoritative one."""
    old, record = _old_copy(work), work.record
    with work.commit() as connection:
        documents.trash_superseded(work, connection)
        if old.tier is Tier.COLD:
            rehydrate_documents.forget(work.stores, connection, work.dataset, work.unit.begin)
            clear_superseded(connection, work.unit)
            record = export.publish(work, connection, replaces=old)
        else:
            unit = UnitRecord(work.unit, Tier.WARM, old.location, False, record.row_count, record.bytes_after)
            work.stores.ledger.put_unit(connection, unit)
            record = work.advance(connection, State.COMMITTED)
        work.audit(connection, "merge", rows=record.row_count, tier=str(old.tier))
        return work.at(record).advance(connection, State.COMMITTED, details={"unsettled": True})


def _old_copy(work: Work) -> UnitRecord:
    old = work.stores.ledger.unit(work.dataset.name, work.unit.begin)
    if old is None or old.tier not in (Tier.WARM, Tier.COLD):
        raise errors.NotFound("merge", str(work.unit), "the unit has no copy to merge with", "Run `tiering fsck`.")
    return old


def _merged(work: Work, old: UnitRecord) -> Iterator[RawBatch]:
    """Yield each document of a cold unit once: as it is hot, else as it is still warm, else as the old file has it.

    Those of the old file that went on in another unit are left out.

    What is both hot and warm leaves the warm collection here: else it would be seen again when the hot one goes.
    """
    seen: set[bytes] = set()
    hot, warm = documents.hot_of(work), documents.warm_of(work)
    for batch in hot.read(work.unit):
        yield documents.unseen(batch, seen)
        seen.update(ids(batch))
    newer = frozenset(seen)
    for batch in warm.read(work.unit):
        yield documents.unseen(batch, seen)
        seen.update(ids(batch))
        if newer:
            with documents.fenced(work):
                documents.displace(work, warm, documents.unseen(batch, {*ids(batch)} - newer))
    with work.stores.warm.transaction("list superseded of", str(work.unit), read_only=True) as connection:
        seen |= {one.key for one in list_superseded(connection, work.dataset.name, work.unit.begin)}
    for batch in documents.file_batches(work, old):
        yield documents.unseen(batch, seen)


def _prove_batch(work: Work, target: documents.Place, batch: RawBatch) -> None:
    """Read back what was just put: the source may change, so it cannot be asked later."""
    back = target.documents.find(target.collection, ids(batch))
    if print_of([back]) != print_of([batch]):
        raise errors.FingerprintMismatch(
            "merge", str(work.unit), "the warm collection did not take the documents as they were sent", "Run it again."
        )
