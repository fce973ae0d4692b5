"""Grounds of tables in PostgreSQL: units of three ages, a journal, and late writers at work."""

from __future__ import annotations

import functools
import json
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError
from psycopg2 import sql
from psycopg2.extras import execute_values
from pydantic import SecretStr

import infra.sql
from infra.local import Stack
from tests.faults import mover, outages
from tests.faults.journal import Journal, Key
from tests.faults.mover import FINISH, NOW, SWEEP, Job
from tests.faults.ports import GroundKind, Send
from tests.faults.shapes import ACTIVITY, AUDIT, BARS, Shape
from tests.faults.verdict import Verdict
from tiering.model import Dataset, Policies, Tier, Transition
from tiering.ops import install, lifecycle
from tiering.plan.policies import parse_policies
from tiering.settings import Settings
from tiering.stores.opening import Stores, open_stores
from tiering.stores.postgres import execute

if TYPE_CHECKING:
    from tests.faults.invariants import Inspector

MIDNIGHT = NOW.replace(hour=0)
POLICIES = Path(__file__).parents[2] / "deployments" / "policies.yaml"
MINUTES = 3
WRITERS = 2
WRITES_PER_SECOND = 12.0
SPARE_UNITS = 4
WORKS = {
    Transition.HOT_TO_WARM: 22,
    Transition.MERGE: 24,
    Transition.COMPRESS: 14,
    Transition.WARM_TO_COLD: 20,
    Transition.EXPIRE: 12,
    SWEEP: 8,
    FINISH: 1,
}
WORKS_OF_ACTIVITY = {
    Transition.HOT_TO_WARM: 22,
    Transition.MERGE: 24,
    Transition.WARM_TO_COLD: 20,
    Transition.ARCHIVE: 14,
    Transition.EXPIRE: 12,
    SWEEP: 8,
    FINISH: 1,
}
WORKS_OF_AUDIT = {work: weight for work, weight in WORKS_OF_ACTIVITY.items() if work != Transition.ARCHIVE}
OF_THE_LAKE = ("s3.", "warm.catalog", "warm.COPY")
"""Calls that a merge or a sweep makes only of cold units."""
UNPREPARED_FROM = 400


