"""Redis as drills and recoveries see it: the newest snapshots before a moment, on servers of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from tiering import errors
from tiering.model_backup import Backup, BackupState, CatalogueEntry, StoreName
from tiering.model_drill import Beat, Defect, Window
from tiering.ops import restore_redis
from tiering.ops.backup_redis import moment_of
from tiering.ops.catalogue import Catalogue
from tiering.ops.recoverers import Restored
from tiering.stores.beats import RedisBeats
from tiering.stores.redis_keys import count_keys
from tiering.stores.redis_wire import SLOTS, look

BEATS_MAX = 10_000


@dataclass(frozen=True)
class RedisRecoverer:
    """See `Recoverer`. Places are URLs of a server, or of a node of a cluster.

    Attributes:
        catalogue: of the bucket.
        source: which Redis.
        servers: starts masters on snapshots.
        scratch: where snapshots are put meanwhile; None: the system's place.
    """

    catalogue: Catalogue
    source: str
    servers: restore_redis.Servers
    scratch: Path | None = None
    store: StoreName = StoreName.REDIS

    def newest(self) -> CatalogueEntry:
        """See `Recoverer.newest`."""
        return restore_redis.newest(self.catalogue, self.source)

    def window(self) -> Window:
        """See `Recoverer.window`: the moments of the backups, and none between."""
        self.newest()
        moments = tuple(sorted(moment_of(backup) for backup in self._usable()))
        return Window(self.store, self.source, moments[0], moments[-1], moments)

    @contextmanager
    def restore(self, at: datetime) -> Iterator[Restored]:
        """See `Recoverer.restore`."""
        backup = self._backup_at(at)
        with restore_redis.load(self.catalogue, backup, self.servers, self.scratch) as copy:
            facts = {"keys": copy.keys, "expired": copy.expired, "is_cluster": bool(backup.facts["is_cluster"])}
            yield Restored(self.store, self.source, moment_of(backup), copy.urls[0], None, backup.backup_id, facts)

    def check(self, restored: Restored) -> Sequence[Defect]:
        """See `Recoverer.check`: every slot is served. Keys were counted while they were loaded."""
        found = look(restored.url)
        if found.is_cluster and found.slots_served != SLOTS:
            text = f"{found.slots_served} of {SLOTS} slots are served"
            return (Defect("wrong_slot_map", f"{self.store}/{self.source}", text),)
        return ()

    def beats(self, restored: Restored, site: Mapping[str, str]) -> list[Beat] | None:
        """See `Recoverer.beats`."""
        ledger = RedisBeats(f"{self.store}/{self.source}", restored.url)
        try:
            return ledger.read(BEATS_MAX)
        finally:
            ledger.close()

    def shapes(self, restored: Restored, site: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
        """See `Recoverer.shapes`: keys have none."""
        return {}

    def shown(self, place: str) -> str:
        """See `Recoverer.shown`."""
        return f"redis://{urlsplit(place).netloc.rpartition('@')[2]}"

    def occupant(self, place: str) -> str:
        """See `Recoverer.occupant`."""
        keys = count_keys(SecretStr(place))
        return f"{keys:,} keys" if keys else ""

    def recover(self, at: datetime, place: str, *, is_approved: bool) -> str:
        """See `Recoverer.recover`."""
        backup = self._backup_at(at)
        keys = restore_redis.restore(
            self.catalogue, backup, SecretStr(place), self.servers, is_approved=is_approved, scratch=self.scratch
        )
        return f"{keys:,} keys as of {moment_of(backup):%Y-%m-%d %H:%M:%S} UTC, from {backup.backup_id}"

    def _usable(self) -> list[Backup]:
        entries = self.catalogue.entries(self.store, self.source)
        return [entry.backup for entry in entries if entry.state is not BackupState.FAILED]

    def _backup_at(self, at: datetime) -> Backup:
        """Choose the newest backup of `at` or before."""
        before = [backup for backup in self._usable() if moment_of(backup) <= at]
        if not before:
            cause = f"no usable backup is of {at:%Y-%m-%d %H:%M:%S} UTC or before"
            raise errors.NotFound(
                "find", f"{self.store}/{self.source}", cause, "`tiering backups` shows what there is."
            )
        return max(before, key=moment_of)
