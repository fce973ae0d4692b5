"""Back MongoDB up: every document of every user's database, and the oplog of the time that this took.

The dump is fuzzy: documents change while it is read. The oplog from before its beginning to its end makes it exact at
one cluster time, `ends`; from there the archived oplog (`ops/oplog.py`) leads to any later moment. Not in it: users and
roles, which whoever sets a server up makes anew.

Objects: `shapes.json` (options and indexes), `dump/<database>/<collection>.bson.…`, `oplog.bson.…`; `export` writes
them as the directory that `mongorestore --oplogReplay` reads.

Does not: restore (`restore_mongo`), prove (`prove_mongo`), or choose when (`plan/backups.py`).

Why no snapshot read: MongoDB keeps the past for five minutes, which a large dump outlasts, and the embedded server
only says that it reads one.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast
from uuid import uuid4

from pydantic import SecretStr

from tiering.errors import CommitConflict, StoreUnavailable, TieringError
from tiering.model_backup import Backup, BackupKind, StoredObject, StoreName
from tiering.ops.catalogue import Catalogue, new_backup_id
from tiering.stores import mongo_dump, mongo_layout
from tiering.stores.bson_batches import RawBatch, print_of
from tiering.stores.mongo_entries import Position, merged, parse, wall_of_raw
from tiering.stores.mongo_oplog import HOLD_SECONDS, Following, RawEntry
from tiering.stores.mongo_server import Incarnation, MongoServer, Shape

Progress = Callable[[int, str], None]
"""Told of bytes read and of what they belong to."""

_WAIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Dumped:
    """One collection in a backup, as its facts tell.

    Attributes:
        namespace: database and collection.
        count: of its documents when they were read.
        hash_sum: of their bytes, as `print_of` has it.
        size_bytes: of their bytes.
        objects: of the backup, that hold them.
        is_gone: it was dropped while it was read; what was read until then is left out.
    """

    namespace: str
    count: int
    hash_sum: int
    size_bytes: int
    objects: tuple[StoredObject, ...] = ()
    is_gone: bool = False


def backup(
    catalogue: Catalogue, url: SecretStr, source: str, now: datetime, progress: Progress = lambda *_: None
) -> Backup:
    """Take a full backup of all of a server's user databases.

    Args:
        catalogue: where it goes.
        url: of the server; the user may read every database and `local`.
        source: which of the servers it is, e.g. "main".
        now: when it is taken; the instant it ended is told by the oplog.
        progress: told of bytes and collections.

    Raises:
        LeaseHeld: another backup of this server is being taken.
        CommitConflict: a collection was renamed meanwhile; try again.
        PermanentError: the server has no oplog, or holds a time series in buckets.
    """
    backup_id = new_backup_id(BackupKind.FULL, now)
    with MongoServer(url, source) as server, catalogue.lease(StoreName.MONGODB, source, backup_id, now):
        incarnation = settled_incarnation(server, now)
        begins = server.oldest_transaction() or server.now()
        prefix = f"backups/{StoreName.MONGODB}/{source}/{backup_id}/"
        with Window(server, begins) as window:
            shapes, dumped = _dump(catalogue, server, prefix, progress)
            ends = server.now()
            entries = window.until(ends)
        if settled_incarnation(server, now) != incarnation:
            raise CommitConflict("back up", source, "the server was restored meanwhile", "Try again.")
        last = _check_window(source, entries, dumped)
        head = catalogue.vault.put(f"{prefix}shapes.json", mongo_layout.shapes_to_json(shapes))
        tail = _store_oplog(catalogue, f"{prefix}{mongo_layout.OPLOG}.", entries)
        progress(sum(part.size_bytes for part in tail), mongo_layout.OPLOG)
        facts: dict[str, object] = {
            **server.facts(),
            "collections": [_told(one) for one in dumped],
            "oplog_objects": len(tail),
            "oplog_entries": len(entries),
            "ends_wall": (last or now).isoformat(),
        }
        found = Backup(
            backup_id, StoreName.MONGODB, source, BackupKind.FULL, None, incarnation.name, now, max(last or now, now),
            str(begins), str(ends), (head, *(part for one in dumped for part in one.objects), *tail), facts,
        )  # fmt: skip
        catalogue.publish(found)
    return found


def settled_incarnation(server: MongoServer, now: datetime) -> Incarnation:
    """Return whose history a server has, naming it if nobody has yet.

    Raises:
        StoreUnavailable: a restore is writing to it.
    """
    found = server.incarnation() or server.first_incarnation(uuid4().hex[:16], now)
    if found.is_restoring:
        hint = "Wait for the restore. If it was given up, do it again: what is there is no state that ever was."
        raise StoreUnavailable("back up", server.name, "a restore is writing to the server", hint)
    return found


def collections_of(backup: Backup) -> list[Dumped]:
    """Read a backup's collections out of its facts."""
    by_name = {stored.name: stored for stored in backup.objects}
    told = cast("list[dict[str, Any]]", backup.facts["collections"])
    return [
        Dumped(
            str(one["namespace"]),
            int(one["count"]),
            int(one["hash_sum"], 16),
            int(one["size_bytes"]),
            tuple(by_name[backup.prefix + name] for name in one["objects"]),
        )
        for one in told
    ]


