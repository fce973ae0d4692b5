"""Every BSON value that has bitten somebody, as raw bytes: what drivers decode and encode again does not survive."""

from __future__ import annotations

import struct

from bson.decimal128 import Decimal128


def element(kind: int, name: str, value: bytes = b"") -> bytes:
    """One field."""
    return bytes([kind]) + name.encode() + b"\0" + value


def document(*elements: bytes) -> bytes:
    """A document of fields."""
    body = b"".join(elements)
    return struct.pack("<i", len(body) + 5) + body + b"\0"


def int32(value: int) -> bytes:
    return struct.pack("<i", value)


def int64(value: int) -> bytes:
    return struct.pack("<q", value)


def double(value: float) -> bytes:
    return struct.pack("<d", value)


def string(value: bytes) -> bytes:
    return struct.pack("<i", len(value) + 1) + value + b"\0"


def binary(subtype: int, value: bytes) -> bytes:
    return struct.pack("<i", len(value)) + bytes([subtype]) + value


def decimal(text: str) -> bytes:
    return Decimal128(text).bid


def _nested(depth: int) -> bytes:
    inner = document(element(16, "leaf", int32(1)))
    for _ in range(depth):
        inner = document(element(3, "in", inner))
    return inner


OBJECT_ID = bytes(range(12))
YEAR_MS = 31_556_952_000

# What the embedded server keeps byte for byte, as MongoDB does.
KEPT: dict[str, bytes] = {
    "object_id": element(7, "v", OBJECT_ID),
    "int32": element(16, "v", int32(-(2**31))),
    "int64": element(18, "v", int64(-(2**63))),
    "int64_small": element(18, "v", int64(5)),
    "int64_inexact": element(18, "v", int64(2**53 + 1)),
    "int64_max": element(18, "v", int64(2**63 - 1)),
    "double": element(1, "v", double(5.0)),
    "double_huge": element(1, "v", double(1e300)),
    "double_half": element(1, "v", double(0.5)),
    "double_nan": element(1, "v", struct.pack("<Q", 0x7FF8000000000123)),
    "double_infinity": element(1, "v", double(float("-inf"))),
    "double_negative_zero": element(1, "v", double(-0.0)),
    "double_two_to_63": element(1, "v", double(2.0**63)),
    **{
        f"decimal_{text}": element(19, "v", decimal(text))
        for text in (
            "NaN",
            "-NaN",
            "Infinity",
            "-0",
            "1.00",
            "1",
            "0E-6176",
            "9.999999999999999999999999999999999E+6144",
        )
    },
    "string": element(2, "v", string("grüße, 世界 🌍".encode())),
    "string_empty": element(2, "v", string(b"")),
    "string_with_nul": element(2, "v", string(b"a\0b")),
    "string_hex24": element(2, "v", string(b"0123456789abcdef01234567")),
    "string_of_1_mb": element(2, "v", string(b"x" * 1_000_000)),
    "date": element(9, "v", int64(1_700_000_000_123)),
    "date_before_1970": element(9, "v", int64(-1)),
    "date_year_1": element(9, "v", int64(-62_135_596_800_000)),
    "date_year_9999": element(9, "v", int64(253_402_300_799_999)),
    "true": element(8, "v", b"\1"),
    "false": element(8, "v", b"\0"),
    "null": element(10, "v"),
    "missing": b"",
    **{f"binary_{subtype}": element(5, "v", binary(subtype, bytes(range(16)))) for subtype in (0, 1, 3, 4, 5, 6, 128)},
    "binary_short_uuid": element(5, "v", binary(4, b"short")),
    "binary_old": element(5, "v", binary(2, int32(3) + b"abc")),
    "regex": element(11, "v", b"^a.*b$\0im\0"),
    "timestamp": element(17, "v", int64(2**40 + 1)),
    "min_key": element(255, "v"),
    "max_key": element(127, "v"),
    "code": element(13, "v", string(b"function() {}")),
    "reference": element(
        3, "v", document(element(2, "$ref", string(b"c")), element(7, "$id", OBJECT_ID), element(2, "x", string(b"y")))
    ),
    "document_order": element(3, "v", document(element(16, "b", int32(1)), element(16, "a", int32(2)))),
    "document_empty": element(3, "v", document()),
    "document_empty_key": element(3, "v", document(element(16, "", int32(1)))),
    "document_odd_keys": element(3, "v", document(element(16, "a.b", int32(1)), element(16, "$x", int32(2)))),
    "document_deep": element(3, "v", _nested(90)),
    "array": element(4, "v", document(element(16, "0", int32(1)), element(1, "1", double(1.0)))),
    "array_empty": element(4, "v", document()),
    "path": element(3, "sub", document(element(1, "x", double(2.5)), element(2, "x2", string(b"no")))),
}

# What MongoDB itself may hold, and the embedded server refuses or writes anew.
RAW_ONLY: dict[str, bytes] = {
    "string_bad_utf8": element(2, "v", string(b"\xff")),
    "string_surrogate": element(2, "v", string(b"\xed\xa0\x80")),
    "string_overlong": element(2, "v", string(b"\xc0\x80")),
    "date_beyond_us": element(9, "v", int64(2**63 - 1)),
    "date_before_us": element(9, "v", int64(-(2**63))),
    "date_year_10000": element(9, "v", int64(253_402_300_800_000)),
    "date_last_us": element(9, "v", int64((2**63 - 1) // 1000)),
    "undefined": element(6, "v"),
    "symbol": element(14, "v", string(b"s")),
    "pointer": element(12, "v", string(b"c") + OBJECT_ID),
    "scoped_code": element(15, "v", int32(4 + 6 + 5) + string(b"x") + document()),
    "regex_odd_options": element(11, "v", b"a\0xmi\0"),
    "twice": element(16, "v", int32(1)) + element(16, "v", int32(2)),
    "array_odd_keys": element(4, "v", document(element(16, "x", int32(1)), element(16, "x", int32(1)))),
    "bool_two": element(8, "v", b"\2"),
    "decimal_not_canonical": element(19, "v", b"\xff" * 16),
}


def torture(values: dict[str, bytes], time_ms: int) -> list[bytes]:
    """One document per value, `_id` its number, `t` a date."""
    return [
        document(
            element(16, "_id", int32(i)),
            element(9, "t", int64(time_ms + i)),
            value,
            element(2, "n", string(name.encode())),
        )
        for i, (name, value) in enumerate(values.items())
    ]
