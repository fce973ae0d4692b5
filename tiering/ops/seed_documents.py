"""Make history of documents and files: into the hot collections and the files bucket, as applications would.

The same seed makes the same bytes and the same `_id`s, so that whatever was begun is completed and never doubled.
Does not: decide the shapes (seed_shapes.py) or the times (plan/seeds.py).
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from datetime import datetime, timedelta
from io import BytesIO
from random import Random

from tiering import errors
from tiering.model import Dataset, Unit
from tiering.ops import documents
from tiering.ops.seed_shapes import SHAPES, Document, Scene
from tiering.stores.bson_encode import encode_documents
from tiering.stores.object_rows import ObjectRecord, put_objects
from tiering.stores.opening import Stores

FILES = {
    "chart_images": ("png", 2, 30_000),
    "report_exports": ("pdf", 2, 60_000),
    "model_artifacts": ("bin", 1, 200_000),
}
"""Per dataset of files: their ending, how many a unit gets, and their size in bytes at most."""

DOCUMENTS_AT_ONCE = 1000
MS = timedelta(milliseconds=1)


def load_documents(
    stores: Stores, dataset: Dataset, unit: Unit, now: datetime, counts: tuple[int, int], seed: int
) -> int:
    """Insert a unit's documents, the newest unit's newest of exactly `now`; return how many were not there.

    Args:
        stores: where to.
        dataset: which collection, and which shape.
        unit: whose times they get.
        now: nothing is of a later time.
        counts: of symbols and users.
        seed: the same one makes the same documents.
    """
    place = documents.hot(stores, dataset)
    total = max(1, round(SHAPES[dataset.name][1] * counts[0]))
    inserted = 0
    for first in range(0, total, DOCUMENTS_AT_ONCE):
        numbers = range(first, min(first + DOCUMENTS_AT_ONCE, total))
        made = [make_document(dataset, unit, number, now, counts, seed) for number in numbers]
        inserted += place.documents.insert_missing(place.collection, encode_documents(made))
    return inserted


def make_document(
    dataset: Dataset, unit: Unit, number: int, now: datetime, counts: tuple[int, int], seed: int
) -> Document:
    """Make one document of a unit: its dice depend on the seed, the unit and its number alone."""
    name = f"{seed} {unit.name} {number}"
    dice = Random(name)
    end = min(unit.end, now + MS)
    at = end - MS if number == 0 else unit.begin + dice.randrange(max(1, (end - unit.begin) // MS)) * MS
    make, _ = SHAPES[dataset.name]
    return {"_id": hashlib.sha256(name.encode()).digest()[:12]} | make(Scene(dice, at, number, *counts))


def load_files(stores: Stores, dataset: Dataset, unit: Unit, now: datetime, seed: int) -> int:
    """Write a unit's objects, and enter them in the ledger with the date that they are of.

    Why: an object store dates an object by its arrival. What came from elsewhere is as old as the ledger says, which
    is where a change of class, that renews the store's date as well, keeps it too.
    """
    kind, count, size_max = FILES[dataset.name]
    records = []
    for number in range(count):
        dice = Random(f"{seed} {unit.name} {number}")
        at = min(unit.begin + (unit.end - unit.begin) * dice.random(), now).replace(microsecond=0)
        key = f"{dataset.prefix}S{dice.randrange(10**5):05d}/{at:%Y%m%d}-{number}.{kind}"
        data = dice.randbytes(dice.randrange(size_max // 2, size_max))
        # One that is there was written by a run that died before it could say how old it is.
        with suppress(errors.AlreadyExists):
            stores.files.put_new(key, BytesIO(data), len(data), hashlib.sha256(data).hexdigest())
        stat = stores.files.stat(key)
        records.append(
            ObjectRecord(
                stores.files.bucket, key, dataset.name, unit.begin, stat.etag, stat.size, at, stat.storage_class
            )
        )
    if records:
        with stores.warm.transaction("seed", str(unit)) as connection:
            put_objects(connection, records)
    return len(records)
