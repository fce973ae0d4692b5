"""Random predicates find the same rows at the source before the move, and after it wherever anybody may ask.

200 predicates per dataset, over rows at the edges of their types, in three-valued logic: the source answers before
each move (PostgreSQL itself; for documents a reference in Python, from the documents and their declared types). Then
`ops.query` over hot, warm, packed, cold, merged and late rows, and on the lake DuckDB's `iceberg_scan` and pyiceberg.

What is promised, and so what is compared: a value that its typed column cannot hold (numeric NaN, ±infinity of dates,
a document's value of another type) is NULL in the column and text in `_exact` (docs/decisions/0009); predicates see
it as that NULL, and ask for it by `_exact`. NaN of doubles is above every number and equal to itself, as in PostgreSQL
and DuckDB; pyiceberg compares as IEEE does and keeps NULL in NOT IN, so that its translation spells both out. Text is
ordered by code points, whatever the collation of the source database. Columns without a typed form (jsonb, inet) are
compared as PostgreSQL's `::text`, which for a host address ends in /32.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa
import pytest

from tests.ops.predicate_rows import EXACT_TEXTS, literals
from tests.ops.predicate_worlds import Expected, Source, Verdicts, choose_places, move, open_source, spread
from tests.ops.predicates import Predicate, canonical, draw, lake_sql, truth_of
from tests.ops.predicates_iceberg import NotExpressible, translate
from tests.ops.world import NOW
from tests.stores.test_lake import outside_catalog
from tiering.model import EXACT_COLUMN, Form, Kind, Transition
from tiering.ops import install
from tiering.ops.query import query
from tiering.settings import Settings
from tiering.stores.duck import duckdb_connection
from tiering.stores.postgres import execute

COUNT = 200
ALONE = {"market_bars": 24, "news": 24}
ALONE_ELSE = 6
"""Predicates asked as the WHERE of a query of their own, where conditions are pushed down: each reads the stores."""

PRUNED = {"market_bars": 200, "news": 200}
PRUNED_ELSE = 40
"""Predicates that DuckDB prunes by on the lake; the others are asked of every row."""

DATASETS = (
    ("market_bars", "two"),
    ("technical_indicators", "one"),
    ("financial_statements", "two"),
    ("user_activity", "one"),
    ("audit_log", "one"),
    ("news", "two"),
    ("social_posts", "one"),
    ("social_sentiment", "two"),
    ("analysis_sessions", "one"),
    ("analysis_results", "two"),
    ("research_reports", "one"),
    ("trading_signals", "two"),
)


@pytest.mark.parametrize(("name", "databases"), DATASETS)
def test_predicates_find_the_same_rows_before_and_after_the_move(
    name: str, databases: str, request: pytest.FixtureRequest
) -> None:
    settings = request.getfixturevalue("fresh_settings" if databases == "one" else "fresh_two_database_settings")
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    dice = random.Random(seed)
    with open_source(settings, name, dice) as source:
        predicates = draw_all(source, dice)
        expected = spread(source, predicates, dice)
        by_query(source, predicates, expected)
        by_duckdb(source, predicates, expected)
        by_pyiceberg(source, settings, predicates, expected)


def draw_all(source: Source, dice: random.Random) -> list[Predicate]:
    """Draw the predicates, their times near the edges of this dataset's units."""
    units = [unit for units in vars(choose_places(source.dataset, random.Random(1))).values() for unit in units]
    times = [at for unit in units for at in (unit.begin, unit.end)]
    if source.dataset.form is Form.DOCUMENTS:
        exact = {field.name: EXACT_TEXTS for field in source.dataset.fields}
    else:
        special = {Kind.DECIMAL: ("NaN",), Kind.DATE: ("infinity", "-infinity")}
        exact = {c.name: special[c.kind] for c in source.columns if c.kind in special}
    narrowing = [c.name for c in source.columns if c.name in source.dataset.key and c.kind is not Kind.DATE]
    return [draw(dice, source.columns, literals(times), exact, narrowing) for _ in range(COUNT)]


def by_query(source: Source, predicates: Sequence[Predicate], expected: Expected) -> None:
    """Ask `ops.query`: all predicates as columns of one answer, some as the WHERE of their own."""
    name, label = source.dataset.name, f'CAST("{source.label}" AS text)'
    asked = ", ".join(f"{lake_sql(predicate)} AS p{number}" for number, predicate in enumerate(predicates))
    compare("query", predicates, rows_of(query(source.stores, f"SELECT {label}, {asked} FROM {name}")), expected.whole)
    whole = query(source.stores, f"SELECT {label} AS name, *, {EXACT_COLUMN} AS exact FROM {name}")
    alone = query(source.stores, f"SELECT {label} AS name, {EXACT_COLUMN} AS exact FROM {name}")
    assert sorted(rows_of(alone), key=str) == sorted(rows_of(whole.select(["name", "exact"])), key=str)
    for number, predicate in enumerate(predicates[: ALONE.get(name, ALONE_ELSE)]):
        statement = f"SELECT {label} AS name FROM {name} WHERE {lake_sql(predicate)}"
        compare_names(
            "query WHERE", predicate, query(source.stores, statement)["name"].to_pylist(), expected.whole, number
        )


