"""Directories as drills and recoveries see them: the newest snapshot before a moment, in a directory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import SecretStr

from tiering.errors import HeldError, VerificationError
from tiering.model_backup import BackupState, CatalogueEntry, StoreName
from tiering.model_drill import Beat, Defect, Window
from tiering.ops import restore_files
from tiering.ops.catalogue import Catalogue
from tiering.ops.recoverers import Restored


@dataclass(frozen=True)
class FilesRecoverer:
    """See `Recoverer`. Places are directories.

    Attributes:
        catalogue: of the bucket.
        store: APPLICATION_DATA or CONFIGURATION.
        source: which of several.
        scratch: where directories are restored meanwhile; None: the system's place.
    """

    catalogue: Catalogue
    store: StoreName
    source: str
    scratch: Path | None = None

    def newest(self) -> CatalogueEntry:
        """See `Recoverer.newest`."""
        return restore_files.newest(self.catalogue, self.store, self.source)

    def window(self) -> Window:
        """See `Recoverer.window`: the moments of the snapshots, and none between."""
        self.newest()
        entries = self.catalogue.entries(self.store, self.source)
        usable = [entry.backup for entry in entries if entry.state is not BackupState.FAILED]
        moments = tuple(sorted(backup.began_at for backup in usable))
        return Window(self.store, self.source, moments[0], moments[-1], moments)

    @contextmanager
    def restore(self, at: datetime) -> Iterator[Restored]:
        """See `Recoverer.restore`."""
        backup = restore_files.newest(self.catalogue, self.store, self.source, at).backup
        with tempfile.TemporaryDirectory(prefix="tiering-files-", dir=self.scratch) as home:
            into = Path(home) / "restored"
            done = restore_files.restore(self.catalogue.vault, backup, into, outside_links=True)
            facts = {"files": done.files, "bytes": done.size_bytes, "torn": len(done.torn)}
            yield Restored(
                self.store, self.source, backup.began_at, SecretStr(""), into, backup.backup_id, facts
            )  # fmt: skip

    def check(self, restored: Restored) -> Sequence[Defect]:
        """See `Recoverer.check`: the directory is read again and compared with the snapshot."""
        assert restored.directory is not None
        try:
            restore_files.check(self.catalogue.entry(restored.backup_id).backup, restored.directory)
        except VerificationError as exc:
            return (Defect("wrong_files", f"{self.store}/{self.source}", str(exc)),)
        return ()

    def beats(self, restored: Restored, site: Mapping[str, str]) -> list[Beat] | None:
        """See `Recoverer.beats`: files keep none."""
        return None

    def shapes(self, restored: Restored, site: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
        """See `Recoverer.shapes`: files have none."""
        return {}

    def shown(self, place: str) -> str:
        """See `Recoverer.shown`."""
        return place

    def occupant(self, place: str) -> str:
        """See `Recoverer.occupant`."""
        path = Path(place)
        return f"a directory with {len(list(path.iterdir()))} entries" if path.is_dir() and any(path.iterdir()) else ""

    def recover(self, at: datetime, place: str, *, is_approved: bool) -> str:
        """See `Recoverer.recover`. What is in the directory is set aside, not overwritten."""
        backup = restore_files.newest(self.catalogue, self.store, self.source, at).backup
        into, aside = Path(place), ""
        if occupant := self.occupant(place):
            if not is_approved:
                raise HeldError("recover", place, f"{occupant} is there", "Name an empty directory, or approve.")
            aside = f"{place.rstrip('/')}.before-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
            into.rename(aside)
        done = restore_files.restore(self.catalogue.vault, backup, into)
        told = f"{done.files:,} files as of {backup.began_at:%Y-%m-%d %H:%M:%S} UTC, from {backup.backup_id}"
        told += f"; what was there is in {aside}" if aside else ""
        return told + (f"; links that lead out were left out: {', '.join(done.left_out[:5])}" if done.left_out else "")
