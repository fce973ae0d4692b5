"""Restore snapshots of directories, and prove them: read every part, bring everything back, compare."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tiering.errors import CorruptCopy, NotFound, TieringError, VerificationError
from tiering.model_backup import Backup, BackupState, CatalogueEntry, StoreName
from tiering.ops.backup_files import Reading, Sources, digest_of, list_of
from tiering.ops.catalogue import NOT_ITS_FAULT, Catalogue
from tiering.ops.chunks import ChunkReader, find_spoiled
from tiering.stores.file_tree import FILE, TreeWriter
from tiering.stores.vault import Vault

Progress = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class RestoredFiles:
    """What was brought back.

    Attributes:
        files: how many.
        size_bytes: of them.
        left_out: links that lead out of the directory, or may.
        torn: files that were changing when they were backed up.
    """

    files: int
    size_bytes: int
    left_out: tuple[str, ...]
    torn: tuple[str, ...]


def newest(catalogue: Catalogue, store: StoreName, source: str, at: datetime | None = None) -> CatalogueEntry:
    """Return the newest snapshot, of `at` or before, that no check found wanting.

    Raises:
        NotFound: there is none.
    """
    entries = [entry for entry in catalogue.entries(store, source) if at is None or entry.backup.began_at <= at]
    usable = [entry for entry in entries if entry.state is not BackupState.FAILED]
    if not usable:
        cause = entries[-1].problem if entries else "there is no backup" + (f" of {at} or before" if at else "")
        raise NotFound("find", f"{store}/{source}", cause, "`tiering backups` shows what there is.")
    return usable[-1]


def restore(
    vault: Vault,
    backup: Backup,
    into: Path,
    *,
    outside_links: bool = False,
    progress: Progress = lambda *_: None,
) -> RestoredFiles:
    """Write a snapshot into a directory that is empty or does not exist.

    Args:
        vault: that holds it.
        backup: which.
        into: where to.
        outside_links: make links that lead out of the directory, too.
        progress: told of bytes and files.

    Raises:
        AlreadyExists: there is something in the directory.
        CorruptCopy: a part is not what was stored; what was written by then is right, but not all.
        StoreFull: no room.
    """
    table, listed = list_of(vault, backup)
    with TreeWriter(into) as tree, ChunkReader(vault, table) as reader:
        for one in listed:
            tree.add(one.node, reader.read(one.pieces))
            progress(one.node.size, one.node.path)
        left_out = tree.finish(outside_links=outside_links)
    files = [one.node for one in listed if one.node.kind == FILE]
    torn = tuple(node.path for node in files if node.is_torn)
    return RestoredFiles(len(files), sum(node.size for node in files), tuple(left_out), torn)


def verify(catalogue: Catalogue, backup: Backup, now: datetime) -> int:
    """Read every part of a snapshot and compare it with the record; mark it VERIFIED. Returns the bytes read.

    Raises:
        CorruptCopy: parts are not what was stored; the backup is FAILED, and the next one stores them anew.
    """
    read, problems = find_spoiled(catalogue.vault, backup.objects)
    if problems:
        text = f"{len(problems)} of {len(backup.objects)} parts: {next(iter(problems.values()))}"
        details = {"check": "verify", "spoiled": sorted(problems)}
        catalogue.mark(backup, BackupState.FAILED, now, details, text)
        raise CorruptCopy("verify", backup.backup_id, text, "Take a backup now; older ones: `tiering backups`.")
    catalogue.mark(backup, BackupState.VERIFIED, now, {"objects": len(backup.objects), "bytes": read})
    return read


def prove(catalogue: Catalogue, backup: Backup, now: datetime, scratch: Path | None = None) -> int:
    """Restore a snapshot, read what is there then and compare; mark it PROVEN. Returns the number of files.

    Raises:
        TieringError: it does not come back as it was; the backup is FAILED.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="tiering-files-", dir=scratch) as home:
            into = Path(home) / "restored"
            done = restore(catalogue.vault, backup, into, outside_links=True)
            check(backup, into)
    except NOT_ITS_FAULT:
        raise
    except TieringError as exc:
        catalogue.mark(backup, BackupState.FAILED, now, {"check": "prove"}, str(exc))
        raise
    catalogue.mark(backup, BackupState.PROVEN, now, {"files": done.files, "bytes": done.size_bytes})
    return done.files


def check(backup: Backup, directory: Path) -> None:
    """Read a restored directory and compare it with what the snapshot says of itself.

    Raises:
        VerificationError: it is another.
    """
    reading = Reading(Sources({"": directory}))
    for _ in reading.blocks():
        pass
    found = digest_of(node for _, node in reading.nodes)
    if found != backup.facts["digest"]:
        files = sum(node.kind == FILE for _, node in reading.nodes)
        cause = f"{files} files are there, the snapshot has {backup.facts['files']}, and they are not the same"
        raise VerificationError("check", backup.backup_id, cause, "Choose another backup: `tiering backups`.")
