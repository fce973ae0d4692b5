"""The recovery kit, opened for the command line and for tasks: bucket, key, ways to restore, servers to restore on.

Made from `RecoverySettings` alone: but for `describe_primary`, nothing here knows where the primary is.
"""

from __future__ import annotations

import base64
from binascii import Error as NotBase64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from infra.local.binaries import find_postgres_bin
from infra.local.scratch_postgres import LocalScratchPostgres
from infra.local.scratch_redis import scratch_redis
from infra.local.scratch_servers import scratch_mongo, scratch_objects
from tiering import errors
from tiering.model_backup import StoreName
from tiering.model_drill import DrillReport, Incident
from tiering.ops import evidence, expect, recover_mongo
from tiering.ops import notify as notices
from tiering.ops import recover as recovery
from tiering.ops.catalogue import Catalogue
from tiering.ops.drill import run_drill
from tiering.ops.drill_corruption import Check
from tiering.ops.drill_run import Kit
from tiering.ops.recover_files import FilesRecoverer
from tiering.ops.recover_lake import LakeRecoverer
from tiering.ops.recover_mongo import MongoRecoverer
from tiering.ops.recover_postgres import PostgresRecoverer
from tiering.ops.recover_redis import RedisRecoverer
from tiering.ops.recoverers import Recoverer, Restored
from tiering.plan.backups import longest_pause, parse_strategy
from tiering.plan.drill_report import document_of
from tiering.plan.drills import parse_objectives
from tiering.plan.policies import parse_policies
from tiering.settings import RecoverySettings, Settings, load_recovery_settings, load_settings
from tiering.stores.objects import S3Objects
from tiering.stores.opening import Stores, open_stores
from tiering.stores.pg_tools import PgTools
from tiering.stores.vault import Keyring, Vault

NOWHERE = SecretStr("postgresql://nobody@127.0.0.1:1/nowhere")
"""Stands for a server that was not restored: what asks it gets a refusal at once."""


def vault_of(settings: RecoverySettings) -> Vault:
    """Open the vault that the settings name."""
    objects = S3Objects(
        settings.s3_url,
        settings.backup_bucket,
        settings.s3_access_key,
        settings.s3_secret_key,
        settings.s3_region,
    )
    return Vault(objects, Keyring(settings.backup_key))


def kit_of(settings: RecoverySettings) -> Kit:
    """Put the kit together from what the bucket says is there.

    Raises:
        NotFound: nobody described the primary, so that names and objectives are not known.
        PolicyError: the policy file of then has no objectives.
    """
    vault = vault_of(settings)
    policies = expect.newest(vault).site.get("policies", "")
    return Kit(
        vault=vault,
        recoverers=recoverers_of(Catalogue(vault), settings.scratch_dir),
        objectives=parse_objectives(policies, "the vault's policy file"),
        cadence=cadence_of(policies),
        opened=opened_copies,
    )


def recoverers_of(catalogue: Catalogue, scratch_dir: Path | None) -> list[Recoverer]:
    """Make a recoverer for every source of every store that the bucket has backups of."""
    found: dict[tuple[StoreName, str], None] = {}
    for one in catalogue.listed():
        if one.is_uploaded and not one.is_removed:
            found[one.store, one.source] = None
    return [_recoverer(catalogue, store, source, scratch_dir) for store, source in sorted(found)]


def _recoverer(catalogue: Catalogue, store: StoreName, source: str, scratch_dir: Path | None) -> Recoverer:
    if store is StoreName.POSTGRESQL:
        tools = PgTools(find_postgres_bin())
        return PostgresRecoverer(catalogue, source, tools, LocalScratchPostgres(scratch_dir))
    if store is StoreName.MONGODB:
        return MongoRecoverer(catalogue, source, partial(scratch_mongo, scratch_dir))
    if store is StoreName.REDIS:
        return RedisRecoverer(catalogue, source, partial(scratch_redis, parent=scratch_dir), scratch_dir)
    if store is StoreName.LAKE:
        return LakeRecoverer(catalogue, source, partial(scratch_objects, scratch_dir))
    return FilesRecoverer(catalogue, store, source, scratch_dir)


def cadence_of(policies: str) -> dict[StoreName, timedelta]:
    """Say how often each store is backed up, by the owner's schedule."""
    strategy = parse_strategy(policies, "the vault's policy file")
    return {one.store: min(longest_pause(schedule) for schedule in one.schedules) for one in strategy.stores}


