"""Backups of PostgreSQL: ours into the bucket, sealed, beside pg_basebackup onto the disk and barman-cloud-backup.

Ours hashes, compresses and encrypts, and is published when its log is stored too; pg_basebackup does none of that and
writes files of its own machine; barman-cloud-backup uploads as it comes by default, without encryption of its own. All
three read the same server, one after the other, again and again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from psycopg2 import sql
from pydantic import SecretStr

from infra.local.s3 import BUCKETS, REGION
from tests.bench.ground import Ground, libpq_environment
from tests.bench.rows import Group, Row, alternate, lower
from tests.wait import wait_until
from tiering.model_backup import Backup, BackupKind
from tiering.ops import backup_postgres
from tiering.ops.catalogue import Catalogue
from tiering.ops.wal import Receiver
from tiering.stores.objects import S3Objects
from tiering.stores.pg_tools import PgTools
from tiering.stores.pg_wal import WalServer
from tiering.stores.vault import Keyring, Vault

NAME = "bench_backup"
ROWS_PER_SCALE = 37_000
"""pgbench's scale for the bench's rows: 65, about 1 GB, for all of them."""

BARMAN = "barman==3.19.1"
PAIRS_RAW_MAX, PAIRS_BARMAN_MAX, INCREMENT_MAX = 1.5, 1.0, 1.3
CHURN = 0.02
BLOCK_BYTES = 8192


def backups(ground: Ground) -> Iterator[Row]:
    """Take full backups three ways, and an increment after a known churn."""
    scale = max(3, ground.rows // ROWS_PER_SCALE)
    ground.create(NAME)
    place = Place(ground)
    place.pgbench("-i", "-q", "-s", str(scale))
    ground.admin("VACUUM (FREEZE)", NAME)
    with place.streaming():
        ground.settle()
        pairs = alternate(place.ours, place.raw, ground.repeats)
        yield lower("backup.full_vs_pg_basebackup", "s", pairs, "pg_basebackup -D", PAIRS_RAW_MAX, place.told())
        barman = alternate(place.ours, place.barman, ground.repeats)
        note = "default: uploaded as it comes, neither compressed nor encrypted by it"
        yield lower("backup.full_vs_barman", "s", barman, "barman-cloud-backup", PAIRS_BARMAN_MAX, note)
        yield place.increment(scale)
    ground.drop(NAME)


class Place:
    """The server, the bucket and the three programs."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        stack = ground.stack
        self._url = SecretStr(stack.postgres.url(NAME))
        self._tools = PgTools(stack.postgres.bin)
        access, secret = (SecretStr(word) for word in stack.s3.credentials)
        objects = S3Objects(stack.s3.url, BUCKETS[1], access, secret, REGION)
        key = SecretStr(b64encode(os.urandom(32)).decode())
        self._catalogue = Catalogue(Vault(objects, Keyring(key)))
        self._libpq = {**os.environ, **libpq_environment(self._url.get_secret_value())}
        self._barman = self._find_barman()
        self.last: Backup | None = None

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """Stream the log, as it is where backups are taken; begin when it has caught up."""
        receiver, stop = Receiver(self._catalogue, self._url, "main"), threading.Event()
        thread = threading.Thread(target=receiver.run, args=(stop,))
        thread.start()
        try:
            flushed = WalServer(self._url).flushed()
            wait_until(lambda: receiver.progress.stored >= flushed, 300, "the log is stored")
            yield
        finally:
            stop.set()
            thread.join()

    def pgbench(self, *arguments: str) -> None:
        subprocess.run([self._tools.program("pgbench"), *arguments], env=self._libpq, check=True, capture_output=True)

    def ours(self) -> float:
        """Take a full backup; return the seconds."""
        return self._timed(lambda: self._backup(BackupKind.FULL))

    def raw(self) -> float:
        """Run pg_basebackup onto the disk; return the seconds."""
        target = self._ground.directory / "raw"
        arguments = [self._tools.program("pg_basebackup"), "-D", str(target), "-X", "none", "-c", "fast"]
        seconds = self._timed(lambda: subprocess.run(arguments, env=self._libpq, check=True, capture_output=True))
        shutil.rmtree(target)
        return seconds

    def barman(self) -> float:
        """Run barman-cloud-backup into the same bucket; return the seconds."""
        stack = self._ground.stack
        access, secret = stack.s3.credentials
        environment = self._libpq | {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}
        environment |= {"AWS_DEFAULT_REGION": REGION, "PYTHONPATH": str(self._barman)}
        program = [sys.executable, "-c", "from barman.clients.cloud_backup import main; main()"]
        options = ["--endpoint-url", stack.s3.url, "--immediate-checkpoint", f"s3://{BUCKETS[1]}/barman", "bench"]
        return self._timed(
            lambda: subprocess.run([*program, *options], env=environment, check=True, capture_output=True)
        )

    def increment(self, scale: int) -> Row:
        """Change a known share of the blocks; hold the increment's size to what changed."""
        idle = self._backup(BackupKind.INCREMENTAL)
        self._ground.admin(
            sql.SQL("UPDATE pgbench_accounts SET filler = 'changed' WHERE aid <= {}").format(
                sql.Literal(int(scale * 100_000 * CHURN))
            ),
            NAME,
        )
        began = time.monotonic()
        changed = self._backup(BackupKind.INCREMENTAL)
        seconds = time.monotonic() - began
        ideal = self._changed_bytes(changed)
        grown = float(changed.size_bytes - idle.size_bytes)
        assert self.last is not None
        note = (
            f"{CHURN:.0%} of the rows changed: {ideal >> 20} MiB of blocks, increment {changed.size_bytes >> 20} MiB"
            f" of which {idle.size_bytes >> 20} MiB without any change, full {self._full_bytes() >> 20} MiB;"
            f" {seconds:.1f} s"
        )
        pairs = [(grown / 1e6, ideal / 1e6)]
        return lower("backup.increment_vs_changed_blocks", "MB", pairs, "changed blocks", INCREMENT_MAX, note)

    def told(self) -> str:
        """Say how large what was measured is."""
        assert self.last is not None
        size, stored = self.last.size_bytes >> 20, self.last.stored_bytes >> 20
        return f"{size} MiB, {stored} MiB in the bucket; SHA-256, zstd and AES-256-GCM included"

    def _backup(self, kind: BackupKind) -> Backup:
        found = backup_postgres.backup(self._catalogue, self._url, "main", kind, datetime.now(UTC), self._tools)
        self.last = found
        return found

    def _full_bytes(self) -> int:
        return max(entry.backup.size_bytes for entry in self._catalogue.entries())

    def _changed_bytes(self, increment: Backup) -> int:
        """Count the blocks that the server's own summaries say changed since the full backup."""
        parent = self._catalogue.entry(str(increment.parent_id)).backup
        statement = """
            SELECT count(*) FROM (
                SELECT DISTINCT c.relfilenode, c.reltablespace, c.reldatabase, c.relforknumber, c.relblocknumber
                FROM pg_available_wal_summaries() s,
                     LATERAL pg_wal_summary_contents(s.tli, s.start_lsn, s.end_lsn) c
                WHERE s.end_lsn > %s::pg_lsn AND s.start_lsn < %s::pg_lsn AND NOT c.is_limit_block) d"""
        with self._ground.stack.postgres.connect(NAME) as connection, connection.cursor() as cursor:
            cursor.execute(statement, (parent.begins, increment.begins))
            return int(cursor.fetchall()[0][0]) * BLOCK_BYTES

    def _timed(self, run: Callable[[], object]) -> float:
        self._ground.settle()
        began = time.monotonic()
        run()
        return time.monotonic() - began

    def _find_barman(self) -> Path:
        """Install barman beside everything: what it asks for by name (psycopg2 from source) is here as a wheel."""
        target = self._ground.directory / "barman"
        arguments = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), BARMAN]
        subprocess.run(arguments, check=True)
        return target


GROUPS = (
    Group(
        ("backup.full_vs_pg_basebackup", "backup.full_vs_barman", "backup.increment_vs_changed_blocks"),
        backups,
    ),
)
