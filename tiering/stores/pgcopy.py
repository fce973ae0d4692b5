"""PostgreSQL ↔ Arrow by binary COPY: the front door of the `pgcopy_*` modules.

`python -m tiering.stores.pgcopy` compiles the kernels once, e.g. when installing; else the first use does.
"""

from __future__ import annotations

import time

from numba import types

from tiering.stores import parquet_radix, pgcopy_decode, pgcopy_encode, pghash_kernels
from tiering.stores.pgcopy_libpq import copying, error_of, mapped, prepare_session
from tiering.stores.pgcopy_read import ROWS_PER_BATCH, read_batches, read_parallel
from tiering.stores.pgcopy_write import pump, write_rows

__all__ = [
    "ROWS_PER_BATCH",
    "copying",
    "error_of",
    "mapped",
    "prepare_session",
    "pump",
    "read_batches",
    "read_parallel",
    "warm_up",
    "write_rows",
]


def warm_up() -> float:
    """Compile every kernel for the types it is called with, or load it; give the seconds that took."""
    began = time.monotonic()
    i8, u1, line = types.int64, types.uint8[::1], types.int64[::1]
    grid, states, short = types.int64[:, ::1], types.uint8[:, ::1], types.int16[::1]
    gathered = (types.uint8, types.int16, types.int32, types.int64)
    shapes = [
        (pgcopy_decode.decode_rows, (i8, i8, i8, line, line, line, line, line, grid, grid, states, u1, grid)),
        (pgcopy_decode.encode_words, (u1, line, line, u1, i8, types.int32[::1], types.int32[::1], u1, line, line)),
        (pgcopy_decode.gather_bytes, (u1, line, line, u1, i8, types.int32[::1], u1)),
        (pgcopy_decode.release, (i8, i8)),
        (pgcopy_encode.encode_rows, (line, line, grid, grid, states, u1)),
        (pgcopy_encode.fill_chunk, (i8, i8, i8, line, line, u1)),
        (
            pghash_kernels.hash_rows,
            (line, line, line, types.boolean[::1], grid, grid, states, line, types.uint64[::1]),
        ),
        (parquet_radix.order_of, (line, i8)),
        (parquet_radix.recode, (short, u1, short, short, line)),
        (parquet_radix.order_by_word, (short, types.int32[::1], types.uint32[::1], types.int32[::1])),
        (parquet_radix.places_of, (short, types.int32[::1], i8)),
        *((parquet_radix.gather, (kind[::1], types.uint32[::1], kind[::1])) for kind in gathered),
    ]
    for kernel, signature in shapes:
        kernel.compile(signature)
    return time.monotonic() - began


if __name__ == "__main__":
    print(f"kernels ready in {warm_up():.1f} s")
