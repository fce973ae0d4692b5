"""Judge the documents of a move while they pass: count over their typed columns what breaks each rule of the suite.

Rules speak of declared fields. A value that is not of its field's type is null in its column, so it breaks no rule by
itself: such drift is counted and reported, and never stops a move.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from tiering.model import Dataset, Transition
from tiering.ops.checkpoints import CheckpointReport, Metric, check_counts, check_metrics
from tiering.ops.work import Work
from tiering.plan.checks import Must, Rule, rules_of
from tiering.stores.bson_batches import RawBatch
from tiering.stores.bson_typed import typed

COUNTED_ELSEWHERE = (Must.ROW_COUNT, Must.UNIQUE, Must.INSIDE_UNIT)
"""The server keeps `_id` unique and was asked for the unit's time range only."""


class Refused(Exception):
    """The documents that have passed are not good enough to be copied; the judge's report says why."""


class Judge:
    """Takes note of every document on its way to the copy, then judges all of them: once, when the last has passed."""

    def __init__(self, work: Work, row_count_before: int | None) -> None:
        self._work, self._before = work, row_count_before
        self._rules = rules_of(work.dataset)
        self._counts, self._untyped = Counter[str](), Counter[str]()
        self._report: CheckpointReport | None = None

    def passing(self, batches: Iterable[RawBatch]) -> Iterator[RawBatch]:
        """Pass documents on and take note of them."""
        for batch in batches:
            self.note(*typed(batch, self._work.dataset))
            yield batch

    def note(self, rows: pa.RecordBatch, untyped: Mapping[str, int]) -> None:
        """Take note of documents that are typed already."""
        self._counts["row_count"] += rows.num_rows
        self._untyped.update(untyped)
        for rule in self._rules:
            self._counts[rule.name] += _broken(rule, rows)

    def report(self) -> CheckpointReport:
        """Judge what has passed."""
        if self._report is None:
            self._report = self._judged()
        return self._report

    def demand_good(self) -> None:
        """Judge what has passed.

        Raises:
            Refused: it fails, and nobody has said that it shall be moved all the same.
        """
        if not self.report().passed and not self._work.record.forced_because:
            raise Refused

    def _judged(self) -> CheckpointReport:
        unit, dataset = self._work.unit, self._work.dataset
        if self._work.record.transition is Transition.MERGE and not self._counts["row_count"]:
            # It only takes out of the unit's file what went on in another unit.
            return check_metrics(str(unit), "sealed", (Metric("row_count", 0, 0, 0, "no document came late"),))
        found: dict[str, int | None] = {rule.name: self._counts[rule.name] for rule in self._rules}
        for rule in self._rules:
            if set(rule.columns) - _columns(dataset):
                found[rule.name] = None
        report = check_counts(unit, dataset, found, self._before, "sealed")
        drift = tuple(
            f"{count:,} values of {name} are not of its declared type" for name, count in self._untyped.items() if count
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
