"""A small world for lifecycle tests: real stores, one dataset of bars, and ways to look at all of it at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from psycopg2 import sql

import infra.sql
from tiering.model import Dataset, Receipt, Transition
from tiering.ops import install, lifecycle
from tiering.ops.export import fetched
from tiering.plan.policies import parse_policies
from tiering.settings import Settings
from tiering.stores import parquet, tables
from tiering.stores.opening import Stores, open_stores
from tiering.stores.parquet_schema import columns_in
from tiering.stores.postgres import execute, fetch, identifier

NOW = datetime(2024, 6, 20, 12, tzinfo=UTC)
POLICIES = Path(__file__).parents[2] / "deployments" / "policies.yaml"


@dataclass(frozen=True)
class World:
    """Stores, one dataset, one instant."""

    stores: Stores
    dataset: Dataset
    now: datetime = NOW

    def insert_day(self, day: datetime, symbols: int = 3, minutes: int = 20, source: str = "test") -> int:
        """Insert bars as an application would: into the hot table, whatever tier the day is in."""
        with self.stores.hot.transaction("insert", str(day)) as connection:
            return execute(
                connection,
                sql.SQL(
                    """INSERT INTO {} SELECT 'S' || s, 'US', '1m', %(day)s + m * interval '1 minute', 10 + s, 12 + s,
                              9 + s, 11 + s + m * 0.00000001, 100 * m, 1000.25 * m, %(source)s
                       FROM generate_series(1, %(symbols)s) s, generate_series(0, %(minutes)s - 1) m
                       ON CONFLICT DO NOTHING"""
                ).format(identifier(tables.hot_parent(self.dataset.name))),
                {"day": day, "symbols": symbols, "minutes": minutes, "source": source},
            )

    def begin(self, *transitions: Transition, at: datetime | None = None) -> list[int]:
        """Plan at an instant and record the due moves of the given transitions."""
        now = at or self.now
        install.prepare_units(self.stores, self.dataset, now)
        plan = lifecycle.plan_dataset(self.stores, self.dataset, now, transitions or None)
        return lifecycle.begin_moves(self.stores, plan)

    def run(self, *transitions: Transition, at: datetime | None = None) -> list[Receipt]:
        """Carry every due move of the given transitions through."""
        ids = self.begin(*transitions, at=at)
        return [lifecycle.run_move(self.stores, move_id, at or self.now, "test") for move_id in ids]

    def rows(self) -> list[tuple[object, ...]]:
        """Read every row of the dataset from every tier, sorted; a row in two places shows twice."""
        found = []
        for database in {id(d): d for d in (self.stores.hot, self.stores.warm)}.values():
            with database.transaction("read", "all") as connection:
                found += fetch(connection, f"SELECT * FROM live.{self.dataset.name}")
        found += self.cold_rows()
        return sorted(found, key=lambda row: tuple(map(str, row)))

    def cold_rows(self) -> list[tuple[object, ...]]:
        """Read every row of the lake, through the ledger's own list of files."""
        columns = install.install_dataset(self.stores, self.dataset)
        found = []
        for record in self.stores.ledger.units(self.dataset.name):
            if record.tier == "cold":
                with fetched(self.stores, record) as file:
                    for batch in parquet.read_parquet_batches(file, columns_in(file, columns)):
                        found += [tuple(row.get(c.name) for c in columns) for row in batch.to_pylist()]
        return found


@contextmanager
def open_world(settings: Settings, dataset: str = "market_bars") -> Iterator[World]:
    """Open stores on empty databases and install one dataset."""
    policies = parse_policies(POLICIES.read_text(), str(POLICIES))
    with open_stores(settings, policies) as stores:
        install.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
        with stores.hot.transaction("create", "tables") as connection:
            execute(connection, infra.sql.read_tables())
        found = lifecycle.dataset_named(stores, dataset)
        install.install_dataset(stores, found)
        yield World(stores, found)


def days_ago(days: int) -> datetime:
    """The midnight that many days before the world's now."""
    return NOW.replace(hour=0) - timedelta(days=days)
