"""Parts of backups that several of them share: named by a keyed hash of their contents, stored once, never changed.

    chunks/<store>/<source>/<two digits>/<hash>[.<n>]

The hash needs the vault's key, so a name tells nobody what is in it. Parts that nothing rests on any more go with
retention (`ops/sweep_backups.py`), under the lease that backups of the same source take.

A part that was found spoiled is never counted on again: the next backup stores it anew, as `.<n>`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, cast

from tiering.errors import AlreadyExists, CorruptCopy, NotFound
from tiering.model_backup import Backup, BackupState, CatalogueEntry, StoredObject, StoreName
from tiering.ops.catalogue import Catalogue
from tiering.stores.cutting import cut, gear_of
from tiering.stores.vault import THREADS, Vault

CHUNKS = "chunks/"
_KEPT = 16
_AHEAD = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a chunk: `length` bytes from `begin` of the chunk of this number in a backup's table."""

    chunk: int
    begin: int
    length: int


def place_of(store: StoreName, source: str) -> str:
    """Return where the chunks of a source are."""
    return f"{CHUNKS}{store}/{source}/"


def spoiled(catalogue: Catalogue, entries: Iterable[CatalogueEntry]) -> set[str]:
    """Name the chunks that a check found spoiled."""
    failed = [entry.backup for entry in entries if entry.problem or entry.state is BackupState.FAILED]
    details = [cast("dict[str, object]", check["details"]) for one in failed for check in catalogue.checks(one)]
    return {str(name) for told in details for name in cast("list[str]", told.get("spoiled", []))}


def find_spoiled(vault: Vault, objects: Sequence[StoredObject]) -> tuple[int, dict[str, str]]:
    """Read objects back; return the bytes of the good ones, and what is wrong with the others by name."""
    problems: dict[str, str] = {}

    def read(stored: StoredObject) -> int:
        try:
            return len(vault.fetch(stored))
        except (CorruptCopy, NotFound) as exc:
            problems[stored.name] = str(exc)
            return 0

    with ThreadPoolExecutor(THREADS, "verify") as pool:
        return sum(pool.map(read, objects)), problems


class ChunkWriter:
    """Stores streams as chunks, those only that are not there yet. Call it under the source's lease."""

    def __init__(self, vault: Vault, place: str, avoid: set[str]) -> None:
        self._vault, self._place, self._avoid = vault, place, avoid
        self._key, self._gear = vault.derive(b"chunk names"), gear_of(vault.derive(b"chunk cuts"))
        self._there = {stat.key: stat.size for stat in vault.names(place)}
        self.table: list[StoredObject] = []
        self._ends: list[int] = []
        self.new_bytes = 0

    def put(self, blocks: Iterable[bytes]) -> None:
        """Append a stream to the table, several chunks at a time."""
        with ThreadPoolExecutor(THREADS, "chunks") as pool:
            waiting: deque[Future[StoredObject]] = deque()
            for chunk in cut(blocks, self._gear):
                waiting.append(pool.submit(self._put_one, chunk))
                if len(waiting) > THREADS:
                    self._add(waiting.popleft().result())
            for future in waiting:
                self._add(future.result())

    def locate(self, stretches: Sequence[tuple[int, int]]) -> list[tuple[Piece, ...]]:
        """Say where many stretches are, given in ascending order of their beginnings."""
        found: list[tuple[Piece, ...]] = []
        number = 0
        for begin, length in stretches:
            while number < len(self._ends) and self._ends[number] <= begin:
                number += 1
            found.append(self._pieces_from(number, begin, length))
        return found

    def _pieces_from(self, number: int, begin: int, length: int) -> tuple[Piece, ...]:
        found, end = [], begin + length
        while begin < end:
            at = self._ends[number] - self.table[number].size_bytes
            last = min(end, self._ends[number])
            found.append(Piece(number, begin - at, last - begin))
            begin, number = last, number + 1
        return tuple(found)

    def _add(self, stored: StoredObject) -> None:
        self.table.append(stored)
        self._ends.append((self._ends[-1] if self._ends else 0) + stored.size_bytes)

    def _put_one(self, chunk: bytes) -> StoredObject:
        digest = hashlib.blake2b(chunk, key=self._key, digest_size=32).hexdigest()
        name = base = f"{self._place}{digest[:2]}/{digest}"
        number = 0
        while name in self._avoid:
            number += 1
            name = f"{base}.{number}"
        if name not in self._there:
            try:
                stored = self._vault.put(name, chunk)
            except AlreadyExists:  # a lost answer, or the same chunk twice at once
                self._there[name] = next(self._vault.names(name)).size
            else:
                self._there[name] = stored.stored_bytes
                self.new_bytes += stored.stored_bytes
                return stored
        return StoredObject(name, len(chunk), self._there[name], hashlib.sha256(chunk).hexdigest())


@dataclass
class ChunkReader:
    """Reads pieces of a backup's chunks, a few chunks ahead; every chunk is checked before anything of it is given.

    Raises while reading: CorruptCopy, NotFound, KeyMissing.
    """

    vault: Vault
    table: Sequence[StoredObject]
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_AHEAD, "chunks"), init=False)
    _held: OrderedDict[int, Future[bytes]] = field(default_factory=OrderedDict, init=False)

    def __enter__(self) -> ChunkReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def read(self, pieces: Iterable[Piece]) -> Iterator[bytes]:
        """Yield the bytes of pieces, one after another."""
        for piece in pieces:
            chunk = self._chunk(piece.chunk)
            if piece.begin + piece.length > len(chunk):
                raise CorruptCopy("read", self.table[piece.chunk].name, "a piece of it ends behind it")
            yield chunk[piece.begin : piece.begin + piece.length]

    def _chunk(self, number: int) -> bytes:
        for wanted in range(number, min(number + _AHEAD, len(self.table))):
            if wanted not in self._held:
                self._held[wanted] = self._pool.submit(self.vault.fetch, self.table[wanted])
        self._held.move_to_end(number)
        while len(self._held) > _KEPT:
            self._held.popitem(last=False)
        return self._held[number].result()


def put_list(
    vault: Vault, prefix: str, table: Sequence[StoredObject], lines: Iterable[object]
) -> tuple[StoredObject, ...]:
    """Store the list of a backup: the names of its chunks, then a line of JSON for each thing in it."""
    body = io.BytesIO()
    body.write(json.dumps([stored.name for stored in table]).encode())
    for line in lines:
        body.write(b"\n" + json.dumps(line).encode())
    body.seek(0)
    return vault.put_stream(prefix, body)


def read_list(vault: Vault, backup: Backup) -> tuple[list[StoredObject], list[Any]]:
    """Read the table of chunks and the lines of a backup's list.

    Raises:
        CorruptCopy: it is not what was stored.
    """
    parts = backup.objects[: int(str(backup.facts["list_objects"]))]
    head, *lines = b"".join(vault.fetch(part) for part in parts).split(b"\n")
    try:
        names, told = json.loads(head), [json.loads(line) for line in lines]
    except ValueError as exc:
        raise CorruptCopy("read", backup.backup_id, f"its list is not understood: {exc}") from exc
    known = {stored.name: stored for stored in backup.objects}
    if missing := [name for name in names if name not in known]:
        raise CorruptCopy("read", backup.backup_id, f"its list names {missing[0]}, which it does not have")
    return [known[name] for name in names], told


def once(objects: Iterable[StoredObject]) -> tuple[StoredObject, ...]:
    """List each object once, in the order of first use."""
    return tuple({stored.name: stored for stored in objects}.values())
