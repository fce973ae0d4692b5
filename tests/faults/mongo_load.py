"""Random changes to a MongoDB server, one after another, and its whole state as bytes: the model for what is restored.

Every kind of thing that an oplog tells is among them: inserts, updates of fields, arrays and nested documents,
replacements, pipelines, removals, transactions over collections, collections dropped, made anew and renamed, indexes,
views, and a capped collection.
"""

from __future__ import annotations

import random
from contextlib import closing
from typing import Any

from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.errors import OperationFailure

from tiering.stores.bson_edit import ARRAY, DOCUMENT, array, items, join, split

DATABASES = ("trading", "journal")
COLLECTIONS = ("orders", "fills", "notes.deep")
IDS = 30
State = dict[str, tuple[tuple[bytes, ...], tuple[str, ...]]]
"""Namespace → its documents, sorted, and the names of its indexes; of a view, neither."""

_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)
_REFUSED = (2, 14, 28, 112)
"""Codes of changes that do not fit the document, or meet another writer: nothing was changed."""


class Load:
    """Changes of one writer, chosen by its dice.

    Attributes:
        renames: collections too; a backup refuses when that happens while it is taken.
    """

    def __init__(self, url: str, dice: random.Random) -> None:
        self.renames = True
        self._client: MongoClient[dict[str, Any]] = MongoClient(url)
        self._dice = dice
        self._count = 0

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def step(self) -> None:
        """Make one change, or one transaction of several."""
        self._count += 1
        names = ["put"] * 4 + ["set", "array", "unset", "pipeline"] * 3 + ["remove", "upsert"] * 2
        names += ["transaction", "transaction", "drop", "create", "index", "unindex", "rename", "capped", "view"]
        try:
            getattr(self, f"_{self._dice.choice(names)}")()
        except OperationFailure as exc:
            if exc.code not in _REFUSED:
                raise

    def _pick(self) -> Collection[dict[str, Any]]:
        return self._client[self._dice.choice(DATABASES)][self._dice.choice(COLLECTIONS)]

    def _id(self) -> Any:
        number = self._dice.randrange(IDS)
        return f"id {number}" if number % 5 == 0 else {"of": number} if number % 7 == 0 else number

    def _body(self) -> dict[str, Any]:
        values = [self._dice.randrange(9) for _ in range(self._dice.randrange(6))]
        return {"n": self._dice.random(), "list": values, "in": {"x": self._count, "deep": {"y": 1}}, "s": "é" * 3}

    def _put(self) -> None:
        self._pick().replace_one({"_id": self._id()}, self._body(), upsert=True)

    def _set(self) -> None:
        change = {"$set": {"in.deep.z": self._count, "in.x": 1, "b": 1, "a": self._count}, "$inc": {"n": 1}}
        self._pick().update_one({"_id": self._id()}, change)

    def _array(self) -> None:
        changes: list[dict[str, Any]] = [
            {"$push": {"list": self._count}},
            {"$pop": {"list": 1}},
            {"$pull": {"list": {"$gt": 4}}},
            {"$set": {"list.2": {"k": self._count}}},
            {"$addToSet": {"list": {"$each": [1, 2, self._count]}}},
            {"$push": {"list": {"$each": [7, 3], "$slice": -4}}},
        ]
        self._pick().update_one({"_id": self._id()}, self._dice.choice(changes))

    def _unset(self) -> None:
        changes: list[dict[str, Any]] = [
            {"$unset": {"in.deep": 1}},
            {"$unset": {"list.0": 1, "b": 1}},
            {"$rename": {"s": f"s{self._count % 3}"}},
            {"$set": {"in": {"k": self._count}}},
        ]
        self._pick().update_one({"_id": self._id()}, self._dice.choice(changes))

    def _pipeline(self) -> None:
        steps: list[dict[str, Any]] = [{"$set": {"sum": {"$add": ["$n", 1]}}}]
        if self._dice.random() < 0.5:
            steps.append({"$set": {"pad": "p" * 400}})
        self._pick().update_one({"_id": self._id(), "n": {"$exists": True}}, steps)

    def _upsert(self) -> None:
        self._pick().find_one_and_update({"_id": self._id()}, {"$set": {"up": self._count}}, upsert=True)

    def _remove(self) -> None:
        self._pick().delete_one({"_id": self._id()})

    def _transaction(self) -> None:
        with self._client.start_session() as session, session.start_transaction():
            for _ in range(self._dice.randrange(2, 5)):
                self._pick().update_one({"_id": self._id()}, {"$set": {"in": self._body()}}, True, session=session)
            self._pick().delete_one({"_id": self._id()}, session=session)

    def _drop(self) -> None:
        if self._dice.random() < 0.3:
            self._pick().drop()

    def _create(self) -> None:
        target = self._pick()
        if target.name not in target.database.list_collection_names():
            target.database.create_collection(target.name, validator={"_id": {"$exists": True}})

    def _index(self) -> None:
        self._pick().create_index([(self._dice.choice(["n", "a", "in.x"]), 1)])

    def _unindex(self) -> None:
        target = self._pick()
        names = sorted(set(target.index_information()) - {"_id_"})
        if names:
            target.drop_index(self._dice.choice(names))

    def _rename(self) -> None:
        target = self._pick()
        there = target.database.list_collection_names()
        free = [name for name in (*COLLECTIONS, "spare") if name not in there]
        if self.renames and target.name in there and free and self._dice.random() < 0.3:
            target.rename(self._dice.choice(free))

    def _capped(self) -> None:
        database = self._client[DATABASES[0]]
        if "recent" not in database.list_collection_names():
            database.create_collection("recent", capped=True, size=4096, max=3)
        database["recent"].insert_one({"_id": self._count})

    def _view(self) -> None:
        database = self._client[DATABASES[1]]
        if "seen" in database.list_collection_names():
            database.drop_collection("seen")
        else:
            database.create_collection("seen", viewOn=COLLECTIONS[0], pipeline=[{"$match": {"n": {"$gt": 0}}}])


