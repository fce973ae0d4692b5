"""The catalogue of backups: in the bucket alone, last record last, one publisher; one bad record hides no other."""

from __future__ import annotations

import io
import multiprocessing
import random
import secrets
import threading
from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.wait import wait_until
from tiering import errors
from tiering.model_backup import Backup, BackupKind, BackupState, StoreName, decode_position, encode_position
from tiering.ops import backup_lease
from tiering.ops.catalogue import Catalogue, new_backup_id
from tiering.settings import Settings
from tiering.stores.directory import DirectoryObjects
from tiering.stores.objects import S3Objects
from tiering.stores.ports import ObjectStore
from tiering.stores.vault import Keyring, Vault

SEED = 20261123
NOW = datetime(2026, 11, 23, 2, tzinfo=UTC)
KEY, OTHER = (b64encode(bytes([number]) * 32).decode() for number in (1, 2))
PG, MONGO = StoreName.POSTGRESQL, StoreName.MONGODB
LIFE = timedelta(seconds=3)


@pytest.fixture(params=["directory", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "directory":
        return DirectoryObjects(tmp_path)
    settings: Settings = request.getfixturevalue("fresh_settings")
    return S3Objects(settings.s3_url, settings.backup_bucket, settings.s3_access_key, settings.s3_secret_key)


@pytest.fixture
def catalogue(objects: ObjectStore) -> Catalogue:
    return opened(objects)


def opened(objects: ObjectStore, key: str = KEY) -> Catalogue:
    return Catalogue(Vault(objects, Keyring(SecretStr(key))), expires_after=LIFE)


def upload(
    catalogue: Catalogue, at: datetime = NOW, *, kind: BackupKind = BackupKind.FULL, parent: str | None = None
) -> Backup:
    backup_id = new_backup_id(kind, at)
    empty = Backup(backup_id, PG, "main", kind, parent, "7410", at, at + timedelta(minutes=5), "0/28", "1/A0", ())
    stored = catalogue.vault.put_stream(empty.prefix + "base/", io.BytesIO(b"pages" * 100))
    return replace(empty, objects=stored, facts={"version": 180003, "wal": ["a", 1]})


def test_a_backup_is_what_it_was_for_whoever_has_bucket_and_key(catalogue: Catalogue, objects: ObjectStore) -> None:
    backup = upload(catalogue)
    assert catalogue.entries() == []
    catalogue.publish(backup)
    catalogue.publish(backup)
    [entry] = opened(objects).entries(PG, "main")
    assert entry.backup == backup
    assert entry.state is BackupState.UPLOADED
    assert opened(objects).entries(MONGO) == opened(objects).entries(PG, "hot") == []
    assert opened(objects).entry(backup.backup_id).backup == backup
    assert opened(objects).vault.fetch(entry.backup.objects[0]) == b"pages" * 100


def test_a_half_uploaded_backup_is_not_there(catalogue: Catalogue) -> None:
    backup = upload(catalogue)
    with pytest.raises(errors.NotFound, match="HINT: `tiering backups`"):
        catalogue.entry(backup.backup_id)
    catalogue.vault.discard([backup.objects[0].name])
    with pytest.raises(errors.NotFound, match="does not have this object"):
        catalogue.publish(backup)
    assert catalogue.entries() == []
    child = upload(catalogue, kind=BackupKind.INCREMENTAL, parent=backup.backup_id)
    with pytest.raises(errors.NotFound, match="its parent"):
        catalogue.publish(child)


def test_trust_grows_check_by_check_and_falls_with_a_failure(catalogue: Catalogue) -> None:
    backup = upload(catalogue)
    catalogue.publish(backup)

    def state_after(state: BackupState, hour: int, problem: str = "") -> tuple[BackupState, datetime | None, str]:
        catalogue.mark(backup, state, NOW + timedelta(hours=hour), {"rows": 7}, problem)
        entry = catalogue.entry(backup.backup_id)
        return entry.state, entry.proven_at, entry.problem

    first, second = (NOW + timedelta(hours=hour) for hour in (2, 5))
    assert state_after(BackupState.VERIFIED, 1) == (BackupState.VERIFIED, None, "")
    assert state_after(BackupState.PROVEN, 2) == (BackupState.PROVEN, first, "")
    assert state_after(BackupState.FAILED, 3, "row 7") == (BackupState.FAILED, first, "row 7")
    assert state_after(BackupState.VERIFIED, 4)[0] is BackupState.FAILED
    assert state_after(BackupState.PROVEN, 5) == (BackupState.PROVEN, second, "")
    assert len(catalogue.checks(backup)) == 5
    with pytest.raises(errors.AlreadyExists):
        catalogue.mark(backup, BackupState.PROVEN, second, {"rows": 8})
    with pytest.raises(ValueError, match="publish"):
        catalogue.mark(backup, BackupState.UPLOADED, second, {})


def test_a_lost_key_is_said_and_one_lost_record_hides_no_other(objects: ObjectStore, catalogue: Catalogue) -> None:
    old = upload(catalogue, NOW)
    catalogue.publish(old)
    with pytest.raises(errors.KeyMissing, match="HINT: Put the lost key") as caught:
        opened(objects, OTHER).entries()
    assert KEY not in str(caught.value)
    turned = opened(objects, f"{OTHER},{KEY}")
    new = upload(turned, NOW + timedelta(days=1))
    turned.publish(new)
    assert [entry.backup for entry in turned.entries()] == [old, new]
    told, well = opened(objects, OTHER).entries()
    assert (told.state, told.backup.backup_id, told.backup.began_at) == (BackupState.FAILED, old.backup_id, NOW)
    assert "cannot be read" in told.problem
    assert well.backup == new
    with pytest.raises(errors.KeyMissing):
        opened(objects, OTHER).entry(old.backup_id)


def test_a_flipped_record_fails_its_backup_only(tmp_path: Path) -> None:
    catalogue = opened(DirectoryObjects(tmp_path))
    for day in range(2):
        catalogue.publish(upload(catalogue, NOW + timedelta(days=day)))
    record = sorted(tmp_path.glob("catalogue/*/*/*/UPLOADED"))[0]
    record.chmod(0o600)
    data = bytearray(record.read_bytes())
    data[random.Random(SEED).randrange(40, len(data))] ^= 1
    record.write_bytes(data)
    states = [entry.state for entry in opened(DirectoryObjects(tmp_path)).entries()]
    assert states == [BackupState.FAILED, BackupState.UPLOADED]


def test_logs_are_known_by_their_names_in_order(catalogue: Catalogue, objects: ObjectStore) -> None:
    spans = [("0/28", "0/FF000000"), ("0/FF000000", "1/0"), ("1/0", "1/28")]
    for number in random.Random(SEED).sample(range(3), 3):
        catalogue.put_log(PG, "main", "7410", 1, *spans[number], b"x" * number)
    catalogue.put_log(PG, "main", "7410", 16, "1/28", "1/30", b"after a switch")
    catalogue.put_log(PG, "main", "7411", 1, "0/28", "0/30", b"another history")
    catalogue.put_log(MONGO, "main", "abc", 0, "1700000000,7", "1700000009,1", b"oplog")
    found = opened(objects).logs(PG, "main", "7410")
    assert [(one.begins, one.ends) for one in found] == [*spans, ("1/28", "1/30")]
    assert [one.timeline for one in found] == [1, 1, 1, 16]
    assert [one.incarnation for one in opened(objects).logs(PG, "main")] == ["7410"] * 4 + ["7411"]
    assert catalogue.vault.read(found[2].stored.name) == b"xx"
    [oplog] = catalogue.logs(MONGO, "main")
    assert (oplog.begins, oplog.ends) == ("1700000000,7", "1700000009,1")


def test_a_stretch_of_log_is_written_once(catalogue: Catalogue) -> None:
    first = catalogue.put_log(PG, "main", "7410", 1, "0/28", "0/30", b"once")
    assert catalogue.put_log(PG, "main", "7410", 1, "0/28", "0/30", b"once") == first
    with pytest.raises(errors.AlreadyExists):
        catalogue.put_log(PG, "main", "7410", 1, "0/28", "0/30", b"else")


def test_positions_sort_as_texts() -> None:
    print(f"seed {SEED}")
    choice = random.Random(SEED)
    for make in (
        lambda: f"{choice.randrange(1 << choice.randrange(1, 33)):X}/{choice.randrange(1 << 32):X}",
        lambda: f"{choice.randrange(1 << 32)},{choice.randrange(1 << choice.randrange(1, 33))}",
        lambda: str(choice.randrange(1 << choice.randrange(1, 64))),
    ):
        positions = [make() for _ in range(200)]
        assert [decode_position(encode_position(one)) for one in positions] == positions
        in_order = sorted(positions, key=lambda one: [int(part, 16) for part in one.replace(",", "/").split("/")])
        if "," in positions[0] or positions[0].isdecimal():
            in_order = sorted(positions, key=lambda one: [int(part) for part in one.split(",")])
        assert sorted(positions, key=encode_position) == in_order
    for wrong in ("", "now", "1/2/3", "-1", "0/123456789"):
        with pytest.raises(ValueError, match="position"):
            encode_position(wrong)


def test_of_two_backups_at_once_one_is_refused(catalogue: Catalogue, objects: ObjectStore) -> None:
    with catalogue.lease(PG, "main", "the first", NOW):
        with pytest.raises(errors.LeaseHeld, match="the first is at it since 2026"):
            opened(objects).lease(PG, "main", "the second", NOW).__enter__()
        with opened(objects).lease(PG, "warm", "of something else", NOW):
            pass
        first = upload(catalogue)
        catalogue.publish(first)
        second = upload(catalogue, NOW + timedelta(hours=1))
        catalogue.publish(second)
    with opened(objects).lease(PG, "main", "the second", NOW) as lease:
        lease.check()
    assert len(catalogue.entries()) == 2


def test_of_many_at_once_one_has_it(catalogue: Catalogue, objects: ObjectStore) -> None:
    start, done, won, lost = threading.Barrier(8), threading.Barrier(8), [], []

    def contend(number: int) -> None:
        mine = opened(objects)
        start.wait()
        try:
            with mine.lease(PG, "main", f"number {number}", NOW):
                won.append(number)
                done.wait()
        except errors.LeaseHeld as exc:
            lost.append(exc)
            done.wait()

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)


def test_signs_of_life_keep_a_lease_and_leave_little(catalogue: Catalogue, objects: ObjectStore) -> None:
    def beats() -> list[str]:
        return [stat.key for stat in catalogue.vault.names("lease/") if "/beat-" in stat.key]

    with catalogue.lease(PG, "main", "the first", NOW):
        for number in (2, 6):
            wait_until(lambda number=number: any(key.endswith(f"{number:010d}") for key in beats()))
            with pytest.raises(errors.LeaseHeld):
                opened(objects).lease(PG, "main", "the second", NOW).__enter__()
        assert len(beats()) <= 2


def _hold_and_die(objects: ObjectStore, ready: object) -> None:
    with opened(objects).lease(PG, "main", "who is killed", NOW):
        ready.set()  # type: ignore[attr-defined]
        threading.Event().wait()


def test_the_lease_of_a_killed_process_is_free_soon(catalogue: Catalogue, objects: ObjectStore) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold_and_die, args=(objects, ready))
    process.start()
    assert ready.wait(60)
    process.kill()
    process.join()
    with pytest.raises(errors.LeaseHeld, match="who is killed"):
        catalogue.lease(PG, "main", "the next", NOW).__enter__()

    def takes() -> bool:
        try:
            with catalogue.lease(PG, "main", "the next", NOW - timedelta(days=400)):
                return True
        except errors.LeaseHeld:
            return False

    wait_until(takes, 30)


