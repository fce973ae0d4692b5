"""Reach MongoDB: a database whose documents are read, written and removed as raw BSON; never one dict each.

Does not: know a unit or a tier. Needs MongoDB 4.4; with a replica set, removal is in transactions.

What the embedded server (SecantusDB) does otherwise, all of it harmless to a document that it holds: it keeps the
last of fields with the same name, takes no dates beyond year 9999 and no broken Unicode, and looks through a whole
range to find the first document of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pydantic import SecretStr
from pymongo import ASCENDING, DESCENDING, MongoClient, ReadPreference, WriteConcern
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import BulkWriteError, PyMongoError

from tiering.stores import bson_kernels as kernel
from tiering.stores.bson_batches import RawBatch, ids, locate
from tiering.stores.documents_errors import bad_url, is_known_id, mapped, no_url
from tiering.stores.documents_remove import Removal, raw, with_ids

_Document = Mapping[str, Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_FIRST = -((_EPOCH - datetime(1, 1, 1, tzinfo=UTC)) // _MS)
_END = (datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC) - _EPOCH) // _MS + 1
"""Dates that count, in milliseconds: years 1 to 9999, as Python, PostgreSQL and the units have them."""

_BATCH_BYTES = 3 << 19
_ASSUMED_BYTES = 1536
"""A document's size before any was read. No server sends more than 16 MiB at once, so that a wrong guess costs little;
to look first costs the embedded server a pass over the whole collection."""
_INSERT_DOCUMENTS, _INSERT_BYTES = 4000, 8 << 20
_IDS_AT_ONCE = 50  # the embedded server compares every document with every one of them
_WINDOW_MS = 86_400_000
_CODEC: CodecOptions[dict[str, Any]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)
_WRITE = WriteConcern("majority", wtimeout=60_000)


class Documents:
    """One MongoDB database. Reaches no server until asked; safe to share between threads."""

    def __init__(self, url: SecretStr, name: str) -> None:
        self.name = name
        self.url = url
        self._lock = threading.Lock()
        self._mean_bytes: dict[str, int] = {}
        self._opened: MongoClient[dict[str, Any]] | None = None

    def __repr__(self) -> str:
        return f"Documents({self.name})"

    @property
    def _client(self) -> MongoClient[dict[str, Any]]:
        with self._lock:
            if not self.url.get_secret_value():
                raise no_url(self.name)
            if self._opened is None:
                try:
                    self._opened = MongoClient(
                        self.url.get_secret_value(),
                        connect=False,
                        appname="tiering",
                        serverSelectionTimeoutMS=5000,
                        connectTimeoutMS=5000,
                        socketTimeoutMS=600_000,  # a half-dead server must not keep us waiting for ever
                    )
                except (PyMongoError, ValueError):
                    raise bad_url(self.name) from None
            return self._opened

    @property
    def _database(self) -> Database[dict[str, Any]]:
        client = self._client
        try:
            return client.get_default_database(
                codec_options=_CODEC, read_preference=ReadPreference.PRIMARY, write_concern=_WRITE
            )
        except PyMongoError:
            raise bad_url(self.name) from None

    def _collection(self, collection: str) -> Collection[dict[str, Any]]:
        return self._database[collection]

    @cached_property
    def _has_transactions(self) -> bool:
        with mapped("ask", self.name):
            hello = self._client.admin.command("hello")
        return "setName" in hello or hello.get("msg") == "isdbgrid"

    def close(self) -> None:
        """Close idle connections; the object may be used again."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    def ping(self) -> None:
        """Ask the server for a sign of life, logged in.

        Raises:
            StoreUnavailable, AccessDenied: there is none, or not for us.
        """
        with mapped("ping", self.name):
            self._database.list_collection_names(filter={"name": ""})

    def collections(self) -> list[str]:
        """List the database's collections by name."""
        with mapped("list collections", self.name):
            return sorted(self._database.list_collection_names())

    def exists(self, collection: str) -> bool:
        """Say whether there is such a collection."""
        with mapped("look for", collection):
            return bool(self._database.list_collection_names(filter={"name": collection}))

    def prepare(self, collection: str, time_field: str) -> None:
        """Make the index that everything here reads by, and the collection, unless they are there."""
        with mapped("prepare", collection):
            target = self._collection(collection)
            wanted = {time_field: ASCENDING, "_id": ASCENDING}
            have = [dict(index["key"]) for index in target.list_indexes()]
            if not any(index == wanted and list(index) == list(wanted) for index in have):
                target.create_index(list(wanted.items()), name=f"tiering_{time_field}")

    def newest(self, collection: str, time_field: str) -> datetime | None:
        """Find the newest date in the field, of years 1 to 9999; values of other types never count.

        Why in growing windows, from the server's time back: see `first_at_or_after`.
        """
        with mapped("ask", self.name):
            hello = self._client.admin.command("hello")
        end, begin, window = _END, to_ms(hello["localTime"].replace(tzinfo=UTC)), _WINDOW_MS
        while end > _FIRST:
            if (found := self._edge(collection, time_field, begin, end, DESCENDING)) is not None:
                return found
            begin, end, window = max(begin - window, _FIRST), begin, window * 2
        return None

    def first_at_or_after(self, collection: str, time_field: str, instant: datetime | None) -> datetime | None:
        """Find the oldest date at or after an instant (None: of all).

        Why in growing windows: a scan from unit to unit then costs what it finds, also on the embedded server,
        which looks through all of a range for its first document.
        """
        begin, window = _FIRST if instant is None else to_ms(instant), _WINDOW_MS
        while begin < _END:
            end = min(begin + window, _END)
            if (found := self._edge(collection, time_field, begin, end, ASCENDING)) is not None:
                return found
            begin, window = end, window * 2
        return None

    def _edge(self, collection: str, time_field: str, begin: int, end: int, direction: int) -> datetime | None:
        with mapped("look for", collection):
            cursor = self._collection(collection).find_raw_batches(
                _dated(time_field, begin, end), {"_id": 0, time_field: 1}, sort=[(time_field, direction)], limit=1
            )
            with closing(cursor):
                batch = RawBatch.from_bytes(b"".join(raw(cursor)))
        if not len(batch):
            return None
        cells = locate(batch, [time_field])
        return _EPOCH + int.from_bytes(cells.element(batch, 0, 0)[1:], "little", signed=True) * _MS

    def count(self, collection: str, time_field: str, begin: datetime, end: datetime) -> int:
        """Count the documents of `[begin, end)`."""
        with mapped("count", collection):
            return self._collection(collection).count_documents(_dated(time_field, to_ms(begin), to_ms(end)))

    def undated(self, collection: str, time_field: str) -> int:
        """Count the documents that no unit will ever hold: no date in the field, or none of years 1 to 9999."""
        with mapped("count", collection):
            return self._collection(collection).count_documents({"$nor": [_dated(time_field, _FIRST, _END)]})

    def read(
        self, collection: str, time_field: str, begin: datetime, end: datetime, *, batch_bytes: int = _BATCH_BYTES
    ) -> Iterator[RawBatch]:
        """Read the documents of `[begin, end)` in batches of about `batch_bytes`, oldest first.

        It is no snapshot: a document whose date changes meanwhile may come twice or not at all.
        """
        return self._read(collection, time_field, begin, end, None, batch_bytes)

    def read_ids(self, collection: str, time_field: str, begin: datetime, end: datetime) -> Iterator[list[bytes]]:
        """Read the `_id`s of the documents of `[begin, end)`: type byte and value."""
        for batch in self._read(collection, time_field, begin, end, {"_id": 1, time_field: 1}, _BATCH_BYTES):
            yield ids(batch)

    def _read(
        self,
        collection: str,
        time_field: str,
        begin: datetime,
        end: datetime,
        fields: _Document | None,
        batch_bytes: int,
    ) -> Iterator[RawBatch]:
        first, last = max(to_ms(begin), _FIRST), min(to_ms(end), _END)
        size = batch_bytes // self._mean_bytes.get(collection, _ASSUMED_BYTES)
        with mapped("read", collection):
            cursor = self._collection(collection).find_raw_batches(
                # Dates in an array are looked for by us: the embedded server takes thrice as long when it must.
                {time_field: _between(first, last)},
                fields,
                sort=[(time_field, ASCENDING)],
                batch_size=min(max(size, 16), 10_000),
            )
            with closing(cursor):
                for data in raw(cursor):
                    batch = _only_dated(RawBatch.from_bytes(data), time_field, first, last)
                    if len(batch):
                        if fields is None:
                            self._mean_bytes[collection] = max(64, batch.size_bytes // len(batch))
                        yield batch

    def find(self, collection: str, ids: Sequence[bytes]) -> RawBatch:
        """Read those of the documents with these `_id`s that are there, whatever their date."""
        found: list[bytes] = []
        with mapped("read", collection):
            source = self._collection(collection)
            for i in range(0, len(ids), _IDS_AT_ONCE):
                with closing(source.find_raw_batches(with_ids(ids[i : i + _IDS_AT_ONCE]))) as cursor:
                    found += list(raw(cursor))
        return RawBatch.from_bytes(b"".join(found))

    def insert_missing(self, collection: str, batch: RawBatch) -> int:
        """Insert the documents whose `_id` is not there, never overwriting one; return how many.

        Why the number is a lower bound: after a broken connection the driver tries again, and finds its own.

        Raises:
            AlreadyExists: another unique index refuses a document.
        """
        inserted = 0
        with mapped("insert", collection):
            target = self._collection(collection)
            for part in parts(batch, _INSERT_DOCUMENTS, _INSERT_BYTES):
                try:
                    target.insert_many([RawBSONDocument(d) for d in part.documents()], ordered=False)
                    inserted += len(part)
                except BulkWriteError as exc:
                    inserted += _inserted(exc)
        return inserted

    def remove_unchanged(self, collection: str, batch: RawBatch, time_field: str | None = None) -> int:
        """Remove the documents whose stored bytes are those of the batch at this moment; return how many.

        A document that somebody changes meanwhile stays. In transactions, which conflict with every other writer.

        Args:
            collection: where they are.
            batch: what they must be.
            time_field: with it, documents are found by the index on time: thrice as fast on the embedded server.

        Why a standalone server is less exact: it has no transactions, so that the filter must compare, and for a
        filter an integer, a double and a decimal of the same value are equal. The document's size must agree too.
        """
        with mapped("remove", collection):
            removal = Removal(self._client, self._collection(collection), time_field)
            return removal.in_transactions(batch) if self._has_transactions else removal.by_filter(batch)

    def remove_range(self, collection: str, time_field: str, begin: datetime, end: datetime) -> int:
        """Remove every document of `[begin, end)`; return how many. For leftovers and for the sweep."""
        with mapped("remove", collection):
            found = self._collection(collection).delete_many(_dated(time_field, to_ms(begin), to_ms(end)))
            return found.deleted_count

    def size_bytes(self, collection: str, count: int | None = None) -> int:
        """Estimate the bytes of `count` documents (None: of all), uncompressed, by their mean size."""
        if count is None:
            with mapped("count", collection):
                count = self._collection(collection).estimated_document_count()
        return count * self._document_bytes(collection) if count else 0

    def _document_bytes(self, collection: str) -> int:
        """Look at a hundred documents: the embedded server's own statistics tell something else."""
        with mapped("measure", collection), closing(self._collection(collection).find_raw_batches(limit=100)) as cursor:
            batch = RawBatch.from_bytes(b"".join(raw(cursor)))
        return batch.size_bytes // len(batch) if len(batch) else 0

    def rename(self, old: str, new: str) -> None:
        """Give a collection another name.

        Raises:
            NotFound, AlreadyExists: there is none, or the name is taken.
        """
        with mapped("rename", old):
            self._collection(old).rename(new)

    def drop(self, collection: str) -> None:
        """Remove a collection and its indexes, if it is there."""
        with mapped("drop", collection):
            self._collection(collection).drop()


def to_ms(instant: datetime) -> int:
    """Count milliseconds since 1970, rounded up: a date is at or after an instant exactly if its count is."""
    return -((_EPOCH - instant) // _MS)


def parts(batch: RawBatch, documents_max: int, bytes_max: int) -> Iterator[RawBatch]:
    """Cut a batch into slices of so many documents and bytes at most; a single document may be larger."""
    begin = 0
    while begin < len(batch):
        by_bytes = int(np.searchsorted(batch.offsets, batch.offsets[begin] + bytes_max, "right")) - 1
        end = max(begin + 1, min(begin + documents_max, by_bytes))
        yield batch.part(begin, end)
        begin = end


def _dated(time_field: str, begin: int, end: int) -> dict[str, Any]:
    """Filter the documents whose field is a date in `[begin, end)`; an array that holds one is none.

    Why not `$type`: with it the embedded server ignores the index. Of what has a date in the range, only an array
    has an element 0.
    """
    names = time_field.split(".")
    found: dict[str, Any] = {".".join(names[:i]): {"$not": {"$type": "array"}} for i in range(1, len(names))}
    return {time_field: _between(begin, end), f"{time_field}.0": {"$exists": False}, **found}


def _between(begin: int, end: int) -> dict[str, Any]:
    """Compare with dates of years 1 to 9999 only: the embedded server knows no others."""
    first, last = max(begin, _FIRST), min(end, _END) - 1
    if first > last:
        first, last = 0, -1
    return {"$gte": DatetimeMS(first), "$lte": DatetimeMS(last)}


def _only_dated(batch: RawBatch, time_field: str, first: int, last: int) -> RawBatch:
    cells = locate(batch, [time_field])
    chosen = np.zeros(len(batch), np.bool_)
    kernel.within(batch.bytes_view, cells.kinds[0], cells.starts[0], first, last, chosen)
    return batch if chosen.all() else batch.take(np.flatnonzero(chosen))


def _inserted(exc: BulkWriteError) -> int:
    """Count what a bulk insert inserted, where all that failed are documents that were there; else raise."""
    details: dict[str, Any] = dict(exc.details or {})
    if details.get("writeConcernErrors") or not all(is_known_id(e) for e in details.get("writeErrors", [])):
        raise exc
    return int(details.get("nInserted", 0))
