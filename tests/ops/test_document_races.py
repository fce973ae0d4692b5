"""Documents that change while moves of their own and of other units are under way, in the orders that hurt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.ops.document_world import ANCHOR, DocumentWorld, open_documents, raw
from tests.ops.world import NOW, days_ago
from tiering import errors
from tiering.model import State, Tier, Transition
from tiering.ops import document_export, documents, lifecycle
from tiering.ops.fsck import fsck
from tiering.ops.query import query
from tiering.ops.work import Work
from tiering.settings import Settings

STEPS = (lifecycle.seal, lifecycle.check, lifecycle.copy, lifecycle.verify, lifecycle.commit)


@pytest.fixture
def world(fresh_settings: Settings) -> Iterator[DocumentWorld]:
    with open_documents(fresh_settings) as opened:
        yield opened


def unsettled(world: DocumentWorld, move_id: int) -> None:
    """Leave a committed move as a run that dies at the last moment does: settled, but not noted so."""
    with world.stores.ledger.lease(move_id, "died") as leased:
        world.stores.ledger.advance_alone(leased, State.COMMITTED, details={"unsettled": True})


def test_a_merge_that_was_not_noted_as_settled_takes_nothing_from_its_unit_once_that_is_cold(
    world: DocumentWorld,
) -> None:
    articles = world.news(days_ago(300), 20)
    world.insert(articles)
    world.run(Transition.HOT_TO_WARM)
    articles += (late := world.news(days_ago(300), 3, first=100))
    world.insert(late)
    (merge,) = world.begin(Transition.MERGE)
    lifecycle.run_move(world.stores, merge, NOW, "test")
    unsettled(world, merge)
    # Another scheduler looked for what is unsettled before, and moves the unit on.
    (move_id,) = world.begin(Transition.WARM_TO_COLD)
    for step in STEPS[:3]:
        step(world.stores, move_id, NOW, "second")
    assert world.stores.ledger.move(merge).details.get("unsettled") is None, "settled before the unit moves on"
    unsettled(world, merge)
    articles[0]["title"] = "changed in the warm collection while it was copied"
    world.warm.replace_one({"_id": articles[0]["_id"]}, articles[0])
    for step in STEPS[3:]:
        step(world.stores, move_id, NOW, "second")
    assert world.seen() == raw(articles)
    lifecycle.finish_open(world.stores, world.dataset, NOW, "third")
    assert world.seen() == raw(articles)


def test_the_next_merge_waits_until_the_one_before_is_settled(world: DocumentWorld) -> None:
    articles = world.news(days_ago(300), 5)
    world.insert(articles)
    world.run(Transition.HOT_TO_WARM)
    (first,) = world.begin(Transition.WARM_TO_COLD)
    for step in STEPS[:4]:
        step(world.stores, first, NOW, "first")
    with world.stores.ledger.lease(first, "first") as leased:
        document_export.commit(Work(world.stores, world.dataset, leased, NOW, "first"))
    articles[0]["title"] = "newer"
    world.insert(articles[:1])
    assert [r.state for r in world.run(Transition.MERGE)] == [State.COMMITTED]
    assert world.seen() == raw(articles), "no older copy of it may come to light"
    assert world.left(world.hot) == world.left(world.warm) == 0


def test_of_two_versions_beside_a_cold_one_the_hot_one_counts_after_the_merge_too(world: DocumentWorld) -> None:
    articles = world.news(days_ago(300), 5)
    world.insert(articles)
    world.run(Transition.HOT_TO_WARM)
    (move_id,) = world.begin(Transition.WARM_TO_COLD)
    for step in STEPS[:4]:
        step(world.stores, move_id, NOW, "test")
    world.warm.replace_one({"_id": articles[0]["_id"]}, {**articles[0], "title": "changed while it was copied"})
    lifecycle.commit(world.stores, move_id, NOW, "test")
    articles[0]["title"] = "and written anew by an application that only knows the hot collection"
    world.insert(articles[:1])
    assert world.seen() == raw(articles)
    (merge,) = world.begin(Transition.MERGE)
    for step in STEPS:
        step(world.stores, merge, NOW, "test")
        assert world.seen() == raw(articles), step.__name__
    assert world.left(world.hot) == world.left(world.warm) == 0


def test_what_a_killed_run_still_holds_is_not_taken_for_gone(world: DocumentWorld) -> None:
    articles = world.news(days_ago(300), 5)
    world.insert(articles)
    world.run(Transition.HOT_TO_WARM)
    world.run(Transition.WARM_TO_COLD)
    world.warm.insert_one({**articles[0], "title": "changed while it was copied"})
    articles[0]["title"] = "newer"
    world.insert(articles[:1])
    (merge,) = world.begin(Transition.MERGE)
    for step in STEPS[:2]:
        step(world.stores, merge, NOW, "test")
    with world.warm.database.client.start_session() as session:
        session.start_transaction()
        world.warm.delete_one({"_id": articles[0]["_id"]}, session=session)
        with pytest.raises(errors.CommitConflict):
            lifecycle.copy(world.stores, merge, NOW, "test")
        assert world.seen() == raw(articles)
        session.abort_transaction()
    assert lifecycle.run_move(world.stores, merge, NOW, "test").state is State.COMMITTED
    assert world.seen() == raw(articles)
    assert world.left(world.hot) == world.left(world.warm) == 0


class Stalled:
    """A place whose reader is overtaken by others after the first batch."""

    def __init__(self, inner: Any, meanwhile: Any) -> None:
        self._inner, self._meanwhile = inner, meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def read(self, *args: Any) -> Iterator[Any]:
        for batch in self._inner.read(*args):
            self._meanwhile()
            yield batch


@pytest.mark.parametrize("transition", [Transition.MERGE, Transition.HOT_TO_WARM])
def test_a_slow_run_does_not_put_an_old_version_over_one_that_another_unit_has_by_now(
    world: DocumentWorld, transition: Transition
) -> None:
    here, there = world.news(days_ago(20), 3), world.news(days_ago(19), 3)
    world.insert([*here, *there])
    if transition is Transition.MERGE:
        world.run(Transition.HOT_TO_WARM)
        late = world.news(days_ago(20), 2, first=50)
        world.insert(late)
        here += late
    slow = world.begin(transition)[0]
    for step in STEPS[:2]:
        step(world.stores, slow, NOW, "slow")
    wanderer = here[-1]

    def overtake() -> None:
        """Give a document that was just read another unit's time, and let others bring it there."""
        wanderer["publish_time"] += timedelta(days=1)
        world.hot.replace_one({"_id": wanderer["_id"]}, wanderer)
        if transition is Transition.MERGE:
            (other,) = [i for i in world.begin(transition) if world.stores.ledger.move(i).unit.begin == days_ago(19)]
        else:
            (other,) = [i for i in world.begin(transition) if i != slow]
        lifecycle.run_move(world.stores, other, NOW, "quick")
        assert world.seen() == raw([*here, *there])

    stalled = replace(world.stores, hot_documents=Stalled(world.stores.hot_documents, overtake))
    lifecycle.copy(stalled, slow, NOW, "slow")
    assert world.seen() == raw([*here, *there])
    for step in STEPS[3:]:
        step(world.stores, slow, NOW, "slow")
    while world.run():
        assert world.seen() == raw([*here, *there])
    assert world.seen() == raw([*here, *there])
    assert {r.tier for r in world.stores.ledger.units("news")} == {Tier.WARM}


