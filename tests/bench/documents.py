"""Documents: a unit moved hot to warm and warm to cold, beside the least that anybody could do.

The peer reads the same cursor raw and throws it away, then inserts the same batches into a collection with the same
index: what the server itself takes for reading once and writing once, without a look at any document.
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
from tiering.stores.bson_batches import RawBatch

NAME = "bench_documents"
BARS_FOR_EACH = 100
"""One document for so many of the bench's bars: documents are larger, and their server is slower."""

RSS_MB_MAX = 400.0
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
    ground.say("documents hot to warm, then to cold, against a raw cursor and raw inserts")
    values, moved = as_values(settings), []

    def ours() -> float:
        moved.append(ground.child("documents", values=values))
        return count / moved[-1]["copied_seconds"]

    def peer() -> float:
        return count / copy_raw(settings, spare, spare + timedelta(days=1))

    pairs = alternate(ours, peer, ground.repeats)
    whole = [(count / found["seconds"], rate) for found, (_, rate) in zip(moved[1:], pairs, strict=True)]
    cold = [(count / found["cold_seconds"], rate) for found, (_, rate) in zip(moved[1:], pairs, strict=True)]
    note = f"{count:,} documents of 1.5 KB; "
    yield higher("documents.hot_to_warm_copied_per_s", "documents/s", pairs, PEER, 0.7, note + "copied and read back")
    told = note + "plan to emptied source: judged, copied, read back, committed, and removed if unchanged"
    yield higher("documents.hot_to_warm_moved_per_s", "documents/s", whole, PEER, None, told)
    yield higher("documents.warm_to_cold_moved_per_s", "documents/s", cold, PEER, 0.7, told)
    copied = ground.child("documents_copy", values=values)
    told = "a process that copies a unit into a collection and into a lake file"
    yield at_most("documents.copy_peak_rss_mb", "MB", copied["rss_mb"], RSS_MB_MAX, told, None, "")
    rss = max(found["rss_mb"] for found in moved)
    told = "a whole process that moves both ways, Great Expectations in it"
    yield at_most("documents.move_peak_rss_mb", "MB", rss, None, told, None, "")
    _drop(ground, settings)


def copy_raw(settings: Settings, begin: datetime, end: datetime) -> float:
    """Do the peer's work; return its seconds."""
    assert settings.hot_mongo_url
    url = settings.hot_mongo_url.get_secret_value()
    with MongoClient[RawBSONDocument](url, document_class=RawBSONDocument) as client:
        database = client.get_default_database()
        database["peer"].drop()
        database["peer"].create_index([("publish_time", 1), ("_id", 1)])
        began = time.perf_counter()
        between = {"publish_time": {"$gte": begin, "$lt": end}}
        batches = [RawBatch.from_bytes(data) for data in database["news"].find_raw_batches(between)]
        for batch in batches:
            rows = [RawBSONDocument(document) for document in batch.documents()]
            database["peer"].insert_many(rows, ordered=False)
        return time.perf_counter() - began


def _settings(ground: Ground) -> Settings:
    url = SecretStr(ground.stack.mongo.url(NAME))
    return ground.create(NAME).model_copy(update={"hot_mongo_url": url, "warm_mongo_url": url})


def _drop(ground: Ground, settings: Settings) -> None:
    assert settings.hot_mongo_url
    with MongoClient[dict[str, object]](settings.hot_mongo_url.get_secret_value()) as client:
        client.drop_database(NAME)
    ground.drop(NAME)


NAMES = (
    "hot_to_warm_copied_per_s",
    "hot_to_warm_moved_per_s",
    "warm_to_cold_moved_per_s",
    "copy_peak_rss_mb",
    "move_peak_rss_mb",
)
GROUPS = (Group(tuple(f"documents.{name}" for name in NAMES), run),)
