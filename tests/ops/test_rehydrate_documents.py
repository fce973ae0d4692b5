"""Cold documents come back for a while: byte for byte, all of a unit or nothing, and leave by themselves."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import pytest
from pymongo.database import Database

from tests.children import GO, kill_after
from tests.ops.document_world import DocumentWorld, open_documents, raw
from tests.ops.world import NOW, days_ago
from tiering import errors
from tiering.model import Span, State, Tier, Transition
from tiering.ops import rehydrate
from tiering.ops.fsck import fsck
from tiering.ops.sweep import sweep
from tiering.plan.policies import parse_span
from tiering.settings import Settings
from tiering.stores.copies import list_copies

OLD, OLDER = 300, 301
WEEK: Span = parse_span("7d")


@pytest.fixture
def settings(fresh_two_database_settings: Settings) -> Settings:
    return fresh_two_database_settings


@pytest.fixture
def world(settings: Settings) -> Iterator[DocumentWorld]:
    with open_documents(settings) as opened:
        for age in (OLD, OLDER):
            opened.insert(opened.news(days_ago(age), 60))
        for transition in (Transition.HOT_TO_WARM, Transition.WARM_TO_COLD):
            assert {receipt.state for receipt in opened.run(transition)} == {State.COMMITTED}
        assert {r.tier for r in opened.stores.ledger.units("news")} == {Tier.COLD}
        yield opened


def bring(world: DocumentWorld, keep: Span = WEEK) -> list[rehydrate.Brought]:
    return rehydrate.rehydrate(world.stores, world.dataset, days_ago(OLDER), days_ago(OLD - 1), NOW, keep, "test")


def server(world: DocumentWorld) -> Database[dict[str, Any]]:
    return world.warm.database


def there(world: DocumentWorld) -> dict[str, int]:
    """Count the documents of each collection that a reader may find, by name."""
    names = [name for name in server(world).list_collection_names() if "rehydrated_" in name]
    return {name: server(world)[name].count_documents({}) for name in names}


def recorded(world: DocumentWorld) -> set[str]:
    with world.stores.warm.transaction("list", "copies", read_only=True) as connection:
        return {copy.location for copy in list_copies(connection, "news")}


def test_documents_come_back_as_they_were_once_for_all(world: DocumentWorld) -> None:
    seen = world.seen()
    assert [brought.state for brought in bring(world)] == ["copied", "copied"]
    assert set(there(world).values()) == {60}
    assert set(there(world)) == recorded(world)
    place, field = world.stores.warm_documents, world.dataset.time_column
    begin, end = days_ago(OLDER), days_ago(OLD - 1)
    found = [bytes(d) for name in recorded(world) for b in place.read(name, field, begin, end) for d in b.documents()]
    assert sorted(found) == sorted(row for rows in seen.values() for row in rows)
    assert world.seen() == seen, "a copy is no second document"
    assert world.run() == [], "and makes nothing due"
    assert [brought.state for brought in bring(world)] == ["extended", "extended"]
    assert fsck(world.stores, NOW, deep=True).findings == ()


def test_copies_go_when_their_time_is_over(world: DocumentWorld) -> None:
    bring(world)
    sweep(world.stores, NOW + timedelta(days=6), "test")
    assert set(there(world).values()) == {60}
    sweep(world.stores, NOW + timedelta(days=8), "test")
    assert there(world) == {}
    assert recorded(world) == set()


def test_a_copy_that_somebody_dropped_is_made_again(world: DocumentWorld) -> None:
    bring(world)
    lost = sorted(recorded(world))[0]
    server(world)[lost].drop()
    assert sorted(brought.state for brought in bring(world)) == ["copied", "extended"]
    assert set(there(world).values()) == {60}


def test_a_unit_that_changes_takes_its_copy_with_it(world: DocumentWorld) -> None:
    bring(world)
    late = world.news(days_ago(OLD), 5, seed=9, first=1000)
    world.insert(late)
    [merged] = world.run(Transition.MERGE)
    assert merged.state is State.COMMITTED
    assert list(there(world).values()) == [60], "that of the other unit"
    assert sorted(brought.row_count for brought in bring(world)) == [60, 65]
    assert raw(late).items() <= world.seen().items()


def test_a_damaged_object_leaves_nothing(world: DocumentWorld) -> None:
    [record, _] = world.stores.ledger.units("news")
    client, key = world.stores.objects._client, world.stores.key(record.location)
    body = bytearray(client.get_object(Bucket=world.stores.lake_bucket, Key=key)["Body"].read())
    body[len(body) // 2] ^= 1
    client.put_object(Bucket=world.stores.lake_bucket, Key=key, Body=bytes(body))
    with pytest.raises(errors.CorruptCopy, match="sha256"):
        bring(world)
    assert {name for name in there(world) if name.startswith("rehydrated_")} == set()


def test_killed_at_any_moment_nothing_half_done_is_seen(settings: Settings, world: DocumentWorld) -> None:
    before = world.seen()
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    for _ in range(5):
        assert not kill_after(dice.uniform(0, 1.5), work_for_ever, settings)
        whole = {name: count for name, count in there(world).items() if name.startswith("rehydrated_")}
        assert set(whole.values()) <= {60}
        assert world.seen() == before
    sweep(world.stores, NOW + timedelta(days=30), "test")
    assert there(world) == {}
    bring(world)
    assert set(there(world).values()) == {60}


def work_for_ever(line: Connection, settings: Settings) -> None:
    """Bring everything back and drop it again, until somebody ends this process."""
    with open_documents(settings) as world:
        line.send(GO)
        while True:
            bring(world)
            rehydrate.expire(world.stores, NOW + timedelta(days=30), "test")
