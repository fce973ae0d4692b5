"""Documents: what the moves of MongoDB datasets share. Where their documents are, and which of them count.

MongoDB and the ledger share no transaction, and nobody can fence writers off. So a copy is made while the source
lives on; the ledger's commit makes it authoritative; then exactly those source documents are removed whose bytes are
still the copy's. A document that changed meanwhile stays, supersedes the copy for every reader, and joins it by the
next merge. A document counts once, by `_id`: hot before warm before cold; warm documents count in the ranges of units
that are warm, and in those of cold units, where they changed while they were copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from psycopg2.extensions import connection as Connection

from tiering import errors
from tiering.model import Column, Dataset, Fingerprint, Residence, State, Tier, Transition, Unit
from tiering.ops import export
from tiering.ops.work import Work, prove_copy
from tiering.plan.spans import unit_of
from tiering.stores import parquet
from tiering.stores.bson_batches import RawBatch, digests, ids, print_of, sum_of_ids
from tiering.stores.bson_typed import RAW_COLUMN, document_columns, typed
from tiering.stores.documents import Documents
from tiering.stores.opening import Stores
from tiering.stores.records import MoveRecord, UnitRecord, fingerprint_from_json, fingerprint_to_json
from tiering.stores.superseded import list_superseded, put_superseded

AT_CHECK = "copied_at_check"
"""Among a move's details: the copy is there already. Taken off by the step that finds it, so that it counts once."""

RECOPIES_MAX = 3
"""How often a copy is made anew because documents were deleted under it, before a person has to look."""


@dataclass(frozen=True, slots=True)
class Place:
    """A collection of a dataset: in which server, under which name, and the field that says a document's time."""

    documents: Documents
    collection: str
    time_field: str

    def read(self, unit: Unit) -> Iterator[RawBatch]:
        """Read the unit's documents in batches of raw bytes."""
        return self.documents.read(self.collection, self.time_field, unit.begin, unit.end)

    def count(self, unit: Unit) -> int:
        """Count the unit's documents."""
        return self.documents.count(self.collection, self.time_field, unit.begin, unit.end)

    def ids(self, unit: Unit) -> set[bytes]:
        """Read the `_id`s of the unit's documents: 20 to 50 bytes each, all in memory."""
        batches = self.documents.read_ids(self.collection, self.time_field, unit.begin, unit.end)
        return {identity for batch in batches for identity in batch}


def hot(stores: Stores, dataset: Dataset) -> Place:
    """The collection that applications write: named as the dataset."""
    return Place(stores.hot_documents, dataset.name, dataset.time_column)


def warm(stores: Stores, dataset: Dataset) -> Place:
    """The collection of the warm tier, in its own server or beside the hot one."""
    return Place(stores.warm_documents, f"warm_{dataset.name}", dataset.time_column)


def trash_of(work: Work) -> Place:
    """A collection of this move's own, for documents that its effects supersede, until the undo window is over."""
    place = hot_of(work) if work.record.transition is Transition.EXPIRE else warm_of(work)
    return Place(place.documents, f"trash_{work.dataset.name}_{work.record.move_id}", place.time_field)


def hot_of(work: Work) -> Place:
    """The hot collection of the move's dataset."""
    return hot(work.stores, work.dataset)


def warm_of(work: Work) -> Place:
    """The warm collection of the move's dataset."""
    return warm(work.stores, work.dataset)


def sources(work: Work) -> list[Place]:
    """Name the collections that the move's documents come from, the one that wins first."""
    if work.record.transition is Transition.WARM_TO_COLD:
        return [warm_of(work)]
    unit = work.stores.ledger.unit(work.dataset.name, work.unit.begin)
    if work.record.transition is Transition.MERGE and unit is not None and unit.tier is Tier.COLD:
        return [hot_of(work), warm_of(work)]
    return [hot_of(work)]


# -- looking ----------------------------------------------------------------------------------------------------


def install(stores: Stores, dataset: Dataset) -> tuple[Column, ...]:
    """Index both collections by time; return the dataset's columns in the lake. May be called again."""
    for place in (hot(stores, dataset), warm(stores, dataset)):
        place.documents.prepare(place.collection, place.time_field)
    return document_columns(dataset)


