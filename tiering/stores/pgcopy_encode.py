# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""Numba kernels: columns into rows of PostgreSQL's binary COPY, and raw COPY bytes from libpq into chunks."""

from __future__ import annotations

import numpy as np

from tiering.stores.compiled import compiled
from tiering.stores.pgcopy_memory import (
    call_free,
    call_get_copy_data,
    copy_memory,
    store_be16,
    store_be32,
    store_be64,
    store_u8,
)

# How a value is written.
PUT_1, PUT_2, PUT_4, PUT_8, PUT_NUMERIC, PUT_BYTES, PUT_JSONB = range(7)
NUMERIC_BYTES_MAX = 8 + 2 * 12
"""A numeric of up to 38 digits on the wire: header and at most 11 groups."""

SPECIAL = 2
BUFFER, LENGTH, BYTES = range(3)


@compiled
def split_decimal(low, high, scale, digits):
    """Split an unscaled 128-bit integer into base-10000 groups, highest first, zero groups cut at both ends.

    Returns:
        The group count, the weight (power of 10000) of the first group, and whether it is negative.
    """
    negative = high < 0
    if negative:
        low = ~low + 1
        high = ~high + (1 if low == 0 else 0)
    groups = np.int64(0)
    odd = scale % 4
    if high == 0 and low >= 0:
        rest = low
        if odd:
            cut = 10**odd
            digits[0] = rest % cut * 10 ** (4 - odd)
            rest //= cut
            groups = np.int64(1)
        while rest:
            digits[groups] = rest % 10_000
            rest //= 10_000
            groups += 1
    else:
        groups = _split_wide(low, high, odd, digits)
    weight = groups - 1 - (scale + 3) // 4
    begin = np.int64(0)
    while begin < groups and digits[begin] == 0:
        begin += 1
    while groups > begin and digits[groups - 1] == 0:
        groups -= 1
        weight -= 1
    count = groups - begin
    for i in range(begin):
        digits[i] = 0
    for i in range(count):
        digits[i] = digits[begin + i]
    for i in range(count // 2):
        digits[i], digits[count - 1 - i] = digits[count - 1 - i], digits[i]
    return count, weight, negative


@compiled
def _split_wide(low, high, odd, digits):
    limbs = np.empty(4, np.uint64)
    limbs[0], limbs[1] = np.uint64(low) & np.uint64(0xFFFFFFFF), np.uint64(low) >> np.uint64(32)
    limbs[2], limbs[3] = np.uint64(high) & np.uint64(0xFFFFFFFF), np.uint64(high) >> np.uint64(32)
    groups = np.int64(0)
    cut, factor = (10**odd, 10 ** (4 - odd)) if odd else (10_000, 1)
    while limbs[0] | limbs[1] | limbs[2] | limbs[3]:
        rest = np.uint64(0)
        for i in range(3, -1, -1):
            whole = (rest << np.uint64(32)) | limbs[i]
            limbs[i] = whole // np.uint64(cut)
            rest = whole % np.uint64(cut)
        digits[groups] = np.int64(rest) * factor
        groups += 1
        cut, factor = 10_000, 1
    return groups


@compiled
def _put_numeric(at, value, high, state, scale, digits):
    count, weight, sign = np.int64(0), np.int64(0), np.int64(0)
    if state == SPECIAL:
        sign = value
    else:
        count, weight, negative = split_decimal(value, high, scale, digits)
        sign = np.int64(0x4000 if negative else 0)
    if count == 0:
        weight = np.int64(0)
    store_be32(at, np.int32(8 + 2 * count))
    store_be16(at + 4, np.int16(count))
    store_be16(at + 6, np.int16(weight))
    store_be16(at + 8, np.int16(sign))
    store_be16(at + 10, np.int16(scale if state != SPECIAL else 0))
    for i in range(count):
        store_be16(at + 12 + 2 * i, np.int16(digits[i]))
    return at + 12 + 2 * count


@compiled
def encode_rows(put, scale, values, extra, state, out):
    """Write all rows of a matrix; give the byte count. The caller has made room for the longest case."""
    begin = np.int64(out.ctypes.data)
    at = begin
    digits = np.zeros(16, np.int64)
    for row in range(values.shape[1]):
        store_be16(at, np.int16(put.size))
        at += 2
        for c in range(put.size):
            kind, value = put[c], values[c, row]
            if state[c, row] == 0:
                store_be32(at, np.int32(-1))
                at += 4
            elif kind == PUT_8:
                store_be32(at, np.int32(8))
                store_be64(at + 4, value)
                at += 12
            elif kind == PUT_4:
                store_be32(at, np.int32(4))
                store_be32(at + 4, np.int32(value))
                at += 8
            elif kind == PUT_2:
                store_be32(at, np.int32(2))
                store_be16(at + 4, np.int16(value))
                at += 6
            elif kind == PUT_1:
                store_be32(at, np.int32(1))
                store_u8(at + 4, np.uint8(value))
                at += 5
            elif kind == PUT_NUMERIC:
                at = _put_numeric(at, value, extra[c, row], state[c, row], scale[c], digits)
            else:
                length = extra[c, row]
                version = 1 if kind == PUT_JSONB else 0
                store_be32(at, np.int32(length + version))
                at += 4
                if version:
                    store_u8(at, np.uint8(1))
                    at += 1
                copy_memory(at, value, length)
                at += length
    return at - begin


@compiled
def fill_chunk(get, free, connection, buffer_out, state, chunk):
    """Copy messages of a COPY OUT stream into a chunk until one has no room.

    Returns:
        1: the chunk is full (a message may wait in `state`), 0: the stream has ended, -1: it failed.
    """
    state[BYTES] = 0
    while True:
        if state[BUFFER] == 0:
            got = call_get_copy_data(get, connection, np.int64(buffer_out.ctypes.data))
            if got < 0:
                return 0 if got == -1 else -1
            state[BUFFER] = buffer_out[0]
            state[LENGTH] = got
        if state[BYTES] + state[LENGTH] > chunk.size:
            return 1
        copy_memory(np.int64(chunk.ctypes.data) + state[BYTES], state[BUFFER], state[LENGTH])
        state[BYTES] += state[LENGTH]
        call_free(free, state[BUFFER])
        state[BUFFER] = 0
