"""S3 and whatever speaks it, through boto3. The `objects*.py` are the only importers of boto3 and botocore.

Does not: create a bucket unasked, keep a copy of anything, delete unless told which keys.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any, BinaryIO, cast

from tiering.errors import CorruptCopy, InDeepArchive, NotFound, StoreUnavailable
from tiering.stores.objects_classes import ClassedBucket
from tiering.stores.objects_client import describe
from tiering.stores.objects_errors import mapped
from tiering.stores.ports import ObjectStat, RestoreState

WHOLE_BYTES_MAX = 64 << 20
"""Up to here one PUT, larger in parts. Why so high: a PUT's If-None-Match is atomic everywhere, while SeaweedFS
4.48 checks it on CompleteMultipartUpload without a lock (of four at the same instant three won)."""

PART_BYTES = 8 << 20
_PART_COUNT_MAX = 9_000  # S3 allows 10,000
_PARTS_AT_ONCE = 4
_READ_AHEAD_BYTES = 1 << 20
_READ_ATTEMPTS = 3

_Parts = list[dict[str, Any]]


@dataclass(frozen=True)
class S3Objects(ClassedBucket):
    """One bucket; see `ports.ObjectStore` for the contract. Free to make: the client is shared per process."""

    whole_bytes_max: int = WHOLE_BYTES_MAX

    def put_new(
        self, key: str, file: IO[bytes], size: int, sha256: str, *, locked_until: datetime | None = None
    ) -> None:
        """See `ObjectStore.put_new`. The bucket must have been made for locks."""
        file.seek(0)
        lock: dict[str, Any] = {}
        if locked_until:
            lock = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": locked_until}
        if size > self.whole_bytes_max:
            self._put_parts(key, file, size, sha256, lock)
            return
        with mapped("put", self.location(key)):
            self._client.put_object(
                Bucket=self.bucket,
                Key=key,
                Body=file,
                IfNoneMatch="*",
                ChecksumSHA256=base64.b64encode(bytes.fromhex(sha256)).decode(),
                Metadata={"sha256": sha256},
                **(lock | {"ChecksumAlgorithm": "SHA256"} if lock else {}),
            )

    def open(self, key: str) -> BinaryIO:
        """See `ObjectStore.open`."""
        reader = _RangedReader(self, key, self.stat(key).size)
        return cast(BinaryIO, io.BufferedReader(reader, _READ_AHEAD_BYTES))

    def fetch(self, key: str, file: IO[bytes]) -> None:
        """See `ObjectStore.fetch`. One GET; continued by range when the server breaks it off."""
        self._fetch(key, file)

    def fetch_version(self, key: str, version_id: str, file: IO[bytes]) -> None:
        """See `ObjectStore.fetch_version`."""
        self._fetch(key, file, version_id)

    def _fetch(self, key: str, file: IO[bytes], version_id: str = "") -> None:
        digest, done = hashlib.sha256(), 0
        for attempt in itertools.count(1):
            try:
                with self._reading("fetch", key):
                    answer = self._get(key, done, version_id=version_id)
                    for chunk in answer["Body"].iter_chunks(_READ_AHEAD_BYTES):
                        file.write(chunk)
                        digest.update(chunk)
                        done += len(chunk)
                    break
            except StoreUnavailable:
                if attempt == _READ_ATTEMPTS:
                    raise
                time.sleep(0.1 * attempt)
        expected = answer["Metadata"].get("sha256", "")
        if expected and digest.hexdigest() != expected:
            raise CorruptCopy("fetch", self.location(key), f"sha256 is {digest.hexdigest()}, not {expected}")

    def stat(self, key: str) -> ObjectStat:
        """See `ObjectStore.stat`."""
        return describe(key, self._head(key))

    def list(self, prefix: str = "") -> Iterator[ObjectStat]:
        """See `ObjectStore.list`."""
        pages = iter(self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix))
        while True:
            with mapped("list", self.location(prefix)):
                page = next(pages, None)
            if page is None:
                return
            for entry in page.get("Contents", ()):
                kept = entry.get("StorageClass", "STANDARD")
                etag = entry["ETag"].strip('"')
                yield ObjectStat(entry["Key"], entry["Size"], etag, entry["LastModified"], storage_class=kept)

    def drop_unfinished(self, older_than: datetime, *, prefix: str = "") -> int:
        """See `ObjectStore.drop_unfinished`: abort the multipart uploads that nobody completed."""
        count = 0
        with mapped("drop unfinished", self.location(prefix)):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=prefix)
            for page in pages:
                for upload in page.get("Uploads", ()):
                    # Asked again here: to abort an upload of somebody else's cannot be undone.
                    if upload["Initiated"] < older_than and upload["Key"].startswith(prefix):
                        self._abort(upload["Key"], upload["UploadId"])
                        count += 1
        return count

    @contextmanager
    def _reading(self, operation: str, key: str) -> Iterator[None]:
        """Map exceptions; of an archived object, say at once where its restore stands."""
        try:
            with mapped(operation, self.location(key)):
                yield
        except InDeepArchive as exc:
            is_requested = self.restore_status(key).state is RestoreState.REQUESTED
            asked = "a restore is under way" if is_requested else "no restore was asked for"
            raise InDeepArchive(
                operation, exc.subject, f"in deep archive; {asked}", exc.hint, key=key, is_requested=is_requested
            ) from exc

    def _get(self, key: str, begin: int, length: int | None = None, *, version_id: str = "") -> Any:
        """Start a GET of `[begin, begin + length)`; without length to the end. Exceptions are botocore's."""
        end = "" if length is None else str(begin + length - 1)
        ranged = {} if begin == 0 and length is None else {"Range": f"bytes={begin}-{end}"}
        which = {"VersionId": version_id} if version_id else {}
        return self._client.get_object(Bucket=self.bucket, Key=key, **ranged, **which)

    def _put_parts(self, key: str, file: IO[bytes], size: int, sha256: str, lock: dict[str, Any]) -> None:
        """Upload in parallel parts; the write-once condition is on the completion, which makes it all visible."""
        where = {"Bucket": self.bucket, "Key": key}
        with mapped("put", self.location(key)):
            upload = self._client.create_multipart_upload(
                **where, ChecksumAlgorithm="SHA256", Metadata={"sha256": sha256}, **lock
            )["UploadId"]
        try:
            with mapped("put", self.location(key)):
                parts, read_sha256, read_size = self._send_parts(where | {"UploadId": upload}, file, size)
            if (read_sha256, read_size) != (sha256, size):
                raise CorruptCopy("put", self.location(key), "the file has another hash or size than was said")
            with mapped("put", self.location(key)):
                self._client.complete_multipart_upload(
                    **where, UploadId=upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
                )
        except NotFound as exc:
            # The completion was sent again after a lost answer: the upload is gone because it is an object now.
            if not self._is_stored(key, size, sha256):
                raise StoreUnavailable("put", self.location(key), exc.cause, "It is tried again.") from exc
        except BaseException:
            self._abort(key, upload)
            raise

    def _send_parts(self, upload: dict[str, str], file: IO[bytes], size: int) -> tuple[_Parts, str, int]:
        """Send the parts, reading no further ahead than the senders; return them with what was read."""
        part_bytes = max(PART_BYTES, -(-size // _PART_COUNT_MAX))
        digest, done = hashlib.sha256(), 0
        parts: _Parts = []
        pending: set[Future[dict[str, Any]]] = set()
        with ThreadPoolExecutor(_PARTS_AT_ONCE, "s3-part") as senders:
            try:
                for number in itertools.count(1):
                    if not (data := file.read(part_bytes)):
                        break
                    digest.update(data)
                    done += len(data)
                    pending.add(senders.submit(self._send_part, upload, number, data))
                    if len(pending) >= _PARTS_AT_ONCE:
                        sent, pending = wait(pending, return_when=FIRST_COMPLETED)
                        parts += [future.result() for future in sent]
                parts += [future.result() for future in pending]
            finally:
                senders.shutdown(cancel_futures=True)
        return sorted(parts, key=lambda part: int(part["PartNumber"])), digest.hexdigest(), done

    def _send_part(self, upload: dict[str, str], number: int, data: bytes) -> dict[str, Any]:
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        answer = self._client.upload_part(**upload, PartNumber=number, Body=data, ChecksumSHA256=checksum)
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

    def _is_stored(self, key: str, size: int, sha256: str) -> bool:
        try:
            found = self.stat(key)
        except NotFound:
            return False
        return (found.size, found.sha256) == (size, sha256)

    def _abort(self, key: str, upload: str) -> None:
        """Give an upload's parts back. When that fails too, `drop_unfinished` does it later."""
        try:
            with mapped("abort upload", self.location(key)):
                self._client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)
        except (NotFound, StoreUnavailable):
            return


class _RangedReader(io.RawIOBase):
    """An object as a raw file: each `readinto` is one ranged GET."""

    def __init__(self, objects: S3Objects, key: str, size: int) -> None:
        super().__init__()
        self._objects, self._key, self._size = objects, key, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def readall(self) -> bytes:
        # The parent's would ask for 8 KiB at a time.
        data = bytearray(max(0, self._size - self._position))
        self.readinto(data)
        return bytes(data)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._size - self._position))
        done = 0
        for attempt in itertools.count(1):
            try:
                with self._objects._reading("read", self._key):
                    while done < length:
                        done += self._read_some(view[done:length], self._position + done)
                break
            except StoreUnavailable:
                if attempt == _READ_ATTEMPTS:
                    raise
                time.sleep(0.1 * attempt)
        self._position += length
        return length

    def _read_some(self, view: memoryview, begin: int) -> int:
        """Read until the view is full or the server breaks off; what did arrive counts."""
        body = self._objects._get(self._key, begin, len(view))["Body"]
        count = int(body.readinto(view))
        while 0 < count < len(view) and (more := int(body.readinto(view[count:]))):
            count += more
        body.close()
        return count
