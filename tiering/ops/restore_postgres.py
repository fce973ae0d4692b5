"""Bring a moment of PostgreSQL back: base backup, increment and log become a data directory that recovers to it.

Every target becomes the position of one record: the last that is replayed. So the operator is shown which commit is
the last one in it and which the first one not, and PostgreSQL itself refuses to end anywhere earlier.

Every link is held to its own manifest before it is combined (pg_combinebackup makes clean manifests of corrupt links),
and the result once more. The log is fetched whole before any server is started, so an outage of the bucket is an error
here and never the end of the log to a server.

Does not: start a server (`stores/scratch.py` is the port of that), or write into a directory that has something in it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from errno import EDQUOT, ENOSPC
from pathlib import Path

from tiering.errors import AlreadyExists, NotFound, StoreFull
from tiering.model_backup import Backup, StoreName
from tiering.ops.catalogue import Catalogue
from tiering.ops.wal_archive import LogArchive
from tiering.ops.wal_scan import Found, Scan
from tiering.plan import recovery
from tiering.plan.recovery import Target, at
from tiering.stores.pg_manifest import verify_directory
from tiering.stores.pg_tar import unpack
from tiering.stores.pg_tools import PgTools, configure_recovery, lsn_text

Progress = Callable[[int, str], None]

CONFIGURATION = """
# Written by `tiering restore`: a restored server recovers to its target and touches nothing of the old one.
restore_command = 'exit 1'  # all that is needed lies in pg_wal, checked; recovery fails if it were not
recovery_target = ''
recovery_target_time = ''
recovery_target_xid = ''
recovery_target_name = ''
recovery_target_lsn = '{stop}'
recovery_target_inclusive = on
recovery_target_timeline = '{timeline}'
recovery_target_action = 'promote'
archive_mode = off
archive_command = ''
archive_library = ''
primary_conninfo = ''
primary_slot_name = ''
synchronous_standby_names = ''
listen_addresses = '127.0.0.1'
"""


@dataclass(frozen=True, slots=True)
class Moment:
    """A target, resolved.

    Attributes:
        links: the backups to restore, the full one first.
        timeline: the branch of history.
        stop: where the last record begins that is replayed.
        beyond: where the record after it begins; 0: there is none.
        last_included: the last commit in it; None: none since the base.
        first_excluded: the first commit not in it.
    """

    links: tuple[Backup, ...]
    timeline: int
    stop: int
    beyond: int
    last_included: Found | None
    first_excluded: Found | None

    def __str__(self) -> str:
        words = [f"to {lsn_text(self.stop)} on timeline {self.timeline}, from {self.links[-1].backup_id}"]
        words.append(f"last commit included: {self.last_included or 'none since that backup'}")
        words.append(f"first excluded: {self.first_excluded or 'none, it is the end of the log'}")
        return "; ".join(words)


@dataclass(frozen=True, slots=True)
class RestoredDirectory:
    """A data directory that recovers to a moment when a server is started on it."""

    directory: Path
    moment: Moment


def restore(
    catalogue: Catalogue,
    target: Target,
    into: Path,
    source: str,
    tools: PgTools,
    *,
    incarnation: str | None = None,
    backup_id: str | None = None,
    progress: Progress = lambda *_: None,
) -> RestoredDirectory:
    """Make a data directory of a moment.

    Args:
        catalogue: where the backups are.
        target: the moment.
        into: a directory that is empty or not there; its file system needs room for every link.
        source: which server's.
        tools: PostgreSQL's programs, of the server's version.
        incarnation: which system; None: the one backed up last.
        backup_id: the backup to begin with; None: the newest that ends before the moment.
        progress: told of bytes.

    Raises:
        AlreadyExists: `into` is not empty.
        NotFound: the moment cannot be brought back; the reason says what can.
        CorruptCopy: a stored byte is not what was written.
        KeyMissing: the key is not here.
        StoreFull: there is no room.
        StoreUnavailable: the bucket did not answer; nothing was started.
    """
    refuse_full(into)
    into.parent.mkdir(parents=True, exist_ok=True)
    with _full_is_said(into), scan_of(catalogue, source, tools, into.parent, target.timeline, incarnation) as scan:
        moment = resolve(catalogue, scan, target, source, backup_id)
        _check_room(moment, into, scan)
        progress(0, str(moment))
        _lay_base(catalogue, moment.links, into, tools, progress)
        (into / "pg_wal").mkdir(mode=0o700, exist_ok=True)
        ends = max(moment.beyond, scan.archive.covered_until(moment.stop) if not moment.beyond else 0)
        scan.deliver(into / "pg_wal", at(moment.links[-1].begins), ends, moment.timeline)
        configure_recovery(into, CONFIGURATION.format(stop=lsn_text(moment.stop), timeline=moment.timeline))
    return RestoredDirectory(into, moment)


def resolve(catalogue: Catalogue, scan: Scan, target: Target, source: str, backup_id: str | None = None) -> Moment:
    """Find which backup, and which record of the log, a target means.

    Raises:
        NotFound: it cannot be brought back, and why.
    """
    entries = catalogue.entries(StoreName.POSTGRESQL, source)
    path = scan.archive.path
    bases = recovery.usable_bases(entries, path, scan.incarnation)
    if backup_id is not None:
        bases = [one for one in bases if one.backup_id == backup_id]
        if not bases:
            hint = "`tiering backups` shows the usable ones."
            raise NotFound("restore", backup_id, "no usable backup of this name on this branch of history", hint)
    for base in recovery.bases_before(bases, target):
        found = scan.find(target, at(base.begins), at(base.ends))
        if found is not None:
            links = recovery.links_of(base, entries)
            timeline = next(one.timeline for one in path if found.stop < one.ends)
            return Moment(links, timeline, found.stop, found.beyond, found.included, found.excluded)
    raise recovery.refuse_early(bases, target)


@contextmanager
def scan_of(
    catalogue: Catalogue,
    source: str,
    tools: PgTools,
    near: Path,
    timeline: int = 0,
    incarnation: str | None = None,
) -> Iterator[Scan]:
    """Open the log of a source for looking into it; what is fetched is gone afterwards.

    Raises:
        NotFound: the source has no backup.
    """
    newest = newest_of(catalogue, source, incarnation)
    segment_bytes = int(str(newest.facts["wal_segment_bytes"]))
    archive = LogArchive(catalogue, source, newest.incarnation, segment_bytes, timeline)
    with tempfile.TemporaryDirectory(prefix=".tiering-log-", dir=near) as private:
        yield Scan(archive, tools, Path(private), newest.incarnation)


def newest_of(catalogue: Catalogue, source: str, incarnation: str | None = None) -> Backup:
    """Return the newest backup of a source, to know which system it is.

    Raises:
        NotFound: there is none.
    """
    entries = [
        entry.backup
        for entry in catalogue.entries(StoreName.POSTGRESQL, source)
        if incarnation in (None, entry.backup.incarnation) and entry.backup.facts
    ]
    if not entries:
        hint = "Take one: `tiering backup postgresql`. Is it the right bucket?"
        raise NotFound("restore", f"postgresql/{source}", "there is no readable backup", hint)
    return entries[-1]


def refuse_full(into: Path) -> None:
    """Refuse a directory with something in it: nothing of anybody is ever overwritten.

    Raises:
        AlreadyExists: it has.
    """
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise AlreadyExists("restore", str(into), "it is not an empty directory", "Name one that is empty or new.")


def verify_backup(catalogue: Catalogue, backup: Backup) -> None:
    """Read every byte of a backup and hold every file to its manifest, on no disk.

    Raises:
        CorruptCopy, KeyMissing, NotFound: what is wrong.
    """
    _unpack(catalogue, backup, None)


def _lay_base(catalogue: Catalogue, links: tuple[Backup, ...], into: Path, tools: PgTools, progress: Progress) -> None:
    if len(links) == 1:
        into.mkdir(mode=0o700, exist_ok=True)
        into.chmod(0o700)
        _unpack(catalogue, links[0], into, progress)
        return
    with tempfile.TemporaryDirectory(prefix=".tiering-links-", dir=into.parent) as private:
        directories = [Path(private) / link.backup_id for link in links]
        for link, directory in zip(links, directories, strict=True):
            directory.mkdir(mode=0o700)
            _unpack(catalogue, link, directory, progress)
        tools.combine(directories, into)
        into.chmod(0o700)
        verify_directory(into, links[-1].backup_id)


def _unpack(catalogue: Catalogue, backup: Backup, directory: Path | None, progress: Progress = lambda *_: None) -> None:
    manifest, *parts = backup.objects
    data = catalogue.vault.fetch(manifest)
    with catalogue.vault.stream(parts) as stream:
        unpack(stream, data, directory, backup.backup_id)
    if directory is not None:
        (directory / "backup_manifest").write_bytes(data)
    progress(backup.size_bytes, backup.backup_id)


@contextmanager
def _full_is_said(into: Path) -> Iterator[None]:
    """Tell a full file system by its name: the log is fetched before its size is known, and others write there, too."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in (ENOSPC, EDQUOT):
            raise
        hint = "Restore into another file system. No server was started."
        raise StoreFull("restore", str(into), "its file system is full", hint) from exc


