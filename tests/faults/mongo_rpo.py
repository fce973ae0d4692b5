"""Lose MongoDB altogether, again and again: SIGKILL under load, the data directory deleted, only the bucket left.

What a client was told is written, and the archive does not have, is lost; how long before the kill the oldest of it was
acknowledged is the recovery point that was missed by.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from infra.local import Stack
from infra.local.scratch_servers import scratch_mongo
from tests.faults.mongo_pitr import Archiver
from tests.wait import wait_until
from tiering.ops import backup_mongo, restore_mongo
from tiering.ops.catalogue import Catalogue
from tiering.stores.mongo_entries import touched

Client = MongoClient[dict[str, Any]]
NAMESPACE = "trading.orders"


@dataclass
class Losses:
    """What the kills cost.

    Attributes:
        kills: made.
        acknowledged: writes, over all kills.
        lost: of them.
        seconds: of each kill, how long before it the oldest lost write was acknowledged; 0 if none was lost.
        wrong: what must not be: writes in the archive that nobody made, gaps, a restore that is not the archive.
    """

    kills: int = 0
    acknowledged: int = 0
    lost: int = 0
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """Return a percentile of the seconds."""
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


@dataclass
class _Writer:
    """Writes one document after another, each with its own number, and notes when it was acknowledged."""

    url: SecretStr
    acknowledged: dict[int, float] = field(default_factory=dict)
    tried: int = 0

    def run(self) -> None:
        client: Client = MongoClient(self.url.get_secret_value(), serverSelectionTimeoutMS=500, retryWrites=False)
        database, _, name = NAMESPACE.partition(".")
        try:
            while True:
                self.tried += 1
                client[database][name].insert_one({"_id": self.tried, "pad": "x" * 100})
                self.acknowledged[self.tried] = time.monotonic()
        except PyMongoError:
            client.close()  # the server is gone


def run(catalogue: Catalogue, directory: Path, seed: int, kills: int, restore_every: int = 10) -> Losses:
    """Kill a fresh server `kills` times, each under load."""
    dice, losses = random.Random(seed), Losses()
    directory.mkdir(exist_ok=True)
    for number in range(kills):
        _round(catalogue, directory / f"round{number}", f"round{number}", dice.uniform(0.3, 3.0), losses)
        if number % restore_every == 0:
            _restore(catalogue, f"round{number}", losses)
            print(f"{losses.kills} kills, worst {max(losses.seconds):.2f} s, {len(losses.wrong)} wrong", flush=True)
    return losses


def _round(catalogue: Catalogue, directory: Path, source: str, seconds: float, losses: Losses) -> None:
    with Stack(directory, services={"mongo"}) as stack:
        url = SecretStr(stack.mongo.url("admin"))
        backup_mongo.backup(catalogue, url, source, datetime.now(UTC))
        with Archiver(catalogue, url, source) as archiver:
            writer = _Writer(url)
            thread = threading.Thread(target=writer.run)
            thread.start()
            wait_until(lambda: archiver.told, what="something is archived")
            deadline = time.monotonic() + seconds
            wait_until(lambda: time.monotonic() > deadline, what="the moment has come")
            killed = time.monotonic()
            stack.kill("mongo")
            thread.join()
    shutil.rmtree(directory)
    plan = restore_mongo.prepare(catalogue, restore_mongo.Target(), source)
    found = touched(raw for entries in restore_mongo.read_log(catalogue, plan) for _, raw in entries)
    kept = {int.from_bytes(identity[1:], "little") for namespace, identity in found if namespace == NAMESPACE}
    lost = [at for number, at in writer.acknowledged.items() if number not in kept and at < killed]
    losses.kills += 1
    losses.acknowledged += len(writer.acknowledged)
    losses.lost += len(lost)
    losses.seconds.append(max((killed - at for at in lost), default=0.0))
    losses.wrong += [f"{source}: {gap.reason}" for gap in archiver.gaps]
    losses.wrong += [f"{source}: {extra} was never written" for extra in kept if extra > writer.tried]


def _restore(catalogue: Catalogue, source: str, losses: Losses) -> None:
    """Restore what is left, and look for a hole in it: writes came one after another."""
    with scratch_mongo() as url:
        restore_mongo.restore(catalogue, "latest", url, now=datetime.now(UTC), source=source)
        client: Client = MongoClient(url.get_secret_value())
        database, _, name = NAMESPACE.partition(".")
        numbers = sorted(document["_id"] for document in client[database][name].find({}, {"_id": 1}))
        client.close()
    if numbers != list(range(1, len(numbers) + 1)):
        losses.wrong.append(f"{source}: {len(numbers)} documents restored, and not the first ones")
