"""Documents on a real server: bytes come back as they went, nothing is overwritten, nothing changed is removed."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import bson
import pytest
from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from tests.stores.bson_torture import KEPT, document, double, element, int32, int64, string, torture
from tests.stores.faulty_proxy import Fault, FaultyProxy
from tiering import errors
from tiering.settings import Settings
from tiering.stores.bson_batches import RawBatch, ids, print_of
from tiering.stores.documents import Documents
from tiering.stores.documents_remove import Removal

DAY = datetime(2024, 3, 1, tzinfo=UTC)
DAY_MS = int(DAY.timestamp() * 1000)
SECOND = timedelta(seconds=1)


@pytest.fixture
def url(fresh_settings: Settings) -> SecretStr:
    assert fresh_settings.hot_mongo_url is not None
    return fresh_settings.hot_mongo_url


@pytest.fixture
def store(url: SecretStr) -> Iterator[Documents]:
    opened = Documents(url, "hot MongoDB")
    opened.prepare("news", "t")
    yield opened
    opened.close()


@pytest.fixture
def client(url: SecretStr) -> Iterator[MongoClient[dict[str, object]]]:
    with MongoClient(url.get_secret_value()) as opened:
        yield opened


def make(count: int, step_ms: int = 1000, first: int = 0) -> RawBatch:
    """Documents a step apart, from DAY on."""
    return RawBatch.from_documents(
        [
            bson.encode({"_id": i, "t": DAY + timedelta(milliseconds=i * step_ms), "n": 0, "text": f"news {i} " * 5})
            for i in range(first, first + count)
        ]
    )


def everything(store: Documents, collection: str = "news") -> list[bytes]:
    return sorted(
        d
        for batch in store.read(collection, "t", datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
        for d in batch.documents()
    )


def test_the_torture_set_goes_through_the_wire_byte_for_byte(store: Documents) -> None:
    raw = torture(KEPT, DAY_MS)
    batch = RawBatch.from_documents(raw)
    assert store.insert_missing("news", batch) == len(raw)
    got = list(store.read("news", "t", DAY, DAY + SECOND, batch_bytes=100_000))
    assert [d for part in got for d in part.documents()] == raw
    assert print_of(got) == print_of([batch])
    assert store.find("news", ids(batch)).documents() != []
    assert sorted(store.find("news", ids(batch)).documents()) == sorted(raw)
    assert [key for part in store.read_ids("news", "t", DAY, DAY + SECOND) for key in part] == ids(batch)
    assert store.remove_unchanged("news", batch, "t") == len(raw)
    assert everything(store) == []


@pytest.mark.parametrize("time_field", [None, "t"])
def test_ids_of_every_type_are_found_and_removed(store: Documents, time_field: str | None) -> None:
    keys = [
        element(16, "_id", int32(1)), element(18, "_id", int64(2)), element(1, "_id", double(2.5)),
        element(1, "_id", double(float("nan"))), element(2, "_id", string(b"1")), element(2, "_id", string(b"a\0b")),
        element(7, "_id", bytes(12)), element(5, "_id", int32(16) + b"\4" + bytes(16)), element(8, "_id", b"\1"),
        element(10, "_id"), element(9, "_id", int64(5)), element(17, "_id", int64(5)), element(255, "_id"),
        element(3, "_id", document(element(16, "a", int32(1)), element(16, "b", int32(2)))),
        element(3, "_id", document(element(16, "b", int32(2)), element(16, "a", int32(1)))),
        element(19, "_id", bytes(15) + b"\x80"),
    ]  # fmt: skip
    batch = RawBatch.from_documents([document(key, element(9, "t", int64(DAY_MS))) for key in keys])
    assert store.insert_missing("news", batch) == len(keys)
    assert store.insert_missing("news", batch) == 0
    assert sorted(store.find("news", ids(batch)).documents()) == sorted(batch.documents())
    assert store.find("news", [b"\x10" + int32(77)]).documents() == []
    assert store.remove_unchanged("news", batch.part(0, 7), time_field) == 7
    assert everything(store) == sorted(batch.part(7, len(batch)).documents())
    assert store.remove_unchanged("news", batch, time_field) == len(keys) - 7


def test_only_dates_of_the_range_are_read_counted_and_removed(store: Documents) -> None:
    times = {
        "first": element(9, "t", int64(DAY_MS)),
        "last": element(9, "t", int64(DAY_MS + 999)),
        "next": element(9, "t", int64(DAY_MS + 1000)),
        "before": element(9, "t", int64(DAY_MS - 1)),
        "text": element(2, "t", string(b"2024-03-01")),
        "number": element(18, "t", int64(DAY_MS)),
        "timestamp": element(17, "t", int64(DAY_MS)),
        "null": element(10, "t"),
        "none": b"",
        "array": element(4, "t", document(element(9, "0", int64(DAY_MS + 5)), element(9, "1", int64(DAY_MS + 6)))),
        "document": element(3, "t", document(element(9, "0", int64(DAY_MS)))),
        "year_1": element(9, "t", int64(-62_135_596_800_000)),
        "year_9999": element(9, "t", int64(253_402_300_799_999)),
    }
    raw = {name: document(element(2, "_id", string(name.encode())), value) for name, value in times.items()}
    store.insert_missing("news", RawBatch.from_documents(list(raw.values())))
    got = [d for batch in store.read("news", "t", DAY, DAY + SECOND) for d in batch.documents()]
    assert got == [raw["first"], raw["last"]]
    assert store.count("news", "t", DAY, DAY + SECOND) == 2
    assert store.count("news", "t", DAY + SECOND, DAY) == 0
    assert store.undated("news", "t") == 7
    assert store.newest("news", "t") == datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)
    assert store.first_at_or_after("news", "t", None) == datetime(1, 1, 1, tzinfo=UTC)
    assert len(everything(store)) == 6
    assert store.remove_range("news", "t", DAY, DAY + SECOND) == 2
    assert len(everything(store)) == 4


def test_a_scan_goes_from_date_to_date(store: Documents) -> None:
    assert store.newest("news", "t") is None
    assert store.first_at_or_after("news", "t", None) is None
    days = [DAY + timedelta(days=d, milliseconds=3) for d in (0, 1, 40, 2000)]
    store.insert_missing(
        "news", RawBatch.from_documents([bson.encode({"_id": i, "t": day}) for i, day in enumerate(days)])
    )
    assert store.newest("news", "t") == days[-1]
    found, at = [], store.first_at_or_after("news", "t", None)
    while at is not None:
        found.append(at)
        at = store.first_at_or_after("news", "t", at + timedelta(microseconds=1))
    assert found == days


def test_what_is_there_is_never_overwritten(store: Documents, client: MongoClient[dict[str, object]]) -> None:
    batch = make(2500)
    news = client.get_default_database()["news"]
    news.insert_many([{"_id": i, "t": DAY, "mine": True} for i in range(0, 2500, 3)])
    assert store.insert_missing("news", batch) == 2500 - len(range(0, 2500, 3))
    assert store.insert_missing("news", batch) == 0
    assert news.count_documents({"mine": True}) == len(range(0, 2500, 3))
    assert news.count_documents({}) == 2500


def test_another_unique_index_is_an_error_and_not_a_document_less(
    store: Documents, client: MongoClient[dict[str, object]]
) -> None:
    client.get_default_database()["news"].create_index("n", unique=True)
    with pytest.raises(errors.AlreadyExists, match="unique index"):
        store.insert_missing("news", make(5))


@pytest.mark.parametrize("time_field", [None, "t"])
@pytest.mark.parametrize("step_ms", [1000, 0])
def test_changed_documents_stay(
    store: Documents, client: MongoClient[dict[str, object]], time_field: str | None, step_ms: int
) -> None:
    batch = make(1500, step_ms)
    store.insert_missing("news", batch)
    news = client.get_default_database()["news"]
    news.update_one({"_id": 3}, {"$set": {"n": 1}})
    news.update_one({"_id": 4}, {"$set": {"n": 0.0}})  # equal to MongoDB, and yet another document
    news.update_one({"_id": 5}, {"$set": {"t": DAY + timedelta(days=400)}})
    news.update_one({"_id": 6}, {"$unset": {"n": 1}})
    news.delete_one({"_id": 7})
    news.insert_one({"_id": "between", "t": DAY + 9 * SECOND})
    assert store.remove_unchanged("news", batch, time_field) == 1495
    assert sorted(str(d["_id"]) for d in news.find()) == ["3", "4", "5", "6", "between"]
    assert store.remove_unchanged("news", batch, time_field) == 0


def test_a_sparse_batch_leaves_what_lies_between(store: Documents) -> None:
    batch = make(2000)
    store.insert_missing("news", batch)
    assert store.remove_unchanged("news", batch.take(range(0, 2000, 7)), "t") == len(range(0, 2000, 7))
    assert store.count("news", "t", DAY, DAY + 2000 * SECOND) == 2000 - len(range(0, 2000, 7))


def test_without_transactions_a_filter_compares_the_whole_document(store: Documents, url: SecretStr) -> None:
    batch = make(20)
    store.insert_missing("news", batch)
    with MongoClient[dict[str, object]](url.get_secret_value()) as client:
        news = client.get_default_database()["news"]
        news.update_one({"_id": 3}, {"$set": {"n": 1}})
        news.update_one({"_id": 4}, {"$set": {"n": 0.0}})
        assert Removal(client, news, None).by_filter(batch) == 18
        assert sorted(d["_id"] for d in news.find()) == [3, 4]


class Updater(threading.Thread):
    """Counts documents up one by one at random until told to stop, and knows which updates were acknowledged."""

    def __init__(self, url: str, count: int, seed: int) -> None:
        super().__init__()
        self.url, self.count, self.random = url, count, random.Random(seed)
        self.updated: dict[int, int] = {}
        self.stopped = threading.Event()
        self.began = threading.Event()
        self.problem: PyMongoError | None = None

    def run(self) -> None:
        try:
            with MongoClient[dict[str, object]](self.url) as client:
                news = client.get_default_database()["news"]
                while not self.stopped.is_set():
                    key = self.random.randrange(self.count)
                    # Another size or only another number of the same size; both must be seen.
                    done = news.update_one({"_id": key}, {"$inc": {"n": 1}})
                    if done.matched_count:
                        self.updated[key] = self.updated.get(key, 0) + 1
                    self.began.set()
        except PyMongoError as exc:
            self.problem = exc


@pytest.mark.parametrize("time_field", [None, "t"])
def test_no_update_is_lost_to_a_removal_at_the_same_time(
    store: Documents, client: MongoClient[dict[str, object]], url: SecretStr, time_field: str | None
) -> None:
    count, seed = 4000, random.randrange(2**32)
    print("seed", seed)
    batch = make(count)
    store.insert_missing("news", batch)
    updaters = [Updater(url.get_secret_value(), count, seed + i) for i in range(2)]
    for updater in updaters:
        updater.start()
    assert all(updater.began.wait(30) for updater in updaters)
    removed = store.remove_unchanged("news", batch, time_field)
    for updater in updaters:
        updater.stopped.set()
        updater.join()
        assert updater.problem is None
    left = {d["_id"]: d["n"] for d in client.get_default_database()["news"].find({}, {"n": 1})}
    updated: dict[int, int] = {}
    for updater in updaters:
        for key, times in updater.updated.items():
            updated[key] = updated.get(key, 0) + times
    assert updated
    assert {key: left.get(key) for key in updated} == updated
    assert removed + len(left) == count


def test_a_removal_meets_a_writer_that_is_in_the_middle(
    store: Documents, client: MongoClient[dict[str, object]]
) -> None:
    batch = make(100)
    store.insert_missing("news", batch)
    news = client.get_default_database()["news"]
    with client.start_session() as session:
        session.start_transaction()
        news.update_one({"_id": 50}, {"$set": {"n": 1}}, session=session)
        assert store.remove_unchanged("news", batch, "t") == 99
        session.commit_transaction()
    assert [(d["_id"], d["n"]) for d in news.find()] == [(50, 1)]


def test_collections_are_made_named_and_dropped(store: Documents) -> None:
    store.prepare("news", "t")
    store.insert_missing("news", make(10))
    assert store.collections() == ["news"]
    assert store.size_bytes("news", 1) == make(10).size_bytes // 10
    assert store.size_bytes("news") == 10 * store.size_bytes("news", 1)
    store.rename("news", "old_news")
    assert (store.exists("news"), store.exists("old_news")) == (False, True)
    with pytest.raises(errors.NotFound):
        store.rename("news", "newer")
    store.insert_missing("news", make(1))
    with pytest.raises(errors.AlreadyExists):
        store.rename("news", "old_news")
    store.drop("old_news")
    store.drop("old_news")
    assert store.collections() == ["news"]
    assert store.size_bytes("nothing") == 0
    assert list(store.read("nothing", "t", DAY, DAY + SECOND)) == []


def test_databases_of_a_test_are_apart(fresh_two_database_settings: Settings) -> None:
    hot, warm = fresh_two_database_settings.hot_mongo_url, fresh_two_database_settings.warm_mongo_url
    assert hot is not None
    assert warm is not None
    first, second = Documents(hot, "hot"), Documents(warm, "warm")
    first.insert_missing("news", make(1))
    assert (first.exists("news"), second.exists("news")) == (True, False)


def test_a_wrong_password_is_denied_and_not_told(url: SecretStr) -> None:
    password = url.get_secret_value().split(":")[2].split("@")[0]
    wrong = SecretStr(url.get_secret_value().replace(password, "wrong-pass-word"))
    with pytest.raises(errors.AccessDenied) as caught:
        Documents(wrong, "hot MongoDB").ping()
    assert "wrong-pass-word" not in str(caught.value)


@pytest.mark.parametrize("bad", ["mongodb://u:sec@ret@h/d", "http://u:secret@h/d", "mongodb://u:secret@h"])
def test_a_bad_url_is_a_setting_and_not_quoted(bad: str) -> None:
    with pytest.raises(errors.SettingsError) as caught:
        Documents(SecretStr(bad), "hot MongoDB").ping()
    assert "ret" not in str(caught.value).replace("read settings", "")


def test_a_server_that_is_away_is_unavailable() -> None:
    store = Documents(SecretStr("mongodb://127.0.0.1:9/x?serverSelectionTimeoutMS=200"), "hot MongoDB")
    with pytest.raises(errors.StoreUnavailable):
        store.ping()


@contextmanager
def by_proxy(url: SecretStr) -> Iterator[tuple[Documents, FaultyProxy]]:
    """The same database through a proxy; a direct connection, or the driver would ask the server for its address."""
    there = url.get_secret_value().split("@")[1].split("/")[0]
    proxy = FaultyProxy(f"http://{there}")
    here = url.get_secret_value().replace(there, proxy.url.removeprefix("http://"))
    store = Documents(SecretStr(f"{here}&directConnection=true"), "MongoDB by proxy")
    try:
        yield store, proxy
    finally:
        store.close()
        proxy.close()


@pytest.mark.parametrize(("direction", "after_bytes"), [("down", 60_000), ("down", 150_000), ("up", 5000)])
def test_a_connection_that_breaks_is_never_a_short_read(
    store: Documents, url: SecretStr, direction: str, after_bytes: int
) -> None:
    store.insert_missing("news", make(2000))
    with by_proxy(url) as (through, proxy):
        with proxy.fault(Fault(direction, after_bytes)) as fault, pytest.raises(errors.StoreUnavailable):
            list(through.read("news", "t", DAY, DAY + timedelta(days=1), batch_bytes=5000))
        assert fault.struck
        assert sum(map(len, through.read("news", "t", DAY, DAY + timedelta(days=1)))) == 2000


@pytest.mark.parametrize("after_bytes", [50_000, 120_000])
def test_an_insert_that_is_cut_off_is_carried_on(store: Documents, url: SecretStr, after_bytes: int) -> None:
    batch = make(2000)
    with by_proxy(url) as (through, proxy):
        # The driver tries once again by itself, which may be enough.
        with proxy.fault(Fault("up", after_bytes)) as fault, suppress(errors.StoreUnavailable):
            through.insert_missing("news", batch)
        assert fault.struck
        through.insert_missing("news", batch)
    assert everything(store) == sorted(batch.documents())
