"""Ask all tiers one question: hot, warm and cold rows as one table per dataset, each row exactly once.

The hot tier is looked at first, then in one snapshot of the warm database the ledger and the warm rows. A unit that
moves in between is therefore seen twice or once, never not at all; and a row that is seen twice is dropped at its
older place by its key. Hot and warm rows come through our own COPY decoder (DuckDB's PostgreSQL scanner turns NaN to
0 and unbounded numerics to floats); lake files are read by DuckDB, those that the ledger of that snapshot names.

What a typed column cannot hold (numeric NaN, ±infinity, year 294276) is NULL in it and stands in the extra column
`_exact`, a JSON object of column → PostgreSQL's text; the column appears when the query names it.
Columns of types that Parquet does not know (jsonb, interval, arrays …) are PostgreSQL's text.
Does not: write anything but DuckDB's spill files.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering import errors
from tiering.model import EXACT_COLUMN, Column, Dataset, Kind, Tier
from tiering.plan.columns import plan_columns
from tiering.plan.queries import BadQuery, Filter, Need, demand_select, find_needs
from tiering.plan.spans import EPOCH
from tiering.stores import duck, pgcopy, tables
from tiering.stores.ledger import units
from tiering.stores.opening import Stores
from tiering.stores.parquet_schema import EXACT_FIELD_ID, arrow_schema
from tiering.stores.postgres import Postgres, identifier, mapped
from tiering.stores.records import UnitRecord

log = logging.getLogger(__name__)

ATTEMPTS = 6
"""Looks at a moving world: each is one whole look; a unit must move under every one of them to exhaust these."""

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
_SQL_OPERATORS = {"=": "=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}


@dataclass(frozen=True, slots=True)
class _Bound:
    """A filter with its values worked out."""

    column: str
    operator: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Scan:
    """What is fetched of one dataset."""

    dataset: Dataset
    columns: tuple[Column, ...]
    bounds: tuple[_Bound, ...]
    wants_exact: bool

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

    def overlaps(self, begin: datetime | None, end: datetime | None) -> bool:
        """Tell whether `[begin, end)` can hold a wanted row; None is open."""
        for bound in self.bounds:
            if bound.column == self.dataset.time_column:
                if bound.operator in (">", ">=", "=") and end is not None and end <= min(bound.values):
                    return False
                if bound.operator in ("<", "<=", "=") and begin is not None and begin > max(bound.values):
                    return False
        return True


def _silent(_place: str, _rows: int) -> None:
    pass


def query(
    stores: Stores, statement: str, *, progress: Progress = _silent, memory_limit: str = "512MB", threads: int = 2
) -> pa.Table:
    """Answer one SELECT over the datasets, each a table of its name.

    Conditions on the time and on text columns of the key (`ts >= …`, `symbol = …`, IN, BETWEEN) in the WHERE of a
    SELECT that names a dataset once are applied while fetching; everything else is fetched and then decided.

    Args:
        stores: where the tiers are.
        statement: one SELECT in DuckDB's SQL; times without zone are UTC.
        progress: told while rows are fetched.
        memory_limit: of DuckDB; beyond it, it spills to the scratch directory.
        threads: of DuckDB.

    Raises:
        BadQuery: the SQL is wrong, or not one SELECT.
        StoreUnavailable: a server is down, or units moved under every one of several looks.
    """
    with _opened(stores, memory_limit, threads) as engine:
        select = demand_select(_parse(engine, statement))
        columns_of = _columns_of(stores, select)
        needs = find_needs(select, {name: [c.name for c in columns] for name, columns in columns_of.items()})
        for need in needs:
            scan = _plan_scan(engine, stores, need, columns_of[need.dataset])
            _materialise(engine, stores, scan, progress)
        try:
            with duck.mapped("query", "SQL"):
                return engine.execute(statement).to_arrow_table()
        except errors.PermanentError as exc:
            if type(exc) is not errors.PermanentError:
                raise
            known = ", ".join(d.name for d in stores.policies.datasets if d.state == "moves")
            raise BadQuery("query", "SQL", exc.cause, f"Tables: {known}.") from exc


@contextmanager
def _opened(stores: Stores, memory_limit: str, threads: int) -> Iterator[Any]:
    with tempfile.TemporaryDirectory(prefix="tiering-query-", dir=stores.scratch_dir) as spill:
        engine = duck.duckdb_connection(stores.objects, memory_limit=memory_limit, threads=threads)
        try:
            with duck.mapped("open", "DuckDB"):
                engine.execute(f"SET temp_directory = '{spill.replace(chr(39), chr(39) * 2)}'")
                # Else a misspelt table is looked up among this module's variables.
                engine.execute("SET python_enable_replacements = false")
            yield engine
        finally:
            engine.close()


def _parse(engine: Any, statement: str) -> dict[str, Any]:
    with duck.mapped("parse", "SQL"):
        tree: dict[str, Any] = json.loads(
            engine.execute("SELECT json_serialize_sql($1::VARCHAR)", [statement]).fetchone()[0]
        )
    return tree


def _columns_of(stores: Stores, select: Mapping[str, Any]) -> dict[str, tuple[Column, ...]]:
    """Describe the datasets that a query names."""
    candidates = {d.name: [d.time_column] for d in stores.policies.datasets if d.state == "moves"}
    named = [need.dataset for need in find_needs(dict(select), candidates)]
    with stores.hot.transaction("describe", "datasets", read_only=True) as connection:
        return {n: plan_columns(tables.described_columns(connection, tables.hot_parent(n))) for n in named}


# -- what to fetch ----------------------------------------------------------------------------------------------


def _plan_scan(engine: Any, stores: Stores, need: Need, columns: tuple[Column, ...]) -> _Scan:
    dataset = stores.policies.dataset(need.dataset)
    assert dataset is not None
    kept = tuple(c for c in columns if c.name in need.columns or c.name in dataset.key)
    kinds = {c.name: c.kind for c in columns}
    bounds = []
    for condition in need.filters:
        # Only columns of the key: two rows of one key are then kept or left out together.
        if condition.column in dataset.key:
            bound = _evaluate(engine, condition, kinds[condition.column])
            if bound:
                bounds.append(bound)
    return _Scan(dataset, kept, tuple(bounds), need.wants_exact)


def _evaluate(engine: Any, condition: Filter, kind: Kind) -> _Bound | None:
    """Work out a filter's values as DuckDB would compare them; None where that is not sure."""
    values: list[Any] = []
    for node in condition.values:
        value = _constant(engine, node, "epoch_us(CAST(({}) AS TIMESTAMPTZ))" if kind is Kind.TIMESTAMPTZ else "({})")
        if kind is Kind.TIMESTAMPTZ and isinstance(value, int):
            try:
                values.append(EPOCH + timedelta(microseconds=value))
            except OverflowError:
                return None
        elif kind is Kind.TEXT and isinstance(value, str) and "\0" not in value and condition.operator == "=":
            values.append(value)
        else:
            return None
    return _Bound(condition.column, condition.operator, tuple(values))