def state_of(client: MongoClient[dict[str, Any]]) -> State:
    """Read everything that the users have, byte for byte.

    But for what the embedded server does not tell its oplog: that it made a collection which has no documents yet, and
    the order of fields that one update added.
    """
    found: State = {}
    for database in DATABASES:
        for listed in client[database].list_collections():
            name, documents, indexes = str(listed["name"]), [], ()
            if listed["type"] == "collection":
                source = client[database][name]
                with closing(source.with_options(codec_options=_RAW).find()) as cursor:
                    documents = sorted(_in_order(bytes(document.raw)) for document in cursor)
                indexes = tuple(sorted(source.index_information()))
            if documents or len(indexes) != 1:
                found[f"{database}.{name}"] = (tuple(documents), indexes)
    return found


def _in_order(document: bytes) -> bytes:
    """Sort a document's fields by their names, and those of documents in it."""
    return join({name: _value_in_order(value) for name, value in sorted(split(document).items())})


def _value_in_order(value: bytes) -> bytes:
    if value[0] == DOCUMENT:
        return value[:1] + _in_order(value[1:])
    return array([_value_in_order(item) for item in items(value)]) if value[0] == ARRAY else value


def differences(expected: State, found: State, *, with_indexes: bool = True) -> list[str]:
    """Say what is not as expected, a line for each collection."""
    wrong = []
    for namespace in sorted({*expected, *found}):
        left, right = expected.get(namespace), found.get(namespace)
        if left is None or right is None:
            wrong.append(f"{namespace} is {'missing' if right is None else 'there, and must not be'}")
        elif left[0] != right[0]:
            wrong.append(f"{namespace}: {len(set(left[0]) ^ set(right[0]))} documents differ")
        elif with_indexes and left[1] != right[1]:
            wrong.append(f"{namespace}: indexes {right[1]}, not {left[1]}")
    return wrong
