"""Batches of raw BSON documents: their bytes as the server gave them, identities, digests and fingerprints.

Does not: know a column (`bson_typed`) or a server (`documents`).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tiering.errors import CorruptCopy
from tiering.model import ColumnPrint, Fingerprint
from tiering.stores import bson_kernels as kernel

Array = np.ndarray[Any, np.dtype[Any]]
DIGEST_BYTES = 16


def _view(data: bytes | memoryview) -> Array:
    """Look at bytes as numbers; always read-only, so that each kernel is compiled once."""
    view = np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)
    view.flags.writeable = False
    return view


@dataclass(frozen=True, slots=True, eq=False)
class RawBatch:
    """Documents end to end: document `i` is `data[offsets[i]:offsets[i + 1]]`. Slices share the bytes."""

    data: bytes | memoryview
    offsets: Array

    def __len__(self) -> int:
        return int(self.offsets.size) - 1

    @property
    def size_bytes(self) -> int:
        """Bytes of the documents."""
        return int(self.offsets[-1] - self.offsets[0])

    @property
    def bytes_view(self) -> Array:
        """The bytes as numbers, not copied."""
        return _view(self.data)

    def document(self, index: int) -> bytes:
        """Copy one document out."""
        return bytes(self.data[int(self.offsets[index]) : int(self.offsets[index + 1])])

    def documents(self) -> list[bytes]:
        """Copy every document out."""
        ends = self.offsets.tolist()
        return [bytes(self.data[a:b]) for a, b in pairwise(ends)]

    def part(self, begin: int, end: int) -> RawBatch:
        """Take documents `[begin, end)` without copying them."""
        return RawBatch(self.data, self.offsets[begin : end + 1])

    def take(self, indices: Sequence[int] | Array) -> RawBatch:
        """Copy the chosen documents, in the order given."""
        chosen = np.asarray(indices, np.int64)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise IndexError(f"no such document among {len(self)}")
        ends = np.zeros(chosen.size + 1, np.int64)
        np.cumsum(self.offsets[chosen + 1] - self.offsets[chosen], out=ends[1:])
        out = np.empty(int(ends[-1]), np.uint8)
        kernel.gather_documents(self.bytes_view, self.offsets, chosen, out, ends)
        return RawBatch(out.data, ends)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> RawBatch:
        """Split documents that lie end to end, by the lengths they begin with.

        Raises:
            CorruptCopy: the lengths do not fill the bytes.
        """
        view = _view(data)
        count = int(kernel.count_documents(view))
        if count < 0:
            raise CorruptCopy("read documents", f"{len(data)} bytes", "they are not BSON documents end to end")
        offsets = np.zeros(count + 1, np.int64)
        kernel.split_documents(view, offsets)
        return cls(data, offsets)

    @classmethod
    def from_documents(cls, documents: Sequence[bytes]) -> RawBatch:
        """Join documents, e.g. the cells of a `_raw` column.

        Raises:
            CorruptCopy: one of them is not as long as it says.
        """
        offsets = np.zeros(len(documents) + 1, np.int64)
        np.cumsum([len(document) for document in documents], out=offsets[1:])
        batch = cls(b"".join(documents), offsets)
        if len(documents) and not kernel.check_documents(batch.bytes_view, offsets):
            raise CorruptCopy("read documents", f"{len(documents)} documents", "one is not as long as it says")
        return batch


@dataclass(frozen=True, slots=True)
class Cells:
    """Where the values at some paths are: path × document; `kinds` is BSON's type, 0 where there is no value."""

    kinds: Array
    starts: Array
    lengths: Array

    def element(self, batch: RawBatch, path: int, row: int) -> bytes:
        """Copy one value out, with its type in front."""
        first = int(self.starts[path, row])
        return bytes([self.kinds[path, row]]) + bytes(batch.data[first : first + int(self.lengths[path, row])])


