"""Back PostgreSQL up: full and incremental, streamed into the vault, and published when its log is there too.

An increment rests on the newest full backup (not on the increment before it): a restore needs two links at most, and a
bad increment harms only itself. Only the parent's manifest is needed to take one, and it is an object of its own.

Does not: restore (`restore_postgres.py`), prove (`prove_postgres.py`), or choose when (`plan/backups.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import IO, cast

from pydantic import SecretStr

from tiering.errors import NotFound, PermanentError, VerificationError
from tiering.model_backup import Backup, BackupKind, BackupState, CatalogueEntry, StoreName
from tiering.ops.catalogue import Catalogue, new_backup_id
from tiering.ops.wal import fill
from tiering.ops.wal_archive import LogArchive, store_history
from tiering.plan.recovery import Stretch, at
from tiering.stores.pg_manifest import Manifest, parse_manifest
from tiering.stores.pg_tar import ManifestTap
from tiering.stores.pg_tools import PgTools, lsn_text
from tiering.stores.pg_wal import ServerPosition, WalServer, WalStream

Progress = Callable[[int, str], None]
"""Told of bytes, and of what they belong to."""

STREAM_SECONDS = 5.0
"""How long the log stream has to bring a backup's log before the backup fetches it itself."""

_POLL_SECONDS = 0.2


def backup(
    catalogue: Catalogue,
    url: SecretStr,
    source: str,
    kind: BackupKind,
    now: datetime,
    tools: PgTools,
    progress: Progress = lambda *_: None,
) -> Backup:
    """Take a backup; it exists once this returns.

    Args:
        catalogue: where it goes.
        url: of the server; its user may replicate, and read pg_settings and the list of databases.
        source: which of the servers it is, e.g. "main".
        kind: FULL or INCREMENTAL.
        now: when it is taken.
        tools: PostgreSQL's programs, not older than the server.
        progress: told of bytes.

    Raises:
        LeaseHeld: another backup of this server is being taken.
        NotFound: an increment has no full backup to rest on, or the log of the backup cannot be had.
        PermanentError: the server cannot be backed up so: it has tablespaces, or does not summarise its log.
    """
    backup_id = new_backup_id(kind, now)
    began = time.monotonic()
    with catalogue.lease(StoreName.POSTGRESQL, source, backup_id, now):
        server = WalServer(url)
        facts = server.facts()
        here = _identify(catalogue, url, source)
        parent = _parent(catalogue, source, here, facts) if kind is BackupKind.INCREMENTAL else None
        prefix = f"backups/{StoreName.POSTGRESQL}/{source}/{backup_id}/"
        known = catalogue.vault.fetch(parent.objects[0]) if parent else None
        with tools.base_backup(url, backup_id, known) as stream:
            tap = ManifestTap(stream, lambda count: progress(count, backup_id))
            parts = catalogue.vault.put_stream(f"{prefix}base.", cast(IO[bytes], tap))
        facts["server_ended_at"] = server.now().isoformat()
        manifest = parse_manifest(tap.manifest, backup_id)
        kept = catalogue.vault.put(f"{prefix}manifest", tap.manifest)
        stretch = _stretch(manifest, here, backup_id)
        _await_log(catalogue, url, source, here, stretch, int(facts["wal_segment_bytes"]), progress)
        ended_at = now + timedelta(seconds=time.monotonic() - began)
        facts |= {"timeline": stretch.timeline, "file_count": len(manifest.files), "file_bytes": manifest.size_bytes}
        found = Backup(
            backup_id, StoreName.POSTGRESQL, source, kind, parent.backup_id if parent else None, here.system_id, now,
            ended_at, lsn_text(stretch.begins), lsn_text(stretch.ends), (kept, *parts), facts,
        )  # fmt: skip
        catalogue.publish(found)
    return found


def _identify(catalogue: Catalogue, url: SecretStr, source: str) -> ServerPosition:
    """Ask who the server is, and keep the history of its timeline: a restore on it needs that."""
    stream = WalStream(url, "tiering backup")
    try:
        here = stream.identify()
        if here.timeline > 1:
            text = stream.history(here.timeline)
            store_history(catalogue, source, here.system_id, here.timeline, text)
    finally:
        stream.close()
    return here


def _parent(catalogue: Catalogue, source: str, here: ServerPosition, facts: dict[str, object]) -> Backup:
    """Choose the newest full backup of this very history.

    Raises:
        PermanentError: the server keeps no summaries of its log.
        NotFound: there is none.
    """
    if facts["summarize_wal"] != "on":
        hint = "ALTER SYSTEM SET summarize_wal = on; SELECT pg_reload_conf(); then take a full backup."
        raise PermanentError("back up", source, "an increment needs summarize_wal, which is off", hint)

    def fits(entry: CatalogueEntry) -> bool:
        one = entry.backup
        return (
            entry.state is not BackupState.FAILED
            and one.kind is BackupKind.FULL
            and one.incarnation == here.system_id
            and one.facts.get("timeline") == here.timeline
            and one.facts.get("data_checksums") == facts["data_checksums"]
        )

    fulls = [entry.backup for entry in catalogue.entries(StoreName.POSTGRESQL, source) if fits(entry)]
    if not fulls:
        cause = f"no full backup of system {here.system_id} on timeline {here.timeline}"
        raise NotFound("back up", source, cause, "Take a full one first.")
    return max(fulls, key=lambda one: at(one.ends))


def _stretch(manifest: Manifest, here: ServerPosition, backup_id: str) -> Stretch:
    """Return the log that makes the backup consistent.

    Raises:
        VerificationError: the server was exchanged or promoted while it was read.
    """
    is_same = manifest.system_id in ("", here.system_id)
    if not is_same or len(manifest.ranges) != 1 or manifest.ranges[0].timeline != here.timeline:
        raise VerificationError("back up", backup_id, "the server changed its history meanwhile", "Back up again.")
    return Stretch(here.timeline, manifest.ranges[0].begins, manifest.ranges[0].ends)


def _await_log(
    catalogue: Catalogue,
    url: SecretStr,
    source: str,
    here: ServerPosition,
    stretch: Stretch,
    segment_bytes: int,
    progress: Progress,
) -> None:
    """Wait until the vault has the backup's log; fetch it from the server where no stream brings it.

    Why before publishing: a backup without its last byte of log cannot be started at all.
    """

    def is_there() -> bool:
        archive = LogArchive(catalogue, source, here.system_id, segment_bytes, stretch.timeline)
        return archive.covered_until(stretch.begins - stretch.begins % segment_bytes) >= stretch.ends

    deadline = time.monotonic() + STREAM_SECONDS
    while not is_there():
        if time.monotonic() > deadline:
            progress(0, "fetching its log: no stream brings it")
            fill(catalogue, url, source, here.system_id, stretch)
            if not is_there():
                hint = "Run `tiering stream postgresql`."
                raise NotFound("back up", source, f"its log up to {lsn_text(stretch.ends)} is not stored", hint)
            return
        time.sleep(_POLL_SECONDS)
