"""The warm tier on TimescaleDB: `warm.<dataset>` is a hypertable, a unit is exactly one chunk of it.

Chunks are attached with the unit's own bounds, so months and years are whole chunks too, and `put` reads rows
only to prove them inside the bounds. Compression is TimescaleDB's columnstore, in place: the chunk's name stays.
Nobody writes to the hypertable (a trigger) nor to a chunk by its own name (a trigger, and it is frozen).
Functions join the caller's transaction. Needs TimescaleDB 2.23 or later under the Timescale licence.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering import errors
from tiering.model import Column, Dataset, Span, Unit
from tiering.stores import tables
from tiering.stores.postgres import Postgres, execute, fetch_one, identifier, names
from tiering.stores.records import UnitRecord
from tiering.stores.warm import NativeWarm, WarmTables, definition

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TimescaleWarm:
    """Warm units as chunks of the hypertable `warm.<dataset>`."""

    engine = "timescaledb"

    def install(self, connection: Connection, dataset: Dataset, columns: Sequence[Column]) -> None:
        """Create the hypertable with the hot table's columns and key, and prepare its columnstore."""
        parent = tables.warm_parent(dataset.name)
        execute(
            connection,
            sql.SQL("CREATE TABLE IF NOT EXISTS {} ({})").format(identifier(parent), definition(dataset, columns)),
        )
        if not _is_hypertable(connection, parent):
            _create_hypertable(connection, parent, dataset)

    def packed_types(self, dataset: Dataset, columns: Sequence[Column]) -> dict[str, str]:
        """Return nothing: units are packed in place."""
        return {}

    def relation(
        self, connection: Connection, dataset: Dataset, record: UnitRecord, columns: Sequence[Column]
    ) -> sql.Composable:
        """Return the chunk: reading it by name shows heap rows and columnstore rows alike."""
        if _is_columnstore(connection, record.location):
            return self.packed_relation(connection, dataset, record.unit, record.location, columns)
        return identifier(record.location)

    def every_row(self, dataset: Dataset, columns: Sequence[Column]) -> list[sql.Composable]:
        """Return one SELECT over the hypertable."""
        listed = names([c.name for c in columns])
        return [sql.SQL("SELECT {} FROM {}").format(listed, identifier(tables.warm_parent(dataset.name)))]

    def put(self, connection: Connection, dataset: Dataset, unit: Unit, table: str) -> str:
        """Rename the table into the warm schema, attach it as a chunk and freeze it. Copies nothing, but scans
        the table once: TimescaleDB validates the chunk's bounds itself.
        """
        location = tables.warm_partition(unit)
        tables.rename(connection, table, location)
        tables.fence(connection, location)
        tables.match_columns(connection, tables.warm_parent(dataset.name), location)
        _attach(connection, dataset, unit, location)
        if tables.parent_of(connection, location) != tables.warm_parent(dataset.name):
            raise errors.PermanentError(
                "attach",
                str(unit),
                f"{tables.warm_parent(dataset.name)} has another chunk in its place",
                "Somebody wrote to the warm table by its name: move those rows to the hot table, drop the chunk.",
            )
        _freeze(connection, location)
        return location

    def take(self, connection: Connection, dataset: Dataset, record: UnitRecord, trash: str) -> str | None:
        """Detach the chunk and rename it into the trash schema: instant.

        A columnstore chunk cannot be detached: its rows are copied into the trash and the chunk is dropped, in the
        same transaction. The copy is read only to undo, so it has no index.
        """
        location = record.location
        _unfreeze(connection, location)
        if _is_columnstore(connection, location):
            copy = sql.SQL("CREATE TABLE {} AS TABLE {}").format(identifier(trash), identifier(location))
            execute(connection, copy)
            tables.drop(connection, location)
        else:
            execute(connection, "CALL detach_chunk(%s::regclass)", (_quoted(location),))
            tables.rename(connection, location, trash)
        return trash

    def pack(
        self, connection: Connection, dataset: Dataset, record: UnitRecord, unit: Unit, columns: Sequence[Column]
    ) -> str:
        """Turn the chunk into columnstore where it is; return the same location. May be called again.

        The rows are gone when the transaction commits: the caller compares before and after inside it.
        """
        _unfreeze(connection, record.location)
        execute(
            connection, "SELECT compress_chunk(%s::regclass, if_not_compressed => true)", (_quoted(record.location),)
        )
        _freeze(connection, record.location)
        execute(connection, sql.SQL("ANALYZE {}").format(identifier(record.location)))
        return record.location

    def swap_packed(
        self, connection: Connection, dataset: Dataset, record: UnitRecord, packed: str, trash: str
    ) -> tuple[str, str | None]:
        """Do nothing: the chunk was packed in place."""
        return packed, None

    def packed_relation(
        self, connection: Connection, dataset: Dataset, unit: Unit, packed: str, columns: Sequence[Column]
    ) -> sql.Composable:
        """Return the chunk as a subquery: columnstore rows have no ctid, by which plain tables are read in ranges."""
        return sql.SQL("(SELECT {} FROM {}) AS packed").format(names([c.name for c in columns]), identifier(packed))

    def size_bytes(self, connection: Connection, dataset: Dataset, location: str) -> int:
        """Return the chunk's bytes, heap and columnstore, with indexes and TOAST; a plain table's too."""
        schema, name = location.split(".", 1)
        row = None
        if tables.parent_of(connection, location) == tables.warm_parent(dataset.name):
            row = fetch_one(
                connection,
                """SELECT total_bytes FROM chunks_detailed_size(%s::regclass)
                   WHERE chunk_schema = %s AND chunk_name = %s""",
                (_quoted(tables.warm_parent(dataset.name)), schema, name),
            )
        return int(row[0]) if row else tables.size_bytes(connection, location)


