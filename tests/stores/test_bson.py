"""Kernels over raw BSON agree with the bson package, and no damaged byte is believed."""

from __future__ import annotations

import json
import math
import uuid
from datetime import UTC, datetime
from typing import Any

import bson
import numpy as np
import pyarrow as pa
import pytest
from bson.binary import Binary, UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.objectid import ObjectId
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stores.bson_torture import (
    KEPT,
    OBJECT_ID,
    RAW_ONLY,
    binary,
    decimal,
    document,
    double,
    element,
    int32,
    int64,
    string,
    torture,
)
from tiering.errors import CorruptCopy
from tiering.model import Dataset, Field, Kind, Policy, Span
from tiering.stores.bson_batches import RawBatch, digests, ids, locate, print_of
from tiering.stores.bson_text import id_element, id_text
from tiering.stores.bson_typed import document_columns, typed
from tiering.stores.parquet import read_parquet_batches, write_parquet
from tiering.stores.parquet_schema import batch_schema

FIELD_KINDS = (Kind.TEXT, Kind.FLOAT8, Kind.INT8, Kind.BOOL, Kind.TIMESTAMPTZ, Kind.UUID, Kind.EXACT_TEXT)
CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    uuid_representation=UuidRepresentation.UNSPECIFIED, datetime_conversion=DatetimeConversion.DATETIME_MS
)


def make_dataset(path: str = "v", kinds: tuple[Kind, ...] = FIELD_KINDS) -> Dataset:
    """A dataset that has the same field once as each kind."""
    fields = tuple(Field(f"as_{kind.value}", path, kind) for kind in kinds)
    policy = Policy("news_data", None, None, None, None)
    return Dataset("news", policy, "mongodb", "mongodb", "t", ("_id",), Span(days=1), fields=fields)


def one(value: bytes, kind: Kind) -> tuple[Any, str | None]:
    """The typed cell of one value, and its text where it has none."""
    batch = RawBatch.from_bytes(document(element(16, "_id", int32(1)), value))
    rows, untyped = typed(batch, make_dataset(kinds=(kind,)))
    name = f"as_{kind.value}"
    exact = rows.column("_exact")[0].as_py()
    assert untyped == ({name: 1} if exact else {})
    column = rows.column(name)
    cell = column.cast(pa.int64())[0].as_py() if kind is Kind.TIMESTAMPTZ else column[0].as_py()
    return cell, json.loads(exact)[name] if exact else None


def is_text(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, bson.code.Code)