def by_duckdb(source: Source, predicates: Sequence[Predicate], expected: Expected) -> None:
    """Ask DuckDB of the lake alone, as anybody may: once without pruning, once by each predicate's own scan."""
    scan = f"iceberg_scan('{source.stores.lake.metadata_location(source.dataset.name)}')"
    label = f'CAST("{source.label}" AS text)'
    asked = ", ".join(map(lake_sql, predicates))
    pruned = predicates[: PRUNED.get(source.dataset.name, PRUNED_ELSE)]
    each = (
        f"SELECT {number} AS number, {label} AS name FROM {scan} WHERE {lake_sql(predicate)}"
        for number, predicate in enumerate(pruned)
    )
    with closing(duckdb_connection(source.stores.objects)) as engine:
        found = engine.execute(f"SELECT {label}, {asked} FROM {scan}").fetchall()
        compare("DuckDB", predicates, found, expected.lake)
        answers: dict[int, list[str]] = {}
        for number, name in engine.execute(" UNION ALL ".join(each)).fetchall():
            answers.setdefault(number, []).append(name)
    for number, predicate in enumerate(pruned):
        compare_names("DuckDB WHERE", predicate, answers.get(number, []), expected.lake, number)


def by_pyiceberg(source: Source, settings: Settings, predicates: Sequence[Predicate], expected: Expected) -> None:
    """Ask pyiceberg: everything it has, judged in Python, and by row filters where it can say the predicate."""
    table = outside_catalog(settings).load_table(("lake", source.dataset.name))
    columns = {column.name: column for column in source.columns}
    whole = table.scan().to_arrow()
    rows = arrow_rows(source, whole)
    judged = [(str(row[source.label]), *(truth_of(p, row) for p in predicates)) for row in rows]
    compare("pyiceberg", predicates, judged, expected.lake)
    asked = 0
    for number, predicate in enumerate(predicates):
        try:
            row_filter = translate(predicate, columns)
        except NotExpressible:
            continue
        asked += 1
        if asked <= ALONE.get(source.dataset.name, ALONE_ELSE):
            found = table.scan(row_filter=row_filter, selected_fields=(source.label,)).to_arrow()
            names = [str(row[source.label]) for row in arrow_rows(source, found)]
            compare_names("pyiceberg row_filter", predicate, names, expected.lake, number)
    assert asked >= COUNT / 3, "most predicates should be expressible"


def arrow_rows(source: Source, table: pa.Table) -> list[dict[str, Any]]:
    """Read an Arrow table as canonical values; dates and times as numbers, because Python's end with 9999."""
    kinds = {column.name: column.kind for column in source.columns} | {EXACT_COLUMN: Kind.TEXT}
    kept = [name for name in table.column_names if name in kinds]
    as_number = {Kind.TIMESTAMPTZ: pa.int64(), Kind.DATE: pa.int32()}
    columns = [table[name].cast(as_number[kinds[name]]) if kinds[name] in as_number else table[name] for name in kept]
    return [
        {name: canonical(kinds[name], value) for name, value in row.items()}
        for row in pa.Table.from_arrays(columns, kept).to_pylist()
    ]


# -- comparing ----------------------------------------------------------------------------------------------------


def rows_of(table: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def compare(who: str, predicates: Sequence[Predicate], rows: Iterable[tuple[Any, ...]], expected: Verdicts) -> None:
    """Demand every row once and every predicate's truth of it, NULL apart from false."""
    rows = list(rows)
    found = {row[0]: tuple(row[1:]) for row in rows}
    assert len(rows) == len(found), f"{who}: a row twice"
    assert found.keys() == expected.keys(), f"{who}: other rows"
    wrong = [
        f"{name}: {truth}, at the source {at_source}: {lake_sql(predicate)}"
        for name, truths in found.items()
        for predicate, truth, at_source in zip(predicates, truths, expected[name], strict=True)
        if truth is not at_source
    ]
    assert not wrong, f"{who}: {len(wrong)} differences\n" + "\n".join(wrong[:20])


def compare_names(who: str, predicate: Predicate, names: Sequence[str], expected: Verdicts, number: int) -> None:
    """Demand exactly the rows of which a predicate is true."""
    wanted = sorted(name for name, truths in expected.items() if truths[number] is True)
    assert sorted(names) == wanted, f"{who}: {lake_sql(predicate)}"


def test_a_late_row_wins_where_only_exact_holds_its_key(fresh_settings: Settings) -> None:
    """Of keys that are NULL in their typed column, infinity and -infinity, each keeps its own newest row."""
    periods = ("infinity", "-infinity", "2014-12-31")

    with open_source(fresh_settings, "financial_statements", random.Random(1)) as source:

        def put(period: str, currency: str) -> None:
            with source.stores.hot.transaction("insert", "a statement") as connection:
                execute(
                    connection,
                    """INSERT INTO hot.financial_statements (symbol, report_period, report_type, ts, source, currency)
                       VALUES ('S1', %s, 'annual', '2015-03-01T00:00Z', 'r1', %s)""",
                    (period, currency),
                )
            install.prepare_units(source.stores, source.dataset, NOW)

        for period in periods:
            put(period, f"first {period}")
        for transition in (Transition.HOT_TO_WARM, Transition.WARM_TO_COLD):
            move(source, transition)
            put("infinity", f"after {transition}")
            found = query(source.stores, "SELECT currency FROM financial_statements WHERE ts < '2016-01-01'")
            expected = [f"after {transition}", "first -infinity", "first 2014-12-31"]
            assert sorted(found["currency"].to_pylist()) == expected
            move(source, Transition.MERGE)
            found = query(source.stores, "SELECT currency FROM financial_statements WHERE ts < '2016-01-01'")
            assert sorted(found["currency"].to_pylist()) == expected, "merged"
