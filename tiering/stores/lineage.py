"""Columns through time: what the ledger remembers of them, and companion tables that follow the hot table's.

A companion (the sealed, warm and packed tables, and stages) carries each column's field id as its comment, so that
it is known under any name, after any crash. Functions join the caller's transaction.
Does not: recognise columns (plan/columns.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering.model import LakeColumn
from tiering.stores.postgres import execute, fetch, fetch_one, identifier
from tiering.stores.tables import regclass

_TAG = "tiering field "


@dataclass(frozen=True, slots=True)
class Wanted:
    """One column that a companion is to have."""

    field_id: int
    name: str
    pg_type: str
    is_nullable: bool = True


def numbered_columns(connection: Connection, table: str) -> list[tuple[int, str, str, bool]]:
    """Return (attnum, name, type, NOT NULL) of a table's columns in their order; nothing without the table."""
    rows = fetch(
        connection,
        """SELECT attnum, attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute
           WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum""",
        (regclass(table),),
    )
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def identity_of(connection: Connection, table: str) -> str:
    """Tell a table from every other that ever had its name: while this stays, attnums mean what they meant.

    Why the timeline: a server restored to an earlier moment may give an attnum again that was given already.
    """
    row = fetch_one(
        connection,
        """SELECT (SELECT oid FROM pg_database WHERE datname = current_database()), to_regclass(%s)::oid,
                  has_function_privilege('pg_control_system()', 'EXECUTE')
                  AND has_function_privilege('pg_control_checkpoint()', 'EXECUTE')""",
        (regclass(table),),
    )
    assert row is not None
    parts = [str(row[0]), str(row[1])]
    if row[2]:
        statement = "SELECT system_identifier, timeline_id FROM pg_control_system(), pg_control_checkpoint()"
        parts += [str(part) for part in fetch_one(connection, statement) or ()]
    return ".".join(parts)


def known_columns(connection: Connection, dataset: str) -> tuple[str, list[LakeColumn]]:
    """Read what the ledger remembers: the identity of the hot table that it saw, and every column ever."""
    rows = fetch(
        connection,
        """SELECT source, field_id, name, pg_type, attnum, is_live FROM tiering.lake_column
           WHERE dataset = %s ORDER BY field_id""",
        (dataset,),
    )
    return (rows[0][0] if rows else ""), [LakeColumn(*row[1:]) for row in rows]


def put_columns(connection: Connection, dataset: str, source: str, columns: Sequence[LakeColumn]) -> None:
    """Make these the columns that the ledger remembers; none is ever forgotten."""
    for column in columns:
        execute(
            connection,
            """INSERT INTO tiering.lake_column (dataset, field_id, name, pg_type, attnum, source, is_live)
               VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (dataset, field_id) DO UPDATE SET
                   name = excluded.name, pg_type = excluded.pg_type, attnum = excluded.attnum,
                   source = excluded.source, is_live = excluded.is_live, changed_at = clock_timestamp()""",
            (dataset, column.field_id, column.name, column.pg_type, column.attnum, source, column.is_live),
        )


def tagged_columns(connection: Connection, table: str) -> dict[int, str]:
    """Name a companion's columns by field id; those that carry none are left out."""
    rows = fetch(
        connection,
        """SELECT substr(d.description, %s)::integer, a.attname FROM pg_attribute a
           JOIN pg_description d ON d.objoid = a.attrelid AND d.classoid = 'pg_class'::regclass
             AND d.objsubid = a.attnum
           WHERE a.attrelid = to_regclass(%s) AND NOT a.attisdropped AND d.description ~ %s""",
        (len(_TAG) + 1, regclass(table), f"^{_TAG}[0-9]+$"),
    )
    return dict(rows)


def changes_types(connection: Connection, table: str, wanted: Sequence[Wanted]) -> bool:
    """Tell whether `follow` would change a column's type, which no view may stand upon."""
    types = {name: kind for _, name, kind, _ in numbered_columns(connection, table)}
    ids = _found(connection, table, wanted)
    return any(c.field_id in ids and types[ids[c.field_id]] != c.pg_type for c in wanted)


def follow(connection: Connection, table: str, wanted: Sequence[Wanted]) -> None:
    """Bring a companion's columns up to the wanted ones by field id: rename, add, widen, allow NULL. Idempotent.

    Why over names that nobody has: two columns may have taken each other's. A wider type rewrites the table.
    """
    found = _found(connection, table, wanted)
    moved = [c for c in wanted if c.field_id in found and found[c.field_id] != c.name]
    for column in moved:
        _rename(connection, table, found[column.field_id], f"tiering_f{column.field_id}")
    for column in moved:
        _rename(connection, table, f"tiering_f{column.field_id}", column.name)
    there = {name: (kind, not_null) for _, name, kind, not_null in numbered_columns(connection, table)}
    tagged = tagged_columns(connection, table)
    for column in wanted:
        if column.name not in there:
            _alter(connection, table, "ADD COLUMN {} {}", column.name, sql.SQL(column.pg_type))
        else:
            kind, not_null = there[column.name]
            if kind != column.pg_type:
                _alter(connection, table, "ALTER COLUMN {} TYPE {}", column.name, sql.SQL(column.pg_type))
            if not_null and column.is_nullable:
                _alter(connection, table, "ALTER COLUMN {} DROP NOT NULL", column.name)
        if tagged.get(column.field_id) != column.name:
            comment = sql.SQL("COMMENT ON COLUMN {} IS {}").format(
                sql.Identifier(*table.split(".", 1), column.name), sql.Literal(f"{_TAG}{column.field_id}")
            )
            execute(connection, comment)


def _found(connection: Connection, table: str, wanted: Sequence[Wanted]) -> dict[int, str]:
    """Find the wanted columns that a companion has: by its tags, and by name where it has none (made before them)."""
    tagged = tagged_columns(connection, table)
    untagged = {name for _, name, _, _ in numbered_columns(connection, table)} - set(tagged.values())
    by_name = {c.field_id: c.name for c in wanted if c.name in untagged and c.field_id not in tagged}
    return tagged | by_name


def _rename(connection: Connection, table: str, old: str, new: str) -> None:
    _alter(connection, table, "RENAME COLUMN {} TO {}", old, sql.Identifier(new))


def _alter(connection: Connection, table: str, clause: str, *parts: str | sql.Composable) -> None:
    safe = [sql.Identifier(part) if isinstance(part, str) else part for part in parts]
    execute(connection, sql.SQL("ALTER TABLE {} " + clause).format(identifier(table), *safe))
