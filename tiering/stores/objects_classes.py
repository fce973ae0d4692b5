"""Storage classes of a bucket's objects: change them, and have archived ones restored for reading.

Does not: wait for a restore, which takes hours; who asked comes back.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import ClientError

from tiering.errors import AlreadyExists, CommitConflict, ObjectLocked
from tiering.stores.objects_client import describe
from tiering.stores.objects_errors import mapped
from tiering.stores.objects_versions import VersionedBucket, lock_of
from tiering.stores.ports import ObjectStat, RestoreState, RestoreStatus

WHOLE_COPY_MAX = 5 << 30  # S3's own limit of a CopyObject
_COPY_PART_BYTES = 1 << 30
COPIED_FROM = "tiering-from-version"
"""Metadata of a copy that we made: the version it was made of, so that a later run can finish for a killed one."""

# What an object is known by besides its bytes. The copy says it again in full: "keep it" (MetadataDirective COPY) is
# refused by SeaweedFS 4.48 on a bucket without versions, where it sees no change in a change of class.
_KEPT = (
    *("CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "ContentType", "Expires"),
    *("WebsiteRedirectLocation", "ServerSideEncryption", "SSEKMSKeyId", "BucketKeyEnabled"),
)
_EXPIRY = re.compile(r'expiry-date="([^"]+)"')


@dataclass(frozen=True)
class ClassedBucket(VersionedBucket):
    """A bucket whose objects have a storage class."""

    whole_copy_max: int = WHOLE_COPY_MAX

    def change_class(self, key: str, storage_class: str, if_etag: str, *, keep_source: bool = False) -> ObjectStat:
        """Give an object another storage class and leave all else as it is: bytes, metadata, tags, lock.

        May be called again after a crash at any point. In a versioned bucket an object that somebody overwrites at
        the same instant is never lost, and no version is left behind by us, except of a locked one: that version
        stays until its lock ends. Without versions it is as safe as the server's conditional copy.

        Args:
            key: of the object.
            storage_class: the new one.
            if_etag: as `stat` gave it: the object that is meant (`list` may give another one for the same object).
            keep_source: leave the version it was made of, and the second look at what else was written, to
                `finish_change`, so that an overwrite which is still under way shows until then as well.

        Returns:
            The object as it is now; its etag and date may be new.

        Raises:
            CommitConflict: another object is there now; it was not touched.
            InDeepArchive: it must be restored first.
            NotFound: no such object.
        """
        head = self._head(key)
        found = describe(key, head)
        if found.storage_class == storage_class and (COPIED_FROM in head["Metadata"] or found.etag == if_etag):
            if not keep_source:
                self._finish(key, head.get("VersionId", ""), head["Metadata"].get(COPIED_FROM, ""))
            return found
        if found.etag != if_etag:
            raise self._overwritten(key)
        source = head.get("VersionId", "")
        try:
            with mapped("change class", self.location(key)):
                copy = self._copy_parts if found.size > self.whole_copy_max else self._copy_whole
                made, etag = copy(key, head, storage_class)
        except AlreadyExists as exc:  # the condition did not hold
            raise self._overwritten(key) from exc
        if keep_source:  # finish_change looks closer; a round trip for each object counts where there are many
            return replace(found, etag=etag, storage_class=storage_class, modified_at=datetime.now(UTC))
        self._finish(key, made, source)
        return self._stat_copy(key, storage_class)

    def finish_change(self, key: str, if_etag: str = "") -> ObjectStat:
        """Remove the version that the newest one was made of by `change_class`, if it was. May be called again.

        Args:
            key: of the object.
            if_etag: as `change_class` gave it; empty where the caller compares what is there by itself.

        Returns:
            The object as it is now.

        Raises:
            CommitConflict: somebody's newer version came to light; it is the object now.
            NotFound: no such object.
        """
        head = self._head(key)
        found = describe(key, head)
        if if_etag and found.etag != if_etag:
            raise self._overwritten(key)
        self._finish(key, head.get("VersionId", ""), head["Metadata"].get(COPIED_FROM, ""))
        return found

    def request_restore(self, key: str, days: int, speed: str = "Bulk") -> RestoreStatus:
        """Ask for an archived object to be readable for some days. Asked again, it only prolongs.

        Args:
            key: of the object.
            days: how long it stays readable, once it is.
            speed: "Bulk" (up to 48 hours from DEEP_ARCHIVE, cheapest) or "Standard" (12 hours).

        Returns:
            Where that stands; AVAILABLE at once from a store that has no restores and reads archived objects.
        """
        request = {"Days": days, "GlacierJobParameters": {"Tier": speed}}
        with mapped("request restore", self.location(key)):
            try:
                self._client.restore_object(Bucket=self.bucket, Key=key, RestoreRequest=request)
            except ClientError as exc:
                if exc.response["Error"].get("Code") in ("MethodNotAllowed", "NotImplemented"):
                    return RestoreStatus(RestoreState.AVAILABLE, None)
                if exc.response["Error"].get("Code") != "RestoreAlreadyInProgress":
                    raise
        return self.restore_status(key)

    def restore_status(self, key: str) -> RestoreStatus:
        """Say where the restore of an archived object stands.

        Raises:
            NotFound: no such object.
        """
        return restore_of(self._head(key))

    def _copy_whole(self, key: str, head: Any, storage_class: str) -> tuple[str, str]:
        """Copy an object onto itself in one request; return version and etag made. Exceptions are botocore's."""
        answer = self._client.copy_object(
            Bucket=self.bucket,
            Key=key,
            CopySource=self._source(key, head),
            CopySourceIfMatch=head["ETag"],
            # Of the target: the source's condition is checked when the copy begins, this one when it ends.
            IfMatch=head["ETag"],
            MetadataDirective="REPLACE",
            **_kept(head, storage_class),
        )
        return str(answer.get("VersionId", "")), answer["CopyObjectResult"]["ETag"].strip('"')

    def _copy_parts(self, key: str, head: Any, storage_class: str) -> tuple[str, str]:
        """Copy an object onto itself by ranges; return version and etag made. Exceptions are botocore's."""
        where = {"Bucket": self.bucket, "Key": key}
        tags = self._client.get_object_tagging(**where)["TagSet"]
        tagging = {"Tagging": "&".join(f"{t['Key']}={t['Value']}" for t in tags)} if tags else {}
        upload = self._client.create_multipart_upload(**where, **tagging, **_kept(head, storage_class))["UploadId"]
        try:
            parts, size = [], head["ContentLength"]
            for number, begin in enumerate(range(0, size, _COPY_PART_BYTES), start=1):
                end = min(begin + _COPY_PART_BYTES, size) - 1
                answer = self._client.upload_part_copy(
                    **where,
                    UploadId=upload,
                    PartNumber=number,
                    CopySource=self._source(key, head),
                    CopySourceRange=f"bytes={begin}-{end}",
                    CopySourceIfMatch=head["ETag"],
                )
                parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
            answer = self._client.complete_multipart_upload(
                **where, UploadId=upload, MultipartUpload={"Parts": parts}, IfMatch=head["ETag"]
            )
        except BaseException:
            self._client.abort_multipart_upload(**where, UploadId=upload)
            raise
        return str(answer.get("VersionId", "")), answer["ETag"].strip('"')

    def _source(self, key: str, head: Any) -> dict[str, str]:
        version = head.get("VersionId", "")
        return {"Bucket": self.bucket, "Key": key} | ({"VersionId": version} if version else {})

    def _finish(self, key: str, made: str, source: str) -> None:
        """Remove the version that our copy was made of; or our copy, where it hides somebody's newer version.

        Why look again: SeaweedFS 4.48 checks a copy's conditions without a lock, and sorts versions by when their
        writing began. Of 150 overwrites at the same instant, 60 stood below our copy afterwards. And a request whose
        answer was lost is made again: then there are two copies.
        """
        if not made or not source:
            return
        names = self._names_of(key)
        if made not in names or source not in names:
            return  # finished by another run, or overwritten and cleaned up by somebody
        others = [name for name in names[: names.index(source)] if name != made]
        if any(self._source_of(key, other) != source for other in others):
            raise self._overwritten(key)
        with suppress(ObjectLocked):  # it goes when its lock ends
            self.delete_versions((key, name) for name in (*others, source))

    def _overwritten(self, key: str) -> CommitConflict:
        """Remove our copies of versions that are still there, since another object is the one that counts."""
        names = self._names_of(key)
        copies = [name for name in names if self._source_of(key, name) in names] if len(names) > 1 else []
        with suppress(ObjectLocked):
            self.delete_versions((key, name) for name in copies)
        return CommitConflict("change class", self.location(key), "somebody wrote another object under this key")

    def _names_of(self, key: str) -> list[str]:
        """List the versions that have bytes, the newest first."""
        return [version.version_id for version in self.versions_of(key) if not version.is_delete_marker]

    def _source_of(self, key: str, version: str) -> str | None:
        """Say which version a version is our copy of; None where it is not."""
        source = self._head(key, version)["Metadata"].get(COPIED_FROM)
        return source if isinstance(source, str) else None

    def _stat_copy(self, key: str, storage_class: str) -> ObjectStat:
        now = describe(key, self._head(key))
        if now.storage_class != storage_class:
            raise self._overwritten(key)
        return now


