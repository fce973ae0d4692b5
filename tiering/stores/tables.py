"""Partitions of a dataset in PostgreSQL: create, list, seal, hand over, trash. All of it is catalog work:
no function here reads or writes rows, except `adopt_rows`, which moves them out of the late partition.

Naming: `hot.x` partitioned by time · `hot.x_late` its default partition · `hot.x_sealed` the sealed units ·
`warm.x` and `warm.x_packed`. A partition carries a CHECK of its bounds, so that attaching never scans it.
Functions take a connection and join the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering import errors
from tiering.model import Dataset, Unit
from tiering.stores.postgres import execute, fetch, fetch_one, identifier


@dataclass(frozen=True, slots=True)
class Partition:
    """One attached partition; `begin` and `end` None for the default one."""

    name: str
    begin: datetime | None
    end: datetime | None
    row_estimate: int
    size_bytes: int


def hot_parent(dataset: str) -> str:
    """Name the table that applications write to."""
    return f"hot.{dataset}"


def late_partition(dataset: str) -> str:
    """Name the default partition: rows whose range has no partition of its own."""
    return f"hot.{dataset}_late"


def sealed_parent(dataset: str) -> str:
    """Name the parent of units that are being moved out of the hot tier."""
    return f"hot.{dataset}_sealed"


def warm_parent(dataset: str) -> str:
    """Name the parent of warm units."""
    return f"warm.{dataset}"


def hot_partition(unit: Unit) -> str:
    """Name a unit's table in the hot schema."""
    return f"hot.{unit.dataset}_{unit.slug}" + (f"_g{unit.generation}" if unit.generation > 1 else "")


def warm_partition(unit: Unit) -> str:
    """Name a unit's table in the warm schema."""
    return f"warm.{unit.dataset}_{unit.slug}_g{unit.generation}"


def stage_table(unit: Unit, what: str) -> str:
    """Name a copy that is being made; unique per unit, generation and purpose."""
    return f"tiering_stage.{unit.dataset}_{unit.slug}_g{unit.generation}_{what}"


def trash_table(unit: Unit, move_id: int, what: str) -> str:
    """Name a superseded copy in the undo window."""
    return f"tier_trash.{unit.dataset}_{unit.slug}_m{move_id}_{what}"


def exists(connection: Connection, table: str) -> bool:
    """Tell whether a relation exists."""
    row = fetch_one(connection, "SELECT to_regclass(%s) IS NOT NULL", (regclass(table),))
    return bool(row and row[0])


def comment_of(connection: Connection, table: str) -> str | None:
    """Return a relation's comment, None without one or without the relation."""
    row = fetch_one(connection, "SELECT obj_description(to_regclass(%s), 'pg_class')", (regclass(table),))
    return None if row is None else row[0]


def parent_of(connection: Connection, table: str) -> str | None:
    """Return the table that `table` is attached to, None if to none or if it does not exist."""
    row = fetch_one(
        connection,
        """SELECT n.nspname || '.' || c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhparent
           JOIN pg_namespace n ON n.oid = c.relnamespace WHERE i.inhrelid = to_regclass(%s)""",
        (regclass(table),),
    )
    return str(row[0]) if row else None


def children(connection: Connection, parent: str) -> list[str]:
    """Name a table's partitions, or a hypertable's chunks, in the order of their names."""
    rows = fetch(
        connection,
        """SELECT n.nspname || '.' || c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
           JOIN pg_namespace n ON n.oid = c.relnamespace WHERE i.inhparent = to_regclass(%s) ORDER BY 1""",
        (regclass(parent),),
    )
    return [str(row[0]) for row in rows]


def partitions(connection: Connection, parent: str) -> list[Partition]:
    """List a parent's partitions from the catalog, in order of time, the default one last.

    Bounds are read from the partition itself (true bounds), never from its name.
    """
    rows = fetch(
        connection,
        """SELECT n.nspname || '.' || c.relname, pg_get_expr(c.relpartbound, c.oid),
                  greatest(c.reltuples, 0)::bigint, pg_total_relation_size(c.oid)
           FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
           WHERE i.inhparent = to_regclass(%s)""",
        (regclass(parent),),
    )
    found = [Partition(name, *_bounds(bound, name), estimate, size) for name, bound, estimate, size in rows]
    return sorted(found, key=lambda p: (p.begin is None, p.begin, p.name) if p.begin else (True, p.name, p.name))


