"""Judge a unit's rows, or the metrics of a copy, with Great Expectations.

One aggregate scan counts what breaks each rule; Great Expectations judges the counts as a frame of one row:
the same verdict as pushing every expectation down by itself, at a twentieth of its time.
Does not: decide the rules (`plan/checks.py`), or what becomes of a unit that fails.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering.model import Column, Dataset, Fingerprint, Kind, Unit
from tiering.plan.checks import WARN_BELOW, Must, Rule, is_comparable, row_count_floor, rules_of
from tiering.stores.postgres import mapped

SAMPLES_MAX = 5
SAMPLE_TEXT_MAX = 80


@dataclass(frozen=True, slots=True)
class Metric:
    """A number and its bounds; None as the number means that it could not be taken, which fails."""

    name: str
    observed: int | None
    lowest: int | None
    highest: int | None
    description: str


@dataclass(frozen=True, slots=True)
class Failure:
    """An expectation that did not hold: what was seen, and up to five of the rows (as `column=text`)."""

    expectation: str
    observed: str
    description: str
    samples: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.expectation}: {self.observed} ({self.description})"


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """The verdict on one unit at one stage, small enough for a task's result and an artifact.

    Attributes:
        subject, stage: what was judged and when: "market_bars/2024-01-05/g1", "SEALED".
        expectations: how many were judged.
        failures: those that did not hold; empty when it passed.
        warnings: what is odd but no fault.
        metrics: every number that was judged.
        seconds: the scan and the judging, without importing Great Expectations.
    """

    subject: str
    stage: str
    expectations: int
    failures: tuple[Failure, ...]
    metrics: tuple[tuple[str, int | None], ...]
    seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """No expectation failed."""
        return not self.failures

    @property
    def problem(self) -> str:
        """The failures in one line, for the ledger; empty when it passed."""
        return "; ".join(str(failure) for failure in self.failures)


def run_checkpoint(
    connection: Connection,
    relation: sql.Composable,
    dataset: Dataset,
    unit: Unit,
    columns: Sequence[Column],
    row_count_before: int | None,
    has_unique_key: bool,
    stage: str,
) -> CheckpointReport:
    """Judge the quality of a unit's rows where they lie in PostgreSQL. Reads only, in the caller's transaction.

    Args:
        connection: to the database of the relation.
        relation: the quoted name of the unit's table.
        dataset: names the suite.
        unit: its bounds are judged too.
        columns: the relation's columns; a rule about a missing one fails.
        row_count_before: rows of the unit before this one, None when there is none.
        has_unique_key: a valid unique index on exactly this relation proves the key unique; else rows are grouped.
        stage: the move's state, for the report.

    Raises:
        TieringError: PostgreSQL's error in our words.
    """
    prepare()
    began = time.perf_counter()
    scan = _Scan(connection, relation, dataset, unit, {column.name: column for column in columns})
    with mapped("checkpoint", str(unit)):
        counts = scan.counts(has_unique_key)
        metrics = [_metric(rule, counts[rule.name], unit, row_count_before) for rule in rules_of(dataset)]
        failed = _judge(metrics)
        rules = {rule.name: rule for rule in rules_of(dataset)}
        failures = [_rule_failure(scan, rules[metric.name], metric, error) for metric, error in failed]
    warnings = _warnings(unit, counts["row_count"], row_count_before)
    return _report(str(unit), stage, metrics, failures, began, warnings)


def check_counts(
    unit: Unit, dataset: Dataset, counts: Mapping[str, int | None], row_count_before: int | None, stage: str
) -> CheckpointReport:
    """Judge a unit by how many of its rows break each rule, counted elsewhere; a rule without a count fails."""
    prepare()
    began = time.perf_counter()
    metrics = [_metric(rule, counts.get(rule.name), unit, row_count_before) for rule in rules_of(dataset)]
    failures = [_failure(metric, error, ()) for metric, error in _judge(metrics)]
    return _report(str(unit), stage, metrics, failures, began, _warnings(unit, counts["row_count"], row_count_before))


def check_copy(subject: str, stage: str, source: Fingerprint, copy: Fingerprint, size_bytes: int) -> CheckpointReport:
    """Judge a copy by two accounts of it, each taken from its own bytes."""
    theirs = {column.name: column for column in copy.columns}
    differing = sum(theirs.get(column.name) != column for column in source.columns)
    differing += len(theirs.keys() - {column.name for column in source.columns})
    return check_metrics(
        subject,
        stage,
        (
            Metric("row_count", copy.row_count, source.row_count, source.row_count, "the copy has the source's rows"),
            Metric("columns_differing", differing, 0, 0, "every column's fingerprint is the source's"),
            Metric("size_bytes", size_bytes, 1, None, "the copy has bytes"),
        ),
    )


def check_metrics(subject: str, stage: str, metrics: Sequence[Metric]) -> CheckpointReport:
    """Judge numbers that were taken elsewhere."""
    prepare()
    began = time.perf_counter()
    failures = [_failure(metric, error, ()) for metric, error in _judge(metrics)]
    return _report(subject, stage, metrics, failures, began)


def _report(
    subject: str,
    stage: str,
    metrics: Sequence[Metric],
    failures: Sequence[Failure],
    began: float,
    warnings: tuple[str, ...] = (),
) -> CheckpointReport:
    return CheckpointReport(
        subject=subject,
        stage=stage,
        expectations=len(metrics),
        failures=tuple(failures),
        metrics=tuple((metric.name, metric.observed) for metric in metrics),
        seconds=time.perf_counter() - began,
        warnings=warnings,
    )


def _metric(rule: Rule, count: int | None, unit: Unit, row_count_before: int | None) -> Metric:
    if rule.must is Must.ROW_COUNT:
        floor = row_count_floor(unit, row_count_before)
        return Metric(rule.name, count, floor, None, f"{rule.description}: at least {floor}")
    return Metric(rule.name, count, 0, 0, rule.description)


def _rule_failure(scan: _Scan, rule: Rule, metric: Metric, error: str) -> Failure:
    missing = ", ".join(scan.missing(rule.columns))
    return _failure(metric, error or (f"column missing: {missing}" if missing else ""), scan.samples(rule))


def _failure(metric: Metric, error: str, samples: tuple[str, ...]) -> Failure:
    if error:
        return Failure(metric.name, error, metric.description, samples)
    observed = "no number could be taken" if metric.observed is None else f"{metric.observed:,}"
    if metric.lowest == metric.highest == 0 and metric.observed is not None:
        observed += " break it"
    return Failure(metric.name, observed, metric.description, samples)


def _warnings(unit: Unit, row_count: int | None, before: int | None) -> tuple[str, ...]:
    floor = row_count_floor(unit, before, WARN_BELOW)
    if row_count is None or not is_comparable(unit, before) or row_count >= floor:
        return ()
    return (f"{row_count:,} rows are less than half of the {before:,} in the unit before",)


# --- the scan ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scan:
    """A unit's table and what there is to know to ask it."""

    connection: Connection
    relation: sql.Composable
    dataset: Dataset
    unit: Unit
    columns: dict[str, Column]

    def counts(self, has_unique_key: bool) -> dict[str, int | None]:
        """Count the rows that break each rule, all rules in one scan."""
        rules = rules_of(self.dataset)
        wanted = [sql.SQL("{} AS {}").format(self._aggregate(rule), sql.Identifier(rule.name)) for rule in rules]
        with self.connection.cursor() as cursor:
            # Plain filtered counts, so that the server may share the scan between parallel workers.
            cursor.execute(sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(wanted), self.relation))
            counted = cursor.fetchone() or ()
            counts = dict(zip((rule.name for rule in rules), counted, strict=True))
            if not has_unique_key and not self.missing(self.dataset.key):
                cursor.execute(self._duplicates(sql.SQL("coalesce(sum(rows_of_key - 1), 0)::bigint")))
                (counts["key_unique"],) = cursor.fetchone() or (None,)
        return counts

    def samples(self, rule: Rule) -> tuple[str, ...]:
        """Fetch a few of the rows that break a rule, as text, because any value must survive being shown."""
        if rule.must is Must.ROW_COUNT or self.missing(rule.columns):
            return ()
        if rule.must is Must.UNIQUE:
            names: tuple[str, ...] = (*self.dataset.key, "rows_of_key")
            query = self._duplicates(_texts(names))
        else:
            names = tuple(self.columns)
            broken = self._broken(rule)
            query = sql.SQL("SELECT {} FROM {} WHERE {}").format(_texts(names), self.relation, broken)
        with self.connection.cursor() as cursor:
            cursor.execute(sql.SQL("{} LIMIT {}").format(query, sql.Literal(SAMPLES_MAX)))
            return tuple(_row_text(names, row) for row in cursor.fetchall())

    def missing(self, names: Sequence[str]) -> list[str]:
        """List those of the columns that the relation does not have."""
        return [name for name in names if name not in self.columns]

    def _aggregate(self, rule: Rule) -> sql.Composable:
        if rule.must is Must.ROW_COUNT:
            return sql.SQL("count(*)")
        if self.missing(rule.columns):
            return sql.SQL("NULL::bigint")
        if rule.must is Must.UNIQUE:
            return sql.SQL("0")  # proven by the index, or counted apart: it would make the scan sort
        return sql.SQL("count(*) FILTER (WHERE {})").format(self._broken(rule))

    def _broken(self, rule: Rule) -> sql.Composable:
        """Write the condition of a row that breaks the rule. NULL compares as unknown, so it breaks none."""
        if rule.must is Must.BETWEEN:
            low, high, *inner = (sql.Identifier(name) for name in rule.columns)
            parts: list[sql.Composable] = [sql.SQL("{} > {}").format(low, high)]
            parts += [sql.SQL("{c} < {low} OR {c} > {high}").format(c=c, low=low, high=high) for c in inner]
        else:
            parts = [part for name in rule.columns if (part := self._broken_column(rule.must, self.columns[name]))]
        return sql.SQL(" OR ").join(parts) if parts else sql.SQL("false")

    def _broken_column(self, must: Must, column: Column) -> sql.Composable | None:
        name = sql.Identifier(column.name)
        if must is Must.NOT_NULL:
            # what the table declares needs no counting
            return sql.SQL("{} IS NULL").format(name) if column.nullable else None
        if must is Must.NOT_EMPTY:
            return sql.SQL("{} = ''").format(name)
        if must is Must.INSIDE_UNIT:
            zone = sql.SQL("" if column.kind is Kind.TIMESTAMPTZ else " AT TIME ZONE 'UTC'")
            # Literals, not parameters: beside parameters, a % in a column's name would be taken for another.
            begin, end = sql.Literal(self.unit.begin), sql.Literal(self.unit.end)
            bounds = "{c} < {begin}::timestamptz{z} OR {c} >= {end}::timestamptz{z}"
            return sql.SQL(bounds).format(c=name, z=zone, begin=begin, end=end)
        return _broken_number(must, name, column.kind in (Kind.INT2, Kind.INT4, Kind.INT8))

    def _duplicates(self, wanted: sql.Composable) -> sql.Composed:
        key = sql.SQL(", ").join(sql.Identifier(name) for name in self.dataset.key)
        grouped = "SELECT {} FROM (SELECT {}, count(*) AS rows_of_key FROM {} GROUP BY {} HAVING count(*) > 1) AS twice"
        return sql.SQL(grouped).format(wanted, key, self.relation, key)


