"""What is backed up and restored under faults: one subject per kind of backup, on small servers with steady data.

A subject takes a backup into any bucket, restores it onto something of its own, and returns the contents: what came
back is right if it equals what the source has, and nothing else is.
"""

from __future__ import annotations

import io
import random
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg2
from pydantic import SecretStr
from pymongo import MongoClient
from redis import RedisCluster

from infra.local import Stack
from infra.local.scratch_postgres import LocalScratchPostgres
from infra.local.scratch_redis import scratch_redis
from infra.local.scratch_servers import scratch_mongo
from tests.faults.mongo_pitr import Archiver
from tests.ops.postgres_world import DATABASE, MEMORY, SOURCE, PgWorld
from tests.wait import wait_until
from tiering.model_backup import Backup, BackupKind, StoreName
from tiering.ops import (
    backup_files,
    backup_lake,
    backup_mongo,
    backup_postgres,
    backup_redis,
    restore_files,
    restore_lake,
    restore_mongo,
    restore_postgres,
    restore_redis,
)
from tiering.ops.backup_files import Sources
from tiering.ops.catalogue import Catalogue
from tiering.ops.prove_postgres import check_reached
from tiering.plan.recovery import Target, TargetKind
from tiering.stores.directory import DirectoryObjects
from tiering.stores.mongo_entries import Position
from tiering.stores.pg_tools import PgTools
from tiering.stores.vault import Keyring, Vault

ROWS = 50
Contents = dict[str, object]


@dataclass(frozen=True)
class Subject(ABC):
    """One kind of backup.

    Attributes:
        name: in words.
        url: of the server, or empty.
        place: a directory for its own files.
    """

    name: str
    url: SecretStr
    place: Path

    @abstractmethod
    def backup(self, catalogue: Catalogue, now: datetime) -> Backup:
        """Take a backup."""

    @abstractmethod
    def restore(self, catalogue: Catalogue, backup: Backup, near: Path | None = None) -> Contents:
        """Restore it, below `near` where that is given, start what runs on it, and read everything."""

    def needed(self, catalogue: Catalogue, backup: Backup) -> list[str]:
        """Name the objects without which it cannot be restored."""
        return [stored.name for stored in backup.objects]


@dataclass(frozen=True)
class PostgresSubject(Subject):
    """A full backup or an increment, restored to its own end."""

    programs: Path
    kind: BackupKind = BackupKind.FULL

    def backup(self, catalogue: Catalogue, now: datetime) -> Backup:
        return backup_postgres.backup(catalogue, self.url, SOURCE, self.kind, now, PgTools(self.programs))

    def restore(self, catalogue: Catalogue, backup: Backup, near: Path | None = None) -> Contents:
        timeline = int(str(backup.facts["timeline"]))
        target = Target(TargetKind.LSN, None, backup.ends, inclusive=False, timeline=timeline)
        return self.bring(catalogue, target, backup.backup_id, near)

    def bring(self, catalogue: Catalogue, target: Target, backup_id: str | None, near: Path | None) -> Contents:
        """Restore a moment and read the journal."""
        scratch = LocalScratchPostgres(near or MEMORY)
        with scratch.directory() as private:
            restored = restore_postgres.restore(
                catalogue, target, private / "data", SOURCE, PgTools(self.programs), backup_id=backup_id
            )
            with scratch.start(restored.directory, "tiering") as server:
                check_reached(restored, server)
                return rows_of(server.url(DATABASE))


@dataclass(frozen=True)
class PostgresLogSubject(PostgresSubject):
    """A full backup and the log behind it, restored to the end of that."""

    def restore(self, catalogue: Catalogue, backup: Backup, near: Path | None = None) -> Contents:
        return self.bring(catalogue, Target(TargetKind.LATEST), backup.backup_id, near)

    def needed(self, catalogue: Catalogue, backup: Backup) -> list[str]:
        # The last one is left out: a log that lost it ends earlier, as if it had never been written.
        logs = catalogue.logs(StoreName.POSTGRESQL, SOURCE)
        return [one.stored.name for one in logs if one.ends > backup.begins][:-1]