def oplog_of(backup: Backup) -> tuple[StoredObject, ...]:
    """Return the objects that hold the oplog of the backup's own time."""
    count = int(str(backup.facts["oplog_objects"]))
    return backup.objects[len(backup.objects) - count :]


def export(catalogue: Catalogue, backup: Backup, directory: Path, progress: Progress = lambda *_: None) -> None:
    """Write a backup as the directory that `mongorestore --oplogReplay` reads; files are the owner's alone.

    What the embedded server logs of updates MongoDB does not read: of its backups, restore with ours.

    Raises:
        CorruptCopy: an object is not what was stored; what is written by then is no backup.
    """
    shapes = mongo_layout.shapes_from_json(catalogue.vault.fetch(backup.objects[0]))
    by_namespace = {one.namespace: one for one in collections_of(backup)}
    for shape in shapes:
        folder = directory / mongo_layout.file_stem(shape.database)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stem = mongo_layout.file_stem(shape.name)
        _write_private(folder / f"{stem}.metadata.json", iter([mongo_layout.metadata(shape)]))
        if shape.kind == "collection":
            objects = by_namespace[shape.namespace].objects
            _write_private(folder / f"{stem}.bson", (catalogue.vault.fetch(part) for part in objects))
        progress(1, shape.namespace)
    _write_private(directory / mongo_layout.OPLOG, (catalogue.vault.fetch(part) for part in oplog_of(backup)))


