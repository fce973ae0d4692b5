"""SeaweedFS of the stack: an S3 server in one process."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.local.binaries import find_weed
from infra.local.processes import Command, bare_environment
from infra.local.state import State

LAKE = "tiering-lake"
BUCKETS = (LAKE, "tiering-backup", "tiering-files")
REGION = "us-east-1"
PROBE = "stack-probe"
# Every part of SeaweedFS listens somewhere; left alone it takes the well-known ports.
PARTS = ("master", "volume", "filer", "s3", "admin")


class S3:
    """The S3 server. Credentials reach it by its environment, buckets are made over the wire."""

    name = "s3"
    port_names = tuple(f"s3.{part}{kind}" for part in PARTS for kind in ("", ".grpc"))

    def __init__(self, state: State) -> None:
        self._state = state
        self._data = state.directory / "s3"

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._state.port('s3.s3')}"

    @property
    def credentials(self) -> tuple[str, str]:
        """Access key and secret key."""
        return "tiering", self._state.secret("s3")

    def client(self) -> Any:
        """Return a boto3 client that fails fast; threads may share it."""
        return _client(self.url, *self.credentials, os.getpid())

    def prepare(self) -> None:
        """Create the directories."""
        (self._data / "sockets").mkdir(parents=True, exist_ok=True)

    def commands(self) -> Sequence[Command]:
        """Start everything but what we do not use; its telemetry would call out, so it is off."""
        access_key, secret_key = self.credentials
        ports = [f"-{part}.port={self._state.port(f's3.{part}')}" for part in PARTS]
        ports += [f"-{part}.port.grpc={self._state.port(f's3.{part}.grpc')}" for part in PARTS]
        off = ["-webdav=false", "-admin.ui=false", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        environment = bare_environment(self._state.directory)
        environment |= {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}
        # Every bucket claims several volumes of its own; they cost nothing until written, so let there be many.
        size = ["-volume.max=5000"]
        arguments: list[str | Path] = [
            find_weed(),
            "-logtostderr",
            "mini",
            f"-dir={self._data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
        ]
        log = self._state.directory / "logs" / "s3.log"
        return [Command("s3", [*arguments, *ports, *off, *size], log, environment, self._data)]

    def is_ready(self) -> bool:
        """Read an object back, from before this start where there is one.

        Why: names are served before the volumes have reported; reads then fail for a moment (seen after SIGKILL).
        """
        client = self.client()
        try:
            present = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
            if PROBE not in present:
                client.create_bucket(Bucket=PROBE)
            if not client.list_objects_v2(Bucket=PROBE).get("KeyCount"):
                client.put_object(Bucket=PROBE, Key="probe", Body=b"ready")
            return bool(client.get_object(Bucket=PROBE, Key="probe")["Body"].read() == b"ready")
        except (BotoCoreError, ClientError):
            return False

    def settle(self) -> None:
        """Create the buckets that are not there; the lake's with object lock, which a bucket can only be born with."""
        client = self.client()
        present = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
        for name in BUCKETS:
            if name not in present:
                client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=name == LAKE)
        # Applications overwrite files; a change of class must not hide what they wrote at the same instant. Backups are
        # never overwritten; who tries all the same, past the vault, takes nothing away.
        for name in BUCKETS[1:]:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})


@functools.lru_cache(maxsize=8)
def _client(url: str, access_key: str, secret_key: str, process: int) -> Any:
    """Build a client once per process: to read its description of S3 takes longer than most calls."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}),
    )
