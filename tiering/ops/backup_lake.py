"""Back the lake and the files up: what is in their buckets at a moment, every version, with the catalog's pointers.

Incremental by nature: an object version whose name, etag and size the newest usable inventory has is not read again;
the others go into chunks that inventories share. Pointers are read before the buckets are listed, so that everything
that they lead to is in the list.

Does not: copy what is in deep archive and was never copied before: it is listed as such, and a restore needs the
bucket itself for it. An erased person's rows are in older inventories until retention ends, as in every backup.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from typing import IO, Any, cast

from tiering.errors import CorruptCopy, InDeepArchive, NotFound
from tiering.model_backup import Backup, BackupKind, BackupState, CatalogueEntry, StoredObject, StoreName
from tiering.ops.catalogue import Catalogue, new_backup_id
from tiering.ops.chunks import ChunkWriter, Piece, once, place_of, put_list, read_list, spoiled
from tiering.stores.ports import ObjectStore
from tiering.stores.vault import Vault

Progress = Callable[[int, str], None]
LIST = "list."
BLOCK = 1 << 20
AT_ONCE = 4
IN_MEMORY = 16 << 20


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an object, as the inventory has it.

    Attributes:
        bucket: "lake" or "files": the part that the bucket plays, whatever its name is.
        key: of the object.
        version_id, etag, size: as the store said.
        modified_at: when it became visible, by the store's clock (ISO).
        is_latest: it is the one that is read.
        is_deletion: no bytes: from here on the object is deleted.
        sha256: of its bytes.
        problem: why it could not be copied; empty: it was.
        pieces: where the bytes are.
    """

    bucket: str
    key: str
    version_id: str
    etag: str
    size: int
    modified_at: str
    is_latest: bool
    is_deletion: bool
    sha256: str = ""
    problem: str = ""
    pieces: tuple[Piece, ...] = ()

    @property
    def identity(self) -> tuple[object, ...]:
        """By what it is known again."""
        return self.bucket, self.key, self.etag or self.modified_at, self.size


def backup(
    catalogue: Catalogue,
    buckets: Mapping[str, ObjectStore],
    pointers: Callable[[], Mapping[str, str]],
    now: datetime,
    *,
    source: str = "main",
    names: Mapping[str, str] | None = None,
    progress: Progress = lambda *_: None,
) -> Backup:
    """Take an inventory, and copy what the vault does not have.

    Args:
        catalogue: where it goes.
        buckets: "lake" and "files".
        pointers: reads the catalog's (`lake_walk.pointers`).
        now: the moment: nothing that a catalog of then names is missing from it.
        source: which of several.
        names: of the buckets, for a restore that has to make them.
        progress: told of bytes and objects.

    Raises:
        LeaseHeld: another one is being taken.
        StoreUnavailable: a bucket or the catalog does not answer.
    """
    backup_id = new_backup_id(BackupKind.FULL, now)
    prefix = f"backups/{StoreName.LAKE}/{source}/{backup_id}/"
    with catalogue.lease(StoreName.LAKE, source, backup_id, now):
        entries = catalogue.entries(StoreName.LAKE, source)
        avoid = spoiled(catalogue, entries)
        known = _known(catalogue.vault, entries, avoid)
        pointed = dict(pointers())
        listed = [one for role in sorted(buckets) for one in _list(role, buckets[role])]
        fresh = [one for one in listed if not one.is_deletion and one.identity not in known]
        writer = ChunkWriter(catalogue.vault, place_of(StoreName.LAKE, source), avoid)
        reading = _Reading(buckets, fresh, progress)
        writer.put(reading.blocks())
        table, versions = _assemble(listed, known, reading.done, writer)
        parts = put_list(catalogue.vault, f"{prefix}{LIST}", table, (astuple(one) for one in versions))
        problems = [one for one in versions if one.problem]
        facts: dict[str, object] = {
            "moment": now.isoformat(),
            "pointers": pointed,
            "buckets": dict(names or {}),
            "versions": len(versions),
            "bytes": sum(one.size for one in versions),
            "copied": len(reading.done),
            "new_bytes": writer.new_bytes,
            "uncopied": [f"{one.bucket}/{one.key}: {one.problem}" for one in problems[:20]],
            "uncopied_count": len(problems),
            "list_objects": len(parts),
        }
        found = Backup(
            backup_id, StoreName.LAKE, source, BackupKind.FULL, None, "lake", now, max(now, datetime.now(UTC)), "", "",
            parts + once(table), facts,
        )  # fmt: skip
        catalogue.publish(found)
    return found


def inventory(vault: Vault, backup: Backup) -> tuple[list[StoredObject], list[Version]]:
    """Read the table of chunks and the versions of an inventory.

    Raises:
        CorruptCopy: it is not what was stored.
    """
    table, lines = read_list(vault, backup)
    try:
        return table, [_version(*line) for line in lines]
    except (TypeError, IndexError) as exc:
        raise CorruptCopy("read", backup.backup_id, f"its list is not understood: {exc}") from exc


