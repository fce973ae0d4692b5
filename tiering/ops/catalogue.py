"""The catalogue: which backups exist, how far each is trusted, and which stretches of log there are.

The bucket is the truth and suffices: a machine with the bucket and the key knows everything. A backup exists once its
UPLOADED record does, which is written last; whatever lies in the bucket without one is a leftover.

    catalogue/<store>/<source>/<backup id>/UPLOADED                     the whole of `Backup`
    catalogue/<store>/<source>/<backup id>/<STATE>-<UTC time>           one check: VERIFIED, PROVEN or FAILED
    catalogue/<store>/<source>/<backup id>/REMOVED                      retention gave it up: it is gone for everybody
    log/<store>/<source>/<incarnation>/<timeline>/<begins>-<ends>       one stretch of log
    lease/…                                                             who backs up what; see `ops/backup_lease.py`

Why records apart from the objects: listing them costs one request for a thousand records, however large the backups.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta

from tiering.errors import (
    AlreadyExists,
    CorruptCopy,
    KeyMissing,
    LeaseHeld,
    NotFound,
    SettingsError,
    StoreFull,
    TieringError,
    TransientError,
)
from tiering.model_backup import (
    Backup,
    BackupKind,
    BackupState,
    CatalogueEntry,
    LogRange,
    StoredObject,
    StoreName,
    decode_position,
    encode_position,
)
from tiering.ops.backup_lease import EXPIRES_AFTER, Lease, take
from tiering.stores import backup_rows
from tiering.stores.postgres import Postgres
from tiering.stores.vault import Vault

RECORDS = "catalogue/"
UPLOADED = "UPLOADED"
REMOVED = "REMOVED"
NOT_ITS_FAULT = (TransientError, KeyMissing, SettingsError, StoreFull)
"""What stops a check and says nothing of the backup: an outage, a key or a room that is not here. Nothing is marked."""

_ID_TIME = "%Y%m%dT%H%M%SZ"
_RECORD_TIME = "%Y%m%dT%H%M%S.%fZ"
_RANKS = {BackupState.VERIFIED: 0, BackupState.PROVEN: 1, BackupState.FAILED: 2}
_READERS = 16
_HINT = "`tiering backups` shows what there is."


@dataclass(frozen=True, slots=True)
class Record:
    """The outcome of one check of a backup, as its object's name tells it."""

    state: BackupState
    at: datetime
    name: str


@dataclass(frozen=True, slots=True)
class Listed:
    """A backup as the names of its records tell it: nothing of it was read yet."""

    store: StoreName
    source: str
    backup_id: str
    is_uploaded: bool
    is_removed: bool
    records: tuple[Record, ...]

    @property
    def place(self) -> str:
        """Return where its records are."""
        return _place(self.store, self.source, self.backup_id)

    @property
    def prefix(self) -> str:
        """Return where its objects are."""
        return f"backups/{self.store}/{self.source}/{self.backup_id}/"


