"""Directories: what comes back is what was there; equal parts are stored once; nothing is written outside."""

from __future__ import annotations

import os
import random
import threading
from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tiering import errors
from tiering.model_backup import Backup, BackupKind, BackupSchedule, BackupState, BackupStrategy, StoreName
from tiering.model_backup import StoreStrategy as Strategy
from tiering.ops import backup_files, restore_files, sweep_backups
from tiering.ops.backup_files import Sources
from tiering.ops.catalogue import Catalogue
from tiering.stores.directory import DirectoryObjects
from tiering.stores.file_tree import FILE, LINK, Node, TreeWriter
from tiering.stores.vault import Keyring, Vault

SEED = 20261123
NOW = datetime(2026, 11, 23, 1, tzinfo=UTC)
FILES = StoreName.APPLICATION_DATA


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    key = SecretStr(b64encode(b"k" * 32).decode())
    return Catalogue(Vault(DirectoryObjects(tmp_path / "bucket"), Keyring(key)))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Small files, a large one, odd names, links, permissions."""
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    root = tmp_path / "data"
    (root / "charts" / "empty").mkdir(parents=True)
    for number in range(300):
        (root / "charts" / f"{number:03d}.png").write_bytes(dice.randbytes(dice.randrange(4000)))
    (root / "history.db").write_bytes(dice.randbytes(12 << 20))
    (root / "nothing").write_bytes(b"")
    (root / os.fsdecode(b"odd \xff\n name")).write_bytes(b"odd")
    (root / "charts" / "000.png").chmod(0o750)
    os.utime(root / "charts" / "001.png", ns=(1, 1_600_000_000_123_456_789))
    (root / "latest").symlink_to("charts/000.png")
    (root / "charts" / "up").symlink_to("../history.db")
    (root / "outside").symlink_to("/etc/passwd")
    os.mkfifo(root / "pipe")
    return root


def take(catalogue: Catalogue, root: Path, now: datetime = NOW, **options: Any) -> Backup:
    found = backup_files.backup(catalogue, FILES, Sources({"": root}), now, **options)
    assert found is not None
    return found


def looks(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in root.rglob("*"):
        facts = path.lstat()
        is_link = path.is_symlink()
        held = os.readlink(path) if is_link else path.read_bytes() if path.is_file() else b""
        if not path.is_fifo():
            found[str(path.relative_to(root))] = (facts.st_mode, facts.st_mtime_ns, held)
    return found


def test_a_tree_comes_back_as_it_was_and_is_proven(catalogue: Catalogue, tree: Path, tmp_path: Path) -> None:
    backup = take(catalogue, tree)
    assert backup.facts["skipped"] == 1
    assert restore_files.verify(catalogue, backup, NOW) == backup.size_bytes
    assert restore_files.prove(catalogue, backup, NOW) == backup.facts["files"] == 303
    assert catalogue.entry(backup.backup_id).state is BackupState.PROVEN
    done = restore_files.restore(catalogue.vault, backup, tmp_path / "there")
    assert done.left_out == ("outside",)
    expected = looks(tree)
    del expected["outside"]
    assert looks(tmp_path / "there") == expected
    assert restore_files.restore(catalogue.vault, backup, tmp_path / "all", outside_links=True).left_out == ()
    assert os.readlink(tmp_path / "all" / "outside") == "/etc/passwd"
    with pytest.raises(errors.AlreadyExists, match="not empty"):
        restore_files.restore(catalogue.vault, backup, tmp_path / "there")


def test_what_is_equal_is_stored_once_and_names_tell_nothing(catalogue: Catalogue, tree: Path, tmp_path: Path) -> None:
    first = take(catalogue, tree)
    again = take(catalogue, tree, NOW + timedelta(days=1))
    assert again.facts["new_bytes"] == 0
    history = tree / "history.db"
    body = history.read_bytes()
    history.write_bytes(body[: 5 << 20] + b"inserted" + body[5 << 20 :])
    (tree / "copy.db").write_bytes(body)
    later = take(catalogue, tree, NOW + timedelta(days=2))
    share = int(str(later.facts["new_bytes"])) / later.size_bytes
    print(f"stored anew: {first.facts['new_bytes']} of {first.size_bytes}, 0 of {again.size_bytes}, {share:.1%} after")
    assert share < 0.4
    names = [stat.key for stat in catalogue.vault.names("")]
    assert not any("chart" in name or "history" in name for name in names)
    other = Catalogue(Vault(DirectoryObjects(tmp_path / "o"), Keyring(SecretStr(b64encode(b"o" * 32).decode()))))
    chunks = {stored.name for stored in take(other, tree).objects} & set(names)
    assert not chunks  # another key, other names: who has the contents cannot tell that they are here


def test_configuration_is_kept_when_it_changed(catalogue: Catalogue, tmp_path: Path) -> None:
    file = tmp_path / "policies.yaml"
    file.write_text("a: 1\n")

    def look(minute: int) -> Backup | None:
        sources = Sources({"deployments/policies.yaml": file}, {"servers/redis.conf": b"maxmemory 1\n"})
        now = NOW + timedelta(minutes=minute)
        return backup_files.backup(catalogue, StoreName.CONFIGURATION, sources, now, only_if_changed=True, strict=True)

    first = look(0)
    assert first is not None
    assert look(5) is None
    os.utime(file)
    assert look(10) is None
    file.write_text("a: 2\n")
    second = look(15)
    assert second is not None
    for backup, text in ((first, "a: 1\n"), (second, "a: 2\n")):
        into = tmp_path / backup.backup_id
        restore_files.restore(catalogue.vault, backup, into)
        assert (into / "deployments" / "policies.yaml").read_text() == text
        assert (into / "servers" / "redis.conf").read_bytes() == b"maxmemory 1\n"
        restore_files.prove(catalogue, backup, NOW)


def test_a_file_that_changes_while_it_is_read_is_read_again_or_named(catalogue: Catalogue, tree: Path) -> None:
    target = tree / "history.db"
    body = target.read_bytes()

    def once(_: int, path: str) -> None:
        if path == "history.db" and target.stat().st_size == len(body):
            target.write_bytes(body[: 6 << 20])

    backup = take(catalogue, tree, progress=once)
    assert backup.facts["torn"] == []
    assert restore_files.prove(catalogue, backup, NOW) == 303
    listed = {one.node.path: one.node for one in backup_files.list_of(catalogue.vault, backup)[1]}
    assert listed["history.db"].size == 6 << 20

    stop = threading.Event()

    def always() -> None:
        with target.open("ab") as file:
            while not stop.is_set():
                file.write(b"x")
                file.flush()

    writer = threading.Thread(target=always)
    writer.start()
    try:
        backup = take(catalogue, tree, NOW + timedelta(days=1))
        assert backup.facts["torn"] == ["history.db"]
        with pytest.raises(errors.CommitConflict, match=r"history\.db changes all the time"):
            take(catalogue, tree, NOW + timedelta(days=2), strict=True)
    finally:
        stop.set()
        writer.join()
    restore_files.prove(catalogue, backup, NOW + timedelta(days=1))
    assert len(catalogue.entries()) == 2


def test_nothing_is_written_outside_of_the_directory(tmp_path: Path) -> None:
    plain = Node("a", FILE, 0o600, 0, 0, 0)
    for path in ("../a", "/a", "a/../../b", "a//b", "", "x/y", "a\0b", "."):
        with TreeWriter(tmp_path / "into") as writer:
            writer.add(Node("", "dir", 0o700, 0, 0, 0))
            with pytest.raises(errors.CorruptCopy, match="no place"):
                writer.add(replace(plain, path=path))
    with TreeWriter(tmp_path / "through") as writer:
        writer.add(Node("", "dir", 0o700, 0, 0, 0))
        writer.add(Node("link", LINK, 0o777, 0, 0, 0, target=str(tmp_path)))
        with pytest.raises(errors.CorruptCopy, match="no place"):
            writer.add(replace(plain, path="link/a"))
        with pytest.raises(errors.CorruptCopy, match="no place"):
            writer.add(replace(plain, path="link"))
        for number, target in enumerate(("..", "a/../..", "d/..", "/", "../through/a")):
            writer.add(Node(f"bad{number}", LINK, 0o777, 0, 0, 0, target=target))
        writer.add(Node("d", "dir", 0o700, 0, 0, 0))
        writer.add(Node("d/good", LINK, 0o777, 0, 0, 0, target="../d/x"))
        # Somebody swaps a directory for a link while it is being written.
        writer.add(Node("e", "dir", 0o700, 0, 0, 0))
        (tmp_path / "through" / "e").rmdir()
        (tmp_path / "through" / "e").symlink_to(tmp_path)
        with pytest.raises(errors.PermanentError):
            writer.add(replace(plain, path="e/a"))
        (tmp_path / "through" / "e").unlink()
        (tmp_path / "through" / "e").mkdir()
        assert writer.finish(outside_links=False) == ["link", *(f"bad{number}" for number in range(5))]
    assert not (tmp_path / "a").exists()
    assert os.readlink(tmp_path / "through" / "d" / "good") == "../d/x"


def test_a_spoiled_part_is_found_and_stored_anew_by_the_next(catalogue: Catalogue, tree: Path, tmp_path: Path) -> None:
    first = take(catalogue, tree)
    victim = tmp_path / "bucket" / first.objects[-2].name
    body = bytearray(victim.read_bytes())
    body[len(body) // 2] ^= 1
    victim.write_bytes(body)
    with pytest.raises(errors.CorruptCopy, match="1 of"):
        restore_files.verify(catalogue, first, NOW)
    with pytest.raises(errors.CorruptCopy):
        restore_files.prove(catalogue, first, NOW + timedelta(minutes=1))
    assert catalogue.entry(first.backup_id).state is BackupState.FAILED
    second = take(catalogue, tree, NOW + timedelta(hours=1))
    assert 0 < int(str(second.facts["new_bytes"])) < second.size_bytes / 4
    restore_files.verify(catalogue, second, NOW)
    assert restore_files.prove(catalogue, second, NOW) == 303


def test_parts_go_when_the_last_backup_that_rests_on_them_does(catalogue: Catalogue, tree: Path) -> None:
    strategy = BackupStrategy(
        (Strategy(FILES, (BackupSchedule(BackupKind.FULL, (NOW.time(),)),), {BackupKind.FULL: timedelta(days=90)}),)
    )
    real = datetime.now(UTC)
    old = take(catalogue, tree, real)
    restore_files.prove(catalogue, old, real)
    (tree / "history.db").write_bytes(random.Random(1).randbytes(3 << 20))
    recent = [take(catalogue, tree, real + timedelta(days=day)) for day in (100, 101)]
    for backup in recent:
        restore_files.prove(catalogue, backup, backup.began_at)
    before = {stat.key for stat in catalogue.vault.names("chunks/")}
    later = real + timedelta(days=102)
    dry = sweep_backups.retain(catalogue, strategy, later, "test")
    assert [one.entry.backup.backup_id for one in dry[0].plan.removed] == [old.backup_id]
    with_clock = sweep_backups.retain(catalogue, strategy, later, "test", apply=True)
    assert "clock" in with_clock[0].skipped  # no machine's clock runs months ahead of the bucket's
    doomed = {name for name in dry[0].leftovers if name.startswith("chunks/")}
    in_use = {stored.name for backup in recent for stored in backup.objects}
    assert doomed == before - in_use
    assert doomed
