"""The port of a recovery: what drills and real recoveries ask of each kind of store, with the contract in prose.

`recover_postgres.py`, `recover_mongo.py`, `recover_redis.py`, `recover_lake.py` and `recover_files.py` are the
implementations, each over the backups of its store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from pydantic import SecretStr

from tiering.model_backup import CatalogueEntry, StoreName
from tiering.model_drill import Beat, Defect, Window


@dataclass(frozen=True, slots=True)
class Restored:
    """A store brought back on servers of its own, up and ready.

    Attributes:
        store: which.
        source: which server of it.
        at: the moment it was brought back to, as asked for, or that of its snapshot.
        url: of the server; for PostgreSQL and MongoDB without a database.
        directory: of files that were brought back; None for servers.
        backup_id: the backup it rests on.
        facts: what else its probes need.
    """

    store: StoreName
    source: str
    at: datetime
    url: SecretStr
    directory: Path | None
    backup_id: str
    facts: Mapping[str, object] = field(default_factory=dict)


class Recoverer(Protocol):
    """One source of one store, seen from the backup bucket alone."""

    @property
    def store(self) -> StoreName:
        """Which store."""

    @property
    def source(self) -> str:
        """Which server of it."""

    def newest(self) -> CatalogueEntry:
        """Return the newest backup of any kind.

        Raises:
            NotFound: there is none.
        """

    def window(self) -> Window:
        """Say which moments can be brought back.

        Raises:
            NotFound: none.
        """

    def restore(self, at: datetime) -> AbstractContextManager[Restored]:
        """Bring a moment back on servers of its own, isolated, and end them when the body is left.

        Raises:
            NotFound: a backup or a piece of the log is missing.
            CorruptCopy: a stored byte is not what was written.
            KeyMissing: it was sealed with a key that is not here.
            PermanentError: the moment cannot be reached; nothing else was restored in its place.
        """

    def check(self, restored: Restored) -> Sequence[Defect]:
        """Look into a restored store as its own tools do, and count what the backup said is there."""

    def beats(self, restored: Restored, site: Mapping[str, str]) -> list[Beat] | None:
        """Read the heartbeats; None: this store keeps none that count."""

    def shapes(self, restored: Restored, site: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
        """Describe it as `ops/expect.py` described the primary: by the same names."""

    def shown(self, place: str) -> str:
        """Write a place without a password."""

    def occupant(self, place: str) -> str:
        """Say what lives in a place, e.g. "a server with 3 databases"; empty: nothing, it may be written to."""

    def recover(self, at: datetime, place: str, *, is_approved: bool) -> str:
        """Bring a moment back into a place, verify it there, and say what was done.

        Raises:
            HeldError: something lives there, and nobody approved.
            TieringError: as `restore`.
        """
