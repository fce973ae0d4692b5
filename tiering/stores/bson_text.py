"""Single BSON values as text: `_id`s that no other `_id` is written as, and extended JSON. Python per value."""

from __future__ import annotations

import contextlib
import re
import struct
from typing import Any

import bson
from bson import json_util
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.decimal128 import Decimal128
from bson.errors import BSONError

_OBJECT_ID, _STRING = 7, 2
_HEX24 = re.compile(r"[0-9a-fA-F]{24}")
_MARKS = ("{", '"')
_BSON = '{"$bson": "'
_CANONICAL = json_util.JSONOptions(
    json_mode=json_util.JSONMode.CANONICAL,
    uuid_representation=UuidRepresentation.UNSPECIFIED,
    datetime_conversion=DatetimeConversion.DATETIME_MS,
)
_RELAXED = json_util.JSONOptions(
    json_mode=json_util.JSONMode.RELAXED,
    uuid_representation=UuidRepresentation.UNSPECIFIED,
    datetime_conversion=DatetimeConversion.DATETIME_MS,
)
_CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    uuid_representation=UuidRepresentation.UNSPECIFIED, datetime_conversion=DatetimeConversion.DATETIME_MS
)
_LENIENT = _CODEC.with_options(unicode_decode_error_handler="backslashreplace")


def wrap(element: bytes) -> bytes:
    """Make a document of one value, under the empty name."""
    return struct.pack("<i", len(element) + 6) + element[:1] + b"\0" + element[1:] + b"\0"


def _decoded(element: bytes, codec: CodecOptions[dict[str, Any]]) -> Any:
    return bson.decode(wrap(element), codec)[""]


def canonical_text(element: bytes) -> str | None:
    """Write a value as canonical extended JSON, a Decimal128 as its own digits; None where it is no Unicode."""
    try:
        value = _decoded(element, _CODEC)
    except (BSONError, UnicodeError, ValueError):
        return None
    return str(value) if isinstance(value, Decimal128) else json_util.dumps(value, json_options=_CANONICAL)


def relaxed_text(element: bytes) -> str:
    """Write a value as relaxed extended JSON, for people; bytes that are no Unicode show as escapes.

    What no driver decodes (a boolean of 2) is shown as its bytes: a strange value never stops a move.
    """
    try:
        return str(json_util.dumps(_decoded(element, _LENIENT), json_options=_RELAXED))
    except (BSONError, UnicodeError, ValueError):
        return f'{_BSON}{element.hex()}"}}'


def id_text(element: bytes) -> str:
    """Write an `_id` so that different `_id`s have different texts; `id_element` reads it back.

    ObjectIds are 24 hex digits and strings themselves; a string that could be taken for something else is quoted,
    everything else is canonical extended JSON. What JSON does not give back byte for byte (NaN payloads, symbols,
    broken Unicode) or writes without braces (true, null) is `{"$bson": "<hex>"}`.
    """
    if element[0] == _OBJECT_ID:
        return element[1:].hex()
    with contextlib.suppress(BSONError, UnicodeError, ValueError, TypeError):
        value = _decoded(element, _CODEC)
        if element[0] == _STRING and not (_HEX24.fullmatch(value) or value.startswith(_MARKS)):
            return str(value)
        text = str(json_util.dumps(value, json_options=_CANONICAL))
        if text.startswith(_MARKS) and id_element(text) == element:
            return text
    return f'{_BSON}{element.hex()}"}}'


def id_element(text: str) -> bytes:
    """Read an `_id` back from its text: type byte and value.

    Raises:
        ValueError: no `_id` is written so.
    """
    if _HEX24.fullmatch(text):
        return bytes([_OBJECT_ID]) + bytes.fromhex(text)
    if text.startswith(_BSON):
        return bytes.fromhex(text.removeprefix(_BSON).removesuffix('"}'))
    value = json_util.loads(text, json_options=_CANONICAL) if text.startswith(_MARKS) else text
    document = bson.encode({"": value}, codec_options=_CODEC)
    return document[4:5] + document[6:-1]
