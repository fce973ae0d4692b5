"""Bring the lake's bucket to the moment of its restored catalog: every object that it names is there, and right.

The catalog comes back with PostgreSQL: pointers and ledger. Each object that they lead to is looked for in the bucket,
then among the bucket's older versions, then in the inventories of the vault. All is found before anything is written;
an object that is nowhere refuses the whole, by name: a catalog over a hole is no lake.
Does not: remove what the catalog does not name; `ops/sweep.py` does, in its time.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from tiering.errors import (
    CorruptCopy,
    HeldError,
    InDeepArchive,
    NotFound,
    TieringError,
    VerificationError,
)
from tiering.model_backup import Backup, BackupState, StoredObject, StoreName
from tiering.ops.backup_lake import Version, inventory
from tiering.ops.catalogue import NOT_ITS_FAULT, Catalogue
from tiering.ops.chunks import ChunkReader, find_spoiled
from tiering.stores.lake_walk import Reference, ledger_references, pointers, table_references
from tiering.stores.objects import S3Objects
from tiering.stores.postgres import Postgres
from tiering.stores.vault import Vault

Progress = Callable[[int, str], None]
LAKE = "lake"
NAMED_MAX = 10


@dataclass(frozen=True, slots=True)
class RestoredLake:
    """What was done.

    Attributes:
        tables: of the catalog.
        objects: that it needs, all of them right now.
        present: of these were right already.
        from_versions: came back from older versions in the bucket.
        from_vault: came back from the backups.
        not_there: superseded copies that are gone: nobody's data.
    """

    tables: int
    objects: int
    present: int
    from_versions: int
    from_vault: int
    not_there: tuple[str, ...]


def restore(
    catalogue: Catalogue,
    database: Postgres,
    target: S3Objects,
    *,
    source: str = "main",
    is_approved: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda *_: None,
) -> RestoredLake:
    """Make every object right that the restored catalog and ledger name.

    Args:
        catalogue: of the backups.
        database: restored, with schema `tiering`.
        target: the lake's bucket: what survived of it, or an empty one of the same name.
        source: whose inventories.
        is_approved: put a right version over objects whose bytes are wrong; the bucket must keep versions.
        dry_run: find everything, write nothing.
        progress: told of bytes and objects.

    Raises:
        NotFound: an object is neither in the bucket nor in the vault; nothing was written.
        HeldError: an object is there with wrong bytes, and nobody approved; nothing was written.
        KeyMissing: the vault's key is not here.
    """
    search = _Search(catalogue, target, source)
    named = pointers(database)
    wanted: dict[str, Reference] = {}
    missing: list[str] = []
    for location in named.values():
        try:
            for one in table_references(location, search.read):
                _add(wanted, one)
        except (NotFound, CorruptCopy) as exc:
            missing.append(exc.subject)
    for named_by_ledger in ledger_references(database):
        _add(wanted, named_by_ledger)
    found = [search.find(one) for one in wanted.values()]
    missing += [one.reference.location for one in found if one.where == "" and one.reference.is_needed]
    if missing:
        text = ", ".join(sorted(set(missing))[:NAMED_MAX])
        hint = f"Restore the catalog to {search.newest_moment() or 'a moment that has an inventory'} or before."
        raise NotFound("restore", "lake", f"{len(set(missing))} objects are in no place: {text}", hint)
    wrong = [one for one in found if one.is_over]
    if wrong and not is_approved:
        cause = f"{len(wrong)} objects have other bytes than they should, {wrong[0].reference.location} first"
        raise HeldError("restore", "lake", cause, "Approve that right versions are put over them.")
    if not dry_run:
        for other in found:
            if other.where in ("version", "vault"):
                progress(search.put(other), other.reference.location)
    counts = {where: sum(one.where == where for one in found) for where in ("present", "version", "vault", "")}
    gone = tuple(one.reference.location for one in found if one.where == "")
    return RestoredLake(
        len(named), len(found) - len(gone), counts["present"], counts["version"], counts["vault"], gone
    )  # fmt: skip


def _add(wanted: dict[str, Reference], one: Reference) -> None:
    """Take in a reference: what any of them says counts."""
    known = wanted.get(one.location, one)
    size = max(known.size, one.size)
    needed = known.is_needed or one.is_needed
    wanted[one.location] = Reference(one.location, size, known.sha256 or one.sha256, needed)


@dataclass(frozen=True, slots=True)
class _Found:
    """Where an object's right bytes are: "present", "version", "vault", or "" for nowhere."""

    reference: Reference
    where: str
    data: Callable[[], bytes] | None = None
    is_over: bool = False