def survey_hot(stores: Stores, dataset: Dataset) -> tuple[list[Residence], list[tuple[Unit, int]], datetime | None]:
    """List the units that have documents in the hot collection, the documents waiting per unit, and the newest time.

    Of units that went cold the documents left in the warm collection wait as well: they changed while copied.
    """
    place = hot(stores, dataset)
    newest = place.documents.newest(place.collection, place.time_field)
    waiting = {unit: place.count(unit) for unit in _units_with_documents(place, dataset)}
    found = [Residence(unit, Tier.HOT, place.collection, row_count=count) for unit, count in waiting.items()]
    cold = {r.unit.begin: r.unit.end for r in stores.ledger.units(dataset.name) if r.tier is Tier.COLD}
    if cold:
        left = warm(stores, dataset)
        for unit in _units_with_documents(left, dataset, until=max(cold.values())):
            if unit.begin in cold:
                waiting[unit] = waiting.get(unit, 0) + left.count(unit)
        with stores.warm.transaction("list superseded of", dataset.name, read_only=True) as connection:
            for one in list_superseded(connection, dataset.name):
                if one.begin in cold:
                    gone = Unit(dataset.name, one.begin, one.end)
                    waiting[gone] = waiting.get(gone, 0) + 1
    return found, sorted(waiting.items()), newest


def _units_with_documents(place: Place, dataset: Dataset, until: datetime | None = None) -> Iterator[Unit]:
    """Jump through the time index from unit to unit, oldest first."""
    at = place.documents.first_at_or_after(place.collection, place.time_field, None)
    while at is not None and (until is None or at < until):
        begin, end = unit_of(at, dataset.unit)
        yield Unit(dataset.name, begin, end)
        at = place.documents.first_at_or_after(place.collection, place.time_field, end)


# -- copying ----------------------------------------------------------------------------------------------------


@contextmanager
def fenced(work: Work) -> Iterator[None]:
    """Let nobody take the move over while an effect on a server without our transactions is under way.

    Raises:
        LeaseHeld: somebody took it over before; nothing was done.
    """
    with work.stores.warm.transaction("fence", str(work.record)) as connection:
        work.stores.ledger.demand_lease(connection, work.record)
        yield


class Tally:
    """Counts and fingerprints documents on their way from a source to a copy, each `_id` once."""

    def __init__(self) -> None:
        self._prints: list[Fingerprint] = []
        self._ids = 0
        self.size_bytes = 0

    def passing(self, batches: Iterable[RawBatch]) -> Iterator[RawBatch]:
        """Pass batches on, each `_id` once, and take note of them."""
        for batch in each_once(batches):
            self.note(batch)
            yield batch

    def note(self, batch: RawBatch) -> None:
        """Take note of documents that were not noted before."""
        self._prints.append(print_of([batch]))
        self._ids += sum_of_ids(ids(batch))
        self.size_bytes += batch.size_bytes

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of everything that has passed."""
        return sum_of(self._prints)

    def details(self, state: State) -> dict[str, Any]:
        """Say what the ledger keeps of a copy that was made when its move reached the state."""
        found = self.fingerprint
        made = {AT_CHECK: True if state is State.SEALED else None}
        return {"print": fingerprint_to_json(found), "ids": _ids_print(found.row_count, self._ids)} | made


def copied_at_check(work: Work) -> MoveRecord | None:
    """Advance a move whose checkpoint has made the copy; None where none was made, or another attempt is due."""
    if not work.record.details.get(AT_CHECK):
        return None
    return work.advance_alone(State.COPIED, details={AT_CHECK: None})


def _ids_print(count: int, total: int) -> str:
    return f"{count}-{total % (1 << 128):032x}"


def each_once(batches: Iterable[RawBatch]) -> Iterator[RawBatch]:
    """Leave out what comes again by its `_id`.

    Why: a cursor gives a document twice whose time is changed ahead of it. The first version is copied; the other
    is not what the copy has, so it stays and supersedes.
    """
    seen: set[bytes] = set()
    for whole in batches:
        batch = unseen(whole, seen)
        seen.update(ids(batch))
        yield batch


def unseen(batch: RawBatch, seen: Set[bytes]) -> RawBatch:
    """Leave out the documents whose `_id`s are in a set."""
    kept = [index for index, identity in enumerate(ids(batch)) if identity not in seen] if seen else []
    return batch if not seen or len(kept) == len(batch) else batch.take(kept)


def sum_of(prints: Iterable[Fingerprint]) -> Fingerprint:
    """Add fingerprints of parts to that of the whole: they do not depend on order."""
    found = print_of([])
    for one in prints:
        columns = tuple(
            type(a)(a.name, a.value_count + b.value_count, (a.hash_sum + b.hash_sum) % (1 << 64))
            for a, b in zip(found.columns, one.columns, strict=True)
        )
        found = Fingerprint(found.row_count + one.row_count, columns)
    return found


def copied_print(work: Work) -> Fingerprint:
    """The fingerprint taken while the copy was made, from the bytes as the source sent them."""
    found = fingerprint_from_json(work.record.details["print"])
    assert found is not None, "recorded by every copy"
    return found


def raw_of(column: pa.Array) -> RawBatch:
    """Take a lake file's raw documents as a batch, without copying them."""
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    return RawBatch(memoryview(data), ends)


