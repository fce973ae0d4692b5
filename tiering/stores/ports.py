"""The ports: what the rest of the system may ask of a store, with the contract in prose.

Every implementation of a port passes the port's one contract suite under `tests/stores/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import IO, BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """What a store says of one object.

    Attributes:
        key: relative name, parts joined by `/`.
        size: in bytes.
        etag: opaque; equal while the bytes are the same write.
        modified_at: when it became visible, in UTC, by the store's own clock.
        sha256: hexadecimal, as given to `put_new`; empty where the store does not say (`list` never does).
        storage_class: in S3's words.
    """

    key: str
    size: int
    etag: str
    modified_at: datetime
    sha256: str = ""
    storage_class: str = "STANDARD"


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """One version of an object, or the mark that it was deleted."""

    key: str
    version_id: str
    size: int
    is_latest: bool
    is_delete_marker: bool
    modified_at: datetime
    etag: str = ""


class RestoreState(StrEnum):
    """Where the restore of an archived object stands, as the ledger spells it."""

    NONE = ""
    REQUESTED = "REQUESTED"
    AVAILABLE = "AVAILABLE"


@dataclass(frozen=True, slots=True)
class RestoreStatus:
    """A restore; `until` is when an AVAILABLE object goes back, None where the store does not say."""

    state: RestoreState
    until: datetime | None


class ObjectStore(Protocol):
    """Write-once named bytes.

    Safe to share between threads. Making one reaches no server. Every method may raise the transient
    `StoreUnavailable` and `Throttled` and the permanent `AccessDenied`, and has then had no visible effect
    unless its text says otherwise; trying again is always allowed.
    """

    def put_new(
        self, key: str, file: IO[bytes], size: int, sha256: str, *, locked_until: datetime | None = None
    ) -> None:
        """Store the whole of `file` under a new key.

        All or nothing: nobody ever sees a part of the object, and an object that exists is never replaced.
        The file is read from position 0 and left at any position; it must be seekable.

        After a lost answer a repeated call may find its own first try and say AlreadyExists. Callers whose
        keys carry a content hash may take AlreadyExists for success once `stat` confirms the size.

        Args:
            key: relative, without `..`, empty parts or a leading `/`.
            file: seekable binary file.
            size: its length in bytes.
            sha256: its hash, hexadecimal; the store's side recomputes it.
            locked_until: until then nobody can delete or change this version, however privileged.

        Raises:
            AlreadyExists: the key is taken, whatever its bytes.
            CorruptCopy: the bytes received do not have this size and hash; nothing was stored.
            StoreFull: no room.
            PermanentError: a lock was asked for, and the store has none; nothing was stored.
        """

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading and seeking; fetches only the ranges that are read.

        A read that the server breaks off is tried again; when that fails too, the read raises and the file
        stays usable at the same position.

        Raises:
            NotFound: no such object.
        """

    def fetch(self, key: str, file: IO[bytes]) -> None:
        """Write a whole object to `file`, in bounded memory, and check its hash on the way.

        On any error `file` may hold a beginning of the object: the caller discards it.

        Raises:
            NotFound: no such object.
            CorruptCopy: the bytes read are not the bytes that `put_new` was given.
        """

    def stat(self, key: str) -> ObjectStat:
        """Describe one object.

        Raises:
            NotFound: no such object.
        """

    def list(self, prefix: str = "") -> Iterator[ObjectStat]:
        """Yield every object whose key begins with `prefix`, ordered by key.

        Objects written or deleted meanwhile may or may not appear. A store without objects yields nothing.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects with all their versions; a key that does not exist is not an error: call it twice.

        Not atomic: when it raises, some of the keys may be gone already. Only `ops/sweep.py` calls this.

        Raises:
            ObjectLocked: a version is under lock; names the date. All that was not locked is gone.
        """

    def is_versioned(self) -> bool:
        """Tell whether an object may have versions besides the one that is read."""

    def versions(self, prefix: str = "") -> Iterator[ObjectVersion]:
        """Yield every version of every object whose key begins with `prefix`: by key, the newest first.

        A store without versions yields each object once, with "null" or nothing for its version id.
        """

    def fetch_version(self, key: str, version_id: str, file: IO[bytes]) -> None:
        """`fetch`, of one version."""

    def locked_until(self, key: str, version_id: str = "") -> datetime | None:
        """Say until when an object's version (the newest unless said otherwise) is locked; None if it is not.

        Raises:
            NotFound: no such object.
        """

    def drop_unfinished(self, older_than: datetime, *, prefix: str = "") -> int:
        """Drop what crashed writers left behind that `list` does not show; say how many.

        May be called at any time and twice; `older_than` must be older than any upload still running.
        Only uploads to keys that begin with `prefix` are touched: others may be somebody else's. A store that
        does not know what an unfinished upload was to become has no other users, and drops it whatever the prefix.
        """
