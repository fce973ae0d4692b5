"""The vault: what was sealed comes back, and nothing else ever does."""

from __future__ import annotations

import io
import random
import shutil
from base64 import b64encode
from pathlib import Path

import pytest
from pydantic import SecretStr

from tiering import errors
from tiering.stores.directory import DirectoryObjects
from tiering.stores.vault import FRAME_BYTES, PART_BYTES, Keyring, Vault

SEED = 20261123
KEY, OTHER = (b64encode(bytes([number]) * 32).decode() for number in (1, 2))


def open_vault(directory: Path, keys: str = KEY) -> Vault:
    return Vault(DirectoryObjects(directory), Keyring(SecretStr(keys)))


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES])
@pytest.mark.parametrize("kind", ["zeros", "noise"])
def test_what_was_put_is_read(tmp_path: Path, size: int, kind: str) -> None:
    data = bytes(size) if kind == "zeros" else random.Random(SEED).randbytes(size)
    vault = open_vault(tmp_path)
    stored = vault.put("a/b", data)
    assert vault.fetch(stored) == data
    assert stored.size_bytes == size
    if kind == "zeros" and size > 1:
        assert stored.stored_bytes < size / 100 + 200


def test_a_long_stream_is_kept_in_parts_and_read_as_one(tmp_path: Path) -> None:
    block = random.Random(SEED).randbytes(1 << 20)
    data = block * (PART_BYTES // len(block)) + b"tail"
    vault = open_vault(tmp_path)
    parts = vault.put_stream("base/", io.BytesIO(data))
    assert [part.name for part in parts] == ["base/00000", "base/00001"]
    with vault.stream(parts) as stream:
        assert stream.read() == data


def test_every_flipped_byte_and_every_cut_is_found(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    choice = random.Random(SEED)
    vault = open_vault(tmp_path)
    stored = vault.put("x", b"close to nothing " * 20)
    path = tmp_path / "x"
    whole = path.read_bytes()
    spoiled = [whole[:at] + bytes([whole[at] ^ 1 << choice.randrange(8)]) + whole[at + 1 :] for at in range(len(whole))]
    spoiled += [whole[:at] for at in range(len(whole))] + [whole + b"\0"]
    path.chmod(0o600)
    for bad in spoiled:
        path.write_bytes(bad)
        # A flip in the key's id looks like a key that is lost: as loud, and nothing is opened.
        with pytest.raises((errors.CorruptCopy, errors.KeyMissing)):
            vault.fetch(stored)
    path.write_bytes(whole)
    assert vault.fetch(stored) == b"close to nothing " * 20


def test_objects_cannot_be_exchanged_for_one_another(tmp_path: Path) -> None:
    vault = open_vault(tmp_path)
    vault.put("one", b"1")
    vault.put("two", b"2")
    (tmp_path / "two").unlink()
    shutil.copy(tmp_path / "one", tmp_path / "two")
    with pytest.raises(errors.CorruptCopy):
        vault.read("two")


def test_frames_cannot_be_left_out_or_exchanged(tmp_path: Path) -> None:
    vault = open_vault(tmp_path)
    vault.put("x", random.Random(SEED).randbytes(3 * FRAME_BYTES))
    path = tmp_path / "x"
    whole, frame = path.read_bytes(), FRAME_BYTES + 9 + 16
    frames = [whole[32 + number * frame :][:frame] for number in range(3)]
    path.chmod(0o600)
    for order in ([1, 0, 2], [0, 2], [0, 1], [2], [0, 1, 1, 2]):
        path.write_bytes(whole[:32] + b"".join(frames[number] for number in order))
        with pytest.raises(errors.CorruptCopy):
            vault.read("x")


def test_an_older_object_of_the_same_name_is_not_taken(tmp_path: Path) -> None:
    first, second = open_vault(tmp_path / "a"), open_vault(tmp_path / "b")
    stored = first.put("x", b"now")
    second.put("x", b"old")
    shutil.copy(tmp_path / "b" / "x", tmp_path / "old")
    (tmp_path / "a" / "x").unlink()
    shutil.copy(tmp_path / "old", tmp_path / "a" / "x")
    with pytest.raises(errors.CorruptCopy, match="catalogue"):
        first.fetch(stored)


def test_keys_are_turned_over_and_a_lost_one_is_named(tmp_path: Path) -> None:
    open_vault(tmp_path).put("old", b"1")
    turned = open_vault(tmp_path, f"{OTHER},{KEY}")
    turned.put("new", b"2")
    assert (turned.read("old"), turned.read("new")) == (b"1", b"2")
    with pytest.raises(errors.KeyMissing, match="HINT: Put the lost key") as caught:
        open_vault(tmp_path, OTHER).read("old")
    assert KEY not in str(caught.value)
    assert OTHER not in str(caught.value)


@pytest.mark.parametrize("keys", ["", " , ", "short", b64encode(b"x" * 31).decode(), "not base64 at all!"])
def test_a_bad_key_is_refused_before_anything_is_stored(tmp_path: Path, keys: str) -> None:
    with pytest.raises(errors.SettingsError, match="HINT") as caught:
        open_vault(tmp_path, keys).put("x", b"1")
    assert not list(tmp_path.rglob("x"))
    assert not keys.strip(" ,") or keys not in str(caught.value)


def test_nothing_readable_is_stored(tmp_path: Path) -> None:
    open_vault(tmp_path).put("x", b"canary" * 1000)
    assert b"canary" not in (tmp_path / "x").read_bytes()