def test_a_document_that_left_for_another_unit_does_not_stop_the_one_it_was_copied_for(world: DocumentWorld) -> None:
    here, there = world.news(days_ago(20), 3), world.news(days_ago(19), 3)
    world.insert([*here, *there])
    first, second = world.begin(Transition.HOT_TO_WARM)
    for step in STEPS[:3]:
        step(world.stores, first, NOW, "first")
    here[0]["publish_time"] += timedelta(days=1)
    world.hot.replace_one({"_id": here[0]["_id"]}, here[0])
    assert lifecycle.run_move(world.stores, second, NOW, "second").state is State.COMMITTED
    assert world.seen() == raw([*here, *there])
    assert lifecycle.run_move(world.stores, first, NOW, "first").state is State.COMMITTED
    assert world.seen() == raw([*here, *there])
    assert world.left(world.hot) == 0
    assert documents.warm(world.stores, world.dataset).count(world.stores.ledger.move(first).unit) == 2


def test_a_document_that_went_on_in_another_unit_is_seen_there_and_only_there(world: DocumentWorld) -> None:
    """Its old version goes cold while the new one is hot; both are cold in the end, and readers of the lake see one."""
    first, second = world.news(days_ago(300), 40), world.news(days_ago(290), 10)
    moved, alone = first[3], world.news(days_ago(310), 1)[0]
    world.insert([*first, *second, alone])
    world.run(Transition.HOT_TO_WARM)
    for article in (moved, alone):  # somebody corrects its date: written anew, the old one being warm
        article["publish_time"] = days_ago(1) + timedelta(hours=1)
        article["title"] = "with its right date"
        world.insert([article])
    everything = raw([*first, *second, alone])
    assert world.seen() == everything
    assert {receipt.state for receipt in world.run(Transition.WARM_TO_COLD)} == {State.COMMITTED}
    assert world.seen() == everything
    of_the_day = f"SELECT count(*) AS n FROM news WHERE publish_time < TIMESTAMPTZ '{days_ago(299)}'"
    assert query(world.stores, of_the_day).to_pylist() == [{"n": 39}], "not as it was before, either"
    later = NOW + timedelta(days=400)
    world.hot.update_one({"_id": ANCHOR}, {"$set": {"publish_time": later}})
    merged = world.run(Transition.MERGE, at=later)
    assert [receipt.state for receipt in merged] == [State.COMMITTED] * 2
    assert world.seen() == everything
    for transition in (Transition.HOT_TO_WARM, Transition.WARM_TO_COLD):
        assert {receipt.state for receipt in world.run(transition, at=later)} == {State.COMMITTED}
    assert world.seen() == everything
    assert world.run(Transition.MERGE, at=later) == []
    in_lake = world.stores.lake.files("news")
    assert sum(file.row_count for file in in_lake) == len(everything), "no reader of the lake sees it twice"
    assert fsck(world.stores, later, deep=True).findings == ()