def file_batches(work: Work, record: UnitRecord) -> Iterator[RawBatch]:
    """Read the documents of a lake file as the raw bytes they were, the file's bytes proven first."""
    columns = tuple(c for c in document_columns(work.dataset) if c.name == RAW_COLUMN)
    with export.fetched(work.stores, record) as file:
        for batch in parquet.read_parquet_batches(file, columns):
            yield raw_of(batch.column(RAW_COLUMN))


def put(work: Work, place: Place, batch: RawBatch) -> RawBatch:
    """Write hot documents to a place; others of the same `_id` go to the move's trash. May be called again.

    Why not overwrite: a run that was taken over must not be able to put an older document over a newer one. The
    fence holds while a document is exchanged, and readers find it in its source meanwhile.

    Returns:
        The documents that are there now: all but those that changed in their source meanwhile where the place has
        another version. That may be the newer one: its time was changed, and another unit's move brought it.
    """
    with fenced(work):
        if place.documents.insert_missing(place.collection, batch) == len(batch):
            return batch
        others = _others(place.documents.find(place.collection, ids(batch)), batch)
        if not len(others):
            return batch
        # Asked for only now: what the source still has is newer than what the place had before.
        source = hot_of(work)
        now = source.documents.find(source.collection, ids(others))
        outdated = {*ids(others)} - {*ids(now)} | {*ids(_others(now, batch))}
        batch = unseen(batch, outdated)
        displace(work, place, unseen(others, outdated))
        place.documents.insert_missing(place.collection, batch)
        return batch


def _others(present: RawBatch, batch: RawBatch) -> RawBatch:
    """Choose the documents that are not in the batch as they are."""
    new = {bytes(row) for row in digests(batch)}
    return present.take(np.array([i for i, row in enumerate(digests(present)) if bytes(row) not in new], int))


def displace(work: Work, place: Place, older: RawBatch) -> None:
    """Move superseded documents of the warm collection to the move's trash.

    Raises:
        CommitConflict: some are still there. The transaction of a run that was killed holds what it was about to
            remove for a minute; to go on without would bring the older document to light again.
    """
    if not len(older):
        return
    trash = trash_of(work)
    trash.documents.insert_missing(trash.collection, older)
    place.documents.remove_unchanged(place.collection, older, place.time_field)
    if len(place.documents.find(place.collection, ids(older))):
        raise errors.CommitConflict(
            "put aside", str(work.unit), "another transaction holds documents that are superseded", "Run it again."
        )


def prove_written(work: Work, written: Iterable[RawBatch]) -> None:
    """Compare a copy, read back in full, with what its source sent.

    Raises:
        FingerprintMismatch: they differ; both are kept.
    """
    prove_copy(str(work.unit), copied_print(work), sum_of(print_of([b]) for b in written), work.record.bytes_after)


def prove_file(work: Work) -> None:
    """Read a written lake file back: its bytes, its documents, and that its typed columns say what they say.

    Raises:
        FingerprintMismatch, CorruptCopy: the file is not what was written.
    """
    columns = document_columns(work.dataset)

    def documents() -> Iterator[RawBatch]:
        with export.fetched(work.stores, export.written_unit(work)) as file:
            for batch in parquet.read_parquet_batches(file, columns):
                raw = raw_of(batch.column(RAW_COLUMN))
                again, _ = typed(raw, work.dataset)
                if not _bits(again).equals(_bits(batch.cast(again.schema))):
                    raise errors.CorruptCopy(
                        "verify", str(work.unit), "its typed columns differ from its documents", "Both copies are kept."
                    )
                yield raw

    prove_written(work, documents())


