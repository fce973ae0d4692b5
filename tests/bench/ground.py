"""What the measurements stand on: a private stack, databases with a known number of bars, and children to run in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from psycopg2 import sql
from pydantic import SecretStr

import infra.sql
from infra.local import Stack
from tests.bench import bars
from tests.bench.world import DATASET, NOW, PROJECT, YEAR, begin, carry_out, opened
from tiering.model import Dataset, Transition, Unit
from tiering.ops import install
from tiering.plan.spans import unit_of
from tiering.settings import Settings
from tiering.stores.opening import Stores
from tiering.stores.postgres import execute, identifier

BIG = "bench_big"
"""The database with all the bench's rows in one warm unit."""

OLD = bars.day("2020-01-02")
"""Old enough to be due for the lake, young enough to be kept."""


@dataclass(frozen=True)
class Ground:
    """Where to measure and how much.

    Attributes:
        stack: PostgreSQL and S3, of this run alone.
        directory: for files; on the same disk as the stack.
        rows: bars in the big unit.
        repeats: pairs that count, after one that warms up.
        say: told what is being done.
    """

    stack: Stack
    directory: Path
    rows: int
    seed: int
    repeats: int
    say: Callable[[str], None]
    _warm: dict[str, str] = field(default_factory=dict)

    def place(self, name: str) -> Settings:
        """The settings of a database, and of a bucket of the same name."""
        url = SecretStr(self.stack.postgres.url(name))
        bucket = f"{name.replace('_', '-')}-lake"
        return self.stack.settings().model_copy(
            update={"hot_pg_url": url, "warm_pg_url": url, "lake_bucket": bucket, "scratch_dir": self.directory}
        )

    def create(self, name: str, template: str | None = None) -> Settings:
        """Make a database (empty, or a file copy of another) and an empty bucket."""
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template:
            statement += sql.SQL(" TEMPLATE {} STRATEGY file_copy").format(sql.Identifier(template))
        self.admin(statement)
        settings = self.place(name)
        self.stack.s3.client().create_bucket(Bucket=settings.lake_bucket)
        return settings

    def drop(self, name: str) -> None:
        """Remove a database and its bucket with everything in it."""
        self.admin(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        self.stack.s3.client().delete_bucket(Bucket=self.place(name).lake_bucket)

    def admin(self, statement: str | sql.Composable, database: str = "postgres") -> None:
        """Run one statement outside any transaction."""
        with self.stack.postgres.connect(database) as connection, connection.cursor() as cursor:
            cursor.execute(statement)

    def settle(self) -> None:
        """Write out what earlier work left dirty, so that the next measurement does not pay for it."""
        self.admin("CHECKPOINT")

    def big(self) -> str:
        """Make BIG, once; return the unit's table."""
        return self.warm_database(BIG, self.rows)

    def warm_database(self, name: str, rows: int) -> str:
        """Make a database with one warm unit of that many bars, once; return the unit's table."""
        if name in self._warm:
            return self._warm[name]
        began = time.monotonic()
        settings = self.create(name)
        with opened(settings, YEAR) as (stores, dataset):
            lay_out(stores, dataset)
            unit = Unit(DATASET, *unit_of(OLD, YEAR))
            fill(stores, dataset, unit, bars.sessions(OLD, rows, self.seed))
            carry_out(stores, begin(stores, dataset, Transition.HOT_TO_WARM))
            (table,) = [record.location for record in stores.ledger.units(DATASET)]
        # Hint bits and the visibility map are written once, here, and not by whoever reads first.
        self.admin(sql.SQL("VACUUM (ANALYZE, FREEZE) {}").format(identifier(table)), name)
        self.settle()
        self._warm[name] = table
        self.say(f"{rows:,} bars in one warm unit after {time.monotonic() - began:.0f} s")
        return table

    def child(self, job: str, **arguments: Any) -> dict[str, Any]:
        """Run one job of `child.py` in a process of its own; return what it measured, and the process's seconds."""
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.child", job],
            # Connection strings hold passwords: they go by stdin, which nobody else can read.
            input=json.dumps(arguments),
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            env={**os.environ, "GX_ANALYTICS_ENABLED": "false"},
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"bench child {job} ended with {done.returncode}; its error is above")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found | {"process_seconds": time.monotonic() - began}


def as_values(settings: Settings) -> dict[str, str]:
    """Write settings as plain values for a child's stdin."""
    values = settings.model_dump(exclude_none=True)
    return {k: v.get_secret_value() if isinstance(v, SecretStr) else str(v) for k, v in values.items()}


def libpq_environment(url: str) -> dict[str, str]:
    """Write a URL as the variables that psql and every other libpq reads."""
    parts = urlsplit(url)
    return {
        "PGHOST": parts.hostname or "",
        "PGPORT": str(parts.port),
        "PGUSER": parts.username or "",
        "PGPASSWORD": parts.password or "",
        "PGDATABASE": parts.path.lstrip("/"),
    }


def lay_out(stores: Stores, dataset: Dataset) -> None:
    """Create the tables, and bars of today."""
    install.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
    with stores.hot.transaction("create", "tables") as connection:
        execute(connection, infra.sql.read("market_data"))
    install.install_dataset(stores, dataset)
    reach(stores, dataset, NOW)


def reach(stores: Stores, dataset: Dataset, now: datetime) -> None:
    """Load one minute of now: ages count from the newest row."""
    install.prepare_units(stores, dataset, now)
    with stores.hot.transaction("load", "today") as connection:
        bars.load(connection, f"hot.{DATASET}", bars.Walk(0).chunk(now, 1))


def fill(stores: Stores, dataset: Dataset, unit: Unit, chunks: Iterable[Any]) -> int:
    """Create a unit's hot partition and load it."""
    install.create_units(stores, dataset, [(unit.begin, unit.end)])
    with stores.hot.transaction("load", str(unit)) as connection:
        return sum(bars.load(connection, f"hot.{DATASET}", chunk) for chunk in chunks)
