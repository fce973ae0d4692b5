"""A backup bucket with every kind of object in it, from real servers, and the steps by which a restore reads each.

A step is the code that a restore of that object runs: nothing here looks for damage by itself. What a step reads is
found by watching it, so that no flip is aimed where nobody reads.
"""

from __future__ import annotations

import random
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pydantic import SecretStr
from pymongo import MongoClient
from redis import RedisCluster

from infra.local import Stack
from infra.local.s3 import REGION
from infra.local.scratch_postgres import LocalScratchPostgres
from tests.faults.mongo_pitr import Archiver
from tests.ops.postgres_world import MEMORY, SOURCE, PgWorld
from tests.ops.world import World as LakeWorld
from tests.ops.world import days_ago
from tests.ops.world import open_world as open_lake_world
from tests.wait import wait_until
from tiering.errors import CorruptCopy
from tiering.model import Transition
from tiering.model_backup import Backup, BackupKind, BackupState, StoreName
from tiering.ops import (
    backup_files,
    backup_lake,
    backup_mongo,
    backup_redis,
    evidence,
    expect,
    restore_files,
    restore_lake,
    restore_mongo,
    restore_postgres,
    restore_redis,
)
from tiering.ops.backup_files import Sources
from tiering.ops.catalogue import Catalogue
from tiering.ops.wal import SLOT
from tiering.ops.wal_archive import LogArchive
from tiering.plan.recovery import at
from tiering.stores import lake_walk
from tiering.stores.objects import S3Objects
from tiering.stores.pg_wal import WalServer
from tiering.stores.redis_wire import Slots
from tiering.stores.vault import Keyring, Vault

KEY = SecretStr(b64encode(bytes(range(32))).decode())
SIGNER = evidence.Signer.of(bytes(range(32)))
RECORDS = "catalogue: "
KEYS, DOCUMENTS, FILES = 300, 400, 12


@dataclass(frozen=True)
class Noting(S3Objects):
    """A bucket that notes which objects were opened."""

    opened: set[str] = field(default_factory=set, compare=False)

    def open(self, key: str) -> BinaryIO:
        self.opened.add(key)
        return super().open(key)


@dataclass(frozen=True)
class Step:
    """What a restore does with some objects.

    Attributes:
        name: in words.
        run: raises where a restore would end with an error.
        reads: the names of what it opens.
        seconds: that it takes where all is well.
    """

    name: str
    run: Callable[[], object]
    reads: frozenset[str] = frozenset()
    seconds: float = 0.0

    def judges(self, name: str) -> bool:
        """Say whether a spoiled object has to end it.

        Not the record of another backup: steps read records of every backup, and do without a spoiled one, rightly.
        """
        if name not in self.reads:
            return False
        _, place, backup_id = self.name.rpartition(RECORDS)
        return not name.startswith("catalogue/") or (bool(place) and f"/{backup_id}/" in name)


