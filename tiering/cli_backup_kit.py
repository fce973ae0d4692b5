"""Backups, opened for the command line and for tasks: which servers there are, how each kind of store is backed up.

Everything that names a program or an embedded server is put together here, so that ops stay free of both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from infra.local.binaries import find_postgres_bin
from infra.local.scratch_postgres import LocalScratchPostgres
from infra.local.scratch_redis import scratch_redis
from infra.local.scratch_servers import scratch_mongo, scratch_objects
from tiering import errors
from tiering.model_backup import Backup, BackupKind, BackupStrategy, CatalogueEntry, LogRange, StoreName
from tiering.ops import catalogue as catalogues
from tiering.ops import sweep_backups
from tiering.ops.catalogue import Catalogue
from tiering.plan import backups as plans
from tiering.settings import Settings, load_settings
from tiering.stores.objects import S3Objects
from tiering.stores.pg_tools import PgTools
from tiering.stores.postgres import Postgres
from tiering.stores.vault import Keyring, Vault

Progress = Callable[[int, str], None]
"""Told of bytes or rows, and of what they belong to."""

MAIN = "main"
IN_PLACE = "in-place"
ROOT = Path(__file__).parents[1]
"""The project's directory: its configuration is backed up."""

NOWHERE = SecretStr("")
FILES = (StoreName.APPLICATION_DATA, StoreName.CONFIGURATION)


@dataclass(frozen=True, slots=True)
class LogGap:
    """A hole in a source's log, or that it needs a full backup."""

    store: StoreName
    source: str
    text: str


def opened() -> tuple[Settings, Catalogue]:
    """Read the settings and open the catalogue.

    Raises:
        SettingsError: there is no key.
    """
    settings = load_settings()
    return settings, Catalogue(vault_of(settings))


def vault_of(settings: Settings) -> Vault:
    """Open the vault of backups that the settings name.

    Raises:
        SettingsError: there is no key, or it is none, so nothing could be sealed or opened.
    """
    if settings.backup_key is None:
        hint = "Set it to 32 random bytes in base64, kept also where no disaster reaches; `tiering stack up` draws one."
        raise errors.SettingsError("open the vault", "TIERING_BACKUP_KEY", "not set", hint)
    objects = S3Objects(
        settings.s3_url, settings.backup_bucket, settings.s3_access_key, settings.s3_secret_key, settings.s3_region
    )
    keys = Keyring(settings.backup_key)
    keys.newest()
    return Vault(objects, keys)


def strategy_of(settings: Settings) -> BackupStrategy:
    """Read the owner's strategy.

    Raises:
        PolicyError: the file cannot be read, or breaks a rule.
    """
    try:
        text = settings.policies.read_text(encoding="utf-8")
    except OSError as exc:
        hint = "Set TIERING_POLICIES, or run from the project's directory."
        raise errors.PolicyError("read policies", str(settings.policies), exc.strerror or "unreadable", hint) from exc
    return plans.parse_strategy(text, str(settings.policies))


def sources_of(settings: Settings, store: StoreName) -> dict[str, SecretStr]:
    """Name the servers of a store: `main`, or `hot` and `warm` where these are two; none where the settings name none.

    What is no server has one source, without a URL.
    """
    if store is StoreName.APPLICATION_DATA:
        return {MAIN: NOWHERE} if settings.app_data_dir else {}
    if store in (StoreName.CONFIGURATION, StoreName.LAKE):
        return {MAIN: NOWHERE}
    urls: Mapping[StoreName, tuple[SecretStr | None, SecretStr | None]] = {
        StoreName.POSTGRESQL: (settings.hot_pg_url, settings.warm_pg_url),
        StoreName.MONGODB: (settings.hot_mongo_url, settings.warm_mongo_url),
        StoreName.REDIS: (settings.redis_url, settings.redis_url),
    }
    hot, warm = urls.get(store, (None, None))
    if hot is None:
        return {}
    if warm is None or _server(hot) == _server(warm):
        return {MAIN: hot}
    return {"hot": hot, "warm": warm}


