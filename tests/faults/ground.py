"""One round's ground: fresh databases and buckets, units of three ages, a journal, and late writers at work."""

from __future__ import annotations

import json
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from psycopg2 import sql
from psycopg2.extras import execute_values
from pydantic import SecretStr

import infra.sql
from infra.local import Stack
from tests.faults.journal import INSERT, Journal, Key, bar
from tests.faults.mover import DATASET, NOW
from tiering.model import Dataset, Policies
from tiering.ops import install, lifecycle
from tiering.plan.policies import parse_policies
from tiering.settings import Settings
from tiering.stores.opening import Stores, open_stores
from tiering.stores.postgres import execute

MIDNIGHT = NOW.replace(hour=0)
POLICIES = Path(__file__).parents[2] / "deployments" / "policies.yaml"
MINUTES = 3
WRITERS = 2
WRITES_PER_SECOND = 12.0


@dataclass
class Ground:
    """Everything a round needs. `stores` are the parent's own, for looking; movers open theirs.

    Attributes:
        settings: what movers are given.
        young, old, ancient: the units' days: due for warm, for cold, and past retention.
    """

    stack: Stack
    settings: Settings
    policies: Policies
    stores: Stores
    dataset: Dataset
    young: list[datetime]
    old: list[datetime]
    ancient: list[datetime]
    journal: Journal
    directory: Path
    seeded: dict[datetime, int] = field(default_factory=dict)
    version: int = 0
    writers: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.directory / "movers.log"

    def insert(self, keys: list[Key]) -> None:
        """Write bars as the parent's own application; acknowledged when this returns."""
        rows = []
        for key in keys:
            self.version += 10
            self.journal.note_tried(key, self.version)
            rows.append((key, self.version))
        with self.stores.hot.transaction("insert", "bars") as connection, connection.cursor() as cursor:
            execute_values(cursor, INSERT.format("%s"), [bar(*row) for row in rows])
        for row in rows:
            self.journal.note_acknowledged(*row)

    def insert_late(self, dice: random.Random) -> None:
        """Write a bar of the parent's own symbol into a day that mostly has left the hot tier."""
        day = dice.choice(self.young + self.old)
        self.insert([("P0", epoch(day) + 60 * dice.randrange(MINUTES))])


def epoch(day: datetime) -> int:
    return int(day.timestamp())


@contextmanager
def open_ground(
    stack: Stack, directory: Path, seed: int, *, two_databases: bool, young: int, old: int, ancient: int
) -> Iterator[Ground]:
    """Make fresh databases and buckets, seed the units, start the writers; stop and drop all of it at the end."""
    name = f"f{seed}_{secrets.token_hex(3)}"
    names = [f"{name}_hot", f"{name}_warm"] if two_databases else [name]
    bucket = f"{name.replace('_', '-')}-lake"
    settings = _create(stack, names, bucket)
    policies = parse_policies(POLICIES.read_text(), str(POLICIES))
    # By another name of the same host: the library shares one client per address, and forked movers must not
    # share the parent's open connections.
    own = settings.model_copy(update={"s3_url": settings.s3_url.replace("127.0.0.1", "localhost")})
    with open_stores(own, policies) as stores:
        install.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
        with stores.hot.transaction("create", "tables") as connection:
            execute(connection, infra.sql.read("market_data"))
        dataset = lifecycle.dataset_named(stores, DATASET)
        install.install_dataset(stores, dataset)
        days = [[MIDNIGHT - timedelta(days=first + i) for i in range(n)] for first, n in _groups(young, old, ancient)]
        ground = Ground(stack, settings, policies, stores, dataset, *days, Journal(), directory)
        _seed(ground)
        _start_writers(ground, name, seed)
        try:
            yield ground
        finally:
            stop_writers(ground.writers)
    _drop(stack, names, bucket)


def _groups(young: int, old: int, ancient: int) -> list[tuple[int, int]]:
    return [(10, young), (800, old), (3700, ancient)]


def _create(stack: Stack, names: list[str], bucket: str) -> Settings:
    with stack.postgres.connect("postgres") as connection, connection.cursor() as cursor:
        for name in names:
            cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    stack.s3.client().create_bucket(Bucket=bucket)
    urls = {"hot_pg_url": stack.postgres.url(names[0]), "warm_pg_url": stack.postgres.url(names[-1])}
    changed = {key: SecretStr(url) for key, url in urls.items()}
    return stack.settings().model_copy(update=changed | {"lake_bucket": bucket, "scratch_dir": None})


def _drop(stack: Stack, names: list[str], bucket: str) -> None:
    with stack.postgres.connect("postgres") as connection, connection.cursor() as cursor:
        for name in names:
            cursor.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
    stack.s3.client().delete_bucket(Bucket=bucket)


def _seed(ground: Ground) -> None:
    install.prepare_units(ground.stores, ground.dataset, NOW)
    for day in [MIDNIGHT, *ground.young, *ground.old, *ground.ancient]:
        keys = [(f"S{writer}", epoch(day) + 60 * m) for writer in range(1, WRITERS + 1) for m in range(MINUTES)]
        ground.insert(keys)
        ground.seeded[day] = len(keys)
    install.prepare_units(ground.stores, ground.dataset, NOW)


def _start_writers(ground: Ground, name: str, seed: int) -> None:
    for number in range(1, WRITERS + 1):
        log = ground.directory / f"{name}.{number}.log"
        log.touch()
        Path(f"{log}.errors").touch()
        ground.journal.files.append(log)
        orders = {
            "url": ground.settings.hot_pg_url.get_secret_value(),
            "days": [epoch(day) for day in ground.young + ground.old],
            "minutes": MINUTES,
            # The parent's versions end in 0, and all of its corrections are of keys of its own; a writer's
            # begin above the seeded ones, so that newer is always greater.
            "number": ground.version + number,
            "name": number,
            "seed": seed * 10 + number,
            "per_second": WRITES_PER_SECOND,
            "log": str(log),
        }
        writer = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.writer"],
            stdin=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        assert writer.stdin is not None
        writer.stdin.write(json.dumps(orders))
        writer.stdin.close()
        ground.writers.append(writer)


def stop_writers(writers: list[subprocess.Popen[str]]) -> None:
    """End the writers between two bars."""
    for writer in writers:
        if writer.poll() is None:
            writer.send_signal(signal.SIGTERM)
    for writer in writers:
        writer.wait(30)
