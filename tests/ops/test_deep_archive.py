"""What needs an object in deep archive says when it can be had, and goes on once it is there: moto's restores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from pydantic import SecretStr

from infra.local.moto import ACCESS_KEY, SECRET_KEY, Moto
from tests.ops.erase_world import PERSON, People, open_people
from tests.ops.test_archive import DEEP, IA, LOOKS, OLD, glacier, look, moto, unit
from tests.ops.world import NOW, World, days_ago
from tiering import errors
from tiering.model import Span, State, StorageClass, Tier, Transition
from tiering.ops import lifecycle, rehydrate
from tiering.ops.erase import erase
from tiering.ops.fsck import fsck
from tiering.plan.erase import Person
from tiering.plan.policies import parse_span
from tiering.settings import Settings
from tiering.stores.records import UnitRecord

__all__ = ["glacier", "moto"]  # fixtures

READY = NOW + timedelta(hours=12)
REQUESTED = f"cold, restore requested, ready about {READY:%Y-%m-%d %H:%M}Z"


def put_back(world: World) -> None:
    """End the restore of the old unit's object, as its days do."""
    objects, key = world.stores.objects, world.stores.key(unit(world).location)
    objects._client.copy_object(
        Bucket=objects.bucket,
        Key=key,
        CopySource={"Bucket": objects.bucket, "Key": key},
        StorageClass=DEEP,
        MetadataDirective="COPY",
    )


def test_a_merge_into_deep_archive_waits_for_the_restore_and_then_goes_on(glacier: World) -> None:
    range_of = (glacier.stores, glacier.dataset, OLD, OLD + timedelta(days=1))
    glacier.insert_day(OLD, symbols=5)
    rows = glacier.rows
    assert glacier.begin(Transition.MERGE) == [], "nobody pays for a restore unasked"
    look(glacier, LOOKS)
    assert [b.state for b in rehydrate.rehydrate(*range_of, NOW, parse_span("7d"), "test")] == ["waiting"]
    look(glacier, LOOKS)
    assert [b.state for b in rehydrate.rehydrate(*range_of, READY, parse_span("7d"), "test")] == ["copied"]
    (move_id,) = glacier.begin(Transition.MERGE)
    put_back(glacier)
    look(glacier, LOOKS)
    for _ in range(2):
        with pytest.raises(errors.InDeepArchive, match=REQUESTED) as caught:
            lifecycle.run_move(glacier.stores, move_id, NOW, "test")
        assert caught.value.ready_about == READY, "asked for once"
    assert unit(glacier).unit.generation == 1
    look(glacier, LOOKS)
    assert lifecycle.run_move(glacier.stores, move_id, READY, "test").state is State.COMMITTED
    assert (unit(glacier).unit.generation, unit(glacier).storage_class) == (2, StorageClass.STANDARD)
    found = rows()
    assert len(found) == len(set(found)) == 60 + 40 + 60, "the day, what came late, and the day of now"
    assert fsck(glacier.stores, READY, deep=True).is_clean


@pytest.fixture
def people(fresh_settings: Settings, moto: Moto) -> Iterator[People]:
    """People whose activity of long ago is in deep archive."""
    changed = {"s3_url": moto.url, "s3_access_key": SecretStr(ACCESS_KEY), "s3_secret_key": SecretStr(SECRET_KEY)}
    with open_people(fresh_settings.model_copy(update=changed)) as opened:
        opened.stores.objects.ensure_bucket(versioned=True)
        opened.stores.files.ensure_bucket(versioned=True)
        activity = replace(opened.activity, storage=((IA, Span(months=36)), (DEEP, Span(months=60))))
        datasets = tuple(activity if d.name == activity.name else d for d in opened.stores.policies.datasets)
        stores = replace(opened.stores, policies=replace(opened.stores.policies, datasets=datasets))
        deep = replace(opened, stores=stores, activity=activity)
        for days in (2200, 2300, 1):
            deep.insert(days_ago(days), 20)
        deep.run(rounds=4)
        assert [u.storage_class for u in archived(deep)] == [DEEP, DEEP]
        yield deep


def archived(people: People) -> list[UnitRecord]:
    return [u for u in people.stores.ledger.units("user_activity") if u.tier is Tier.COLD]


def test_an_erasure_out_of_deep_archive_waits_for_the_restore_and_then_goes_on(people: People) -> None:
    def look_at_all() -> None:
        for record in archived(people):
            for _ in range(LOOKS):
                people.stores.objects.stat(people.stores.key(record.location))

    look_at_all()
    before = archived(people)
    for _ in range(2):
        with pytest.raises(errors.InDeepArchive, match=f"2 objects of user_activity: {REQUESTED}"):
            erase(people.stores, Person(PERSON), "request 1", "test", NOW)
    assert archived(people) == before
    look_at_all()
    others = people.others()
    certificate = erase(people.stores, Person(PERSON), "request 1", "test", READY)
    assert certificate["complete"], certificate
    assert certificate["proof"]["hits"] == []
    assert people.persons_rows() == 0
    assert people.others() == others
    assert {u.storage_class for u in archived(people)} == {StorageClass.STANDARD}
    assert fsck(people.stores, READY, deep=True).is_clean