def find(connection: Connection, parent: str, unit: Unit) -> Partition | None:
    """Find a unit's partition under a parent by its true bounds, whatever its name."""
    return next((p for p in partitions(connection, parent) if (p.begin, p.end) == (unit.begin, unit.end)), None)


def _bounds(bound: str, name: str) -> tuple[datetime | None, datetime | None]:
    if bound == "DEFAULT":
        return None, None
    parts = bound.split("'")
    if len(parts) != 5:
        raise errors.SchemaMismatch(
            "read bounds of",
            name,
            f"not a range of one timestamp: {bound}",
            "Partition it by range of its time column.",
        )
    return datetime.fromisoformat(parts[1]), datetime.fromisoformat(parts[3])


def create_like(connection: Connection, table: str, like: str, unit: Unit, time_column: str) -> None:
    """Create an empty standalone table with the columns, keys and indexes of `like` and a CHECK of the unit's
    bounds; do nothing if it exists.
    """
    execute(
        connection,
        sql.SQL("CREATE TABLE IF NOT EXISTS {} (LIKE {} INCLUDING ALL, CHECK ({} >= {} AND {} < {}))").format(
            identifier(table),
            identifier(like),
            sql.Identifier(time_column),
            sql.Literal(unit.begin),
            sql.Identifier(time_column),
            sql.Literal(unit.end),
        ),
    )


def attach(connection: Connection, parent: str, table: str, unit: Unit) -> None:
    """Attach a standalone table as the unit's partition. Instant: its CHECK spares the scan."""
    match_columns(connection, parent, table)
    execute(
        connection,
        sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
            identifier(parent), identifier(table), sql.Literal(unit.begin), sql.Literal(unit.end)
        ),
    )


def match_columns(connection: Connection, parent: str, table: str) -> None:
    """Add to a table the columns of its parent-to-be that it lacks, null: its source has lost them since."""
    have = {name for name, _, _ in described_columns(connection, table)}
    for name, pg_type, _ in described_columns(connection, parent):
        if name not in have:
            # format_type() output comes from the server itself and cannot be a parameter
            execute(
                connection,
                sql.SQL("ALTER TABLE {} ADD COLUMN {} {}").format(
                    identifier(table), sql.Identifier(name), sql.SQL(pg_type)
                ),
            )


def detach(connection: Connection, parent: str, table: str) -> None:
    """Detach a partition: waits for its writers (up to the transaction's lock_timeout) and keeps its rows."""
    execute(connection, sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(identifier(parent), identifier(table)))


def rename(connection: Connection, table: str, to: str) -> None:
    """Move a standalone table to another schema and name; its rows are not touched."""
    schema, name = to.split(".", 1)
    old_schema, old_name = table.split(".", 1)
    if schema != old_schema:
        execute(connection, sql.SQL("ALTER TABLE {} SET SCHEMA {}").format(identifier(table), sql.Identifier(schema)))
    if name != old_name:
        execute(
            connection,
            sql.SQL("ALTER TABLE {} RENAME TO {}").format(sql.Identifier(schema, old_name), sql.Identifier(name)),
        )


def lock(connection: Connection, table: str, mode: str) -> None:
    """Lock a table until the transaction ends, up to its lock_timeout; `mode` as in LOCK TABLE."""
    execute(connection, sql.SQL("LOCK TABLE {} IN {} MODE").format(identifier(table), sql.SQL(mode)))


def fence(connection: Connection, table: str) -> None:
    """Refuse every write to a table by its own name. Waits for writers in flight. Idempotent."""
    for name, when in (
        ("sealed_rows", "BEFORE INSERT OR UPDATE OR DELETE ON {} FOR EACH ROW"),
        ("sealed_table", "BEFORE TRUNCATE ON {} FOR EACH STATEMENT"),
    ):
        statement = "CREATE OR REPLACE TRIGGER {} " + when + " EXECUTE FUNCTION tiering.refuse_sealed_write()"
        execute(connection, sql.SQL(statement).format(sql.Identifier(name), identifier(table)))


def adopt_rows(connection: Connection, late: str, table: str, unit: Unit, time_column: str) -> int:
    """Move the unit's rows out of the late partition into `table`; rows committed later stay for the next time.

    One statement: a row is in one of the two tables at every instant, for every reader.
    """
    return execute(
        connection,
        sql.SQL(
            "WITH taken AS (DELETE FROM {late} WHERE {ts} >= %s AND {ts} < %s RETURNING *) INSERT INTO {to} "
            "SELECT * FROM taken"
        ).format(late=identifier(late), ts=sql.Identifier(time_column), to=identifier(table)),
        (unit.begin, unit.end),
    )


