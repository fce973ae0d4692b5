"""Reach a whole MongoDB server: its databases, collections and their shapes, cluster time, and whose history it is.

Does not: read or write many documents (`mongo_dump`) or follow the oplog (`mongo_oplog`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

from bson import Timestamp
from bson.codec_options import CodecOptions, DatetimeConversion
from pydantic import SecretStr
from pymongo import MongoClient, ReadPreference, WriteConcern
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern

from tiering.errors import PermanentError
from tiering.stores.documents_errors import bad_url, mapped, no_url
from tiering.stores.mongo_entries import Position

INTERNAL = ("admin", "local", "config")
RECOVERY = "tiering_recovery"
"""The database that says whose history a server has; never in a backup."""

CODEC: CodecOptions[dict[str, Any]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)
_WRITE = WriteConcern("majority", wtimeout=60_000)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a collection is, apart from its documents.

    Attributes:
        database: it is in.
        name: of the collection.
        kind: "collection" or "view".
        options: as `create` takes them.
        indexes: without the one on `_id`.
        uuid: MongoDB's own name of it; empty if not told.
    """

    database: str
    name: str
    kind: str = "collection"
    options: Mapping[str, Any] = field(default_factory=dict)
    indexes: tuple[Mapping[str, Any], ...] = ()
    uuid: str = ""

    @property
    def namespace(self) -> str:
        """Return database and collection."""
        return f"{self.database}.{self.name}"


@dataclass(frozen=True, slots=True)
class Incarnation:
    """Whose history a server has: another one after every restore, since its positions are others."""

    name: str
    is_restoring: bool = False


