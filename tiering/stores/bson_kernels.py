# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""Numba kernels: find and convert values in concatenated BSON documents, without Python per document.

Bytes are checked before they are believed: a length that leads out of its document is malformed, never followed.
Source: https://bsonspec.org/spec.html (version 1.1)
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tiering.stores.compiled import compiled
from tiering.stores.pgcopy_memory import copy_memory, load_u8, load_u32, load_u64, store_u8
from tiering.stores.pghash_kernels import hash_bytes

DOUBLE, STRING, DOCUMENT, ARRAY, BINARY, UNDEFINED, OBJECT_ID, BOOL, DATE, NULL = range(1, 11)
REGEX, POINTER, CODE, SYMBOL, SCOPED_CODE, INT32, TIMESTAMP, INT64, DECIMAL = range(11, 20)
MIN_KEY, MAX_KEY = 255, 127

MISSING, FOUND, UNTYPED = range(3)
"""What a cell is: no value (or null), a value of the column's type, or a value that the type cannot hold."""

_MALFORMED = np.int64(-1)
_SMALLEST = 5
MS_MAX = (2**63 - 1) // 1000


@compiled
def _load_i64(at):
    return np.int64(load_u64(at))


@compiled
def _load_i32(at):
    return np.int64(np.int32(load_u32(at)))


@compiled
def _behind_cstring(at, end):
    while at < end:
        if load_u8(at) == 0:
            return at + 1
        at += 1
    return _MALFORMED


@compiled
def _behind_string(at, end):
    if at + 4 > end:
        return _MALFORMED
    length = _load_i32(at)
    if length < 1 or at + 4 + length > end or load_u8(at + 3 + length) != 0:
        return _MALFORMED
    return at + 4 + length


@compiled
def _behind_document(at, end):
    if at + _SMALLEST > end:
        return _MALFORMED
    length = _load_i32(at)
    if length < _SMALLEST or at + length > end or load_u8(at + length - 1) != 0:
        return _MALFORMED
    return at + length


@compiled
def _behind_fixed(at, end, size):
    return at + size if at + size <= end else _MALFORMED


@compiled
def _behind_value(kind, at, end):
    """Give the address behind the value of a type that begins at `at`, or -1 when it does not end before `end`."""
    if kind in (STRING, CODE, SYMBOL):
        return _behind_string(at, end)
    if kind in (DOUBLE, DATE, TIMESTAMP, INT64):
        return _behind_fixed(at, end, 8)
    if kind == INT32:
        return _behind_fixed(at, end, 4)
    if kind in (DOCUMENT, ARRAY):
        return _behind_document(at, end)
    if kind == OBJECT_ID:
        return _behind_fixed(at, end, 12)
    if kind == BOOL:
        return _behind_fixed(at, end, 1)
    if kind in (NULL, UNDEFINED, MIN_KEY, MAX_KEY):
        return at
    if kind == DECIMAL:
        return _behind_fixed(at, end, 16)
    if kind == BINARY:
        if at + 5 > end or _load_i32(at) < 0:
            return _MALFORMED
        return _behind_fixed(at + 5, end, _load_i32(at))
    if kind == REGEX:
        options = _behind_cstring(at, end)
        return _behind_cstring(options, end) if options > 0 else _MALFORMED
    if kind == POINTER:
        behind = _behind_string(at, end)
        return _behind_fixed(behind, end, 12) if behind > 0 else _MALFORMED
    if kind == SCOPED_CODE:
        if at + 14 > end or _load_i32(at) < 14:
            return _MALFORMED
        return _behind_fixed(at, end, _load_i32(at))
    return _MALFORMED


@compiled
def count_documents(data):
    """Count the documents that lie end to end in the bytes; -1 when they do not fill them exactly."""
    at, count = np.int64(data.ctypes.data), 0
    end = at + data.size
    while at < end:
        at = _behind_document(at, end)
        if at < 0:
            return _MALFORMED
        count += 1
    return np.int64(count)


@compiled
def split_documents(data, offsets):
    """Write where each document begins, and where the last one ends; the bytes have been counted before."""
    base = np.int64(data.ctypes.data)
    for i in range(offsets.size - 1):
        offsets[i + 1] = offsets[i] + _load_i32(base + offsets[i])


@compiled
def check_documents(data, offsets):
    """Say whether every document is as long as its offsets say."""
    base = np.int64(data.ctypes.data)
    for i in range(offsets.size - 1):
        if offsets[i] < 0 or offsets[i + 1] > data.size or offsets[i] + _SMALLEST > offsets[i + 1]:
            return False
        if _behind_document(base + offsets[i], base + offsets[i + 1]) != base + offsets[i + 1]:
            return False
    return True


@compiled
def gather_documents(data, offsets, indices, out, ends):
    """Copy the chosen documents end to end; `ends` already holds where each goes."""
    source, target = np.int64(data.ctypes.data), np.int64(out.ctypes.data)
    for i in range(indices.size):
        first = offsets[indices[i]]
        copy_memory(target + ends[i], source + first, offsets[indices[i] + 1] - first)


