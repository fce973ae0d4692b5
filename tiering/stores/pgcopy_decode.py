# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""Numba kernels: rows of PostgreSQL's binary COPY into columns, without Python per row.

The kernels only move bits. What they mean (types, errors, Arrow) is `pgcopy_read`'s business.
"""

from __future__ import annotations

import numpy as np

from tiering.stores.compiled import compiled
from tiering.stores.pgcopy_memory import (
    call_free,
    call_get_copy_data,
    copy_memory,
    load_be16,
    load_be32,
    load_be64,
    load_u8,
    load_u64,
)

# How a column's bytes become a value.
WIRE_INT, WIRE_TIMESTAMP, WIRE_DATE, WIRE_DECIMAL, WIRE_WIDE, WIRE_BYTES = range(6)
# Why decode_rows returned.
FULL, ENDED, FAILED, MALFORMED, INEXACT = range(5)
# Slots of its state vector.
ROWS, BUFFER, LENGTH, POSITION, HEAP_USED, STARTED, SPECIALS, TRAILER, BYTES_IN = range(9)
STATE_SIZE = 9

UNIX_TO_PG_MICROSECONDS = 946_684_800_000_000
UNIX_TO_PG_DAYS = 10_957
INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)
INT32_MAX = 2**31 - 1
INT32_MIN = -(2**31)
NUMERIC_NEGATIVE = 0x4000
NUMERIC_SPECIAL = 0xC000
_HEADER_BYTES = 19
_TEN = np.array([10**i for i in range(19)], np.int64)


@compiled
def _read_decimal(at, scale):
    """Read a finite numeric of at most 18 digits as an integer of `scale`; False when it does not fit."""
    count, weight = np.int64(load_be16(at)), np.int64(load_be16(at + 2))
    value = np.int64(0)
    if count == 0:
        return value, True
    exponent = 4 * (weight - count + 1) + scale
    whole = count if exponent >= 0 else count - 1
    for i in range(whole):
        if value > 900_000_000_000_000:
            return value, False
        value = value * 10_000 + np.int64(load_be16(at + 8 + 2 * i))
    if exponent >= 0:
        if exponent > 18 or (exponent > 0 and value > 999_999_999_999_999_999 // _TEN[exponent]):
            return value, False
        value *= _TEN[exponent]
    else:
        # The last group reaches beyond the scale: its low digits must be zero.
        if exponent < -3:
            return value, False
        cut = _TEN[-exponent]
        last = np.int64(load_be16(at + 8 + 2 * whole))
        if last % cut != 0:
            return value, False
        value = value * _TEN[4 + exponent] + last // cut
    negative = (np.int64(load_be16(at + 4)) & 0xFFFF) == NUMERIC_NEGATIVE
    return (-value if negative else value), True


@compiled
def _multiply_add(limbs, factor, addend):
    carry = np.uint64(addend)
    for i in range(4):
        carry += np.uint64(limbs[i]) * np.uint64(factor)
        limbs[i] = carry & np.uint64(0xFFFFFFFF)
        carry >>= np.uint64(32)
    return carry == 0


@compiled
def _read_wide(at, scale, limbs):
    """Read a finite numeric of at most 38 digits into four 32-bit limbs, two's complement; False: no fit."""
    count, weight = np.int64(load_be16(at)), np.int64(load_be16(at + 2))
    limbs[:] = 0
    fits = True
    exponent = 4 * (weight - count + 1) + scale
    for i in range(count):
        digit = np.int64(load_be16(at + 8 + 2 * i))
        if i == count - 1 and exponent < 0:
            cut = _TEN[min(-exponent, 4)]
            fits = fits and exponent >= -3 and digit % cut == 0
            fits = _multiply_add(limbs, _TEN[max(4 + exponent, 0)], digit // cut) and fits
        else:
            fits = _multiply_add(limbs, 10_000, digit) and fits
    if count > 0:
        for _ in range(exponent):
            fits = _multiply_add(limbs, 10, 0) and fits
    if (np.int64(load_be16(at + 4)) & 0xFFFF) == NUMERIC_NEGATIVE:
        for i in range(4):
            limbs[i] ^= np.uint64(0xFFFFFFFF)
        carry = np.uint64(1)
        for i in range(4):
            carry += limbs[i]
            limbs[i] = carry & np.uint64(0xFFFFFFFF)
            carry >>= np.uint64(32)
    return fits


@compiled
def _read_int(at, length):
    if length == 8:
        return load_be64(at)
    if length == 4:
        return np.int64(load_be32(at))
    if length == 2:
        return np.int64(load_be16(at))
    return np.int64(load_u8(at))


@compiled
def _decode_row(at, end, row, wire, scale, slot, values, extra, valid, heap, special, state, limbs):
    """Decode the fields of one row that begin at `at`; give the address behind it, or minus a reason."""
    for c in range(wire.size):
        if at + 4 > end:
            return np.int64(-MALFORMED)
        length = np.int64(load_be32(at))
        at += 4
        if length < 0:
            valid[c, row] = 0
            values[c, row] = 0
            if slot[c] >= 0:
                extra[slot[c], row] = 0
            continue
        if at + length > end:
            return np.int64(-MALFORMED)
        kind = wire[c]
        value = np.int64(0)
        is_special = False
        if kind == WIRE_BYTES:
            used = state[HEAP_USED]
            copy_memory(np.int64(heap.ctypes.data) + used, at, length)
            value = used
            extra[slot[c], row] = length
            state[HEAP_USED] = used + length
        elif kind in (WIRE_DECIMAL, WIRE_WIDE):
            sign = np.int64(load_be16(at + 4)) & 0xFFFF
            if sign >= NUMERIC_SPECIAL:
                is_special = True
                value = sign
            elif kind == WIRE_DECIMAL:
                value, fits = _read_decimal(at, scale[c])
                if not fits:
                    return np.int64(-INEXACT)
            else:
                if not _read_wide(at, scale[c], limbs):
                    return np.int64(-INEXACT)
                value = np.int64(limbs[0] | (limbs[1] << np.uint64(32)))
                extra[slot[c], row] = np.int64(limbs[2] | (limbs[3] << np.uint64(32)))
        else:
            value = _read_int(at, length)
            if kind == WIRE_TIMESTAMP:
                if value == INT64_MIN or value > INT64_MAX - UNIX_TO_PG_MICROSECONDS:
                    is_special = True
                else:
                    value += UNIX_TO_PG_MICROSECONDS
            elif kind == WIRE_DATE:
                if value in (INT32_MIN, INT32_MAX):
                    is_special = True
                else:
                    value += UNIX_TO_PG_DAYS
        if is_special:
            found = state[SPECIALS]
            special[found, 0] = row
            special[found, 1] = c
            special[found, 2] = value
            state[SPECIALS] = found + 1
            valid[c, row] = 0
            values[c, row] = 0
            if slot[c] >= 0:
                extra[slot[c], row] = 0
        else:
            valid[c, row] = 1
            values[c, row] = value
        at += length
    return at


@compiled
def decode_rows(get, free, connection, buffer_out, state, wire, scale, slot, values, extra, valid, heap, special):
    """Fetch and decode rows until the batch is full or the stream ends; the state vector carries on.

    A row that the heap has no room for stays pending: the caller takes the batch, or grows the heap.
    """
    limbs = np.zeros(4, np.uint64)
    capacity = values.shape[1]
    while True:
        if state[BUFFER] == 0:
            got = call_get_copy_data(get, connection, np.int64(buffer_out.ctypes.data))
            if got < 0:
                return ENDED if got == -1 else FAILED
            state[BUFFER] = buffer_out[0]
            state[LENGTH] = got
            state[POSITION] = 0
            state[BYTES_IN] += got
        base = state[BUFFER]
        end = base + state[LENGTH]
        if state[STARTED] == 0:
            if state[LENGTH] < _HEADER_BYTES:
                return MALFORMED
            state[POSITION] = _HEADER_BYTES + load_be32(base + 15)
            state[STARTED] = 1
        while base + state[POSITION] < end:
            at = base + state[POSITION]
            if state[TRAILER] == 1 or at + 2 > end:
                return MALFORMED
            fields = load_be16(at)
            if fields == -1:
                state[TRAILER] = 1
                state[POSITION] += 2
                continue
            if fields != wire.size:
                return MALFORMED
            if (
                state[ROWS] == capacity
                or state[HEAP_USED] + (end - at) > heap.size
                or state[SPECIALS] + wire.size > special.shape[0]
            ):
                return FULL
            at = _decode_row(
                at + 2, end, state[ROWS], wire, scale, slot, values, extra, valid, heap, special, state, limbs
            )
            if at < 0:
                return np.int64(-at)
            state[ROWS] += 1
            state[POSITION] = at - base
        call_free(free, base)
        state[BUFFER] = 0


@compiled
def _hash(at, length):
    value = np.uint64(length) * np.uint64(0x9E3779B97F4A7C15)
    while length >= 8:
        value = (value ^ load_u64(at)) * np.uint64(0xFF51AFD7ED558CCD)
        value ^= value >> np.uint64(32)
        at += 8
        length -= 8
    for i in range(length):
        value = (value ^ np.uint64(load_u8(at + i))) * np.uint64(0xFF51AFD7ED558CCD)
    return value ^ (value >> np.uint64(29))


@compiled
def _same(a, b, length):
    while length >= 8:
        if load_u64(a) != load_u64(b):
            return False
        a += 8
        b += 8
        length -= 8
    for i in range(length):  # noqa: SIM110 - numba compiles no generators here
        if load_u8(a + i) != load_u8(b + i):
            return False
    return True


@compiled
def encode_words(heap, starts, lengths, valid, count, codes, table, words, word_ends, used):
    """Replace values by codes of a growing dictionary; False when it has no room (then drop the codes).

    Args: `table` is an open-addressing hash of size 2**n holding code + 1; `words` and `word_ends` hold
    the dictionary; `used` = [word count, byte count].
    """
    mask = np.uint64(table.size - 1)
    source, target = np.int64(heap.ctypes.data), np.int64(words.ctypes.data)
    last = np.int64(-1)
    for row in range(count):
        if valid[row] == 0:
            codes[row] = 0
            continue
        at, length = source + starts[row], lengths[row]
        if last >= 0:
            begin = word_ends[last - 1] if last > 0 else 0
            if word_ends[last] - begin == length and _same(target + begin, at, length):
                codes[row] = last
                continue
        place = _hash(at, np.int64(length)) & mask
        while True:
            code = np.int64(table[place]) - 1
            if code < 0:
                code = used[0]
                if code >= word_ends.size or used[1] + length > words.size:
                    return False
                copy_memory(target + used[1], at, length)
                used[0] += 1
                used[1] += length
                word_ends[code] = used[1]
                table[place] = code + 1
                break
            begin = word_ends[code - 1] if code > 0 else 0
            if word_ends[code] - begin == length and _same(target + begin, at, length):
                break
            place = (place + np.uint64(1)) & mask
        codes[row] = code
        last = code
    return True


@compiled
def gather_bytes(heap, starts, lengths, valid, count, offsets, out):
    """Lay the values of one column end to end, as Arrow's variable-size layout wants them."""
    source, target = np.int64(heap.ctypes.data), np.int64(out.ctypes.data)
    at = np.int64(0)
    for row in range(count):
        offsets[row] = at
        if valid[row] != 0:
            copy_memory(target + at, source + starts[row], lengths[row])
            at += lengths[row]
    offsets[count] = at


@compiled
def release(free, buffer):
    """Free a row that libpq gave and nobody will decode."""
    call_free(free, buffer)