def slowly(value: Any, kind: Kind) -> Any:
    """What the typed column must hold, by way of Python; NotImplemented where it can hold nothing."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if value is None:
        return None
    if kind is Kind.TEXT:
        return str(value) if is_text(value) or isinstance(value, ObjectId) else NotImplemented
    if kind is Kind.FLOAT8 and (isinstance(value, float) or (is_int and int(float(value)) == value)):
        return float(value)
    if kind is Kind.INT8 and is_int:
        return int(value)
    if kind is Kind.INT8 and isinstance(value, float) and value.is_integer() and -(2**63) <= value < 2**63:
        return int(value)
    if kind is Kind.BOOL and isinstance(value, bool):
        return value
    if kind is Kind.TIMESTAMPTZ and isinstance(value, DatetimeMS) and abs(int(value) * 1000) < 2**63:
        return int(value) * 1000
    if kind is Kind.UUID and isinstance(value, Binary) and value.subtype == 4 and len(value) == 16:
        return uuid.UUID(bytes=bytes(value))
    return NotImplemented


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1).map(Int64),
    st.floats(),
    st.integers(-1000, 1000).map(float),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(min_size=12, max_size=12).map(ObjectId),
    st.integers(-(2**63), 2**63 - 1).map(DatetimeMS),
    st.integers(-(2**53), 2**53).map(DatetimeMS),
    st.binary(max_size=20),
    st.tuples(st.binary(min_size=15, max_size=17), st.sampled_from([0, 3, 4, 128])).map(lambda b: Binary(*b)),
    st.decimals(allow_nan=False, places=3, min_value=-(10**9), max_value=10**9).map(Decimal128),
)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0."), max_size=6)
trees = st.recursive(values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4))
bodies = st.dictionaries(st.sampled_from(["v", "w", "x", "", "vv"]), trees, max_size=5)


@settings(deadline=None)
@given(st.lists(bodies, max_size=6), st.sampled_from(["v", "v.x", "w", "v.v.v"]))
def test_typed_values_are_those_that_the_bson_package_decodes(contents: list[dict[str, Any]], path: str) -> None:
    raw = [bson.encode({"_id": i, **body}, codec_options=CODEC) for i, body in enumerate(contents)]
    rows, untyped = typed(RawBatch.from_documents(raw), make_dataset(path))
    exact = [json.loads(text) if text else {} for text in rows.column("_exact").to_pylist()]
    for kind in FIELD_KINDS[:-1]:
        name = f"as_{kind.value}"
        column = rows.column(name)
        cells = (column.cast(pa.int64()) if kind is Kind.TIMESTAMPTZ else column).to_pylist()
        expected = [slowly(at_path(bson.decode(body, CODEC), path), kind) for body in raw]
        assert untyped.get(name, 0) == sum(value is NotImplemented for value in expected)
        for cell, value, texts in zip(cells, expected, exact, strict=True):
            assert (name in texts) == (value is NotImplemented)
            wanted = None if value is NotImplemented else value
            assert cell == wanted or (isinstance(cell, float) and math.isnan(cell) and math.isnan(wanted))
            assert not isinstance(cell, float) or math.copysign(1, cell) == math.copysign(1, wanted) or math.isnan(cell)
    assert rows.column("_raw").to_pylist() == raw


def at_path(found: Any, path: str) -> Any:
    """Walk sub-documents only."""
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


@settings(deadline=None)
@given(st.lists(bodies, min_size=1, max_size=4), st.data())
def test_damage_is_reported_and_never_followed(contents: list[dict[str, Any]], data: st.DataObject) -> None:
    raw = bytearray(b"".join(bson.encode({"_id": i, **body}, codec_options=CODEC) for i, body in enumerate(contents)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(0, len(raw))) :]
    try:
        batch = RawBatch.from_bytes(bytes(raw))
        assert b"".join(batch.documents()) == raw
        rows, _ = typed(batch, make_dataset("v.x"))
        rows.validate(full=True)
        print_of([batch])
    except CorruptCopy:
        pass


@pytest.mark.parametrize(
    "raw",
    [
        b"\x05\0\0\0",
        b"\x05\0\0\0\1",
        b"\xff\xff\xff\xff\0",
        b"\x04\0\0\0\0",
        document() + b"\0",
        document(element(2, "_id", int32(2**31 - 1) + b"x\0")),
        document(element(2, "_id", int32(0) + b"\0")),
        document(element(5, "_id", int32(-1) + b"\0")),
        document(element(3, "_id", int32(4) + b"\0")),
        document(element(20, "_id")),
        document(b"\x10_id"),
        document(b"\x0b_id\0abc\0"),
        document(element(15, "_id", int32(13) + b"\0" * 9)),
    ],
)
def test_malformed_documents_are_a_corrupt_copy(raw: bytes) -> None:
    with pytest.raises(CorruptCopy):
        ids(RawBatch.from_bytes(raw))


def test_a_document_without_an_id_is_a_corrupt_copy() -> None:
    for look in (ids, lambda batch: print_of([batch]), lambda batch: typed(batch, make_dataset())):
        with pytest.raises(CorruptCopy, match="no _id"):
            look(RawBatch.from_bytes(document(element(16, "v", int32(1)))))


@pytest.mark.parametrize(
    ("value", "kind", "cell", "text"),
    [
        (KEPT["object_id"], Kind.TEXT, OBJECT_ID.hex(), None),
        (KEPT["string_with_nul"], Kind.TEXT, "a\0b", None),
        (KEPT["int32"], Kind.TEXT, None, "-2147483648"),
        (RAW_ONLY["string_bad_utf8"], Kind.TEXT, None, '"\\\\xff"'),
        (RAW_ONLY["string_surrogate"], Kind.TEXT, None, '"\\\\xed\\\\xa0\\\\x80"'),
        (RAW_ONLY["string_overlong"], Kind.TEXT, None, '"\\\\xc0\\\\x80"'),
        (RAW_ONLY["symbol"], Kind.TEXT, None, '"s"'),
        (KEPT["int64_inexact"], Kind.FLOAT8, None, "9007199254740993"),
        (KEPT["int64_max"], Kind.FLOAT8, None, "9223372036854775807"),
        (KEPT["int64"], Kind.FLOAT8, -(2.0**63), None),
        (KEPT["double_two_to_63"], Kind.INT8, None, "9.223372036854776e+18"),
        (KEPT["double_nan"], Kind.INT8, None, '{"$numberDouble": "NaN"}'),
        (KEPT["double_half"], Kind.INT8, None, "0.5"),
        (KEPT["double"], Kind.INT8, 5, None),
        (KEPT["decimal_1.00"], Kind.FLOAT8, None, '{"$numberDecimal": "1.00"}'),
        (KEPT["decimal_1.00"], Kind.EXACT_TEXT, "1.00", None),
        (KEPT["decimal_-NaN"], Kind.EXACT_TEXT, "NaN", None),
        (KEPT["int64_small"], Kind.EXACT_TEXT, '{"$numberLong": "5"}', None),
        (KEPT["string_empty"], Kind.EXACT_TEXT, '""', None),
        (RAW_ONLY["bool_two"], Kind.BOOL, None, '{"$bson": "0802"}'),
        (RAW_ONLY["date_beyond_us"], Kind.TIMESTAMPTZ, None, '{"$date": {"$numberLong": "9223372036854775807"}}'),
        (RAW_ONLY["date_before_us"], Kind.TIMESTAMPTZ, None, '{"$date": {"$numberLong": "-9223372036854775808"}}'),
        (RAW_ONLY["date_last_us"], Kind.TIMESTAMPTZ, (2**63 - 1) // 1000 * 1000, None),
        (KEPT["binary_4"], Kind.UUID, uuid.UUID(bytes=bytes(range(16))), None),
        (RAW_ONLY["undefined"], Kind.TEXT, None, None),
        (RAW_ONLY["twice"], Kind.INT8, 1, None),
        (KEPT["missing"], Kind.EXACT_TEXT, None, None),
    ],
)
def test_what_a_column_cannot_hold_is_null_with_its_text_beside(
    value: bytes, kind: Kind, cell: object, text: str | None
) -> None:
    found, exact = one(value, kind)
    assert (found, exact and exact.replace(".0e", "e")) == (cell, text)


def test_uuids_of_the_old_subtype_are_untyped() -> None:
    cell, text = one(KEPT["binary_3"], Kind.UUID)
    assert cell is None
    assert "$binary" in str(text)


def test_the_torture_set_comes_back_from_parquet_byte_for_byte(tmp_path: Any) -> None:
    raw = torture(KEPT | RAW_ONLY, 1_700_000_000_000)
    dataset = make_dataset()
    columns = document_columns(dataset)
    rows, _ = typed(RawBatch.from_bytes(b"".join(raw)), dataset)
    assert rows.schema.equals(batch_schema(columns), check_metadata=True)
    rows.validate(full=True)
    write_parquet([rows], columns, ("_id",), tmp_path / "t.parquet")
    back = [
        cell for batch in read_parquet_batches(tmp_path / "t.parquet", columns) for cell in batch["_raw"].to_pylist()
    ]
    assert sorted(back) == sorted(raw)
    assert print_of([RawBatch.from_documents(back)]) == print_of([RawBatch.from_documents(raw)])


def test_field_ids_follow_the_declaration() -> None:
    columns = document_columns(make_dataset(kinds=(Kind.TEXT, Kind.BOOL)))
    assert [(c.name, c.field_id) for c in columns] == [
        ("_id", 1),
        ("_raw", 2),
        ("t", 3),
        ("as_text", 4),
        ("as_bool", 5),
    ]


ID_VALUES = [
    element(7, "_id", OBJECT_ID),
    *(
        element(2, "_id", string(text))
        for text in (
            b"", b"a", b"a\0b", OBJECT_ID.hex().encode(), OBJECT_ID.hex().upper().encode(), b"ABCDEF0123456789abcdef01",
            b'{"$oid": "000102030405060708090a0b"}', b'"a"', b"true", b"null", b"5", b"\xff", b"\\xff", 
            b"{", b'{"$bson": "0a"}',
        )
    ),
    *(element(16, "_id", int32(n)) for n in (0, 5)),
    element(18, "_id", int64(5)),
    *(element(1, "_id", double(n)) for n in (5.0, 0.0, -0.0, float("nan"), float("inf"))),
    element(1, "_id", b"\x01\0\0\0\0\0\xf8\x7f"),
    *(element(19, "_id", decimal(text)) for text in ("5", "5.0", "NaN", "-NaN", "-0")),
    element(19, "_id", b"\xff" * 16),
    *(element(8, "_id", flag) for flag in (b"\0", b"\1")),
    *(element(kind, "_id") for kind in (6, 10, 255, 127)),
    element(14, "_id", string(b"a")),
    element(13, "_id", string(b"a")),
    element(9, "_id", int64(5)),
    element(9, "_id", int64(2**63 - 1)),
    element(17, "_id", int64(5)),
    *(element(5, "_id", binary(subtype, bytes(16))) for subtype in (0, 3, 4)),
    element(3, "_id", document()),
    element(3, "_id", document(element(16, "a", int32(1)), element(16, "b", int32(2)))),
    element(3, "_id", document(element(16, "b", int32(2)), element(16, "a", int32(1)))),
    element(3, "_id", document(element(16, "a", int32(1)), element(16, "a", int32(2)))),
    element(3, "_id", document(element(16, "a", int32(2)))),
    element(3, "_id", document(element(2, "$oid", string(OBJECT_ID.hex().encode())))),
    element(3, "_id", document(element(2, "$bson", string(b"0a")))),
    element(3, "_id", document(element(2, "$numberInt", string(b"5")))),
    element(12, "_id", string(b"c") + OBJECT_ID),
    element(3, "_id", document(element(2, "$ref", string(b"c")), element(7, "$id", OBJECT_ID))),
]  # fmt: skip


def test_every_id_has_a_text_of_its_own_that_leads_back() -> None:
    batch = RawBatch.from_documents([document(value) for value in ID_VALUES])
    found = ids(batch)
    assert len(set(found)) == len(ID_VALUES)
    texts = typed(batch, make_dataset())[0].column("_id").to_pylist()
    assert texts == [id_text(key) for key in found]
    assert len(set(texts)) == len(ID_VALUES)
    assert [id_element(text) for text in texts] == found


@settings(deadline=None)
@given(st.one_of(values, st.text(st.sampled_from('0123abcdefABC{"'), min_size=23, max_size=25), trees))
def test_any_id_leads_back(value: Any) -> None:
    batch = RawBatch.from_bytes(bson.encode({"_id": value}, codec_options=CODEC))
    (key,) = ids(batch)
    (text,) = typed(batch, make_dataset())[0].column("_id").to_pylist()
    assert text == id_text(key)
    assert id_element(text) == key


def test_batches_are_cut_and_chosen_without_losing_a_byte() -> None:
    raw = torture(KEPT, 0)
    batch = RawBatch.from_documents(raw)
    assert batch.documents() == raw
    assert batch.part(3, 7).documents() == raw[3:7]
    assert batch.take([5, 1, 1]).documents() == [raw[5], raw[1], raw[1]]
    assert batch.take([]).documents() == []
    assert ids(batch.part(3, 7)) == ids(batch)[3:7]
    assert len(RawBatch.from_bytes(b"")) == 0
    with pytest.raises(IndexError):
        batch.take([len(raw)])


def test_the_print_is_free_of_order_and_sees_every_bit() -> None:
    raw = torture(KEPT, 0)
    whole = print_of([RawBatch.from_documents(raw)])
    assert print_of([RawBatch.from_documents(raw[i : i + 1]) for i in reversed(range(len(raw)))]) == whole
    small = document(element(16, "_id", int32(1)), element(16, "v", int32(7)))
    other = {print_of([RawBatch.from_bytes(flipped(small, bit))]) for bit in range(16 * 8, 20 * 8)}
    assert len(other | {print_of([RawBatch.from_bytes(small)])}) == 33
    a, b = (document(element(16, "_id", int32(i)), element(16, "v", int32(v))) for i, v in ((1, 7), (2, 8)))
    c, d = (document(element(16, "_id", int32(i)), element(16, "v", int32(v))) for i, v in ((1, 8), (2, 7)))
    assert print_of([RawBatch.from_bytes(a + b)]) != print_of([RawBatch.from_bytes(c + d)])


def flipped(raw: bytes, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_digests_tell_documents_apart() -> None:
    raw = torture(KEPT, 0)
    found = digests(RawBatch.from_documents([*raw, raw[0]]))
    assert found.shape == (len(raw) + 1, 16)
    assert found.dtype == np.uint8
    assert len({row.tobytes() for row in found}) == len(raw)


def test_paths_walk_documents_and_not_arrays() -> None:
    inner = document(element(16, "b", int32(1)))
    raw = [
        document(element(16, "_id", int32(0)), element(3, "a", inner)),
        document(element(16, "_id", int32(1)), element(4, "a", document(element(3, "0", inner)))),
        document(element(16, "_id", int32(2)), element(3, "a", document()), element(3, "a", inner)),
        document(element(16, "_id", int32(3)), element(16, "a.b", int32(1))),
        document(element(16, "_id", int32(4)), element(3, "a", document(element(3, "a", inner), element(10, "b")))),
    ]
    cells = locate(RawBatch.from_documents(raw), ["a", "a.b", "a.b", "a.a.b"])
    assert cells.kinds[0].tolist() == [3, 4, 3, 0, 3]
    assert cells.kinds[1].tolist() == cells.kinds[2].tolist() == [16, 0, 0, 0, 10]
    assert cells.kinds[3].tolist() == [0, 0, 0, 0, 16]


def test_times_are_the_lake_s_times() -> None:
    raw = bson.encode({"_id": 1, "t": datetime(2024, 2, 29, 1, 2, 3, 456000, tzinfo=UTC)})
    rows, untyped = typed(RawBatch.from_bytes(raw), make_dataset())
    assert rows.column("t").to_pylist() == [datetime(2024, 2, 29, 1, 2, 3, 456000, tzinfo=UTC)]
    assert untyped == {}
