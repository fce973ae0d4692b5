"""Find one person's rows in PostgreSQL, take them out, and look through every text for their name.

Functions take a connection and join the caller's transaction. Why no statement ever holds the name: it travels as a
parameter, so neither an error nor a log line of ours can quote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering.model import Dataset
from tiering.stores.postgres import Postgres, execute, fetch, fetch_one, identifier, mapped

SCHEMAS = ("hot", "warm", "live", "tiering", "tiering_stage", "tier_trash")
_LOOKED_INTO = ("text", "varchar", "bpchar", "json", "jsonb", "bytea", "name", "uuid", "xml", "citext")


@dataclass(frozen=True, slots=True)
class PersonTable:
    """A table with a person's column.

    Attributes:
        name: `schema.table`.
        subject_type: of the column; ends in `[]` in a packed table whose key does not hold the person.
        is_packed: rows are segments.
        is_sealed: it has the write fence.
        time_type: of the dataset's time column; empty without one.
    """

    name: str
    subject_type: str
    is_packed: bool
    is_sealed: bool
    time_type: str

    @property
    def schema(self) -> str:
        """The schema alone."""
        return self.name.split(".", 1)[0]


def person_tables(connection: Connection, dataset: Dataset, others: Sequence[str]) -> list[PersonTable]:
    """List every plain table and partition of a dataset that has its person's column, whatever schema it is in.

    Args:
        connection: of the database to look into.
        dataset: whose tables.
        others: names of all datasets: a table belongs to the one with the longest name that it begins with.
    """
    rows = fetch(
        connection,
        """SELECT n.nspname, c.relname, format_type(a.atttypid, a.atttypmod),
                  EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = 'segment' AND NOT attisdropped)
                  AND EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = 'unit_begin'),
                  EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgname = 'sealed_rows'),
                  coalesce((SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = c.oid
                            AND attname = %(time)s AND NOT attisdropped), '')
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = %(subject)s AND NOT a.attisdropped
           WHERE n.nspname = ANY(%(schemas)s) AND c.relkind = 'r' ORDER BY 1, 2""",
        {"subject": dataset.subject, "time": dataset.time_column, "schemas": list(SCHEMAS)},
    )
    found = []
    for schema, table, kind, is_packed, is_sealed, time_type in rows:
        owners = [name for name in others if table == name or table.startswith(f"{name}_")]
        is_hypertable = f"{schema}.{table}" == f"warm.{dataset.name}"  # its chunks are tables of their own
        if schema != "tiering" and max(owners, key=len, default="") == dataset.name and not is_hypertable:
            found.append(PersonTable(f"{schema}.{table}", kind, is_packed, is_sealed, time_type))
    return found


def is_person(column: str, kind: str, name: str) -> sql.Composed:
    """Write the condition that a column names the person; exact, whatever the column's type."""
    value = sql.Identifier(column)
    if kind.endswith("[]"):
        return sql.SQL("{} = ANY({}::text[])").format(sql.Literal(name), value)
    if kind == "text" or kind.startswith("character varying"):
        return sql.SQL("{} = {}").format(value, sql.Literal(name))
    return sql.SQL("{}::text = {}").format(value, sql.Literal(name))


def count_by_day(connection: Connection, dataset: Dataset, table: PersonTable, name: str) -> list[tuple[datetime, int]]:
    """Count the person's rows by hour or day; those outside the calendar count for the year 1.

    In a packed table whose segments hold many persons, the persons' values are counted.
    """
    if table.is_packed:
        when: sql.Composable = sql.SQL("unit_begin")
    elif table.time_type.startswith("timestamp"):
        step = sql.Literal("hour" if dataset.unit.hours else "day")
        ts = sql.Identifier(dataset.time_column)
        when = sql.SQL(
            """CASE WHEN {ts} >= '0001-01-02' AND {ts} < '9999-01-01'
                    THEN date_trunc({step}, {ts}::timestamptz, 'UTC') END"""
        ).format(ts=ts, step=step)
    else:
        when = sql.SQL("NULL::timestamptz")
    count: sql.Composable = sql.SQL("count(*)")
    if table.subject_type.endswith("[]"):
        count = sql.SQL("sum(cardinality(array_positions({}::text[], {})))").format(
            sql.Identifier(dataset.subject), sql.Literal(name)
        )
    elif table.is_packed:
        count = sql.SQL("sum(row_count)")
    rows = fetch(
        connection,
        sql.SQL("SELECT {}, {}::bigint FROM {} WHERE {} GROUP BY 1").format(
            when, count, identifier(table.name), is_person(dataset.subject, table.subject_type, name)
        ),
    )
    return [(when, count) for when, count in rows]


def remove_rows(
    connection: Connection,
    dataset: Dataset,
    table: PersonTable,
    name: str,
    spared: Sequence[tuple[datetime, datetime]] = (),
) -> int:
    """Take the person's rows out of a table, but for the `[begin, end)` that are spared; return how many.

    The write fence of a sealed table is lifted inside the transaction, behind a lock on the whole table.
    """
    if table.is_sealed:
        execute(connection, sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(identifier(table.name)))
        _fence(connection, table.name, "DISABLE")
    ts = sql.Identifier("unit_begin" if table.is_packed else dataset.time_column)
    keep = [
        sql.SQL("NOT coalesce({ts} >= {b} AND {ts} < {e}, false)").format(ts=ts, b=sql.Literal(b), e=sql.Literal(e))
        for b, e in spared
    ]
    where = sql.SQL(" AND ").join([is_person(dataset.subject, table.subject_type, name), *keep])
    removed = execute(connection, sql.SQL("DELETE FROM {} WHERE {}").format(identifier(table.name), where))
    if table.is_sealed:
        _fence(connection, table.name, "ENABLE")
    return removed