def _server(url: SecretStr) -> str:
    return urlsplit(url.get_secret_value()).netloc.rpartition("@")[2]


# -- taking, verifying, proving --------------------------------------------------------------------------------------


def take(
    settings: Settings, catalogue: Catalogue, store: StoreName, kind: BackupKind, source: str, now: datetime,
    progress: Progress = lambda *_: None,
) -> Backup:  # fmt: skip
    """Take one backup of one server.

    Raises:
        LeaseHeld: one is being taken now.
        PermanentError: this store has no backups of that kind.
    """
    if kind not in plans.KINDS[store]:
        known = ", ".join(plans.KINDS[store])
        raise errors.PermanentError("back up", str(store), f"it has no {kind} backups", f"It has: {known}.")
    url = sources_of(settings, store).get(source)
    if url is None:
        known = ", ".join(sources_of(settings, store)) or f"none: the settings name no {store}"
        raise errors.NotFound("back up", f"{store}/{source}", "no such source", f"There is {known}.")
    if store is StoreName.POSTGRESQL:
        from tiering.ops import backup_postgres

        return backup_postgres.backup(catalogue, url, source, kind, now, _tools(), progress)
    if store is StoreName.MONGODB:
        from tiering.ops import backup_mongo

        return backup_mongo.backup(catalogue, url, source, now, progress)
    if store is StoreName.REDIS:
        from tiering.ops import backup_redis

        copy = backup_redis.backup_aof if kind is BackupKind.AOF else backup_redis.backup
        return copy(catalogue, url, source, now, progress)
    if store is StoreName.LAKE:
        return _take_lake(settings, catalogue, source, now, progress)
    found = _take_files(settings, catalogue, store, source, now, progress)
    assert found is not None  # only what is taken on change may be left out
    return found


def take_if_changed(
    settings: Settings, catalogue: Catalogue, store: StoreName, source: str, now: datetime,
    progress: Progress = lambda *_: None,
) -> Backup | None:  # fmt: skip
    """Take a snapshot of files or of the configuration if it would differ from the newest one; else return None.

    Raises:
        PermanentError: whether this store changed, only a backup can tell.
    """
    if store not in FILES or source not in sources_of(settings, store):
        cause = "there is none, or it has no backups on change"
        raise errors.PermanentError("back up", f"{store}/{source}", cause, f"These have: {', '.join(FILES)}.")
    return _take_files(settings, catalogue, store, source, now, progress, only_if_changed=True)


def _take_files(
    settings: Settings, catalogue: Catalogue, store: StoreName, source: str, now: datetime, progress: Progress, *,
    only_if_changed: bool = False,
) -> Backup | None:  # fmt: skip
    from tiering.ops import backup_files, configuration

    if store is StoreName.CONFIGURATION:
        with ExitStack() as servers:
            opened = {name: servers.enter_context(closing(one)) for name, one in _databases(settings).items()}
            sources = configuration.gather(ROOT, settings.policies, opened, settings.redis_url)
    else:
        assert settings.app_data_dir is not None  # else there is no such source
        sources = backup_files.Sources({"": settings.app_data_dir})
    return backup_files.backup(
        catalogue, store, sources, now, source=source, only_if_changed=only_if_changed, progress=progress
    )


def _databases(settings: Settings) -> dict[str, Postgres]:
    if settings.is_one_database:
        return {"main": Postgres(settings.hot_pg_url, "PostgreSQL")}
    return {
        "hot": Postgres(settings.hot_pg_url, "hot PostgreSQL"),
        "warm": Postgres(settings.warm_pg_url, "warm PostgreSQL"),
    }


