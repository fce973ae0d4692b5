"""A dump's layout as `mongodump` has it: `<database>/<collection>.bson`, `.metadata.json` beside it, `oplog.bson`.

Does not: touch a file or the vault; `ops/backup_mongo.py` does.
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO
from urllib.parse import quote

from bson import json_util

from tiering.errors import CorruptCopy
from tiering.stores.bson_batches import RawBatch
from tiering.stores.mongo_server import CODEC, Shape

OPLOG = "oplog.bson"
_NAME_BYTES_MAX, _NAME_BYTES_KEPT = 238, 208
_JSON = json_util.CANONICAL_JSON_OPTIONS.with_options(datetime_conversion=CODEC.datetime_conversion)
_BLOCK_BYTES, _DOCUMENT_BYTES_MIN = 4 << 20, 5
_ID_INDEX = {"v": 2, "key": {"_id": 1}, "name": "_id_"}


def file_stem(collection: str) -> str:
    """Name a collection's files: what a path cannot hold is escaped, and too long a name cut and told by its hash."""
    escaped = quote(collection, safe="$&+=:@")
    if len(escaped) <= _NAME_BYTES_MAX:
        return escaped
    digest = urlsafe_b64encode(hashlib.sha1(collection.encode(), usedforsecurity=False).digest()).rstrip(b"=")
    return f"{escaped[:_NAME_BYTES_KEPT]}%24{digest.decode()}"


def metadata(shape: Shape) -> bytes:
    """Write what a collection is, as its `.metadata.json`: canonical Extended JSON."""
    indexes = [dict(index) for index in shape.indexes]
    document: dict[str, Any] = {
        "indexes": [_ID_INDEX, *indexes] if shape.kind == "collection" else [],
        "uuid": shape.uuid,
        "collectionName": shape.name,
        "type": shape.kind,
        "options": dict(shape.options),
    }
    return json_util.dumps(document, json_options=_JSON).encode()


def shapes_to_json(shapes: Iterable[Shape]) -> bytes:
    """Write all collections' metadata as one document; `shapes_from_json` reads it."""
    return b"[" + b",\n".join(b'["%s",%s]' % (s.database.encode(), metadata(s)) for s in shapes) + b"]"


def shapes_from_json(data: bytes) -> list[Shape]:
    """Read what `shapes_to_json` wrote.

    Raises:
        CorruptCopy: it is something else.
    """
    try:
        return [_shape(database, document) for database, document in json_util.loads(data, json_options=_JSON)]
    except (ValueError, KeyError, TypeError) as exc:
        raise CorruptCopy("read", "shapes.json", f"no list of collections: {type(exc).__name__}") from None


def cut(stream: BinaryIO) -> Iterator[RawBatch]:
    """Read documents that lie end to end in a stream, some megabytes at a time.

    Raises:
        CorruptCopy: the stream ends within a document, or is none of documents.
    """
    left = b""
    while block := stream.read(_BLOCK_BYTES):
        data, at = left + block, 0
        while at + 4 <= len(data):
            size = int.from_bytes(data[at : at + 4], "little", signed=True)
            if size < _DOCUMENT_BYTES_MIN:
                raise CorruptCopy("read", "dump", "it is not BSON documents end to end")
            if at + size > len(data):
                break
            at += size
        if at:
            yield RawBatch.from_bytes(data[:at])
        left = data[at:]
    if left:
        raise CorruptCopy("read", "dump", "it ends within a document")


def _shape(database: str, document: dict[str, Any]) -> Shape:
    indexes = tuple(index for index in document["indexes"] if index["name"] != "_id_")
    name, kind = str(document["collectionName"]), str(document["type"])
    return Shape(database, name, kind, document["options"], indexes, str(document["uuid"]))
