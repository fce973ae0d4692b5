"""The demo's disaster: backups of every store, a row corrupted and brought back, and a drill of tier 1."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from deployments.demo_report import Broken
from infra.local.binaries import find_postgres_bin
from tiering import cli_kit
from tiering.cli_output import bytes_shown
from tiering.model_backup import Backup, BackupKind
from tiering.ops import backup_mongo, backup_postgres, backup_redis, expect, oplog
from tiering.ops.catalogue import Catalogue
from tiering.ops.heartbeat import Heart, ledgers_of
from tiering.ops.recover_mongo import database_of, with_database
from tiering.ops.recover_postgres import PostgresRecoverer
from tiering.ops.wal import Receiver
from tiering.settings import RecoverySettings, Settings
from tiering.stores.opening import Stores
from tiering.stores.pg_tools import PgTools
from tiering.stores.postgres import Postgres, execute, fetch, fetch_one

POSITIONS = "SELECT md5(string_agg(p::text, chr(10) ORDER BY user_id, symbol)), count(*) FROM hot.positions p"
BEAT_SECONDS_MAX = 60.0


@dataclass
class Guarded:
    """A platform whose logs are being archived and whose heart beats."""

    stores: Stores
    settings: Settings
    recovery: RecoverySettings
    catalogue: Catalogue
    heart: Heart

    def beat_on(self, count: int) -> None:
        """Wait for so many heartbeats more in every store."""
        due = (self.heart.last.seq if self.heart.last else 0) + count
        pause = threading.Event()
        for _ in range(int(BEAT_SECONDS_MAX / 0.1)):
            lanes = [lane for lane in self.heart.lanes if lane.ledger.every.total_seconds() <= 1]
            if all(lane.acknowledged and lane.acknowledged.seq >= due for lane in lanes):
                return
            pause.wait(0.1)
        raise Broken("the heartbeat stands still: " + "; ".join(lane.problem for lane in self.heart.lanes))


@contextmanager
def guarded(stores: Stores, settings: Settings, policies: str) -> Iterator[Guarded]:
    """Let heartbeat and log archiving run, as `tiering heartbeat` and the log services do beside a primary."""
    keys = ("s3_url", "s3_access_key", "s3_secret_key", "s3_region", "backup_bucket", "backup_key")
    recovery = RecoverySettings(_env_file=None, **{key: getattr(settings, key) for key in keys})  # type: ignore[call-arg]
    catalogue = Catalogue(cli_kit.vault_of(recovery))
    site = cli_kit.site_of(settings, policies)
    expect.keep(catalogue.vault, expect.take(stores, site, datetime.now(UTC)))
    stop = threading.Event()
    receiver = Receiver(catalogue, settings.hot_pg_url, "main")
    mongo: Any = {"clock": lambda: datetime.now(UTC), "stop": stop}
    threads = [
        threading.Thread(target=receiver.run, args=(stop,), daemon=True),
        threading.Thread(
            target=oplog.stream, args=(catalogue, settings.hot_mongo_url, "main"), kwargs=mongo, daemon=True
        ),
    ]
    with ExitStack() as until_end:
        heart = until_end.enter_context(Heart(ledgers_of(stores)))
        for thread in threads:
            thread.start()
        try:
            yield Guarded(stores, settings, recovery, catalogue, heart)
        finally:
            stop.set()
            for thread in threads:
                thread.join(timeout=30)


def back_up(guard: Guarded) -> Iterator[str]:
    """Take a full backup of every store; tell of each."""
    settings = guard.settings
    assert settings.hot_mongo_url is not None
    assert settings.redis_url is not None
    tools = PgTools(find_postgres_bin())
    yield _told(backup_postgres.backup(guard.catalogue, settings.hot_pg_url, "main", BackupKind.FULL, _now(), tools))
    yield _told(backup_mongo.backup(guard.catalogue, settings.hot_mongo_url, "main", _now()))
    yield _told(backup_redis.backup(guard.catalogue, settings.redis_url, "main", _now()))


def _now() -> datetime:
    return datetime.now(UTC)


def _told(backup: Backup) -> str:
    seconds = (backup.ended_at - backup.began_at).total_seconds()
    sizes = f"{bytes_shown(backup.size_bytes)}, stored as {bytes_shown(backup.stored_bytes)}"
    return f"{backup.store}: {backup.backup_id}: {sizes}, {seconds:.1f} s"


def corrupt_and_restore(guard: Guarded) -> Iterator[str]:
    """Ruin a row, bring the moment before back beside the primary, and repair the row from there."""
    hot = guard.stores.hot
    guard.beat_on(2)
    with hot.transaction("look at", "positions", read_only=True) as connection:
        before = fetch(connection, POSITIONS)[0]
        moment = fetch(connection, "SELECT clock_timestamp()")[0][0]
    guard.beat_on(1)
    with hot.transaction("corrupt", "positions") as connection:
        statement = """UPDATE hot.positions SET quantity = -99999 WHERE (user_id, symbol) =
                       (SELECT user_id, symbol FROM hot.positions ORDER BY 1, 2 LIMIT 1) RETURNING user_id, symbol"""
        user, symbol = fetch(connection, statement)[0]
    yield f"{user}'s position in {symbol} is now -99999"
    guard.beat_on(3)
    recoverers = cli_kit.recoverers_of(guard.catalogue, None)
    postgres = next(one for one in recoverers if isinstance(one, PostgresRecoverer))
    with postgres.restore(moment) as restored:
        database = Postgres(with_database(restored.url, database_of(guard.settings.hot_pg_url)), "past")
        try:
            with database.transaction("look at", "the past", read_only=True) as connection:
                past = fetch(connection, POSITIONS)[0]
                row = fetch_one(
                    connection, "SELECT quantity FROM hot.positions WHERE (user_id, symbol) = (%s, %s)", (user, symbol)
                )
        finally:
            database.close()
    if past != before or row is None:
        raise Broken(f"the moment {moment} came back with other positions than it had")
    yield f"brought back as of {moment:%H:%M:%S.%f}Z beside the primary: {past[1]} positions, byte for byte the same"
    with hot.transaction("repair", "positions") as connection:
        repair = "UPDATE hot.positions SET quantity = %s WHERE (user_id, symbol) = (%s, %s)"
        execute(connection, repair, (row[0], user, symbol))
        after = fetch(connection, POSITIONS)[0]
    if after != before:
        raise Broken("the repaired positions are not those of before")
    yield f"the row is {row[0]} again, copied from there"


def evidence_of(guard: Guarded) -> str:
    """Verify the signed records of the drills."""
    from tiering.ops import evidence

    trusted = [signer.public for signer in cli_kit.signers_of(guard.recovery)]
    found = evidence.history(guard.catalogue.vault, trusted)
    if not found or not all(document["passed"] for _, document in found):
        raise Broken("there is no evidence of a drill that passed")
    document = found[-1][1]
    worst = max(one["rto"] for one in document["measured"])
    lost = max(one["rpo"] for one in document["measured"])
    return f"evidence verified: {found[-1][0]}; RTO {worst:.0f} s of 900 s, RPO {lost:.1f} s of 60 s"