def locate(batch: RawBatch, paths: Sequence[str]) -> Cells:
    """Find the values at dotted paths, through sub-documents but not arrays; the first of equal names counts.

    Raises:
        CorruptCopy: a document is malformed.
    """
    tree, names = _tree(paths)
    shape = (len(paths), len(batch))
    cells = Cells(np.empty(shape, np.uint8), np.empty(shape, np.int64), np.empty(shape, np.int64))
    if len(batch):
        bad = int(kernel.locate(batch.bytes_view, batch.offsets, tree, names, cells.kinds, cells.starts, cells.lengths))
        if bad >= 0:
            raise CorruptCopy("read documents", f"document {bad} of {len(batch)}", "its bytes are not BSON")
    for path in range(1, len(paths)):
        if (first := list(paths).index(paths[path])) < path:
            for rows in (cells.kinds, cells.starts, cells.lengths):
                rows[path] = rows[first]
    return cells


def _tree(paths: Sequence[str]) -> tuple[Array, Array]:
    """Lay the paths out for the kernel: one row per node, names end to end."""
    nodes: dict[tuple[bytes, ...], int] = {(): 0}
    rows, names = [[-1, -1, -1, 0, 0]], bytearray()
    for field, path in enumerate(paths):
        parts = tuple(path.encode().split(b"."))
        for depth in range(1, len(parts) + 1):
            if parts[:depth] in nodes:
                continue
            parent, node = nodes[parts[: depth - 1]], len(rows)
            names += parts[depth - 1]
            rows.append([-1, rows[parent][0], -1, len(names) - len(parts[depth - 1]), len(names)])
            rows[parent][0] = node
            nodes[parts[:depth]] = node
        if rows[nodes[parts]][2] < 0:
            rows[nodes[parts]][2] = field
    return np.array(rows, np.int64), np.frombuffer(bytes(names) or b"\0", np.uint8)


def _locate_ids(batch: RawBatch) -> Cells:
    cells = locate(batch, ["_id"])
    if len(batch) and not cells.kinds.all():
        raise CorruptCopy("read documents", f"{len(batch)} documents", "one has no _id")
    return cells


def ids(batch: RawBatch) -> list[bytes]:
    """Return each document's `_id`: the byte of its type, then its value as BSON has it.

    Raises:
        CorruptCopy: a document is malformed or has no `_id`.
    """
    cells = _locate_ids(batch)
    data, kinds = bytes(batch.data), cells.kinds[0].tobytes()
    starts, ends = cells.starts[0].tolist(), (cells.starts[0] + cells.lengths[0]).tolist()
    return [kinds[i : i + 1] + data[a:b] for i, (a, b) in enumerate(zip(starts, ends, strict=True))]


def only_ids(keys: Sequence[bytes]) -> RawBatch:
    """Make documents of nothing but these `_id`s, as `ids` gives them."""
    bodies = [key[:1] + b"_id\0" + key[1:] + b"\0" for key in keys]
    return RawBatch.from_bytes(b"".join(struct.pack("<i", len(body) + 4) + body for body in bodies))


def digests(batch: RawBatch) -> Array:
    """Return 128 bits of BLAKE2b of each document's bytes, as (n, 16) bytes.

    Why so many: a document is removed because its digest is that of the copy.
    """
    view, ends = memoryview(batch.data), batch.offsets.tolist()
    found = [hashlib.blake2b(view[a:b], digest_size=DIGEST_BYTES).digest() for a, b in pairwise(ends)]
    return np.frombuffer(b"".join(found), np.uint8).reshape(len(batch), DIGEST_BYTES)


def sum_of_ids(identities: Iterable[bytes]) -> int:
    """Add 128-bit hashes of `_id`s: equal numbers of them with equal sums are the same, in whatever order."""
    return sum(int.from_bytes(hashlib.blake2b(i, digest_size=DIGEST_BYTES).digest(), "little") for i in identities)


def print_of(batches: Iterable[RawBatch]) -> Fingerprint:
    """Fingerprint documents in whatever order: the sum of their hashes, each seeded by its `_id`.

    Raises:
        CorruptCopy: a document is malformed or has no `_id`.
    """
    count, total = 0, 0
    for batch in batches:
        if len(batch):
            cells = _locate_ids(batch)
            count += len(batch)
            total += int(
                kernel.hash_documents(
                    batch.bytes_view, batch.offsets, cells.kinds[0], cells.starts[0], cells.lengths[0]
                )
            )
    return Fingerprint(count, (ColumnPrint("_raw", count, total % 2**64),))