@dataclass(frozen=True)
class Catalogue:
    """Backups and logs of one bucket. Safe to share between threads.

    Attributes:
        vault: where everything is.
        expires_after: how long a lease outlives the last sign of life of its holder.
    """

    vault: Vault
    expires_after: timedelta = EXPIRES_AFTER
    _held: dict[tuple[StoreName, str], Lease] = field(default_factory=dict, init=False, repr=False, compare=False)
    _read: dict[str, Backup] = field(default_factory=dict, init=False, repr=False, compare=False)

    def publish(self, backup: Backup) -> None:
        """Make a backup exist: write its record, after everything else of it.

        Under a lease of its store and source, the lease is spent first: of two who believe to hold it one publishes.

        Raises:
            LeaseHeld: somebody else took the lease over meanwhile; the backup does not exist.
            NotFound: an object of it is not in the bucket, or its parent is not in the catalogue.
            AlreadyExists: there is such a backup, with other contents.
        """
        self._check_complete(backup)
        if lease := self._held.get((backup.store, backup.source)):
            lease.spend()
        self._put_once(_place(backup.store, backup.source, backup.backup_id) + UPLOADED, _to_json(backup))

    def mark(
        self, backup: Backup, state: BackupState, at: datetime, details: Mapping[str, object], problem: str = ""
    ) -> None:
        """Record a check of a backup; several over time are kept, each written once.

        Raises:
            AlreadyExists: another check ended in the same microsecond with the same state.
        """
        if state is BackupState.UPLOADED:
            raise ValueError("UPLOADED is written by publish()")
        name = f"{_place(backup.store, backup.source, backup.backup_id)}{state}-{at.astimezone(UTC):{_RECORD_TIME}}"
        told = {"state": state, "at": at.isoformat(), "details": dict(details), "problem": problem}
        self._put_once(name, json.dumps(told, sort_keys=True).encode())

    def entries(self, store: StoreName | None = None, source: str | None = None) -> list[CatalogueEntry]:
        """Return every backup, the oldest first.

        One whose record cannot be read counts as FAILED, with the reason: the others must stay of use.

        Raises:
            KeyMissing: there are backups, and the key of every one of them is missing.
        """
        found = [one for one in self.listed(store, source) if one.is_uploaded and not one.is_removed]
        with ThreadPoolExecutor(_READERS, "catalogue") as pool:
            entries = list(pool.map(self._entry_or_problem, found))
        missing = [problem for _, problem in entries if isinstance(problem, KeyMissing)]
        if missing and len(missing) == len(entries):
            raise missing[0]
        return sorted((entry for entry, _ in entries), key=lambda entry: entry.backup.backup_id)

    def entry(self, backup_id: str) -> CatalogueEntry:
        """Return one backup.

        Raises:
            NotFound: there is none of that name.
            CorruptCopy, KeyMissing: its record cannot be read.
        """
        for one in self.listed():
            if one.backup_id == backup_id and one.is_uploaded and not one.is_removed:
                return self._entry(one)
        raise NotFound("find", backup_id, "no such backup in the catalogue", _HINT)

    def listed(self, store: StoreName | None = None, source: str | None = None) -> list[Listed]:
        """Return what the names of records tell, in one listing: also backups removed or not readable."""
        prefix = RECORDS + (f"{store}/" + (f"{source}/" if source else "") if store else "")
        together: dict[tuple[str, str, str], list[str]] = {}
        for stat in self.vault.names(prefix):
            _, of_store, of_source, backup_id, name = stat.key.split("/")
            if source in (None, of_source):
                together.setdefault((of_store, of_source, backup_id), []).append(name)
        return [_listed(StoreName(key[0]), key[1], key[2], names) for key, names in together.items()]

    def checks(self, one: Backup) -> list[dict[str, object]]:
        """Return every check of a backup with its details, in order of time."""
        found = self.listed(one.store, one.source)
        records = [record for listed in found if listed.backup_id == one.backup_id for record in listed.records]
        return [json.loads(self.vault.read(record.name)) for record in records]

    def put_log(
        self,
        store: StoreName,
        source: str,
        incarnation: str,
        timeline: int,
        begins: str,
        ends: str,
        data: bytes,
    ) -> LogRange:
        """Store a stretch of log; a second time with the same bytes is no error.

        Raises:
            AlreadyExists: this stretch was stored with other bytes.
        """
        place = _log_place(store, source, incarnation)
        name = f"{place}{timeline:08x}/{encode_position(begins)}-{encode_position(ends)}"
        stored = self._put_once(name, data)
        stat = next(self.vault.names(name))
        return LogRange(store, source, incarnation, timeline, begins, ends, stored, stat.modified_at)

    def logs(self, store: StoreName, source: str, incarnation: str | None = None) -> list[LogRange]:
        """Return the stretches of log in order of incarnation, timeline and position, from their names alone.

        Their `stored` knows neither size nor hash of the plain bytes: read with `vault.read(name)`, which checks all.
        """
        found = []
        for stat in self.vault.names(_log_place(store, source, incarnation)):
            _, _, _, history, timeline, positions = stat.key.split("/")
            begins, _, ends = positions.partition("-")
            stored = StoredObject(stat.key, 0, stat.size, "")
            span = (decode_position(begins), decode_position(ends))
            found.append(
                LogRange(store, source, history, int(timeline, 16), *span, stored=stored, stored_at=stat.modified_at)
            )
        return found

    @contextmanager
    def lease(self, store: StoreName, source: str, owner: str, now: datetime) -> Iterator[Lease]:
        """Be the only one to do this, e.g. to back up `source`; renewed by a thread until the end.

        Raises:
            LeaseHeld: somebody else is at it and gave a sign of life lately.
        """
        key = (store, source)
        with take(self.vault, f"{store}/{source}", owner, now, self.expires_after) as lease:
            if key in self._held:
                raise LeaseHeld("lease", f"{store}/{source}", "this process holds it already", "Wait for it to end.")
            self._held[key] = lease
            try:
                yield lease
            finally:
                del self._held[key]

    def bury(self, one: Listed, reason: str, now: datetime) -> None:
        """Write the mark that a backup is removed: from here on nobody sees it; its objects go after."""
        told = {"reason": reason, "at": now.isoformat()}
        try:
            self.vault.put(one.place + REMOVED, json.dumps(told, sort_keys=True).encode())
        except AlreadyExists:
            return

    def _entry(self, one: Listed) -> CatalogueEntry:
        name = one.place + UPLOADED
        backup = self._read.get(name)
        if backup is None:
            backup = self._read.setdefault(name, _from_json(self.vault.read(name), name))
        return self._judged(backup, one.records)

    def _entry_or_problem(self, one: Listed) -> tuple[CatalogueEntry, TieringError | None]:
        try:
            return self._entry(one), None
        except (CorruptCopy, KeyMissing) as exc:
            return CatalogueEntry(_nameless(one), BackupState.FAILED, None, f"record cannot be read: {exc}"), exc

    def _judged(self, backup: Backup, records: tuple[Record, ...]) -> CatalogueEntry:
        """Give the furthest state; a failure takes it back, until a server was started on the backup again."""
        state, proven_at, problem = BackupState.UPLOADED, None, ""
        for record in records:
            if record.state is BackupState.PROVEN:
                state, proven_at, problem = record.state, record.at, ""
            elif record.state is BackupState.FAILED:
                problem = str(json.loads(self.vault.read(record.name))["problem"])
                state = record.state
            elif state is BackupState.UPLOADED:
                state = record.state
        return CatalogueEntry(backup, state, proven_at, problem)

    def _check_complete(self, backup: Backup) -> None:
        there = {stat.key: stat.size for stat in self.vault.names(backup.prefix)}
        for stored in backup.objects:
            if stored.name.startswith(backup.prefix) and there.get(stored.name) != stored.stored_bytes:
                hint = "Nothing was published; back up again."
                raise NotFound("publish", stored.name, "the bucket does not have this object of the backup", hint)
        if backup.parent_id:
            siblings = self.listed(backup.store, backup.source)
            if not any(one.backup_id == backup.parent_id and not one.is_removed for one in siblings):
                hint = "Take a full backup."
                raise NotFound("publish", backup.backup_id, f"its parent {backup.parent_id} is not there", hint)

    def _put_once(self, name: str, data: bytes) -> StoredObject:
        """Store, or find the same bytes stored: a lost answer makes the second try meet the first."""
        try:
            return self.vault.put(name, data)
        except AlreadyExists:
            if self.vault.read(name) != data:
                raise
            return StoredObject(name, len(data), next(self.vault.names(name)).size, hashlib.sha256(data).hexdigest())


