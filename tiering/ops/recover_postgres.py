"""PostgreSQL as drills and recoveries see it: base, increment and log, brought back on a server of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from tiering import errors
from tiering.model_backup import BackupState, CatalogueEntry, StoreName
from tiering.model_drill import Beat, Defect, Window
from tiering.ops import restore_postgres
from tiering.ops.catalogue import Catalogue
from tiering.ops.prove_postgres import check_reached
from tiering.ops.recover_mongo import with_database
from tiering.ops.recoverers import Restored
from tiering.ops.wal_archive import judge
from tiering.plan.recovery import Target, TargetKind
from tiering.stores.beats import PostgresBeats
from tiering.stores.pg_inspect import inspect
from tiering.stores.pg_tools import PgTools, lsn_text
from tiering.stores.postgres import Postgres
from tiering.stores.scratch import ScratchPostgres
from tiering.stores.shapes import postgres_shape

BEATS_MAX = 200_000


@dataclass(frozen=True)
class PostgresRecoverer:
    """See `Recoverer`. Places are data directories.

    Attributes:
        catalogue: of the bucket.
        source: which server.
        tools: PostgreSQL's programs.
        scratch: starts isolated servers on restored directories.
    """

    catalogue: Catalogue
    source: str
    tools: PgTools
    scratch: ScratchPostgres
    store: StoreName = StoreName.POSTGRESQL

    def newest(self) -> CatalogueEntry:
        """See `Recoverer.newest`."""
        entries = self.catalogue.entries(self.store, self.source)
        usable = [entry for entry in entries if entry.state is not BackupState.FAILED]
        if not usable:
            cause = entries[-1].problem if entries else "there is no backup"
            raise errors.NotFound("find", f"{self.store}/{self.source}", cause, "`tiering backups` shows all.")
        return usable[-1]

    def window(self) -> Window:
        """See `Recoverer.window`."""
        with self.scratch.directory() as near:
            begins, ends = restore_postgres.window(self.catalogue, self.source, self.tools, near)
        found = judge(self.catalogue, self.source, self.newest().backup.incarnation)
        gaps = [f"no log from {lsn_text(gap.begins)} to {lsn_text(gap.ends)}" for gap in found.gaps]
        return Window(self.store, self.source, begins, ends, gap=found.needs_full or "; ".join(gaps))

    @contextmanager
    def restore(self, at: datetime) -> Iterator[Restored]:
        """See `Recoverer.restore`."""
        with self.scratch.directory() as private:
            done = self._restore(at, private / "data")
            base = done.moment.links[-1]
            with self.scratch.start(done.directory, str(base.facts["superuser"])) as server:
                check_reached(done, server)
                facts = {"stop": lsn_text(done.moment.stop), "timeline": done.moment.timeline, "backup": base.facts}
                yield Restored(self.store, self.source, at, server.url(""), None, base.backup_id, facts)

    def check(self, restored: Restored) -> Sequence[Defect]:
        """See `Recoverer.check`: every relation is read and checked, and compared with what the backup knew."""
        facts = dict(cast(Mapping[str, Any], restored.facts["backup"]))
        findings = inspect(lambda database: with_database(restored.url, database), facts)
        subject = f"{self.store}/{self.source}"
        return [Defect("failed_verification", subject, problem) for problem in findings.problems]

    def beats(self, restored: Restored, site: Mapping[str, str]) -> list[Beat] | None:
        """See `Recoverer.beats`."""
        with self._opened(restored, site[self._key]) as database:
            return PostgresBeats(f"{self.store}/{self.source}", database).read(BEATS_MAX)

    def shapes(self, restored: Restored, site: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
        """See `Recoverer.shapes`."""
        keys = ("hot_pg", "warm_pg") if self.source == "main" else (self._key,)
        found = {}
        for name in sorted({site[key] for key in keys if site.get(key)}):
            with self._opened(restored, name) as database:
                found[f"postgresql/{name}"] = postgres_shape(database)
        return found

    def shown(self, place: str) -> str:
        """See `Recoverer.shown`."""
        return place

    def occupant(self, place: str) -> str:
        """See `Recoverer.occupant`."""
        directory = Path(place)
        if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
            return ""
        if not (directory / "PG_VERSION").exists():
            return "files that are no data directory of PostgreSQL"
        is_running = (directory / "postmaster.pid").exists()
        return "a data directory of PostgreSQL" + (", with a server running on it" if is_running else "")

    def recover(self, at: datetime, place: str, *, is_approved: bool) -> str:
        """See `Recoverer.recover`. What is there is put aside, not destroyed; a running server is refused."""
        directory, aside = Path(place), ""
        if occupant := self.occupant(place):
            if not is_approved or "running" in occupant:
                hint = "Stop the server first." if is_approved else "A person has to approve."
                raise errors.HeldError("recover", place, occupant, hint)
            kept = directory.with_name(f"{directory.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
            directory.rename(kept)
            aside = f"; what was there is in {kept}"
        done = self._restore(at, directory)
        return f"{done.moment}. Start the server: it recovers to there and refuses to end earlier{aside}"

    @property
    def _key(self) -> str:
        return "warm_pg" if self.source == "warm" else "hot_pg"

    def _restore(self, at: datetime, into: Path) -> restore_postgres.RestoredDirectory:
        return restore_postgres.restore(self.catalogue, Target(TargetKind.TIME, at), into, self.source, self.tools)

    @contextmanager
    def _opened(self, restored: Restored, name: str) -> Iterator[Postgres]:
        database = Postgres(with_database(restored.url, name), "restored PostgreSQL")
        try:
            yield database
        finally:
            database.close()
