"""The engine of a query: which rows are fetched into it, and each dataset as a view with every row once.

Does not: know where rows come from (query_tables.py, query_documents.py).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
from psycopg2 import sql

from tiering.model import EXACT_COLUMN, Column, Dataset, Form, Kind
from tiering.stores import duck
from tiering.stores.opening import Stores
from tiering.stores.parquet_schema import EXACT_FIELD_ID, arrow_schema

log = logging.getLogger(__name__)

Progress = Callable[[str, int], None]
"""Called with (place, rows) as rows are fetched."""

_TYPES: dict[Kind, str] = {
    Kind.BOOL: "BOOLEAN",
    Kind.INT2: "INTEGER",
    Kind.INT4: "INTEGER",
    Kind.INT8: "BIGINT",
    Kind.FLOAT4: "FLOAT",
    Kind.FLOAT8: "DOUBLE",
    Kind.TEXT: "VARCHAR",
    Kind.BYTES: "BLOB",
    Kind.DATE: "DATE",
    Kind.TIMESTAMP: "TIMESTAMP",
    Kind.TIMESTAMPTZ: "TIMESTAMP WITH TIME ZONE",
    Kind.UUID: "UUID",
    Kind.EXACT_TEXT: "VARCHAR",
}
HALF_TYPED = (Kind.DECIMAL, Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ)
"""Kinds with values that only `_exact` can hold."""

_SQL_OPERATORS = {"=": "=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}


@dataclass(frozen=True, slots=True)
class Bound:
    """A filter with its values worked out."""

    column: str
    operator: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Scan:
    """What is fetched of one dataset."""

    dataset: Dataset
    columns: tuple[Column, ...]
    bounds: tuple[Bound, ...]
    wants_exact: bool
    now: datetime | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """The columns by which a row is known at two places."""
        return ("_id",) if self.dataset.form is Form.DOCUMENTS else self.dataset.key

    @property
    def exact_identity(self) -> tuple[str, ...]:
        """Those of them that may be null because only `_exact` holds the value; never the time, which has a unit."""
        kinds = {column.name: column.kind for column in self.columns}
        time = self.dataset.time_column
        return tuple(name for name in self.identity if name != time and kinds[name] in HALF_TYPED)

    @property
    def where(self) -> sql.Composable | None:
        """The bounds as a condition for PostgreSQL; values are literals, because COPY takes no parameters."""
        if not self.bounds:
            return None
        tests = []
        for bound in self.bounds:
            literals = sql.SQL(", ").join(sql.Literal(value) for value in bound.values)
            form = "{} IN ({})" if len(bound.values) > 1 else "{} " + _SQL_OPERATORS[bound.operator] + " {}"
            tests.append(sql.SQL(form).format(sql.Identifier(bound.column), literals))
        return sql.SQL(" AND ").join(tests)

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols that are asked for by name; empty: all."""
        return tuple(value for b in self.bounds if b.column == "symbol" and b.operator == "=" for value in b.values)

    def overlaps(self, begin: datetime | None, end: datetime | None) -> bool:
        """Tell whether `[begin, end)` can hold a wanted row; None is open."""
        for bound in self.bounds:
            if bound.column == self.dataset.time_column:
                if bound.operator in (">", ">=", "=") and end is not None and end <= min(bound.values):
                    return False
                if bound.operator in ("<", "<=", "=") and begin is not None and begin > max(bound.values):
                    return False
        return True


@contextmanager
def opened(stores: Stores, memory_limit: str, threads: int) -> Iterator[Any]:
    """Open a DuckDB that spills to the scratch directory, for the length of one query."""
    with tempfile.TemporaryDirectory(prefix="tiering-query-", dir=stores.scratch_dir) as spill:
        engine = duck.duckdb_connection(
            stores.objects, memory_limit=memory_limit, threads=threads, extensions=duck.FILES
        )
        try:
            with duck.mapped("open", "DuckDB"):
                engine.execute(f"SET temp_directory = '{spill.replace(chr(39), chr(39) * 2)}'")
                # Else a misspelt table is looked up among this module's variables.
                engine.execute("SET python_enable_replacements = false")
            yield engine
        finally:
            engine.close()


def fill(engine: Any, scan: Scan, place: str, batches: Iterable[pa.RecordBatch], progress: Progress) -> None:
    """Put wanted rows into the engine's table `<dataset> <place>`; start it anew."""
    table = quoted(f"{scan.dataset.name} {place}")
    with duck.mapped("fill", table):
        engine.register("incoming", arrow_schema(scan.columns).empty_table())
        engine.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT * FROM incoming")
    for batch in batches:
        with duck.mapped("fill", table):
            engine.register("incoming", pa.Table.from_batches([batch]))
            engine.execute(f"INSERT INTO {table} SELECT * FROM incoming")
        progress(place, batch.num_rows)
    with duck.mapped("fill", table):
        engine.unregister("incoming")
        special = engine.execute(f"SELECT count(*) FROM {table} WHERE {EXACT_COLUMN} IS NOT NULL").fetchone()[0]
    if special and not scan.wants_exact:
        log.warning("values shown as NULL that only _exact can hold: dataset=%s rows=%d", scan.dataset.name, special)


