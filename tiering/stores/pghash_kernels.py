# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""Numba kernels: PostgreSQL's extended (64-bit, seeded) hashes over columns of a `Matrix`.

Written from the published algorithm: Bob Jenkins, "lookup3.c", 2006 (public domain), of which PostgreSQL keeps
the last two of three words. Source: https://burtleburtle.net/bob/c/lookup3.c
"""

from __future__ import annotations

import numpy as np
from numba import uint32, uint64

from tiering.stores.compiled import compiled
from tiering.stores.pgcopy_encode import split_decimal
from tiering.stores.pgcopy_memory import load_u8, load_u32

HASH_INT4, HASH_INT8, HASH_BITS4, HASH_BITS8, HASH_NUMERIC, HASH_BYTES = range(6)
_SPECIAL = 2
_START = 0x9E3779B9 + 3_923_095


@compiled
def _turn(word, bits):
    return uint32((word << uint32(bits)) | (word >> uint32(32 - bits)))


@compiled
def _mix(a, b, c):
    a = uint32(a - c) ^ _turn(c, 4)
    c = uint32(c + b)
    b = uint32(b - a) ^ _turn(a, 6)
    a = uint32(a + c)
    c = uint32(c - b) ^ _turn(b, 8)
    b = uint32(b + a)
    a = uint32(a - c) ^ _turn(c, 16)
    c = uint32(c + b)
    b = uint32(b - a) ^ _turn(a, 19)
    a = uint32(a + c)
    c = uint32(c - b) ^ _turn(b, 4)
    b = uint32(b + a)
    return a, b, c


@compiled
def _finish(a, b, c):
    c = uint32((c ^ b) - _turn(b, 14))
    a = uint32((a ^ c) - _turn(c, 11))
    b = uint32((b ^ a) - _turn(a, 25))
    c = uint32((c ^ b) - _turn(b, 16))
    a = uint32((a ^ c) - _turn(c, 4))
    b = uint32((b ^ a) - _turn(a, 14))
    c = uint32((c ^ b) - _turn(b, 24))
    return (uint64(b) << uint64(32)) | uint64(c)


@compiled
def _begin(length, seed):
    a = b = c = uint32(uint32(_START) + uint32(length))
    if seed != 0:
        a = uint32(a + uint32(seed >> uint64(32)))
        b = uint32(b + uint32(seed & uint64(0xFFFFFFFF)))
        a, b, c = _mix(a, b, c)
    return a, b, c


@compiled
def hash_word(word, seed):
    """Hash one 32-bit integer."""
    a, b, c = _begin(4, seed)
    return _finish(uint32(a + word), b, c)


@compiled
def hash_int8(value, seed):
    """Hash a bigint so that it agrees with the hash of an equal integer."""
    low, high = uint32(value & 0xFFFFFFFF), uint32((value >> 32) & 0xFFFFFFFF)
    return hash_word(low ^ (high if value >= 0 else ~high), seed)


@compiled
def _tail(at, length, first):
    """Gather up to four bytes from `first` on, little-endian; bytes beyond `length` are zero."""
    word = uint32(0)
    for i in range(max(0, min(4, length - first))):
        word |= uint32(uint32(load_u8(at + first + i)) << uint32(8 * i))
    return word


@compiled
def hash_bytes(at, length, seed):
    """Hash `length` bytes at an address."""
    a, b, c = _begin(length, seed)
    while length >= 12:
        a, b, c = _mix(uint32(a + load_u32(at)), uint32(b + load_u32(at + 4)), uint32(c + load_u32(at + 8)))
        at += 12
        length -= 12
    # The lowest byte of the last word is kept for the length.
    a = uint32(a + (load_u32(at) if length >= 4 else _tail(at, length, 0)))
    b = uint32(b + (load_u32(at + 4) if length >= 8 else _tail(at, length, 4)))
    c = uint32(c + uint32(_tail(at, length, 8) << uint32(8)))
    return _finish(a, b, c)


@compiled
def _hash_numeric(low, high, state, scale, digits, packed, seed):
    """Hash the base-10000 groups, then join the weight; NaN gives the seed and zero the seed less one."""
    if state == _SPECIAL:
        return seed
    count, weight, negative = split_decimal(low, high, scale, digits)
    if negative:
        seed = ~seed
    if count == 0:
        return seed - uint64(1)
    for i in range(count):
        packed[i] = digits[i]
    return hash_bytes(np.int64(packed.ctypes.data), 2 * count, seed) ^ uint64(weight)


@compiled
def _swap(value, size):
    """Reverse the bytes of a 4- or 8-byte integer: floats are hashed in network order."""
    swapped = uint64(0)
    bits = uint64(value)
    for _ in range(size):
        swapped = (swapped << uint64(8)) | (bits & uint64(0xFF))
        bits >>= uint64(8)
    return swapped


@compiled
def _hash_cell(kind, scale, value, extra, state, digits, packed, bits, seed):
    if kind == HASH_NUMERIC:
        return _hash_numeric(value, extra, state, scale, digits, packed, seed)
    if kind == HASH_BYTES:
        return hash_bytes(value, extra, seed)
    if kind == HASH_INT8:
        return hash_int8(value, seed)
    if kind == HASH_INT4:
        return hash_word(uint32(value & 0xFFFFFFFF), seed)
    size = 8 if kind == HASH_BITS8 else 4
    bits[0] = _swap(value, size)
    return hash_bytes(np.int64(bits.ctypes.data), size, seed)


@compiled
def hash_rows(kinds, scales, keys, is_key, values, extra, state, counts, sums):
    """Add a matrix's rows to the counts and hash sums of its columns."""
    digits, packed, bits = np.zeros(16, np.int64), np.zeros(16, np.int16), np.zeros(1, np.uint64)
    rows = values.shape[1]
    seeds = np.zeros(rows, np.uint64)
    for c in keys:
        for row in range(rows):
            if state[c, row] != 0:
                seeds[row] = _hash_cell(
                    kinds[c], scales[c], values[c, row], extra[c, row], state[c, row], digits, packed, bits, seeds[row]
                )
    for c in range(kinds.size):
        count, total = 0, uint64(0)
        for row in range(rows):
            if is_key[c]:
                total += seeds[row]
                count += 1 if state[c, row] != 0 else 0
            elif state[c, row] != 0:
                count += 1
                total += _hash_cell(
                    kinds[c], scales[c], values[c, row], extra[c, row], state[c, row], digits, packed, bits, seeds[row]
                )
        counts[c] += count
        sums[c] += total
