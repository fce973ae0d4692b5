"""The warm tier on plain PostgreSQL: native range partitions, and packed units behind the same view.

A packed unit keeps one row per segment: the key's other columns as they are, and an array per remaining
column of up to `SEGMENT_ROWS` values, which TOAST compresses. `unpacked` turns it back into rows.
Warm partitions are fenced from birth and never changed in place: every change swaps a whole copy.
Functions join the caller's transaction. `timescale.py` is the same on hypertables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering.model import Column, Dataset, Unit
from tiering.stores import tables
from tiering.stores.postgres import execute, identifier, names
from tiering.stores.records import UnitRecord

SEGMENT_ROWS = 1000
"""Most rows of one segment: long enough to compress well, short enough that one symbol's day reads little."""


class WarmTables(Protocol):
    """Where warm units live. Every method joins the caller's transaction and leaves nothing if it rolls back.

    `put` and `take` are instant on plain PostgreSQL (catalog changes); a backend that must copy says so.
    """

    engine: str

    def install(self, connection: Connection, dataset: Dataset, columns: Sequence[Column]) -> None:
        """Create the dataset's warm tables if they are missing; their columns follow later (stores/lineage.py)."""

    def packed_types(self, dataset: Dataset, columns: Sequence[Column]) -> dict[str, str]:
        """Return the types of the columns in the table of packed units; nothing where there is no such table."""

    def relation(
        self, connection: Connection, dataset: Dataset, record: UnitRecord, columns: Sequence[Column]
    ) -> sql.Composable:
        """Return what to SELECT FROM to read exactly the unit's rows, packed or not."""

    def every_row(self, dataset: Dataset, columns: Sequence[Column]) -> list[sql.Composable]:
        """Return the SELECTs whose UNION ALL is the whole warm tier of the dataset, for views."""

    def put(self, connection: Connection, dataset: Dataset, unit: Unit, table: str) -> str:
        """Make a standalone table the unit's warm copy; return its location. No copy may be there before."""

    def take(self, connection: Connection, dataset: Dataset, record: UnitRecord, trash: str) -> str | None:
        """Take the unit's copy out of every reader's sight; return where it waits for the sweep, or None."""

    def pack(
        self, connection: Connection, dataset: Dataset, record: UnitRecord, unit: Unit, columns: Sequence[Column]
    ) -> str:
        """Write the packed copy of a unit beside it, seen by nobody; return its location. May be called again.

        A backend that packs in place returns the unit's own location: prove the rows before this commits.
        """

    def swap_packed(
        self, connection: Connection, dataset: Dataset, record: UnitRecord, packed: str, trash: str
    ) -> tuple[str, str | None]:
        """Put the packed copy in the place of the unpacked one; return its location and the old one's trash."""

    def packed_relation(
        self, connection: Connection, dataset: Dataset, unit: Unit, packed: str, columns: Sequence[Column]
    ) -> sql.Composable:
        """Return what to SELECT FROM to read a packed copy that is not yet swapped in."""

    def size_bytes(self, connection: Connection, dataset: Dataset, location: str) -> int:
        """Return all the bytes of a copy at a location that `put` or `pack` returned; 0 if it is not there."""


