"""Retention carried out: what the plan says goes, killed anywhere and run again, and never beside a backup."""

from __future__ import annotations

import multiprocessing
import random
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from psycopg2 import sql
from pydantic import SecretStr

import infra.sql
from tests.fakes import Tripwire, Wired
from tests.plan.histories import History, make_history
from tests.plan.test_retention import check_moments
from tiering.model_backup import Backup, BackupKind, BackupState, BackupStrategy, CatalogueEntry, StoreName
from tiering.ops import sweep_backups
from tiering.ops.catalogue import Catalogue, mirror
from tiering.settings import Settings
from tiering.stores.directory import DirectoryObjects
from tiering.stores.objects import S3Objects
from tiering.stores.ports import ObjectStore
from tiering.stores.postgres import Postgres, execute, fetch
from tiering.stores.vault import Keyring, Vault

SEED = 20261123
KEY = b64encode(b"k" * 32).decode()
PG = StoreName.POSTGRESQL
# Names begin in January 2026; by the bucket's clock everything was made now.
HISTORY = 26


def opened(objects: ObjectStore, *, patient: bool = True) -> Catalogue:
    life = timedelta(minutes=2) if patient else timedelta(seconds=-60)
    return Catalogue(Vault(objects, Keyring(SecretStr(KEY))), expires_after=life)


def short_history() -> History:
    """A history of few objects in which something goes: two proven fulls with children, all old, and two newer."""
    start = datetime.now(UTC) - timedelta(days=60)
    strategy = next(h.strategy for h in map(make_history, range(100)) if h.strategy.store is PG)
    kept = {BackupKind.FULL: timedelta(days=30), BackupKind.INCREMENTAL: timedelta(days=7)}
    history = History(replace(strategy, retention=kept, log_window=timedelta(days=7)), datetime.now(UTC))
    for number, (day, kind) in enumerate([(0, "full"), (1, "incremental"), (20, "full"), (58, "full"), (59, "full")]):
        at = start + timedelta(days=day, minutes=1)
        backup_id = f"{at:%Y%m%dT%H%M%SZ}-{kind}-{number:06x}"
        parent = history.entries[-1].backup.backup_id if kind == "incremental" else None
        span = (f"0/{number}0", f"0/{number}8")
        backup = Backup(backup_id, PG, "main", BackupKind(kind), parent, "7", at, at, *span, (), {"timeline": 1})
        history.entries.append(CatalogueEntry(backup, BackupState.PROVEN))
    return history


def fill(catalogue: Catalogue, history: History) -> History:
    """Put a history into a bucket; the bucket's clock says that its log is of now."""
    made = []
    for entry in history.entries:
        backup = entry.backup
        stored = tuple(catalogue.vault.put(f"{backup.prefix}base/{part:05d}", b"x" * 100) for part in range(2))
        catalogue.publish(replace(backup, objects=stored))
        if entry.state is not BackupState.UPLOADED:
            catalogue.mark(backup, entry.state, backup.ended_at, {}, "why" if entry.state is BackupState.FAILED else "")
        made.append(replace(entry, backup=replace(backup, objects=stored)))
    catalogue.vault.put(f"backups/{PG}/main/20260101T000000Z-full-ffffff/base/00000", b"a crash left it")
    return replace(history, entries=made)


def strategy_of(history: History) -> BackupStrategy:
    return BackupStrategy((history.strategy,))


def left(catalogue: Catalogue) -> list[str]:
    return [stat.key for prefix in ("backups/", "catalogue/", "log/") for stat in catalogue.vault.names(prefix)]


