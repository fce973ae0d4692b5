"""Change a document as an entry of MongoDB's oplog says, on its BSON bytes: what is not touched stays byte for byte.

Two notations are known: the deltas of MongoDB 5 and later (`{u, i, d, s<field>}`), and lists of dotted paths, as
MongoDB up to 4.4 (`$set`, `$unset`) and the embedded server (`updatedFields`, …) log them.

Does not: know the oplog; that is `mongo_entries`.

Why tolerant of what is not there: a dump is read while documents change, so that the first entries after it meet
documents that are newer than they are. What such an entry cannot reach, a later one replaces.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tiering.errors import CorruptCopy

Element: TypeAlias = bytes
"""One value: the byte of its type, then the value as BSON has it."""
Fields: TypeAlias = dict[bytes, Element]
"""A document's fields in their order; names as UTF-8."""

DOUBLE, STRING, DOCUMENT, ARRAY, BOOL, DATE, NULL = 1, 2, 3, 4, 8, 9, 10
INT32, TIMESTAMP, INT64 = 16, 17, 18
_INT = struct.Struct("<i")
_FIXED = {1: 8, 6: 0, 7: 12, 8: 1, 9: 8, 10: 0, 16: 4, 17: 8, 18: 8, 19: 16, 127: 0, 255: 0}
_LENGTH_FIRST = {2: 4, 3: 0, 4: 0, 5: 5, 12: 16, 13: 4, 14: 4, 15: 0}
_NULL: Element = bytes([NULL])
_PADDING_MAX = 1_500_001  # MongoDB's own limit


def split(document: bytes) -> Fields:
    """Take a document apart; of equal names the last counts.

    Raises:
        CorruptCopy: its bytes are not BSON.
    """
    fields: Fields = {}
    at, end = 4, len(document) - 1
    try:
        while at < end:
            kind = document[at]
            name_end = document.index(0, at + 1)
            first = name_end + 1
            last = first + _value_bytes(document, kind, first)
            fields[document[at + 1 : name_end]] = document[at : at + 1] + document[first:last]
            at = last
    except (ValueError, KeyError, struct.error, IndexError):
        raise _malformed(document) from None
    if at != end or document[end] or _INT.unpack_from(document)[0] != len(document):
        raise _malformed(document)
    return fields


def join(fields: Mapping[bytes, Element]) -> bytes:
    """Put a document together."""
    body = b"".join(value[:1] + name + b"\0" + value[1:] for name, value in fields.items())
    return _INT.pack(len(body) + 5) + body + b"\0"


def items(element: Element) -> list[Element]:
    """Take an array apart."""
    return list(split(element[1:]).values())


def array(values: list[Element]) -> Element:
    """Put an array together."""
    return bytes([ARRAY]) + join({str(i).encode(): value for i, value in enumerate(values)})


def text(element: Element) -> str:
    """Read a string."""
    return element[5:-1].decode()


def number(element: Element) -> int:
    """Read a whole number of any type; true is 1, what is no number 0."""
    if element[0] == DOUBLE:
        return int(struct.unpack("<d", element[1:])[0])
    return int.from_bytes(element[1:], "little", signed=True) if element[0] in (INT32, INT64, BOOL) else 0


def apply_update(document: bytes, update: Fields, *, may_be_newer: bool = False) -> bytes:
    """Return the document as it is after an update entry's `o`; a replacement is `o` itself.

    Args:
        document: as it was before, or, if it `may_be_newer`, as it was at any later moment.
        update: the entry's `o`.
        may_be_newer: the entry may long be in the document; only what all entries together give is right then.

    Raises:
        CorruptCopy: the entry is in a notation that is not known.
    """
    if b"diff" in update and b"$v" in update:
        diff = split(update[b"diff"][1:])
        if b"updatedFields" in diff or b"removedFields" in diff:
            return _by_paths(document, diff, may_be_newer)
        return join(_by_delta(split(document), diff))
    if b"$set" in update or b"$unset" in update:
        return _by_operators(document, update, may_be_newer)
    if any(name.startswith(b"$") for name in update):
        names = ", ".join(name.decode() for name in update)
        raise CorruptCopy("read oplog", names, "an update in a notation that is not known here")
    return join(update)


def _value_bytes(document: bytes, kind: int, at: int) -> int:
    if (size := _FIXED.get(kind)) is not None:
        return size
    if kind == 11:
        middle = document.index(0, at)
        return document.index(0, middle + 1) + 1 - at
    length = int(_INT.unpack_from(document, at)[0])
    size = length + _LENGTH_FIRST[kind]
    if length < 0 or size < 4 or at + size > len(document) - 1:
        raise ValueError
    return size