def _check_room(moment: Moment, into: Path, scan: Scan) -> None:
    """Ask for the room of every link, the result's changed files, and twice the log."""
    log_bytes = moment.stop - at(moment.links[-1].begins) + 2 * scan.archive.segment_bytes
    links = [link.size_bytes for link in moment.links]
    needed = sum(links) + sum(links[1:]) + 2 * log_bytes
    free = shutil.disk_usage(into.parent).free
    if free < needed:
        cause = f"it needs about {needed >> 20} MiB, and there are {free >> 20} MiB"
        raise StoreFull("restore", str(into), cause, "Restore into another file system. Nothing was written.")


def window(catalogue: Catalogue, source: str, tools: PgTools, near: Path) -> tuple[datetime, datetime]:
    """Say which moments can be brought back: from the end of the oldest usable backup to the last commit stored.

    Raises:
        NotFound: none.
    """
    with scan_of(catalogue, source, tools, near) as scan:
        entries = catalogue.entries(StoreName.POSTGRESQL, source)
        bases = recovery.usable_bases(entries, scan.archive.path, scan.incarnation)
        if not bases:
            raise recovery.refuse_early(bases, Target(recovery.TargetKind.LATEST))
        last = scan.last_commit(at(bases[0].begins))
        oldest = min(bases, key=lambda one: at(one.ends))
        begins = recovery.ended_at(oldest)
        return begins, max(begins, last.ended_at) if last else begins
