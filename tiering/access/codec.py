"""Values as they stand in the cache: msgpack, with the types that rows have, exactly.

Why msgpack: measured beside orjson and Arrow IPC in docs/decisions/0015-access-drivers.md. JSON is faster to read but
has no Decimal, no instant and no bytes: a price that comes back as a float is another price.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_interface
from typing import Any
from uuid import UUID

import msgpack

from tiering.errors import CorruptCopy, PermanentError

_DECIMAL, _DATE, _UUID, _NAIVE, _TIME, _TEXT, _SPAN, _NETWORK, _BIG = range(1, 10)


def _extension(code: int, data: bytes) -> msgpack.ExtType:
    """Make an extension without its checks: they cost more than the packing."""
    made: msgpack.ExtType = tuple.__new__(msgpack.ExtType, (code, data))
    return made


def _pack_other(value: Any) -> msgpack.ExtType:
    """Carry what msgpack does not know; asked only for that."""
    if type(value) is Decimal:
        return _extension(_DECIMAL, str(value).encode())
    pack = _PACK.get(type(value))
    if pack is None:  # a type derived from one of them
        pack = next((found for kind, found in _PACK.items() if isinstance(value, kind)), None)
    if pack is not None:
        return _extension(*pack(value))
    if type(value).__name__ == "ObjectId":  # of MongoDB, whose driver stays in the stores
        return _extension(_TEXT, str(value).encode())
    raise PermanentError("cache", type(value).__name__, "a value of this type cannot be cached")


def _of_network(value: Any) -> tuple[int, bytes]:
    return _NETWORK, str(value).encode()


_PACK: dict[type, Callable[[Any], tuple[int, bytes]]] = {
    Decimal: lambda value: (_DECIMAL, str(value).encode()),
    datetime: lambda value: (_NAIVE, value.isoformat().encode()),  # without a zone: msgpack has taken the others
    date: lambda value: (_DATE, value.isoformat().encode()),
    UUID: lambda value: (_UUID, value.bytes),
    time: lambda value: (_TIME, value.isoformat().encode()),
    timedelta: lambda value: (_SPAN, f"{value.days},{value.seconds},{value.microseconds}".encode()),
    IPv4Address: _of_network,
    IPv6Address: _of_network,
    IPv4Interface: _of_network,
    IPv6Interface: _of_network,
    int: lambda value: (_BIG, str(value).encode()),
}


def _span(data: bytes) -> timedelta:
    return timedelta(*map(int, data.split(b",")))


_UNPACK: dict[int, Callable[[bytes], Any]] = {
    _DECIMAL: lambda data: Decimal(data.decode()),
    _DATE: lambda data: date.fromisoformat(data.decode()),
    _UUID: lambda data: UUID(bytes=data),
    _NAIVE: lambda data: datetime.fromisoformat(data.decode()),
    _TIME: lambda data: time.fromisoformat(data.decode()),
    _TEXT: bytes.decode,
    _SPAN: _span,
    _NETWORK: lambda data: ip_interface(data.decode()),
    _BIG: lambda data: int(data.decode()),
}


def _unpack_other(code: int, data: bytes) -> Any:
    return _UNPACK[code](data)


def encode(value: Any) -> bytes:
    """Pack a value: None, numbers, text, bytes, lists, dicts, Decimal, dates and times, UUID, networks.

    Raises:
        PermanentError: there is something else in it.
    """
    try:
        packed: bytes = msgpack.packb(value, default=_pack_other, datetime=True)
    except OverflowError:
        packed = msgpack.packb(_with_big(value), default=_pack_other, datetime=True)
    except TypeError as exc:
        raise PermanentError("cache", type(value).__name__, str(exc)) from exc
    return packed


def _with_big(value: Any) -> Any:
    """Carry integers beyond 64 bits as text."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return msgpack.ExtType(_BIG, str(value).encode())
    if isinstance(value, dict):
        return {key: _with_big(one) for key, one in value.items()}
    return [_with_big(one) for one in value] if isinstance(value, list | tuple) else value


def decode(payload: bytes) -> Any:
    """Unpack a value; tuples come back as lists, instants in UTC.

    Raises:
        CorruptCopy: these are no bytes of ours.
    """
    try:
        return msgpack.unpackb(payload, ext_hook=_unpack_other, timestamp=3, strict_map_key=False)
    except (ValueError, LookupError, TypeError, ArithmeticError, msgpack.UnpackException) as exc:
        raise CorruptCopy("read", "cache", f"not a value of ours: {type(exc).__name__}") from exc
