"""Prove a backup of MongoDB: read every byte of it, then start a server on it and compare everything.

VERIFIED says that every object is what was stored. PROVEN says that a server was started on the backup, that its oplog
and the archived one were carried out, that every document was read back as it must be, that the indexes could be built,
and that the heartbeat's chain, where there is one, is unbroken.

Does not: choose the backup (`plan/backups.py`) or know how a server is started: whoever calls brings one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from datetime import datetime

from pydantic import SecretStr

from tiering.errors import FingerprintMismatch, NotFound, TieringError, VerificationError
from tiering.model_backup import Backup, BackupState
from tiering.ops import restore_mongo
from tiering.ops.backup_mongo import collections_of, oplog_of
from tiering.ops.catalogue import NOT_ITS_FAULT, Catalogue
from tiering.plan.heartbeat import judge_chain
from tiering.stores import mongo_layout
from tiering.stores.beats import COLLECTION, MongoBeats
from tiering.stores.bson_batches import print_of
from tiering.stores.documents import Documents
from tiering.stores.mongo_entries import Position, merged
from tiering.stores.mongo_server import MongoServer, with_database

Progress = Callable[[int, str], None]
Scratch = Callable[[], AbstractContextManager[SecretStr]]
"""Starts an empty server that nobody else reaches, and ends it; yields its URL."""

_SUM = 2**64
_BEATS_MAX = 200_000


@dataclass(frozen=True, slots=True)
class Proof:
    """What a proof found.

    Attributes:
        at: the position that was reached.
        documents: read back and compared.
        entries: of oplogs carried out.
        beats: of the heartbeat, over all its collections.
    """

    at: str
    documents: int
    entries: int
    beats: int


def verify(catalogue: Catalogue, backup: Backup, now: datetime, progress: Progress = lambda *_: None) -> None:
    """Read every object of a backup and compare it with what was dumped; mark the backup.

    Raises:
        CorruptCopy, FingerprintMismatch: something is not what was stored; the backup is marked FAILED.
        KeyMissing: nothing can be said, and nothing is marked.
    """
    try:
        _verify(catalogue, backup, progress)
    except (VerificationError, NotFound) as exc:
        catalogue.mark(backup, BackupState.FAILED, now, {"check": "verify"}, str(exc))
        raise
    catalogue.mark(backup, BackupState.VERIFIED, now, {"objects": len(backup.objects), "bytes": backup.size_bytes})


def prove(
    catalogue: Catalogue, backup: Backup, scratch: Scratch, now: datetime, progress: Progress = lambda *_: None
) -> Proof:
    """Restore a backup into a server of its own, as far as the archived oplog leads without a hole; mark the backup.

    Raises:
        TieringError: what is wrong with it; the backup is marked FAILED, but where a server or the bucket was away.
        KeyMissing: nothing can be said, and nothing is marked.
    """
    try:
        with scratch() as url:
            done = restore_mongo.restore(
                catalogue, _farthest(catalogue, backup), url, now=now, source=backup.source,
                backup_id=backup.backup_id, progress=progress,
            )  # fmt: skip
            beats = _check_beats(url)
    except NOT_ITS_FAULT:
        raise
    except TieringError as exc:
        catalogue.mark(backup, BackupState.FAILED, now, {"check": "prove"}, str(exc))
        raise
    proof = Proof(done.at, done.documents, done.entries, beats)
    details = {"at": proof.at, "documents": proof.documents, "entries": proof.entries, "beats": proof.beats}
    catalogue.mark(backup, BackupState.PROVEN, now, details)
    return proof


def _verify(catalogue: Catalogue, backup: Backup, progress: Progress) -> None:
    mongo_layout.shapes_from_json(catalogue.vault.fetch(backup.objects[0]))
    for one in collections_of(backup):
        count, total = 0, 0
        if one.objects:
            with catalogue.vault.stream(one.objects) as stream:
                for batch in mongo_layout.cut(stream):
                    found = print_of([batch])
                    count, total = count + found.row_count, (total + found.columns[0].hash_sum) % _SUM
                    progress(batch.size_bytes, one.namespace)
        if (count, total) != (one.count, one.hash_sum):
            cause = f"{count} documents of {one.count}, or other bytes"
            raise FingerprintMismatch("verify", f"{backup.backup_id} {one.namespace}", cause, "Take a new backup.")
    entries = merged([b"".join(catalogue.vault.fetch(part) for part in oplog_of(backup))])
    if len(entries) != backup.facts["oplog_entries"]:
        cause = f"{len(entries)} entries of {backup.facts['oplog_entries']}"
        raise FingerprintMismatch("verify", f"{backup.backup_id} oplog", cause, "Take a new backup.")


def _farthest(catalogue: Catalogue, backup: Backup) -> str:
    """Choose the last moment that the archive leads to from this backup: behind a hole begins another backup."""
    reach = restore_mongo.reach_of(backup, catalogue.logs(backup.store, backup.source, backup.incarnation))
    return str(max(Position.parse(backup.ends), reach.preceding))


def _check_beats(url: SecretStr) -> int:
    """Judge the heartbeat in every database that has one; return how many beats there are."""
    count = 0
    with MongoServer(url, "scratch") as server:
        homes = [shape.database for shape in server.shapes() if shape.name == COLLECTION]
    for database in homes:
        documents = Documents(with_database(url, database), "scratch")
        with closing(documents):
            beats = MongoBeats(f"mongodb/{database}", documents).read(_BEATS_MAX)
            verdict = judge_chain(f"mongodb/{database}", beats)
            if beats and verdict.problem:
                hint = "The backup is not of one moment, or the log has a hole; take a new full backup."
                raise FingerprintMismatch("prove", f"heartbeat of {database}", verdict.problem, hint)
            count += len(beats)
    return count
