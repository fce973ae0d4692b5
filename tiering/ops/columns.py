"""The columns of a dataset through time: recognised in the hot table, remembered in the ledger, followed everywhere.

A field id is given once and never again (docs/decisions/0012-field-ids.md), so a lake file of any age is read by it,
whatever its columns were called when it was written.
Does not: decide which change is which (plan/columns.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO

import pyarrow as pa
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering import errors
from tiering.model import Column, Fingerprint, Kind, LakeColumn
from tiering.plan.columns import Lineage, plan_columns, trace_columns
from tiering.stores import tables
from tiering.stores.ledger import audit
from tiering.stores.lineage import Wanted, identity_of, known_columns, numbered_columns, put_columns, tagged_columns
from tiering.stores.opening import Stores
from tiering.stores.parquet_schema import fields_in
from tiering.stores.postgres import execute

HINT = (
    "Give the column its old type back, or keep the new one under a new name beside it; then `tiering release` the "
    "units that are in quarantine for it."
)


@dataclass(frozen=True, slots=True)
class Layout:
    """A dataset's columns.

    Attributes:
        dataset: its name.
        live: as the hot table declares them now.
        retired: those that it has lost, which warm and cold copies still have.
        stored: what warm and cold copies have: the live ones with the types that stored data has, then the retired.
        problems: changes of type that stored data cannot follow.
    """

    dataset: str
    live: tuple[Column, ...]
    stored: tuple[Column, ...]
    problems: tuple[str, ...]

    @property
    def retired(self) -> tuple[Column, ...]:
        """The columns that the hot table has lost."""
        return self.stored[len(self.live) :]

    def demand(self) -> tuple[Column, ...]:
        """Return the live columns.

        Raises:
            IncompatibleColumns: stored data cannot follow them.
        """
        if self.problems:
            raise errors.IncompatibleColumns("follow columns of", self.dataset, "; ".join(self.problems), HINT)
        return self.live


def look(stores: Stores, dataset: str) -> Layout:
    """Recognise a dataset's columns without writing anything.

    Raises:
        NotFound: there is no hot table.
        SchemaMismatch: the hot table is another one than the ledger knows, and lacks columns of that.
    """
    described, source = _describe(stores, dataset)
    with stores.warm.transaction("read columns of", dataset, read_only=True) as connection:
        known = known_columns(connection, dataset) if tables.exists(connection, "tiering.lake_column") else ("", [])
    return _layout(dataset, described, _trace(stores, dataset, described, source, *known))


def settle(stores: Stores, dataset: str, actor: str = "tiering") -> Layout:
    """Recognise a dataset's columns and remember them: new field ids are given here, and nowhere else.

    Raises:
        NotFound: there is no hot table.
        SchemaMismatch: as `look`.
    """
    described, source = _describe(stores, dataset)
    with stores.warm.transaction("read columns of", dataset, read_only=True) as connection:
        known = known_columns(connection, dataset)
    lineage = _trace(stores, dataset, described, source, *known)
    if known[0] == source and _same(lineage, known[1]):
        return _layout(dataset, described, lineage)
    with stores.warm.transaction("remember columns of", dataset) as connection:
        execute(connection, "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"tiering.columns.{dataset}",))
        known = known_columns(connection, dataset)
        lineage = _trace(stores, dataset, described, source, *known)
        put_columns(connection, dataset, source, lineage.columns)
        now = {str(c.field_id): f"{c.name} {c.pg_type}{'' if c.is_live else ' (retired)'}" for c in lineage.columns}
        audit(connection, actor, "columns", dataset, None, {"field_ids": now, "problems": list(lineage.problems)})
    return _layout(dataset, described, lineage)


def _describe(stores: Stores, dataset: str) -> tuple[list[tuple[int, str, str, bool]], str]:
    parent = tables.hot_parent(dataset)
    with stores.hot.transaction("describe", dataset, read_only=True) as connection:
        described = numbered_columns(connection, parent)
        if not described:
            raise errors.NotFound("describe", parent, "no such table", "Create it, then run `tiering install`.")
        return described, identity_of(connection, parent)


def _same(lineage: Lineage, known: Sequence[LakeColumn]) -> bool:
    return {c.field_id: c for c in lineage.columns} == {c.field_id: c for c in known}


def _trace(
    stores: Stores,
    dataset: str,
    described: Sequence[tuple[int, str, str, bool]],
    source: str,
    known_source: str,
    known: Sequence[LakeColumn],
) -> Lineage:
    plain = [(number, name, pg_type) for number, name, pg_type, _ in described]
    given: Mapping[str, int] = {}
    if not known and stores.lake.exists(dataset):
        # Made before the ledger remembered: the lake itself does.
        given = stores.lake.field_ids(dataset)
        known = [LakeColumn(given[name], name, kind, number) for number, name, kind in plain if name in given]
        known_source = source
    highest = max(given.values(), default=0)
    return trace_columns(dataset, plain, known, is_same_table=known_source == source, highest_id=highest)


def _layout(dataset: str, described: Sequence[tuple[int, str, str, bool]], lineage: Lineage) -> Layout:
    ids = {c.name: c.field_id for c in lineage.columns}
    not_null = {name for _, name, _, is_not_null in described if is_not_null}
    live = plan_columns([(name, pg_type, flag) for _, name, pg_type, flag in described], ids)
    stored = plan_columns([(c.name, c.pg_type, c.is_live and c.name in not_null) for c in lineage.columns], ids)
    return Layout(dataset, live, stored, lineage.problems)


def wanted(columns: Sequence[Column]) -> list[Wanted]:
    """Say what a companion table is to have, of the stored columns."""
    return [Wanted(c.field_id, c.name, c.pg_type, c.nullable) for c in columns]


def aligned(connection: Connection, relation: sql.Composable, parent: str, columns: Sequence[Column]) -> sql.Composable:
    """Return a relation of a companion's rows under the given columns, where the companion has not followed yet.

    Between a change of the hot table and the next run, a companion has the old names and types: read by field id.
    """
    tagged = tagged_columns(connection, parent)
    types = {name: pg_type for _, name, pg_type, _ in numbered_columns(connection, parent)}
    if not tagged or all(types.get(c.name) == c.pg_type and tagged.get(c.field_id) == c.name for c in columns):
        return relation
    listed = sql.SQL(", ").join(
        sql.SQL("{}::{} AS {}").format(
            sql.Identifier(tagged[c.field_id]) if c.field_id in tagged else sql.SQL("NULL"),
            sql.SQL(c.pg_type),
            sql.Identifier(c.name),
        )
        for c in columns
    )
    source = sql.SQL("{} AS r").format(relation) if isinstance(relation, sql.Identifier) else relation
    return sql.SQL("(SELECT {} FROM {}) AS aligned").format(listed, source)


def recorded_print(
    file: IO[bytes], recorded: Fingerprint, columns: Sequence[Column]
) -> tuple[Fingerprint, tuple[Column, ...]]:
    """Give a lake file's recorded fingerprint the names of today; return the columns to compare it by as well.

    Left out are columns that nobody knows any more, and reals that became doubles, whose hashes are other ones.
    Rewinds the file.
    """
    fields = fields_in(file)
    now = {
        fields[c.field_id].name: c
        for c in columns
        if c.field_id in fields and not (c.kind is Kind.FLOAT8 and fields[c.field_id].type == pa.float32())
    }
    kept = [(now[p.name], p) for p in recorded.columns if p.name in now]
    prints = tuple(replace(p, name=c.name) for c, p in kept)
    return Fingerprint(recorded.row_count, prints), tuple(c for c, _ in kept)
