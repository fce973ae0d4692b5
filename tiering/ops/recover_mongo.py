"""MongoDB as drills and recoveries see it: full backup and oplog, brought back to a moment on a server of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr

from tiering import errors
from tiering.model_backup import BackupState, CatalogueEntry, StoreName
from tiering.model_drill import Beat, Defect, Window
from tiering.ops import restore_mongo
from tiering.ops.catalogue import Catalogue
from tiering.ops.recoverers import Restored
from tiering.stores.beats import MongoBeats
from tiering.stores.documents import Documents
from tiering.stores.mongo_entries import Position, merged, wall_of_raw
from tiering.stores.mongo_server import MongoServer
from tiering.stores.shapes import mongo_shape

BEATS_MAX = 200_000


@dataclass(frozen=True)
class MongoRecoverer:
    """See `Recoverer`. Places are URLs of servers.

    Attributes:
        catalogue: of the bucket.
        source: which server.
        server: starts an empty, isolated one; yields its URL.
    """

    catalogue: Catalogue
    source: str
    server: Callable[[], AbstractContextManager[SecretStr]]
    store: StoreName = StoreName.MONGODB

    def newest(self) -> CatalogueEntry:
        """See `Recoverer.newest`."""
        return self._usable()[-1]

    def window(self) -> Window:
        """See `Recoverer.window`: from the end of the oldest backup to the last archived operation."""
        usable = self._usable()
        walls = [datetime.fromisoformat(str(entry.backup.facts["ends_wall"])) for entry in usable]
        ends = max(walls)
        ranges = self.catalogue.logs(self.store, self.source, usable[-1].backup.incarnation)
        if ranges:
            last = max(ranges, key=lambda one: Position.parse(one.ends))
            entries = merged([self.catalogue.vault.read(last.stored.name)])
            seen = [wall for _, raw in entries if (wall := wall_of_raw(raw)) is not None]
            # The operation at the end itself tells that the moment before it is complete.
            ends = max([ends, *(wall - timedelta(milliseconds=1) for wall in seen)])
        return Window(self.store, self.source, min(walls), ends)

    @contextmanager
    def restore(self, at: datetime) -> Iterator[Restored]:
        """See `Recoverer.restore`."""
        with self.server() as url:
            done = self._restore(at, url, is_approved=False)
            facts = {"documents": done.documents, "entries": done.entries, "position": done.at}
            yield Restored(self.store, self.source, at, url, None, done.backup_id, facts)

    def check(self, restored: Restored) -> Sequence[Defect]:
        """See `Recoverer.check`: as many documents as were restored, which an expiring index would have taken."""
        with MongoServer(restored.url, "restored MongoDB") as server:
            count = sum(
                server.collection(shape.namespace).count_documents({})
                for shape in server.shapes()
                if shape.kind == "collection"
            )
        expected = restored.facts["documents"]
        if count == expected:
            return ()
        text = f"{count} documents, {expected} were restored"
        return (Defect("ttl_deletion", f"{self.store}/{self.source}", text),)

    def beats(self, restored: Restored, site: Mapping[str, str]) -> list[Beat] | None:
        """See `Recoverer.beats`."""
        documents = Documents(with_database(restored.url, site.get("hot_mongo", "trading")), "restored MongoDB")
        try:
            return MongoBeats(f"{self.store}/{self.source}", documents).read(BEATS_MAX)
        finally:
            documents.close()

    def shapes(self, restored: Restored, site: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
        """See `Recoverer.shapes`."""
        found = {}
        for name in {site[key] for key in ("hot_mongo", "warm_mongo") if site.get(key)}:
            documents = Documents(with_database(restored.url, name), "restored MongoDB")
            try:
                found[f"mongodb/{name}"] = mongo_shape(documents)
            finally:
                documents.close()
        return found

    def shown(self, place: str) -> str:
        """See `Recoverer.shown`."""
        return f"mongodb://{urlsplit(place).netloc.rpartition('@')[2]}"

    def occupant(self, place: str) -> str:
        """See `Recoverer.occupant`."""
        with MongoServer(SecretStr(place), "place for MongoDB") as server:
            names = [shape.namespace for shape in server.shapes()]
        return f"{len(names)} collections, {names[0]} the first" if names else ""

    def recover(self, at: datetime, place: str, *, is_approved: bool) -> str:
        """See `Recoverer.recover`."""
        done = self._restore(at, SecretStr(place), is_approved=is_approved)
        return f"{done.documents:,} documents as of {done.at}, from {done.backup_id}; every one read back"

    def _restore(self, at: datetime, url: SecretStr, *, is_approved: bool) -> restore_mongo.Restored:
        target = at.isoformat()
        exact = [e for e in self._usable() if datetime.fromisoformat(str(e.backup.facts["ends_wall"])) == at]
        if exact:
            target = exact[-1].backup.ends  # needs no log
        return restore_mongo.restore(self.catalogue, target, url, now=at, source=self.source, is_approved=is_approved)

    def _usable(self) -> list[CatalogueEntry]:
        entries = self.catalogue.entries(self.store, self.source)
        usable = [entry for entry in entries if entry.state is not BackupState.FAILED]
        if not usable:
            cause = entries[-1].problem if entries else "there is no backup"
            raise errors.NotFound(
                "find", f"{self.store}/{self.source}", cause, "`tiering backups` shows what there is."
            )
        return usable


def with_database(url: SecretStr, database: str) -> SecretStr:
    """Put a database's name into a server's URL."""
    parts = urlsplit(url.get_secret_value())
    return SecretStr(urlunsplit(parts._replace(path=f"/{database}")))


def database_of(url: SecretStr) -> str:
    """Read a database's name out of a server's URL."""
    return urlsplit(url.get_secret_value()).path.strip("/")
