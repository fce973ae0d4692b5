"""The lake: catalog and bucket come to one moment, from what survived and from the vault, or not at all."""

from __future__ import annotations

import hashlib
import io
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from pydantic import SecretStr

from infra.local.scratch_servers import scratch_s3
from tests.ops.world import World, days_ago, open_world
from tiering import errors
from tiering.model import Transition
from tiering.model_backup import Backup, BackupState
from tiering.ops import backup_lake, lifecycle, restore_lake
from tiering.ops.catalogue import Catalogue, mirror
from tiering.ops.fsck import fsck
from tiering.ops.recover_lake import LakeRecoverer
from tiering.settings import Settings
from tiering.stores import lake_walk
from tiering.stores.directory import DirectoryObjects
from tiering.stores.vault import Keyring, Vault

OLD, OLDER = days_ago(2200), days_ago(2201)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    key = SecretStr(b64encode(b"k" * 32).decode())
    return Catalogue(Vault(DirectoryObjects(tmp_path / "bucket"), Keyring(key)))


@pytest.fixture
def world(fresh_settings: Settings) -> Iterator[World]:
    with cold_world(fresh_settings) as opened:
        yield opened


@contextmanager
def cold_world(settings: Settings) -> Iterator[World]:
    with open_world(settings) as opened:
        opened.insert_day(days_ago(1))
        cool(opened, OLD)
        yield opened


def cool(world: World, day: datetime) -> None:
    world.insert_day(day)
    world.run(Transition.HOT_TO_WARM)
    assert world.run(Transition.WARM_TO_COLD)


def take(catalogue: Catalogue, world: World) -> Backup:
    buckets = {"lake": world.stores.objects, "files": world.stores.files}
    names = {"lake": world.stores.objects.bucket, "files": world.stores.files.bucket}
    pointed = partial(lake_walk.pointers, world.stores.warm)
    return backup_lake.backup(catalogue, buckets, pointed, datetime.now(UTC), names=names)


def restore(catalogue: Catalogue, world: World, *, is_approved: bool = False) -> restore_lake.RestoredLake:
    return restore_lake.restore(catalogue, world.stores.warm, world.stores.objects, is_approved=is_approved)


def data_keys(world: World) -> list[str]:
    return [stat.key for stat in world.stores.objects.list("lake/")]


def is_sound(world: World) -> bool:
    return not [one for one in fsck(world.stores, world.now, deep=True).findings if not one.is_note]


def test_a_lost_bucket_comes_back_to_its_catalog(catalogue: Catalogue, world: World) -> None:
    first = take(catalogue, world)
    cool(world, OLDER)
    second = take(catalogue, world)
    print(f"copied {first.facts['copied']}, then {second.facts['copied']} of {second.facts['versions']}")
    assert 0 < int(str(second.facts["copied"])) < int(str(second.facts["versions"]))
    assert restore_lake.verify(catalogue, second, datetime.now(UTC)) == second.size_bytes
    assert restore_lake.prove(catalogue, second, datetime.now(UTC)) > 4
    assert catalogue.entry(second.backup_id).state is BackupState.PROVEN
    expected = world.rows()
    objects = world.stores.objects
    objects.delete([stat.key for stat in objects.list()])
    done = restore(catalogue, world)
    assert done.present == done.from_versions == 0
    assert done.from_vault == done.objects > 4
    assert world.rows() == expected
    assert is_sound(world)
    assert restore(catalogue, world).present == done.objects


def test_what_survived_is_used_and_what_is_wrong_needs_approval(catalogue: Catalogue, world: World) -> None:
    cool(world, OLDER)
    take(catalogue, world)
    expected, objects = world.rows(), world.stores.objects
    deleted, spoiled = data_keys(world)
    objects._client.delete_object(Bucket=objects.bucket, Key=deleted)  # a marker over it
    objects.put_over(spoiled, b"something else")
    before = [version.version_id for version in objects.versions()]
    with pytest.raises(errors.HeldError, match="1 objects have other bytes"):
        restore(catalogue, world)
    assert [version.version_id for version in objects.versions()] == before
    done = restore(catalogue, world, is_approved=True)
    assert (done.from_versions, done.from_vault) == (2, 0)
    assert world.rows() == expected
    assert is_sound(world)


