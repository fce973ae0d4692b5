"""One person's documents in MongoDB: count them by time, remove them, and look through every collection for the name.

Does not: know a unit. Removal is by the declared path alone; the embedded server and MongoDB agree on that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

from bson.datetime_ms import DatetimeMS

from tiering.stores.documents import Documents, to_ms
from tiering.stores.documents_errors import mapped
from tiering.stores.documents_remove import raw

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DIGITS_MAX = 18


def times_of(documents: Documents, collection: str, path: str, name: str, time_field: str) -> list[datetime | None]:
    """Give the time of each of the person's documents; None where the field holds no date of years 1 to 9999."""
    with mapped("look for a person in", collection):
        cursor = documents._collection(collection).find(_is_person(path, name), {time_field: 1, "_id": 0})
        with closing(cursor):
            return [_instant(_at(document, time_field)) for document in cursor]


def remove(
    documents: Documents,
    collection: str,
    path: str,
    name: str,
    time_field: str,
    spared: Sequence[tuple[datetime, datetime]],
) -> int:
    """Remove the person's documents, but for the `[begin, end)` that are spared; return how many."""
    ranges = [{time_field: {"$gte": DatetimeMS(to_ms(b)), "$lt": DatetimeMS(to_ms(e))}} for b, e in spared]
    filters = {"$and": [_is_person(path, name), {"$nor": ranges}]} if ranges else _is_person(path, name)
    with mapped("remove a person from", collection):
        return int(documents._collection(collection).delete_many(filters).deleted_count)


def mentions(documents: Documents, collection: str, is_in: Callable[[bytes], bool]) -> int:
    """Count the batches of raw documents that name the person anywhere."""
    with (
        mapped("look through", collection),
        closing(documents._collection(collection).find_raw_batches(batch_size=1000)) as cursor,
    ):
        return sum(is_in(batch) for batch in raw(cursor))


def _is_person(path: str, name: str) -> dict[str, Any]:
    """Filter by the value as text, and as the number that a careless writer made of it."""
    is_number = name.isascii() and name.isdigit() and len(name) <= _DIGITS_MAX and str(int(name)) == name
    return {path: {"$in": [name, int(name)]}} if is_number else {path: name}


def _at(document: Any, path: str) -> Any:
    for part in path.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


def _instant(value: Any) -> datetime | None:
    if not isinstance(value, DatetimeMS):
        return None
    try:
        return _EPOCH + timedelta(milliseconds=int(value))
    except OverflowError:
        return None