@dataclass
class _Search:
    """Looks for right bytes, nearest first. Every inventory of the source is opened once, when it is needed."""

    catalogue: Catalogue
    target: S3Objects
    source: str
    _opened: list[tuple[Backup, list[StoredObject], dict[str, list[Version]]]] | None = field(default=None, init=False)

    def find(self, one: Reference) -> _Found:
        key = self.target.key(one.location)
        sha256 = one.sha256 or self._known_hash(key, one.size)
        is_over = False
        try:
            data = self._whole(key)
            if _fits(data, one.size, sha256):
                return _Found(one, "present")
            is_over = True
        except NotFound:
            pass
        except CorruptCopy:
            is_over = True
        except InDeepArchive:
            return _Found(one, "present")  # nothing but a restore of days could tell more
        for version in self.target.versions_of(key):
            if not version.is_delete_marker and self._is_right(key, version.version_id, one.size, sha256):
                return _Found(one, "version", partial(self._version, key, version.version_id), is_over)
        for vault_version, table in self._copies(key):
            if _says(vault_version, one.size, sha256):
                try:
                    bytes_of(self.catalogue.vault, table, vault_version)
                except (CorruptCopy, NotFound):
                    continue
                copied = partial(bytes_of, self.catalogue.vault, table, vault_version)
                return _Found(one, "vault", copied, is_over)
        return _Found(one, "")

    def read(self, location: str) -> bytes:
        """Return the right bytes of an object of the metadata."""
        found = self.find(Reference(location))
        if found.where == "present":
            return self._whole(self.target.key(location))
        if found.data is None:
            raise NotFound("read", location, "it is neither in the bucket nor in the vault")
        return found.data()

    def put(self, one: _Found) -> int:
        assert one.data is not None
        key, data = self.target.key(one.reference.location), one.data()
        if one.is_over:
            self.target.put_over(key, data)
        else:
            self.target.put_new(key, io.BytesIO(data), len(data), hashlib.sha256(data).hexdigest())
        return len(data)

    def newest_moment(self) -> str:
        """Say of when the newest inventory is."""
        return max((str(backup.facts["moment"]) for backup, _, _ in self._inventories()), default="")

    def _known_hash(self, key: str, size: int) -> str:
        """Take the hash of the oldest copy: keys of the lake are written once, what came later is not right."""
        fitting = [one for one, _ in self._copies(key) if size in (-1, one.size)]
        return min(fitting, key=lambda one: one.modified_at).sha256 if fitting else ""

    def _copies(self, key: str) -> list[tuple[Version, list[StoredObject]]]:
        return [(one, table) for _, table, by_key in self._inventories() for one in by_key.get(key, ())]

    def _inventories(self) -> list[tuple[Backup, list[StoredObject], dict[str, list[Version]]]]:
        if self._opened is None:
            self._opened = []
            for entry in reversed(self.catalogue.entries(StoreName.LAKE, self.source)):
                by_key: dict[str, list[Version]] = {}
                try:
                    table, versions = inventory(self.catalogue.vault, entry.backup)
                except (CorruptCopy, NotFound, KeyError):
                    continue  # a spoiled inventory hides no other
                for one in versions:
                    if one.bucket == LAKE and one.sha256:
                        by_key.setdefault(one.key, []).append(one)
                self._opened.append((entry.backup, table, by_key))
        return self._opened

    def _whole(self, key: str) -> bytes:
        body = io.BytesIO()
        self.target.fetch(key, body)
        return body.getvalue()

    def _version(self, key: str, version_id: str) -> bytes:
        body = io.BytesIO()
        self.target.fetch_version(key, version_id, body)
        return body.getvalue()

    def _is_right(self, key: str, version_id: str, size: int, sha256: str) -> bool:
        try:
            return _fits(self._version(key, version_id), size, sha256)
        except (CorruptCopy, NotFound, InDeepArchive):
            return False


