"""Documents: a unit moved hot to warm and warm to cold, beside the least that anybody could do.

The peer reads the same cursor raw and throws it away, then inserts the same batches into a collection with the same
index: what the server itself takes for reading once and writing once, without a look at any document. A move is done
when its copy is the authoritative one; removing the source comes after that, and has a peer of its own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import datetime, timedelta

import bson
from bson.raw_bson import RawBSONDocument
from pydantic import SecretStr
from pymongo import MongoClient

import infra.sql
from tests.bench.ground import Ground, as_values
from tests.bench.rows import Group, Row, alternate, at_most, higher
from tests.bench.world import NOW, opened_documents
from tiering.ops import install
from tiering.settings import Settings
from tiering.stores.bson_batches import RawBatch, ids
from tiering.stores.documents_remove import with_ids

NAME = "bench_documents"
BARS_FOR_EACH = 100
"""One document for so many of the bench's bars: documents are larger, and their server is slower."""

RSS_MB_MAX = 400.0
IDS_AT_ONCE = 50
"""The embedded server compares every document with every `_id` asked for: more at once is slower."""

PEER = "raw cursor + raw insert"


def make(day: datetime, count: int, seed: int) -> RawBatch:
    """Make a day of articles of about 1.5 KB, as the platform stores news."""
    dice = random.Random(f"{seed} {day}")
    words = "".join(chr(0x4E00 + dice.randrange(2000)) for _ in range(4000))
    found = []
    for _ in range(count):
        at = dice.randrange(3000)
        article = {
            "_id": bson.ObjectId(dice.randbytes(12)),
            "publish_time": day + timedelta(milliseconds=dice.randrange(86_400_000)),
            "symbol": f"{dice.randrange(5000):06d}",
            "title": words[at : at + 20],
            "content": words[at : at + 350],
            "source": "akshare",
            "category": "company_announcement",
            "sentiment": dice.choice(["positive", "neutral", "negative"]),
            "sentiment_score": dice.uniform(-1, 1),
            "keywords": [words[at : at + 2], words[at + 3 : at + 5]],
        }
        found.append(bson.encode(article))
    return RawBatch.from_documents(found)


def run(ground: Ground) -> Iterator[Row]:
    """Move one unit after the other, each the same size, and the peer's copy of one between them."""
    count = max(2000, ground.rows // BARS_FOR_EACH)
    settings = _settings(ground)
    days = [NOW.replace(hour=0) - timedelta(days=300 + i) for i in range(ground.repeats + 1)]
    ground.say(f"{len(days) + 1} units of {count:,} documents")
    spare = NOW.replace(hour=0)
    with opened_documents(settings) as (stores, dataset):
        install.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
        install.install_dataset(stores, dataset)
        for day in [*days, spare]:
            stores.hot_documents.insert_missing("news", make(day, count, ground.seed))
        for part in range(3):
            # Of the next day, in parts: the seed makes their `_id`s.
            stores.hot_documents.insert_missing("news", make(spare + timedelta(days=1), count, ground.seed + 1 + part))
    ground.say("documents hot to warm, then to cold, against a raw cursor and raw inserts")
    values, moved = as_values(settings), []

    def ours() -> None:
        moved.append(ground.child("documents", values=values))

    def peer() -> tuple[float, float, float]:
        return copy_raw(settings, spare, spare + timedelta(days=1))

    pairs = alternate(ours, peer, ground.repeats)
    moves = [(found, times) for found, (_, times) in zip(moved[1:], pairs, strict=True)]
    note = f"{count:,} documents of 1.5 KB; "
    until = note + "sealed, copied and judged, read back in full, compared, committed: from then on the copy counts"
    for way, name in (("warm", "hot_to_warm"), ("cold", "warm_to_cold")):
        rates = [(count / found[way]["committed"], count / (read + insert)) for found, (read, insert, _) in moves]
        yield higher(f"documents.{name}_per_s", "documents/s", rates, PEER, 0.7, until)
    told = note + "after the commit: the copy read again, and of the source what is still the same removed"
    rates = [(count / found["warm"]["settled"], count / delete) for found, (_, _, delete) in moves]
    yield higher("documents.settled_per_s", "documents/s", rates, "raw delete_many by _id", None, told)
    told = note + "planned, moved and the source emptied"
    for way, name in (("warm", "hot_to_warm"), ("cold", "warm_to_cold")):
        rates = [(count / found[way]["whole"], count / sum(times)) for found, times in moves]
        yield higher(f"documents.{name}_emptied_per_s", "documents/s", rates, f"{PEER} + raw delete", None, told)
    told = "a process that copies a unit into a collection and into a lake file"
    for days, name in enumerate(("copy_peak_rss_mb", "copy_peak_rss_mb_3x")):
        copied = ground.child("documents_copy", values=values, days=days)
        assert copied["rows"] == count * (3 if days else 1), copied
        size = f"{told}: {copied['rows']:,} documents"
        yield at_most(f"documents.{name}", "MB", copied["rss_mb"], RSS_MB_MAX, size, None, "")
    rss = max(found["rss_mb"] for found in moved)
    told = "a whole process that moves both ways, Great Expectations in it"
    yield at_most("documents.move_peak_rss_mb", "MB", rss, RSS_MB_MAX, told, None, "")
    _drop(ground, settings)


def copy_raw(settings: Settings, begin: datetime, end: datetime) -> tuple[float, float, float]:
    """Do the peer's work: read raw and throw away, insert the same batches, delete them again; return the seconds."""
    assert settings.hot_mongo_url
    url = settings.hot_mongo_url.get_secret_value()
    with MongoClient[RawBSONDocument](url, document_class=RawBSONDocument) as client:
        database = client.get_default_database()
        database["peer"].drop()
        database["peer"].create_index([("publish_time", 1), ("_id", 1)])
        began = time.perf_counter()
        between = {"publish_time": {"$gte": begin, "$lt": end}}
        batches = [RawBatch.from_bytes(data) for data in database["news"].find_raw_batches(between)]
        read = time.perf_counter()
        for batch in batches:
            rows = [RawBSONDocument(document) for document in batch.documents()]
            database["peer"].insert_many(rows, ordered=False)
        inserted = time.perf_counter()
        for batch in batches:
            for start in range(0, len(batch), IDS_AT_ONCE):
                part = batch.part(start, min(start + IDS_AT_ONCE, len(batch)))
                database["peer"].delete_many(with_ids(ids(part)))
        return read - began, inserted - read, time.perf_counter() - inserted


def _settings(ground: Ground) -> Settings:
    url = SecretStr(ground.stack.mongo.url(NAME))
    return ground.create(NAME).model_copy(update={"hot_mongo_url": url, "warm_mongo_url": url})


def _drop(ground: Ground, settings: Settings) -> None:
    assert settings.hot_mongo_url
    with MongoClient[dict[str, object]](settings.hot_mongo_url.get_secret_value()) as client:
        client.drop_database(NAME)
    ground.drop(NAME)


NAMES = (
    "hot_to_warm_per_s",
    "warm_to_cold_per_s",
    "settled_per_s",
    "hot_to_warm_emptied_per_s",
    "warm_to_cold_emptied_per_s",
    "copy_peak_rss_mb",
    "copy_peak_rss_mb_3x",
    "move_peak_rss_mb",
)
GROUPS = (Group(tuple(f"documents.{name}" for name in NAMES), run),)
