"""Versions and locks of a bucket's objects, and deletion that leaves no version behind.

Does not: lift or shorten a lock; nobody can.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

from tiering.errors import AccessDenied, ObjectLocked, PermanentError
from tiering.stores.objects_client import S3Bucket, describe
from tiering.stores.objects_errors import mapped
from tiering.stores.ports import ObjectVersion

_DELETE_BATCH = 1000  # S3's own limit
_NO_LOCKS = ("ObjectLockConfigurationNotFoundError", "NoSuchObjectLockConfiguration", "NotImplemented")
_FOREVER = datetime.max.replace(tzinfo=UTC)


class VersionedBucket(S3Bucket):
    """A bucket that may keep several versions of an object, and may have some of them under lock."""

    def is_versioned(self) -> bool:
        """See `ObjectStore.is_versioned`. A suspended bucket still holds the versions it had."""
        with mapped("look at", self.bucket):
            answer = self._client.get_bucket_versioning(Bucket=self.bucket)
        return bool(answer.get("Status"))

    def is_lockable(self) -> bool:
        """Say whether the bucket was made for object locks."""
        with mapped("look at", self.bucket):
            try:
                answer = self._client.get_object_lock_configuration(Bucket=self.bucket)
            except ClientError as exc:
                if exc.response["Error"].get("Code") in _NO_LOCKS:
                    return False
                raise
        return bool(answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled")

    def versions(self, prefix: str = "") -> Iterator[ObjectVersion]:
        """See `ObjectStore.versions`."""
        pages = iter(self._client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=prefix))
        while True:
            with mapped("list versions", self.location(prefix)):
                page = next(pages, None)
            if page is None:
                return
            found = [_version(entry, False) for entry in page.get("Versions", ())]
            found += [_version(entry, True) for entry in page.get("DeleteMarkers", ())]
            # A page has its versions in order and its markers in order, each apart. The sort is stable.
            yield from sorted(found, key=lambda version: (version.key, not version.is_latest, -_time(version)))

    def versions_of(self, key: str) -> Iterator[ObjectVersion]:
        """Yield the versions of one object, the newest first."""
        # Of all keys that begin with this one, it comes first.
        return itertools.takewhile(lambda version: version.key == key, self.versions(key))

    def put_over(self, key: str, data: bytes) -> None:
        """Store a newer version over a spoiled object; what was there stays below it as an older version.

        Raises:
            PermanentError: the bucket keeps no versions, so something would be lost; nothing was stored.
        """
        if not self.is_versioned():
            hint = "Restore into an empty bucket, or switch versioning on."
            raise PermanentError("put over", self.location(key), "the bucket keeps no versions", hint)
        digest = hashlib.sha256(data)
        with mapped("put", self.location(key)):
            self._client.put_object(
                Bucket=self.bucket,
                Key=key,
                Body=data,
                ChecksumSHA256=base64.b64encode(digest.digest()).decode(),
                Metadata={"sha256": digest.hexdigest()},
            )

    def locked_until(self, key: str, version_id: str = "") -> datetime | None:
        """See `ObjectStore.locked_until`."""
        return lock_of(self._head(key, version_id))

    def delete(self, keys: Iterable[str]) -> None:
        """See `ObjectStore.delete`. In a versioned bucket one more request for each key finds its versions."""
        rest = iter(keys)
        with_versions: bool | None = None
        refused: list[tuple[str, str]] = []
        while batch := list(itertools.islice(rest, _DELETE_BATCH)):
            with_versions = self.is_versioned() if with_versions is None else with_versions
            if with_versions:
                named = [(key, version.version_id) for key in batch for version in self.versions_of(key)]
            else:
                named = [(key, "") for key in batch]
            refused += self._delete(named)
        if refused:
            raise self._locked("delete", *refused[0])

    def delete_versions(self, named: Iterable[tuple[str, str]]) -> None:
        """Delete versions of objects, by key and version id; those that are gone already are no error.

        Raises:
            ObjectLocked: one of them is under lock; the others are deleted.
        """
        if refused := self._delete(list(named)):
            raise self._locked("delete", *refused[0])

    def delete_expired(self, key: str, etag: str, before: datetime) -> None:
        """Delete every version of an object, if it still is the one meant; else what is below the one written since.

        Why by version: what somebody writes under this key from now on has a version of its own, and stays.

        Args:
            key: of the object; it may be gone.
            etag: as `stat` gave it for the object that is meant.
            before: of an object written since, versions older than this go as well.

        Raises:
            ObjectLocked: a version is under lock; the others are deleted.
        """
        versions = list(self.versions_of(key))
        if not versions:
            return
        newest = versions[0]
        is_meant = newest.is_delete_marker or describe(key, self._head(key, newest.version_id)).etag == etag
        doomed = versions if is_meant else [v for v in versions[1:] if v.etag == etag or v.modified_at < before]
        self.delete_versions((key, version.version_id) for version in doomed)

    def _delete(self, named: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Delete what may be deleted; return what the server refused."""
        refused = []
        for start in range(0, len(named), _DELETE_BATCH):
            batch = [{"Key": k, "VersionId": v} if v else {"Key": k} for k, v in named[start : start + _DELETE_BATCH]]
            with mapped("delete", self.location(batch[0]["Key"])):
                answer = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": batch, "Quiet": True})
                for failure in answer.get("Errors", ()):
                    if failure.get("Code") != "AccessDenied":
                        raise ClientError({"Error": failure}, "DeleteObjects")
                    refused.append((failure["Key"], failure.get("VersionId", "")))
        return refused

    def _locked(self, operation: str, key: str, version_id: str) -> ObjectLocked | AccessDenied:
        """Tell a lock from missing rights: both are answered by AccessDenied."""
        head = self._head(key, version_id)
        until, subject = lock_of(head), self.location(key)
        if until is None:
            return AccessDenied(operation, subject, "access denied", "Check the rights of TIERING_S3_ACCESS_KEY.")
        if head.get("ObjectLockLegalHoldStatus") == "ON":
            hint = "Lift the hold in the object store first."
            return ObjectLocked(operation, subject, "under a legal hold of the object store", hint, until=until)
        hint = "Nobody can shorten a COMPLIANCE lock; run this again after that date."
        return ObjectLocked(operation, subject, f"under object lock until {until:%Y-%m-%d %H:%M}Z", hint, until=until)


def lock_of(head: Any) -> datetime | None:
    """Read from an object's head until when it is locked; None where it is not, or not any more."""
    if head.get("ObjectLockLegalHoldStatus") == "ON":
        return _FOREVER
    until: datetime | None = head.get("ObjectLockRetainUntilDate")
    return until


def _version(entry: Any, is_marker: bool) -> ObjectVersion:
    size = 0 if is_marker else entry["Size"]
    latest, at = bool(entry.get("IsLatest")), entry["LastModified"]
    etag = entry.get("ETag", "").strip('"')
    return ObjectVersion(entry["Key"], entry["VersionId"], size, latest, is_marker, at, etag)


def _time(version: ObjectVersion) -> float:
    return version.modified_at.timestamp()