def _constant(engine: Any, node: Mapping[str, Any], form: str) -> Any:
    tree = _parse(engine, "SELECT 1")
    tree["statements"][0]["node"]["select_list"] = [node]
    try:
        with duck.mapped("evaluate", "constant"):
            text = engine.execute("SELECT json_deserialize_sql($1::JSON)", [json.dumps(tree)]).fetchone()[0]
            return engine.execute(f"SELECT {form.format(text)}").fetchone()[0]
    except errors.TieringError:
        return None  # the query itself will say what is wrong with it


# -- fetching ---------------------------------------------------------------------------------------------------


def _materialise(engine: Any, stores: Stores, scan: _Scan, progress: Progress) -> None:
    """Fetch a dataset's hot and warm rows and define its view; look again when a unit moved under our eyes."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch(engine, stores, scan, progress)
            return
        except errors.NotFound as exc:
            # A table that the snapshot listed has been renamed by a move: everything is looked at again.
            if attempt == ATTEMPTS:
                raise errors.StoreUnavailable(
                    "query", scan.dataset.name, f"units kept moving during {ATTEMPTS} looks: {exc.cause}", "Try again."
                ) from exc
            log.info("looking again dataset=%s cause=%s", scan.dataset.name, exc.cause)


def _fetch(engine: Any, stores: Stores, scan: _Scan, progress: Progress) -> None:
    name = scan.dataset.name
    with _snapshot(stores.hot, name) as hot:
        late = [p for p in [tables.late_partition(name)] if tables.exists(hot, p)]
        attached = [p for p in tables.partitions(hot, tables.hot_parent(name)) if p.begin is not None]
        sealed = [p for p in tables.partitions(hot, tables.sealed_parent(name)) if p.begin is not None]
        # The hot snapshot exists; only now may the warm one be taken.
        with _one_or_two(stores, hot, name) as warm:
            records = [r for r in units(warm, name) if r.tier is not Tier.EXPIRED]
            gone = {record.unit.begin for record in records}
            _fill(engine, scan, hot, "late", [identifier(p) for p in late], progress)
            parts = [p for p in attached if scan.overlaps(p.begin, p.end)]
            _fill(engine, scan, hot, "hot", [identifier(p.name) for p in parts if p.begin not in gone], progress)
            twice = [p for p in parts if p.begin in gone] + [p for p in sealed if scan.overlaps(p.begin, p.end)]
            _fill(engine, scan, hot, "sealed", [identifier(p.name) for p in twice], progress)
            homes = [r for r in records if r.tier is Tier.WARM and scan.overlaps(r.unit.begin, r.unit.end)]
            _fill(engine, scan, warm, "warm", _relations(stores, warm, scan, homes), progress)
    files = [r.location for r in records if r.tier is Tier.COLD and scan.overlaps(r.unit.begin, r.unit.end)]
    _define_view(engine, scan, files)
    progress("cold files", len(files))


@contextmanager
def _snapshot(database: Postgres, subject: str) -> Iterator[Connection]:
    """Open one read-only snapshot for the whole body. A connection of its own: COPY may have to close it."""
    connection = database.connect(f"query {subject}")
    try:
        with mapped("query", subject):
            connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
            yield connection
    finally:
        connection.close()


@contextmanager
def _one_or_two(stores: Stores, hot: Connection, subject: str) -> Iterator[Connection]:
    if stores.is_one_database:
        yield hot
    else:
        with _snapshot(stores.warm, subject) as warm:
            yield warm


def _relations(
    stores: Stores, warm: Connection, scan: _Scan, records: Sequence[UnitRecord]
) -> Iterator[sql.Composable]:
    for record in records:
        # All of the dataset's columns: a packed unit is unpacked by them, whichever are then asked for.
        described = plan_columns(tables.described_columns(warm, tables.warm_parent(scan.dataset.name)))
        yield stores.warm_tables.relation(warm, scan.dataset, record, described)


def _fill(
    engine: Any,
    scan: _Scan,
    connection: Connection,
    place: str,
    relations: Sequence[sql.Composable] | Iterator[sql.Composable],
    progress: Progress,
) -> None:
    """Copy relations' wanted rows into the engine's table `<dataset> <place>`; start it anew."""
    table = _quoted(f"{scan.dataset.name} {place}")
    with duck.mapped("fill", table):
        engine.register("incoming", arrow_schema(scan.columns).empty_table())
        engine.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT * FROM incoming")
    for relation in relations:
        for batch in pgcopy.read_batches(connection, relation, scan.columns, where=scan.where):
            with duck.mapped("fill", table):
                engine.register("incoming", pa.Table.from_batches([batch]))
                engine.execute(f"INSERT INTO {table} SELECT * FROM incoming")
            progress(place, batch.num_rows)
    with duck.mapped("fill", table):
        engine.unregister("incoming")
        special = engine.execute(f"SELECT count(*) FROM {table} WHERE {EXACT_COLUMN} IS NOT NULL").fetchone()[0]
    if special and not scan.wants_exact:
        log.warning("values shown as NULL that only _exact can hold: dataset=%s rows=%d", scan.dataset.name, special)


# -- each row once ----------------------------------------------------------------------------------------------


def _define_view(engine: Any, scan: _Scan, files: Sequence[str]) -> None:
    """Define the dataset as a view: late rows win over sealed ones, both win over warm and cold ones."""
    name = scan.dataset.name
    listed = ", ".join(_quoted(c.name) for c in scan.columns) + (f", {EXACT_COLUMN}" if scan.wants_exact else "")
    late, sealed = _quoted(f"{name} late"), _quoted(f"{name} sealed")
    has = {table: bool(engine.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone()) for table in (late, sealed)}
    over = [table for table in (late, sealed) if has[table]]
    parts = [
        f"SELECT {listed} FROM {late}",
        f"SELECT {listed} FROM {_quoted(f'{name} hot')}",
        f"SELECT {listed} FROM {sealed} AS r{_unless(scan, [late] if has[late] else [])}",
        f"SELECT {listed} FROM {_quoted(f'{name} warm')} AS r{_unless(scan, over)}",
    ]
    if files:
        parts.append(f"SELECT {listed} FROM {_parquet(scan, files)} AS r{_unless(scan, over)}")
    with duck.mapped("define view", name):
        engine.execute(f"CREATE OR REPLACE TEMP VIEW {_quoted(name)} AS {' UNION ALL '.join(parts)}")


def _unless(scan: _Scan, over: Sequence[str]) -> str:
    same = " AND ".join(f"o.{_quoted(key)} = r.{_quoted(key)}" for key in scan.dataset.key)
    tests = [f"NOT EXISTS (SELECT 1 FROM {table} AS o WHERE {same})" for table in over]
    return f" WHERE {' AND '.join(tests)}" if tests else ""


def _parquet(scan: _Scan, files: Sequence[str]) -> str:
    """Read lake files by field id, so that a file older than a column has it as NULL."""
    fields = [(c.field_id, c.name, _duck_type(c)) for c in scan.columns]
    fields += [(EXACT_FIELD_ID, EXACT_COLUMN, "VARCHAR")] if scan.wants_exact else []
    schema = ", ".join(
        f"{number}: {{name: {_text(name)}, type: {_text(kind)}, default_value: NULL}}" for number, name, kind in fields
    )
    return f"read_parquet([{', '.join(map(_text, files))}], schema = MAP {{{schema}}})"


def _duck_type(column: Column) -> str:
    if column.kind is Kind.DECIMAL:
        return f"DECIMAL({column.precision},{column.scale})"
    return _TYPES[column.kind]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
