"""The nouns of backup and recovery. A *backup* is one restorable set of objects; a *log* is what happened since.

Positions are texts in the store's own notation, comparable only within one incarnation: an LSN `0/3000028` for
PostgreSQL, `seconds,increment` for MongoDB, an offset for Redis, empty where a store has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class StoreName(StrEnum):
    """What is backed up."""

    POSTGRESQL = "postgresql"
    MONGODB = "mongodb"
    REDIS = "redis"
    APPLICATION_DATA = "application_data"
    CONFIGURATION = "configuration"
    LAKE = "lake"


class BackupKind(StrEnum):
    """How much of a store one backup holds."""

    FULL = "full"
    INCREMENTAL = "incremental"
    AOF = "aof"


class BackupState(StrEnum):
    """How far a backup is trusted. Each state is written once, and none is taken back but by FAILED."""

    UPLOADED = "UPLOADED"
    VERIFIED = "VERIFIED"
    PROVEN = "PROVEN"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object of the vault.

    Attributes:
        name: in the vault; bound into the encryption, so that objects cannot be exchanged for one another.
        size_bytes: of the plain bytes.
        stored_bytes: of the object, compressed and encrypted.
        sha256: of the plain bytes, hexadecimal.
    """

    name: str
    size_bytes: int
    stored_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Backup:
    """One backup, as the catalogue keeps it.

    Attributes:
        backup_id: `<UTC time>-<kind>-<random>`: unique, in order of beginning.
        store: what was backed up.
        source: which of several servers or databases of that store, e.g. "hot".
        kind: of the backup.
        parent_id: what an incremental rests on.
        incarnation: which history the positions belong to; another after every restore.
        began_at: when it was begun, in UTC.
        ended_at: when its last object was stored.
        begins: the log position from which a restore has to replay.
        ends: the position from which the restored store is consistent.
        objects: everything it consists of, in the order of restoring.
        facts: what the store's own restore needs to know (versions, slot map, file names); no secret.
    """

    backup_id: str
    store: StoreName
    source: str
    kind: BackupKind
    parent_id: str | None
    incarnation: str
    began_at: datetime
    ended_at: datetime
    begins: str
    ends: str
    objects: tuple[StoredObject, ...]
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Count the plain bytes."""
        return sum(stored.size_bytes for stored in self.objects)

    @property
    def stored_bytes(self) -> int:
        """Count the bytes in the bucket."""
        return sum(stored.stored_bytes for stored in self.objects)

    @property
    def prefix(self) -> str:
        """Return the place of its objects in the vault."""
        return f"backups/{self.store}/{self.source}/{self.backup_id}/"


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A backup with how far it is trusted.

    Attributes:
        backup: the backup.
        state: the furthest state it reached.
        proven_at: when a server was last started on it and found right.
        problem: why a check failed; empty if none did.
    """

    backup: Backup
    state: BackupState
    proven_at: datetime | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class LogRange:
    """A stretch of a store's log in the vault: every change with `begins <= position < ends`.

    Attributes:
        store: whose log.
        source: which server of that store.
        incarnation: the history it belongs to.
        timeline: PostgreSQL's timeline; 0 elsewhere.
        begins: first position, inclusive.
        ends: last position, exclusive.
        stored: the object that holds it.
        stored_at: when the bucket had it, by the bucket's clock.
    """

    store: StoreName
    source: str
    incarnation: str
    timeline: int
    begins: str
    ends: str
    stored: StoredObject
    stored_at: datetime
