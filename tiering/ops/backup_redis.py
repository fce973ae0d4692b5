"""Back Redis up: a snapshot of every master, or its append-only files, as one set with its map of slots.

The masters' snapshots are of N moments close together, and nothing ties keys of different slots to one of them: a
value that spans slots may be restored half. Redis is a cache here and never counts as a copy (DESIGN §4); what it holds
that nothing else does are sessions, and those fit one slot each.

Does not: restore (`restore_redis`), prove (`prove_redis`), or choose when (`plan/backups.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from pydantic import SecretStr

from tiering.errors import CommitConflict, PermanentError, StoreUnavailable
from tiering.model_backup import Backup, BackupKind, StoredObject, StoreName
from tiering.ops.catalogue import Catalogue, new_backup_id
from tiering.stores.redis_aof import Beginning, held
from tiering.stores.redis_wire import SLOTS, Master, Slots, Topology, at, look, snapshot

Progress = Callable[[int, str], None]
"""Told of bytes stored and of the master they are from."""


@dataclass(frozen=True, slots=True)
class Part:
    """One master's snapshot in a backup, as its facts tell.

    Attributes:
        node_id: of the master then.
        slots: that it served, inclusive ranges; empty outside of a cluster.
        keys: in it, by its own count.
        expiring: how many of them have a time to live.
        offset: of the replication history.
        objects: that hold it.
        files: of an append-only backup: names, the list of them first, and the objects of each.
    """

    node_id: str
    slots: Slots
    keys: int
    expiring: int
    offset: int
    objects: tuple[StoredObject, ...]
    files: tuple[tuple[str, tuple[StoredObject, ...]], ...] = ()


def backup(
    catalogue: Catalogue, url: SecretStr, source: str, now: datetime, progress: Progress = lambda *_: None
) -> Backup:
    """Take a snapshot of every master over the wire, one after another (a fork at a time).

    Args:
        catalogue: where it goes.
        url: of a Redis, or of any node of a cluster; the user may replicate.
        source: which Redis, e.g. "main".
        now: when it is taken.
        progress: told of bytes and masters.

    Raises:
        LeaseHeld: another backup of this Redis is being taken.
        StoreUnavailable: a master does not answer, or slots are not served.
        CommitConflict: slots are on their way between masters, or went meanwhile; try again afterwards.
    """
    return _backup(catalogue, url, source, BackupKind.FULL, now, progress)


def backup_aof(
    catalogue: Catalogue, url: SecretStr, source: str, now: datetime, progress: Progress = lambda *_: None
) -> Backup:
    """Copy the append-only files of every master, whose data directories must be on this machine.

    Args: see `backup`; the user may read the server's settings.

    Raises:
        PermanentError: a master keeps none, or elsewhere.
        CommitConflict: as `backup`; or a master does nothing but rewrite its files.
        LeaseHeld, StoreUnavailable: as `backup`.
    """
    return _backup(catalogue, url, source, BackupKind.AOF, now, progress)


def _backup(
    catalogue: Catalogue, url: SecretStr, source: str, kind: BackupKind, now: datetime, progress: Progress
) -> Backup:
    take = _take if kind is BackupKind.FULL else _take_aof
    backup_id = new_backup_id(kind, now)
    prefix = f"backups/{StoreName.REDIS}/{source}/{backup_id}/"
    with catalogue.lease(StoreName.REDIS, source, backup_id, now):
        before = look(url)
        check_settled(before, source)
        parts, moments = [], []
        for number, master in enumerate(before.masters):
            moments.append(datetime.now(UTC))
            parts.append(take(catalogue, url, master, f"{prefix}master-{number:03d}.", progress))
        after = look(url)
        check_settled(after, source)
        if (before.masters, before.epoch) != (after.masters, after.epoch):
            raise CommitConflict("back up", f"redis/{source}", "masters or slots changed meanwhile", "Try again.")
        found = Backup(
            backup_id, StoreName.REDIS, source, kind, None, "cluster" if before.is_cluster else "single",
            now, max(now, datetime.now(UTC)), "", "", tuple(stored for part in parts for stored in part.objects),
            _facts(before, parts, min(moments)),
        )  # fmt: skip
        catalogue.publish(found)
    return found


def check_settled(topology: Topology, source: str) -> None:
    """Refuse a cluster in which slots have no master or are moving.

    Raises:
        StoreUnavailable: slots are not served.
        CommitConflict: slots are moving: a key could be in two snapshots, or in none.
    """
    subject = f"redis/{source}"
    if topology.moving:
        cause = f"slots are on their way between masters: {' '.join(topology.moving[:4])}"
        raise CommitConflict("back up", subject, cause, "Wait for the resharding to end, then try again.")
    if topology.is_cluster and topology.slots_served != SLOTS:
        cause = f"only {topology.slots_served} of {SLOTS} slots have a master"
        raise StoreUnavailable("back up", subject, cause, "`redis-cli --cluster check` tells what is missing.")


def parts_of(backup: Backup) -> list[Part]:
    """Read the masters' snapshots out of a backup's facts.

    Raises:
        PermanentError: the facts are of no backup of Redis.
    """
    objects = {stored.name: stored for stored in backup.objects}
    try:
        return [
            Part(
                str(one["node_id"]), tuple((int(begin), int(end)) for begin, end in one["slots"]), int(one["keys"]),
                int(one["expiring"]), int(one["offset"]), tuple(objects[name] for name in one["objects"]),
                tuple((str(file), tuple(objects[name] for name in names)) for file, names in one.get("files", [])),
            )
            for one in cast("list[dict[str, Any]]", backup.facts["masters"])
        ]  # fmt: skip
    except (KeyError, TypeError, ValueError) as exc:
        raise PermanentError("read", backup.backup_id, f"its facts are not those of a Redis backup: {exc}") from exc


def moment_of(backup: Backup) -> datetime:
    """Return the moment that every snapshot of the set has reached."""
    return datetime.fromisoformat(str(backup.facts["moment"]))


def _take(catalogue: Catalogue, url: SecretStr, master: Master, prefix: str, progress: Progress) -> Part:
    subject = f"{master.host}:{master.port}"
    with snapshot(at(url, master), subject) as (about, stream):
        objects = catalogue.vault.put_stream(f"{prefix}rdb.", stream)
    progress(sum(stored.size_bytes for stored in objects), subject)
    return Part(master.node_id, master.slots, about.keys, about.expiring, about.offset, objects)


def _take_aof(catalogue: Catalogue, url: SecretStr, master: Master, prefix: str, progress: Progress) -> Part:
    subject = f"{master.host}:{master.port}"
    with held(at(url, master), subject) as found:
        vault = catalogue.vault
        listed = vault.put(f"{prefix}aof.manifest", found.manifest)
        files: list[tuple[str, tuple[StoredObject, ...]]] = [(found.manifest_name, (listed,))]
        for number, file in enumerate(found.files):
            stream = Beginning(file, subject).as_file()
            files.append((file.name, vault.put_stream(f"{prefix}aof-{number:03d}.", stream)))
    objects = tuple(stored for _, those in files for stored in those)
    progress(sum(stored.size_bytes for stored in objects), subject)
    return Part(master.node_id, master.slots, found.keys, found.expiring, found.offset, objects, tuple(files))


def _facts(topology: Topology, parts: list[Part], moment: datetime) -> Mapping[str, object]:
    masters = [
        {
            "node_id": part.node_id,
            "config_epoch": master.config_epoch,
            "slots": [list(span) for span in part.slots],
            "keys": part.keys,
            "expiring": part.expiring,
            "offset": part.offset,
            "objects": [stored.name for stored in part.objects],
            "files": [[name, [stored.name for stored in those]] for name, those in part.files],
        }
        for part, master in zip(parts, topology.masters, strict=True)
    ]
    return {
        "version": topology.version,
        "is_cluster": topology.is_cluster,
        "epoch": topology.epoch,
        "moment": moment.isoformat(),
        "masters": masters,
    }