def _by_delta(fields: Fields, diff: Fields) -> Fields:
    for key, value in diff.items():
        if key == b"d":
            for name in split(value[1:]):
                fields.pop(name, None)
        elif key in (b"u", b"i"):
            for name, new in split(value[1:]).items():
                if key == b"i":
                    fields.pop(name, None)  # it was removed and came again: it is the last now
                fields[name] = new
        elif key.startswith(b"s"):
            if key[1:] in fields:
                fields[key[1:]] = _sub_delta(fields[key[1:]], split(value[1:]))
        else:
            raise CorruptCopy("read oplog", key.decode(), "a delta in a notation that is not known here")
    return fields


def _sub_delta(element: Element, diff: Fields) -> Element:
    if b"a" not in diff or diff[b"a"][0] != BOOL:
        return bytes([DOCUMENT]) + join(_by_delta(split(element[1:]), diff)) if element[0] == DOCUMENT else element
    if element[0] != ARRAY:
        return element
    values = items(element)
    for key, value in diff.items():
        if key == b"l":
            del values[number(value) :]
        elif key[:1] in (b"u", b"s") and key[1:].isdigit():
            index = int(key[1:])
            _pad(values, index)
            values[index] = value if key[:1] == b"u" else _sub_delta(values[index], split(value[1:]))
    return array(values)


def _by_operators(document: bytes, update: Fields, may_be_newer: bool) -> bytes:
    diff: Fields = {}
    if b"$set" in update:
        diff[b"updatedFields"] = update[b"$set"]
    if b"$unset" in update:
        names = [bytes([STRING]) + _INT.pack(len(n) + 1) + n + b"\0" for n in split(update[b"$unset"][1:])]
        diff[b"removedFields"] = array(names)
    return _by_paths(document, diff, may_be_newer)


def _by_paths(document: bytes, diff: Fields, may_be_newer: bool) -> bytes:
    put = _Put(may_be_newer)
    whole: Element = bytes([DOCUMENT]) + document
    if b"updatedFields" in diff:
        for path, value in split(diff[b"updatedFields"][1:]).items():
            whole = put.at(whole, path, value)
    if b"removedFields" in diff:
        for name in items(diff[b"removedFields"]):
            whole = put.at(whole, text(name).encode(), None)
    if b"truncatedArrays" in diff:
        for cut in items(diff[b"truncatedArrays"]):
            told = split(cut[1:])
            whole = put.at(whole, text(told[b"field"]).encode(), None, number(told[b"newSize"]))
    return whole[1:]


@dataclass(frozen=True, slots=True)
class _Put:
    """Set (or remove, or cut) what is at a dotted path; the types of what is on the way tell names from indexes."""

    may_be_newer: bool

    def at(self, whole: Element, path: bytes, value: Element | None, cut: int | None = None) -> Element:
        if whole[0] == ARRAY:
            return self._at_item(whole, path, value, cut)
        if whole[0] != DOCUMENT:
            return whole
        fields = split(whole[1:])
        name, rest = _first_name(fields, path)
        if rest:
            fields[name] = self.at(fields[name], rest, value, cut)
        elif cut is not None:
            if name in fields and fields[name][0] == ARRAY:
                fields[name] = array(items(fields[name])[:cut])
        else:
            if value is None:
                fields.pop(name, None)
            else:
                fields[name] = value
            if self.may_be_newer:
                _forget_below(fields, name)
        return bytes([DOCUMENT]) + join(fields)

    def _at_item(self, whole: Element, path: bytes, value: Element | None, cut: int | None) -> Element:
        head, _, rest = path.partition(b".")
        if not head.isdigit():
            return whole
        values, index = items(whole), int(head)
        if rest:
            if index < len(values):
                values[index] = self.at(values[index], rest, value, cut)
        elif cut is not None:
            if index < len(values) and values[index][0] == ARRAY:
                values[index] = array(items(values[index])[:cut])
        else:
            _pad(values, index)
            values[index] = _NULL if value is None else value
        return array(values)


def _forget_below(fields: Fields, name: bytes) -> None:
    """Undo what an entry older than the document did: its path led below a field that was gone, and made one."""
    for other in [other for other in fields if other.startswith(name + b".")]:
        del fields[other]


def _first_name(fields: Fields, path: bytes) -> tuple[bytes, bytes]:
    """Part a path where the document has a field. Where it has none, the whole path is the name of a new one.

    Why: an entry names the topmost thing that is new, and a field's own name may hold dots.
    """
    at = path.find(b".")
    while at >= 0:
        if path[:at] in fields:
            return path[:at], path[at + 1 :]
        at = path.find(b".", at + 1)
    return path, b""


def _pad(values: list[Element], index: int) -> None:
    if index > _PADDING_MAX:
        raise CorruptCopy("read oplog", f"item {index}", "no array is that long")
    values.extend([_NULL] * (index + 1 - len(values)))


def _malformed(document: bytes) -> CorruptCopy:
    return CorruptCopy("read documents", f"{len(document)} bytes", "they are not a BSON document")
