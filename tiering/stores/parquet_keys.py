"""Sort keys of Arrow columns as integers: codes of repetitive text, ranks, and one packed integer per row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiering.stores.arrow import numbers, truths, values_of, with_nulls
from tiering.stores.parquet_radix import order_of

WORDS_MAX = 1 << 15
_DICTIONARIES_KEPT = 4


class Words:
    """The dictionary of one text column over all batches; `is_open` is False once there are too many words."""

    def __init__(self) -> None:
        self.words: pa.Array = pa.nulls(0, pa.string())
        self.is_open = True
        self._known: dict[tuple[int, ...], tuple[pa.Array, Any]] = {}

    def code(self, array: pa.DictionaryArray) -> pa.Array | None:
        """Translate a batch's own codes to ours; None when the words have become too many."""
        mapping = self.mapping(array.dictionary)
        if mapping is None:
            return None
        codes = mapping[values_of(array.indices)]
        return with_nulls(numbers(codes), array.indices)

    def mapping(self, local: pa.Array) -> Any:
        """Give our code (int16) for each word of a batch's own dictionary; None when they have become too many."""
        # Readers send the same dictionary with batch after batch; its buffers stay alive here, so addresses tell.
        key = (len(local), local.offset, *(0 if b is None else b.address for b in local.buffers()))
        if key in self._known:
            return self._known[key][1]
        known = pc.index_in(local, value_set=self.words)
        if known.null_count:
            self.words = pa.concat_arrays([self.words, local.filter(pc.is_null(known))])
            known = pc.index_in(local, value_set=self.words)
        if len(self.words) > WORDS_MAX:
            self.is_open = False
            return None
        mapping = values_of(known).astype(np.int16) if len(local) else np.zeros(1, np.int16)
        if len(self._known) >= _DICTIONARIES_KEPT:
            del self._known[next(iter(self._known))]
        self._known[key] = local, mapping
        return mapping

    def rank(self) -> Any:
        """Give each code its place in the order of the words."""
        return values_of(pc.rank(self.words, tiebreaker="dense")).copy()


def order_rows(words: list[Any], count: int) -> Any:
    """Give the order of rows by their sort words: by one packed integer where they fit in one."""
    packed, bits = pack(words)
    return order_of(packed, bits) if packed is not None else np.lexsort(words[::-1] or [np.zeros(count)])


def pack(words: list[Any]) -> tuple[Any, int]:
    """Join the sort words in one int64, and say how many bits it uses; None when 63 are not enough."""
    packed: Any = None
    bits_used = 0
    for word in words:
        low, high = (int(word.min()), int(word.max())) if len(word) else (0, 0)
        bits = (high - low).bit_length()
        if not bits and packed is not None:
            continue
        bits_used += bits
        if bits_used > 63:
            return None, 0
        packed = (word - low) if packed is None else (packed << bits) | (word - low)
    return packed, bits_used


def integers(array: pa.Array) -> Any:
    """Map a column to int64 in the same order; texts and other long values by their rank among themselves."""
    if is_rankable(array.type):
        return values_of(pc.rank(storage(array), tiebreaker="dense")).copy()
    if pa.types.is_boolean(array.type):
        return truths(pc.fill_null(array, False)).astype(np.int64)
    if pa.types.is_floating(array.type):
        bits = values_of(array).astype(np.float64).view(np.int64)
        return np.where(bits < 0, np.int64(-(2**63)) - bits - 1, bits)
    return values_of(array).astype(np.int64, copy=False)


def storage(array: pa.Array) -> pa.Array:
    """Give an extension array's plain values."""
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def is_variable(kind: pa.DataType) -> bool:
    """Tell whether values of a type differ in length."""
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))


def is_rankable(kind: pa.DataType) -> bool:
    """Tell whether a type is sorted by the ranks of its values among each other."""
    return bool(is_variable(kind) or kind == pa.uuid() or pa.types.is_decimal128(kind))
