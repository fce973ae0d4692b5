"""A folder as an ObjectStore: the trivial reference implementation, and a lake on a local or network disk.

Does not: keep the sha256 it was given (a folder has no place for it); `stat` computes it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import IO, BinaryIO

from tiering.errors import (
    AccessDenied,
    AlreadyExists,
    CorruptCopy,
    NotFound,
    PermanentError,
    StoreFull,
    StoreUnavailable,
)
from tiering.stores.ports import ObjectStat, ObjectVersion

_INCOMING = ".incoming"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class DirectoryObjects:
    """Keep each object as a file below `root`; see `ports.ObjectStore` for the contract."""

    root: Path

    def put_new(
        self, key: str, file: IO[bytes], size: int, sha256: str, *, locked_until: datetime | None = None
    ) -> None:
        """See `ObjectStore.put_new`."""
        if locked_until:
            hint = "Keep datasets with `lock: true` in an S3 bucket that was made for object lock."
            raise PermanentError("lock", key, "a folder cannot lock a file", hint)
        target = self._path(key)
        with _mapped("put", str(target)):
            incoming = self.root / _INCOMING / uuid.uuid4().hex
            incoming.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._write(incoming, file)
                if (_hash(incoming), incoming.stat().st_size) != (sha256, size):
                    raise CorruptCopy("put", str(target), "bytes received have another hash or size")
                target.parent.mkdir(parents=True, exist_ok=True)
                # A hard link fails when the name is taken, and shows the whole file or nothing.
                os.link(incoming, target)
            finally:
                incoming.unlink(missing_ok=True)

    def open(self, key: str) -> BinaryIO:
        """See `ObjectStore.open`."""
        path = self._path(key)
        with _mapped("open", str(path)):
            return path.open("rb")

    def fetch(self, key: str, file: IO[bytes]) -> None:
        """See `ObjectStore.fetch`. A folder knows no hash to check against."""
        with _mapped("fetch", str(self._path(key))), self._path(key).open("rb") as source:
            shutil.copyfileobj(source, file, _CHUNK_BYTES)

    def stat(self, key: str) -> ObjectStat:
        """See `ObjectStore.stat`."""
        path = self._path(key)
        with _mapped("stat", str(path)):
            return self._stat(path, _hash(path))

    def list(self, prefix: str = "") -> Iterator[ObjectStat]:
        """See `ObjectStore.list`."""
        with _mapped("list", str(self.root / prefix)):
            files = {path.relative_to(self.root).as_posix(): path for path in self.root.rglob("*") if path.is_file()}
        for key in sorted(files):
            if key.startswith(prefix) and not key.startswith(_INCOMING):
                try:
                    yield self._stat(files[key])
                except FileNotFoundError:
                    continue  # deleted meanwhile

    def delete(self, keys: Iterable[str]) -> None:
        """See `ObjectStore.delete`. Folders stay, so that no writer loses the folder it is about to use."""
        for key in keys:
            with _mapped("delete", str(self._path(key))):
                self._path(key).unlink(missing_ok=True)

    def is_versioned(self) -> bool:
        """See `ObjectStore.is_versioned`."""
        return False

    def versions(self, prefix: str = "") -> Iterator[ObjectVersion]:
        """See `ObjectStore.versions`."""
        for found in self.list(prefix):
            yield ObjectVersion(found.key, "", found.size, True, False, found.modified_at)

    def fetch_version(self, key: str, version_id: str, file: IO[bytes]) -> None:
        """See `ObjectStore.fetch_version`."""
        self.fetch(key, file)

    def locked_until(self, key: str, version_id: str = "") -> datetime | None:
        """See `ObjectStore.locked_until`."""
        self.stat(key)
        return None

    def drop_unfinished(self, older_than: datetime, *, prefix: str = "") -> int:
        """See `ObjectStore.drop_unfinished`. What is being received has no key yet, and is ours alone."""
        with _mapped("drop unfinished", str(self.root)):
            old = [p for p in (self.root / _INCOMING).glob("*") if p.stat().st_mtime < older_than.timestamp()]
            for path in old:
                path.unlink(missing_ok=True)
        return len(old)

    def _path(self, key: str) -> Path:
        if not key or any(part in ("", ".", "..", _INCOMING) for part in key.split("/")):
            raise ValueError(f"not an object key: {key!r}")
        return self.root / key

    def _stat(self, path: Path, sha256: str = "") -> ObjectStat:
        facts = path.stat()
        key = path.relative_to(self.root).as_posix()
        modified_at = datetime.fromtimestamp(facts.st_mtime, UTC)
        return ObjectStat(key, facts.st_size, f"{facts.st_mtime_ns:x}-{facts.st_ino:x}", modified_at, sha256)

    @staticmethod
    def _write(path: Path, file: IO[bytes]) -> None:
        file.seek(0)
        with path.open("xb") as target:
            shutil.copyfileobj(file, target, _CHUNK_BYTES)
            target.flush()
            os.fsync(target.fileno())


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _mapped(operation: str, subject: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError as exc:
        raise AlreadyExists(operation, subject, "the key is taken") from exc
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as exc:
        raise NotFound(operation, subject, "no such object") from exc
    except PermissionError as exc:
        raise AccessDenied(operation, subject, "permission denied", "Check the folder's owner and mode.") from exc
    except OSError as exc:
        if exc.errno in (ENOSPC, EDQUOT):
            raise StoreFull(operation, subject, "no space left", "Free space on the disk, then run again.") from exc
        raise StoreUnavailable(operation, subject, str(exc.strerror).lower(), "Check the disk.") from exc