def drop(connection: Connection, table: str) -> None:
    """Drop a table if it exists. Only the sweep calls this on what was once a copy."""
    execute(connection, sql.SQL("DROP TABLE IF EXISTS {}").format(identifier(table)))


def size_bytes(connection: Connection, table: str) -> int:
    """Return a table's bytes with its indexes and TOAST, 0 if it does not exist."""
    row = fetch_one(connection, "SELECT coalesce(pg_total_relation_size(to_regclass(%s)), 0)", (regclass(table),))
    return int(row[0]) if row else 0


def described_columns(connection: Connection, table: str) -> list[tuple[str, str, bool]]:
    """Return (name, type, NOT NULL) of a table's columns in their order; NotFound without the table."""
    rows = fetch(
        connection,
        """SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute
           WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum""",
        (regclass(table),),
    )
    if not rows:
        raise errors.NotFound("describe", table, "no such table", "Create it, then run `tiering install`.")
    return [(row[0], row[1], row[2]) for row in rows]


def unique_key_covers(connection: Connection, table: str, key: Sequence[str]) -> bool:
    """Tell whether a valid unique index over (a subset of) the key proves that the key is unique."""
    rows = fetch(
        connection,
        """SELECT array_agg(a.attname::text), bool_and(a.attnotnull) FROM pg_index x
           JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = ANY(x.indkey)
           WHERE x.indrelid = to_regclass(%s) AND x.indisunique AND x.indisvalid AND x.indpred IS NULL
             AND x.indexprs IS NULL GROUP BY x.indexrelid""",
        (regclass(table),),
    )
    return any(not_null and set(columns) <= set(key) for columns, not_null in rows)


def regclass(table: str) -> str:
    """Write `schema.table` as text that to_regclass() reads back to exactly that."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in table.split(".", 1))


def partition_column(connection: Connection, table: str) -> str | None:
    """Return the column a table is range-partitioned by, None if it is not (or by more than one)."""
    row = fetch_one(
        connection,
        """SELECT a.attname FROM pg_partitioned_table p JOIN pg_attribute a ON a.attrelid = p.partrelid
             AND a.attnum = p.partattrs[0]
           WHERE p.partrelid = to_regclass(%s) AND p.partstrat = 'r' AND p.partnatts = 1""",
        (regclass(table),),
    )
    return str(row[0]) if row else None


def late_counts(connection: Connection, dataset: Dataset) -> list[tuple[datetime, int]]:
    """Count the rows of the late partition by hour or day, oldest first.

    Rows outside the calendar (±infinity, BC, year 9999 on) belong to no unit and stay where they are:
    they never age, and every query sees them.
    """
    step = "hour" if dataset.unit.hours else "day"
    rows = fetch(
        connection,
        sql.SQL(
            """SELECT date_trunc({step}, {ts}, 'UTC'), count(*) FROM {late}
               WHERE {ts} >= '0001-01-02' AND {ts} < '9999-01-01' GROUP BY 1 ORDER BY 1"""
        ).format(
            step=sql.Literal(step),
            ts=sql.Identifier(dataset.time_column),
            late=identifier(late_partition(dataset.name)),
        ),
    )
    return [(instant, count) for instant, count in rows]


def newest_row(connection: Connection, dataset: Dataset) -> datetime | None:
    """Return the newest time in the hot tier, looking only into the newest partition that has rows."""
    ordered = [
        p
        for parent in (hot_parent(dataset.name), sealed_parent(dataset.name))
        for p in partitions(connection, parent)
        if p.begin is not None
    ]
    candidates = [late_partition(dataset.name)]
    candidates += [p.name for p in sorted(ordered, key=lambda p: p.begin or datetime.min, reverse=True)]
    found: datetime | None = None
    for name in candidates:
        row = fetch_one(
            connection,
            sql.SQL("SELECT max({ts}) FROM {t} WHERE {ts} < '9999-01-01' AND {ts} >= '0001-01-02'").format(
                ts=sql.Identifier(dataset.time_column), t=identifier(name)
            ),
        )
        if row and row[0] is not None:
            found = row[0] if found is None else max(found, row[0])
            if name != candidates[0]:
                break
    return found


def has_rows(connection: Connection, table: str) -> bool:
    """Tell whether a table has at least one row, without counting."""
    row = fetch_one(connection, sql.SQL("SELECT EXISTS (SELECT 1 FROM {})").format(identifier(table)))
    return bool(row and row[0])