class ChosenWarm:
    """TimescaleDB for the datasets that can have it, native partitions for the others. Asks at first use only."""

    engine = "chosen"

    def __init__(self, database: Postgres) -> None:
        self._database = database
        self._chosen: dict[str, WarmTables] = {}

    def install(self, connection: Connection, dataset: Dataset, columns: Sequence[Column]) -> None:
        """Install the chosen backend's tables."""
        self._of(connection, dataset).install(connection, dataset, columns)

    def relation(
        self, connection: Connection, dataset: Dataset, record: UnitRecord, columns: Sequence[Column]
    ) -> sql.Composable:
        """Ask the chosen backend."""
        return self._of(connection, dataset).relation(connection, dataset, record, columns)

    def packed_types(self, dataset: Dataset, columns: Sequence[Column]) -> dict[str, str]:
        """Ask the backend chosen by `install`."""
        return self._chosen[dataset.name].packed_types(dataset, columns)

    def every_row(self, dataset: Dataset, columns: Sequence[Column]) -> list[sql.Composable]:
        """Ask the chosen backend; open a connection only if nobody has asked about the dataset before."""
        if dataset.name not in self._chosen:
            with self._database.transaction("look at", dataset.name) as connection:
                self._of(connection, dataset)
        return self._chosen[dataset.name].every_row(dataset, columns)

    def put(self, connection: Connection, dataset: Dataset, unit: Unit, table: str) -> str:
        """Ask the chosen backend."""
        return self._of(connection, dataset).put(connection, dataset, unit, table)

    def take(self, connection: Connection, dataset: Dataset, record: UnitRecord, trash: str) -> str | None:
        """Ask the chosen backend."""
        return self._of(connection, dataset).take(connection, dataset, record, trash)

    def pack(
        self, connection: Connection, dataset: Dataset, record: UnitRecord, unit: Unit, columns: Sequence[Column]
    ) -> str:
        """Ask the chosen backend."""
        return self._of(connection, dataset).pack(connection, dataset, record, unit, columns)

    def swap_packed(
        self, connection: Connection, dataset: Dataset, record: UnitRecord, packed: str, trash: str
    ) -> tuple[str, str | None]:
        """Ask the chosen backend."""
        return self._of(connection, dataset).swap_packed(connection, dataset, record, packed, trash)

    def packed_relation(
        self, connection: Connection, dataset: Dataset, unit: Unit, packed: str, columns: Sequence[Column]
    ) -> sql.Composable:
        """Ask the chosen backend."""
        return self._of(connection, dataset).packed_relation(connection, dataset, unit, packed, columns)

    def size_bytes(self, connection: Connection, dataset: Dataset, location: str) -> int:
        """Ask the chosen backend."""
        return self._of(connection, dataset).size_bytes(connection, dataset, location)

    def _of(self, connection: Connection, dataset: Dataset) -> WarmTables:
        if dataset.name not in self._chosen:
            self._chosen[dataset.name] = choose_for(connection, dataset)
        return self._chosen[dataset.name]


