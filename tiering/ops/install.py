"""Prepare a dataset's tables: companions of the hot table, warm tables, the view over all of them, partitions.

Idempotent; every run of a flow begins with it, so a new dataset, a new column or a new month needs no ticket.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering import errors
from tiering.model import Column, Dataset, Form, Unit
from tiering.ops import documents
from tiering.ops.columns import Layout, settle, wanted
from tiering.plan.spans import unit_of
from tiering.stores import tables
from tiering.stores.lineage import Wanted, changes_types, follow
from tiering.stores.opening import Stores
from tiering.stores.postgres import LOCK_TIMEOUT_MS, Postgres, execute, fetch, fetch_one, identifier, names
from tiering.stores.records import OPEN_STATES

log = logging.getLogger(__name__)

UNITS_AHEAD = 2
"""Partitions kept ready beyond the current unit, so that a late schedule does not fill the late partition."""


def install_schemas(stores: Stores, rooms: str, ledger: str) -> None:
    """Create schemas, fence and ledger from their DDL texts (infra/sql). May be called again, also at once.

    Raises:
        SettingsError: hot and warm are said to be two databases, and are one.
    """
    _demand_two_databases(stores)
    for database, scripts in ((stores.warm, (rooms, ledger)), (stores.hot, (rooms,))):
        with database.transaction("install", database.name) as connection:
            execute(connection, "SELECT pg_advisory_xact_lock(hashtextextended('tiering.install', 0))")
            for script in scripts:
                execute(connection, script)


def _demand_two_databases(stores: Stores) -> None:
    """Refuse one database under two spellings: a unit would be pumped from itself, and its one copy retired."""
    if not stores.is_one_database and _identity(stores.hot) == _identity(stores.warm):
        raise errors.SettingsError(
            "install",
            "TIERING_HOT_PG_URL",
            "names the same database as TIERING_WARM_PG_URL, spelt differently",
            "Give both the same text.",
        )


def _identity(database: Postgres) -> tuple[object, ...]:
    """Tell a database from every other, however it was reached.

    Why the start too: a copy of a whole cluster, promoted, has its system identifier. The start alone would do
    but for servers that do not tell it (PGlite's is the epoch).
    """
    with database.transaction("install", database.name) as connection:
        found = fetch_one(
            connection,
            """SELECT current_database(), pg_postmaster_start_time(),
                      has_function_privilege('pg_control_system()', 'EXECUTE')""",
        )
        assert found is not None
        *identity, permitted = found
        if permitted:
            identity += fetch_one(connection, "SELECT system_identifier FROM pg_control_system()") or ()
        return tuple(identity)


def install_dataset(stores: Stores, dataset: Dataset) -> tuple[Column, ...]:
    """Create what a dataset's hot table needs around it; return the dataset's columns.

    Raises:
        NotFound: the hot table does not exist.
        SchemaMismatch: it is not partitioned by range of the time column, or a column changed its type.
    """
    if dataset.form is Form.DOCUMENTS:
        return documents.install(stores, dataset)
    if dataset.form is Form.FILES:
        return ()
    parent = tables.hot_parent(dataset.name)
    layout = settle(stores, dataset.name)
    _demand_shape(stores, dataset, layout.live)
    with stores.hot.transaction("install", dataset.name, lock_timeout_ms=LOCK_TIMEOUT_MS) as connection:
        execute(connection, "SELECT pg_advisory_xact_lock(hashtextextended('tiering.install', 0))")
        late, sealed = tables.late_partition(dataset.name), tables.sealed_parent(dataset.name)
        if not tables.exists(connection, late):
            execute(
                connection,
                sql.SQL("CREATE TABLE {} PARTITION OF {} DEFAULT").format(identifier(late), identifier(parent)),
            )
        _create_parent(connection, sealed, parent, dataset)
        _follow(connection, dataset, [(sealed, wanted(layout.stored))])
        if not stores.is_one_database:
            _create_view(connection, dataset, layout, hot=True, warm=[])
    in_stage = _staged(stores, dataset)
    with stores.warm.transaction("install", dataset.name, lock_timeout_ms=LOCK_TIMEOUT_MS) as connection:
        execute(connection, "SELECT pg_advisory_xact_lock(hashtextextended('tiering.install', 0))")
        stores.warm_tables.install(connection, dataset, layout.stored)
        packed = stores.warm_tables.packed_types(dataset, layout.stored)
        companions = [(tables.warm_parent(dataset.name), wanted(layout.stored))]
        companions += [(table, wanted(layout.stored)) for kind, table in in_stage if kind != "packed"]
        if packed:
            types = [replace(w, pg_type=packed[w.name], is_nullable=False) for w in wanted(layout.stored)]
            companions += [(f"{tables.warm_parent(dataset.name)}_packed", types)]
            companions += [(table, types) for kind, table in in_stage if kind == "packed"]
        _follow(connection, dataset, [(table, w) for table, w in companions if tables.exists(connection, table)])
        warm = stores.warm_tables.every_row(dataset, layout.live)
        _create_view(connection, dataset, layout, hot=stores.is_one_database, warm=warm)
    return layout.live


def _staged(stores: Stores, dataset: Dataset) -> list[tuple[str, str]]:
    """Name the copies that are being made of a dataset: they become partitions of what follows the hot table."""
    moves = stores.ledger.moves(dataset.name, OPEN_STATES)
    return [(kind, tables.stage_table(move.unit, kind)) for move in moves for kind in ("rows", "late", "packed")]


def prepare_units(stores: Stores, dataset: Dataset, now: datetime) -> list[Unit]:
    """Create the partitions of units that have rows or soon will; return the units adopted from the late partition.

    Rows in the late partition whose unit has never left the hot tier are not late at all: they came before
    their partition did. They are moved into it. The late rows of units that did leave stay for the merge.
    """
    if dataset.form is not Form.TABLE:
        return []
    with stores.hot.transaction("survey", dataset.name) as connection:
        waiting = late_units(connection, dataset)
        taken = _taken(connection, dataset)
    # Hot first, ledger second, as in `survey`: a unit that leaves the hot tier in between is then known.
    gone = {record.unit.begin for record in stores.ledger.units(dataset.name)}
    wanted = {}
    begin, end = unit_of(now, dataset.unit)
    for _ in range(UNITS_AHEAD + 1):
        wanted[begin] = end
        begin, end = unit_of(end, dataset.unit)
    horizon = begin
    wanted |= {unit.begin: unit.end for unit, _ in waiting if unit.begin < horizon}
    free = [bounds for bounds in sorted(wanted.items()) if bounds[0] not in gone and not _overlaps(bounds, taken)]
    created = [Unit(dataset.name, begin, end) for begin, end in free]
    for unit in created:
        _create_unit(stores, dataset, unit)
    adopted = {unit.begin for unit, _ in waiting}
    return [unit for unit in created if unit.begin in adopted]


def late_units(connection: Connection, dataset: Dataset) -> list[tuple[Unit, int]]:
    """Count the rows of the late partition by the unit they belong to, oldest first."""
    counts: dict[tuple[datetime, datetime], int] = {}
    for instant, count in tables.late_counts(connection, dataset):
        bounds = unit_of(instant, dataset.unit)
        counts[bounds] = counts.get(bounds, 0) + count
    return [(Unit(dataset.name, begin, end), count) for (begin, end), count in sorted(counts.items())]


def create_units(stores: Stores, dataset: Dataset, begins: Sequence[tuple[datetime, datetime]]) -> None:
    """Create hot partitions for the given bounds ahead of a bulk load; those that exist are left alone."""
    gone = {record.unit.begin for record in stores.ledger.units(dataset.name)}
    with stores.hot.transaction("survey", dataset.name) as connection:
        taken = _taken(connection, dataset)
    for begin, end in begins:
        if begin not in gone and not _overlaps((begin, end), taken):
            _create_unit(stores, dataset, Unit(dataset.name, begin, end))


def _taken(connection: Connection, dataset: Dataset) -> list[tuple[datetime, datetime]]:
    """List the bounds of the hot tier's partitions, the sealed ones among them.

    Why bounds, and not where they begin: partitions that the user made may have another length than a unit.
    """
    return [
        (part.begin, part.end)
        for parent in (tables.hot_parent(dataset.name), tables.sealed_parent(dataset.name))
        for part in tables.partitions(connection, parent)
        if part.begin is not None and part.end is not None
    ]


def _overlaps(bounds: tuple[datetime, datetime], taken: Sequence[tuple[datetime, datetime]]) -> bool:
    return any(begin < bounds[1] and bounds[0] < end for begin, end in taken)


def _create_unit(stores: Stores, dataset: Dataset, unit: Unit) -> None:
    table, late = tables.hot_partition(unit), tables.late_partition(dataset.name)
    with stores.hot.transaction("create", str(unit), lock_timeout_ms=LOCK_TIMEOUT_MS) as connection:
        # Both locks before anything else: a writer between adopt and attach would make the attach fail.
        for name, mode in ((tables.hot_parent(dataset.name), "SHARE UPDATE EXCLUSIVE"), (late, "ACCESS EXCLUSIVE")):
            execute(connection, sql.SQL("LOCK TABLE {} IN {} MODE").format(identifier(name), sql.SQL(mode)))
        # The table first, the ledger second: a unit that another scheduler made and moved away since we looked
        # has left its name free, but then the ledger knows it. Its rows would be seen twice otherwise.
        if tables.exists(connection, table) or stores.ledger.unit(dataset.name, unit.begin):
            return
        tables.create_like(connection, table, tables.hot_parent(dataset.name), unit, dataset.time_column)
        tables.adopt_rows(connection, late, table, unit, dataset.time_column)
        tables.attach(connection, tables.hot_parent(dataset.name), table, unit)


def _create_parent(connection: Connection, table: str, like: str, dataset: Dataset) -> None:
    execute(
        connection,
        sql.SQL("CREATE TABLE IF NOT EXISTS {} (LIKE {} INCLUDING ALL) PARTITION BY RANGE ({})").format(
            identifier(table), identifier(like), sql.Identifier(dataset.time_column)
        ),
    )


def _follow(connection: Connection, dataset: Dataset, companions: Sequence[tuple[str, Sequence[Wanted]]]) -> None:
    """Bring companions' columns up to the hot table's, out of the view's way where a type becomes wider."""
    if any(changes_types(connection, table, columns) for table, columns in companions):
        execute(connection, sql.SQL("DROP VIEW IF EXISTS {}").format(identifier(f"live.{dataset.name}")))
    for table, columns in companions:
        follow(connection, table, columns)


def _demand_shape(stores: Stores, dataset: Dataset, columns: Sequence[Column]) -> None:
    found = {c.name for c in columns}
    missing = {dataset.time_column, *dataset.key, *dataset.fingerprint, *dataset.sort} - found
    if missing:
        raise errors.SchemaMismatch(
            "install",
            dataset.name,
            f"the policy names columns that the table lacks: {', '.join(sorted(missing))}",
            "Correct the dataset's entry in the policy file, or add the columns.",
        )
    with stores.hot.transaction("look at", dataset.name, read_only=True) as connection:
        strategy = tables.partition_column(connection, tables.hot_parent(dataset.name))
    if strategy != dataset.time_column:
        raise errors.SchemaMismatch(
            "install",
            dataset.name,
            f"{tables.hot_parent(dataset.name)} is not partitioned by range of {dataset.time_column}",
            "Create it with PARTITION BY RANGE on the dataset's time column.",
        )


def _create_view(
    connection: Connection, dataset: Dataset, layout: Layout, *, hot: bool, warm: Sequence[sql.Composable]
) -> None:
    """Create `live.<dataset>`: every row of this database once, whatever is being moved.

    A row waiting in the late partition or in a sealed late generation wins over an older copy of its key.
    """
    if layout.problems:
        # The two sides have types that do not go together: what readers have stays, until that is remedied.
        log.warning("view not renewed dataset=%s problems=%s", dataset.name, "; ".join(layout.problems))
        return
    listed = names([c.name for c in layout.live])
    parts: list[sql.Composable] = []
    over: list[str] = []
    if hot:
        late, sealed = tables.late_partition(dataset.name), tables.sealed_parent(dataset.name)
        parts.append(sql.SQL("SELECT {} FROM {}").format(listed, identifier(tables.hot_parent(dataset.name))))
        select_sealed = sql.SQL("SELECT {} FROM {}").format(listed, identifier(sealed))
        parts.append(_without(select_sealed, [late], dataset))
        over = [late, sealed]
    parts += [_without(select, over, dataset) for select in warm]
    definition = sql.SQL(" UNION ALL ").join(parts)
    digest = hashlib.sha256(definition.as_string(connection).encode()).hexdigest()[:16]
    # Replacing waits for every reader of the view, so it is done only when the definition is another one.
    if tables.comment_of(connection, f"live.{dataset.name}") != digest:
        _replace_view(connection, f"live.{dataset.name}", definition, [(c.name, c.pg_type) for c in layout.live])
        comment = sql.SQL("COMMENT ON VIEW {} IS {}")
        execute(connection, comment.format(identifier(f"live.{dataset.name}"), sql.Literal(digest)))


def _replace_view(
    connection: Connection, name: str, definition: sql.Composable, columns: Sequence[tuple[str, str]]
) -> None:
    """Create or replace a view; where a column was renamed, lost or changed type, drop it but keep its grants.

    Why not always: a drop fails while other views stand upon this one.
    """
    grants: list[tuple[str, str, bool]] = []
    if tables.exists(connection, name):
        have = [(column, kind) for column, kind, _ in tables.described_columns(connection, name)]
        if have != list(columns[: len(have)]):
            grants = [(row[0], row[1], row[2]) for row in fetch(connection, _GRANTS, (tables.regclass(name),))]
            execute(connection, sql.SQL("DROP VIEW {}").format(identifier(name)))
    execute(connection, sql.SQL("CREATE OR REPLACE VIEW {} AS {}").format(identifier(name), definition))
    for grantee, privilege, may_grant in grants:
        statement = sql.SQL("GRANT {} ON {} TO {}{}").format(
            sql.SQL(privilege),
            identifier(name),
            sql.Identifier(grantee) if grantee else sql.SQL("PUBLIC"),
            sql.SQL(" WITH GRANT OPTION" if may_grant else ""),
        )
        execute(connection, statement)


_GRANTS = """SELECT CASE a.grantee WHEN 0 THEN '' ELSE pg_get_userbyid(a.grantee) END, a.privilege_type, a.is_grantable
             FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = to_regclass(%s) AND a.grantee <> c.relowner"""


def _without(select: sql.Composable, over: Sequence[str], dataset: Dataset) -> sql.Composable:
    if not over:
        return select
    same = sql.SQL(" AND ").join(sql.SQL("o.{0} = w.{0}").format(sql.Identifier(name)) for name in dataset.key)
    tests = [sql.SQL("NOT EXISTS (SELECT 1 FROM {} o WHERE {})").format(identifier(table), same) for table in over]
    return sql.SQL("SELECT * FROM ({}) w WHERE {}").format(select, sql.SQL(" AND ").join(tests))