def test_an_object_that_is_nowhere_refuses_all(catalogue: Catalogue, world: World) -> None:
    take(catalogue, world)
    cool(world, OLDER)
    objects = world.stores.objects
    old, new = sorted(data_keys(world), key=lambda key: "g1" in key and str(OLDER.day) in key)
    objects.delete([old, new])
    with pytest.raises(errors.NotFound, match="1 objects are in no place"):
        restore(catalogue, world)
    assert data_keys(world) == []


def test_a_spoiled_copy_is_found_and_read_again_by_the_next(catalogue: Catalogue, world: World, tmp_path: Path) -> None:
    first = take(catalogue, world)
    for stored in first.objects[1:]:
        path = tmp_path / "bucket" / stored.name
        body = bytearray(path.read_bytes())
        body[-1] ^= 1
        path.write_bytes(body)
    with pytest.raises(errors.CorruptCopy):
        restore_lake.prove(catalogue, first, datetime.now(UTC))
    with pytest.raises(errors.CorruptCopy):
        restore_lake.verify(catalogue, first, datetime.now(UTC))
    second = take(catalogue, world)
    assert restore_lake.prove(catalogue, second, datetime.now(UTC))
    objects = world.stores.objects
    objects.delete([stat.key for stat in objects.list()])
    restore(catalogue, world)
    assert is_sound(world)


def test_buckets_come_back_on_another_object_store(catalogue: Catalogue, world: World, tmp_path: Path) -> None:
    files = world.stores.files
    files.put_new("charts/a.png", io.BytesIO(b"chart"), 5, hashlib.sha256(b"chart").hexdigest())
    backup = take(catalogue, world)

    @contextmanager
    def empty() -> Iterator[tuple[str, SecretStr, SecretStr]]:
        with scratch_s3() as stack:
            access, secret = (SecretStr(word) for word in stack.s3.credentials)
            yield stack.s3.url, access, secret

    recoverer = LakeRecoverer(catalogue, "main", empty)
    assert recoverer.window().moments == (backup.began_at,)
    with recoverer.restore(datetime.now(UTC)) as restored:
        assert recoverer.check(restored) == ()
        for of in (world.stores.objects, files):
            keys = (restored.facts[name] for name in ("s3_url", "s3_access_key", "s3_secret_key"))
            url, access, secret = keys
            there = replace(of, endpoint_url=url, access_key=access, secret_key=secret)  # type: ignore[arg-type]
            assert {one.key: one.size for one in there.list()} == {one.key: one.size for one in of.list()}
    with pytest.raises(errors.NotFound, match="or before"), recoverer.restore(datetime(2020, 1, 1, tzinfo=UTC)):
        pass


def test_an_expiry_waits_for_a_backup_of_the_lake(catalogue: Catalogue, world: World) -> None:
    """A backup from before the unit went cold does not do; one that failed its proof does not either."""
    waiting = replace(world.dataset, wait_for_backup=True)
    far = world.now + timedelta(days=3653)

    def codes() -> list[str]:
        mirror(catalogue, world.stores.warm)
        plan = lifecycle.plan_dataset(world.stores, waiting, far)
        assert all(move.transition is not Transition.EXPIRE or move.unit.begin == OLD for move in plan.moves)
        by_begin = {move.unit.begin: str(move.transition) for move in plan.moves}
        by_begin |= {stay.unit.begin: stay.reasons[0].code for stay in plan.stays}
        return [by_begin[begin] for begin in (OLD, OLDER) if begin in by_begin]

    world.insert_day(far)  # a dataset ages by its newest row
    assert codes() == ["waiting_for_backup"]
    first = take(catalogue, world)
    assert codes() == ["expire"]
    cool(world, OLDER)
    assert codes() == ["expire", "waiting_for_backup"]
    second = take(catalogue, world)
    catalogue.mark(second, BackupState.FAILED, datetime.now(UTC), {}, "a part is damaged")
    assert codes() == ["expire", "waiting_for_backup"]
    assert first.began_at < second.began_at
