"""One bucket of an S3 server: how it is reached and named. The rest of `objects*.py` builds on it.

Does not: read or write an object.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config
from pydantic import SecretStr

from tiering.errors import AlreadyExists, NotFound
from tiering.stores.objects_errors import mapped
from tiering.stores.ports import ObjectStat

_client_lock = threading.Lock()


@dataclass(frozen=True)
class S3Bucket:
    """Where a bucket is and who asks. Free to make: the client is shared per process."""

    endpoint_url: str
    bucket: str
    access_key: SecretStr
    secret_key: SecretStr
    region: str = "us-east-1"

    @property
    def _client(self) -> Any:
        with _client_lock:
            return _make_client(self.endpoint_url, self.access_key, self.secret_key, self.region)

    def location(self, key: str) -> str:
        """Name an object for other engines: `s3://bucket/key`."""
        return f"s3://{self.bucket}/{key}"

    def key(self, location: str) -> str:
        """Take `location` back apart.

        Raises:
            NotFound: the location is not in this bucket.
        """
        prefix = f"s3://{self.bucket}/"
        if not location.startswith(prefix):
            raise NotFound("locate", location, f"not in bucket {self.bucket}", "Check TIERING_LAKE_BUCKET.")
        return location.removeprefix(prefix)

    def ensure_bucket(self, *, versioned: bool = False, lockable: bool = False) -> None:
        """Create the bucket unless it is there. May be called twice and by two at once.

        Args:
            versioned: switch versioning on, of a bucket that is there as well.
            lockable: allow objects under lock, which brings versioning with it; only a new bucket surely can.
        """
        with mapped("create bucket", self.bucket):
            names = {bucket["Name"] for bucket in self._client.list_buckets()["Buckets"]}
        if self.bucket not in names:
            self._create(lockable)
        if versioned:
            with mapped("version bucket", self.bucket):
                on = {"Status": "Enabled"}
                self._client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration=on)

    def _create(self, lockable: bool) -> None:
        options: dict[str, Any] = {"ObjectLockEnabledForBucket": True} if lockable else {}
        if self.region != "us-east-1":
            options["CreateBucketConfiguration"] = {"LocationConstraint": self.region}
        try:
            with mapped("create bucket", self.bucket):
                self._client.create_bucket(Bucket=self.bucket, **options)
        except AlreadyExists:
            return

    def _head(self, key: str, version_id: str = "") -> Any:
        """Ask for an object's head. Exceptions are ours."""
        which = {"VersionId": version_id} if version_id else {}
        with mapped("stat", self.location(key)):
            return self._client.head_object(Bucket=self.bucket, Key=key, **which)


def describe(key: str, head: Any) -> ObjectStat:
    """Read an object's head."""
    return ObjectStat(
        key,
        head["ContentLength"],
        head["ETag"].strip('"'),
        head["LastModified"],
        head["Metadata"].get("sha256", ""),
        head.get("StorageClass", "STANDARD"),
    )


@functools.lru_cache(maxsize=16)
def _make_client(endpoint_url: str, access_key: SecretStr, secret_key: SecretStr, region: str) -> Any:
    """Make a thread-safe client; 50–200 ms, which is why it is kept.

    Why three attempts and short timeouts: these retries bridge seconds (a lost packet, a restarting gateway);
    Prefect's bridge minutes, and must see a failure while there is still something to report.
    """
    with mapped("open object store", endpoint_url):
        return boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint_url,
            aws_access_key_id=access_key.get_secret_value(),
            aws_secret_access_key=secret_key.get_secret_value(),
            region_name=region,
            config=Config(
                connect_timeout=5,
                read_timeout=30,
                retries={"mode": "standard", "total_max_attempts": 3},
                max_pool_connections=32,
                # We give and check SHA-256 ourselves; botocore's own CRC would be a second pass over every byte.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path"},
            ),
        )
