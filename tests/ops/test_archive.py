"""The lake's oldest objects down the ladder, and what reading one in deep archive answers: SeaweedFS and moto."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from pydantic import SecretStr

from infra.local.moto import ACCESS_KEY, SECRET_KEY, Moto
from tests.ops.world import World, days_ago, open_world
from tiering import errors
from tiering.model import Span, State, StorageClass, Tier, Transition
from tiering.ops import archive, lifecycle, restores
from tiering.ops.export import fetched
from tiering.ops.fsck import fsck
from tiering.ops.sweep import sweep
from tiering.plan.storage import ready_about
from tiering.settings import Settings
from tiering.stores.records import UnitRecord

IA, DEEP = StorageClass.STANDARD_IA, StorageClass.DEEP_ARCHIVE
OLD, NEW = days_ago(2200), days_ago(1)
LOOKS = 30


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    with Moto() as running:
        running.restore_in_steps(LOOKS)
        yield running


def with_ladder(world: World, *steps: tuple[StorageClass, Span]) -> World:
    dataset = replace(world.dataset, storage=steps)
    kept = tuple(dataset if d.name == dataset.name else d for d in world.stores.policies.datasets)
    stores = replace(world.stores, policies=replace(world.stores.policies, datasets=kept))
    return replace(world, stores=stores, dataset=dataset)


@contextmanager
def cold_world(settings: Settings) -> Iterator[World]:
    """A world with one old cold unit, one new hot one, and a ladder of which only the first step is due."""
    with open_world(settings) as opened:
        world = with_ladder(opened, (IA, Span(months=36)))
        world.insert_day(OLD)
        world.insert_day(NEW)
        world.run(Transition.HOT_TO_WARM)
        world.run(Transition.WARM_TO_COLD)
        assert unit(world).tier is Tier.COLD
        yield world


@pytest.fixture
def world(fresh_settings: Settings) -> Iterator[World]:
    with cold_world(fresh_settings) as opened:
        yield opened


@pytest.fixture
def glacier(fresh_settings: Settings, moto: Moto) -> Iterator[World]:
    """The same on a store with restores that take time, the old unit in deep archive."""
    changed = {"s3_url": moto.url, "s3_access_key": SecretStr(ACCESS_KEY), "s3_secret_key": SecretStr(SECRET_KEY)}
    settings = fresh_settings.model_copy(update=changed)
    with open_world(settings) as opened:
        opened.stores.objects.ensure_bucket(versioned=True)
        opened.stores.files.ensure_bucket(versioned=True)
    with cold_world(settings) as opened:
        deep = with_ladder(opened, (IA, Span(months=36)), (DEEP, Span(months=60)))
        deep.run(Transition.ARCHIVE)
        assert unit(deep).storage_class is DEEP
        yield deep


def unit(world: World) -> UnitRecord:
    found = world.stores.ledger.unit(world.dataset.name, OLD)
    assert found
    return found


def object_class(world: World) -> str:
    return world.stores.objects.stat(world.stores.key(unit(world).location)).storage_class


def in_lake(world: World) -> set[str]:
    return {file.location for file in world.stores.lake.files(world.dataset.name)}


def read(world: World) -> None:
    with fetched(world.stores, unit(world)):
        pass


def look(world: World, times: int) -> None:
    for _ in range(times):
        world.stores.objects.stat(world.stores.key(unit(world).location))


def test_a_cold_object_goes_down_the_ladder(world: World) -> None:
    rows, location = world.rows(), unit(world).location
    (receipt,) = world.run(Transition.ARCHIVE)
    assert (receipt.state, receipt.row_count) == (State.COMMITTED, 60)
    assert (object_class(world), unit(world).storage_class, unit(world).location) == (IA, IA, location)
    assert location in in_lake(world)
    assert world.rows() == rows
    assert world.run(Transition.ARCHIVE) == []
    deep = with_ladder(world, (IA, Span(months=36)), (DEEP, Span(months=60)))
    deep.run(Transition.ARCHIVE)
    assert (object_class(world), unit(world).storage_class, unit(world).location) == (DEEP, DEEP, location)
    assert location not in in_lake(world), "outside readers would fail on it"
    assert fsck(world.stores, world.now).is_clean
    assert len(list(world.stores.objects.versions(world.stores.key(location)))) == 1
    sweep(deep.stores, world.now + timedelta(days=30), "test")
    assert object_class(world) == DEEP
    # SeaweedFS reads archived objects at once, and nobody has to wait for anything.
    archive.ask_for(world.stores, unit(world), world.now)
    assert world.rows() == rows


@pytest.mark.parametrize("done", ["copy", "verify"])
def test_a_run_that_died_is_carried_on(world: World, done: str) -> None:
    """The class has changed, and whoever changed it is gone before it was recorded."""
    (move_id,) = world.begin(Transition.ARCHIVE)
    record = lifecycle.seal(world.stores, move_id, world.now, "dead")
    key = world.stores.key(record.source)
    world.stores.objects.change_class(key, IA, world.stores.objects.stat(key).etag, keep_source=True)
    if done == "verify":
        lifecycle.copy(world.stores, move_id, world.now, "dead")
        world.stores.objects.finish_change(key)
    receipt = lifecycle.run_move(world.stores, move_id, world.now, "next")
    assert receipt.state is State.COMMITTED
    assert (object_class(world), unit(world).storage_class) == (IA, IA)
    assert len(list(world.stores.objects.versions(key))) == 1


def test_an_object_that_is_not_what_was_recorded_is_quarantined(world: World) -> None:
    (move_id,) = world.begin(Transition.ARCHIVE)
    lifecycle.seal(world.stores, move_id, world.now, "test")
    key = world.stores.key(unit(world).location)
    world.stores.objects._client.put_object(Bucket=world.stores.lake_bucket, Key=key, Body=b"somebody's")
    lifecycle.copy(world.stores, move_id, world.now, "test")
    with pytest.raises(errors.CorruptCopy, match=key):
        lifecycle.verify(world.stores, move_id, world.now, "test")
    assert world.stores.ledger.move(move_id).state is State.QUARANTINED


def test_reading_deep_archive_answers_at_once_and_asks_once(glacier: World) -> None:
    stores, now = glacier.stores, glacier.now
    began = time.monotonic()
    with pytest.raises(errors.InDeepArchive, match="deep archive"):
        read(glacier)
    look(glacier, LOOKS)
    expected = ready_about(now, "Standard")
    for later in (now, now + timedelta(hours=1)):
        with pytest.raises(
            errors.InDeepArchive, match=f"restore requested, ready about {expected:%Y-%m-%d %H:%M}Z"
        ) as e:
            archive.ask_for(stores, unit(glacier), later)
        assert (e.value.is_requested, e.value.ready_about) == (True, expected)
    assert time.monotonic() - began < 20
    (row,) = restores.find(stores, dataset=glacier.dataset)
    assert (row.restore_state.value, row.asked_at, row.ready_at) == ("REQUESTED", now, expected)
    assert restores.poll(stores, now, "test") == []
    look(glacier, LOOKS)
    (change,) = restores.poll(stores, now + timedelta(hours=12), "test")
    assert change.record.restore_state.value == "AVAILABLE"
    assert change.record.until
    assert restores.poll(stores, now + timedelta(hours=12), "test") == [], "told once"
    archive.ask_for(stores, unit(glacier), now + timedelta(hours=13))
    read(glacier)
    assert len(glacier.cold_rows()) == 60


def test_a_range_or_a_prefix_is_asked_for(glacier: World) -> None:
    stores, now = glacier.stores, glacier.now
    look(glacier, LOOKS)
    after = OLD + timedelta(days=1)
    assert restores.find(stores, dataset=glacier.dataset, begin=after) == []
    assert restores.find(stores, dataset=glacier.dataset, end=OLD) == []
    assert restores.find(stores, prefix="lake/other") == []
    found = restores.find(stores, dataset=glacier.dataset, begin=OLD, end=after, prefix="lake/market_bars/")
    (asked,) = restores.request(stores, found, now, "test", days=2, speed="Bulk")
    assert (asked.restore_state.value, asked.ready_at) == ("REQUESTED", now + timedelta(hours=48))
    (again,) = restores.request(stores, found, now + timedelta(hours=5), "test", days=2, speed="Bulk")
    assert again.ready_at == now + timedelta(hours=48)
    with pytest.raises(errors.PermanentError, match="Standard or Bulk"):
        restores.request(stores, found, now, "test", days=2, speed="Warp")


def test_an_archived_unit_expires_without_being_read(glacier: World) -> None:
    at: datetime = OLD + timedelta(days=11 * 366)
    location = unit(glacier).location
    glacier.insert_day(at.replace(hour=0, minute=0) - timedelta(days=1))
    receipts = glacier.run(Transition.EXPIRE, at=at)
    assert [r.state for r in receipts if r.unit.begin == OLD] == [State.COMMITTED]
    assert unit(glacier).tier is Tier.EXPIRED
    sweep(glacier.stores, at + timedelta(days=3), "test")
    sweep(glacier.stores, at + timedelta(days=6), "test")
    assert list(glacier.stores.objects.versions(glacier.stores.key(location))) == []
