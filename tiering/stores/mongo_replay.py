"""Carry out entries of an oplog on a server, by its ordinary commands, and keep account of what must be there then.

Documents are changed here and written a thousand entries at a time, each once. Indexes are not built on the way but
at the end, by what the entries say of them: in between, documents may break a unique index that in the end they keep.

Does not: read the log or choose where to stop; that is `ops/restore_mongo.py`.

Why not the server's own `applyOps`: the embedded server has none, and MongoDB's is for its administrators only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import bson

from tiering.errors import CorruptCopy
from tiering.stores import bson_edit as edit
from tiering.stores import mongo_dump as dump
from tiering.stores.bson_batches import RawBatch, ids, print_of
from tiering.stores.bson_edit import Element
from tiering.stores.mongo_entries import Entry, Position, inner, parse
from tiering.stores.mongo_server import CODEC, INTERNAL, RECOVERY, MongoServer, Shape, parted

_CHUNK_ENTRIES, _CHUNK_BYTES = 1000, 16 << 20
_KNOWN_BYTES = 64 << 20
_INDEX_BUILDS_IGNORED = ("startIndexBuild", "abortIndexBuild", "dbCheck", "importCollection")
_SUM = 2**64


@dataclass(slots=True)
class Content:
    """What a collection is and must hold.

    Attributes:
        kind: "collection" or "view".
        options: as `create` takes them.
        indexes: by name, without the one on `_id`.
        count: of its documents.
        total: the sum of their hashes, as `print_of` has it.
        built: the indexes that are on the server already.
    """

    kind: str = "collection"
    options: dict[str, Any] = field(default_factory=dict)
    indexes: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    count: int = 0
    total: int = 0
    built: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, shape: Shape) -> Content:
        """Begin with what a collection is, and no documents."""
        return cls(shape.kind, dict(shape.options), {str(index["name"]): index for index in shape.indexes})

    @property
    def is_capped(self) -> bool:
        """Say whether the server itself removes the oldest documents."""
        return bool(self.options.get("capped"))


class Replay:
    """One server that is being brought forward, entry by entry.

    Attributes:
        contents: what must be there, by namespace.
        entries: carried out so far.
        at: the position of the last one.
        written_at: when it was written.
    """

    def __init__(self, server: MongoServer) -> None:
        self._server = server
        self.contents: dict[str, Content] = {}
        self.entries = 0
        self.at: Position | None = None
        self.written_at: datetime | None = None
        self._known: dict[tuple[str, Element], bytes] = {}
        self._known_bytes = 0
        self._waiting: list[Entry] = []
        self._waiting_bytes = 0
        self._transactions: dict[bytes, list[Entry]] = {}
        self._may_be_newer = False

    def begin(self, shape: Shape) -> None:
        """Make an empty collection; a view is made by `finish`, when what it looks at is there."""
        self.contents[shape.namespace] = Content.of(shape)
        if shape.kind == "collection":
            dump.create(self._server, shape.namespace, shape.options)
            if self._server.is_embedded:
                # It takes a millisecond for each document that is there when an index is built.
                self._build(shape.namespace, [index for index in shape.indexes if not _may_refuse(index)])

    def load(self, namespace: str, batch: RawBatch) -> list[Element]:
        """Insert documents of a dump; return the `_id`s that came a second time and were left out."""
        again = dump.insert(self._server, namespace, batch)
        if again:
            batch = _without(batch, again)
        documents = batch.documents()
        self._count(namespace, [], documents)
        if self._known_bytes + batch.size_bytes < _KNOWN_BYTES:
            for identity, document in zip(ids(batch), documents, strict=True):
                self._remember((namespace, identity), document)
        return again

    def apply(self, entries: Iterable[tuple[Position, bytes]], *, may_be_newer: bool) -> None:
        """Carry out raw entries in their order; they may be written only by `flush`.

        Args:
            entries: with their positions.
            may_be_newer: documents may already be as later entries leave them, as in a dump.

        Raises:
            CorruptCopy: an entry does not fit what is there, which shows that one before it is missing.
        """
        if may_be_newer != self._may_be_newer:
            self.flush()
            self._may_be_newer = may_be_newer
        for position, raw in entries:
            entry = parse(raw)
            self._enter(entry, len(raw))
            self.entries += 1
            self.at, self.written_at = position, entry.wall or self.written_at

    def flush(self) -> None:
        """Write what was carried out."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        by_namespace: dict[str, list[Entry]] = {}
        for entry in waiting:
            by_namespace.setdefault(entry.namespace, []).append(entry)
        for namespace, entries in by_namespace.items():
            self._write(namespace, entries)

    def finish(self) -> None:
        """Build indexes and views, as they were at the last entry."""
        self.flush()
        for namespace, content in self.contents.items():
            if content.kind == "collection":
                self._build(namespace, [i for name, i in content.indexes.items() if name not in content.built])
                dump.set_late_options(self._server, namespace, content.options)
        for namespace, content in self.contents.items():
            if content.kind == "view":
                dump.create(self._server, namespace, content.options)

    def differences(self) -> list[str]:
        """Read everything back and say where the server has something else than it must; empty if nowhere.

        Of capped collections nothing is said: the server removes from them by itself.
        """
        found = []
        for namespace, content in sorted(self.contents.items()):
            if content.kind == "collection" and not content.is_capped:
                have = print_of(dump.documents(self._server, namespace))
                if (have.row_count, have.columns[0].hash_sum) != (content.count, content.total):
                    found.append(f"{namespace}: {have.row_count} documents of {content.count}, or other bytes")
        return found

    def _enter(self, entry: Entry, size: int) -> None:
        if entry.kind == "c" and (entry.namespace == "admin.$cmd" or entry.database not in (*INTERNAL, RECOVERY)):
            self._command(entry)
        elif entry.kind == "n" or entry.database in (*INTERNAL, RECOVERY):
            return
        elif entry.namespace.endswith(".system.views"):
            self._view(entry)
        elif entry.kind in ("i", "u", "d"):
            self._waiting.append(entry)
            self._waiting_bytes += size
            if len(self._waiting) >= _CHUNK_ENTRIES or self._waiting_bytes >= _CHUNK_BYTES:
                self.flush()
        else:
            raise CorruptCopy("replay", str(entry.position), f"an entry of the unknown kind {entry.kind!r}")

    def _command(self, entry: Entry) -> None:
        change = entry.change
        name = next(iter(change), b"").decode()
        if name in ("applyOps", "commitTransaction", "abortTransaction"):
            self._transaction(entry, name)
            return
        if name in _INDEX_BUILDS_IGNORED:
            return
        self.flush()
        words = bson.decode(entry.document, CODEC)
        match name:
            case "create":
                self._create(f"{entry.database}.{words['create']}", words)
            case "drop":
                self._drop(f"{entry.database}.{words['drop']}")
            case "dropDatabase":
                for namespace in [n for n in self.contents if n.startswith(f"{entry.database}.")]:
                    self._drop(namespace)
            case "renameCollection":
                self._rename(str(words["renameCollection"]), str(words["to"]))
            case "createIndexes" | "commitIndexBuild":
                self._index(f"{entry.database}.{words[name]}", words)
            case "dropIndexes" | "deleteIndexes":
                self._unindex(f"{entry.database}.{words[name]}", words.get("index", "*"))
            case "collMod":
                self._modify(f"{entry.database}.{words['collMod']}", words)
            case _:
                raise CorruptCopy("replay", str(entry.position), f"a command that is not known here: {name}")

    def _transaction(self, entry: Entry, name: str) -> None:
        """Carry a transaction out where it is committed; MongoDB logs large ones in pieces, prepared ones in two."""
        before = self._transactions.pop(entry.transaction, []) if entry.transaction else []
        if name == "abortTransaction":
            return
        if entry.transaction and entry.continues and not before:
            raise CorruptCopy("replay", str(entry.position), "the beginning of a transaction is missing")
        if name == "applyOps" and (b"partialTxn" in entry.change or b"prepare" in entry.change):
            self._transactions[entry.transaction] = [*before, entry]
            return
        for part in [*before, *([entry] if name == "applyOps" else [])]:
            for one in inner(part, part.change[b"applyOps"]):
                self._enter(one, len(one.document))

    def _content(self, namespace: str) -> Content:
        return self.contents.setdefault(namespace, Content())

    def _create(self, namespace: str, words: Mapping[str, Any]) -> None:
        if namespace in self.contents:
            if not self._may_be_newer:
                raise CorruptCopy("replay", namespace, "it was made, and is there")
            return
        options = {key: value for key, value in words.items() if key not in ("create", "idIndex", "viewPipeline")}
        if "viewOn" in options:
            options["pipeline"] = words.get("viewPipeline", words.get("pipeline", []))
        shape = Shape(*parted(namespace), "view" if "viewOn" in options else "collection", options)
        self.begin(shape)

    def _view(self, entry: Entry) -> None:
        """Follow MongoDB's way to log views: as documents of a collection of theirs."""
        self.flush()
        document = bson.decode(entry.document, CODEC)
        namespace = str(document.get("_id", "")) or edit.text(entry.document_id)
        self.contents.pop(namespace, None)
        if entry.kind != "d":
            options = {key: value for key, value in document.items() if key != "_id"}
            self.contents[namespace] = Content("view", options)

    def _drop(self, namespace: str) -> None:
        content = self.contents.pop(namespace, None)
        if content is not None and content.kind == "collection":
            dump.drop(self._server, namespace)
        self._forget(namespace)

    def _rename(self, old: str, new: str) -> None:
        if old not in self.contents:
            raise CorruptCopy("replay", old, "it was renamed, and is not there")
        self._forget(old)
        self._forget(new)
        dump.rename(self._server, old, new)
        self.contents[new] = self.contents.pop(old)

    def _index(self, namespace: str, words: Mapping[str, Any]) -> None:
        flat = {key: value for key, value in words.items() if key not in ("createIndexes", "indexes")}
        for spec in words.get("indexes", [flat]):
            # Made by what creates an index on a collection that is not there yet.
            self._exist(namespace).indexes[str(spec["name"])] = dict(spec)

    def _build(self, namespace: str, indexes: list[Mapping[str, Any]]) -> None:
        dump.build(self._server, namespace, indexes)
        self.contents[namespace].built |= {str(index["name"]) for index in indexes}

    def _unindex(self, namespace: str, told: object) -> None:
        content = self._content(namespace)
        for name in list(content.indexes) if told == "*" else [str(told)]:
            content.indexes.pop(name, None)
            if name in content.built:
                dump.unbuild(self._server, namespace, name)
                content.built.discard(name)

    def _modify(self, namespace: str, words: Mapping[str, Any]) -> None:
        content = self._content(namespace)
        for key, value in words.items():
            if key == "index":
                found = content.indexes.get(str(value.get("name")))
                if found is not None:
                    changed = {k: v for k, v in value.items() if k != "name"}
                    self._unindex(namespace, value["name"])
                    content.indexes[str(value["name"])] = {**found, **changed}
            elif key != "collMod":
                content.options[key] = value

    def _exist(self, namespace: str) -> Content:
        """Return a collection's content, making the collection as its first document or index does."""
        if namespace not in self.contents:
            self.begin(Shape(*parted(namespace)))
        return self.contents[namespace]

    def _write(self, namespace: str, entries: list[Entry]) -> None:
        """Change documents as a chunk of entries says, and write each of them once."""
        content = self._exist(namespace)
        before = self._before(namespace, entries)
        now: dict[Element, bytes | None] = dict(before)
        for entry in entries:
            now[entry.document_id] = self._changed(content, entry, now[entry.document_id])
        # Documents that are new, in the order of the log: it becomes their natural order.
        fresh = [doc for identity, doc in now.items() if doc is not None and before[identity] is None]
        changed = {i: doc for i, doc in now.items() if doc is not None and before[i] not in (None, doc)}
        removed = [i for i, doc in now.items() if doc is None and before[i] is not None]
        if fresh:
            again = dump.insert(self._server, namespace, RawBatch.from_documents(fresh))
            if again:
                raise CorruptCopy("replay", namespace, f"{len(again)} documents are there that the log says are new")
        if changed or removed:
            dump.write(self._server, namespace, changed, removed)
        gone = [doc for i, doc in before.items() if doc is not None and (i in changed or now[i] is None)]
        self._count(namespace, gone, [*fresh, *changed.values()])
        for identity, document in now.items():
            self._remember((namespace, identity), document)

    def _before(self, namespace: str, entries: list[Entry]) -> dict[Element, bytes | None]:
        """Find what the documents of a chunk are now. What the log inserts is not looked for, but in a dump."""
        wanted: dict[Element, bytes | None] = {}
        unknown = []
        for entry in entries:
            identity = entry.document_id
            if identity not in wanted:
                wanted[identity] = self._known.get((namespace, identity))
                if wanted[identity] is None and (self._may_be_newer or entry.kind != "i"):
                    unknown.append(identity)
        return wanted | dict(dump.find(self._server, namespace, unknown)) if unknown else wanted

    def _changed(self, content: Content, entry: Entry, document: bytes | None) -> bytes | None:
        if entry.kind == "i":
            if document is not None and not self._may_be_newer:
                raise self._unfit(entry, "it is inserted, and is there")
            return entry.document
        if document is None:
            # A capped collection removes its oldest by itself.
            if not self._may_be_newer and not (content.is_capped and entry.kind == "d"):
                raise self._unfit(entry, "it is changed, and is not there")
            return None
        if entry.kind == "d":
            return None
        return edit.apply_update(document, entry.change, may_be_newer=self._may_be_newer)

    def _unfit(self, entry: Entry, text: str) -> CorruptCopy:
        hint = "An entry before it is missing in the log, or the log is of another history. Nothing more was replayed."
        return CorruptCopy("replay", f"{entry.namespace} at {entry.position}", text, hint)

    def _count(self, namespace: str, gone: list[bytes], come: list[bytes]) -> None:
        content = self.contents[namespace]
        for documents, sign in ((gone, -1), (come, 1)):
            if documents:
                found = print_of([RawBatch.from_documents(documents)])
                content.count += sign * found.row_count
                content.total = (content.total + sign * found.columns[0].hash_sum) % _SUM

    def _remember(self, key: tuple[str, Element], document: bytes | None) -> None:
        old = self._known.pop(key, None)
        self._known_bytes -= len(old or b"")
        if document is not None:
            self._known[key] = document
            self._known_bytes += len(document)
        while self._known_bytes > _KNOWN_BYTES:
            self._known_bytes -= len(self._known.pop(next(iter(self._known))))

    def _forget(self, namespace: str) -> None:
        for key in [key for key in self._known if key[0] == namespace]:
            self._known_bytes -= len(self._known.pop(key))


def _may_refuse(index: Mapping[str, Any]) -> bool:
    """Say whether an index would refuse or remove documents while they are loaded."""
    return bool(index.get("unique")) or "expireAfterSeconds" in index


def _without(batch: RawBatch, again: list[Element]) -> RawBatch:
    """Leave out what was not inserted: of documents that came twice, the server has the one that came first."""
    from tiering.stores.bson_batches import ids

    left: dict[Element, int] = {}
    for identity in again:
        left[identity] = left.get(identity, 0) + 1
    kept: list[int] = []
    for index, identity in reversed(list(enumerate(ids(batch)))):
        if left.get(identity):
            left[identity] -= 1
        else:
            kept.append(index)
    return batch.take(kept[::-1])
