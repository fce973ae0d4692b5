"""WARM_TO_COLD of documents: write a unit as one Parquet object with typed columns and the raw documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from tiering.model import State
from tiering.ops import documents, export
from tiering.ops.work import Work
from tiering.stores.bson_batches import RawBatch
from tiering.stores.bson_typed import document_columns, typed
from tiering.stores.records import MoveRecord, fingerprint_to_json


def seal(work: Work) -> MoveRecord:
    """Record the source. Writers cannot be fenced off: what changes from here on stays and supersedes the copy."""
    unit = export.warm_unit(work)
    return work.advance_alone(
        State.SEALED, source=unit.location, bytes_before=unit.size_bytes, row_count=unit.row_count
    )


def copy(work: Work) -> MoveRecord:
    """Write the unit's documents as they are now into a Parquet object."""
    return write_file(work, documents.warm_of(work).read(work.unit))


def write_file(work: Work, batches: Iterable[RawBatch]) -> MoveRecord:
    """Write documents as a lake file; values that are not of their field's declared type are counted."""
    tally, untyped = documents.Tally(), Counter[str]()

    def rows() -> Iterator[pa.RecordBatch]:
        for batch in tally.passing(batches):
            found, strange = typed(batch, work.dataset)
            untyped.update(strange)
            yield found

    def details() -> dict[str, Any]:
        return {"print": fingerprint_to_json(tally.fingerprint), "untyped": dict(untyped)}

    return export.write_batches(work, rows(), document_columns(work.dataset), details)


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
