"""A world of documents: a MongoDB dataset installed on empty servers, and what tests do to it and ask of it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import bson
from pymongo import MongoClient
from pymongo.collection import Collection

import infra.sql
from tests.ops.world import NOW
from tiering.model import Dataset, Receipt, Transition
from tiering.ops import install, lifecycle
from tiering.ops.query import query
from tiering.plan.policies import parse_policies
from tiering.settings import Settings
from tiering.stores.opening import Stores, open_stores

ANCHOR = "anchor"
"""A document of now: ages are measured against the newest one, so that without it nothing would be old."""

POLICIES = Path(__file__).parents[2] / "deployments" / "policies.yaml"


@dataclass
class DocumentWorld:
    """Stores, the dataset, and the application's own clients of its collections."""

    stores: Stores
    dataset: Dataset
    hot: Collection[dict[str, Any]]
    warm: Collection[dict[str, Any]]

    def news(self, day: datetime, count: int, *, seed: int = 1, first: int = 0) -> list[dict[str, Any]]:
        """Make articles of a day: mixed types, missing fields, values that are not of their declared type."""
        dice = random.Random(f"{seed} {day} {first}")
        found = []
        for number in range(first, first + count):
            article: dict[str, Any] = {
                "_id": bson.ObjectId(dice.randbytes(12)) if number % 3 else f"{day:%Y%m%d}-{number}",
                "publish_time": day + timedelta(milliseconds=dice.randrange(86_400_000)),
                "title": f"第{number}号 " + "消息" * dice.randrange(1, 40),
                "symbol": f"{dice.randrange(1000):06d}",
                "sentiment_score": dice.choice([dice.uniform(-1, 1), 1, bson.Int64(0), None, "0.5"]),
                "content": "x" * dice.randrange(2000),
                "nested": {"a": [1, 2.0, {"b": bson.Decimal128("NaN")}], "none": None},
            }
            found.append(article)
        return found

    def insert(self, documents: Sequence[dict[str, Any]]) -> None:
        """Insert as an application does: into the hot collection, whatever their time."""
        self.hot.insert_many(documents)

    def begin(self, *transitions: Transition, at: datetime = NOW) -> list[int]:
        """Plan at an instant and record the due moves."""
        plan = lifecycle.plan_dataset(self.stores, self.dataset, at, transitions or None)
        return lifecycle.begin_moves(self.stores, plan)

    def run(self, *transitions: Transition, at: datetime = NOW) -> list[Receipt]:
        """Carry every due move through."""
        ids = self.begin(*transitions, at=at)
        return [lifecycle.run_move(self.stores, move_id, at, "test") for move_id in ids]

    def left(self, collection: Collection[dict[str, Any]]) -> int:
        """Count a collection's documents, without the one that keeps the dataset's clock at now."""
        return collection.count_documents({"_id": {"$ne": ANCHOR}})

    def seen(self) -> dict[bytes, list[bytes]]:
        """Read every document of every tier as a reader of the query does: `_id` → the raw bytes, once each."""
        found: dict[bytes, list[bytes]] = {}
        statement = f"SELECT _raw FROM {self.dataset.name} WHERE _id <> '{ANCHOR}'"
        for row in query(self.stores, statement).to_pylist():
            found.setdefault(bson.BSON.encode({"_id": bson.decode(row["_raw"])["_id"]}), []).append(row["_raw"])
        return found


def raw(documents: Sequence[dict[str, Any]]) -> dict[bytes, list[bytes]]:
    """Say what a reader must see of documents."""
    return {bson.BSON.encode({"_id": d["_id"]}): [bson.BSON.encode(d)] for d in documents}


@contextmanager
def open_documents(settings: Settings, name: str = "news", **changed: Any) -> Iterator[DocumentWorld]:
    """Open stores and install one documents dataset; a second process may open the same."""
    policies = parse_policies(POLICIES.read_text(), str(POLICIES))
    dataset = policies.dataset(name)
    assert dataset is not None
    dataset = replace(dataset, state="moves", **changed)
    others = tuple(d for d in policies.datasets if d.name != name)
    with open_stores(settings, replace(policies, datasets=(*others, dataset))) as stores:
        install.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
        install.install_dataset(stores, dataset)
        assert settings.hot_mongo_url
        assert settings.warm_mongo_url
        clients: list[MongoClient[dict[str, Any]]] = [
            MongoClient(url.get_secret_value(), tz_aware=True)
            for url in (settings.hot_mongo_url, settings.warm_mongo_url)
        ]
        try:
            hot, warm = (client.get_default_database() for client in clients)
            hot[name].replace_one({"_id": ANCHOR}, {dataset.time_column: NOW}, upsert=True)  # a child opens it again
            yield DocumentWorld(stores, dataset, hot[name], warm[f"warm_{name}"])
        finally:
            for client in clients:
                client.close()