def fill_superseded(engine: Any, scan: Scan, groups: Sequence[tuple[pa.Array, datetime, datetime]]) -> None:
    """Put into the table `<dataset> superseded` which rows of lake files count no more: `_id`s within a range."""
    table = quoted(f"{scan.dataset.name} superseded")
    with duck.mapped("fill", table):
        engine.execute(f"CREATE OR REPLACE TEMP TABLE {table} (_id VARCHAR, begins TIMESTAMPTZ, ends TIMESTAMPTZ)")
        for keys, begin, end in groups:
            engine.register("incoming", pa.table({"_id": keys}))
            engine.execute(f"INSERT INTO {table} SELECT _id, $1, $2 FROM incoming", [begin, end])
            engine.unregister("incoming")


# -- each row once ----------------------------------------------------------------------------------------------


def define_view(engine: Any, scan: Scan, files: Sequence[str]) -> None:
    """Define the dataset as a view: late rows win over sealed ones, both win over warm and cold ones."""
    name = scan.dataset.name
    listed = ", ".join(quoted(c.name) for c in scan.columns) + (f", {EXACT_COLUMN}" if scan.wants_exact else "")
    late, sealed = quoted(f"{name} late"), quoted(f"{name} sealed")
    has = {table: bool(engine.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone()) for table in (late, sealed)}
    over = [table for table in (late, sealed) if has[table]]
    parts = [
        f"SELECT {listed} FROM {late}",
        f"SELECT {listed} FROM {quoted(f'{name} hot')}",
        f"SELECT {listed} FROM {sealed} AS r{_unless(scan, [late] if has[late] else [])}",
        f"SELECT {listed} FROM {quoted(f'{name} warm')} AS r{_unless(scan, over)}",
    ]
    if files:
        tests = _unless(scan, over) + _unless_superseded(engine, scan, is_first=not over)
        parts.append(f"SELECT {listed} FROM {_parquet(scan, files)} AS r{tests}")
    with duck.mapped("define view", name):
        engine.execute(f"CREATE OR REPLACE TEMP VIEW {quoted(name)} AS {' UNION ALL '.join(parts)}")


def _unless(scan: Scan, over: Sequence[str]) -> str:
    same = " AND ".join(_same_value(scan, name) for name in scan.identity)
    tests = [f"NOT EXISTS (SELECT 1 FROM {table} AS o WHERE {same})" for table in over]
    return f" WHERE {' AND '.join(tests)}" if tests else ""


def _unless_superseded(engine: Any, scan: Scan, *, is_first: bool) -> str:
    """Leave out documents that went on in another unit; no test at all where there are none, for speed."""
    if scan.dataset.form is not Form.DOCUMENTS:
        return ""
    table, time = quoted(f"{scan.dataset.name} superseded"), quoted(scan.dataset.time_column)
    if not engine.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone():
        return ""
    same = f"s._id = r._id AND r.{time} >= s.begins AND r.{time} < s.ends"
    return f" {'WHERE' if is_first else 'AND'} NOT EXISTS (SELECT 1 FROM {table} AS s WHERE {same})"


def _same_value(scan: Scan, name: str) -> str:
    column = quoted(name)
    if name not in scan.exact_identity:
        return f"o.{column} = r.{column}"
    path = _text(f'$."{name}"')
    one, other = (f"json_extract_string({row}.{EXACT_COLUMN}, {path})" for row in "or")
    return f"(o.{column} = r.{column} OR (o.{column} IS NULL AND r.{column} IS NULL AND {one} = {other}))"


def _parquet(scan: Scan, files: Sequence[str]) -> str:
    """Read lake files by field id, so that a file older than a column has it as NULL."""
    fields = [(c.field_id, c.name, _duck_type(c)) for c in scan.columns]
    fields += [(EXACT_FIELD_ID, EXACT_COLUMN, "VARCHAR")] if scan.wants_exact or scan.exact_identity else []
    schema = ", ".join(
        f"{number}: {{name: {_text(name)}, type: {_text(kind)}, default_value: NULL}}" for number, name, kind in fields
    )
    return f"read_parquet([{', '.join(map(_text, files))}], schema = MAP {{{schema}}})"


def _duck_type(column: Column) -> str:
    if column.kind is Kind.DECIMAL:
        return f"DECIMAL({column.precision},{column.scale})"
    return _TYPES[column.kind]


def quoted(name: str) -> str:
    """Quote an identifier for DuckDB."""
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