class Window:
    """Collects the oplog in a thread, in memory, while something else is done."""

    def __init__(self, server: MongoServer, since: Position) -> None:
        self._following = Following(server, since)
        self._entries: list[bytes] = []
        self._goal: Position | None = None
        self._problem: TieringError | None = None
        self._is_given_up, self._is_settled = threading.Event(), threading.Event()
        self._since = since
        self._thread = threading.Thread(target=self._collect, name="oplog window", daemon=True)

    def __enter__(self) -> Window:
        """Begin, and wait a moment: what was being committed under an earlier position is to be in the dump."""
        self._thread.start()
        self._is_settled.wait(_WAIT_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_given_up.set()
        self._thread.join()
        self._following.close()

    def until(self, ends: Position) -> list[RawEntry]:
        """Return every entry from the beginning to `ends`, that one included.

        Raises:
            StoreUnavailable: the server did not give them.
        """
        self._goal = ends
        self._thread.join(_WAIT_SECONDS)
        if self._problem is not None:
            raise self._problem
        if self._thread.is_alive():
            raise StoreUnavailable("read oplog", str(ends), f"it was not reached in {_WAIT_SECONDS:.0f} s")
        return [one for one in merged([b"".join(self._entries)]) if self._since <= one[0] <= ends]

    def _collect(self) -> None:
        idle_since_goal, begun = 0, time.monotonic()
        try:
            while not self._is_given_up.is_set():
                goal = self._goal
                self._entries += [entry for _, entry in self._following.take(0.1)]
                if time.monotonic() - begun > HOLD_SECONDS:
                    self._is_settled.set()
                if goal is None:
                    continue
                idle_since_goal += self._following.has_all
                # Once more than is needed: a transaction may come a little behind what is later.
                if self._following.through > goal or idle_since_goal > 1:
                    return
        except TieringError as exc:
            self._problem = exc
        finally:
            self._is_settled.set()


@dataclass
class _DocumentStream:
    """A collection as a readable stream of BSON, counted and hashed while it is read."""

    batches: Iterator[RawBatch]
    told: Callable[[int], None]
    count: int = 0
    hash_sum: int = 0
    size_bytes: int = 0
    _now: memoryview = field(default_factory=lambda: memoryview(b""))

    def read(self, size: int = -1) -> bytes:
        while not self._now:
            batch = next(self.batches, None)
            if batch is None:
                return b""
            found = print_of([batch])
            self.count += found.row_count
            self.hash_sum = (self.hash_sum + found.columns[0].hash_sum) % 2**64
            self.size_bytes += batch.size_bytes
            self.told(batch.size_bytes)
            self._now = memoryview(batch.data)
        taken, self._now = self._now[:size], self._now[size:]
        return bytes(taken)


def _dump(
    catalogue: Catalogue, server: MongoServer, prefix: str, progress: Progress
) -> tuple[list[Shape], list[Dumped]]:
    shapes, dumped = [], []
    for shape in server.shapes():
        shapes.append(shape)
        if shape.kind == "collection":
            dumped.append(_dump_collection(catalogue, server, prefix, shape, progress))
    return shapes, dumped


def _dump_collection(
    catalogue: Catalogue, server: MongoServer, prefix: str, shape: Shape, progress: Progress
) -> Dumped:
    name = shape.namespace
    stream = _DocumentStream(mongo_dump.documents(server, name), lambda size: progress(size, name))
    path = f"{mongo_layout.file_stem(shape.database)}/{mongo_layout.file_stem(shape.name)}.bson."
    try:
        parts = catalogue.vault.put_stream(f"{prefix}dump/{path}", cast(IO[bytes], stream))
    except mongo_dump.Gone:
        return Dumped(name, 0, 0, 0, (), is_gone=True)
    return Dumped(name, stream.count, stream.hash_sum, stream.size_bytes, parts)


def _check_window(source: str, entries: list[RawEntry], dumped: list[Dumped]) -> datetime | None:
    """Refuse what entries cannot set right; return when the last one was written."""
    dropped: set[str] = set()
    for _, raw in entries:
        # Most entries are of documents; the name of a command is in the entry of one.
        if b"renameCollection\0" in raw or b"\x02drop" in raw or b"dropDatabase\0" in raw:
            entry = parse(raw)
            if entry.kind == "c" and b"renameCollection" in entry.change:
                cause = f"a collection was renamed while it was dumped ({entry.namespace})"
                raise CommitConflict("back up", source, cause, "Nothing was kept; try again.")
            if entry.kind == "c":
                dropped.add(entry.database)
    for one in dumped:
        if one.is_gone and one.namespace.partition(".")[0] not in dropped:
            raise CommitConflict("back up", source, f"{one.namespace} vanished while it was dumped", "Try again.")
    return wall_of_raw(entries[-1][1]) if entries else None


def _store_oplog(catalogue: Catalogue, prefix: str, entries: list[RawEntry]) -> tuple[StoredObject, ...]:
    return catalogue.vault.put_stream(prefix, io.BytesIO(b"".join(raw for _, raw in entries)))


def _told(one: Dumped) -> dict[str, object]:
    names = ["dump/" + part.name.partition("/dump/")[2] for part in one.objects]
    return {
        "namespace": one.namespace,
        "count": one.count,
        "hash_sum": f"{one.hash_sum:016x}",
        "size_bytes": one.size_bytes,
        "objects": names,
    }


def _write_private(path: Path, blocks: Iterator[bytes]) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        for block in blocks:
            file.write(block)