@dataclass(frozen=True)
class MongoSubject(Subject):
    """A full backup, restored to its own end."""

    into: SecretStr

    def backup(self, catalogue: Catalogue, now: datetime) -> Backup:
        return backup_mongo.backup(catalogue, self.url, SOURCE, now)

    def restore(self, catalogue: Catalogue, backup: Backup, near: Path | None = None) -> Contents:
        return self.bring(catalogue, backup.ends, backup)

    def bring(self, catalogue: Catalogue, target: str, backup: Backup) -> Contents:
        """Restore a moment into the scratch server and read it."""
        now = datetime.now(UTC)
        restore_mongo.restore(
            catalogue, target, self.into, now=now, source=SOURCE, is_approved=True, backup_id=backup.backup_id
        )
        return documents_of(self.into)


@dataclass(frozen=True)
class MongoLogSubject(MongoSubject):
    """A full backup and the archived oplog behind it, restored to the end of that."""

    def restore(self, catalogue: Catalogue, backup: Backup, near: Path | None = None) -> Contents:
        return self.bring(catalogue, restore_mongo.LATEST, backup)

    def needed(self, catalogue: Catalogue, backup: Backup) -> list[str]:
        logs = catalogue.logs(StoreName.MONGODB, SOURCE, backup.incarnation)
        later = [one for one in logs if Position.parse(one.ends) > Position.parse(backup.ends).following]
        return [one.stored.name for one in later][:-1]


@dataclass(frozen=True)
class RedisSubject(Subject):
    """Snapshots or append-only files of a cluster, loaded by servers of their own."""

    kind: BackupKind = BackupKind.FULL

    def backup(self, catalogue: Catalogue, now: datetime) -> Backup:
        take = backup_redis.backup if self.kind is BackupKind.FULL else backup_redis.backup_aof
        return take(catalogue, self.url, SOURCE, now)

    def restore(self, catalogue: Catalogue, backup: Backup, near: Path | None = None) -> Contents:
        with restore_redis.load(catalogue, backup, scratch_redis, near or MEMORY) as copy:
            return keys_of(copy.urls[0])


@dataclass(frozen=True)
class FilesSubject(Subject):
    """A directory of application data."""

    def backup(self, catalogue: Catalogue, now: datetime) -> Backup:
        found = backup_files.backup(catalogue, StoreName.APPLICATION_DATA, Sources({"": self.place}), now)
        assert found is not None
        return found

    def restore(self, catalogue: Catalogue, backup: Backup, near: Path | None = None) -> Contents:
        with tempfile.TemporaryDirectory(dir=near or MEMORY) as home:
            restore_files.restore(catalogue.vault, backup, Path(home) / "restored")
            return files_of(Path(home) / "restored")


@dataclass(frozen=True)
class LakeSubject(Subject):
    """An inventory of a bucket, its copies read back."""

    def backup(self, catalogue: Catalogue, now: datetime) -> Backup:
        return backup_lake.backup(catalogue, {"lake": DirectoryObjects(self.place)}, dict, now)

    def restore(self, catalogue: Catalogue, backup: Backup, near: Path | None = None) -> Contents:
        table, versions = backup_lake.inventory(catalogue.vault, backup)
        return {one.key: restore_lake.bytes_of(catalogue.vault, table, one) for one in versions}


def rows_of(url: SecretStr) -> Contents:
    """Read the journal."""
    with closing(psycopg2.connect(url.get_secret_value())) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT id FROM journal ORDER BY id")
        return {"journal": cursor.fetchall()}


def documents_of(url: SecretStr) -> Contents:
    """Read the documents."""
    with MongoClient[dict[str, object]](url.get_secret_value()) as client:
        return {"posts": list(client["faults"]["posts"].find().sort("_id"))}


def keys_of(url: SecretStr) -> Contents:
    """Read the keys."""
    client: Any = RedisCluster.from_url(url.get_secret_value())
    return {key: client.get(key) for key in client.scan_iter("fault:*", count=999)}