def test_who_was_thought_dead_publishes_nothing(catalogue: Catalogue, objects: ObjectStore) -> None:
    """The holder stalls without dying; its successor takes over, whatever the clocks; only one publishes."""
    what = f"{PG}/main"
    lease = backup_lease.take(catalogue.vault, what, "stalled", NOW, timedelta(days=1))
    stalled = lease.__enter__()
    catalogue._held[(PG, "main")] = stalled
    early, late = upload(catalogue), upload(catalogue)
    impatient = Catalogue(opened(objects).vault, expires_after=timedelta(seconds=-5))
    with impatient.lease(PG, "main", "successor", NOW):
        with pytest.raises(errors.LeaseHeld, match="took the lease over"):
            stalled.check()
        with pytest.raises(errors.LeaseHeld, match="took the lease over"):
            catalogue.publish(early)
        impatient.publish(late)
    lease.__exit__(None, None, None)
    assert [entry.backup for entry in catalogue.entries()] == [late]


def test_spent_epochs_are_litter_but_the_newest_is_not(catalogue: Catalogue) -> None:
    for _ in range(3):
        with catalogue.lease(PG, "main", secrets.token_hex(4), NOW):
            pass
    far = datetime.now(UTC) + timedelta(days=1)
    litter = backup_lease.spent_names(catalogue.vault, far)
    assert {name.split("/")[3] for name in litter} == {"0000000001", "0000000002"}
    assert backup_lease.spent_names(catalogue.vault, far - timedelta(days=2)) == []
    catalogue.vault.discard(litter)
    with catalogue.lease(PG, "main", "the fourth", NOW) as lease:
        assert lease.epoch == 4