def _bits(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Show doubles as the integers of their bits: NaN is then itself, and -0 is not 0."""
    arrays = [a.view(pa.int64()) if pa.types.is_float64(a.type) else a for a in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, batch.schema.names)


def renewed(
    work: Work, source: Place, copied: Callable[[Work], set[bytes]], steps: Sequence[Callable[[Work], MoveRecord]]
) -> Work:
    """Return the work whose copy holds nothing that its source has lost; copy and verify again where it does.

    Raises:
        CopyOutdated: documents kept vanishing.
    """
    for attempt in range(RECOPIES_MAX + 1):
        try:
            demand_nothing_vanished(work, source, copied)
            break
        except CopyOutdated:
            if attempt == RECOPIES_MAX:
                raise
            work = work.at(work.advance_alone(State.SEALED))
            for step in steps:
                work = work.at(step(work))
    return work


def file_ids(work: Work) -> set[bytes]:
    """Read the `_id`s of the documents in the file that the move has written."""
    return {identity for batch in file_batches(work, export.written_unit(work)) for identity in ids(batch)}


def trash_superseded(work: Work, connection: Connection) -> None:
    """Hand the documents that `put` replaced to the sweep, in the commit's transaction."""
    trash = trash_of(work)
    if trash.documents.exists(trash.collection):
        work.trash(connection, "documents", trash_location(trash, "warm"))


def demand_nothing_vanished(work: Work, place: Place, copied: Callable[[Work], set[bytes]]) -> None:
    """Raise CopyOutdated if documents that were copied are gone from the source, or have left the unit.

    Mostly the source has exactly the `_id`s that were copied, which their sum of hashes says; else they are compared.
    """
    present = place.ids(work.unit)
    if work.record.details.get("ids") == _ids_print(len(present), sum_of_ids(present)):
        return
    vanished = len(copied(work) - present)
    if vanished:
        raise CopyOutdated(
            "commit",
            str(work.unit),
            f"{vanished} documents were deleted, or given another time, while they were copied",
            "The copy is made anew.",
        )


class CopyOutdated(errors.TransientError):
    """The source lost documents that the copy has: committing it would bring them back."""


# -- after the commit -------------------------------------------------------------------------------------------


def settle(work: Work) -> None:
    """Remove from the sources what the committed copy holds unchanged. May be called again, after any crash.

    Nothing else moves the unit until this is done: its next move is not sealed before.
    """
    if not work.record.details.get("unsettled"):
        return
    for place in _emptied(work):
        for batch in _to_remove(work, place):
            with fenced(work):
                place.documents.remove_unchanged(place.collection, batch, place.time_field)
    if work.record.details.get("key"):
        _note_superseded(work)
    work.advance_alone(work.record.state, details={"unsettled": None})


def _note_superseded(work: Work) -> None:
    """Record which documents of a file went on with a time outside of its unit: no merge of the unit would meet them.

    Once is enough: what is in no collection now can only come back as a document of its own.
    """
    for batch in _copy_batches(work):
        for place in (hot_of(work), warm_of(work)):
            keys = _gone_on(work, place.documents.find(place.collection, ids(batch)))
            if keys:
                with work.stores.warm.transaction("supersede", str(work.unit)) as connection:
                    work.stores.ledger.demand_lease(connection, work.record)
                    put_superseded(connection, work.unit, keys)


def _gone_on(work: Work, left: RawBatch) -> list[bytes]:
    """Name those documents that are of another unit now, or of none."""
    if not len(left):
        return []
    unit, times = work.unit, typed(left, work.dataset)[0].column(work.dataset.time_column).to_pylist()
    known = zip(ids(left), times, strict=True)
    return [key for key, at in known if at is None or not unit.begin <= at.replace(tzinfo=UTC) < unit.end]


def _to_remove(work: Work, place: Place) -> Iterator[RawBatch]:
    """Read those documents of the copy that may be in a source still."""
    if work.record.transition in (Transition.HOT_TO_WARM, Transition.WARM_TO_COLD):
        yield from _copy_batches(work)  # all of them, unless an earlier attempt got somewhere
        return
    present = place.ids(work.unit)
    for batch in _copy_batches(work) if present else ():
        wanted = [index for index, identity in enumerate(ids(batch)) if identity in present]
        if wanted:
            yield batch.take(wanted)


def _emptied(work: Work) -> list[Place]:
    """Name the collections to remove from, by what the move did: its unit may have gone on by now."""
    if work.record.transition is Transition.WARM_TO_COLD:
        return [warm_of(work)]
    is_cold_merge = work.record.transition is Transition.MERGE and work.record.details.get("key")
    return [hot_of(work), warm_of(work)] if is_cold_merge else [hot_of(work)]


def _copy_batches(work: Work) -> Iterator[RawBatch]:
    """Read what the move made, wherever that is."""
    record = work.record
    if record.details.get("key"):
        return file_batches(work, export.written_unit(work))
    if record.transition is Transition.EXPIRE:
        return trash_of(work).read(work.unit)
    return warm_of(work).read(work.unit)


def trash_location(place: Place, side: str, unit: Unit | None = None) -> str:
    """Name documents for the trash: a whole collection, or a unit's range of one."""
    bounds = f"@{unit.begin.isoformat()}/{unit.end.isoformat()}" if unit else ""
    return f"{side}:{place.collection}{bounds}"