@compiled
def _same_name(at, length, names, first, last):
    if length != last - first:
        return False
    for i in range(length):  # noqa: SIM110 - numba compiles no generators here
        if load_u8(at + i) != names[first + i]:
            return False
    return True


@compiled
def _locate_one(base, at, end, row, tree, names, seen, kinds, starts, lengths, stack):
    """Walk one document, and those of its sub-documents that a path leads into; False when malformed.

    Only the first of fields with the same name counts, as for MongoDB's own queries.
    """
    seen[:] = 0
    depth, node = 0, np.int64(0)
    at, end = at + 4, end - 1
    while True:
        if at == end:
            if depth == 0:
                return True
            depth -= 1
            node, at, end = stack[depth, 0], stack[depth, 1], stack[depth, 2]
            continue
        kind = np.int64(load_u8(at))
        name = at + 1
        value = _behind_cstring(name, end)
        if value < 0:
            return False
        behind = _behind_value(kind, value, end)
        if behind < 0:
            return False
        child = tree[node, 0]
        while child >= 0 and not _same_name(name, value - 1 - name, names, tree[child, 3], tree[child, 4]):
            child = tree[child, 1]
        at_next = behind
        if child >= 0 and seen[child] == 0:
            seen[child] = 1
            field = tree[child, 2]
            if field >= 0:
                kinds[field, row] = kind
                starts[field, row] = value - base
                lengths[field, row] = behind - value
            if tree[child, 0] >= 0 and kind == DOCUMENT:
                stack[depth, 0], stack[depth, 1], stack[depth, 2] = node, behind, end
                depth += 1
                node, at_next, end = child, value + 4, behind - 1
        at = at_next


@compiled
def locate(data, offsets, tree, names, kinds, starts, lengths):
    """Find the values at the paths of a tree in every document; give the first malformed document, else -1.

    Args: `tree` has one row per node: first child, next sibling, field (-1: none), begin and end of its name in
    `names`; node 0 is the document. `kinds` (BSON's type, 0 where there is no value), `starts` and `lengths` are
    field × document.
    """
    base = np.int64(data.ctypes.data)
    seen, stack = np.zeros(tree.shape[0], np.uint8), np.zeros(tree.shape, np.int64)
    for row in range(offsets.size - 1):
        for field in range(kinds.shape[0]):
            kinds[field, row] = 0
            starts[field, row] = 0
            lengths[field, row] = 0
        first, last = base + offsets[row], base + offsets[row + 1]
        if not _locate_one(base, first, last, row, tree, names, seen, kinds, starts, lengths, stack):
            return np.int64(row)
    return np.int64(-1)


@compiled
def hash_documents(data, offsets, id_kinds, id_starts, id_lengths):
    """Sum the documents' hashes, each seeded by the hash of its `_id`."""
    base, total = np.int64(data.ctypes.data), uint64(0)
    for row in range(offsets.size - 1):
        seed = hash_bytes(base + id_starts[row], id_lengths[row], uint64(id_kinds[row]))
        total += hash_bytes(base + offsets[row], offsets[row + 1] - offsets[row], seed)
    return total


@compiled
def _is_empty(kind):
    return kind in (0, NULL, UNDEFINED)


@compiled
def to_float8(data, kinds, starts, values, states):
    """Convert numbers that a double holds exactly."""
    base = np.int64(data.ctypes.data)
    bits = values.view(np.int64)
    for row in range(kinds.size):
        kind, at = kinds[row], base + starts[row]
        bits[row] = 0
        states[row] = MISSING if _is_empty(kind) else UNTYPED
        if kind == DOUBLE:
            bits[row] = _load_i64(at)
            states[row] = FOUND
        elif kind == INT32:
            values[row] = _load_i32(at)
            states[row] = FOUND
        elif kind == INT64:
            whole = _load_i64(at)
            near = np.float64(whole)
            if near < 9223372036854775808.0 and np.int64(near) == whole:
                values[row] = near
                states[row] = FOUND


@compiled
def to_int8(data, kinds, starts, values, states):
    """Convert whole numbers; a double counts when it is one."""
    base = np.int64(data.ctypes.data)
    number = np.zeros(1, np.int64)
    for row in range(kinds.size):
        kind, at = kinds[row], base + starts[row]
        values[row] = 0
        states[row] = MISSING if _is_empty(kind) else UNTYPED
        if kind == INT64:
            values[row] = _load_i64(at)
            states[row] = FOUND
        elif kind == INT32:
            values[row] = _load_i32(at)
            states[row] = FOUND
        elif kind == DOUBLE:
            number[0] = _load_i64(at)
            near = number.view(np.float64)[0]
            if near >= -9223372036854775808.0 and near < 9223372036854775808.0 and np.floor(near) == near:
                values[row] = np.int64(near)
                states[row] = FOUND


