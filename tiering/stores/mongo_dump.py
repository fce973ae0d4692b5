"""Read and write the documents of whole collections as raw BSON, and make, rename and remove collections.

Does not: decide anything; `ops/backup_mongo.py` reads with it, `mongo_replay` and `ops/restore_mongo.py` write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from bson.raw_bson import DEFAULT_RAW_BSON_OPTIONS, RawBSONDocument
from pymongo import DeleteOne, InsertOne, ReplaceOne
from pymongo.errors import BulkWriteError, OperationFailure

from tiering.errors import CorruptCopy
from tiering.stores import bson_edit as edit
from tiering.stores.bson_batches import RawBatch, ids
from tiering.stores.bson_edit import Element
from tiering.stores.documents_errors import DUPLICATE_KEY, mapped
from tiering.stores.documents_remove import raw, with_ids
from tiering.stores.mongo_server import MongoServer, parted

BATCH_DOCUMENTS = 2000
_WRITE_DOCUMENTS, _WRITE_BYTES = 1000, 16 << 20
_IDS_AT_ONCE = 50
_GONE = (26, 43, 175, 237)
"""Codes of a server whose cursor lost its collection: no such namespace, cursor not found or killed, plan killed."""

AT_THE_END = ("validator", "validationLevel", "validationAction", "expireAfterSeconds")
"""Options that would refuse or remove documents while they are loaded."""


class Gone(Exception):
    """The collection was dropped while it was read."""


def documents(server: MongoServer, namespace: str) -> Iterator[RawBatch]:
    """Read all documents of a collection, in natural order. It is no snapshot.

    Raises:
        Gone: the collection was dropped meanwhile.
    """
    source = server.collection(namespace)
    with mapped("dump", namespace):
        try:
            with closing(source.find_raw_batches(batch_size=BATCH_DOCUMENTS)) as cursor:
                for data in raw(cursor):
                    yield RawBatch.from_bytes(data)
        except OperationFailure as exc:
            if exc.code in _GONE:
                raise Gone(namespace) from None
            raise


def insert(server: MongoServer, namespace: str, batch: RawBatch) -> list[Element]:
    """Insert documents in their order; return the `_id`s of those that were there already, which stay as they are.

    Raises:
        CorruptCopy: the server refuses one.
    """
    there: list[Element] = []
    target = server.collection(namespace).with_options(codec_options=DEFAULT_RAW_BSON_OPTIONS)
    for part in _parts(batch.documents()):
        with mapped("load", namespace):
            try:
                requests = [InsertOne(RawBSONDocument(document)) for document in part]
                target.bulk_write(requests, ordered=False, bypass_document_validation=True)
            except BulkWriteError as exc:
                there += _known(exc, part, namespace)
    return there


def write(server: MongoServer, namespace: str, puts: Mapping[Element, bytes], removed: Sequence[Element]) -> None:
    """Make documents what they are to be, whatever they were, and remove others."""
    target = server.collection(namespace).with_options(codec_options=DEFAULT_RAW_BSON_OPTIONS)
    removals: list[Any] = [DeleteOne(_is(identity)) for identity in removed]
    replacements: list[Any] = [
        ReplaceOne(_is(identity), RawBSONDocument(document), upsert=True) for identity, document in puts.items()
    ]
    requests = removals + replacements
    with mapped("replay", namespace):
        for i in range(0, len(requests), _WRITE_DOCUMENTS):
            target.bulk_write(requests[i : i + _WRITE_DOCUMENTS], ordered=False, bypass_document_validation=True)


def find(server: MongoServer, namespace: str, wanted: Sequence[Element]) -> dict[Element, bytes]:
    """Read those of the documents with these `_id`s that are there."""
    found: dict[Element, bytes] = {}
    source = server.collection(namespace)
    with mapped("read", namespace):
        for i in range(0, len(wanted), _IDS_AT_ONCE):
            part = wanted[i : i + _IDS_AT_ONCE]
            query = _is(part[0]) if len(part) == 1 else with_ids(part)
            with closing(source.find_raw_batches(query)) as cursor:
                for data in raw(cursor):
                    batch = RawBatch.from_bytes(data)
                    found.update(zip(ids(batch), batch.documents(), strict=True))
    return found


def exists(server: MongoServer, namespace: str) -> bool:
    """Say whether there is such a collection."""
    database, name = parted(namespace)
    with mapped("look for", namespace):
        return bool(server.database(database).list_collection_names(filter={"name": name}))


def create(server: MongoServer, namespace: str, options: Mapping[str, Any]) -> None:
    """Make a collection or view; what would refuse or remove documents is left for later."""
    database, name = parted(namespace)
    wanted = {key: value for key, value in options.items() if key not in (*AT_THE_END, "uuid", "autoIndexId")}
    with mapped("create", namespace):
        server.database(database).command("create", name, **wanted)


def drop(server: MongoServer, namespace: str) -> None:
    """Remove a collection with its indexes, if it is there."""
    with mapped("drop", namespace):
        server.collection(namespace).drop()


def drop_database(server: MongoServer, name: str) -> None:
    """Remove a database, if it is there."""
    with mapped("drop", name):
        server.client.drop_database(name)


def clear(server: MongoServer) -> None:
    """Remove every database of the users."""
    for name in server.databases():
        drop_database(server, name)


def rename(server: MongoServer, old: str, new: str) -> None:
    """Give a collection another name, perhaps in another database, in place of one that has it."""
    with mapped("rename", old):
        server.client.admin.command("renameCollection", old, to=new, dropTarget=True)


def build(server: MongoServer, namespace: str, indexes: Sequence[Mapping[str, Any]]) -> None:
    """Build indexes."""
    if indexes:
        database, name = parted(namespace)
        # What a server says of an index, and does not take when one is made.
        specs = [{k: v for k, v in index.items() if k not in ("ns", "entryFormat", "background")} for index in indexes]
        with mapped("build indexes", namespace):
            server.database(database).command("createIndexes", name, indexes=specs)


def unbuild(server: MongoServer, namespace: str, index: str) -> None:
    """Remove an index."""
    with mapped("remove index", namespace):
        server.collection(namespace).drop_index(index)


def set_late_options(server: MongoServer, namespace: str, options: Mapping[str, Any]) -> None:
    """Set those of a collection's options that `create` left out."""
    database, name = parted(namespace)
    late = {key: options[key] for key in AT_THE_END if key in options}
    if late:
        with mapped("set options", namespace):
            server.database(database).command("collMod", name, **late)


def _is(identity: Element) -> RawBSONDocument:
    """Filter one document. Why with $eq: a regular expression as an `_id` would be taken for a pattern."""
    return RawBSONDocument(edit.join({b"_id": bytes([edit.DOCUMENT]) + edit.join({b"$eq": identity})}))


def _known(exc: BulkWriteError, part: Sequence[bytes], namespace: str) -> list[Element]:
    details: dict[str, Any] = dict(exc.details or {})
    failed = details.get("writeErrors") or []
    if details.get("writeConcernErrors") or any(error.get("code") != DUPLICATE_KEY for error in failed):
        code = next((error.get("code") for error in failed if error.get("code") != DUPLICATE_KEY), None)
        raise CorruptCopy("load", namespace, f"the server refuses a document, code {code}", "See the server's log.")
    return ids(RawBatch.from_documents([part[int(error["index"])] for error in failed]))


def _parts(items: Sequence[bytes]) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    size = 0
    for document in items:
        if part and (len(part) >= _WRITE_DOCUMENTS or size + len(document) > _WRITE_BYTES):
            yield part
            part, size = [], 0
        part.append(document)
        size += len(document)
    if part:
        yield part
