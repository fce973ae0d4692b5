"""WARM_TO_COLD of documents: write a unit as one Parquet object with typed columns and the raw documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa

from tiering.model import State
from tiering.ops import documents, export
from tiering.ops.document_judge import Judge, Refused
from tiering.ops.work import Work
from tiering.stores.bson_batches import RawBatch
from tiering.stores.bson_typed import document_columns, typed
from tiering.stores.records import MoveRecord


def seal(work: Work) -> MoveRecord:
    """Record the source. Writers cannot be fenced off: what changes from here on stays and supersedes the copy."""
    unit = export.warm_unit(work)
    return work.advance_alone(
        State.SEALED, source=unit.location, bytes_before=unit.size_bytes, row_count=unit.row_count
    )


def copy_judged(work: Work, judge: Judge) -> None:
    """Write the unit's documents as they are now into a Parquet object; it is not stored if they fail."""
    with suppress(Refused):
        write_file(work, documents.warm_of(work).read(work.unit), judge)


def copy(work: Work) -> MoveRecord:
    """Write the unit's documents as they are now into a Parquet object, unless the checkpoint has done so."""
    return documents.copied_at_check(work) or write_file(work, documents.warm_of(work).read(work.unit))


def write_file(work: Work, batches: Iterable[RawBatch], judge: Judge | None = None) -> MoveRecord:
    """Write documents as a lake file; values that are not of their field's declared type are counted.

    Raises:
        Refused: the judge, who sees all of them, finds them not good enough; nothing was stored.
    """
    tally, untyped = documents.Tally(), Counter[str]()
    state = State.SEALED if judge else State.COPIED

    def rows() -> Iterator[pa.RecordBatch]:
        for batch in tally.passing(batches):
            found, strange = typed(batch, work.dataset)
            untyped.update(strange)
            if judge:
                judge.note(found, strange)
            yield found
        if judge:
            judge.demand_good()

    def details() -> dict[str, Any]:
        return tally.details(state) | {"untyped": dict(untyped)}

    return export.write_batches(work, rows(), document_columns(work.dataset), details, state)


def verify(work: Work) -> MoveRecord:
    """Read the object back in full."""
    documents.prove_file(work)
    return work.advance_alone(
        State.VERIFIED,
        checkpoints_passed=work.record.checkpoints_passed + 1,
        details={"fingerprint": work.record.details["print"]},
    )


def commit(work: Work) -> MoveRecord:
    """Publish the object; the warm documents leave when the move is settled."""
    work = documents.renewed(work, documents.warm_of(work), documents.file_ids, (copy, verify))
    with work.commit() as connection:
        record = export.publish(work, connection, replaces=None)
        work.audit(connection, "warm-to-cold", rows=record.row_count, object=record.target)
        return work.at(record).advance(connection, State.COMMITTED, details={"unsettled": True})