def _broken_number(must: Must, name: sql.Composable, is_integer: bool) -> sql.Composable | None:
    # PostgreSQL sorts NaN above infinity, so one comparison finds both.
    bounds = {Must.SHARE: "{c} < 0 OR {c} > 1", Must.SCORE: "{c} < -1 OR {c} > 1"}
    if must in bounds:
        return sql.SQL(bounds[must]).format(c=name)
    below = {Must.POSITIVE: "{c} <= 0", Must.NON_NEGATIVE: "{c} < 0", Must.FINITE: "{c} = '-Infinity'"}[must]
    if is_integer:
        return None if must is Must.FINITE else sql.SQL(below).format(c=name)
    return sql.SQL(f"{below} OR {{c}} >= 'Infinity'").format(c=name)


def _texts(names: Sequence[str]) -> sql.Composable:
    return sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in names)


def _row_text(names: Sequence[str], row: Sequence[str | None]) -> str:
    shown = ("NULL" if value is None else value[:SAMPLE_TEXT_MAX] for value in row)
    return ", ".join(f"{name}={value}" for name, value in zip(names, shown, strict=True))


# --- Great Expectations -----------------------------------------------------------------------------------------

_one_at_a_time = threading.RLock()
"""Great Expectations keeps its context in module state; validation is pure CPU, so a lock costs no time."""


