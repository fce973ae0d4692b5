"""The heartbeat ledger in each kind of store: a table, a collection, streams, and an object now and then.

Does not: know what follows from what (plan/heartbeat.py), or when to write (ops/heartbeat.py).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, cast

from psycopg2.extras import execute_values
from pydantic import SecretStr
from pymongo import DESCENDING
from pymongo.errors import BulkWriteError
from redis import Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisClusterException, RedisError
from redis.retry import Retry

from tiering import errors
from tiering.model_drill import Beat
from tiering.stores.documents import Documents
from tiering.stores.documents_errors import is_known_id, mapped
from tiering.stores.ports import ObjectStore
from tiering.stores.postgres import Postgres, execute, fetch

COLLECTION = "tiering_heartbeat"
PREFIX = "heartbeat/"
KEY = "tiering:heartbeat:{%s}"
TAGS = ("03", "0b", "02", "0c", "01", "0d", "00", "0a")
"""Hash tags of eight slots, one in every eighth of the slots: a beat reaches every master of up to eight."""

STREAM_LENGTH = 900

_TABLE = """
CREATE SCHEMA IF NOT EXISTS tiering;
CREATE TABLE IF NOT EXISTS tiering.heartbeat (
    chain  text        NOT NULL,
    seq    bigint      NOT NULL,
    at     timestamptz NOT NULL,
    digest text        NOT NULL,
    PRIMARY KEY (chain, seq)
);
CREATE INDEX IF NOT EXISTS heartbeat_at ON tiering.heartbeat (at);
"""


class BeatLedger(Protocol):
    """The heartbeats of one store. Methods raise StoreUnavailable while it does not answer; trying again is allowed."""

    @property
    def name(self) -> str:
        """`<store>/<source>`, as the catalogue names it."""

    @property
    def every(self) -> timedelta:
        """How often it takes a beat."""

    def append(self, beats: Sequence[Beat]) -> None:
        """Store beats in order, safe from a crash of the server when it returns; one that is there already stays."""

    def read(self, limit: int) -> list[Beat]:
        """Return the newest beats, the oldest of them first."""

    def forget(self, before: datetime) -> None:
        """Drop beats older than this; they were only good for restores to their time."""


@dataclass(frozen=True)
class PostgresBeats:
    """The table `tiering.heartbeat`."""

    name: str
    database: Postgres
    every: timedelta = timedelta(seconds=1)

    def prepare(self) -> None:
        """Create the table; may be called again."""
        with self.database.transaction("prepare heartbeat", self.name) as connection:
            # Two who create the same thing at once collide in the catalogue.
            execute(connection, "SELECT pg_advisory_xact_lock(hashtext('tiering.heartbeat'))")
            execute(connection, _TABLE)

    def append(self, beats: Sequence[Beat]) -> None:
        """See `BeatLedger.append`."""
        rows = [(beat.chain, beat.seq, beat.at, beat.digest) for beat in beats]
        statement = "INSERT INTO tiering.heartbeat (chain, seq, at, digest) VALUES %s ON CONFLICT DO NOTHING"
        try:
            self._insert(statement, rows)
        except errors.NotFound:
            self.prepare()
            self._insert(statement, rows)

    def _insert(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        with (
            self.database.transaction("append heartbeat", self.name, lock_timeout_ms=2000) as connection,
            connection.cursor() as cursor,
        ):
            execute_values(cursor, statement, rows, page_size=1000)

    def read(self, limit: int) -> list[Beat]:
        """See `BeatLedger.read`."""
        statement = "SELECT chain, seq, at, digest FROM tiering.heartbeat ORDER BY at DESC, seq DESC LIMIT %s"
        with self.database.transaction("read heartbeat", self.name, read_only=True) as connection:
            try:
                rows = fetch(connection, "SELECT to_regclass('tiering.heartbeat')")
                rows = fetch(connection, statement, (limit,)) if rows[0][0] else []
            except errors.NotFound:
                rows = []
        return [Beat(chain, seq, at.astimezone(UTC), digest) for chain, seq, at, digest in reversed(rows)]

    def forget(self, before: datetime) -> None:
        """See `BeatLedger.forget`."""
        with self.database.transaction("forget heartbeats", self.name) as connection:
            execute(connection, "DELETE FROM tiering.heartbeat WHERE at < %s", (before,))


@dataclass(frozen=True)
class MongoBeats:
    """The collection `tiering_heartbeat`."""

    name: str
    database: Documents
    every: timedelta = timedelta(seconds=1)

    def append(self, beats: Sequence[Beat]) -> None:
        """See `BeatLedger.append`."""
        documents = [
            {"_id": f"{beat.chain}:{beat.seq:012d}", "chain": beat.chain, "seq": beat.seq, "at": beat.at}
            | {"digest": beat.digest}
            for beat in beats
        ]
        with mapped("append heartbeat", self.name):
            try:
                self.database._collection(COLLECTION).insert_many(documents, ordered=False)
            except BulkWriteError as exc:
                if not all(is_known_id(failed) for failed in (exc.details or {}).get("writeErrors", [{}])):
                    raise

    def read(self, limit: int) -> list[Beat]:
        """See `BeatLedger.read`."""
        with mapped("read heartbeat", self.name):
            order = [("at", DESCENDING), ("seq", DESCENDING)]
            found = list(self.database._collection(COLLECTION).find().sort(order).limit(limit))
        # Dates come as milliseconds, since the store of documents keeps those beyond Python's years.
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        beats = [(d["chain"], int(d["seq"]), epoch + timedelta(milliseconds=int(d["at"])), d["digest"]) for d in found]
        return [Beat(*beat) for beat in reversed(beats)]

    def forget(self, before: datetime) -> None:
        """See `BeatLedger.forget`."""
        with mapped("forget heartbeats", self.name):
            self.database._collection(COLLECTION).delete_many({"at": {"$lt": before}})


class RedisBeats:
    """Eight streams, spread over the slots, so that every master has one. What counts is what all of them have."""

    every = timedelta(seconds=1)

    def __init__(self, name: str, url: SecretStr) -> None:
        self.name = name
        self._url = url
        self._client: Any = None
        self._lock = threading.Lock()

    def append(self, beats: Sequence[Beat]) -> None:
        """See `BeatLedger.append`. As safe from a crash as the server's `appendfsync` makes it: a second."""
        with self._answering("append heartbeat"):
            for tag in TAGS:
                tail = self._connected().xrevrange(KEY % tag, count=1)
                last = _beat(tail[0][1]) if tail else None
                pipeline = self._connected().pipeline(transaction=False)
                for beat in beats:
                    if last is None or last.chain != beat.chain or last.seq < beat.seq:
                        fields = {"chain": beat.chain, "seq": beat.seq, "at": _ms(beat.at), "digest": beat.digest}
                        pipeline.xadd(KEY % tag, fields, maxlen=STREAM_LENGTH, approximate=True)
                pipeline.execute()

    def read(self, limit: int) -> list[Beat]:
        """See `BeatLedger.read`: only beats that every stream has."""
        found: list[list[Beat]] = []
        with self._answering("read heartbeat"):
            for tag in TAGS:
                entries = self._connected().xrevrange(KEY % tag, count=limit)
                found.append([_beat(fields) for _, fields in reversed(entries)])
        shared = set.intersection(*(set(beats) for beats in found))
        return [beat for beat in found[0] if beat in shared]

    def forget(self, before: datetime) -> None:
        """See `BeatLedger.forget`; the streams are short of themselves."""

    def close(self) -> None:
        """Close the connections; the object may be used again."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = connect_redis(self._url)
            return self._client

    @contextmanager
    def _answering(self, operation: str) -> Iterator[None]:
        try:
            with redis_mapped(operation, self.name):
                yield
        except errors.StoreUnavailable:
            self.close()  # the cluster may have another shape when it is back
            raise


@dataclass(frozen=True)
class ObjectBeats:
    """A small object a minute in a bucket of the platform."""

    name: str
    objects: ObjectStore
    every: timedelta = timedelta(minutes=1)

    def append(self, beats: Sequence[Beat]) -> None:
        """See `BeatLedger.append`: of several only the newest."""
        beat = beats[-1]
        data = json.dumps({"chain": beat.chain, "seq": beat.seq, "at": _ms(beat.at), "digest": beat.digest}).encode()
        key = f"{PREFIX}{beat.at:%Y%m%dT%H%M%S}-{beat.seq:012d}.json"
        try:
            self.objects.put_new(key, io.BytesIO(data), len(data), hashlib.sha256(data).hexdigest())
        except errors.AlreadyExists:
            return

    def read(self, limit: int) -> list[Beat]:
        """See `BeatLedger.read`. There are gaps: a minute between one and the next."""
        keys = [stat.key for stat in self.objects.list(PREFIX)][-limit:]
        found = []
        for key in keys:
            with self.objects.open(key) as file:
                found.append(_beat(json.loads(file.read())))
        return found

    def forget(self, before: datetime) -> None:
        """See `BeatLedger.forget`."""
        bound = f"{PREFIX}{before:%Y%m%dT%H%M%S}"
        self.objects.delete([stat.key for stat in self.objects.list(PREFIX) if stat.key < bound])


def connect_redis(url: SecretStr, timeout_seconds: float = 5.0) -> Any:
    """Connect to a cluster through any node, or to a server that is none."""
    given: dict[str, Any] = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
    given |= {"decode_responses": True, "retry": Retry(NoBackoff(), 0)}
    text = url.get_secret_value()
    try:
        return RedisCluster.from_url(text, **given)
    except RedisClusterException as exc:
        if "Cluster mode is not enabled" not in str(exc):
            raise
        return Redis.from_url(text, **given)


@contextmanager
def redis_mapped(operation: str, subject: str) -> Iterator[None]:
    """Turn the driver's exceptions into ours."""
    try:
        yield
    except AuthenticationError as exc:
        raise errors.AccessDenied(operation, subject, str(exc), "Check the password in TIERING_REDIS_URL.") from exc
    except (RedisError, RedisClusterException) as exc:
        cause = re.sub(r"\s+", " ", str(exc)) or type(exc).__name__
        raise errors.StoreUnavailable(operation, subject, cause, "Is Redis up? `tiering stack status`.") from exc
    except OSError as exc:
        raise errors.StoreUnavailable(operation, subject, type(exc).__name__, "Is Redis up?") from exc


def _beat(fields: Any) -> Beat:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=int(fields["at"]))
    return Beat(cast(str, fields["chain"]), int(fields["seq"]), at, cast(str, fields["digest"]))


def _ms(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
