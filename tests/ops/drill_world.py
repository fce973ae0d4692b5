"""A platform in small for drills: every store with data, a heartbeat, logs being archived, backups in the bucket."""

from __future__ import annotations

import base64
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import SecretStr

import infra.sql
from infra.local import Stack
from infra.local.binaries import find_postgres_bin
from tests.ops.world import World
from tests.wait import wait_until
from tiering import cli_backup_kit, cli_kit
from tiering.model import Form, Transition
from tiering.model_backup import BackupKind, StoreName
from tiering.ops import backup_mongo, backup_postgres, backup_redis, expect, install, oplog, seed
from tiering.ops.catalogue import Catalogue
from tiering.ops.drill_run import Kit
from tiering.ops.heartbeat import Heart, ledgers_of
from tiering.ops.wal import Receiver
from tiering.plan.policies import parse_policies
from tiering.settings import RecoverySettings, Settings
from tiering.stores.opening import Stores, open_stores
from tiering.stores.pg_tools import PgTools
from tiering.stores.postgres import execute

POLICIES = Path(__file__).parents[2] / "deployments" / "policies.yaml"
KEY = base64.b64encode(bytes(range(32))).decode()
DATASETS = ("market_bars", "news", "social_sentiment", "analysis_sessions", "analysis_results", "research_reports")
SMALL = seed.Scale(symbols=3, days=2, seed=7)


@dataclass
class DrillWorld:
    """Everything that a drill's test needs of the primary, and how to open the kit without it."""

    stack: Stack
    settings: Settings
    stores: Stores
    heart: Heart
    recovery: RecoverySettings
    catalogue: Catalogue
    problems: list[str] = field(default_factory=list)

    def kit(self) -> Kit:
        """Open the kit from bucket and key alone."""
        return self.kit_of(self.recovery)

    def kit_of(self, settings: RecoverySettings) -> Kit:
        """Open the kit of another bucket."""
        return cli_kit.kit_of(settings)

    def describe(self) -> None:
        """Keep in the vault what the primary looks like."""
        site = cli_kit.site_of(self.settings, POLICIES.read_text(encoding="utf-8"))
        expect.keep(self.catalogue.vault, expect.take(self.stores, site, _now()))

    def back_up(self) -> None:
        """Take a full backup of every store."""
        assert self.settings.hot_mongo_url is not None
        backup_mongo.backup(self.catalogue, self.settings.hot_mongo_url, "main", _now())
        tools = PgTools(find_postgres_bin())
        backup_postgres.backup(self.catalogue, self.settings.hot_pg_url, "main", BackupKind.FULL, _now(), tools)
        self.back_up_redis(self.catalogue)
        for store in (StoreName.LAKE, StoreName.APPLICATION_DATA, StoreName.CONFIGURATION):
            cli_backup_kit.take(self.settings, self.catalogue, store, BackupKind.FULL, "main", _now())

    def back_up_redis(self, catalogue: Catalogue) -> None:
        """Take a set of snapshots."""
        backup_redis.backup(catalogue, SecretStr(self.stack.redis.url), "main", _now())

    def beat_on(self, count: int = 3) -> None:
        """Wait until every store has so many heartbeats more."""
        assert self.heart.last is not None
        due = self.heart.last.seq + count
        wait_until(lambda: all(lane.acknowledged and lane.acknowledged.seq >= due for lane in self.heart.lanes[:-1]))


@contextmanager
def open_drill_world(stack: Stack, scale: seed.Scale = SMALL) -> Iterator[DrillWorld]:
    """Install, seed, and let heartbeat and archivers run while the body does."""
    files = stack.directory / "application"
    _write_files(files)
    settings = stack.settings().model_copy(update={"backup_key": SecretStr(KEY), "app_data_dir": files})
    keys = ("s3_url", "s3_access_key", "s3_secret_key", "s3_region", "backup_bucket", "backup_key")
    recovery = RecoverySettings(_env_file=None, **{key: getattr(settings, key) for key in keys})  # type: ignore[call-arg]
    policies = parse_policies(POLICIES.read_text(encoding="utf-8"), str(POLICIES))
    with ExitStack() as open_until_end:
        stores = open_until_end.enter_context(open_stores(settings, policies))
        _fill(stores, scale)
        heart = open_until_end.enter_context(Heart(ledgers_of(stores), new_chain=True))
        world = DrillWorld(stack, settings, stores, heart, recovery, Catalogue(cli_kit.vault_of(recovery)))
        open_until_end.enter_context(_archiving(world))
        world.describe()
        world.back_up()
        yield world


def _fill(stores: Stores, scale: seed.Scale) -> None:
    now = _now()
    install.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
    with stores.hot.transaction("install", "application tables") as connection:
        execute(connection, infra.sql.read_tables())
    for name in DATASETS:
        dataset = stores.policies.dataset(name)
        assert dataset is not None
        if dataset.form is Form.TABLE:
            install.install_dataset(stores, dataset)
        seed.seed_dataset(stores, name, now, scale)
    from tiering.ops import seed_users

    seed_users.load_state(stores, now, 20, 7)
    _archive_a_day(stores, now)


def _archive_a_day(stores: Stores, now: datetime) -> None:
    """Bring one old day of bars through to the lake, so that there is an archive to lose."""
    dataset = stores.policies.dataset("market_bars")
    assert dataset is not None
    world = World(stores, dataset, now)
    world.insert_day(now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=2200))
    world.run(Transition.HOT_TO_WARM)
    assert world.run(Transition.WARM_TO_COLD)


def _write_files(directory: Path) -> None:
    """Write what an application keeps beside its databases."""
    for number in range(20):
        file = directory / f"models/{number % 3}/weights-{number}.bin"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(random.Random(number).randbytes(10_000 + number))


@contextmanager
def _archiving(world: DrillWorld) -> Iterator[None]:
    """Archive the logs of every store that keeps one."""
    stop = threading.Event()
    assert world.settings.hot_mongo_url is not None
    url = world.settings.hot_mongo_url

    def archive_mongo() -> None:
        oplog.stream(
            world.catalogue,
            url,
            "main",
            clock=_now,
            stop=stop,
            on_gap=lambda gap: world.problems.append(str(gap)),
            on_trouble=lambda exc: world.problems.append(str(exc)),
        )

    receiver = Receiver(world.catalogue, world.settings.hot_pg_url, "main", tell=world.problems.append)
    threads = [threading.Thread(target=archive_mongo, daemon=True)]
    threads.append(threading.Thread(target=receiver.run, args=(stop,), daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=30)


def _now() -> datetime:
    return datetime.now(UTC)
