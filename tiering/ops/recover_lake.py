"""The lake's and the files' buckets as drills and recoveries see them: an inventory, on an object store of its own."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from tiering.errors import HeldError, NotFound, PermanentError
from tiering.model_backup import Backup, BackupState, CatalogueEntry, StoredObject, StoreName
from tiering.model_drill import Beat, Defect, Window
from tiering.ops.backup_lake import Version, inventory
from tiering.ops.catalogue import Catalogue
from tiering.ops.chunks import ChunkReader
from tiering.ops.recoverers import Restored
from tiering.ops.restore_files import newest
from tiering.stores.objects import S3Objects
from tiering.stores.vault import Vault

REGION = "us-east-1"
Place = tuple[str, SecretStr, SecretStr]
"""An object store: its URL, access key and secret key."""

ScratchObjects = Callable[[], AbstractContextManager[Place]]
"""Starts an empty object store; see `infra/local/scratch_servers.py`."""


@dataclass(frozen=True)
class LakeRecoverer:
    """See `Recoverer`. Places are URLs of an object store with its keys: `http://access:secret@host:port`.

    A moment between two inventories is brought back from the one before it: what was archived since is not in it, and
    the questions that a drill asks find that out.

    Attributes:
        catalogue: of the bucket of backups.
        source: which lake.
        servers: starts empty object stores.
    """

    catalogue: Catalogue
    source: str
    servers: ScratchObjects
    store: StoreName = StoreName.LAKE

    def newest(self) -> CatalogueEntry:
        """See `Recoverer.newest`."""
        return newest(self.catalogue, self.store, self.source)

    def window(self) -> Window:
        """See `Recoverer.window`: the moments of the inventories, and none between."""
        self.newest()
        entries = self.catalogue.entries(self.store, self.source)
        usable = [entry.backup for entry in entries if entry.state is not BackupState.FAILED]
        moments = tuple(sorted(backup.began_at for backup in usable))
        return Window(self.store, self.source, moments[0], moments[-1], moments)

    @contextmanager
    def restore(self, at: datetime) -> Iterator[Restored]:
        """See `Recoverer.restore`."""
        backup = newest(self.catalogue, self.store, self.source, at).backup
        with self.servers() as place:
            count, size = put_all(self.catalogue.vault, backup, place)
            facts: dict[str, object] = {"objects": count, "bytes": size, "s3_url": place[0]}
            facts |= {"s3_access_key": place[1], "s3_secret_key": place[2]}
            facts["uncopied"] = backup.facts["uncopied_count"]
            yield Restored(self.store, self.source, backup.began_at, SecretStr(""), None, backup.backup_id, facts)

    def check(self, restored: Restored) -> Sequence[Defect]:
        """See `Recoverer.check`: every object that was to be there is; their bytes were compared when written."""
        backup = self.catalogue.entry(restored.backup_id).backup
        _, versions = inventory(self.catalogue.vault, backup)
        lacking = [one for one in versions if one.problem and one.is_latest and not one.is_deletion]
        subject = f"{self.store}/{self.source}"
        if not lacking:
            return ()
        text = f"{len(lacking)} objects were never copied, {lacking[0].key} first: {lacking[0].problem}"
        return (Defect("missing_object", subject, text),)

    def beats(self, restored: Restored, site: Mapping[str, str]) -> list[Beat] | None:
        """See `Recoverer.beats`: the moment of the inventory counts."""
        return None

    def shapes(self, restored: Restored, site: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
        """See `Recoverer.shapes`: objects have none."""
        return {}

    def shown(self, place: str) -> str:
        """See `Recoverer.shown`."""
        parts = urlsplit(place)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    def occupant(self, place: str) -> str:
        """See `Recoverer.occupant`."""
        names = _names(self.newest().backup)
        held = [name for role, name in names.items() if _is_used(_bucket(_place(place), name))]
        return f"buckets with objects: {', '.join(held)}" if held else ""

    def recover(self, at: datetime, place: str, *, is_approved: bool) -> str:
        """See `Recoverer.recover`. Objects that are there stay; `restore_lake.restore` judges them by the catalog."""
        backup = newest(self.catalogue, self.store, self.source, at).backup
        if (occupant := self.occupant(place)) and not is_approved:
            raise HeldError("recover", self.shown(place), occupant, "Name an empty object store, or approve.")
        count, size = put_all(self.catalogue.vault, backup, _place(place))
        return f"{count:,} objects, {size:,} bytes, as of {backup.began_at:%Y-%m-%d %H:%M:%S} UTC"


def put_all(vault: Vault, backup: Backup, place: Place) -> tuple[int, int]:
    """Write the objects of an inventory's moment into buckets of their names; return how many, and their bytes.

    Objects that are there already are left as they are.

    Raises:
        CorruptCopy: a part is not what was stored.
    """
    table, versions = inventory(vault, backup)
    names = _names(backup)
    buckets = {role: _bucket(place, name) for role, name in names.items()}
    for role, bucket in buckets.items():
        bucket.ensure_bucket(versioned=role != "lake", lockable=role == "lake")
    latest = [one for one in versions if one.is_latest and not one.is_deletion and not one.problem]
    size = 0
    for one in latest:
        size += _put(vault, table, one, buckets[one.bucket])
    return len(latest), size


def _put(vault: Vault, table: Sequence[StoredObject], one: Version, bucket: S3Objects) -> int:
    try:
        bucket.stat(one.key)
        return 0
    except NotFound:
        pass
    with ChunkReader(vault, table) as reader:
        data = b"".join(reader.read(one.pieces))
    bucket.put_new(one.key, io.BytesIO(data), len(data), one.sha256 or hashlib.sha256(data).hexdigest())
    return len(data)


def _names(backup: Backup) -> dict[str, str]:
    told: Any = backup.facts["buckets"]
    if not told:
        raise PermanentError("restore", backup.backup_id, "it does not say how its buckets were called")
    return {str(role): str(name) for role, name in told.items()}


def _bucket(place: Place, name: str) -> S3Objects:
    return S3Objects(place[0], name, place[1], place[2], REGION)


def _is_used(bucket: S3Objects) -> bool:
    try:
        return any(True for _ in bucket.list())
    except NotFound:
        return False


def _place(place: str) -> Place:
    parts = urlsplit(place)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return bare, SecretStr(unquote(parts.username or "")), SecretStr(unquote(parts.password or ""))
