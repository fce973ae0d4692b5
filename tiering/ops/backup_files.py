"""Back directories up: application data and configuration, as encrypted snapshots that share what they have in common.

A snapshot is a list of files and the chunks they are cut from: read as one stream, cut where its contents say so. Many
small files make few objects, and a day that changed little stores little. Everything is read every time: a file that
the disk spoiled without a new date is a change, too.

The owner asks for gzip; the vault compresses each chunk with zstd instead: smaller and several times faster, and no
date in its header makes equal contents differ.

Does not: follow links, or hold a tree still. A file that changed while it was read is read again; one that never
stood still is kept as `torn` and named in the backup's facts, or refused (`strict`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from tiering.errors import CommitConflict, CorruptCopy
from tiering.model_backup import Backup, BackupKind, BackupState, StoredObject, StoreName
from tiering.ops.catalogue import Catalogue, new_backup_id
from tiering.ops.chunks import ChunkWriter, Piece, once, place_of, put_list, read_list, spoiled
from tiering.stores.file_tree import DIRECTORY, FILE, Node, SteadyFile, walk
from tiering.stores.vault import Vault

Progress = Callable[[int, str], None]
"""Told of bytes read and of the file they are from."""

LIST = "list."
NAMED_MAX = 20


@dataclass(frozen=True, slots=True)
class Sources:
    """What is backed up together.

    Attributes:
        trees: directories or single files, by the path that they have in the snapshot.
        texts: contents made for the backup, by path.
    """

    trees: Mapping[str, Path] = field(default_factory=dict)
    texts: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listed:
    """One file, directory or link of a snapshot, and where its bytes are."""

    node: Node
    pieces: tuple[Piece, ...] = ()


def backup(
    catalogue: Catalogue,
    store: StoreName,
    sources: Sources,
    now: datetime,
    *,
    source: str = "main",
    only_if_changed: bool = False,
    strict: bool = False,
    progress: Progress = lambda *_: None,
) -> Backup | None:
    """Take a snapshot.

    Args:
        catalogue: where it goes.
        store: APPLICATION_DATA or CONFIGURATION.
        sources: what of.
        now: when.
        source: which of several.
        only_if_changed: take none that is equal to the newest one.
        strict: refuse files that do not stand still.
        progress: told of bytes and files.

    Returns:
        The backup; None where nothing changed.

    Raises:
        LeaseHeld: another one is being taken.
        NotFound: a directory is not there.
        AccessDenied: a file may not be read.
        CommitConflict: a file never stood still, and `strict`.
    """
    if only_if_changed and _is_same(catalogue, store, source, sources):
        return None
    backup_id = new_backup_id(BackupKind.FULL, now)
    prefix = f"backups/{store}/{source}/{backup_id}/"
    with catalogue.lease(store, source, backup_id, now):
        entries = catalogue.entries(store, source)
        writer = ChunkWriter(catalogue.vault, place_of(store, source), spoiled(catalogue, entries))
        reading = Reading(sources, progress)
        writer.put(reading.blocks())
        if strict and reading.torn:
            hint = "Try again, when nobody writes there."
            raise CommitConflict("back up", f"{store}/{source}", f"{reading.torn[0]} changes all the time", hint)
        found = writer.locate([(begin, node.size) for begin, node in reading.nodes])
        lines = (
            [asdict(node), [astuple(piece) for piece in pieces]]
            for (_, node), pieces in zip(reading.nodes, found, strict=True)
        )
        parts = put_list(catalogue.vault, f"{prefix}{LIST}", writer.table, lines)
        facts: dict[str, object] = {
            "files": sum(node.kind == FILE for _, node in reading.nodes),
            "bytes": sum(node.size for _, node in reading.nodes),
            "new_bytes": writer.new_bytes,
            "digest": digest_of(node for _, node in reading.nodes),
            "torn": reading.torn[:NAMED_MAX],
            "torn_count": len(reading.torn),
            "skipped": reading.skipped,
            "list_objects": len(parts),
        }
        taken = Backup(
            backup_id, store, source, BackupKind.FULL, None, "files", now, max(now, datetime.now(UTC)), "", "",
            parts + once(writer.table), facts,
        )  # fmt: skip
        catalogue.publish(taken)
    return taken


def _is_same(catalogue: Catalogue, store: StoreName, source: str, sources: Sources) -> bool:
    entries = [entry for entry in catalogue.entries(store, source) if entry.state is not BackupState.FAILED]
    if not entries:
        return False
    reading = Reading(sources)
    for _ in reading.blocks():
        pass
    return digest_of(node for _, node in reading.nodes) == entries[-1].backup.facts["digest"]


class Reading:
    """Reads sources as one stream.

    Attributes:
        nodes: what was read, with the beginning of its bytes in the stream.
        torn: files that never stood still.
        skipped: how many devices, sockets and pipes there were.
    """

    def __init__(self, sources: Sources, progress: Progress = lambda *_: None) -> None:
        self._sources, self._progress = sources, progress
        self.nodes: list[tuple[int, Node]] = []
        self.torn: list[str] = []
        self.skipped = 0
        self._done = 0
        self._made: set[str] = set()

    def blocks(self) -> Iterator[bytes]:
        """Yield the stream; the rest is known when it has ended."""
        self._make_parents("x")
        for path, root in sorted(self._sources.trees.items()):
            self._make_parents(path)
            if root.is_file():
                yield from self._file(root, _plain(path, root.stat().st_size))
                continue
            for found in walk(root):
                if found is None:
                    self.skipped += 1
                    continue
                place, node = found
                here = replace(node, path="/".join(part for part in (path, node.path) if part))
                if node.kind == FILE:
                    yield from self._file(place, here)
                elif here.path not in self._made:
                    self._made.add(here.path)
                    self.nodes.append((self._done, here))
        for path, text in sorted(self._sources.texts.items()):
            self._make_parents(path)
            self.nodes.append((self._done, replace(_plain(path, len(text)), sha256=hashlib.sha256(text).hexdigest())))
            self._done += len(text)
            yield text

    def _file(self, place: Path, node: Node) -> Iterator[bytes]:
        began = self._done
        file = SteadyFile(place, node)
        for block in file.blocks():
            self._done += len(block)
            self._progress(len(block), node.path)
            yield block
        if file.is_gone:
            return
        if file.node.is_torn:
            self.torn.append(node.path)
        self.nodes.append((began + file.begin, file.node))

    def _make_parents(self, path: str) -> None:
        """List the directories above a path that no tree brings with it."""
        parts = path.split("/")[:-1]
        for parent in ["", *("/".join(parts[: end + 1]) for end in range(len(parts)))]:
            if parent not in self._made and parent not in self._sources.trees:
                self._made.add(parent)
                self.nodes.append((self._done, Node(parent, DIRECTORY, 0o700, 0, 0, 0)))


def _plain(path: str, size: int) -> Node:
    return Node(path, FILE, 0o600, 0, 0, 0, size)


def digest_of(nodes: Iterable[Node]) -> str:
    """Sum a tree up: paths, kinds, permissions, contents and links; not times and owners."""
    told = sorted((n.path, n.kind, n.mode & 0o777 if n.kind != "link" else 0, n.sha256, n.target) for n in nodes)
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def list_of(vault: Vault, backup: Backup) -> tuple[list[StoredObject], list[Listed]]:
    """Read the table of chunks and the files of a snapshot.

    Raises:
        CorruptCopy: it is not what was stored.
    """
    table, lines = read_list(vault, backup)
    try:
        return table, [Listed(Node(**node), tuple(Piece(*one) for one in pieces)) for node, pieces in lines]
    except (ValueError, TypeError) as exc:
        raise CorruptCopy("read", backup.backup_id, f"its list is not understood: {exc}") from exc