def _version(*line: Any) -> Version:
    *fields, pieces = line
    return replace(Version(*fields), pieces=tuple(Piece(*piece) for piece in pieces))


@dataclass(frozen=True, slots=True)
class _Kept:
    """A version that an older inventory has, with the chunks it is in."""

    version: Version
    chunks: tuple[StoredObject, ...]


def _known(vault: Vault, entries: list[CatalogueEntry], avoid: set[str]) -> dict[tuple[object, ...], _Kept]:
    """Read what the newest usable inventory has copies of."""
    usable = [entry.backup for entry in entries if entry.state is not BackupState.FAILED]
    if not usable:
        return {}
    table, versions = inventory(vault, usable[-1])
    found = {}
    for one in versions:
        chunks = tuple(table[piece.chunk] for piece in one.pieces)
        if one.sha256 and not any(chunk.name in avoid for chunk in chunks):
            found[one.identity] = _Kept(one, chunks)
    return found


def _list(role: str, bucket: ObjectStore) -> Iterator[Version]:
    for one in bucket.versions():
        at = one.modified_at.isoformat()
        yield Version(
            role, one.key, one.version_id, one.etag, one.size, at, one.is_latest, one.is_delete_marker
        )  # fmt: skip


class _Reading:
    """Reads versions as one stream, a few of them ahead.

    Attributes:
        done: by identity: where each begins in the stream, its hash, or why it could not be read.
    """

    def __init__(self, buckets: Mapping[str, ObjectStore], fresh: list[Version], progress: Progress) -> None:
        self._buckets, self._progress = buckets, progress
        self._fresh = list({one.identity: one for one in fresh}.values())
        self.done: dict[tuple[object, ...], tuple[int, str, str]] = {}
        self._at = 0

    def blocks(self) -> Iterator[bytes]:
        """Yield the stream."""
        with ThreadPoolExecutor(AT_ONCE, "lake") as pool:
            left, waiting = deque(self._fresh), deque[tuple[Version, Future[IO[bytes]]]]()
            while left or waiting:
                while left and len(waiting) < AT_ONCE:
                    one = left.popleft()
                    waiting.append((one, pool.submit(self._fetch, one)))
                version, future = waiting.popleft()
                try:
                    file = future.result()
                except (InDeepArchive, CorruptCopy, NotFound) as exc:
                    self.done[version.identity] = (self._at, "", exc.cause)
                    continue
                yield from self._stream(version, file)

    def _stream(self, version: Version, file: IO[bytes]) -> Iterator[bytes]:
        began, digest = self._at, hashlib.sha256()
        with file:
            while block := file.read(BLOCK):
                digest.update(block)
                self._at += len(block)
                self._progress(len(block), version.key)
                yield block
        self.done[version.identity] = (began, digest.hexdigest(), "")

    def _fetch(self, one: Version) -> IO[bytes]:
        file = cast(IO[bytes], tempfile.SpooledTemporaryFile(max_size=IN_MEMORY))  # noqa: SIM115 (closed when streamed)
        self._buckets[one.bucket].fetch_version(one.key, one.version_id, file)
        if file.tell() != one.size:
            raise CorruptCopy("copy", one.key, f"it has {file.tell()} bytes, its list says {one.size}")
        file.seek(0)
        return file


def _assemble(
    listed: list[Version],
    known: Mapping[tuple[object, ...], _Kept],
    done: Mapping[tuple[object, ...], tuple[int, str, str]],
    writer: ChunkWriter,
) -> tuple[list[StoredObject], list[Version]]:
    """Make one table of the new chunks and those of older inventories, and say of each version where it is."""
    table, numbers = list(writer.table), {stored.name: at for at, stored in enumerate(writer.table)}
    copied = [(identity, told) for identity, told in done.items() if told[1]]
    copied.sort(key=lambda pair: pair[1][0])
    sizes = {one.identity: one.size for one in listed}
    where = writer.locate([(told[0], sizes[identity]) for identity, told in copied])
    pieces = {identity: found for (identity, _), found in zip(copied, where, strict=True)}
    versions = []
    for one in listed:
        if one.is_deletion:
            versions.append(one)
        elif kept := known.get(one.identity):
            for chunk in kept.chunks:
                if chunk.name not in numbers:
                    numbers[chunk.name] = len(table)
                    table.append(chunk)
            pairs = zip(kept.version.pieces, kept.chunks, strict=True)
            moved = tuple(replace(piece, chunk=numbers[chunk.name]) for piece, chunk in pairs)
            versions.append(replace(one, sha256=kept.version.sha256, pieces=moved))
        else:
            _, sha256, problem = done[one.identity]
            versions.append(replace(one, sha256=sha256, problem=problem, pieces=pieces.get(one.identity, ())))
    return table, versions
