"""Empty servers for restores: MongoDB and S3 in a private directory, ended and removed whatever happens."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretStr

from infra.local.stack import Stack


@contextmanager
def scratch_mongo(parent: Path | None = None) -> Iterator[SecretStr]:
    """Start an empty MongoDB; yield its URL, that of no database."""
    with _scratch(parent, "mongo") as stack:
        yield SecretStr(stack.mongo.url(""))


@contextmanager
def scratch_s3(parent: Path | None = None) -> Iterator[Stack]:
    """Start an empty object store; yields the stack, whose `s3` has URL, credentials and a client."""
    with _scratch(parent, "s3") as stack:
        yield stack


@contextmanager
def scratch_objects(parent: Path | None = None) -> Iterator[tuple[str, SecretStr, SecretStr]]:
    """Start an empty object store; yield its URL, access key and secret key."""
    with scratch_s3(parent) as stack:
        access, secret = stack.s3.credentials
        yield stack.s3.url, SecretStr(access), SecretStr(secret)


@contextmanager
def _scratch(parent: Path | None, service: str) -> Iterator[Stack]:
    directory = Path(tempfile.mkdtemp(prefix="tiering-scratch-", dir=parent))
    try:
        with Stack(directory, services={service}) as stack:
            yield stack
    finally:
        shutil.rmtree(directory, ignore_errors=True)
