"""Take one person's documents out of MongoDB: the hot and the warm collection of a dataset, and its trash.

A copy that is being made is made again by its move; a committed move whose sources wait is settled first, because
settling reads the copy that an erasure destroys.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from tiering.model import Dataset, Tier, Unit
from tiering.ops.erase_lake import demand_free
from tiering.plan.erase import Found, Person
from tiering.plan.spans import unit_of
from tiering.stores import erasures, person_documents
from tiering.stores.documents import Documents
from tiering.stores.erasures import Erasure
from tiering.stores.opening import Stores
from tiering.stores.postgres import LOCK_TIMEOUT_MS


def find(stores: Stores, dataset: Dataset, person: Person) -> list[Found]:
    """Find every collection of a dataset that holds documents of the person, with their number by unit."""
    found = []
    for store, documents in servers(stores):
        for collection in _collections(documents, dataset):
            counts: dict[datetime | None, int] = {}
            for instant in person_documents.times_of(
                documents, collection, subject_path(dataset), person.name, dataset.time_column
            ):
                begin = unit_of(instant, dataset.unit)[0] if instant else None
                counts[begin] = counts.get(begin, 0) + 1
            if counts:
                found.append(Found("documents", f"{store}:{collection}", dataset.name, counts))
    return found


def servers(stores: Stores) -> list[tuple[str, Documents]]:
    """Name the MongoDB databases that are there, one of them only once."""
    known = [("hot", stores.hot_documents), ("warm", stores.warm_documents)]
    if known[0][1].url.get_secret_value() == known[1][1].url.get_secret_value():
        known = known[:1]
    return [(store, documents) for store, documents in known if documents.url.get_secret_value()]


def subject_path(dataset: Dataset) -> str:
    """Name where the person stands in a document."""
    return next((field.path for field in dataset.fields if field.name == dataset.subject), dataset.subject)


def _collections(documents: Documents, dataset: Dataset) -> list[str]:
    name = dataset.name
    return [c for c in documents.collections() if c in (name, f"warm_{name}") or _is_trash(c, name)]


def _is_trash(collection: str, name: str) -> bool:
    return collection.startswith(f"trash_{name}_") and collection.removeprefix(f"trash_{name}_").isdigit()


def erase(
    stores: Stores,
    dataset: Dataset,
    found: Sequence[Found],
    person: Person,
    erasure: Erasure,
    spared: Sequence[tuple[datetime, datetime]],
) -> None:
    """Remove the documents found, but for the ranges that are spared; warm units are counted anew.

    Raises:
        LeaseHeld: a unit is being moved; the caller tries again.
    """
    of = dict(servers(stores))
    kept = {begin for begin, _ in spared}
    for item in found:
        store, collection = item.place.split(":", 1)
        begins = sorted(begin for begin in item.counts if begin is not None and begin not in kept)
        if not begins and None not in item.counts:
            continue
        with stores.warm.transaction("erase", item.place, lock_timeout_ms=LOCK_TIMEOUT_MS) as ledger:
            for begin in begins or [datetime.min]:
                demand_free(ledger, Unit(dataset.name, begin, begin))
            for begin in begins:
                erasures.stop_moves(ledger, dataset.name, begin)
            removed = person_documents.remove(
                of[store], collection, subject_path(dataset), person.name, dataset.time_column, spared
            )
            if collection == f"warm_{dataset.name}":
                _recount(stores, dataset, of[store], collection, begins)
            erasures.note_done(ledger, erasure, item.place, {"removed": removed})


def _recount(
    stores: Stores, dataset: Dataset, documents: Documents, collection: str, begins: Sequence[datetime]
) -> None:
    """Set the ledger's counts of warm units to what is there now; a unit without documents is none."""
    for begin in begins:
        record = stores.ledger.unit(dataset.name, begin)
        if record is None or record.tier is not Tier.WARM:
            continue
        count = documents.count(collection, dataset.time_column, record.unit.begin, record.unit.end)
        with stores.warm.transaction("count", str(record.unit)) as connection:
            erasures.recount_unit(connection, record.unit, count)
