"""Prove a backup of PostgreSQL: read every byte of it, restore it, start a server on it, and look into every relation.

VERIFIED says that what is stored is what was backed up; PROVEN, that a server ran on it and its data was whole. A check
that fails marks the backup FAILED and raises: retention then counts on others.

Does not: choose what is proven when (`plan/backups.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

from tiering.errors import TieringError, VerificationError
from tiering.model_backup import Backup, BackupState
from tiering.ops.catalogue import NOT_ITS_FAULT, Catalogue
from tiering.ops.restore_postgres import RestoredDirectory, restore, verify_backup
from tiering.ops.wal_archive import LogArchive
from tiering.plan.recovery import Target, TargetKind, at
from tiering.stores.pg_inspect import Findings, inspect, reached
from tiering.stores.pg_tools import PgTools, lsn_text
from tiering.stores.scratch import ScratchPostgres, ScratchServer

Progress = Callable[[int, str], None]
LookInto = Callable[[ScratchServer], Mapping[str, object]]
"""Looks further into a proof's server, e.g. at heartbeats; raises what it finds wrong, returns what to note."""


def verify(catalogue: Catalogue, backup: Backup, now: datetime) -> None:
    """Read every stored byte of a backup and of the log that it needs; mark it VERIFIED.

    Raises:
        CorruptCopy, NotFound: what is wrong; the backup is marked FAILED.
        KeyMissing: nothing can be said, and nothing is marked.
    """
    began = time.monotonic()
    with _judged(catalogue, backup, now, began):
        verify_backup(catalogue, backup)
        segment_bytes = int(str(backup.facts["wal_segment_bytes"]))
        timeline = int(str(backup.facts["timeline"]))
        archive = LogArchive(catalogue, backup.source, backup.incarnation, segment_bytes, timeline)
        begins = at(backup.begins) - at(backup.begins) % segment_bytes
        if (reach := archive.covered_until(begins)) < at(backup.ends):
            cause = f"the log it needs ends at {lsn_text(reach)}, before {backup.ends}"
            raise VerificationError("verify", backup.backup_id, cause, "Take a new full backup.")
        for start in range(begins, at(backup.ends), segment_bytes):
            archive.segment(start)
    seconds = time.monotonic() - began
    details = {"seconds": round(seconds, 3), "bytes": backup.size_bytes}
    catalogue.mark(backup, BackupState.VERIFIED, now + timedelta(seconds=seconds), details)


def prove(
    catalogue: Catalogue,
    backup: Backup,
    now: datetime,
    tools: PgTools,
    scratch: ScratchPostgres,
    target: Target | None = None,
    look_into: LookInto | None = None,
    progress: Progress = lambda *_: None,
) -> Mapping[str, object]:
    """Restore a backup into a scratch server, replay the log to a target, check everything, and mark it PROVEN.

    Args:
        catalogue: of the backup.
        backup: what to prove; every link that it rests on is restored with it.
        now: the instant.
        tools: PostgreSQL's programs.
        scratch: where servers come from.
        target: how far to replay; None: to the end of the backup itself.
        look_into: looks further.
        progress: told of bytes.

    Returns: what was found, as it is kept in the catalogue.

    Raises:
        VerificationError, NotFound: what is wrong; the backup is marked FAILED.
        TransientError, KeyMissing: nothing can be said, and nothing is marked.
    """
    began = time.monotonic()
    wanted = target or Target(
        TargetKind.LSN, None, backup.ends, inclusive=False, timeline=int(str(backup.facts["timeline"]))
    )
    with _judged(catalogue, backup, now, began), scratch.directory() as private:
        restored = restore(
            catalogue, wanted, private / "data", backup.source, tools, incarnation=backup.incarnation,
            backup_id=backup.backup_id, progress=progress,
        )  # fmt: skip
        restored_after = time.monotonic() - began
        with scratch.start(restored.directory, str(backup.facts["superuser"])) as server:
            started_after = time.monotonic() - began
            findings, noted = _look(restored, server, backup, look_into)
        _check_pages(restored.directory, tools, backup)
    seconds = time.monotonic() - began
    details: dict[str, object] = {
        "moment": str(restored.moment), "links": [link.backup_id for link in restored.moment.links],
        "seconds": round(seconds, 3), "restore_seconds": round(restored_after, 3),
        "start_seconds": round(started_after - restored_after, 3), **findings.told(), **noted,
    }  # fmt: skip
    catalogue.mark(backup, BackupState.PROVEN, now + timedelta(seconds=seconds), details)
    return details


def check_reached(restored: RestoredDirectory, server: ScratchServer) -> None:
    """Hold what a server replayed to what was wanted.

    Why: pg_ctl says success while a recovery may still end early.

    Raises:
        VerificationError: it stopped elsewhere.
    """
    moment, (replayed, system_id) = restored.moment, reached(server.url())
    is_short = replayed <= moment.stop
    is_far = bool(moment.beyond) and replayed > moment.beyond
    if is_short or is_far or system_id != moment.links[-1].incarnation:
        cause = f"it recovered to {lsn_text(replayed)} of system {system_id}, wanted was {moment}"
        raise VerificationError("restore", str(restored.directory), cause, "Do not use it.")


def _look(
    restored: RestoredDirectory, server: ScratchServer, backup: Backup, look_into: LookInto | None
) -> tuple[Findings, Mapping[str, object]]:
    check_reached(restored, server)
    findings = inspect(server.url, dict(backup.facts))
    if findings.problems:
        cause = "; ".join(findings.problems[:5])
        raise VerificationError("prove", backup.backup_id, cause, "Keep it for a look; prove an older one.")
    return findings, look_into(server) if look_into else {}


def _check_pages(directory: Path, tools: PgTools, backup: Backup) -> None:
    if backup.facts.get("data_checksums") == "on":
        tools.check_pages(directory)


class _judged:
    """Mark a backup FAILED when what is raised speaks against it, and not against the network or the key."""

    def __init__(self, catalogue: Catalogue, backup: Backup, now: datetime, began: float) -> None:
        self._catalogue = catalogue
        self._backup = backup
        self._now = now
        self._began = began

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        if not isinstance(exc, TieringError) or isinstance(exc, NOT_ITS_FAULT):
            return
        ended = self._now + timedelta(seconds=time.monotonic() - self._began)
        # A link that failed is another backup's failure too; this one cannot be restored either way.
        self._catalogue.mark(self._backup, BackupState.FAILED, ended, {}, " ".join(str(exc).split()))
