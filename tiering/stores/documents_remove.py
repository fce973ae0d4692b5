"""Remove documents that are still what was copied, and no other: the part of `Documents` that must not err."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pymongo import DeleteMany, DeleteOne, MongoClient
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import ConnectionFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from tiering.errors import CommitConflict
from tiering.stores import bson_kernels as kernel
from tiering.stores.bson_batches import RawBatch, ids, locate

_DOCUMENTS_MAX, _BYTES_MAX = 500, 8 << 20
_IDS_AT_ONCE = 50
_TRIES = 5


class Removal:
    """One call's work on one collection."""

    def __init__(
        self, client: MongoClient[dict[str, Any]], collection: Collection[dict[str, Any]], time_field: str | None
    ) -> None:
        self._client = client
        self._collection = collection
        self._time_field = time_field

    def in_transactions(self, batch: RawBatch) -> int:
        """Remove in transactions of a few hundred documents; a conflict splits one until the changed is alone."""
        ordered, times = self._by_time(batch)
        removed, begin = 0, 0
        while begin < len(ordered):
            by_bytes = int(np.searchsorted(ordered.offsets, ordered.offsets[begin] + _BYTES_MAX, "right")) - 1
            end = max(begin + 1, min(begin + _DOCUMENTS_MAX, by_bytes))
            removed += self._remove(ordered.part(begin, end), times[begin:end])
            begin = end
        return removed

    def _by_time(self, batch: RawBatch) -> tuple[RawBatch, list[int]]:
        """Sort by time, so that a transaction's documents lie together; without dates (or their field) do nothing."""
        if self._time_field is None or not len(batch):
            return batch, []
        cells = locate(batch, [self._time_field])
        if not (cells.kinds[0] == kernel.DATE).all():
            return batch, []
        times, states = np.empty(len(batch), np.int64), np.empty(len(batch), np.uint8)
        kernel.to_timestamp(batch.bytes_view, cells.kinds[0], cells.starts[0], times, states)
        if not (states == kernel.FOUND).all():
            return batch, []
        order = np.argsort(times, kind="stable")
        is_sorted = bool((order[1:] > order[:-1]).all())
        return (batch if is_sorted else batch.take(order)), (times[order] // 1000).tolist()

    def _remove(self, part: RawBatch, times: list[int], tries: int = _TRIES) -> int:
        try:
            return self._remove_at_once(part, times)
        except (PyMongoError, CommitConflict) as exc:
            is_conflict = isinstance(exc, CommitConflict) or exc.has_error_label("TransientTransactionError")
            if not is_conflict or isinstance(exc, ConnectionFailure):
                raise
        if len(part) > 1:
            half = len(part) // 2
            first = self._remove(part.part(0, half), times[:half])
            return first + self._remove(part.part(half, len(part)), times[half:])
        # Whoever is in the way all the time is changing it: it stays, as a changed document does.
        return self._remove(part, times, tries - 1) if tries > 1 else 0

    def _remove_at_once(self, part: RawBatch, times: list[int]) -> int:
        """Read, compare and delete in one transaction.

        Why it removes nothing that changed: the deletion works on the snapshot that was compared, and the server
        refuses it (or the commit) when one of the documents was written after that.
        """
        mine = dict(zip(ids(part), part.documents(), strict=True))
        with (
            self._client.start_session() as session,
            session.start_transaction(
                read_concern=ReadConcern("snapshot"), write_concern=self._collection.write_concern
            ),
        ):
            removed = self._by_range(session, mine, times) if times else None
            if removed is None:
                removed = self._by_ids(session, mine)
            if removed == 0:
                session.abort_transaction()
            return removed

    def _by_range(self, session: ClientSession, mine: dict[bytes, bytes], times: list[int]) -> int | None:
        """Remove by a range of time, sparing what else is in it; None when that is more than what is to go."""
        assert self._time_field is not None
        between = {self._time_field: {"$gte": DatetimeMS(times[0]), "$lte": DatetimeMS(times[-1])}}
        unchanged: list[bytes] = []
        others: list[bytes] = []
        with closing(self._collection.find_raw_batches(between, session=session, batch_size=2 * len(mine))) as cursor:
            for data in raw(cursor):
                present = RawBatch.from_bytes(data)
                for key, document in zip(ids(present), present.documents(), strict=True):
                    (unchanged if mine.get(key) == document else others).append(key)
                if len(others) > min(len(mine), _IDS_AT_ONCE):
                    return None
        if not unchanged:
            return 0
        spare = with_ids(others, "$nin")
        filters = {"$and": [between, spare]} if others else between
        return self._checked(self._collection.delete_many(filters, session=session).deleted_count, unchanged)

    def _by_ids(self, session: ClientSession, mine: dict[bytes, bytes]) -> int:
        keys, unchanged = list(mine), []
        for group in _groups(keys):
            with closing(self._collection.find_raw_batches(with_ids(group), session=session)) as cursor:
                present = RawBatch.from_bytes(b"".join(raw(cursor)))
            unchanged += [k for k, d in zip(ids(present), present.documents(), strict=True) if mine.get(k) == d]
        if not unchanged:
            return 0
        deletes = [DeleteMany(with_ids(group)) for group in _groups(unchanged)]
        done = self._collection.bulk_write(deletes, ordered=False, session=session)
        return self._checked(done.deleted_count, unchanged)

    def _checked(self, deleted: int, unchanged: list[bytes]) -> int:
        """Roll back (by raising) when the server deleted anything else than what was compared."""
        if deleted != len(unchanged):
            raise CommitConflict("remove", self._collection.name, f"{deleted} would go instead of {len(unchanged)}")
        return deleted

    def by_filter(self, batch: RawBatch) -> int:
        """Remove one by one, by filters that compare the whole document, where there are no transactions."""
        removed = 0
        keys = ids(batch)
        for begin in range(0, len(batch), _IDS_AT_ONCE):
            rows = range(begin, min(begin + _IDS_AT_ONCE, len(batch)))
            deletes = [DeleteOne(_equal(keys[row], batch.document(row))) for row in rows]
            removed += self._collection.bulk_write(deletes, ordered=False).deleted_count
        return removed


def raw(cursor: Any) -> Iterator[bytes]:
    """Take the bytes that a raw cursor gives; pymongo's own types call them documents."""
    return iter(cursor)


def with_ids(keys: Sequence[bytes], operator: str = "$in") -> RawBSONDocument:
    """Filter documents by their `_id`s, which go out as they came in: no type is lost on the way through Python."""
    elements = b"".join(key[:1] + b"%d\0" % i + key[1:] for i, key in enumerate(keys))
    array = b"\x04" + operator.encode() + b"\0" + _framed(elements)
    return RawBSONDocument(_framed(b"\x03_id\0" + _framed(array)))


def _framed(elements: bytes) -> bytes:
    return struct.pack("<i", len(elements) + 5) + elements + b"\0"


def _equal(key: bytes, document: bytes) -> dict[str, Any]:
    same_size = {"$eq": [{"$bsonSize": "$$ROOT"}, len(document)]}
    same_value = {"$eq": ["$$ROOT", {"$literal": RawBSONDocument(document)}]}
    return {"$and": [with_ids([key]), {"$expr": {"$and": [same_size, same_value]}}]}


def _groups(keys: Sequence[bytes]) -> Iterable[Sequence[bytes]]:
    return (keys[i : i + _IDS_AT_ONCE] for i in range(0, len(keys), _IDS_AT_ONCE))
