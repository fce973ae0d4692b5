"""Reading ahead and writing behind: in order, nothing lost, and nothing still being written after an early end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from tests.ops.document_world import DocumentWorld, open_documents, raw
from tests.ops.world import NOW, days_ago
from tiering import errors
from tiering.model import State, Transition
from tiering.ops import documents, lifecycle
from tiering.ops.document_pipe import ahead, behind
from tiering.ops.work import Work
from tiering.settings import Settings
from tiering.stores.bson_batches import RawBatch


@pytest.fixture
def world(fresh_settings: Settings) -> Iterator[DocumentWorld]:
    with open_documents(fresh_settings) as opened:
        yield opened


def batches_of(world: DocumentWorld, count: int, each: int) -> list[RawBatch]:
    articles = world.news(days_ago(300), count * each)
    world.insert(articles)
    bodies = [body for (body,) in raw(articles).values()]
    return [RawBatch.from_documents(bodies[i : i + each]) for i in range(0, len(bodies), each)]


def sealed(world: DocumentWorld) -> Work:
    """Lease the due move as a step does, long enough for a test."""
    (move_id,) = world.begin(Transition.HOT_TO_WARM)
    lifecycle.seal(world.stores, move_id, NOW, "test")
    with world.stores.ledger.lease(move_id, "test") as record:
        return Work(world.stores, world.dataset, record, NOW, "test")


def writing(work: Work) -> Callable[[RawBatch], RawBatch]:
    return lambda batch: documents.put(work, documents.warm_of(work), batch)


def test_a_source_is_read_one_batch_ahead_and_no_further() -> None:
    taken, third = [], threading.Event()

    def source() -> Iterator[RawBatch]:
        for number in range(4):
            taken.append(number)
            if number == 2:
                third.set()
            yield RawBatch.from_documents([b"\5\0\0\0\0"] * (number + 1))

    passed = ahead(source())
    assert len(next(passed)) == 1
    assert len(next(passed)) == 2
    assert third.wait(10), "the next one is read while this one is in use"
    assert taken == [0, 1, 2]
    assert [len(batch) for batch in passed] == [3, 4]


def test_an_error_of_the_source_comes_where_its_batch_would() -> None:
    def source() -> Iterator[RawBatch]:
        yield RawBatch.from_documents([b"\5\0\0\0\0"])
        raise errors.StoreUnavailable("read", "news", "gone")

    passed = ahead(source())
    assert len(next(passed)) == 1
    with pytest.raises(errors.StoreUnavailable):
        next(passed)


def test_nothing_is_being_written_any_more_when_a_copy_ends_early(world: DocumentWorld) -> None:
    batches = batches_of(world, 3, 200)
    work = sealed(world)
    with world.stores.ledger.lease(work.record.move_id, "test") as record:
        work = work.at(record)

        def source() -> Iterator[RawBatch]:
            yield batches[0]
            yield batches[1]
            raise errors.StoreUnavailable("read", "news", "gone")

        with pytest.raises(errors.StoreUnavailable):
            list(behind(writing(work), source()))
        assert world.warm.count_documents({}) == 400, "what was being written is written, and nothing comes later"


def test_a_run_that_lost_its_lease_writes_nothing_more(world: DocumentWorld) -> None:
    batches = batches_of(world, 3, 50)
    work = sealed(world)
    with world.stores.ledger.lease(work.record.move_id, "another"), pytest.raises(errors.LeaseHeld):
        list(behind(writing(work), batches))
    assert world.warm.count_documents({}) == 0


def test_batches_come_back_in_their_order_and_all_of_them_move(world: DocumentWorld) -> None:
    batches = batches_of(world, 5, 40)
    work = sealed(world)
    with world.stores.ledger.lease(work.record.move_id, "test") as record:
        written = list(behind(writing(work.at(record)), ahead(batches)))
    assert [batch.documents() for batch in written] == [batch.documents() for batch in batches]
    assert lifecycle.run_move(world.stores, work.record.move_id, NOW, "test").state is State.COMMITTED
    assert world.left(world.hot) == 0
