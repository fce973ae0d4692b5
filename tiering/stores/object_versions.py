"""Every version of the objects of a bucket: list, read, destroy for good, and until when S3 object lock forbids it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import IO

from botocore.exceptions import ClientError

from tiering.stores.objects import S3Objects
from tiering.stores.objects_errors import mapped

_READ_BYTES = 1 << 20
_DELETE_BATCH = 1000
_NO_LOCK = (
    "NoSuchObjectLockConfiguration",
    "ObjectLockConfigurationNotFoundError",
    "InvalidRequest",
    "MethodNotAllowed",
    "NotImplemented",
    "NoSuchKey",
    "NoSuchVersion",
)


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an object, or the mark that says it was deleted. A bucket without versions has one each."""

    key: str
    version_id: str
    size: int
    modified_at: datetime
    is_latest: bool
    is_marker: bool


def versions(objects: S3Objects, prefix: str = "") -> Iterator[Version]:
    """Yield every version below a prefix, delete marks too, in order of keys."""
    pages = iter(objects._client.get_paginator("list_object_versions").paginate(Bucket=objects.bucket, Prefix=prefix))
    while True:
        with mapped("list versions", objects.location(prefix)):
            page = next(pages, None)
        if page is None:
            return
        for entries, is_marker in ((page.get("Versions", ()), False), (page.get("DeleteMarkers", ()), True)):
            for e in entries:
                version_id, latest = e.get("VersionId") or "null", bool(e.get("IsLatest", True))
                yield Version(e["Key"], version_id, e.get("Size", 0), e["LastModified"], latest, is_marker)


def read_version(objects: S3Objects, version: Version, file: IO[bytes]) -> None:
    """Write one version's bytes to a file, in bounded memory.

    Raises:
        NotFound: it is gone.
    """
    with mapped("read version", objects.location(version.key)):
        where = {} if version.version_id == "null" else {"VersionId": version.version_id}
        body = objects._client.get_object(Bucket=objects.bucket, Key=version.key, **where)["Body"]
        for chunk in body.iter_chunks(_READ_BYTES):
            file.write(chunk)


def purge(objects: S3Objects, found: Iterable[Version]) -> None:
    """Destroy versions for good. May be called again.

    Raises:
        AccessDenied: one of them is under object lock.
    """
    rest = iter(found)
    while batch := list(itertools.islice(rest, _DELETE_BATCH)):
        names = [{"Key": v.key} | ({} if v.version_id == "null" else {"VersionId": v.version_id}) for v in batch]
        with mapped("purge", objects.location(batch[0].key)):
            answer = objects._client.delete_objects(Bucket=objects.bucket, Delete={"Objects": names, "Quiet": True})
            for failure in answer.get("Errors", ()):
                raise ClientError({"Error": failure}, "DeleteObjects")


def locked_until(objects: S3Objects, version: Version) -> datetime | None:
    """Say until when a version is under retention, None if it is under none."""
    try:
        where = {} if version.version_id == "null" else {"VersionId": version.version_id}
        answer = objects._client.get_object_retention(Bucket=objects.bucket, Key=version.key, **where)
    except ClientError as exc:
        if exc.response.get("Error", {}).get("Code") in _NO_LOCK:
            return None
        with mapped("read retention", objects.location(version.key)):
            raise
    found: datetime | None = answer.get("Retention", {}).get("RetainUntilDate")
    return found


def has_lock(objects: S3Objects) -> bool:
    """Say whether the bucket was made with object lock."""
    try:
        answer = objects._client.get_object_lock_configuration(Bucket=objects.bucket)
    except ClientError as exc:
        if exc.response.get("Error", {}).get("Code") in _NO_LOCK:
            return False
        with mapped("read lock of", objects.bucket):
            raise
    return bool(answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled")
