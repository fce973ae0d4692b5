"""Backups as Prefect tasks, and what a run shows of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from tasks.options import CHAIN, EFFECT, PLAN
from tasks.report import ROWS_MAX, artifact_key
from tiering.errors import LeaseHeld, TieringError
from tiering.model_backup import BackupKind, CatalogueEntry, StoreName
from tiering.settings import load_settings

if TYPE_CHECKING:
    from tiering.cli_backup_kit import LogGap
    from tiering.ops.sweep_backups import Retained

ONCE: dict[str, Any] = {"cache_policy": NO_CACHE}
"""For a proof: that it succeeds at the second attempt would be no proof."""

FAILED_EVENT, GAP_EVENT = "tiering.backup.failed", "tiering.log.gap"


@task(name="sources of backups", **PLAN)
def list_sources(store: StoreName) -> list[str]:
    """Name the servers of a store."""
    from tiering import cli_backup_kit as kit

    return list(kit.sources_of(load_settings(), store))


@task(name="back up", task_run_name="back up {store}/{source} {kind}", **EFFECT)
def take(store: StoreName, kind: BackupKind, source: str, now: datetime, if_changed: bool) -> str | None:
    """Take one backup, and name it; None: nothing changed, and that was asked."""
    from tiering import cli_backup_kit as kit

    logging.getLogger("tiering").setLevel(logging.INFO)
    if if_changed:
        found = kit.take_if_changed(*kit.opened(), store, source, now)
        return found.backup_id if found else None
    return kit.take(*kit.opened(), store, kind, source, now).backup_id


@task(name="verify backup", task_run_name="verify {backup_id}", **PLAN)
def verify(backup_id: str, now: datetime) -> None:
    """Read every byte of a backup."""
    from tiering import cli_backup_kit as kit

    _, catalogue = kit.opened()
    kit.verify(catalogue, catalogue.entry(backup_id).backup, now)


@task(name="prove backup", task_run_name="prove {backup_id}", **ONCE)
def prove(backup_id: str, now: datetime) -> CatalogueEntry:
    """Start a server of its own on a backup, look, and return what the catalogue says then."""
    from tiering import cli_backup_kit as kit

    settings, catalogue = kit.opened()
    kit.prove(settings, catalogue, catalogue.entry(backup_id).backup, now)
    return catalogue.entry(backup_id)


@task(name="back up and prove", task_run_name="secure {store}/{source} {kind}", **CHAIN)
def secure(
    store: StoreName, kind: BackupKind, source: str, now: datetime, proof: bool, if_changed: bool
) -> tuple[CatalogueEntry | None, str]:
    """Take, read back and prove one backup; return it, or what went wrong. Nothing, if another run is at it."""
    try:
        if (backup_id := take(store, kind, source, now, if_changed)) is None:
            return None, ""
        verify(backup_id, now)
        return (prove(backup_id, now) if proof else None), ""
    except LeaseHeld as exc:
        get_run_logger().warning("%s", exc)
        return None, ""
    except TieringError as exc:
        return None, tell_failed(store, source, str(exc))


@task(name="mirror the catalogue", **EFFECT)
def mirror() -> int:
    """Write the catalogue into PostgreSQL; return the number of backups."""
    from tiering import cli_backup_kit as kit

    return kit.mirror(*kit.opened())


@task(name="retention of backups", **EFFECT)
def retain(now: datetime, owner: str, dry_run: bool) -> list[Retained]:
    """Let go what the owner's strategy no longer keeps, or only say so."""
    from tiering import cli_backup_kit as kit

    logging.getLogger("tiering").setLevel(logging.INFO)
    return kit.retain(*kit.opened(), now, owner, apply=not dry_run)


@task(name="look after the logs", **PLAN)
def look_after_logs(now: datetime, late: timedelta) -> list[LogGap]:
    """Find holes in the logs, and logs that do not keep up."""
    from tiering import cli_backup_kit as kit

    return kit.log_problems(*kit.opened(), now, late)


def show_backups(entries: Sequence[CatalogueEntry]) -> None:
    """Publish what was backed up, and how far it is trusted."""
    rows = [
        {
            "backup": entry.backup.backup_id,
            "source": f"{entry.backup.store}/{entry.backup.source}",
            "state": entry.state.value,
            "bytes": entry.backup.size_bytes,
            "stored": entry.backup.stored_bytes,
            "rests on": entry.backup.parent_id or "",
            "problem": entry.problem,
        }
        for entry in entries
    ]
    store = entries[0].backup.store if entries else "none"
    create_table_artifact(rows, artifact_key("backup", store), f"{len(rows)} backups of {store}.")


def show_retention(found: Sequence[Retained], dry_run: bool) -> None:
    """Publish for every backup why it is kept or went."""
    rows = [
        {
            "source": f"{one.plan.store}/{one.plan.source}",
            "backup": verdict.entry.backup.backup_id,
            "verdict": "kept" if verdict.is_kept else "would go" if dry_run else "gone",
            "why": "; ".join(verdict.reasons),
        }
        for one in found
        for verdict in one.plan.backups
    ]
    rows.sort(key=lambda row: row["verdict"] == "kept")
    freed = sum(one.freed_bytes for one in found)
    problems = "; ".join(f"{one.plan.store}/{one.plan.source}: {one.plan.refused or one.skipped}"
                         for one in found if one.plan.refused or one.skipped)  # fmt: skip
    text = f"{sum(row['verdict'] != 'kept' for row in rows)} backups go, {freed:,} bytes freed. {problems}".strip()
    create_table_artifact(rows[:ROWS_MAX], artifact_key("backup-retention"), text)


def tell_failed(store: StoreName, source: str, problem: str) -> str:
    """Emit an event that automations send on to people; return the problem with whose it is."""
    emit_event(FAILED_EVENT, {"prefect.resource.id": f"tiering.backup.{store}.{source}"}, payload={"problem": problem})
    return f"{store}/{source}: {problem}"


def tell_gaps(gaps: Sequence[LogGap]) -> None:
    """Emit an event for each source whose log is not whole, and publish all of them."""
    for gap in gaps:
        resource = {"prefect.resource.id": f"tiering.log.{gap.store}.{gap.source}"}
        emit_event(GAP_EVENT, resource, payload={"problem": gap.text})
    rows = [{"source": f"{gap.store}/{gap.source}", "problem": gap.text} for gap in gaps]
    create_table_artifact(rows, artifact_key("log-gaps"), f"{len(rows)} problems with logs.")
