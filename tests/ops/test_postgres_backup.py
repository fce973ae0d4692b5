"""Backups of PostgreSQL on a real server: every kind of moment exactly, and never an earlier one in silence."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import pytest

from infra.local.scratch_postgres import LocalScratchPostgres
from tests.ops.postgres_world import KEY, OTHER_KEY, SOURCE, Entry, PgWorld, open_world
from tests.wait import wait_until
from tiering import errors
from tiering.model_backup import Backup, BackupKind, BackupState, StoreName
from tiering.ops import prove_postgres, wal_archive
from tiering.ops.catalogue import Catalogue
from tiering.ops.restore_postgres import restore
from tiering.ops.wal import push
from tiering.ops.wal_fetch import fetch
from tiering.ops.wal_watch import Watch, check_log
from tiering.plan.recovery import Target, TargetKind, parse_target
from tiering.stores.directory import DirectoryObjects
from tiering.stores.pg_wal import WalServer
from tiering.stores.vault import Keyring, Vault

SEED = 20261123
LATEST = Target(TargetKind.LATEST)


@dataclass(frozen=True)
class History:
    """A server that was backed up twice and wrote before, between and after."""

    world: PgWorld
    bucket: Path
    full: Backup
    increment: Backup
    entries: list[Entry]


@pytest.fixture(scope="module")
def ground() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="tiering-pgb-"))
    directory.chmod(0o711)  # PostgreSQL runs as nobody below root
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def history(ground: Path) -> Iterator[History]:
    bucket = ground / "bucket"
    bucket.mkdir()
    with open_world(ground, DirectoryObjects(bucket)) as world, world.streaming() as receiver:
        entries = world.insert(0, 10)
        full = world.backup()
        entries += world.insert(10, 20)
        world.execute("SELECT pg_create_restore_point('between')")
        entries += world.insert(30, 10)
        increment = world.backup(BackupKind.INCREMENTAL)
        entries += world.insert(40, 20)
        world.await_stored(receiver)
        yield History(world, bucket, full, increment, entries)


def at(entry: Entry) -> str:
    return entry.at.isoformat()


def test_every_kind_of_moment_is_exact_on_both_sides(history: History) -> None:
    world, entries = history.world, history.entries
    choice = random.Random(SEED)
    early, late = entries[choice.randrange(11, 28)], entries[choice.randrange(41, 58)]
    print(f"seed {SEED}: rows {early.row} and {late.row}")
    cases = [
        (parse_target(at(late)), late.row),
        (parse_target(at(late), inclusive=False), late.row - 1),
        (parse_target(f"xid:{early.xid}"), early.row),
        (parse_target(f"xid:{late.xid}", inclusive=False), late.row - 1),
        (parse_target(early.flushed, inclusive=False), early.row),
        (parse_target("name:between"), 29),
        (LATEST, 59),
    ]
    for target, last in cases:
        assert world.rows_at(target) == set(range(last + 1)), str(target)


def test_the_operator_is_shown_the_commits_beside_the_boundary(history: History, ground: Path) -> None:
    entry, following = history.entries[45:47]
    moment = history.world.restore(parse_target(at(entry)), ground / "shown").moment
    assert [link.backup_id for link in moment.links] == [history.full.backup_id, history.increment.backup_id]
    assert moment.last_included is not None
    assert moment.first_excluded is not None
    assert (moment.last_included.xid, moment.last_included.ended_at) == (entry.xid, entry.at)
    assert (moment.first_excluded.xid, moment.first_excluded.ended_at) == (following.xid, following.at)


def test_moments_that_cannot_be_had_are_refused_with_the_reason(history: History, ground: Path) -> None:
    late = datetime.now(UTC) + timedelta(hours=1)
    for text, why in (
        (late.isoformat(), "the log that can be restored ends at"),
        ("FF/0", "the log that can be restored ends at"),
        (at(history.entries[5]), "before the oldest backup"),
        (history.full.begins, "before the oldest backup"),
        ("xid:4000000000", "knows nothing of it"),
        ("name:never", "knows nothing of it"),
    ):
        with pytest.raises(errors.NotFound, match=why):
            history.world.restore(parse_target(text), ground / "refused")
    with pytest.raises(errors.PermanentError, match="no time zone"):
        parse_target("2026-11-22T08:00:00")
    kept = ground / "kept"
    kept.mkdir()
    (kept / "file").write_text("somebody's")
    with pytest.raises(errors.AlreadyExists, match="not an empty directory"):
        history.world.restore(LATEST, kept)
    assert (kept / "file").read_text() == "somebody's"
    assert not (ground / "refused").exists()


def test_a_proof_starts_a_server_and_looks_everywhere(history: History) -> None:
    world = history.world
    prove_postgres.verify(world.catalogue, history.full, datetime.now(UTC))
    assert world.catalogue.entry(history.full.backup_id).state is BackupState.VERIFIED
    now = datetime.now(UTC)
    told = prove_postgres.prove(world.catalogue, history.increment, now, world.tools, world.scratch)
    assert told["links"] == [history.full.backup_id, history.increment.backup_id]
    assert int(str(told["relations"])) > 300
    assert int(str(told["indexes"])) > 300
    assert world.catalogue.entry(history.increment.backup_id).state is BackupState.PROVEN
    assert history.increment.size_bytes < history.full.size_bytes / 3


def test_two_backups_at_once_are_refused(history: History) -> None:
    catalogue, now = history.world.catalogue, datetime.now(UTC)
    with (
        catalogue.lease(StoreName.POSTGRESQL, SOURCE, "another", now),
        pytest.raises(errors.LeaseHeld),
    ):
        history.world.backup()


def test_a_flipped_byte_of_any_stored_object_is_found_before_a_server_starts(history: History, ground: Path) -> None:
    print(f"seed {SEED}")
    choice = random.Random(SEED)
    copy = ground / "flipped"
    shutil.copytree(history.bucket, copy)
    catalogue = Catalogue(Vault(DirectoryObjects(copy), Keyring(KEY)))
    needed = [stored.name for backup in (history.full, history.increment) for stored in backup.objects]
    logs = catalogue.logs(StoreName.POSTGRESQL, SOURCE)
    needed += [logs[-1].stored.name, f"catalogue/postgresql/{SOURCE}/{history.increment.backup_id}/UPLOADED"]
    for number, name in enumerate(needed):
        file = copy / name
        whole = file.read_bytes()
        place = choice.randrange(len(whole))
        file.chmod(0o600)
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << choice.randrange(8)]) + whole[place + 1 :])
        # A flip in the key's id looks like a key that is lost; one in a record leaves the older backup, which works.
        if "UPLOADED" in name:
            assert [entry.state for entry in Catalogue(catalogue.vault).entries()][-1] is BackupState.FAILED
        else:
            with pytest.raises((errors.CorruptCopy, errors.KeyMissing)):
                restore(Catalogue(catalogue.vault), LATEST, ground / f"flip{number}", SOURCE, history.world.tools)
        file.write_bytes(whole)
    restore(Catalogue(catalogue.vault), LATEST, ground / "whole", SOURCE, history.world.tools)


def test_without_the_key_nothing_is_opened(history: History, ground: Path) -> None:
    stranger = Catalogue(Vault(DirectoryObjects(history.bucket), Keyring(OTHER_KEY)))
    with pytest.raises(errors.KeyMissing, match="TIERING_BACKUP_KEY"):
        restore(stranger, LATEST, ground / "stranger", SOURCE, history.world.tools)


class Outage(DirectoryObjects):
    """A bucket that answers so many reads, and then no more."""

    left = 10**9

    def open(self, key: str) -> BinaryIO:
        if self.left <= 0:
            raise errors.StoreUnavailable("open", key, "the bucket is away")
        self.left -= 1
        return super().open(key)


def test_an_outage_while_restoring_is_loud_at_every_read(history: History, ground: Path) -> None:
    bucket = Outage(history.bucket)
    catalogue = Catalogue(Vault(bucket, Keyring(KEY)))
    restore(catalogue, LATEST, ground / "counted", SOURCE, history.world.tools)
    reads = 10**9 - bucket.left
    choice = random.Random(SEED)
    for number, left in enumerate([0, 1, reads - 1, *(choice.randrange(reads) for _ in range(3))]):
        bucket.left = left
        with pytest.raises(errors.StoreUnavailable):
            restore(Catalogue(catalogue.vault), LATEST, ground / f"outage{number}", SOURCE, history.world.tools)


def test_a_hole_in_the_log_is_never_a_short_recovery_and_asks_for_a_full_backup(history: History, ground: Path) -> None:
    copy = ground / "holed"
    shutil.copytree(history.bucket, copy)
    world = PgWorld(history.world.stack, Catalogue(Vault(DirectoryObjects(copy), Keyring(KEY))), LocalScratchPostgres())
    after = [one for one in world.catalogue.logs(StoreName.POSTGRESQL, SOURCE) if one.ends > history.increment.ends]
    victim = after[len(after) // 2]
    (copy / victim.stored.name).unlink()
    with pytest.raises(errors.NotFound, match="hole"):
        world.restore(LATEST, ground / "hole")
    with pytest.raises(errors.NotFound, match="the log that can be restored ends at"):
        world.restore(parse_target(at(history.entries[-1])), ground / "hole")
    world.restore(parse_target(victim.begins, inclusive=False), ground / "before-hole")
    found = check_log(world.catalogue, world.url, SOURCE, patience_seconds=0)
    assert found.report.needs_full
    assert any("hole" in problem for problem in found.problems)
    told: list[str] = []
    watch = Watch(world.catalogue, world.url, SOURCE, told.append, world.backup, patience_seconds=0)
    watch.look()
    assert any("ALARM" in line and "hole" in line for line in told)
    assert not check_log(world.catalogue, world.url, SOURCE, patience_seconds=0).report.needs_full


def test_archive_command_never_replaces_and_small_objects_are_merged(history: History, ground: Path) -> None:
    world = history.world
    WalServer(world.url).switch()
    world.insert(1000, 1)
    segment = sorted((world.data / "pg_wal").glob("0" * 7 + "1" + "?" * 16))[0]
    copy = ground / "pushed" / "pg_wal" / segment.name
    copy.parent.mkdir(parents=True)
    shutil.copy(segment, copy)
    catalogue = Catalogue(Vault(DirectoryObjects(ground / "pushed"), Keyring(KEY)))
    assert [push(catalogue, SOURCE, copy) for _ in range(2)] == ["stored", "stored already"]
    data = bytearray(copy.read_bytes())
    data[5000] ^= 1
    copy.write_bytes(data)
    with pytest.raises(errors.AlreadyExists, match="other bytes"):
        push(catalogue, SOURCE, copy)
    shutil.copy(segment, copy.with_name("00000001000000FF00000001"))
    with pytest.raises(errors.CorruptCopy):
        push(catalogue, SOURCE, copy.with_name("00000001000000FF00000001"))
    incarnation = history.full.incarnation
    before = len(world.catalogue.logs(StoreName.POSTGRESQL, SOURCE))
    rows = world.rows_at(parse_target(at(history.entries[-1])))
    assert wal_archive.merge(world.catalogue, SOURCE, incarnation, 16 << 20) > 0
    assert len(world.catalogue.logs(StoreName.POSTGRESQL, SOURCE)) < before
    assert world.rows_at(parse_target(at(history.entries[-1]))) == rows


def test_a_file_that_is_not_there_is_told_from_one_that_cannot_be_had(history: History, ground: Path) -> None:
    catalogue = history.world.catalogue
    target = ground / "fetched"
    assert fetch(catalogue, SOURCE, "000000010000000000000003", target)
    assert target.stat().st_size == 16 << 20
    assert not fetch(catalogue, SOURCE, "0000000100000FFF00000003", target)
    assert not fetch(catalogue, SOURCE, "00000002.history", target)
    with pytest.raises(errors.NotFound, match="hole"):
        fetch(catalogue, SOURCE, "000000010000000000000000", target)
    outage = Outage(history.bucket)
    outage.left = 0
    with pytest.raises(errors.StoreUnavailable):
        fetch(Catalogue(Vault(outage, Keyring(KEY))), SOURCE, "000000010000000000000003", target)


def test_a_lost_machine_comes_back_from_the_bucket_and_its_log_goes_on() -> None:
    directory = Path(tempfile.mkdtemp(prefix="tiering-pgl-"))
    directory.chmod(0o711)
    try:
        (directory / "bucket").mkdir()
        with open_world(directory, DirectoryObjects(directory / "bucket")) as world:
            lose_twice(world)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def lose_twice(world: PgWorld) -> None:
    expected: set[int] = set()
    for life, is_synchronous in enumerate((True, False), start=1):
        with world.streaming() as receiver:
            if is_synchronous:
                world.backup()
                world.execute("ALTER SYSTEM SET synchronous_standby_names = 'tiering'")
                world.execute("SELECT pg_reload_conf()")
                states = "SELECT sync_state FROM pg_stat_replication WHERE application_name = 'tiering'"
                wait_until(lambda: world.execute(states) == [("sync",)], what="commits wait for the bucket")  # noqa: B023
            entries = world.insert(life * 1000, 50)
            expected |= {entry.row for entry in entries}
            if not is_synchronous:
                world.await_stored(receiver)
            world.lose()
        world.come_back()
        rows = {int(str(row)) for (row,) in world.execute("SELECT id FROM journal")}
        assert rows == expected, "nothing that was acknowledged and stored is lost"
    assert world.execute("SELECT timeline_id FROM pg_control_checkpoint()") != [(1,)]
    with world.streaming() as receiver:
        expected |= {entry.row for entry in world.insert(9000, 5)}
        world.await_stored(receiver)
        assert world.rows_at(LATEST) == expected, "one base, three timelines"
    lose_slot(world)
    with world.streaming() as receiver:
        world.insert(9500, 1)
        world.await_stored(receiver)
    assert any("GAP" in line for line in world.told)
    with pytest.raises(errors.NotFound):
        world.restore(LATEST, world.stack.directory / "short")
    Watch(world.catalogue, world.url, SOURCE, world.told.append, world.backup, patience_seconds=0).look()
    with world.scratch.directory() as private:
        world.restore(LATEST, private / "data")


def lose_slot(world: PgWorld) -> None:
    """Let the server forget the slot and recycle log that nobody stored."""
    name = str(world.execute("SELECT pg_walfile_name(pg_current_wal_lsn())")[0][0])
    WalServer(world.url).drop_slot("tiering")

    def is_gone() -> bool:
        WalServer(world.url).mark()
        WalServer(world.url).switch()
        world.execute("CHECKPOINT")
        return not (world.data / "pg_wal" / name).exists()

    wait_until(is_gone, what="the log is recycled")
