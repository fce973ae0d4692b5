"""The nouns of backup and recovery. A *backup* is one restorable set of objects; a *log* is what happened since.

Positions are texts in the store's own notation, comparable only within one incarnation: an LSN `0/3000028` for
PostgreSQL, `seconds,increment` for MongoDB, an offset for Redis, empty where a store has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
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


@dataclass(frozen=True, slots=True)
class BackupSchedule:
    """When backups of one kind are taken of a store.

    Attributes:
        kind: of the backups.
        times: of every day, in UTC, ascending.
        on_change: also whenever something changed.
    """

    kind: BackupKind
    times: tuple[time, ...]
    on_change: bool = False


@dataclass(frozen=True, slots=True)
class StoreStrategy:
    """What the owner promises for one store.

    Attributes:
        store: which.
        schedules: one per kind, in the order of the file.
        retention: how long a backup of each kind is kept.
        log_window: over how long any moment can be brought back; None without a continuous log.
    """

    store: StoreName
    schedules: tuple[BackupSchedule, ...]
    retention: Mapping[BackupKind, timedelta]
    log_window: timedelta | None = None


@dataclass(frozen=True, slots=True)
class BackupStrategy:
    """The owner's `backup_strategy:`."""

    stores: tuple[StoreStrategy, ...]

    def of(self, store: StoreName) -> StoreStrategy | None:
        """Return what is promised for a store; None if nothing is."""
        return next((one for one in self.stores if one.store is store), None)


_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_SECONDS = re.compile(r"(\d{1,10}),(\d{1,10})")
_OFFSET = re.compile(r"\d{1,20}")


def encode_position(position: str) -> str:
    """Write a position so that texts sort as positions do, and may stand in an object's name.

    Raises:
        ValueError: it is no LSN, no `seconds,increment` and no offset.
    """
    if found := _LSN.fullmatch(position):
        return f"{int(found[1], 16):08X}{int(found[2], 16):08X}"
    if found := _SECONDS.fullmatch(position):
        return f"{int(found[1]):010d}.{int(found[2]):010d}"
    if _OFFSET.fullmatch(position):
        return f"{int(position):020d}"
    raise ValueError(f"not a log position: {position!r}")


def decode_position(encoded: str) -> str:
    """Read what `encode_position` wrote.

    Raises:
        ValueError: it is something else.
    """
    if len(encoded) == 16 and "." not in encoded:
        return f"{int(encoded[:8], 16):X}/{int(encoded[8:], 16):X}"
    if len(encoded) == 21 and encoded[10] == ".":
        return f"{int(encoded[:10])},{int(encoded[11:])}"
    if len(encoded) == 20:
        return str(int(encoded))
    raise ValueError(f"not an encoded log position: {encoded!r}")
