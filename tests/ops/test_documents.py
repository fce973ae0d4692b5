"""Documents through their whole life on a real server: each once, unchanged, whoever changes it meanwhile."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from datetime import timedelta

import bson
import pytest

from tests.ops.document_world import DocumentWorld, open_documents, raw
from tests.ops.world import NOW, days_ago
from tiering.model import State, Tier, Transition
from tiering.ops import lifecycle
from tiering.ops.sweep import sweep
from tiering.plan.spans import add

STEPS = (lifecycle.seal, lifecycle.check, lifecycle.copy, lifecycle.verify, lifecycle.commit)


@pytest.fixture(params=["one server", "two databases"])
def world(request: pytest.FixtureRequest) -> Iterator[DocumentWorld]:
    name = "fresh_settings" if request.param == "one server" else "fresh_two_database_settings"
    with open_documents(request.getfixturevalue(name)) as opened:
        yield opened


def test_every_document_is_seen_once_and_unchanged_at_every_step(world: DocumentWorld) -> None:
    everything = [d for days in (0, 3, 300) for d in world.news(days_ago(days), 200)]
    world.insert(everything)
    expected = raw(everything)
    assert world.seen() == expected
    for transition in (Transition.HOT_TO_WARM, Transition.WARM_TO_COLD):
        moves = world.begin(transition)
        assert moves, transition
        for move_id in moves:
            for step in STEPS:
                step(world.stores, move_id, NOW, "test")
                assert world.seen() == expected, (transition, step.__name__)
    assert world.left(world.hot) == 200
    assert world.left(world.warm) == 200
    assert [r.tier for r in world.stores.ledger.units("news")] == [Tier.COLD, Tier.WARM]


def test_documents_that_change_while_they_are_copied_stay_and_supersede(world: DocumentWorld) -> None:
    articles = world.news(days_ago(300), 300)
    world.insert(articles)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    for transition, collection in ((Transition.HOT_TO_WARM, world.hot), (Transition.WARM_TO_COLD, world.warm)):
        changed = random.Random(seed).sample(articles, 40)
        for move_id in world.begin(transition):
            for step in STEPS[:3]:
                step(world.stores, move_id, NOW, "test")
            for article in changed:
                article["title"] = f"changed during {transition}"
                collection.replace_one({"_id": article["_id"]}, article)
            assert world.seen() == raw(articles)
            for step in STEPS[3:]:
                step(world.stores, move_id, NOW, "test")
            assert world.seen() == raw(articles)
        assert world.left(collection) == 40, "the changed ones stay"
        assert [r.state for r in world.run(Transition.MERGE)] == [State.COMMITTED]
        assert world.left(collection) == 0
        assert world.seen() == raw(articles)


def test_documents_deleted_while_they_are_copied_do_not_come_back(world: DocumentWorld) -> None:
    articles = world.news(days_ago(300), 100)
    world.insert(articles)
    for transition, collection in ((Transition.HOT_TO_WARM, world.hot), (Transition.WARM_TO_COLD, world.warm)):
        (move_id,) = world.begin(transition)
        for step in STEPS[:4]:
            step(world.stores, move_id, NOW, "test")
        gone = articles.pop()
        collection.delete_one({"_id": gone["_id"]})
        moved = articles[0]
        moved["publish_time"] += timedelta(days=299)
        collection.replace_one({"_id": moved["_id"]}, moved)
        lifecycle.commit(world.stores, move_id, NOW, "test")
        seen = world.seen()
        assert raw([gone]).keys().isdisjoint(seen)
        if transition is Transition.HOT_TO_WARM:
            assert seen == raw(articles)
        articles[0]["publish_time"] -= timedelta(days=299)
        collection.delete_many({"_id": moved["_id"]})
        world.insert([moved])
        world.run(Transition.MERGE)
        assert world.seen() == raw(articles)


def test_late_documents_are_seen_at_once_and_merged(world: DocumentWorld) -> None:
    articles = world.news(days_ago(300), 100)
    world.insert(articles)
    world.run(Transition.HOT_TO_WARM)
    for number, transition in enumerate((None, Transition.WARM_TO_COLD), start=1):
        if transition:
            world.run(transition)
        late = world.news(days_ago(300), 20, seed=7, first=1000 * number)
        articles[number]["title"] = "a newer word"
        world.insert([*late, articles[number]])
        articles += late
        assert world.seen() == raw(articles)
        (receipt,) = world.run(Transition.MERGE)
        assert receipt.row_count == len(articles)
        assert world.left(world.hot) == 0
        assert world.seen() == raw(articles)
        assert world.run(Transition.MERGE) == []


def test_a_crash_before_the_source_was_emptied_is_settled_by_the_next_run(world: DocumentWorld) -> None:
    articles = world.news(days_ago(3), 100)
    world.insert(articles)
    (move_id,) = world.begin(Transition.HOT_TO_WARM)
    for step in STEPS:
        step(world.stores, move_id, NOW, "test")
    record = world.stores.ledger.move(move_id)
    with world.stores.ledger.lease(move_id, "test") as leased:
        world.stores.ledger.advance_alone(leased, State.COMMITTED, details={"unsettled": True})
    world.insert(articles[:50])
    assert record.state is State.COMMITTED
    assert world.seen() == raw(articles)
    assert lifecycle.finish_open(world.stores, world.dataset, NOW, "next") == 1
    assert world.left(world.hot) == 0
    assert world.seen() == raw(articles)
    assert lifecycle.finish_open(world.stores, world.dataset, NOW, "next") == 0


def test_expired_documents_are_out_of_sight_at_once_and_destroyed_after_the_undo_window(world: DocumentWorld) -> None:
    old, older = world.news(days_ago(5 * 365 + 10), 50), world.news(days_ago(5 * 365 + 11), 50)
    world.insert([*old, *older])
    world.run(Transition.HOT_TO_WARM)
    world.stores.ledger.place_hold("news", days_ago(5 * 365 + 11), "lawsuit", "counsel")
    world.run(Transition.EXPIRE)
    assert raw(old).keys().isdisjoint(world.seen())
    assert raw(older).items() <= world.seen().items()
    late = world.news(days_ago(5 * 365 + 10), 5, seed=9, first=900)
    world.insert(late)
    world.run(Transition.EXPIRE)
    assert raw(late).keys().isdisjoint(world.seen())
    assert world.left(world.warm) == 100
    sweep(world.stores, add(NOW, world.stores.policies.undo_window) + timedelta(minutes=1), "test")
    assert world.left(world.warm) == 50, "the held unit's"
    names = world.stores.hot_documents.collections()
    assert not [name for name in names if name.startswith("trash_")]


def test_concurrent_updates_lose_nothing(world: DocumentWorld) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    articles = {d["_id"]: d for d in world.news(days_ago(300), 400, seed=seed)}
    world.insert(list(articles.values()))
    stop = threading.Event()
    dice = random.Random(seed)

    def update() -> None:
        """Change documents where they are: in hot, else in warm, else as a late one."""
        while not stop.is_set():
            article = articles[dice.choice(list(articles))]
            fresh = {**article, "title": f"{dice.random()}"}
            for collection in (world.hot, world.warm):
                if collection.replace_one({"_id": article["_id"]}, fresh).modified_count:
                    break
            else:
                world.hot.insert_one(fresh)
            articles[article["_id"]] = fresh

    thread = threading.Thread(target=update)
    thread.start()
    try:
        for _ in range(8):
            world.run()
    finally:
        stop.set()
        thread.join()
    assert world.seen() == raw(list(articles.values()))
    while world.run():
        assert world.seen() == raw(list(articles.values()))
    assert world.left(world.hot) == world.left(world.warm) == 0


def test_a_document_comes_back_from_cold_as_it_was(world: DocumentWorld) -> None:
    strange = {
        "_id": bson.ObjectId(),
        "publish_time": days_ago(300),
        "z": 1,
        "a": bson.Int64(1),
        "nul": "a\0b",
        "uuid3": bson.Binary(bytes(16), 3),
        "zero": bson.Decimal128("-0"),
        "title": 7,
    }
    world.insert([strange])
    world.run(Transition.HOT_TO_WARM)
    world.run(Transition.WARM_TO_COLD)
    assert world.left(world.warm) == 0
    assert world.seen() == raw([strange])