def choose_warm(database: Postgres) -> WarmTables:
    """Return the warm backend of a database, chosen per dataset at first use. Makes no network call."""
    return ChosenWarm(database)


def choose_for(connection: Connection, dataset: Dataset) -> WarmTables:
    """Choose the backend of one dataset: what its warm table already is, else TimescaleDB where it can be used.

    Why not by the extension alone: a dataset that began on native partitions goes on with them when somebody
    adds the extension later; the extension without its Timescale licence has no columnstore; before 2.23 it
    cannot attach a table.
    """
    parent = tables.warm_parent(dataset.name)
    if tables.partition_column(connection, parent) is not None:
        return NativeWarm()
    row = fetch_one(
        connection,
        """SELECT to_regprocedure('attach_chunk(regclass,regclass,jsonb)') IS NOT NULL
                  AND current_setting('timescaledb.license', true) = 'timescale'
           FROM pg_extension WHERE extname = 'timescaledb'""",
    )
    return TimescaleWarm() if row and row[0] else NativeWarm()


def _is_hypertable(connection: Connection, table: str) -> bool:
    schema, name = table.split(".", 1)
    row = fetch_one(
        connection,
        """SELECT compression_enabled FROM timescaledb_information.hypertables
           WHERE hypertable_schema = %s AND hypertable_name = %s""",
        (schema, name),
    )
    return row is not None and bool(row[0])


def _create_hypertable(connection: Connection, table: str, dataset: Dataset) -> None:
    execute(
        connection,
        """SELECT create_hypertable(%s::regclass,
               by_range(%s, make_interval(months => %s, days => %s, hours => %s)),
               create_default_indexes => false, if_not_exists => true)""",
        (_quoted(table), dataset.time_column, *_interval(dataset.unit)),
    )
    before = dataset.key.index(dataset.time_column)
    # A segment is one series, the key's columns before the time; what follows the time only breaks ties.
    segment, order = dataset.key[:before] or (), dataset.key[before:]
    options = sql.SQL("timescaledb.enable_columnstore, timescaledb.orderby = {}").format(sql.Literal(_listed(order)))
    if segment:
        options += sql.SQL(", timescaledb.segmentby = {}").format(sql.Literal(_listed(segment)))
    execute(connection, sql.SQL("ALTER TABLE {} SET ({})").format(identifier(table), options))
    # By statement, on the hypertable: before 2.29 a frozen columnstore chunk still lets a DELETE through, and a row
    # for a range without a unit would make a chunk that nobody knows of. Applications write to the hot table.
    execute(
        connection,
        sql.SQL(
            """CREATE OR REPLACE TRIGGER sealed_table BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {}
               FOR EACH STATEMENT EXECUTE FUNCTION tiering.refuse_sealed_write()"""
        ).format(identifier(table)),
    )


def _attach(connection: Connection, dataset: Dataset, unit: Unit, location: str) -> None:
    """Attach a table as the chunk of exactly the unit's bounds."""
    bounds = [(instant - EPOCH) // timedelta(microseconds=1) for instant in (unit.begin, unit.end)]
    execute(
        connection,
        "CALL attach_chunk(%s::regclass, %s::regclass, %s::jsonb)",
        (_quoted(tables.warm_parent(dataset.name)), _quoted(location), json.dumps({dataset.time_column: bounds})),
    )


def _freeze(connection: Connection, location: str) -> None:
    execute(connection, "SELECT _timescaledb_functions.freeze_chunk(%s::regclass)", (_quoted(location),))


def _unfreeze(connection: Connection, location: str) -> None:
    execute(connection, "SELECT _timescaledb_functions.unfreeze_chunk(%s::regclass)", (_quoted(location),))


def _is_columnstore(connection: Connection, location: str) -> bool:
    """Ask the server, not the ledger: a move may have packed the chunk and stopped before its commit."""
    row = fetch_one(
        connection,
        "SELECT is_compressed FROM timescaledb_information.chunks WHERE chunk_schema = %s AND chunk_name = %s",
        tuple(location.split(".", 1)),
    )
    return bool(row and row[0])


def _interval(span: Span) -> tuple[int, int, int]:
    return span.months, span.days, span.hours


def _listed(columns: Sequence[str]) -> str:
    return ", ".join('"' + name.replace('"', '""') + '"' for name in columns)


def _quoted(table: str) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in table.split(".", 1))
