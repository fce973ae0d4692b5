"""The heartbeat daemon on real servers: every store has the same chain, also after one was away, or the daemon was."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from infra.local import Stack
from tests.wait import wait_until
from tiering import errors
from tiering.model_drill import Beat
from tiering.ops.heartbeat import Heart, verify
from tiering.plan.heartbeat import first_beat, next_beat
from tiering.settings import Settings
from tiering.stores.beats import BeatLedger, MongoBeats, ObjectBeats, PostgresBeats, RedisBeats
from tiering.stores.documents import Documents
from tiering.stores.objects import S3Objects
from tiering.stores.postgres import Postgres, execute


@pytest.fixture
def ledgers(fresh_settings: Settings, redis_url: SecretStr) -> list[BeatLedger]:
    s = fresh_settings
    assert s.hot_mongo_url is not None
    objects = S3Objects(s.s3_url, s.files_bucket, s.s3_access_key, s.s3_secret_key, s.s3_region)
    redis = RedisBeats("redis/main", redis_url)
    for key in redis._connected().scan_iter("tiering:heartbeat:*"):
        redis._connected().unlink(key)
    return [
        PostgresBeats("postgresql/main", Postgres(s.hot_pg_url, "hot PostgreSQL")),
        MongoBeats("mongodb/main", Documents(s.hot_mongo_url, "hot MongoDB")),
        redis,
        ObjectBeats("application_data/main", objects, every=timedelta(seconds=3)),
    ]


def beaten(heart: Heart, count: int) -> Callable[[], bool]:
    return lambda: all(
        lane.acknowledged is not None and lane.acknowledged.seq >= count
        for lane in heart.lanes
        if lane.ledger.every <= timedelta(seconds=1)
    )


def test_every_store_has_the_same_unbroken_chain_and_a_second_daemon_goes_on(ledgers: list[BeatLedger]) -> None:
    rows = ledgers[:3]
    with Heart(ledgers) as heart:
        wait_until(beaten(heart, 4))
    chains, common, problem = verify(rows)
    assert [verdict.problem for verdict in chains] == ["", "", ""]
    assert (problem, common) == ("", heart.last)
    assert ledgers[3].read(10)
    with Heart(ledgers) as again:
        wait_until(beaten(again, 6))
    assert again.last is not None
    assert heart.last is not None
    assert again.last.chain == heart.last.chain
    assert all(verdict.problem == "" for verdict in verify(rows)[0])


def test_a_store_that_lagged_is_brought_level_before_the_next_beat(ledgers: list[BeatLedger]) -> None:
    beats = [first_beat("abcd", _at())]
    for _ in range(20):
        beats.append(next_beat(beats[-1], beats[-1].at + timedelta(seconds=1)))
    ledgers[0].append(beats)
    ledgers[1].append(beats[:7])
    ledgers[1].append(beats[5:9])  # again: what is there stays
    with Heart(ledgers[:3]) as heart:
        wait_until(beaten(heart, 22))
    chains, common, problem = verify(ledgers[:3])
    assert [verdict.problem for verdict in chains] == ["", "", ""]
    assert (problem, common) == ("", heart.last)
    assert all(verdict.first is not None and verdict.first.seq == 1 for verdict in chains)


def test_stores_that_disagree_about_the_past_stop_it_until_a_person_begins_a_new_chain(
    ledgers: list[BeatLedger],
) -> None:
    mine = first_beat("abcd", _at())
    ledgers[0].append([mine, next_beat(mine, mine.at)])
    ledgers[1].append([mine, next_beat(mine, mine.at + timedelta(seconds=1))])
    with pytest.raises(errors.VerificationError, match="--new-chain"), Heart(ledgers[:3]):
        pass
    with Heart(ledgers[:3], new_chain=True) as heart:
        wait_until(beaten(heart, 2))
    assert all(verdict.problem == "" for verdict in verify(ledgers[:3])[0])


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DELETE FROM tiering.heartbeat WHERE seq = 7", "missing"),
        ("UPDATE tiering.heartbeat SET at = at + interval '1 ms' WHERE seq = 7", "does not follow"),
        ("DELETE FROM tiering.heartbeat", "no heartbeat"),
    ],
)
def test_a_hand_in_the_table_breaks_the_chain(ledgers: list[BeatLedger], statement: str, said: str) -> None:
    beats = [first_beat("abcd", _at())]
    for _ in range(10):
        beats.append(next_beat(beats[-1], beats[-1].at + timedelta(seconds=1)))
    table = ledgers[0]
    assert isinstance(table, PostgresBeats)
    table.append(beats)
    assert verify([table])[0][0].problem == ""
    with table.database.transaction("tamper", "test") as connection:
        execute(connection, statement)
    assert said in verify([table])[0][0].problem


def test_a_store_that_is_down_is_alarmed_the_others_go_on_and_it_gets_all_when_it_is_back(stack: Stack) -> None:
    settings = stack.settings()
    gone = threading.Event()

    class Fragile:
        """A ledger behind a cable that can be pulled."""

        def __init__(self, ledger: BeatLedger) -> None:
            self.ledger, self.name, self.every = ledger, ledger.name, ledger.every

        def append(self, beats: list[Beat]) -> None:
            if gone.is_set():
                raise errors.StoreUnavailable("append", self.name, "pulled")
            self.ledger.append(beats)

        def read(self, limit: int) -> list[Beat]:
            return self.ledger.read(limit)

        def forget(self, before: object) -> None:
            return

    assert settings.hot_mongo_url is not None
    table = PostgresBeats("postgresql/main", Postgres(settings.hot_pg_url, "hot PostgreSQL"))
    other = MongoBeats("mongodb/main", Documents(settings.hot_mongo_url, "hot MongoDB"))
    with Heart([table, Fragile(other)], new_chain=True) as heart:  # type: ignore[list-item]
        wait_until(beaten(heart, 2))
        gone.set()
        wait_until(lambda: heart.lanes[1].problem == "pulled" and (heart.lanes[0].acknowledged or _never()).seq >= 5)
        gone.clear()
        wait_until(lambda: (heart.lanes[1].acknowledged or _never()).seq >= 6)
    chains, common, problem = verify([table, other])
    assert [verdict.problem for verdict in chains] == ["", ""]
    assert (problem, common) == ("", heart.last)


def _never() -> Beat:
    return Beat("", -1, _at(), "")


def _at() -> datetime:
    return datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
