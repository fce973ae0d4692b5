"""Datasets whose rows are at the edges of their types, spread over all tiers: what predicates are tried on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from psycopg2 import sql

import infra.sql
from tests.ops.document_world import ANCHOR, DocumentWorld, open_documents
from tests.ops.predicate_rows import LABELS, choose_units, corrected, document, table_row, typed_document, unit_times
from tests.ops.predicates import MICROSECOND, Predicate, source_sql, truth_of
from tests.ops.world import NOW, POLICIES
from tiering.model import Column, Dataset, Form, Span, State, Tier, Transition, Unit
from tiering.ops import install, lifecycle
from tiering.plan.policies import parse_policies
from tiering.plan.spans import subtract, unit_of
from tiering.settings import Settings
from tiering.stores import tables
from tiering.stores.bson_typed import document_columns
from tiering.stores.opening import Stores, open_stores
from tiering.stores.postgres import execute, fetch, identifier

Verdicts = dict[str, tuple[bool | None, ...]]
ROWS_PER_UNIT = 14
LONG = Span(months=48)


class Source(Protocol):
    """A dataset at its source: rows go in, and predicates are answered by someone who is not on trial."""

    stores: Stores
    dataset: Dataset
    columns: tuple[Column, ...]
    label: str
    anchor: Any
    """A row of now: ages are measured against the newest."""

    def insert(self, times: Sequence[datetime], corrections: Sequence[Any] = ()) -> list[Any]:
        """Insert new rows of those times, and rows under the keys of earlier ones; return them."""
        ...

    def verdicts(self, predicates: Sequence[Predicate], which: Sequence[Any]) -> Verdicts:
        """Ask the source of rows that it holds now."""
        ...

    def is_in(self, row: Any, units: Sequence[Unit]) -> bool:
        """Tell whether a row belongs to one of the units."""
        ...


@dataclass
class TableSource:
    """A table in the hot database: PostgreSQL itself answers."""

    stores: Stores
    dataset: Dataset
    columns: tuple[Column, ...]
    label: str
    dice: random.Random
    anchor: Any = None
    count: int = 0

    def insert(self, times: Sequence[datetime], corrections: Sequence[Any] = ()) -> list[Any]:
        """Insert as an application does: into the hot table, whatever tier the time is in."""
        rows = [corrected(self.dice, self.dataset, self.columns, row) for row in corrections]
        for at in times:
            self.count += 1
            rows.append(table_row(self.dice, self.dataset, self.columns, at, self.count))
        names = sql.SQL(", ").join(sql.Identifier(column.name) for column in self.columns)
        with self.stores.hot.transaction("insert", "rows") as connection:
            for row in rows:
                values = sql.SQL(", ").join(sql.Literal(row[column.name]) for column in self.columns)
                into = identifier(tables.hot_parent(self.dataset.name))
                execute(connection, sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(into, names, values))
        install.prepare_units(self.stores, self.dataset, NOW)
        return rows

    def verdicts(self, predicates: Sequence[Predicate], which: Sequence[Any]) -> Verdicts:
        """Ask the hot table, which holds these rows and after moves others no more."""
        asked = ", ".join(source_sql(predicate, self.columns) for predicate in predicates)
        with self.stores.hot.transaction("ask", "the source") as connection:
            execute(connection, "SET LOCAL TimeZone = 'UTC'")
            statement = f'SELECT "{self.label}"::text, {asked} FROM hot.{self.dataset.name}'
            found = {row[0]: row[1:] for row in fetch(connection, statement)}
        return {row[self.label]: found[row[self.label]] for row in which}

    def is_in(self, row: Any, units: Sequence[Unit]) -> bool:
        """Tell whether a row belongs to one of the units."""
        return within(datetime.fromisoformat(row[self.dataset.time_column]), units)


@dataclass
class DocumentSource:
    """A collection of the hot MongoDB: Python answers from the documents as they were inserted."""

    world: DocumentWorld
    columns: tuple[Column, ...]
    dice: random.Random
    label: str = "_id"
    documents: list[dict[str, Any]] = field(default_factory=list)

    @property
    def anchor(self) -> Any:
        """The document that the world came with."""
        return {"_id": ANCHOR, self.dataset.time_column: NOW}

    @property
    def stores(self) -> Stores:
        """Where the tiers are."""
        return self.world.stores

    @property
    def dataset(self) -> Dataset:
        """What is on trial."""
        return self.world.dataset

    def insert(self, times: Sequence[datetime], corrections: Sequence[Any] = ()) -> list[Any]:
        """Insert into the hot collection, those of known `_id`s too."""
        time = self.dataset.time_column
        fresh = [{**document(self.dice, self.dataset, old[time], 0), "_id": old["_id"]} for old in corrections]
        first = len(self.documents) + 1
        fresh += [document(self.dice, self.dataset, at, number) for number, at in enumerate(times, start=first)]
        self.documents += fresh
        self.world.insert(fresh)
        return fresh

    def verdicts(self, predicates: Sequence[Predicate], which: Sequence[Any]) -> Verdicts:
        """Work every predicate out over the documents' declared values."""
        rows = [typed_document(self.dataset, body) for body in which]
        return {row["_id"]: tuple(truth_of(predicate, row) for predicate in predicates) for row in rows}

    def is_in(self, row: Any, units: Sequence[Unit]) -> bool:
        """Tell whether a document belongs to one of the units."""
        return within(row[self.dataset.time_column], units)