def files_of(root: Path) -> Contents:
    """Read the files."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Ground:
    """Subjects, a bucket that the logs flow into, and a backup of each in it.

    Attributes:
        directory: of everything.
        bucket: the folder that is the bucket.
        subjects: all of them.
        backups: by subject's name.
        expected: contents, by subject's name.
    """

    directory: Path
    bucket: Path
    subjects: tuple[Subject, ...]
    backups: dict[str, Backup]
    expected: dict[str, Contents]


@contextmanager
def open_ground(directory: Path, seed: int, key: SecretStr) -> Iterator[Ground]:
    """Start servers, fill them, let their logs flow, and back all of them up."""
    bucket = directory / "bucket"
    bucket.mkdir()
    catalogue = Catalogue(Vault(DirectoryObjects(bucket), Keyring(key)))
    with ExitStack() as until_end:
        stack = until_end.enter_context(Stack(directory / "stack", services={"postgres", "mongo", "redis"}))
        into = until_end.enter_context(scratch_mongo())
        subjects = tuple(_subjects(stack, directory, into))
        pg = PgWorld(stack, catalogue, LocalScratchPostgres(MEMORY))
        pg.execute("CREATE TABLE journal (id bigint PRIMARY KEY)")
        mongo = SecretStr(stack.mongo.url("admin"))
        receiver = until_end.enter_context(pg.streaming())
        archiver = until_end.enter_context(Archiver(catalogue, mongo, SOURCE))
        _fill(pg, mongo, SecretStr(stack.redis.url), directory, random.Random(seed))
        wait_until(lambda: archiver.told, what="the archiver has begun")
        backups, expected = {}, {}
        for subject in subjects:
            backups[subject.name] = subject.backup(catalogue, datetime.now(UTC))
        for number in range(1, 5):  # a log in several objects, behind the backups
            pg.execute("INSERT INTO journal SELECT generate_series(%s, %s)", number * ROWS, number * ROWS + ROWS - 1)
            pg.await_stored(receiver)
            seen = len(archiver.told)
            _write(mongo, number * ROWS)
            wait_until(lambda: len(archiver.told) > seen, what="more is archived")  # noqa: B023
        for subject in subjects:
            expected[subject.name] = contents_of(
                subject, is_late=isinstance(subject, PostgresLogSubject | MongoLogSubject)
            )
        yield Ground(directory, bucket, subjects, backups, expected)


def _subjects(stack: Stack, directory: Path, into: SecretStr) -> Iterator[Subject]:
    pg, mongo = SecretStr(stack.postgres.url(DATABASE)), SecretStr(stack.mongo.url("admin"))
    redis, programs = SecretStr(stack.redis.url), stack.postgres.bin
    yield PostgresSubject("PostgreSQL full", pg, directory, programs)
    yield PostgresSubject("PostgreSQL incremental", pg, directory, programs, BackupKind.INCREMENTAL)
    yield PostgresLogSubject("PostgreSQL log", pg, directory, programs)
    yield MongoSubject("MongoDB", mongo, directory, into)
    yield MongoLogSubject("MongoDB oplog", mongo, directory, into)
    yield RedisSubject("Redis snapshots", redis, directory)
    yield RedisSubject("Redis append-only files", redis, directory, BackupKind.AOF)
    yield FilesSubject("files", SecretStr(""), directory / "files")
    yield LakeSubject("lake", SecretStr(""), directory / "lake")


def _fill(pg: PgWorld, mongo: SecretStr, redis: SecretStr, directory: Path, choice: random.Random) -> None:
    pg.execute("INSERT INTO journal SELECT generate_series(0, %s)", ROWS - 1)
    _write(mongo, 0)
    client: Any = RedisCluster.from_url(redis.get_secret_value())
    for number in range(ROWS):
        client.set(f"fault:{number}", choice.randbytes(100))
    (directory / "files").mkdir()
    lake = DirectoryObjects(directory / "lake")
    for number in range(6):
        data = choice.randbytes(choice.randrange(1, 100_000))
        (directory / "files" / f"{number}.png").write_bytes(data)
        lake.put_new(f"lake/{number}.parquet", io.BytesIO(data), len(data), sha256(data).hexdigest())


def _write(mongo: SecretStr, first: int) -> None:
    with MongoClient[dict[str, object]](mongo.get_secret_value()) as client:
        client["faults"]["posts"].insert_many({"_id": first + number} for number in range(ROWS))


def contents_of(subject: Subject, *, is_late: bool) -> Contents:
    """Say what a restore has to have: of databases what was there at the backup, or at the end of the log."""
    last = ROWS * (5 if is_late else 1)
    if isinstance(subject, PostgresSubject):
        return {"journal": [(number,) for number in range(last)]}
    if isinstance(subject, MongoSubject):
        return {"posts": [{"_id": number} for number in range(last)]}
    if isinstance(subject, RedisSubject):
        return keys_of(subject.url)
    found = files_of(subject.place)
    return {key: value for key, value in found.items() if not key.startswith(".")}