def new_backup_id(kind: BackupKind, now: datetime) -> str:
    """Name a backup: `20261123T020000Z-full-0a1b2c`."""
    return f"{now.astimezone(UTC):{_ID_TIME}}-{kind}-{secrets.token_hex(3)}"


def mirror(catalogue: Catalogue, database: Postgres) -> int:
    """Write the catalogue into PostgreSQL, to be asked in SQL; return the number of backups."""
    entries = catalogue.entries()
    backup_rows.mirror(database, entries)
    return len(entries)


def began_at(backup_id: str) -> datetime:
    """Read the time out of a backup's name."""
    return datetime.strptime(backup_id.split("-")[0], _ID_TIME).replace(tzinfo=UTC)


def _place(store: StoreName, source: str, backup_id: str) -> str:
    return f"{RECORDS}{store}/{source}/{backup_id}/"


def _log_place(store: StoreName, source: str, incarnation: str | None) -> str:
    return f"log/{store}/{source}/" + (f"{incarnation}/" if incarnation else "")


def _listed(store: StoreName, source: str, backup_id: str, names: list[str]) -> Listed:
    place = _place(store, source, backup_id)
    records = [
        Record(BackupState(state), datetime.strptime(at, _RECORD_TIME).replace(tzinfo=UTC), place + name)
        for name in names
        for state, dash, at in [name.partition("-")]
        if dash
    ]
    records.sort(key=lambda record: (record.at, _RANKS[record.state]))
    return Listed(store, source, backup_id, UPLOADED in names, REMOVED in names, tuple(records))


def _nameless(one: Listed) -> Backup:
    """Tell of a backup what its name tells."""
    begun = began_at(one.backup_id)
    kind = BackupKind(one.backup_id.split("-")[1])
    return Backup(one.backup_id, one.store, one.source, kind, None, "", begun, begun, "", "", ())


def _to_json(backup: Backup) -> bytes:
    told = asdict(backup) | {"began_at": backup.began_at.isoformat(), "ended_at": backup.ended_at.isoformat()}
    return json.dumps(told, sort_keys=True).encode()


def _from_json(data: bytes, name: str) -> Backup:
    try:
        told = json.loads(data)
        told["store"], told["kind"] = StoreName(told["store"]), BackupKind(told["kind"])
        for key in ("began_at", "ended_at"):
            told[key] = datetime.fromisoformat(told[key])
        told["objects"] = tuple(StoredObject(**stored) for stored in told["objects"])
        return Backup(**told)
    except (ValueError, TypeError, KeyError) as exc:
        hint = "It was written by another version of this program; use that one."
        raise CorruptCopy("read", name, f"the record is not understood ({exc})", hint) from exc
