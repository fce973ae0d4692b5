"""Judge a unit of documents: count over its typed columns what breaks each rule of the dataset's suite.

Rules speak of declared fields. A value that is not of its field's type is null in its column, so it breaks no rule by
itself: such drift is counted and reported, and never stops a move.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from tiering.model import Dataset
from tiering.ops import documents
from tiering.ops.checkpoints import CheckpointReport, check_counts
from tiering.ops.work import Work
from tiering.plan.checks import Must, Rule, rules_of
from tiering.stores.bson_typed import typed

COUNTED_ELSEWHERE = (Must.ROW_COUNT, Must.UNIQUE, Must.INSIDE_UNIT)
"""The server keeps `_id` unique and was asked for the unit's time range only."""


def run(work: Work, row_count_before: int | None) -> CheckpointReport:
    """Judge the documents of the move's source."""
    counts, untyped = Counter[str](), Counter[str]()
    rules = rules_of(work.dataset)
    for batch in (batch for place in documents.sources(work) for batch in place.read(work.unit)):
        rows, strange = typed(batch, work.dataset)
        counts["row_count"] += rows.num_rows
        untyped.update(strange)
        for rule in rules:
            counts[rule.name] += _broken(rule, rows)
    found: dict[str, int | None] = {rule.name: counts[rule.name] for rule in rules}
    for rule in rules:
        if set(rule.columns) - _columns(work.dataset):
            found[rule.name] = None
    report = check_counts(work.unit, work.dataset, found, row_count_before, "sealed")
    drift = tuple(
        f"{count:,} values of {name} are not of its declared type" for name, count in untyped.items() if count
    )
    return replace(report, warnings=(*report.warnings, *drift))


def _columns(dataset: Dataset) -> set[str]:
    return {"_id", dataset.time_column, *(field.name for field in dataset.fields)}


def _broken(rule: Rule, rows: pa.RecordBatch) -> int:
    """Count the rows of a batch that break a rule; a null breaks none but NOT_NULL."""
    if rule.must in COUNTED_ELSEWHERE:
        return 0
    columns = [rows.column(name) for name in rule.columns if name in rows.schema.names]
    if rule.must is Must.BETWEEN and len(columns) >= 2:
        low, high, *inner = columns
        masks = [pc.greater(low, high), *(pc.less(c, low) for c in inner), *(pc.greater(c, high) for c in inner)]
    else:
        masks = [_broken_column(rule.must, column) for column in columns]
    together = None
    for mask in masks:
        mask = pc.fill_null(mask, False)
        together = mask if together is None else pc.or_(together, mask)
    return 0 if together is None else int(pc.sum(together).as_py() or 0)


def _broken_column(must: Must, column: pa.Array) -> pa.Array:
    if must is Must.NOT_NULL:
        return pc.is_null(column)
    if must is Must.NOT_EMPTY:
        return pc.equal(column, "")
    number = column.cast(pa.float64())
    odd = pc.invert(pc.is_finite(number))
    if must is Must.FINITE:
        return odd
    if must in (Must.SHARE, Must.SCORE):
        outside = pc.or_(pc.less(number, 0.0 if must is Must.SHARE else -1.0), pc.greater(number, 1.0))
        return pc.or_(odd, outside)
    return pc.or_(odd, pc.less_equal(number, 0.0) if must is Must.POSITIVE else pc.less(number, 0.0))