def _take_lake(settings: Settings, catalogue: Catalogue, source: str, now: datetime, progress: Progress) -> Backup:
    from tiering.ops import backup_lake
    from tiering.stores import lake_walk

    buckets = {"lake": _bucket(settings, settings.lake_bucket), "files": _bucket(settings, settings.files_bucket)}
    names = {role: bucket.bucket for role, bucket in buckets.items()}
    with closing(Postgres(settings.warm_pg_url, "warm PostgreSQL")) as warm:
        pointers = partial(lake_walk.pointers, warm)
        return backup_lake.backup(
            catalogue, buckets, pointers, now, source=source, names=names, progress=progress
        )  # fmt: skip


def _bucket(settings: Settings, name: str) -> S3Objects:
    return S3Objects(settings.s3_url, name, settings.s3_access_key, settings.s3_secret_key, settings.s3_region)


def verify(catalogue: Catalogue, backup: Backup, now: datetime, progress: Progress = lambda *_: None) -> None:
    """Read every byte of a backup; mark it VERIFIED or FAILED.

    Raises:
        VerificationError, NotFound: what is wrong with it.
    """
    if backup.store is StoreName.POSTGRESQL:
        from tiering.ops import prove_postgres

        prove_postgres.verify(catalogue, backup, now)
    elif backup.store is StoreName.MONGODB:
        from tiering.ops import prove_mongo

        prove_mongo.verify(catalogue, backup, now, progress)
    elif backup.store is StoreName.REDIS:
        from tiering.ops import prove_redis

        prove_redis.verify(catalogue, backup, now)
    elif backup.store in FILES:
        from tiering.ops import restore_files

        restore_files.verify(catalogue, backup, now)
    else:
        from tiering.ops import restore_lake

        restore_lake.verify(catalogue, backup, now)


def prove(
    settings: Settings, catalogue: Catalogue, backup: Backup, now: datetime, progress: Progress = lambda *_: None
) -> None:
    """Start a server of its own on a backup and look; mark it PROVEN or FAILED.

    Raises:
        TieringError: what is wrong with it.
    """
    scratch = settings.scratch_dir
    if backup.store is StoreName.POSTGRESQL:
        from tiering.ops import prove_postgres

        prove_postgres.prove(catalogue, backup, now, _tools(), LocalScratchPostgres(scratch), progress=progress)
    elif backup.store is StoreName.MONGODB:
        from tiering.ops import prove_mongo

        prove_mongo.prove(catalogue, backup, partial(scratch_mongo, scratch), now, progress)
    elif backup.store is StoreName.REDIS:
        from tiering.ops import prove_redis

        prove_redis.prove(catalogue, backup, now, partial(scratch_redis, parent=scratch), scratch)
    elif backup.store in FILES:
        from tiering.ops import restore_files

        restore_files.prove(catalogue, backup, now, scratch)
    else:
        from tiering.ops import restore_lake

        restore_lake.prove(catalogue, backup, now)


# -- restoring -------------------------------------------------------------------------------------------------------


def restore(
    settings: Settings, catalogue: Catalogue, store: StoreName, source: str, to: str, into: str, now: datetime, *,
    is_approved: bool = False, backup_id: str | None = None, progress: Progress = lambda *_: None,
) -> str:  # fmt: skip
    """Bring a moment of a store back into a directory or a server; say what was done.

    A directory for PostgreSQL, files and configuration; a URL for MongoDB, Redis and the lake, which may also be
    brought to its catalog in place (`IN_PLACE`).

    Raises:
        NotFound: nothing leads there exactly; the reason says what does.
        HeldError: something lives there, and nobody approved.
        AlreadyExists: the directory is not empty.
    """
    if store is StoreName.POSTGRESQL:
        from tiering.ops import restore_postgres
        from tiering.plan.recovery import parse_target

        done = restore_postgres.restore(
            catalogue, parse_target(to), Path(into), source, _tools(), backup_id=backup_id, progress=progress
        )
        return f"{done.moment}; start PostgreSQL on {into}, and it recovers to there and opens"
    if store is StoreName.MONGODB:
        from tiering.ops import restore_mongo

        back = restore_mongo.restore(
            catalogue, to, SecretStr(into), now=now, source=source, is_approved=is_approved, backup_id=backup_id,
            progress=progress,
        )  # fmt: skip
        return f"{back.documents} documents as of {back.at}, {back.entries} of the oplog's entries on {back.backup_id}"
    if store is StoreName.REDIS:
        from tiering.ops import restore_redis

        backup = _redis_at(catalogue, source, to, backup_id)
        servers = partial(scratch_redis, parent=settings.scratch_dir)
        keys = restore_redis.restore(
            catalogue, backup, SecretStr(into), servers, is_approved=is_approved, scratch=settings.scratch_dir,
            progress=progress,
        )  # fmt: skip
        return f"{keys} keys of {backup.backup_id}"
    if store is StoreName.LAKE:
        return _restore_lake(settings, catalogue, source, to, into, now, is_approved=is_approved, progress=progress)
    from tiering.ops import restore_files

    at = None if to == "latest" else _instant(to)
    chosen = catalogue.entry(backup_id) if backup_id else restore_files.newest(catalogue, store, source, at)
    files = restore_files.restore(catalogue.vault, chosen.backup, Path(into), progress=progress)
    return f"{files.files} files of {chosen.backup.backup_id}"


