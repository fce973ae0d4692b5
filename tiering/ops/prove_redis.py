"""Prove a backup of Redis: read every byte of it, then start servers on it and compare."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from tiering.errors import TieringError
from tiering.model_backup import Backup, BackupState
from tiering.ops.backup_redis import parts_of
from tiering.ops.catalogue import NOT_ITS_FAULT, Catalogue
from tiering.ops.restore_redis import Servers, check_map, load


def verify(catalogue: Catalogue, backup: Backup, now: datetime) -> int:
    """Read every object of a backup and compare it with the record; mark it VERIFIED. Returns the bytes read.

    Raises:
        CorruptCopy, NotFound: an object is not what was written; the backup is FAILED.
        VerificationError: its map of slots is not whole; the backup is FAILED.
    """
    try:
        check_map(backup, parts_of(backup))
        read = sum(len(catalogue.vault.fetch(stored)) for stored in backup.objects)
    except NOT_ITS_FAULT:
        raise
    except TieringError as exc:
        catalogue.mark(backup, BackupState.FAILED, now, {"check": "verify"}, str(exc))
        raise
    catalogue.mark(backup, BackupState.VERIFIED, now, {"objects": len(backup.objects), "bytes": read})
    return read


def prove(catalogue: Catalogue, backup: Backup, now: datetime, servers: Servers, scratch: Path | None = None) -> int:
    """Start servers on a backup, compare keys and slots, mark it PROVEN. Returns the keys.

    Raises:
        TieringError: it does not start, or is not what it says; the backup is FAILED.
    """
    try:
        with load(catalogue, backup, servers, scratch) as copy:
            facts = {"keys": copy.keys, "expired": copy.expired, "servers": len(copy.urls)}
    except NOT_ITS_FAULT:
        raise
    except TieringError as exc:
        catalogue.mark(backup, BackupState.FAILED, now, {"check": "prove"}, str(exc))
        raise
    catalogue.mark(backup, BackupState.PROVEN, now, facts)
    return copy.keys