@compiled
def to_bool(data, kinds, starts, values, states):
    """Convert booleans, one byte each."""
    base = np.int64(data.ctypes.data)
    for row in range(kinds.size):
        values[row] = 0
        states[row] = MISSING if _is_empty(kinds[row]) else UNTYPED
        if kinds[row] == BOOL and load_u8(base + starts[row]) <= 1:
            values[row] = load_u8(base + starts[row])
            states[row] = FOUND


@compiled
def to_timestamp(data, kinds, starts, values, states):
    """Convert dates to microseconds since 1970, where 64 bits hold them."""
    base = np.int64(data.ctypes.data)
    for row in range(kinds.size):
        values[row] = 0
        states[row] = MISSING if _is_empty(kinds[row]) else UNTYPED
        if kinds[row] == DATE:
            instant = _load_i64(base + starts[row])
            if -MS_MAX <= instant <= MS_MAX:
                values[row] = instant * 1000
                states[row] = FOUND


@compiled
def to_uuid(data, kinds, starts, lengths, values, states):
    """Convert binaries of subtype 4 and 16 bytes."""
    base, target = np.int64(data.ctypes.data), np.int64(values.ctypes.data)
    values[:] = 0
    for row in range(kinds.size):
        at = base + starts[row]
        states[row] = MISSING if _is_empty(kinds[row]) else UNTYPED
        if kinds[row] == BINARY and lengths[row] == 21 and load_u8(at + 4) == 4:
            copy_memory(target + 16 * row, at + 5, 16)
            states[row] = FOUND


@compiled
def _is_utf8(at, end):
    """Say whether bytes are UTF-8 as Unicode has it: no overlong forms, no surrogates, nothing above U+10FFFF."""
    while at < end:
        if at + 8 <= end and (load_u64(at) & uint64(0x8080808080808080)) == 0:
            at += 8
            continue
        lead = np.int64(load_u8(at))
        if lead < 0x80:
            at += 1
            continue
        more = 1 if 0xC2 <= lead <= 0xDF else 2 if 0xE0 <= lead <= 0xEF else 3 if 0xF0 <= lead <= 0xF4 else 0
        if more == 0 or at + more >= end:
            return False
        second = np.int64(load_u8(at + 1))
        low = 0xA0 if lead == 0xE0 else 0x90 if lead == 0xF0 else 0x80
        high = 0x9F if lead == 0xED else 0x8F if lead == 0xF4 else 0xBF
        if second < low or second > high:
            return False
        for i in range(2, more + 1):
            if load_u8(at + i) & 0xC0 != 0x80:
                return False
        at += more + 1
    return True


@compiled
def measure_text(data, kinds, starts, lengths, ends, states):
    """Decide which cells are text and how long: strings of good UTF-8, and ObjectIds as 24 hex digits."""
    base, total = np.int64(data.ctypes.data), np.int64(0)
    for row in range(kinds.size):
        kind, at = kinds[row], base + starts[row]
        states[row] = MISSING if _is_empty(kind) else UNTYPED
        if kind == OBJECT_ID:
            states[row] = FOUND
            total += 24
        elif kind == STRING and _is_utf8(at + 4, at + lengths[row] - 1):
            states[row] = FOUND
            total += lengths[row] - 5
        ends[row + 1] = total
    return total


@compiled
def write_text(data, kinds, starts, ends, out):
    """Write the text that `measure_text` measured."""
    base, target = np.int64(data.ctypes.data), np.int64(out.ctypes.data)
    for row in range(kinds.size):
        at, to = base + starts[row], target + ends[row]
        if ends[row + 1] == ends[row]:
            continue
        if kinds[row] == OBJECT_ID:
            for i in range(12):
                byte = np.int64(load_u8(at + i))
                for half in range(2):
                    digit = (byte >> 4) if half == 0 else (byte & 15)
                    store_u8(to + 2 * i + half, np.uint8(digit + (48 if digit < 10 else 87)))
        else:
            copy_memory(to, at + 4, ends[row + 1] - ends[row])


@compiled
def mark_quoted(data, kinds, starts, lengths, states):
    """Unmark the `_id`s whose own text could be taken for another's: 24 hex digits, or a brace or quote first."""
    base = np.int64(data.ctypes.data)
    for row in range(kinds.size):
        at, length = base + starts[row] + 4, lengths[row] - 5
        if kinds[row] != STRING or length == 0:
            continue
        if load_u8(at) in (34, 123):
            states[row] = UNTYPED
        if length == 24:
            digits = 0
            for i in range(24):
                byte = load_u8(at + i)
                digits += 48 <= byte <= 57 or 97 <= (byte | 32) <= 102
            if digits == 24:
                states[row] = UNTYPED


@compiled
def within(data, kinds, starts, first, last, chosen):
    """Mark the documents whose value is a date in `[first, last)` milliseconds."""
    base = np.int64(data.ctypes.data)
    for row in range(kinds.size):
        chosen[row] = False
        if kinds[row] == DATE:
            instant = _load_i64(base + starts[row])
            chosen[row] = first <= instant < last