@dataclass
class TableGround:
    """See `ports.Ground`. `stores` are the parent's own, for looking; movers open theirs.

    Attributes:
        young, old, ancient: the units' days: due for warm, for cold, and past retention.
        expiring: how many units are to expire, most of them from the lake.
        unprepared: how many days got rows that nobody had made a partition for.
    """

    stack: Stack
    settings: Settings
    policies: Policies
    stores: Stores
    dataset: Dataset
    shape: Shape
    young: list[datetime]
    old: list[datetime]
    ancient: list[datetime]
    journal: Journal
    directory: Path
    expiring: int = 0
    unprepared: int = 0
    seeded: dict[datetime, int] = field(default_factory=dict)
    version: int = 0
    writers: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.directory / "movers.log"

    @functools.cached_property
    def inspector(self) -> Inspector:
        from tests.faults.invariants import Inspector

        return Inspector(self)

    # -- what the campaign asks -----------------------------------------------------------------------------

    def primes(self, dice: random.Random) -> Iterator[Job]:
        """See `ports.Ground.primes`."""
        earlier = NOW - self.shape.earlier
        yield self.job(Transition.HOT_TO_WARM)
        # What expires is to expire from the lake, but for two units: the others went cold years before now.
        yield self.job(Transition.HOT_TO_WARM, earlier, moves_max=self.expiring)
        if self.shape.expires_cold:
            yield self.job(Transition.WARM_TO_COLD, earlier, moves_max=max(1, self.expiring - 2))
        yield self.job(Transition.HOT_TO_WARM, moves_max=SPARE_UNITS)
        if self.shape is BARS:
            yield self.job(Transition.COMPRESS)
        yield self._merge_of(Tier.WARM, dice)
        yield self.job(Transition.WARM_TO_COLD)
        yield self._merge_of(Tier.COLD, dice)
        if self.shape.storage:
            yield self.job(Transition.ARCHIVE)
        yield self.job(Transition.EXPIRE)
        yield self.job(SWEEP)
        yield self.job(FINISH)

    def provoke(self, work: str, call: str, dice: random.Random, send: Send) -> Job:
        """See `ports.Ground.provoke`."""
        tier = Tier.COLD if call.startswith(OF_THE_LAKE) else Tier.WARM
        if work == SWEEP and call:
            send(self._merge_of(tier, dice))
        job = self._merge_of(tier, dice) if work == Transition.MERGE else self.job(work)
        creates = work in (Transition.HOT_TO_WARM, Transition.COMPRESS)
        if call.endswith(" create") or (creates and call.endswith(" read unit of")):
            # A partition is made, by whatever run comes first, where rows came before it.
            self.unprepared += 1
            self.insert([("P0", epoch(MIDNIGHT - timedelta(days=UNPREPARED_FROM + self.unprepared)))])
        return job

    def look(self) -> Verdict:
        """See `ports.Ground.look`."""
        return self.inspector.look()

    def settle(self) -> Verdict:
        """See `ports.Ground.settle`."""
        stop_writers(self.writers)
        mover.settle_everything(self.stores, self.dataset, Job("", NOW, self.dataset.name, owner="settle"))
        return self.inspector.look_at_rest()

    def strike_outage(self, outage: str, job: Job, dice: random.Random) -> str:
        """See `ports.Ground.strike_outage`."""
        return outages.strike(outage, self, job, dice)

    def writers_errors(self) -> list[str]:
        """See `ports.Ground.writers_errors`."""
        return [line for log in self.journal.files for line in Path(f"{log}.errors").read_text().splitlines()]

    # -- means ----------------------------------------------------------------------------------------------

    def job(self, work: str, now: datetime | None = None, moves_max: int = 1) -> Job:
        """Sweeps run when the undo window of everything is over, so that they always have something to destroy."""
        at = now or (datetime.now(UTC) + timedelta(days=3) if work == SWEEP else NOW)
        return Job(str(work), at, self.dataset.name, moves_max=moves_max)

    def insert(self, keys: list[Key]) -> None:
        """Write rows as the parent's own application; acknowledged when this returns."""
        rows = []
        for key in keys:
            self.version += 10
            self.journal.note_tried(key, self.version)
            rows.append((key, self.version))
        with self.stores.hot.transaction("insert", "rows") as connection, connection.cursor() as cursor:
            execute_values(cursor, self.shape.insert.format("%s"), [self.shape.row(*row) for row in rows])
        for row in rows:
            self.journal.note_acknowledged(*row)

    def insert_late(self, dice: random.Random, days: list[datetime] | None = None) -> None:
        """Write a row of the parent's own symbol into a day that mostly has left the hot tier."""
        day = dice.choice(days or self.young + self.old)
        self.insert([("P0", epoch(day) + 60 * dice.randrange(MINUTES))])

    def _merge_of(self, tier: Tier, dice: random.Random) -> Job:
        """Write late rows of one tier's units, and of all its units if others have late rows too."""
        days = {*self.young, *self.old}
        units = [
            u.unit.begin for u in self.stores.ledger.units(self.dataset.name) if u.tier is tier and u.unit.begin in days
        ]
        self.insert_late(dice, units)
        return self.job(Transition.MERGE, moves_max=2)


def epoch(day: datetime) -> int:
    return int(day.timestamp())