class NativeWarm:
    """Warm units as native range partitions of `warm.<dataset>` and `warm.<dataset>_packed`."""

    engine = "native"

    def install(self, connection: Connection, dataset: Dataset, columns: Sequence[Column]) -> None:
        """Create `warm.x` with the hot table's columns, and `warm.x_packed` with arrays of all but the group's."""
        execute(
            connection,
            sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}) PARTITION BY RANGE ({})").format(
                identifier(tables.warm_parent(dataset.name)),
                definition(dataset, columns),
                sql.Identifier(dataset.time_column),
            ),
        )
        execute(
            connection,
            sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}) PARTITION BY RANGE (unit_begin)").format(
                identifier(_packed_parent(dataset)), _packed_definition(dataset, columns)
            ),
        )

    def packed_types(self, dataset: Dataset, columns: Sequence[Column]) -> dict[str, str]:
        """Return an array type for each column but the group's."""
        return dict(_packed_types(dataset, columns))

    def relation(
        self, connection: Connection, dataset: Dataset, record: UnitRecord, columns: Sequence[Column]
    ) -> sql.Composable:
        """Return the partition itself, or its unpacked rows as a subquery."""
        if record.is_compressed:
            return self.packed_relation(connection, dataset, record.unit, record.location, columns)
        return identifier(record.location)

    def every_row(self, dataset: Dataset, columns: Sequence[Column]) -> list[sql.Composable]:
        """Return a SELECT over the heap partitions and one over the packed ones."""
        plain = sql.SQL("SELECT {} FROM {}").format(
            names([c.name for c in columns]), identifier(tables.warm_parent(dataset.name))
        )
        return [plain, unpacked(_packed_parent(dataset), dataset, columns)]

    def put(self, connection: Connection, dataset: Dataset, unit: Unit, table: str) -> str:
        """Rename the table into the warm schema, fence it and attach it. Instant."""
        location = tables.warm_partition(unit)
        tables.rename(connection, table, location)
        tables.fence(connection, location)
        tables.attach(connection, tables.warm_parent(dataset.name), location, unit)
        return location

    def take(self, connection: Connection, dataset: Dataset, record: UnitRecord, trash: str) -> str | None:
        """Detach the unit's partition and rename it into the trash schema. Instant."""
        parent = _packed_parent(dataset) if record.is_compressed else tables.warm_parent(dataset.name)
        tables.detach(connection, parent, record.location)
        tables.rename(connection, record.location, trash)
        return trash

    def pack(
        self, connection: Connection, dataset: Dataset, record: UnitRecord, unit: Unit, columns: Sequence[Column]
    ) -> str:
        """Write the unit's segments into a table of the stage schema."""
        stage = tables.stage_table(unit, "packed")
        tables.drop(connection, stage)
        execute(
            connection,
            sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL, CHECK (unit_begin >= {} AND unit_begin < {}))").format(
                identifier(stage),
                identifier(_packed_parent(dataset)),
                sql.Literal(unit.begin),
                sql.Literal(unit.end),
            ),
        )
        execute(connection, _pack_statement(dataset, unit, record.location, stage, columns))
        execute(connection, sql.SQL("ANALYZE {}").format(identifier(stage)))
        return stage

    def swap_packed(
        self, connection: Connection, dataset: Dataset, record: UnitRecord, packed: str, trash: str
    ) -> tuple[str, str | None]:
        """Detach the heap partition into the trash schema and attach the packed one. Instant."""
        location = f"{tables.warm_partition(record.unit)}_packed"
        tables.detach(connection, tables.warm_parent(dataset.name), record.location)
        tables.rename(connection, record.location, trash)
        tables.rename(connection, packed, location)
        tables.fence(connection, location)
        tables.attach(connection, _packed_parent(dataset), location, record.unit)
        return location, trash

    def packed_relation(
        self, connection: Connection, dataset: Dataset, unit: Unit, packed: str, columns: Sequence[Column]
    ) -> sql.Composable:
        """Return the packed table's rows as a subquery."""
        return sql.SQL("({}) AS unpacked").format(unpacked(packed, dataset, columns))

    def size_bytes(self, connection: Connection, dataset: Dataset, location: str) -> int:
        """Return the table's bytes with indexes and TOAST."""
        return tables.size_bytes(connection, location)


def definition(dataset: Dataset, columns: Sequence[Column]) -> sql.Composed:
    """Write a table's columns and its key, as the hot table has them; that one may be in another database."""
    parts = [
        sql.SQL("{} {}{}").format(
            sql.Identifier(c.name), sql.SQL(c.pg_type), sql.SQL("" if c.nullable else " NOT NULL")
        )
        for c in columns
    ]
    if not any(c.nullable for c in columns if c.name in dataset.key):
        parts.append(sql.SQL("PRIMARY KEY ({})").format(names(dataset.key)))
    return sql.SQL(", ").join(parts)


