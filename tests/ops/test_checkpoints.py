"""Checkpoints on a real PostgreSQL: what breaks a rule is found, named and shown; what does not is let through."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg2
import pytest
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from psycopg2.extras import execute_values

from tests.builders import BAR_COLUMNS, bars, dataset, unit
from tiering.errors import NotFound
from tiering.model import Column, ColumnPrint, Fingerprint, Kind
from tiering.ops.checkpoints import CheckpointReport, Metric, check_copy, check_metrics, run_checkpoint
from tiering.settings import Settings

SEED = 20240105
ROWS = 500
TYPES = {
    "symbol": ("text", Kind.TEXT),
    "market": ("text", Kind.TEXT),
    "timeframe": ("text", Kind.TEXT),
    "ts": ("timestamptz", Kind.TIMESTAMPTZ),
    "volume": ("bigint", Kind.INT8),
    "source": ("text", Kind.TEXT),
}
COLUMNS = tuple(
    Column(name, *TYPES.get(name, ("numeric", Kind.EXACT_TEXT)), field_id=number)
    for number, name in enumerate(BAR_COLUMNS, start=1)
)
BARS = dataset()
FRIDAY = unit("2024-01-05")
RELATION = sql.SQL("pg_temp.{}").format(sql.Identifier("market_bars"))


@pytest.fixture
def connection(settings: Settings) -> Iterator[Connection]:
    """A connection with a temporary table of 500 good bars of one Friday, with neither index nor constraint."""
    opened = psycopg2.connect(settings.hot_pg_url.get_secret_value())
    try:
        with opened.cursor() as cursor:
            cursor.execute("SET TimeZone = 'UTC'")
            declared = ", ".join(f"{column.name} {column.pg_type}" for column in COLUMNS)
            cursor.execute(f"CREATE TEMPORARY TABLE market_bars ({declared})")
            execute_values(cursor, "INSERT INTO market_bars VALUES %s", bars(ROWS, SEED))
        yield opened
    finally:
        opened.close()


def change(connection: Connection, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def judge(connection: Connection, **changed: Any) -> CheckpointReport:
    given: dict[str, Any] = {
        "connection": connection,
        "relation": RELATION,
        "dataset": BARS,
        "unit": FRIDAY,
        "columns": COLUMNS,
        "row_count_before": None,
        "has_unique_key": False,
        "stage": "SEALED",
    }
    return run_checkpoint(**(given | changed))


ONE_BAR = "WHERE symbol = '600003' AND ts = '2024-01-05T00:07:00Z'"


def test_good_bars_pass(connection: Connection) -> None:
    report = judge(connection)
    assert report.passed
    assert report.problem == ""
    assert (report.subject, report.stage, report.expectations) == ("market_bars/2024-01-05/g1", "SEALED", 8)
    assert dict(report.metrics)["row_count"] == ROWS
    assert 0 < report.seconds < 60


@pytest.mark.parametrize(
    ("change_to", "expectation"),
    [
        ("open = 0, low = 0", "prices_positive"),
        ("open = -1, low = -1", "prices_positive"),
        ("low = 'NaN'", "prices_positive"),
        ("close = 'Infinity', high = 'Infinity'", "prices_positive"),
        ("low = '-Infinity'", "prices_positive"),
        ("low = high + 1", "low_open_close_high"),
        ("open = high + 1", "low_open_close_high"),
        ("close = low - 0.00000001", "low_open_close_high"),
        ("volume = -1", "volume_non_negative"),
        ("amount = -0.01", "volume_non_negative"),
        ("amount = 'NaN'", "volume_non_negative"),
        ("market = ''", "names_not_empty"),
        ("source = NULL", "key_not_null"),
        ("ts = NULL", "key_not_null"),
        ("ts = '2024-01-04T23:59:59.999999Z'", "inside_unit"),
        ("ts = '2024-01-06T00:00:00Z'", "inside_unit"),
        ("ts = '-infinity'", "inside_unit"),
        ("ts = '0044-03-15T00:00:00Z BC'", "inside_unit"),
        ("ts = '294276-12-31T00:00:00Z'", "inside_unit"),
        ("ts = '2024-01-05T00:08:00Z'", "key_unique"),
    ],
)
def test_one_bad_bar_among_500_fails_its_rule_and_is_shown(
    connection: Connection, change_to: str, expectation: str
) -> None:
    change(connection, f"UPDATE market_bars SET {change_to} {ONE_BAR}")
    report = judge(connection)
    assert not report.passed
    failure = {failure.expectation: failure for failure in report.failures}[expectation]
    assert failure.observed == "1 break it"
    assert failure.description in report.problem
    assert len(failure.samples) == 1
    assert "symbol=600003" in failure.samples[0]


def test_the_unaffected_rules_still_hold(connection: Connection) -> None:
    change(connection, f"UPDATE market_bars SET volume = -1 {ONE_BAR}")
    report = judge(connection)
    assert [failure.expectation for failure in report.failures] == ["volume_non_negative"]
    assert dict(report.metrics)["prices_positive"] == 0


def test_a_missing_value_is_the_tables_affair(connection: Connection) -> None:
    change(connection, f"UPDATE market_bars SET open = NULL, high = NULL, volume = NULL, amount = NULL {ONE_BAR}")
    assert judge(connection).passed


def test_five_samples_are_enough_and_long_values_are_cut(connection: Connection) -> None:
    change(connection, "UPDATE market_bars SET volume = -1, market = repeat('x', 1000)")
    (failure,) = judge(connection).failures
    assert failure.observed == "500 break it"
    assert len(failure.samples) == 5
    assert all(len(sample) < 400 for sample in failure.samples)


def test_an_index_proves_the_key_and_saves_the_grouping(connection: Connection) -> None:
    key = ", ".join(BARS.key)
    change(connection, f"CREATE UNIQUE INDEX ON market_bars ({key})")
    report = judge(connection, has_unique_key=True)
    assert report.passed
    assert dict(report.metrics)["key_unique"] == 0


def test_several_copies_of_a_row_are_counted_beyond_the_first(connection: Connection) -> None:
    change(connection, f"INSERT INTO market_bars SELECT b.* FROM market_bars b, generate_series(1, 3) {ONE_BAR}")
    (failure,) = judge(connection).failures
    assert (failure.expectation, failure.observed) == ("key_unique", "3 break it")
    assert failure.samples[0].endswith("rows_of_key=4")


def test_an_empty_unit_fails(connection: Connection) -> None:
    change(connection, "DELETE FROM market_bars")
    assert [failure.expectation for failure in judge(connection).failures] == ["row_count"]


@pytest.mark.parametrize(
    ("day", "before", "failures", "warnings"),
    [
        ("2024-01-05", 500, [], 0),
        ("2024-01-05", 999, [], 0),
        ("2024-01-05", 1_100, [], 1),
        ("2024-01-05", 5_000, [], 1),
        ("2024-01-05", 5_100, ["row_count"], 1),
        ("2024-01-06", 1_000_000, [], 0),
    ],
)
def test_far_fewer_rows_than_the_day_before_warn_then_fail_but_not_at_the_weekend(
    connection: Connection, day: str, before: int, failures: list[str], warnings: int
) -> None:
    of = unit(day)
    change(connection, f"UPDATE market_bars SET ts = ts + interval '{(of.begin - FRIDAY.begin).days} days'")
    report = judge(connection, unit=of, row_count_before=before)
    assert [failure.expectation for failure in report.failures] == failures
    assert len(report.warnings) == warnings


def test_a_column_that_went_missing_fails_its_rules(connection: Connection) -> None:
    change(connection, "ALTER TABLE market_bars DROP COLUMN low")
    report = judge(connection, columns=[column for column in COLUMNS if column.name != "low"])
    assert {failure.expectation for failure in report.failures} == {"prices_positive", "low_open_close_high"}
    assert {failure.observed for failure in report.failures} == {"column missing: low"}


def test_declared_not_null_is_believed_and_not_counted(connection: Connection) -> None:
    change(connection, "UPDATE market_bars SET source = NULL")
    believed = [replace(column, nullable=column.name not in BARS.key) for column in COLUMNS]
    assert "key_not_null" not in {failure.expectation for failure in judge(connection, columns=believed).failures}


def test_names_that_need_quotes_are_quoted(connection: Connection) -> None:
    change(connection, 'CREATE TEMPORARY TABLE "Odd ""one%s" ("When" timestamp, "select" float8)')
    change(connection, "INSERT INTO \"Odd \"\"one%s\" VALUES ('2024-01-05 23:59:59', 'NaN'), ('2024-01-06', 1)")
    odd = dataset(name="odd", time_column="When", key=("When", "select"), suite="")
    columns = [Column("When", "timestamp", Kind.TIMESTAMP), Column("select", "double precision", Kind.FLOAT8)]
    report = judge(connection, relation=sql.Identifier('Odd "one%s'), dataset=odd, columns=columns)
    (failure,) = report.failures
    assert failure.expectation == "inside_unit"
    assert failure.samples == ("When=2024-01-06 00:00:00, select=1",)


@pytest.mark.parametrize(
    ("suite", "declared", "row", "expectation"),
    [
        (
            "technical_indicators",
            "symbol text, indicator text, timeframe text",
            ("600000", "", "1d"),
            "names_not_empty",
        ),
        (
            "financial_statements",
            "symbol text, report_type text, revenue numeric, net_income numeric, total_equity numeric, "
            "total_assets numeric",
            ("600000", "annual", "1", "-Infinity", "-5", "3"),
            "amounts_finite",
        ),
        (
            "financial_statements",
            "symbol text, report_type text, revenue float8, net_income float8, total_equity float8, "
            "total_assets float8",
            ("600000", "annual", 1.0, 2.0, float("nan"), 3.0),
            "amounts_finite",
        ),
        (
            "financial_statements",
            "symbol text, report_type text, revenue int, net_income int, total_equity int, total_assets int",
            ("600000", "annual", 1, -2, -3, -1),
            "assets_non_negative",
        ),
    ],
)
def test_the_other_suites(
    connection: Connection, suite: str, declared: str, row: tuple[Any, ...], expectation: str
) -> None:
    kinds = {"text": Kind.TEXT, "numeric": Kind.EXACT_TEXT, "float8": Kind.FLOAT8, "int": Kind.INT4}
    named = [item.split() for item in f"{declared}, ts timestamptz".split(", ")]
    columns = [Column(name, kind, kinds.get(kind, Kind.TIMESTAMPTZ)) for name, kind in named]
    change(connection, f"CREATE TEMPORARY TABLE other ({declared}, ts timestamptz)")
    with connection.cursor() as cursor:
        execute_values(cursor, "INSERT INTO other VALUES %s", [(*row, datetime(2024, 1, 5, 9, tzinfo=UTC))])
    of = dataset(name="other", key=("symbol", "ts"), suite=suite)
    report = judge(connection, relation=sql.Identifier("other"), dataset=of, columns=columns)
    assert [failure.expectation for failure in report.failures] == [expectation]


def test_a_table_that_is_not_there_is_an_error_in_our_words(connection: Connection) -> None:
    with pytest.raises(NotFound, match="checkpoint market_bars/2024-01-05/g1"):
        judge(connection, relation=sql.Identifier("nowhere"))


# --- metrics of copies ------------------------------------------------------------------------------------------

SOURCE = Fingerprint(3, (ColumnPrint("ts", 3, 2**64 - 1), ColumnPrint("close", 2, 17)))


def test_an_equal_copy_passes() -> None:
    report = check_copy("market_bars/2024-01-05/g1", "COPIED", SOURCE, SOURCE, 100)
    assert report.passed
    assert report.expectations == 3


@pytest.mark.parametrize(
    ("copy", "size_bytes", "expectations"),
    [
        (replace(SOURCE, row_count=2), 100, ["row_count"]),
        (replace(SOURCE, row_count=4), 100, ["row_count"]),
        (replace(SOURCE, columns=SOURCE.columns[:1]), 100, ["columns_differing"]),
        (replace(SOURCE, columns=(*SOURCE.columns, ColumnPrint("x", 3, 1))), 100, ["columns_differing"]),
        (replace(SOURCE, columns=(SOURCE.columns[0], ColumnPrint("close", 2, 18))), 100, ["columns_differing"]),
        (replace(SOURCE, columns=(SOURCE.columns[0], ColumnPrint("close", 3, 17))), 100, ["columns_differing"]),
        (SOURCE, 0, ["size_bytes"]),
        (Fingerprint(0, ()), 0, ["row_count", "columns_differing", "size_bytes"]),
    ],
)
def test_a_copy_that_differs_fails(copy: Fingerprint, size_bytes: int, expectations: list[str]) -> None:
    report = check_copy("market_bars/2024-01-05/g1", "COPIED", SOURCE, copy, size_bytes)
    assert [failure.expectation for failure in report.failures] == expectations


def test_a_number_that_could_not_be_taken_fails() -> None:
    report = check_metrics("unit", "COPIED", [Metric("size", None, 0, None, "there is a size")])
    assert [failure.observed for failure in report.failures] == ["no number could be taken"]


def test_an_expectation_that_breaks_is_a_failure_and_not_a_pass() -> None:
    broken = Metric("size", "not a number", 0, 9, "there is a size")  # type: ignore[arg-type]
    (failure,) = check_metrics("unit", "COPIED", [broken]).failures
    assert "itself failed" in failure.observed


def test_threads_get_their_own_verdicts() -> None:
    def verdict(number: int) -> bool:
        return check_metrics("unit", "COPIED", [Metric(f"m{number % 3}", number % 2, 0, 0, "even")]).passed

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(verdict, range(200))) == [number % 2 == 0 for number in range(200)]