@dataclass
class RotWorld:
    """Servers, and a bucket with backups of all of them."""

    stack: Stack
    objects: Noting
    pg: PgWorld
    backups: list[Backup] = field(default_factory=list)
    taken_at: datetime = datetime.min
    lake: LakeWorld | None = None

    @property
    def vault(self) -> Vault:
        """The vault of the bucket."""
        return Vault(self.objects, Keyring(KEY))

    def catalogue(self) -> Catalogue:
        """Open the catalogue anew: nothing read before is remembered."""
        return Catalogue(self.vault)

    def names(self) -> list[str]:
        """List the bucket."""
        return [stat.key for stat in self.objects.list()]

    def steps(self) -> list[Step]:
        """Return the steps of restoring everything, each with what it reads; each is known to end well."""
        steps = [Step(f"{RECORDS}{one.backup_id}", partial(self._record, one)) for one in self.backups]
        steps += [Step(f"checks in the {RECORDS}{one.backup_id}", partial(self._checks, one)) for one in self.backups]
        steps += [Step(f"{one.store} {one.backup_id}", self._reads_of(one)) for one in self.backups]
        steps += [Step(f"log of timeline {number}", partial(self._log, number)) for number in self._timelines()]
        steps.append(Step("expected", lambda: expect.around_moment(self.vault, self.taken_at)))
        steps.append(Step("evidence", lambda: evidence.history(self.vault, [SIGNER.public])))
        return [self.watched(step) for step in steps]

    def watched(self, step: Step) -> Step:
        """Run a step and note what it reads."""
        self.objects.opened.clear()
        began = time.monotonic()
        step.run()
        return replace(step, reads=frozenset(self.objects.opened), seconds=time.monotonic() - began)

    def _checks(self, backup: Backup) -> None:
        assert self.catalogue().checks(backup)

    def _record(self, backup: Backup) -> None:
        catalogue = self.catalogue()
        entries = catalogue.entries(backup.store, backup.source)
        entry = next(one for one in entries if one.backup.backup_id == backup.backup_id)
        if entry.problem:
            raise CorruptCopy("read", backup.backup_id, entry.problem)
        catalogue.entry(backup.backup_id)

    def _timelines(self) -> list[int]:
        logs = self.catalogue().logs(StoreName.POSTGRESQL, SOURCE)
        return sorted({one.timeline for one in logs})

    def _log(self, timeline: int) -> None:
        catalogue = self.catalogue()
        logs = [one for one in catalogue.logs(StoreName.POSTGRESQL, SOURCE) if one.timeline == timeline]
        newest = restore_postgres.newest_of(catalogue, SOURCE)
        size = int(str(newest.facts["wal_segment_bytes"]))
        archive = LogArchive(catalogue, SOURCE, newest.incarnation, size, timeline)
        for begins in sorted({at(one.begins) // size * size for one in logs}):
            archive.segment(begins)
        assert archive.histories is not None

    def _postgres(self, backup: Backup) -> None:
        restore_postgres.verify_backup(self.catalogue(), backup)

    def _mongo(self, backup: Backup) -> None:
        restore_mongo.prepare(self.catalogue(), restore_mongo.Target(), backup.source, backup.backup_id)

    def _redis(self, backup: Backup) -> None:
        with suppress(Started), restore_redis.load(self.catalogue(), backup, _started, MEMORY):
            raise AssertionError("unreachable")

    def _files(self, backup: Backup) -> None:
        with tempfile.TemporaryDirectory(dir=MEMORY) as home:
            restore_files.restore(self.vault, backup, Path(home) / "restored", outside_links=True)
            restore_files.check(backup, Path(home) / "restored")

    def _lake(self, backup: Backup) -> None:
        table, versions = backup_lake.inventory(self.vault, backup)
        for version in versions:
            if version.sha256:
                restore_lake.bytes_of(self.vault, table, version)

    def _reads_of(self, backup: Backup) -> Callable[[], None]:
        readers = {
            StoreName.POSTGRESQL: self._postgres,
            StoreName.MONGODB: self._mongo,
            StoreName.REDIS: self._redis,
            StoreName.LAKE: self._lake,
        }
        return partial(readers.get(backup.store, self._files), backup)


class Started(Exception):
    """A server would be started now: everything was read and found right."""


@contextmanager
def _started(files: Sequence[Path], slots: Sequence[Slots]) -> Iterator[Sequence[SecretStr]]:
    raise Started
    yield ()


@contextmanager
def open_rot_world(
    stack: Stack, directory: Path, seed: int, *, redis: SecretStr | None = None, is_small: bool = False
) -> Iterator[RotWorld]:
    """Fill servers, and back all of them up.

    Args:
        stack: PostgreSQL, MongoDB and S3.
        directory: for files.
        seed: of what is in them.
        redis: a cluster's URL; that of the stack if not given.
        is_small: leave out what takes long: the lake, an increment, a lost server with another timeline after it.
    """
    name = f"rot-{random.Random(seed).randbytes(4).hex()}"
    stack.s3.client().create_bucket(Bucket=name)  # without versions: altered bytes replace the others
    access, secret = (SecretStr(word) for word in stack.s3.credentials)
    objects = Noting(stack.s3.url, name, access, secret, REGION)
    catalogue = Catalogue(Vault(objects, Keyring(KEY)))
    world = RotWorld(stack, objects, PgWorld(stack, catalogue, LocalScratchPostgres(MEMORY)))
    choice = random.Random(seed)
    with ExitStack() as until_end:
        until_end.callback(_clean_postgres, world)
        _fill_postgres(world, is_small=is_small)
        _fill_mongo(world, SecretStr(stack.mongo.url("admin")))
        _fill_redis(world, redis or SecretStr(stack.redis.url), choice)
        _fill_files(world, directory, choice)
        if not is_small:
            world.lake = until_end.enter_context(open_lake_world(stack.settings()))
            _fill_lake(world, world.lake)
        _fill_records(world)
        yield world


def _fill_postgres(world: RotWorld, *, is_small: bool) -> None:
    pg = world.pg
    pg.execute("CREATE TABLE journal (id bigint PRIMARY KEY, made timestamptz DEFAULT clock_timestamp())")
    with pg.streaming() as receiver:
        world.backups.append(pg.backup())
        pg.insert(0, 20)
        pg.await_stored(receiver)
    if is_small:
        return
    pg.lose()
    pg.come_back()
    with pg.streaming() as receiver:
        pg.insert(100, 20)
        world.backups.append(pg.backup())
        pg.insert(200, 20)
        world.backups.append(pg.backup(BackupKind.INCREMENTAL))
        pg.insert(300, 20)
        pg.await_stored(receiver)


def _clean_postgres(world: RotWorld) -> None:
    WalServer(world.pg.url).drop_slot(SLOT)
    world.pg.execute("DROP TABLE journal")


def _fill_mongo(world: RotWorld, url: SecretStr) -> None:
    catalogue = world.catalogue()
    with Archiver(catalogue, url) as archiver, MongoClient[dict[str, object]](url.get_secret_value()) as client:
        posts = client["rot"]["posts"]
        posts.insert_many({"_id": number, "text": f"post {number}" * 20} for number in range(DOCUMENTS))
        wait_until(lambda: archiver.told, what="the archiver has begun")
        world.backups.append(backup_mongo.backup(catalogue, url, SOURCE, datetime.now(UTC)))
        for number in range(3):
            seen = len(archiver.told)
            posts.insert_many({"_id": DOCUMENTS * (number + 1) + n} for n in range(DOCUMENTS))
            wait_until(lambda: len(archiver.told) > seen, what="more is archived")  # noqa: B023
        client.drop_database("rot")


def _fill_redis(world: RotWorld, url: SecretStr, choice: random.Random) -> None:
    client = RedisCluster.from_url(url.get_secret_value())
    for number in range(KEYS):
        client.set(f"rot:{number}", choice.randbytes(choice.randrange(500)))
    catalogue = world.catalogue()
    world.backups.append(backup_redis.backup(catalogue, url, SOURCE, datetime.now(UTC)))
    world.backups.append(backup_redis.backup_aof(catalogue, url, SOURCE, datetime.now(UTC)))
    for number in range(KEYS):
        client.delete(f"rot:{number}")


def _fill_files(world: RotWorld, directory: Path, choice: random.Random) -> None:
    tree = directory / "charts"
    tree.mkdir()
    for number in range(FILES):
        (tree / f"{number}.png").write_bytes(choice.randbytes(choice.randrange(200_000)))
    texts = {"policies.yaml": b"policies: {}\n" * 50, "server.conf": b"port = 5432\n"}
    for store, sources in (
        (StoreName.APPLICATION_DATA, Sources({"charts": tree})),
        (StoreName.CONFIGURATION, Sources(texts=texts)),
    ):
        backup = backup_files.backup(world.catalogue(), store, sources, datetime.now(UTC))
        assert backup is not None
        world.backups.append(backup)


def _fill_lake(world: RotWorld, lake: LakeWorld) -> None:
    for day in (1, 2200, 2201):
        lake.insert_day(days_ago(day))
    lake.run(Transition.HOT_TO_WARM)
    assert lake.run(Transition.WARM_TO_COLD)
    stores = lake.stores
    buckets = {"lake": stores.objects, "files": stores.files}
    names = {"lake": stores.objects.bucket, "files": stores.files.bucket}
    pointed = partial(lake_walk.pointers, stores.warm)
    found = backup_lake.backup(world.catalogue(), buckets, pointed, datetime.now(UTC), names=names)
    world.backups.append(found)


def _fill_records(world: RotWorld) -> None:
    """Write checks of every backup, evidence of two drills, and what the primary looked like."""
    catalogue, vault = world.catalogue(), world.vault
    for backup in world.backups:
        for state in (BackupState.VERIFIED, BackupState.FAILED, BackupState.PROVEN):
            catalogue.mark(backup, state, datetime.now(UTC), {"bytes": backup.size_bytes}, "of the past")
    world.taken_at = datetime.now(UTC)
    expect.keep(vault, expect.Expected(world.taken_at, {"hot_pg": "trading"}, {"postgresql/trading": {"table a": "b"}}))
    for number in range(2):
        evidence.keep(vault, SIGNER, f"drill-{number}", {"passed": True, "rto_s": 41.2}, None)