@pytest.fixture(params=["directory", "s3 with versions"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "directory":
        return DirectoryObjects(tmp_path)
    settings: Settings = request.getfixturevalue("fresh_settings")
    stack = request.getfixturevalue("stack")
    stack.s3.client().put_bucket_versioning(
        Bucket=settings.backup_bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    return S3Objects(settings.s3_url, settings.backup_bucket, settings.s3_access_key, settings.s3_secret_key)


def test_a_dry_run_says_why_and_changes_nothing_and_applied_it_is_so(objects: ObjectStore) -> None:
    catalogue = opened(objects)
    history = fill(catalogue, short_history())
    before = left(catalogue)
    [said] = sweep_backups.retain(catalogue, strategy_of(history), history.now, "me")
    assert left(catalogue) == before
    assert not said.is_applied
    gone = [one.entry.backup.backup_id for one in said.plan.removed]
    assert gone == [history.entries[at].backup.backup_id for at in (1, 0)]
    assert all(one.reasons for one in said.plan.backups)
    [done] = sweep_backups.retain(catalogue, strategy_of(history), history.now, "me", apply=True)
    assert (done.is_applied, done.skipped) == (True, "")
    assert done.plan == said.plan
    entries = opened(objects).entries()
    assert [entry.backup for entry in entries] == [entry.backup for entry in history.entries[2:]]
    assert not [name for name in left(catalogue) for backup_id in gone if backup_id in name]
    check_moments(history, entries, catalogue.logs(PG, "main"))


def test_expectations_evidence_and_history_of_drills_stay(objects: ObjectStore) -> None:
    """However old: recoveries read the first, auditors the others."""
    catalogue = opened(objects)
    history = fill(catalogue, short_history())
    names = ["expected/20200101T000000000000Z.json", "evidence/20200101T000000Z-tier1.json", "history/main/00000002"]
    for name in names:
        catalogue.vault.put(name, b"{}")
    for later in (timedelta(0), timedelta(minutes=1)):
        [done] = sweep_backups.retain(catalogue, strategy_of(history), history.now + later, "me", apply=True)
        assert done.is_applied
        assert not set(names) & set(done.leftovers)
    for name in names:
        assert catalogue.vault.read(name) == b"{}"


def test_a_source_that_is_being_backed_up_is_left_alone(objects: ObjectStore) -> None:
    catalogue = opened(objects)
    history = fill(catalogue, short_history())
    before = left(catalogue)
    with opened(objects).lease(PG, "main", "a backup", history.now):
        [said] = sweep_backups.retain(catalogue, strategy_of(history), history.now, "me", apply=True)
    assert "a backup is at it" in said.skipped
    assert left(catalogue) == before


def test_a_machine_whose_clock_ran_ahead_destroys_nothing(tmp_path: Path) -> None:
    catalogue = opened(DirectoryObjects(tmp_path))
    history = fill(catalogue, short_history())
    newest = replace(history.entries[-1].backup, backup_id="20990101T000000Z-full-000000", objects=())
    later = history.now + timedelta(days=3)
    catalogue.publish(replace(newest, ended_at=later))
    before = left(catalogue)
    [said] = sweep_backups.retain(catalogue, strategy_of(history), later, "me", apply=True)
    assert "ahead of the bucket's" in said.skipped
    assert left(catalogue) == before


def _retain_and_die(root: Path, history: History, at: int, after: bool) -> None:
    wire = Tripwire()
    wire.arm(at, after=after)
    wired: ObjectStore = Wired(DirectoryObjects(root), "objects", wire)  # type: ignore[assignment]
    sweep_backups.retain(opened(wired, patient=True), strategy_of(history), history.now, "who dies", apply=True)


def test_killed_at_every_call_and_run_again_it_ends_the_same(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    choice = random.Random(SEED)
    history = short_history()
    whole = opened(DirectoryObjects(tmp_path / "whole"))
    filled = fill(whole, history)
    wire = Tripwire()
    wire.arm(None)
    wired: ObjectStore = Wired(DirectoryObjects(tmp_path / "whole"), "objects", wire)  # type: ignore[assignment]
    sweep_backups.retain(opened(wired), strategy_of(filled), history.now, "me", apply=True)
    wanted, calls = left(whole), len(wire.calls)
    assert calls > 25
    context = multiprocessing.get_context("fork")
    for at in range(1, calls + 1):
        root = tmp_path / str(at)
        fill(opened(DirectoryObjects(root)), history)
        child = context.Process(target=_retain_and_die, args=(root, filled, at, choice.random() < 0.5))
        child.start()
        child.join(60)
        assert child.exitcode == -9
        resumed = opened(DirectoryObjects(root), patient=False)
        ids = {entry.backup.backup_id for entry in resumed.entries()}
        assert all(e.backup.parent_id in ids for e in resumed.entries() if e.backup.parent_id)
        assert all(resumed.vault.fetch(stored) for e in resumed.entries() for stored in e.backup.objects)
        sweep_backups.retain(resumed, strategy_of(filled), history.now, "who resumes", apply=True)
        assert left(resumed) == wanted, f"killed at call {at} of {calls}"


def test_the_mirror_in_postgresql_says_what_the_bucket_says(fresh_settings: Settings, tmp_path: Path) -> None:
    catalogue = opened(DirectoryObjects(tmp_path))
    history = fill(catalogue, short_history())
    database = Postgres(fresh_settings.warm_pg_url, "warm PostgreSQL")
    with database.transaction("prepare", "ledger") as connection:
        execute(connection, sql.SQL(infra.sql.read("ledger")))
    told: Callable[[], list[tuple[object, ...]]] = lambda: _rows(database)  # noqa: E731
    assert mirror(catalogue, database) == 5
    assert told() == [(e.backup.backup_id, "PROVEN", e.backup.size_bytes) for e in history.entries]
    sweep_backups.retain(catalogue, strategy_of(history), history.now, "me", apply=True)
    catalogue.mark(history.entries[-1].backup, BackupState.FAILED, history.now, {}, "bad")
    assert mirror(catalogue, database) == 3
    states = ["PROVEN", "PROVEN", "FAILED"]
    assert [row[:2] for row in told()] == list(
        zip([e.backup.backup_id for e in history.entries[2:]], states, strict=True)
    )
    database.close()


def _rows(database: Postgres) -> list[tuple[object, ...]]:
    with database.transaction("read", "mirror", read_only=True) as connection:
        return [
            tuple(row)
            for row in fetch(connection, "SELECT backup_id, state, size_bytes FROM tiering.backup ORDER BY began_at")
        ]