def _fits(data: bytes, size: int, sha256: str) -> bool:
    return size in (-1, len(data)) and (not sha256 or hashlib.sha256(data).hexdigest() == sha256)


def _says(version: Version, size: int, sha256: str) -> bool:
    return size in (-1, version.size) and (not sha256 or version.sha256 == sha256)


def bytes_of(vault: Vault, table: Sequence[StoredObject], version: Version) -> bytes:
    """Read a version's bytes out of the vault.

    Raises:
        CorruptCopy: they are not those that were copied.
    """
    with ChunkReader(vault, table) as reader:
        data = b"".join(reader.read(version.pieces))
    if len(data) != version.size or hashlib.sha256(data).hexdigest() != version.sha256:
        raise CorruptCopy("read", version.key, "its bytes in the vault are not those that were copied")
    return data


def verify(catalogue: Catalogue, backup: Backup, now: datetime) -> int:
    """Read every part of an inventory; mark it VERIFIED. Returns the bytes read.

    Raises:
        CorruptCopy: parts are not what was stored; the backup is FAILED, and the next one stores them anew.
    """
    read, problems = find_spoiled(catalogue.vault, backup.objects)
    if problems:
        text = f"{len(problems)} of {len(backup.objects)} parts: {next(iter(problems.values()))}"
        catalogue.mark(backup, BackupState.FAILED, now, {"check": "verify", "spoiled": sorted(problems)}, text)
        raise CorruptCopy("verify", backup.backup_id, text, "Take a backup now; older ones: `tiering backups`.")
    catalogue.mark(backup, BackupState.VERIFIED, now, {"objects": len(backup.objects), "bytes": read})
    return read


def prove(catalogue: Catalogue, backup: Backup, now: datetime) -> int:
    """Walk every table from the pointers of then, with nothing but the vault; mark it PROVEN. Returns the objects.

    Raises:
        TieringError: an object that a table needs is missing or wrong; the backup is FAILED.
    """
    try:
        count = _walk(catalogue.vault, backup)
    except NOT_ITS_FAULT:
        raise
    except TieringError as exc:
        catalogue.mark(backup, BackupState.FAILED, now, {"check": "prove"}, str(exc))
        raise
    catalogue.mark(backup, BackupState.PROVEN, now, {"objects": count})
    return count


def _walk(vault: Vault, backup: Backup) -> int:
    table, versions = inventory(vault, backup)
    names = backup.facts["buckets"]
    assert isinstance(names, dict)
    held = {f"s3://{names.get(LAKE, LAKE)}/{one.key}": one for one in versions if one.bucket == LAKE and one.is_latest}

    def read(location: str) -> bytes:
        if location not in held or held[location].problem:
            raise NotFound("prove", location, "the inventory has no copy of it")
        return bytes_of(vault, table, held[location])

    pointed = backup.facts["pointers"]
    assert isinstance(pointed, dict)
    wanted: dict[str, Reference] = {}
    for location in pointed.values():
        for one in table_references(location, read):
            _add(wanted, one)
    for one in wanted.values():
        if one.is_needed and not _fits(read(one.location), one.size, ""):
            raise VerificationError("prove", one.location, f"its copy has not the {one.size} bytes that the table says")
    for version in versions:
        if version.sha256:
            bytes_of(vault, table, version)
    return len(wanted)