def _kept(head: Any, storage_class: str) -> dict[str, Any]:
    """Say all that the copy of an object must have."""
    kept: dict[str, Any] = {name: head[name] for name in _KEPT if head.get(name)}
    source = {COPIED_FROM: head["VersionId"]} if head.get("VersionId") else {}
    kept |= {"StorageClass": storage_class, "Metadata": {**head["Metadata"], **source}}
    if lock_of(head) and head.get("ObjectLockMode"):
        until = head["ObjectLockRetainUntilDate"]
        if until > datetime.now(UTC):
            kept |= {"ObjectLockMode": head["ObjectLockMode"], "ObjectLockRetainUntilDate": until}
            kept |= {"ChecksumAlgorithm": "SHA256"}  # S3 wants one with a lock
    if head.get("ObjectLockLegalHoldStatus") == "ON":
        kept["ObjectLockLegalHoldStatus"] = "ON"
    return kept


def restore_of(head: Any) -> RestoreStatus:
    """Read from an object's head where its restore stands."""
    text = head.get("Restore", "")
    if not text:
        return RestoreStatus(RestoreState.NONE, None)
    if 'ongoing-request="true"' in text:
        return RestoreStatus(RestoreState.REQUESTED, None)
    expiry = _EXPIRY.search(text)
    return RestoreStatus(RestoreState.AVAILABLE, parsedate_to_datetime(expiry[1]) if expiry else None)
