# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False
"""Cut a stream of bytes where its contents say so: what is inserted or removed moves one or two cuts, and no others.

A hash rolls over the last 64 bytes, from a table that a secret makes; where its top bits are zero is a cut. So equal
stretches of two streams have equal chunks, wherever they stand.

Source: gear hashing, as in W. Xia et al., "FastCDC" (2016). Why the secret: lengths of chunks would otherwise tell
known files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from numba import uint64

from tiering.stores.compiled import compiled

CHUNK_BYTES_MIN = 256 << 10
CHUNK_BYTES_MAX = 8 << 20
CHUNK_BITS = 20  # about 1 MiB beyond the least
_WINDOW = 64
_MASK = ((1 << CHUNK_BITS) - 1) << (64 - CHUNK_BITS)


@compiled
def _find_cut(data, gear, least, mask):
    """Return the length of the first chunk; all of the data if there is no cut in it."""
    rolled = uint64(0)
    for at in range(max(0, least - _WINDOW), data.size):
        rolled = (rolled << uint64(1)) + gear[data[at]]
        if at >= least and (rolled & mask) == uint64(0):
            return at + 1
    return data.size


def gear_of(secret: bytes) -> np.ndarray:
    """Make the table of a secret."""
    return np.frombuffer(hashlib.shake_256(secret).digest(256 * 8), dtype="<u8").astype(np.uint64)


def cut(blocks: Iterable[bytes], gear: np.ndarray) -> Iterator[bytes]:
    """Yield the chunks of a stream; joined they are the stream."""
    held = bytearray()
    for block in blocks:
        held += block
        while len(held) >= CHUNK_BYTES_MAX:
            yield _take(held, gear)
    while held:
        yield _take(held, gear)


def _take(held: bytearray, gear: np.ndarray) -> bytes:
    head = np.frombuffer(bytes(held[:CHUNK_BYTES_MAX]), dtype=np.uint8)
    length = int(_find_cut(head, gear, CHUNK_BYTES_MIN, np.uint64(_MASK)))
    chunk = bytes(held[:length])
    del held[:length]
    return chunk