def _fence(connection: Connection, table: str, verb: str) -> None:
    execute(connection, sql.SQL("ALTER TABLE {} {} TRIGGER sealed_rows").format(identifier(table), sql.SQL(verb)))


def forget_statistics(database: Postgres, tables: Sequence[str], parents: Sequence[str]) -> None:
    """Vacuum tables whose rows were taken out, and sample them and their parents anew: statistics quote values.

    Why FULL below the hot tier: nobody writes there, and a written-anew file has no old rows in its pages.
    """
    with closing(database.connect("vacuum")) as connection, mapped("vacuum", "tables of the person"):
        connection.autocommit = True
        execute(connection, "SET lock_timeout = '5s'")
        for table in tables:
            if not _exists(connection, table):
                continue
            full = sql.SQL("" if table.startswith("hot.") else "FULL, ")
            execute(connection, sql.SQL("VACUUM ({}ANALYZE) {}").format(full, identifier(table)))
        for parent in parents:
            if _exists(connection, parent):
                execute(connection, sql.SQL("ANALYZE {}").format(identifier(parent)))


def clear_statistics(connection: Connection, columns: Sequence[str]) -> None:
    """Forget the statistics of `schema.table.column`s: of a table without rows, ANALYZE leaves the old ones.

    Before PostgreSQL 18 there is no way to but a superuser's; the proof then names them.
    """
    known = fetch_one(connection, "SELECT EXISTS (SELECT FROM pg_proc WHERE proname = 'pg_clear_attribute_stats')")
    for column in columns if known and known[0] else ():
        for inherited in (False, True):
            arguments = (*column.split(".", 2), inherited)
            execute(connection, "SELECT pg_clear_attribute_stats(%s, %s, %s, %s)", arguments)


def _exists(connection: Connection, table: str) -> bool:
    row = fetch_one(connection, "SELECT to_regclass(%s) IS NOT NULL", (table,))
    return bool(row and row[0])


def tables_with_text(connection: Connection) -> list[tuple[str, list[str]]]:
    """List every table of our schemas with those of its columns that can hold a name, arrays of them included."""
    rows = fetch(
        connection,
        """SELECT n.nspname || '.' || c.relname, array_agg(a.attname::text ORDER BY a.attnum)
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
           JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
           WHERE n.nspname = ANY(%s) AND c.relkind IN ('r', 'm')
             AND (coalesce(e.typname, t.typname)::text = ANY(%s) OR coalesce(e.typtype, t.typtype) = 'e')
           GROUP BY 1 ORDER BY 1""",
        (list(SCHEMAS), list(_LOOKED_INTO)),
    )
    return [(str(name), list(columns)) for name, columns in rows]


def mentions(
    connection: Connection, table: str, columns: Sequence[str], name: str, is_weak: bool
) -> list[tuple[str, int]]:
    """Count the values of a table's columns that name the person; columns without one are left out."""
    types = dict(
        fetch(
            connection,
            """SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute
               WHERE attrelid = to_regclass(%s) AND attname = ANY(%s)""",
            (_quoted(table), list(columns)),
        )
    )
    counts = [sql.SQL("count(*) FILTER (WHERE {})").format(_names(c, types[c], name, is_weak)) for c in columns]
    row = fetch_one(connection, sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(counts), identifier(table)))
    return [(column, int(count)) for column, count in zip(columns, row or (), strict=False) if count]


def _names(column: str, kind: str, name: str, is_weak: bool) -> sql.Composed:
    """Write the condition that a value names the person: a cheap search first, the expression only where it hits."""
    value, text = sql.Identifier(column), sql.Literal(name)
    if kind.endswith("[]") and is_weak:
        return sql.SQL("{} = ANY({}::text[])").format(text, value)
    if kind == "bytea":
        if is_weak:
            return sql.SQL("{} = convert_to({}, 'UTF8')").format(value, text)
        return sql.SQL("position(convert_to({}, 'UTF8') IN {}) > 0").format(text, value)
    escaped = "".join(f"\\{ch}" if not (ch.isalnum() or ch == "_" or ord(ch) > 127) else ch for ch in name)
    pattern = f'^{escaped}$|"{escaped}"' if is_weak else f"(^|[^A-Za-z0-9_]){escaped}($|[^A-Za-z0-9_])"
    return sql.SQL("strpos({v}::text, {t}) > 0 AND {v}::text ~ {p}").format(v=value, t=text, p=sql.Literal(pattern))


def statistics_mentions(connection: Connection, name: str) -> list[str]:
    """Name the columns of our schemas whose planner statistics quote the person."""
    rows = fetch(
        connection,
        """SELECT schemaname || '.' || tablename || '.' || attname FROM pg_stats WHERE schemaname = ANY(%(schemas)s)
             AND (%(name)s = ANY(most_common_vals::text::text[]) OR %(name)s = ANY(histogram_bounds::text::text[]))""",
        {"schemas": list(SCHEMAS), "name": name},
    )
    return [str(row[0]) for row in rows]


def _quoted(table: str) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in table.split(".", 1))
