"""What the cache and the journal carry: every value comes back as it was, and bytes that are not ours are refused."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from ipaddress import IPv4Address, ip_interface
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiering.access.codec import decode, encode
from tiering.errors import CorruptCopy, PermanentError

TORTURE: list[Any] = [
    None, True, False, 0, -1, 2**63 - 1, -(2**63), 2**64 - 1, 2**64, -(2**64), 10**300, 0.1, -0.0, 5e-324,
    float("inf"), "", "\x00", "价格 💹", "a" * 70_000, b"", b"\x00\xff", Decimal(0), Decimal("-0"), Decimal("0E-28"),
    Decimal("1E+30"), Decimal("0.10"), Decimal("1" * 60), Decimal("Infinity"), date.min, date.max,
    datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), datetime(2024, 3, 1, 0, 0, 0, 1), time(0), time.max,
    timedelta.min, timedelta.max, timedelta(microseconds=-1), UUID(int=0), UUID(int=2**128 - 1),
    ip_interface("10.0.0.1/8"), ip_interface("2001:db8::1/64"), [], {}, {"": []}, {1: {2: 3}}, [[[[None]]]],
]  # fmt: skip

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(), st.dates(),
    st.decimals(allow_nan=False), st.datetimes(timezones=st.just(UTC)), st.datetimes(), st.times(), st.timedeltas(),
    st.uuids(),
)  # fmt: skip
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)


@pytest.mark.parametrize("value", TORTURE, ids=lambda value: f"{type(value).__name__} {str(value)[:20]!r}")
def test_torture_values_come_back(value: Any) -> None:
    found = decode(encode(value))
    assert (type(found), found, str(found)) == (type(value), value, str(value))
    assert decode(encode({"in": [value, {"deep": value}]})) == {"in": [value, {"deep": value}]}


@given(VALUES)
def test_any_value_comes_back(value: Any) -> None:
    assert decode(encode(value)) == value


def test_what_comes_back_as_something_equal() -> None:
    noon = datetime(2024, 6, 19, 12, tzinfo=timezone(timedelta(hours=8)))
    assert decode(encode(noon)) == noon
    assert decode(encode((1, 2))) == [1, 2]
    assert decode(encode(IPv4Address("10.0.0.1"))) == ip_interface("10.0.0.1/32")
    assert str(decode(encode(Decimal("sNaN")))) == "sNaN"
    assert decode(encode(IntEnum("Side", "BUY SELL").SELL)) == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [object(), {1, 2}, [1, {"x": object()}], 1j, lambda: None])
def test_what_cannot_be_carried_is_named(value: Any) -> None:
    with pytest.raises(PermanentError):
        encode(value)


def test_hostile_bytes_are_refused_and_never_worse() -> None:
    seed = 20261123
    print(f"seed {seed}")
    dice = random.Random(seed)
    whole = encode([value for value in TORTURE if value != "a" * 70_000])
    cases = [dice.randbytes(dice.randrange(40)) for _ in range(3000)]
    cases += [whole[: dice.randrange(len(whole))] for _ in range(500)]
    for _ in range(3000):
        damaged = bytearray(whole)
        damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        cases.append(bytes(damaged))
    cases += [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xc7\x01\x63x", b"\xc1"]
    refused = 0
    for case in cases:
        try:
            decode(case)
        except CorruptCopy:
            refused += 1
    assert refused > 500