def _restore_lake(
    settings: Settings, catalogue: Catalogue, source: str, to: str, into: str, now: datetime, *, is_approved: bool,
    progress: Progress,
) -> str:  # fmt: skip
    """Bring the buckets of a moment to another object store, or the settings' bucket to its catalog."""
    from tiering.ops import restore_lake
    from tiering.ops.recover_lake import LakeRecoverer

    if into != IN_PLACE:
        if "://" not in into:
            hint = f"Write http://access:secret@host:port (as env:NAME of it), or {IN_PLACE}."
            raise errors.PermanentError("restore", "lake", f"{into!r} is no object store", hint)
        recoverer = LakeRecoverer(catalogue, source, partial(scratch_objects, settings.scratch_dir))
        return recoverer.recover(now if to == "latest" else _instant(to), into, is_approved=is_approved)
    if to != "latest":
        hint = "Restore PostgreSQL to the moment first: the bucket follows its catalog."
        raise errors.PermanentError("restore", f"lake {IN_PLACE}", f"{to!r}: in place there is only `latest`", hint)
    with closing(Postgres(settings.warm_pg_url, "warm PostgreSQL")) as warm:
        bucket = _bucket(settings, settings.lake_bucket)
        done = restore_lake.restore(catalogue, warm, bucket, source=source, is_approved=is_approved, progress=progress)
    text = f"{done.objects} objects of {done.tables} tables: {done.present} were right"
    return f"{text}, {done.from_versions} from older versions, {done.from_vault} from backups"