@contextmanager
def open_ground(
    shape: Shape, two_databases: bool, stack: Stack, directory: Path, seed: int, kills: Mapping[str, int]
) -> Iterator[TableGround]:
    """Make fresh databases and buckets, seed the units, start the writers; stop and drop all of it at the end."""
    expiring = kills.get(Transition.EXPIRE, 0) + 2
    # A mover that is missed uses one up as well.
    old = (kills.get(Transition.WARM_TO_COLD, 0) + kills.get(Transition.ARCHIVE, 0)) * 3 // 2 + SPARE_UNITS
    ancient = expiring + 1
    young = max(SPARE_UNITS, kills.get(Transition.HOT_TO_WARM, 0) + kills.get(Transition.COMPRESS, 0) - old - ancient)
    name = f"f{seed}_{secrets.token_hex(3)}"
    names = [f"{name}_hot", f"{name}_warm"] if two_databases else [name]
    bucket = f"{name.replace('_', '-')}-lake"
    policies = parse_policies(POLICIES.read_text(), str(POLICIES))
    changed = [replace(d, storage=shape.storage) if d.name == shape.dataset else d for d in policies.datasets]
    policies = replace(policies, datasets=tuple(changed))
    is_locked = any(d.lock for d in changed if d.name == shape.dataset)
    settings = _create(stack, names, bucket, is_locked=is_locked, is_versioned=shape is not BARS)
    # By another name of the same host: the library shares one client per address, and forked movers must not
    # share the parent's open connections.
    own = settings.model_copy(update={"s3_url": settings.s3_url.replace("127.0.0.1", "localhost")})
    with open_stores(own, policies) as stores:
        install.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
        with stores.hot.transaction("create", "tables") as connection:
            execute(connection, infra.sql.read(shape.script))
        dataset = lifecycle.dataset_named(stores, shape.dataset)
        install.install_dataset(stores, dataset)
        days = [
            [MIDNIGHT - timedelta(days=first + i) for i in range(n)]
            for first, n in zip(shape.ages, (young, old, ancient), strict=True)
        ]
        ground = TableGround(stack, settings, policies, stores, dataset, shape, *days, Journal(), directory, expiring)
        _seed(ground)
        _start_writers(ground, name, seed)
        try:
            yield ground
        finally:
            stop_writers(ground.writers)
    _drop(stack, names, bucket)


def _create(stack: Stack, names: list[str], bucket: str, *, is_locked: bool, is_versioned: bool) -> Settings:
    with stack.postgres.connect("postgres") as connection, connection.cursor() as cursor:
        for name in names:
            cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    client = stack.s3.client()
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=is_locked)
    if is_versioned:
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    urls = {"hot_pg_url": stack.postgres.url(names[0]), "warm_pg_url": stack.postgres.url(names[-1])}
    changed = {key: SecretStr(url) for key, url in urls.items()}
    return stack.settings().model_copy(update=changed | {"lake_bucket": bucket, "scratch_dir": None})


def _drop(stack: Stack, names: list[str], bucket: str) -> None:
    with stack.postgres.connect("postgres") as connection, connection.cursor() as cursor:
        for name in names:
            cursor.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
    with suppress(ClientError):  # objects under lock keep their bucket, until the stack's directory goes
        stack.s3.client().delete_bucket(Bucket=bucket)


def _seed(ground: TableGround) -> None:
    install.prepare_units(ground.stores, ground.dataset, NOW)
    for day in [MIDNIGHT, *ground.young, *ground.old, *ground.ancient]:
        keys = [(f"S{writer}", epoch(day) + 60 * m) for writer in range(1, WRITERS + 1) for m in range(MINUTES)]
        ground.insert(keys)
        ground.seeded[day] = len(keys)
    install.prepare_units(ground.stores, ground.dataset, NOW)


def _start_writers(ground: TableGround, name: str, seed: int) -> None:
    for number in range(1, WRITERS + 1):
        log = ground.directory / f"{name}.{number}.log"
        log.touch()
        Path(f"{log}.errors").touch()
        ground.journal.files.append(log)
        orders = {
            "dataset": ground.dataset.name,
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
    """End the writers between two rows."""
    for writer in writers:
        if writer.poll() is None:
            writer.send_signal(signal.SIGTERM)
    for writer in writers:
        writer.wait(30)


def _kind(mode: str, works: dict[str, int], shape: Shape, *, two: bool, share: float = 1.0) -> GroundKind:
    return GroundKind(mode, works, outages.ALL, functools.partial(open_ground, shape, two), share)


MODES = (
    _kind("one database", WORKS, BARS, two=False),
    _kind("two databases", WORKS, BARS, two=True),
    _kind("user activity", WORKS_OF_ACTIVITY, ACTIVITY, two=True, share=0.2),
    _kind("audit log", WORKS_OF_AUDIT, AUDIT, two=False, share=0.2),
)