@contextmanager
def open_source(settings: Settings, name: str, dice: random.Random) -> Iterator[Source]:
    """Open a dataset on empty servers, without its checkpoints: they quarantine what is tried here on purpose.

    A dataset that would never go cold gets an age for it, and none is locked: its real retention is over.
    """
    policies = parse_policies(POLICIES.read_text(), str(POLICIES))
    dataset = policies.dataset(name)
    assert dataset is not None
    if dataset.policy.warm_to_cold == dataset.policy.retention:
        dataset = replace(dataset, policy=replace(dataset.policy, warm_to_cold=LONG))
    dataset = replace(dataset, suite="", lock=False, state="moves")
    if dataset.form is Form.DOCUMENTS:
        with open_documents(settings, name, suite="") as world:
            yield DocumentSource(world, tuple(c for c in document_columns(dataset) if c.name != "_raw"), dice)
        return
    others = tuple(d for d in policies.datasets if d.name != name)
    with open_stores(settings, replace(policies, datasets=(*others, dataset))) as stores:
        install.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
        with stores.hot.transaction("create", "tables") as connection:
            execute(connection, infra.sql.read_tables())
        columns = install.install_dataset(stores, dataset)
        source = TableSource(stores, dataset, columns, LABELS[name], dice)
        (source.anchor,) = source.insert([NOW])
        yield source


def within(at: datetime, units: Sequence[Unit]) -> bool:
    """Tell whether an instant is in one of the units."""
    return any(unit.begin <= at < unit.end for unit in units)


@dataclass(frozen=True)
class Places:
    """Units by the tier that they end up in; the first warm and the first cold one get late rows."""

    hot: list[Unit]
    warm: list[Unit]
    cold: list[Unit]


def choose_places(dataset: Dataset, dice: random.Random) -> Places:
    """Choose two units to stay hot, three to become warm and three to become cold."""
    policy = dataset.policy
    assert policy.hot_to_warm is not None
    assert policy.warm_to_cold is not None
    assert policy.retention is not None
    young, old, oldest = (subtract(NOW, age) for age in (policy.hot_to_warm, policy.warm_to_cold, policy.retention))
    today = Unit(dataset.name, *unit_of(NOW, dataset.unit))
    before = Unit(dataset.name, *unit_of(today.begin - timedelta(seconds=1), dataset.unit))
    return Places(
        [today, *([before] if before.end > young else [])],
        choose_units(dice, dataset, old, young, 3),
        choose_units(dice, dataset, oldest, old, 3),
    )


@dataclass(frozen=True)
class Expected:
    """What everybody must find: of every row in its newest version, and of the lake's rows in the lake's versions."""

    whole: Verdicts
    lake: Verdicts


def spread(source: Source, predicates: Sequence[Predicate], dice: random.Random) -> Expected:
    """Insert, ask the source, and move everything to where it belongs; late rows come twice, the first are merged."""
    places = choose_places(source.dataset, dice)
    step = MICROSECOND if source.dataset.form is Form.TABLE else timedelta(milliseconds=1)

    def insert(units: Sequence[Unit], count: int, corrections: Sequence[Any] = ()) -> list[Any]:
        times = [at for unit in units for at in unit_times(dice, unit, step, count)]
        return source.insert([at for at in times if at <= NOW], corrections)

    rows = [source.anchor, *insert([*places.hot, *places.warm, *places.cold], ROWS_PER_UNIT)]
    whole = source.verdicts(predicates, rows)
    lake = source.verdicts(predicates, [row for row in rows if source.is_in(row, places.cold)])
    for transition in (Transition.HOT_TO_WARM, Transition.COMPRESS, Transition.WARM_TO_COLD):
        # One warm unit in two is packed; the others' moves stay planned.
        move(source, transition, 2 if transition is Transition.COMPRESS else 1)
    late_units = [places.warm[0], places.cold[0]]
    corrigible = [row for row in rows if source.is_in(row, late_units)]
    merged = insert(late_units, 5, dice.sample(corrigible, 6))
    whole |= source.verdicts(predicates, merged)
    lake |= source.verdicts(predicates, [row for row in merged if source.is_in(row, places.cold)])
    move(source, Transition.MERGE)
    whole |= source.verdicts(predicates, insert(late_units, 4, dice.sample(corrigible, 6)))
    demand_spread(source, places)
    return Expected(whole, lake)


def move(source: Source, transition: Transition, every: int = 1) -> None:
    """Carry every n-th due move of a transition through."""
    plan = lifecycle.plan_dataset(source.stores, source.dataset, NOW, [transition])
    for move_id in lifecycle.begin_moves(source.stores, plan)[::every]:
        receipt = lifecycle.run_move(source.stores, move_id, NOW, "test")
        assert receipt.state is State.COMMITTED, receipt


def demand_spread(source: Source, places: Places) -> None:
    """Demand that there is something in every tier, a second generation, and late rows: else nothing is tried."""
    records = {record.unit.begin: record for record in source.stores.ledger.units(source.dataset.name)}
    assert [records[unit.begin].tier for unit in places.cold] == [Tier.COLD] * 3
    assert [records[unit.begin].tier for unit in places.warm] == [Tier.WARM] * 3
    assert not {unit.begin for unit in places.hot} & records.keys()
    assert [records[units[0].begin].unit.generation for units in (places.warm, places.cold)] == [2, 2]
    if source.dataset.policy.compression:
        assert {records[unit.begin].is_compressed for unit in places.warm} == {True, False}