def _instant(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        hint = "Write latest, or 2026-11-22T08:00:00Z: between two snapshots there is nothing to go to."
        raise errors.PermanentError("read target", text, "not a moment", hint) from None


def _redis_at(catalogue: Catalogue, source: str, to: str, backup_id: str | None) -> Backup:
    """Choose the last snapshot at or before a moment: between two, Redis has nothing to bring back."""
    from tiering.ops import restore_redis
    from tiering.ops.backup_redis import moment_of

    if backup_id is not None:
        return catalogue.entry(backup_id).backup
    if to == "latest":
        return restore_redis.newest(catalogue, source).backup
    wanted = _instant(to)
    usable = [entry.backup for entry in catalogue.entries(StoreName.REDIS, source) if entry.state != "FAILED"]
    fitting = [backup for backup in usable if moment_of(backup) <= wanted]
    if not fitting:
        oldest = min((moment_of(backup) for backup in usable), default=None)
        raise errors.NotFound("restore", f"redis/{source}", f"the oldest snapshot is of {oldest}", "`tiering backups`.")
    return max(fitting, key=moment_of)


def _tools() -> PgTools:
    return PgTools(find_postgres_bin())


# -- looking after them ----------------------------------------------------------------------------------------------


def retain(
    settings: Settings, catalogue: Catalogue, now: datetime, owner: str, *, apply: bool, store: StoreName | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[sweep_backups.Retained]:  # fmt: skip
    """Judge, or let go, what the owner's strategy no longer keeps; see `sweep_backups.retain`."""
    strategy = strategy_of(settings)
    return sweep_backups.retain(catalogue, strategy, now, owner, apply=apply, store=store, progress=progress)


def mirror(settings: Settings, catalogue: Catalogue) -> int:
    """Write the catalogue into the warm database, to be asked in SQL."""
    database = Postgres(settings.warm_pg_url, "warm PostgreSQL")
    try:
        return catalogues.mirror(catalogue, database)
    finally:
        database.close()


def gaps_of(catalogue: Catalogue, entries: list[CatalogueEntry]) -> list[LogGap]:
    """Find holes in the log of every source, from the bucket alone."""
    found = []
    for store, source in sorted({(entry.backup.store, entry.backup.source) for entry in entries}):
        newest = [entry.backup for entry in entries if (entry.backup.store, entry.backup.source) == (store, source)][-1]
        if store is StoreName.POSTGRESQL:
            found += _postgres_gaps(catalogue, newest)
        elif store is StoreName.MONGODB:
            found += _mongo_gaps(newest, catalogue.logs(store, source, newest.incarnation))
    return found


def _postgres_gaps(catalogue: Catalogue, newest: Backup) -> list[LogGap]:
    from tiering.ops import wal_archive
    from tiering.stores.pg_tools import lsn_text

    try:
        report = wal_archive.judge(catalogue, newest.source, newest.incarnation)
    except errors.NotFound as exc:
        return [LogGap(newest.store, newest.source, str(exc))]
    texts = [f"{lsn_text(gap.begins)} to {lsn_text(gap.ends)} on timeline {gap.timeline}" for gap in report.gaps]
    texts += [f"a new full backup is needed: {report.needs_full}"] if report.needs_full else []
    return [LogGap(newest.store, newest.source, text) for text in texts]


def _mongo_gaps(newest: Backup, logs: list[LogRange]) -> list[LogGap]:
    from tiering.ops.restore_mongo import reach_of
    from tiering.stores.mongo_entries import Position

    reach = reach_of(newest, logs)
    behind = [one for one in logs if Position.parse(one.begins) > reach]
    return [LogGap(newest.store, newest.source, f"{reach} to {behind[0].begins}")] if behind else []


def log_problems(settings: Settings, catalogue: Catalogue, now: datetime, late: timedelta) -> list[LogGap]:
    """Look whether each continuous log is whole and keeps up with its server.

    Args:
        settings: name the servers.
        catalogue: of the bucket.
        now: the instant.
        late: how far a log may be behind.
    """
    found = []
    for one in strategy_of(settings).stores:
        if one.log_window is not None:
            for source, url in sources_of(settings, one.store).items():
                found += _problems(catalogue, one.store, source, url, now, late)
    return found


def _problems(
    catalogue: Catalogue, store: StoreName, source: str, url: SecretStr, now: datetime, late: timedelta
) -> list[LogGap]:
    if store is StoreName.POSTGRESQL:
        from tiering.ops import wal_watch

        check = wal_watch.check_log(catalogue, url, source, late.total_seconds())
        return [LogGap(store, source, text) for text in check.problems]
    entries = catalogue.entries(store, source)
    if not entries:
        return [LogGap(store, source, "a full backup is needed: there is none")]
    logs = catalogue.logs(store, source, entries[-1].backup.incarnation)
    # The oplog of a server that stands still has an entry every ten seconds.
    newest = max((log.stored_at for log in logs), default=entries[-1].backup.ended_at)
    texts = [f"nothing was archived since {newest:%Y-%m-%d %H:%M:%S}Z"] if now - newest > late * 4 else []
    return _mongo_gaps(entries[-1].backup, logs) + [LogGap(store, source, text) for text in texts]
