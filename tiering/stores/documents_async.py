"""Reach MongoDB from an event loop: pymongo's AsyncMongoClient, time limits, a breaker.

Does not: know a dataset or a tier; move anything (stores/documents.py does, in raw bytes).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pymongo
from bson.codec_options import CodecOptions
from pydantic import SecretStr
from pymongo import AsyncMongoClient, InsertOne, ReplaceOne
from pymongo.errors import BulkWriteError, PyMongoError

from tiering import errors
from tiering.stores.breaker import Breaker
from tiering.stores.documents_errors import DUPLICATE_KEY, bad_url, no_url, translate

_CODEC: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True)
_UP = "Is the server up? `tiering stack status`."


class AsyncDocuments:
    """One database of documents. Opens no connection until asked; belongs to one event loop."""

    def __init__(self, url: SecretStr | None, name: str) -> None:
        self.name = name
        self.breaker = Breaker()
        self._url = url
        self._client: AsyncMongoClient[dict[str, Any]] | None = None

    def __repr__(self) -> str:
        return f"AsyncDocuments({self.name})"

    def _collection(self, name: str) -> Any:
        if self._url is None or not self._url.get_secret_value():
            raise no_url(self.name)
        try:
            if self._client is None:
                self._client = AsyncMongoClient(
                    self._url.get_secret_value(),
                    appname="tiering-access",
                    serverSelectionTimeoutMS=2000,
                    connectTimeoutMS=2000,
                    tz_aware=True,
                )
            return self._client.get_default_database(codec_options=_CODEC)[name]
        except (PyMongoError, ValueError):
            raise bad_url(self.name) from None

    async def find(
        self,
        collection: str,
        where: Mapping[str, Any],
        *,
        seconds: float,
        sort: Sequence[tuple[str, int]] = (),
        limit: int = 0,
        fields: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """Read documents.

        Raises:
            TimedOut: no answer in time.
            StoreUnavailable: the server is away, or was a moment ago.
        """

        async def work() -> list[dict[str, Any]]:
            cursor = self._collection(collection).find(where, dict.fromkeys(fields, 1) or None)
            if sort:
                cursor = cursor.sort(list(sort))
            return list(await cursor.limit(limit).to_list())

        return list(await self._run(work, seconds, "read", collection))

    async def aggregate(
        self, collection: str, pipeline: Sequence[Mapping[str, Any]], *, seconds: float
    ) -> list[dict[str, Any]]:
        """Run an aggregation; raises as `find`."""

        async def work() -> list[dict[str, Any]]:
            cursor = await self._collection(collection).aggregate(list(pipeline))
            return list(await cursor.to_list())

        return list(await self._run(work, seconds, "read", collection))

    async def put(
        self, collection: str, documents: Sequence[Mapping[str, Any]], *, seconds: float, may_exist: bool
    ) -> None:
        """Write documents by their `_id`s, so that writing them twice is writing them once.

        Args:
            collection: its name.
            documents: each with an `_id`.
            seconds: to wait.
            may_exist: replace those that are there; else they are inserted, and replaced only where one is there.
        """

        async def work() -> None:
            target = self._collection(collection)
            if not may_exist:
                try:
                    await target.bulk_write([InsertOne(dict(one)) for one in documents], ordered=False)
                    return
                except BulkWriteError as exc:
                    codes = {problem.get("code") for problem in exc.details.get("writeErrors", ())}
                    if codes != {DUPLICATE_KEY}:
                        raise
            await target.bulk_write([ReplaceOne({"_id": one["_id"]}, dict(one), upsert=True) for one in documents])

        await self._run(work, seconds, "write", collection)

    async def _run(self, work: Any, seconds: float, operation: str, subject: str) -> Any:
        if self.breaker.is_tripped and not self.breaker.allows(time.monotonic()):
            raise errors.StoreUnavailable(operation, subject, f"{self.name} failed a moment ago and rests", _UP)
        try:
            with pymongo.timeout(seconds):
                result = await work()
        except PyMongoError as exc:
            problem = translate(exc, operation, subject)
            if isinstance(problem, errors.StoreUnavailable):
                self.breaker.failed(time.monotonic())
            if exc.timeout:
                cause = f"{self.name} gave no answer within {seconds:g} s"
                raise errors.TimedOut(operation, subject, cause, _UP) from exc
            raise problem from exc
        self.breaker.succeeded()
        return result

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()
