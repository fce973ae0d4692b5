"""A writer of documents: an application that inserts late ones and changes others wherever they are.

Run as `python -m tests.faults.document_writer`, its orders as JSON on standard input. It logs each document before it
tries and after the server acknowledged; SIGTERM ends it between two documents.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, TextIO

from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.errors import PyMongoError

from tests.faults.document_journal import Version, document, identity

DAY_MS = 86_400_000
AGAIN, WANDER, NEW = 0.15, 0.15, 0.25

stopping = False


def stop(*_: Any) -> None:
    global stopping
    stopping = True


def save(collections: Sequence[Collection[dict[str, Any]]], key: str, version: Version, *, stays: bool = True) -> None:
    """Change a document where it is, in the hot collection or in the warm one; else insert a hot one.

    Only in the hot one can it get another time: the warm one's documents count in the units that are there.
    """
    made = document(key, version)
    for collection in collections if stays else collections[:1]:
        if collection.replace_one({"_id": identity(key)}, made).matched_count:
            return
    collections[0].insert_one(made)


def reap(url: str) -> None:
    """Use a transaction every few seconds: it is then that the embedded server ends those that are a minute old.

    MongoDB does by itself. Without it, whoever writes what a killed client's transaction holds would wait for ever.
    """
    client = MongoClient[dict[str, Any]](url, serverSelectionTimeoutMS=2000)
    while not stopping:
        with contextlib.suppress(PyMongoError), client.start_session() as session, session.start_transaction():
            client.get_default_database()["news"].find_one({"_id": "nothing"}, session=session)
        time.sleep(5)


class Writer:
    """One writer's keys, all of them its own, and what it wrote last."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self.orders = orders
        self.dice = random.Random(orders["seed"])
        self.versions: dict[str, list[Version]] = {key: [tuple(last)] for key, last in orders["keys"].items()}
        self.number = orders["number"]
        self.unsure: set[str] = set()

    def choose(self) -> tuple[str, Version, bool]:
        """Choose a key, its next version, and whether it keeps its time.

        Now and then a version comes again, byte for byte: whoever compares bytes must not take it for the old one.
        """
        dice, orders = self.dice, self.orders
        self.number += 10
        near = dice.random() < orders["near"]
        day = dice.choice(orders["near_days"] if near else orders["days"])
        known = [key for key, all_of in self.versions.items() if day <= all_of[-1][0] < day + DAY_MS]
        if not known or (near and len(known) < orders["keys_max"] and dice.random() < NEW):
            key = f"{orders['name']}-{self.number}"
            return key, (day + dice.randrange(DAY_MS), self.number), True
        key = dice.choice(known)
        before = self.versions[key]
        if len(before) > 1 and dice.random() < AGAIN:
            return key, before[-2], before[-2][0] == before[-1][0]
        if near and day in orders["wander_days"] and dice.random() < WANDER:
            return key, (dice.choice(orders["wander_days"]) + dice.randrange(DAY_MS), self.number), False
        return key, (before[-1][0], self.number), True

    def write(self, log: TextIO, errors: TextIO) -> None:
        """Write until told to stop."""
        clients: list[MongoClient[dict[str, Any]]] = [
            MongoClient(url, serverSelectionTimeoutMS=2000, w="majority") for url in self.orders["urls"]
        ]
        collections = [c.get_default_database()[n] for c, n in zip(clients, ("news", "warm_news"), strict=True)]
        while not stopping:
            key, version, stays = self.choose()
            line = f"{key} {version[0]} {version[1]}\n"
            log.write(f"t {line}")
            log.flush()
            self.versions.setdefault(key, []).append(version)
            try:
                save(collections, key, version, stays=stays and key not in self.unsure)
                self.unsure.discard(key)
                log.write(f"a {line}")
                log.flush()
            except PyMongoError as exc:
                self.unsure.add(key)  # it may have been another time that nobody acknowledged
                errors.write(f"{type(exc).__name__} {' '.join(str(exc).split())[:200]}\n")
                errors.flush()
            time.sleep(self.dice.expovariate(self.orders["per_second"]))


def main() -> None:
    signal.signal(signal.SIGTERM, stop)
    orders = json.load(sys.stdin)
    threading.Thread(target=reap, args=orders["urls"][:1], daemon=True).start()
    with open(orders["log"], "a") as log, open(orders["log"] + ".errors", "a") as errors:
        Writer(orders).write(log, errors)


if __name__ == "__main__":
    main()