def unpacked(table: str, dataset: Dataset, columns: Sequence[Column]) -> sql.Composed:
    """Build the SELECT that turns segment rows back into the dataset's rows, columns in their order."""
    packed = [c for c in columns if c.name not in _group(dataset)]
    out = [
        sql.Identifier("p", c.name)
        if c.name in _group(dataset)
        else sql.SQL("u.{}::{}").format(sql.Identifier(c.name), sql.SQL(c.pg_type))
        if _is_array(c)
        else sql.Identifier("u", c.name)
        for c in columns
    ]
    aliased = [sql.SQL("{} AS {}").format(o, sql.Identifier(c.name)) for o, c in zip(out, columns, strict=True)]
    return sql.SQL("SELECT {} FROM {} p CROSS JOIN LATERAL unnest({}) AS u({})").format(
        sql.SQL(", ").join(aliased),
        identifier(table),
        names([c.name for c in packed], "p"),
        names([c.name for c in packed]),
    )


def _pack_statement(dataset: Dataset, unit: Unit, source: str, stage: str, columns: Sequence[Column]) -> sql.Composed:
    group = _group(dataset)
    packed = [c for c in columns if c.name not in group]
    order = [*group, dataset.time_column, *(k for k in dataset.key if k not in group and k != dataset.time_column)]
    values = [
        sql.SQL("array_agg({}::text)" if _is_array(c) else "array_agg({})").format(sql.Identifier(c.name))
        for c in packed
    ]
    # All arrays of a segment are built from one input order, so position i is one row in every array;
    # the ORDER BY is only there to make neighbours alike, which is what compresses.
    return sql.SQL(
        """INSERT INTO {stage} (unit_begin, segment, row_count, {columns})
           SELECT {begin}, segment, count(*), {group}{comma} {values}
           FROM (SELECT *, (row_number() OVER (PARTITION BY {part} ORDER BY {order}) - 1) / {size} AS segment
                 FROM {source} ORDER BY {order}) rows
           GROUP BY {group}{comma} segment"""
    ).format(
        stage=identifier(stage),
        columns=names([*group, *(c.name for c in packed)]),
        begin=sql.Literal(unit.begin),
        group=names(group),
        comma=sql.SQL("," if group else ""),
        values=sql.SQL(", ").join(values),
        part=names(group) if group else sql.SQL("1"),
        order=names(order),
        size=sql.Literal(SEGMENT_ROWS),
        source=identifier(source),
    )


def _group(dataset: Dataset) -> list[str]:
    return [name for name in dataset.key if name != dataset.time_column]


def _packed_parent(dataset: Dataset) -> str:
    return f"{tables.warm_parent(dataset.name)}_packed"


def _is_array(column: Column) -> bool:
    # array_agg over arrays wants equal dimensions, and would add one: arrays travel as their text
    return column.pg_type.endswith("[]")


def _packed_types(dataset: Dataset, columns: Sequence[Column]) -> list[tuple[str, str]]:
    group = _group(dataset)
    return [(c.name, c.pg_type if c.name in group else "text[]" if _is_array(c) else f"{c.pg_type}[]") for c in columns]


def _packed_definition(dataset: Dataset, columns: Sequence[Column]) -> sql.Composed:
    own = sql.SQL("unit_begin timestamptz NOT NULL, segment integer NOT NULL, row_count integer NOT NULL")
    rest = [sql.SQL("{} {}").format(sql.Identifier(n), sql.SQL(kind)) for n, kind in _packed_types(dataset, columns)]
    key = sql.SQL("PRIMARY KEY ({})").format(names([*_group(dataset), "unit_begin", "segment"]))
    return sql.SQL(", ").join([own, *rest, key])
