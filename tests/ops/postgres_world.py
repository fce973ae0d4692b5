"""A PostgreSQL server whose log streams into a vault, a journal of what it acknowledged, and ways to lose it."""

from __future__ import annotations

import shutil
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psycopg2
from pydantic import SecretStr

from infra.local import Stack
from infra.local.processes import give_away
from infra.local.scratch_postgres import LocalScratchPostgres
from tests.wait import wait_until
from tiering.model_backup import Backup, BackupKind
from tiering.ops import backup_postgres, restore_postgres
from tiering.ops.catalogue import Catalogue
from tiering.ops.prove_postgres import check_reached
from tiering.ops.restore_postgres import RestoredDirectory
from tiering.ops.wal import Receiver
from tiering.plan.recovery import Target, TargetKind
from tiering.stores.pg_tools import PgTools, parse_lsn
from tiering.stores.pg_wal import WalServer
from tiering.stores.ports import ObjectStore
from tiering.stores.vault import Keyring, Vault

KEY, OTHER_KEY = (SecretStr(b64encode(bytes([number]) * 32).decode()) for number in (1, 2))
DATABASE = "trading"
SOURCE = "main"
# Making thousands of small files is what a restore of a small server spends its time on.
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


@dataclass(frozen=True)
class Entry:
    """One acknowledged transaction: it inserted row `row`, alone."""

    row: int
    xid: int
    at: datetime
    flushed: str


@dataclass
class PgWorld:
    """One server, one vault."""

    stack: Stack
    catalogue: Catalogue
    scratch: LocalScratchPostgres
    told: list[str] = field(default_factory=list)

    @property
    def url(self) -> SecretStr:
        return SecretStr(self.stack.postgres.url(DATABASE))

    @property
    def tools(self) -> PgTools:
        return PgTools(self.stack.postgres.bin)

    @property
    def data(self) -> Path:
        return self.stack.directory / "postgres"

    def execute(self, statement: str, *arguments: object) -> list[tuple[object, ...]]:
        connection = psycopg2.connect(self.url.get_secret_value())
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, arguments or None)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def backup(self, kind: BackupKind = BackupKind.FULL) -> Backup:
        return backup_postgres.backup(self.catalogue, self.url, SOURCE, kind, datetime.now(UTC), self.tools)

    def insert(self, begin: int, count: int) -> list[Entry]:
        """Insert rows, each in a transaction of its own; return what was acknowledged."""
        found = []
        connection = psycopg2.connect(self.url.get_secret_value())
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for row in range(begin, begin + count):
                    cursor.execute("INSERT INTO journal VALUES (%s) RETURNING pg_current_xact_id()::text", (row,))
                    xid = int(cursor.fetchall()[0][0])
                    cursor.execute(
                        "SELECT pg_xact_commit_timestamp(%s::text::xid), pg_current_wal_flush_lsn()::text", (xid,)
                    )
                    at, flushed = cursor.fetchall()[0]
                    found.append(Entry(row, xid, at.astimezone(UTC), flushed))
        finally:
            connection.close()
        return found

    @contextmanager
    def streaming(self) -> Iterator[Receiver]:
        """Stream the log while the body runs; what was received is stored at its end."""
        receiver, stop = Receiver(self.catalogue, self.url, SOURCE, tell=self.told.append), threading.Event()
        thread = threading.Thread(target=receiver.run, args=(stop,))
        thread.start()
        try:
            wait_until(lambda: receiver.progress.timeline or not thread.is_alive(), what="the log streams")
            assert thread.is_alive()
            yield receiver
        finally:
            stop.set()
            thread.join()

    def await_stored(self, receiver: Receiver) -> None:
        """Wait until the bucket has all that the server has now."""
        flushed = WalServer(self.url).flushed()
        wait_until(lambda: receiver.progress.stored >= flushed, what="the log is stored")

    def restore(self, target: Target, into: Path) -> RestoredDirectory:
        return restore_postgres.restore(self.catalogue, target, into, SOURCE, self.tools)

    def rows_at(self, target: Target) -> set[int]:
        """Restore a moment, start a server on it, and read which rows it has."""
        with self.scratch.directory() as private:
            restored = self.restore(target, private / "data")
            with self.scratch.start(restored.directory, "tiering") as server:
                check_reached(restored, server)
                connection = psycopg2.connect(server.url(DATABASE).get_secret_value())
                try:
                    with connection.cursor() as cursor:
                        cursor.execute("SELECT id FROM journal")
                        return {row for (row,) in cursor.fetchall()}
                finally:
                    connection.close()

    def lose(self) -> None:
        """Lose the server as a machine is lost: killed, and its whole data directory gone."""
        self.stack.kill("postgres")
        shutil.rmtree(self.data)

    def come_back(self, target: Target | None = None) -> RestoredDirectory:
        """Restore into the place of the lost server, and start it there."""
        restored = self.restore(target or Target(TargetKind.LATEST), self.data)
        give_away([self.data, *self.data.rglob("*")])
        self.stack.restart("postgres")
        return restored


@contextmanager
def open_world(directory: Path, objects: ObjectStore) -> Iterator[PgWorld]:
    """Start a server of its own, with an empty journal."""
    with Stack(directory / "stack", services={"postgres"}) as stack:
        world = PgWorld(stack, Catalogue(Vault(objects, Keyring(KEY))), LocalScratchPostgres(MEMORY))
        world.execute("CREATE TABLE journal (id bigint PRIMARY KEY, made timestamptz DEFAULT clock_timestamp())")
        yield world


def lsn(entry: Entry) -> int:
    """Return up to where the log was written once the transaction was acknowledged."""
    return parse_lsn(entry.flushed)
