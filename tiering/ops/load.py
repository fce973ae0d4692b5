"""Load a file of rows into the hot tier: CSV or Parquet, all of it or nothing, every digit as written.

The file's values travel as text into a temporary table and are judged there by PostgreSQL's own input rules, so
a bad row is reported with its line before anything is written. Numbers never become floats on the way.
Does not: age anything. Rows older than the hot tier move on by the next run of the flows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from pyarrow import csv

from tiering import errors
from tiering.model import Dataset
from tiering.ops import install, lifecycle, load_files
from tiering.plan.spans import unit_of
from tiering.stores import tables
from tiering.stores.opening import Stores
from tiering.stores.postgres import execute, fetch, fetch_one, identifier, mapped, names

PROBLEMS_SHOWN = 20
CONFLICTS = ("refuse", "skip", "replace")
LINE = "line_number"
_STAGE = "pg_temp.loaded"

Progress = Callable[[int], None]
"""Called with the rows read since the last call."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load did.

    Attributes:
        dataset: where to.
        rows: in the file.
        inserted: written, `late` ones among them.
        unchanged: left out, because the same row was there already.
        skipped: left out, because another row of the same key was there (`on_conflict="skip"`).
        replaced: rows of the hot tier that the file's row took the place of (`on_conflict="replace"`).
        late: inserted into units that have left the hot tier: they become the units' next generation.
    """

    dataset: str
    rows: int
    inserted: int
    unchanged: int
    skipped: int
    replaced: int
    late: int


def _silent(_rows: int) -> None:
    pass


def load_file(
    stores: Stores,
    path: Path,
    dataset_name: str,
    *,
    constants: Mapping[str, str] | None = None,
    zone: str = "UTC",
    on_conflict: str = "refuse",
    progress: Progress = _silent,
) -> Loaded:
    """Load a CSV or Parquet file into a dataset's hot table, in one transaction.

    Columns are matched by name, in any case and order. A time without zone is one of `zone`; a date is its midnight.

    Args:
        stores: where to.
        path: the file; `.parquet` and `.pq` are Parquet, anything else is CSV with a header.
        dataset_name: a dataset that moves, installed.
        constants: values for columns that the file does not have.
        zone: time zone of times that say none.
        on_conflict: of a key whose row in the hot tier is another: "refuse" the file, "skip" the row, or "replace".
            Rows of units that have left the hot tier are refused but for "replace": they win by key when merged.
        progress: told while the file is read.

    Raises:
        NotFound: no such file or dataset.
        SchemaMismatch: columns are missing or unknown, or rows are bad; each is named with its line.
        PermanentError: rows belong to units that have left the hot tier, and `on_conflict` is not "replace".
    """
    assert on_conflict in CONFLICTS
    dataset = lifecycle.dataset_named(stores, dataset_name)
    subject = f"{path.name} into {dataset.name}"
    connection = stores.hot.connect(f"load {subject}")
    try:
        with mapped("load", subject):
            execute(connection, "SELECT set_config('TimeZone', %s, true)", (zone,))
            described = tables.described_columns(connection, tables.hot_parent(dataset.name))
            types = {name: pg_type for name, pg_type, _ in described}
            given = _match(path, dataset, described, constants or {})
            rows = _stage(connection, path, given, constants or {}, progress)
            _refuse_bad(connection, subject, dataset, types, given)
            _cast(connection, dataset, types, given)
            _refuse_doubles(connection, subject, dataset)
            late = _prepare(stores, connection, dataset)
            if late and on_conflict != "replace":
                # Whether they differ from what those tiers hold is not looked up here, and by key they would win.
                raise errors.PermanentError(
                    "load",
                    subject,
                    f"{late:,} rows belong to units that have left the hot tier; nothing was loaded",
                    "With --on-conflict replace they are loaded, and win over the older rows of their keys.",
                )
            done = _insert(connection, subject, dataset, list(given), on_conflict)
            connection.commit()
            return Loaded(dataset.name, rows, late=late, **done)
    finally:
        connection.close()


# -- the file as text -------------------------------------------------------------------------------------------


def _match(
    path: Path, dataset: Dataset, described: list[tuple[str, str, bool]], constants: Mapping[str, str]
) -> dict[str, str | None]:
    """Match the table's columns to the file's: table column → file column, None for a constant."""
    have = load_files.header(path)
    by_name = {name.strip().lower(): name for name in have}
    known = {name for name, _, _ in described}
    given: dict[str, str | None] = {name: by_name[name.lower()] for name, _, _ in described if name.lower() in by_name}
    unknown = [name for name in have if name not in given.values()] + sorted(constants.keys() - known)
    doubled = [name for name in have if have.count(name) > 1] + [c for c in constants if c in given]
    missing = [name for name, _, required in described if required and name not in given and name not in constants]
    for bad, cause in ((unknown, "unknown"), (doubled, "there twice"), (missing, "missing")):
        if bad:
            raise errors.SchemaMismatch(
                "load",
                path.name,
                f"columns {cause}: {', '.join(dict.fromkeys(bad))}",
                f"{dataset.name} has {', '.join(name for name, _, _ in described)}; rename or drop columns in the "
                "file, or give a constant with --set COLUMN=VALUE.",
            )
    return given | dict.fromkeys(constants)


def _stage(
    connection: Connection,
    path: Path,
    given: Mapping[str, str | None],
    constants: Mapping[str, str],
    progress: Progress,
) -> int:
    fields = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(name)) for name in given)
    execute(
        connection,
        sql.SQL("CREATE TEMP TABLE loaded_text ({} bigint, {}) ON COMMIT DROP").format(sql.Identifier(LINE), fields),
    )
    statement = sql.SQL("COPY pg_temp.loaded_text ({}) FROM STDIN (FORMAT csv)").format(names([LINE, *given]))
    rows = 0
    for batch in _texts(path, given, constants):
        buffer = BytesIO()
        csv.write_csv(batch, buffer, csv.WriteOptions(include_header=False, quoting_style="needed"))
        buffer.seek(0)
        with connection.cursor() as cursor:
            cursor.copy_expert(statement, buffer)
        rows += batch.num_rows
        progress(batch.num_rows)
    return rows


def _texts(path: Path, given: Mapping[str, str | None], constants: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    for first, batch in load_files.text_batches(path, [name for name in given.values() if name is not None]):
        arrays: list[Any] = [pa.array(range(first, first + batch.num_rows), pa.int64())]
        for name, source in given.items():
            arrays.append(batch.column(source) if source else pa.repeat(pa.scalar(constants[name]), batch.num_rows))
        yield pa.RecordBatch.from_arrays(arrays, names=[LINE, *given])


# -- judged by PostgreSQL ---------------------------------------------------------------------------------------


def _refuse_bad(
    connection: Connection, subject: str, dataset: Dataset, types: Mapping[str, str], given: Mapping[str, str | None]
) -> None:
    """Refuse a file with values that their columns do not take, or would round, or NULL in the key."""
    if connection.server_version < 160000:
        return  # no pg_input_is_valid(): the cast itself refuses the first bad value, without its line
    tests = []
    for name in given:
        pg_type = types[name]
        tests.append(
            sql.SQL("WHEN {c} IS NOT NULL AND NOT pg_input_is_valid({c}, {t}) THEN {m} || quote_literal({c})").format(
                c=sql.Identifier(name), t=sql.Literal(pg_type), m=sql.Literal(f"{name} is no {pg_type}: ")
            )
        )
        if pg_type.startswith("numeric("):
            # PostgreSQL rounds to a column's scale without a word; a digit lost is a value changed.
            tests.append(
                sql.SQL("WHEN {c}::numeric <> {c}::numeric::{t} THEN {m} || {c}").format(
                    c=sql.Identifier(name), t=sql.SQL(pg_type), m=sql.Literal(f"{name} would be rounded to {pg_type}: ")
                )
            )
    tests += [
        sql.SQL("WHEN {} IS NULL THEN {}").format(sql.Identifier(name), sql.Literal(f"{name} is empty"))
        for name in dict.fromkeys((*dataset.key, dataset.time_column))
    ]
    bad = fetch(
        connection,
        sql.SQL(
            """SELECT {line}, problem, count(*) OVER () FROM (SELECT {line}, CASE {tests} END AS problem
               FROM pg_temp.loaded_text) judged WHERE problem IS NOT NULL ORDER BY 1 LIMIT {limit}"""
        ).format(line=sql.Identifier(LINE), tests=sql.SQL(" ").join(tests), limit=sql.Literal(PROBLEMS_SHOWN)),
    )
    _refuse(subject, bad)


def _refuse(subject: str, bad: list[tuple[Any, ...]]) -> None:
    if bad:
        shown = "; ".join(f"line {line}: {problem}" for line, problem, _ in bad)
        more = f"; and {bad[0][2] - len(bad)} more" if bad[0][2] > len(bad) else ""
        raise errors.SchemaMismatch(
            "load", subject, f"{bad[0][2]} bad rows: {shown}{more}", "Correct these lines; nothing was loaded."
        )


def _cast(connection: Connection, dataset: Dataset, types: Mapping[str, str], given: Mapping[str, str | None]) -> None:
    casts = sql.SQL(", ").join(
        sql.SQL("{0}::{1} AS {0}").format(sql.Identifier(name), sql.SQL(types[name])) for name in given
    )
    execute(
        connection,
        sql.SQL("CREATE TEMP TABLE loaded ON COMMIT DROP AS SELECT {}, {} FROM pg_temp.loaded_text").format(
            sql.Identifier(LINE), casts
        ),
    )
    execute(connection, sql.SQL("CREATE INDEX ON pg_temp.loaded ({})").format(names(dataset.key)))
    execute(connection, "ANALYZE pg_temp.loaded")


def _refuse_doubles(connection: Connection, subject: str, dataset: Dataset) -> None:
    doubled = fetch(
        connection,
        sql.SQL(
            """SELECT line, 'same key as line ' || first, count(*) OVER () FROM (
                 SELECT {line} AS line, min({line}) OVER (PARTITION BY {key}) AS first FROM pg_temp.loaded) keyed
               WHERE line <> first ORDER BY 1 LIMIT {limit}"""
        ).format(line=sql.Identifier(LINE), key=names(dataset.key), limit=sql.Literal(PROBLEMS_SHOWN)),
    )
    _refuse(subject, doubled)


# -- into the hot table -----------------------------------------------------------------------------------------


def _prepare(stores: Stores, connection: Connection, dataset: Dataset) -> int:
    """Create the partitions that the rows need; return how many rows are of units that have left the hot tier."""
    step = "hour" if dataset.unit.hours else "day"
    instants = fetch(
        connection,
        sql.SQL(
            """SELECT date_trunc({step}, {ts}, 'UTC'), count(*) FROM pg_temp.loaded
               WHERE {ts} >= '0001-01-02' AND {ts} < '9999-01-01' GROUP BY 1 ORDER BY 1"""
        ).format(step=sql.Literal(step), ts=sql.Identifier(dataset.time_column)),
    )
    counts: dict[tuple[datetime, datetime], int] = {}
    for instant, count in instants:
        bounds = unit_of(instant, dataset.unit)
        counts[bounds] = counts.get(bounds, 0) + count
    install.create_units(stores, dataset, sorted(counts))
    # As a writer's lock, so that no unit is sealed between this look and the insert.
    tables.lock(connection, tables.hot_parent(dataset.name), "ROW EXCLUSIVE")
    gone = {record.unit.begin for record in stores.ledger.units(dataset.name)}
    gone |= {part.begin for part in tables.partitions(connection, tables.sealed_parent(dataset.name)) if part.begin}
    return sum(count for (begin, _), count in counts.items() if begin in gone)


def _insert(
    connection: Connection, subject: str, dataset: Dataset, columns: list[str], on_conflict: str
) -> dict[str, int]:
    """Insert what is not there yet; return the counts of `Loaded`."""
    hot = identifier(tables.hot_parent(dataset.name))
    same_key = sql.SQL(" AND ").join(sql.SQL("h.{0} = l.{0}").format(sql.Identifier(name)) for name in dataset.key)
    others = [name for name in columns if name not in dataset.key]
    differs = sql.SQL(
        "ROW({}) IS DISTINCT FROM ROW({})" if others else "false AND ROW({}) IS DISTINCT FROM ROW({})"
    ).format(names(others or columns, "h"), names(others or columns, "l"))
    execute(
        connection,
        sql.SQL(
            """CREATE TEMP TABLE met ON COMMIT DROP AS SELECT l.{line} AS line, {differs} AS differs
               FROM pg_temp.loaded l JOIN {hot} h ON {same}"""
        ).format(line=sql.Identifier(LINE), differs=differs, hot=hot, same=same_key),
    )
    row = fetch_one(connection, "SELECT count(*), count(*) FILTER (WHERE differs) FROM pg_temp.met")
    assert row is not None
    met, different = row
    if different and on_conflict == "refuse":
        _refuse(
            subject,
            fetch(
                connection,
                """SELECT line, 'the hot tier has another row of this key (--on-conflict skip or replace)',
                          count(*) OVER () FROM pg_temp.met WHERE differs ORDER BY 1 LIMIT %s""",
                (PROBLEMS_SHOWN,),
            ),
        )
    replaced = 0
    if different and on_conflict == "replace":
        sets = sql.SQL(", ").join(sql.SQL("{0} = l.{0}").format(sql.Identifier(name)) for name in others)
        replaced = execute(
            connection,
            sql.SQL(
                """UPDATE {hot} h SET {sets} FROM pg_temp.loaded l JOIN pg_temp.met m ON m.line = l.{line} AND m.differs
                   WHERE {same}"""
            ).format(hot=hot, sets=sets, line=sql.Identifier(LINE), same=same_key),
        )
    inserted = execute(
        connection,
        sql.SQL(
            """INSERT INTO {hot} ({columns}) SELECT {columns} FROM pg_temp.loaded l
               WHERE NOT EXISTS (SELECT 1 FROM pg_temp.met m WHERE m.line = l.{line})"""
        ).format(hot=hot, columns=names(columns), line=sql.Identifier(LINE)),
    )
    return {
        "inserted": inserted,
        "unchanged": met - different,
        "skipped": different if on_conflict == "skip" else 0,
        "replaced": replaced,
    }
