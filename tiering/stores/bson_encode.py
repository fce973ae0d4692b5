"""Write documents as raw BSON: for those who make documents rather than copy them.

Does not: read one; what is copied is never decoded (bson_batches.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from bson import encode
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, TypeRegistry
from bson.decimal128 import Decimal128
from bson.objectid import ObjectId

from tiering.stores.bson_batches import RawBatch


def _decimal(value: Any) -> Any:
    return Decimal128(value) if isinstance(value, Decimal) else value


_CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    uuid_representation=UuidRepresentation.STANDARD, type_registry=TypeRegistry(fallback_encoder=_decimal)
)


def encode_documents(documents: Sequence[Mapping[str, Any]]) -> RawBatch:
    """Encode plain values: a Decimal becomes a Decimal128, and twelve bytes under `_id` an ObjectId."""
    found = []
    for document in documents:
        identity = document.get("_id")
        is_object_id = isinstance(identity, bytes) and len(identity) == 12
        found.append(
            encode({**document, "_id": ObjectId(identity)} if is_object_id else document, codec_options=_CODEC)
        )
    return RawBatch.from_documents(found)
