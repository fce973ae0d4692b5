# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""Numba kernels of the sort: orders by radix and by counting, and rows moved into them.

Radix sort of packed 63-bit keys is about six times as fast as a comparison sort.
"""

from __future__ import annotations

import numpy as np

from tiering.stores.compiled import compiled

_BITS = 11


@compiled
def order_of(keys, bits):
    """Give the stable order of non-negative int64 keys below 2**bits."""
    size = 1 << _BITS
    passes = max(1, (bits + _BITS - 1) // _BITS)
    counts = np.zeros((passes, size), np.uint32)
    for key in keys:
        for p in range(passes):
            counts[p, (key >> (p * _BITS)) & (size - 1)] += np.uint32(1)
    order = np.arange(keys.size).astype(np.uint32)
    spare = np.empty_like(order)
    sorted_keys = keys.copy()
    spare_keys = np.empty_like(keys)
    for p in range(passes):
        at = np.uint32(0)
        is_constant = False
        for digit in range(size):
            here = counts[p, digit]
            is_constant = is_constant or here == keys.size
            counts[p, digit] = at
            at += here
        if is_constant:
            continue
        for i in range(keys.size):
            key = sorted_keys[i]
            digit = (key >> (p * _BITS)) & (size - 1)
            place = counts[p, digit]
            counts[p, digit] = place + np.uint32(1)
            spare_keys[place] = key
            spare[place] = order[i]
        order, spare = spare, order
        sorted_keys, spare_keys = spare_keys, sorted_keys
    return order


@compiled
def recode(local, present, mapping, codes, counts):
    """Translate a batch's codes (null: -1, wherever `present` is 0) and count each word at its code + 1."""
    for i in range(local.size):
        code = np.int64(-1)
        if present.size == 0 or present[i]:
            code = np.int64(mapping[local[i]])
        codes[i] = code
        counts[code + 1] += 1


@compiled
def order_by_word(codes, places, order, ends):
    """Give the stable order of rows by their words' places, and where each place's rows end."""
    starts = np.zeros(ends.size + 1, np.int64)
    for code in codes:
        starts[places[code + 1] + 1] += 1
    for i in range(ends.size):
        starts[i + 1] += starts[i]
        ends[i] = starts[i + 1]
    for i in range(codes.size):
        place = places[codes[i] + 1]
        order[starts[place]] = i
        starts[place] += 1


@compiled
def places_of(codes, places, low):
    """Look up each code's place among its group's words."""
    found = np.empty(codes.size, np.int64)
    for i in range(codes.size):
        found[i] = places[codes[i] + 1] - low
    return found


@compiled
def gather(values, order, target):
    """Put values in order."""
    for i in range(order.size):
        target[i] = values[order[i]]
