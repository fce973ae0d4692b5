"""Documents on their way from one collection to another: read, judged and written at the same time.

The server works for one connection while we work on what another has sent: by turns, each would wait for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tiering.stores.bson_batches import RawBatch

T = TypeVar("T")


def ahead(batches: Iterable[RawBatch]) -> Generator[RawBatch, None, None]:
    """Read the next batch on a thread of its own while this one is in use; no more than one, for the memory."""
    source = iter(batches)
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        coming = pool.submit(next, source, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, source, None)
            yield batch


def behind(write: Callable[[RawBatch], T], batches: Iterable[RawBatch]) -> Iterator[T]:
    """Write every batch, in their order, on a thread of its own while the next one is got.

    Whatever ends this early, nothing is being written any more when it has ended: a copy is taken back, or made
    anew, only after that.

    Returns:
        What `write` says of each.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="write") as pool:
        under_way: Future[T] | None = None
        for batch in batches:
            before = under_way
            if before:
                before.result()  # one at a time: the next is not begun when this one failed
            under_way = pool.submit(write, batch)
            if before:
                yield before.result()
        if under_way:
            yield under_way.result()