class MongoServer:
    """One server or replica set, all of its databases. Reaches nothing until asked; safe to share between threads."""

    def __init__(self, url: SecretStr, name: str = "mongodb", patience_seconds: float = 5.0) -> None:
        self.name = name
        self._patience_ms = int(patience_seconds * 1000)
        self._url = url
        self._lock = threading.Lock()
        self._opened: MongoClient[dict[str, Any]] | None = None

    def __repr__(self) -> str:
        return f"MongoServer({self.name})"

    def __enter__(self) -> MongoServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def client(self) -> MongoClient[dict[str, Any]]:
        """Return the driver's client."""
        with self._lock:
            if not self._url.get_secret_value():
                raise no_url(self.name)
            if self._opened is None:
                try:
                    self._opened = MongoClient(
                        self._url.get_secret_value(),
                        connect=False,
                        appname="tiering backup",
                        serverSelectionTimeoutMS=self._patience_ms,
                        connectTimeoutMS=self._patience_ms,
                        socketTimeoutMS=600_000,
                    )
                except (PyMongoError, ValueError):
                    raise bad_url(self.name) from None
            return self._opened

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    def database(self, name: str) -> Database[dict[str, Any]]:
        """Return the driver's handle of a database; its writes wait for the majority."""
        return self.client.get_database(
            name, codec_options=CODEC, read_preference=ReadPreference.PRIMARY, write_concern=_WRITE
        )

    def collection(self, namespace: str) -> Collection[dict[str, Any]]:
        """Return the driver's handle of a collection."""
        database, name = parted(namespace)
        return self.database(database)[name]

    @cached_property
    def is_embedded(self) -> bool:
        """Say whether it is the server that the project brings."""
        return "embedded" in self.facts()

    def facts(self) -> dict[str, object]:
        """Return what a restore wants to know of the server: version and kind."""
        with mapped("ask", self.name):
            built = self.client.admin.command("buildInfo")
            hello = self.client.admin.command("hello")
        found: dict[str, object] = {"version": built["version"], "replica_set": str(hello.get("setName", ""))}
        if "secantusVersion" in built:
            found["embedded"] = built["secantusVersion"]
        return found

    def now(self) -> Position:
        """Return the newest position that a majority has, so that no election takes it back.

        Raises:
            PermanentError: the server is no replica set, and so has no oplog.
        """
        with mapped("ask", self.name):
            hello = self.client.admin.command("hello")
        newest = hello.get("lastWrite", {}).get("majorityOpTime", {}).get("ts")
        if newest is None:
            hint = "Start mongod with --replSet, a set of one is enough: a lone server keeps no oplog to recover from."
            raise PermanentError("back up", self.name, "the server is no replica set", hint)
        return position_of(newest)

    def oldest(self) -> Position:
        """Return the first position that the oplog still has."""
        with mapped("ask", self.name):
            found = self.oplog().find_one({}, {"ts": 1}, sort=[("$natural", 1)])
        return position_of(found["ts"]) if found else self.now()

    def oldest_transaction(self) -> Position | None:
        """Return where the oldest transaction that is still open began to be logged; None if there is none."""
        with mapped("ask", self.name):
            found = self.client.get_database("config")["transactions"].find_one(
                {"state": {"$in": ["prepared", "inProgress"]}, "startOpTime": {"$exists": True}},
                sort=[("startOpTime.ts", 1)],
            )
        return position_of(found["startOpTime"]["ts"]) if found else None

    def databases(self) -> list[str]:
        """List the users' databases."""
        with mapped("list databases", self.name):
            names = self.client.list_database_names()
        return sorted(name for name in names if name not in (*INTERNAL, RECOVERY))

    def shapes(self) -> Iterator[Shape]:
        """List the users' collections and views, with their options and indexes.

        Raises:
            PermanentError: one is a time series in buckets, which is not backed up.
        """
        for database in self.databases():
            with mapped("list collections", database):
                listed = list(self.database(database).list_collections())
            for one in sorted(listed, key=lambda one: str(one["name"])):
                if (shape := self._shape(database, one)) is not None:
                    yield shape

    def _shape(self, database: str, listed: Mapping[str, Any]) -> Shape | None:
        name, kind = str(listed["name"]), str(listed.get("type", "collection"))
        if name.startswith("system.") and not name.startswith(("system.js", "system.buckets")):
            return None
        if kind == "timeseries" or name.startswith("system.buckets"):
            hint = "Keep the series in an ordinary collection, or back the server up with its vendor's tool."
            raise PermanentError("back up", f"{database}.{name}", "a time series in buckets is not supported", hint)
        uuid = listed.get("info", {}).get("uuid")
        indexes: tuple[Mapping[str, Any], ...] = ()
        if kind == "collection":
            with mapped("list indexes", f"{database}.{name}"):
                found = [dict(index) for index in self.database(database)[name].list_indexes()]
            indexes = tuple(index for index in found if index["name"] != "_id_")
        options = dict(listed.get("options", {}))
        return Shape(database, name, kind, options, indexes, UUID(bytes=bytes(uuid)).hex if uuid else "")

    def incarnation(self) -> Incarnation | None:
        """Return whose history the server has; None if nobody has asked yet."""
        with mapped("ask", self.name):
            found = self.database(RECOVERY)["incarnation"].find_one({"_id": "current"})
        return Incarnation(str(found["name"]), bool(found.get("is_restoring"))) if found else None

    def name_incarnation(self, name: str, *, is_restoring: bool, note: str, now: datetime) -> None:
        """Write down whose history the server has from now on."""
        document = {"_id": "current", "name": name, "is_restoring": is_restoring, "note": note, "at": now}
        with mapped("name", self.name):
            self._recovery().replace_one({"_id": "current"}, document, upsert=True)

    def first_incarnation(self, name: str, now: datetime) -> Incarnation:
        """Return whose history the server has; the first who asks names it."""
        document = {"name": name, "is_restoring": False, "note": "first backup", "at": now}
        with mapped("name", self.name):
            self._recovery().update_one({"_id": "current"}, {"$setOnInsert": document}, upsert=True)
        found = self.incarnation()
        assert found is not None
        return found

    def _recovery(self) -> Collection[dict[str, Any]]:
        return self.database(RECOVERY)["incarnation"]

    def oplog(self) -> Collection[dict[str, Any]]:
        """Return the driver's handle of the oplog, as a majority has it."""
        return self.client.get_database("local", codec_options=CODEC)["oplog.rs"].with_options(
            read_concern=ReadConcern("majority")
        )


def parted(namespace: str) -> tuple[str, str]:
    """Part a namespace into database and collection, whose name may hold dots."""
    database, _, name = namespace.partition(".")
    return database, name


def sources_of(hot: SecretStr, warm: SecretStr | None) -> dict[str, SecretStr]:
    """Name the servers behind the two URLs: one, "main", if they lead to the same hosts."""
    places = [urlsplit(url.get_secret_value()).netloc.rpartition("@")[2] for url in (hot, warm or hot)]
    return {"main": hot} if places[0] == places[1] else {"hot": hot, "warm": warm or hot}


def with_database(url: SecretStr, database: str) -> SecretStr:
    """Put a database's name into a server's URL."""
    parts = urlsplit(url.get_secret_value())
    return SecretStr(urlunsplit(parts._replace(path=f"/{database}")))


def position_of(moment: Timestamp) -> Position:
    """Turn the driver's word for a position into ours."""
    return Position(moment.time, moment.inc)


def timestamp_of(position: Position) -> Timestamp:
    """Turn our word for a position into the driver's."""
    return Timestamp(position.seconds, position.increment)