def prepare() -> None:
    """Import Great Expectations and build its context, once per process: 5–10 s of CPU.

    A flow may call it in a thread of its own while it plans and seals.
    """
    with _one_at_a_time:
        _batches()


@functools.cache
def _batches() -> Any:
    import great_expectations
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = great_expectations.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas("metrics")
    return source.add_dataframe_asset("unit").add_batch_definition_whole_dataframe("row")


@functools.lru_cache(maxsize=256)
def _suite(bounds: tuple[tuple[str, int | None, int | None], ...]) -> Any:
    from great_expectations import ExpectationSuite
    from great_expectations.expectations.core.expect_column_max_to_be_between import ExpectColumnMaxToBeBetween

    # The largest of a frame's one row: a third of the time of a per-value expectation, and unlike that one
    # it fails on an empty value.
    return ExpectationSuite(
        name="metrics",
        expectations=[
            ExpectColumnMaxToBeBetween(column=name, min_value=low, max_value=high, meta={"rule": name})
            for name, low, high in bounds
        ],
    )


def _judge(metrics: Sequence[Metric]) -> list[tuple[Metric, str]]:
    """Validate the metrics; return those that failed, each with Great Expectations' own error, if it had one."""
    import pandas

    frame = pandas.DataFrame([{metric.name: metric.observed for metric in metrics}])
    with _one_at_a_time:
        batch = _batches().get_batch(batch_parameters={"dataframe": frame})
        suite = _suite(tuple((metric.name, metric.lowest, metric.highest) for metric in metrics))
        result = batch.validate(suite, result_format="BOOLEAN_ONLY")
    verdicts = {item.expectation_config.meta["rule"]: item for item in result.results}
    failed = []
    for metric in metrics:
        verdict = verdicts.get(metric.name)
        error = "it was not judged" if verdict is None else _error_of(verdict.exception_info or {})
        # A missing column has no number at all: that is a finding, not an error of the judge.
        error = "" if metric.observed is None else error
        if verdict is None or error or not verdict.success:
            failed.append((metric, error))
    return failed


def _error_of(info: dict[str, Any]) -> str:
    """Find an exception that Great Expectations swallowed; it reports one per metric, or a single one."""
    each = [info] if "raised_exception" in info else [value for value in info.values() if isinstance(value, dict)]
    raised = [str(item.get("exception_message")) for item in each if item.get("raised_exception")]
    return f"the expectation itself failed: {raised[0]}" if raised else ""