@contextmanager
def opened_copies(site: Mapping[str, str], copies: Sequence[Restored]) -> Iterator[Stores]:
    """Open restored servers as the platform opens its own."""
    urls = {f"{copy.store}/{copy.source}": copy.url for copy in copies}
    values: dict[str, Any] = {"s3_url": "http://127.0.0.1:1", "s3_access_key": "none", "s3_secret_key": "none"}
    for tier in ("hot", "warm"):
        url = urls.get("postgresql/main") or urls.get(f"postgresql/{tier}")
        values[f"{tier}_pg_url"] = recover_mongo.with_database(url, site[f"{tier}_pg"]) if url else NOWHERE
        url = urls.get("mongodb/main") or urls.get(f"mongodb/{tier}")
        if url and site.get(f"{tier}_mongo"):
            values[f"{tier}_mongo_url"] = recover_mongo.with_database(url, site[f"{tier}_mongo"])
    for copy in copies:
        if copy.store is StoreName.LAKE:
            values |= {key: copy.facts[key] for key in ("s3_url", "s3_access_key", "s3_secret_key")}
    values |= {key: site[key] for key in ("lake_bucket", "files_bucket") if key in site}
    settings = Settings(_env_file=None, **values)  # type: ignore[call-arg]
    with open_stores(settings, parse_policies(site["policies"], "the vault's policy file")) as stores:
        yield stores


# -- what commands and tasks do ------------------------------------------------------------------------------------


def drill(tier: int, incident: Incident, seed: int, incident_at: datetime, check: str | None) -> DrillReport:
    """Run one drill with the kit of this machine."""
    kit = kit_of(load_recovery_settings())
    return run_drill(kit, tier, incident, seed=seed, incident_at=incident_at, check=_check(check))


def _check(statement: str | None) -> Check | None:
    if statement is None:
        return None
    from tiering.stores.postgres import Postgres, fetch

    def is_good(restored: Restored) -> bool:
        site = expect.newest(vault_of(load_recovery_settings())).site
        database = Postgres(recover_mongo.with_database(restored.url, site["hot_pg"]), "restored PostgreSQL")
        try:
            with database.transaction("check", "restored PostgreSQL", read_only=True) as connection:
                return not fetch(connection, statement)
        finally:
            database.close()

    return is_good


def keep_evidence(report: DrillReport, file: Path | None = None) -> str:
    """Sign a report and keep it; return its name in the vault."""
    settings = load_recovery_settings()
    evidence.keep(vault_of(settings), signers_of(settings)[0], report.drill_id, document_of(report), file)
    return f"{evidence.PREFIX}{report.drill_id}.json"


def tell(notice: notices.Notice) -> tuple[notices.Told, ...]:
    """Tell people through the channels of the settings."""
    return notices.tell(load_recovery_settings().notify_urls, notice)


def history() -> list[tuple[str, dict[str, Any]]]:
    """Return all evidence of the vault, verified."""
    return evidence.history(vault_of(load_recovery_settings()), trusted_keys())


def trusted_keys() -> list[str]:
    """Return the public keys that evidence made here verifies with."""
    return [signer.public for signer in signers_of(load_recovery_settings())]


def signers_of(settings: RecoverySettings) -> list[evidence.Signer]:
    """Make the signing keys: the first one signs.

    Raises:
        SettingsError: TIERING_EVIDENCE_KEY is not 32 bytes in base64.
    """
    masters = Keyring(settings.backup_key).every()
    if settings.evidence_key is not None:
        try:
            own = base64.b64decode(settings.evidence_key.get_secret_value(), validate=True)
        except (NotBase64, ValueError):
            own = b""
        if len(own) != 32:
            raise errors.SettingsError("read", "TIERING_EVIDENCE_KEY", "it is not 32 bytes in base64")
        masters = (own, *masters)
    return [evidence.Signer.of(master) for master in masters]


def plan_recovery(to: str, into: Mapping[str, str]) -> recovery.RecoveryPlan:
    """Plan a recovery with the kit of this machine."""
    settings = load_recovery_settings()
    return recovery.plan_recovery(recoverers_of(Catalogue(vault_of(settings)), settings.scratch_dir), to, into)


def recover(
    to: str, into: Mapping[str, str], plan: recovery.RecoveryPlan, approved_by: str
) -> list[recovery.Recovered]:
    """Carry a recovery out with the kit of this machine."""
    settings = load_recovery_settings()
    return recovery.recover(recoverers_of(Catalogue(vault_of(settings)), settings.scratch_dir), into, plan, approved_by)


def describe_primary() -> bool:
    """Keep in the vault what the primary looks like now; return whether that is news.

    Raises:
        SettingsError: there is no key, and so no vault.
    """
    settings = load_settings()
    if settings.backup_key is None:
        raise errors.SettingsError("describe", "the primary", "TIERING_BACKUP_KEY is not set")
    text = settings.policies.read_text(encoding="utf-8")
    site = site_of(settings, text)
    with open_stores(settings, parse_policies(text, str(settings.policies))) as stores:
        described = expect.take(stores, site, datetime.now(UTC))
    return expect.keep(vault_of(load_recovery_settings()), described)


def site_of(settings: Settings, policies: str) -> dict[str, str]:
    """Name databases and buckets: what a restored server is asked by. No secret."""
    found = {"lake_bucket": settings.lake_bucket, "files_bucket": settings.files_bucket, "policies": policies}
    for key in ("hot_pg", "warm_pg", "hot_mongo", "warm_mongo"):
        url: SecretStr | None = getattr(settings, f"{key}_url")
        if url is not None:
            found[key] = recover_mongo.database_of(url)
    found.setdefault("warm_mongo", found.get("hot_mongo", ""))
    return found
