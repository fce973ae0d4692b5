"""The flows of backups: take and prove one, let go what the strategy no longer keeps, look after the logs.

A backup that is not proven ends its run as **Failed**, so that the UI says so, and emits `tiering.backup.failed`; it
stays in the catalogue, as what it is.
"""

from __future__ import annotations

from datetime import timedelta

from prefect import State, flow
from prefect.states import Completed, Failed
from pydantic import AwareDatetime

from flows.lifecycle import name_run, owner, run_now
from tasks import backup as tasks
from tiering.model_backup import BackupKind, StoreName

LATE = timedelta(seconds=15)


@flow(name="backup", flow_run_name="back up {store} {kind}")
def backup(
    store: StoreName,
    kind: BackupKind = BackupKind.FULL,
    source: str | None = None,
    proof: bool = True,
    if_changed: bool = False,
    at: AwareDatetime | None = None,
) -> State[None]:
    """Back up every server of a store, read each backup back, start a server on it, and mark it PROVEN.

    Args:
        store: what to back up.
        kind: how much of it.
        source: only this server: main, hot or warm.
        proof: start a server on it.
        if_changed: of files and the configuration: only if it would differ from the newest one.
        at: the run's instant, with time zone; default: when the run was scheduled.
    """
    now = run_now(at)
    sources = [source] if source else tasks.list_sources(store)
    results = [tasks.secure(store, kind, one, now, proof, if_changed) for one in sources]
    proven = [entry for entry, _ in results if entry]
    problems = [problem for _, problem in results if problem]
    tasks.show_backups(proven)
    tasks.mirror()
    if problems:
        return Failed(message="; ".join(problems))
    return Completed(message=f"{len(proven)} backups of {store} proven")


@flow(name="backup-retention", flow_run_name=name_run)
def backup_retention(at: AwareDatetime | None = None, dry_run: bool = False) -> State[None]:
    """Let go the backups and the log that the owner's strategy no longer keeps; say why for every backup.

    Args:
        at: the run's instant, with time zone; default: when the run was scheduled.
        dry_run: say what would go, and let go nothing.
    """
    found = tasks.retain(run_now(at), owner(), dry_run)
    tasks.show_retention(found, dry_run)
    tasks.mirror()
    gone = sum(len(one.plan.removed) for one in found)
    return Completed(message=f"{gone} backups {'would go' if dry_run else 'gone'}")


@flow(name="log-gaps", flow_run_name=name_run)
def log_gaps(at: AwareDatetime | None = None) -> State[None]:
    """Look whether every log is whole and keeps up; a hole ends the run as Failed and emits `tiering.log.gap`.

    Args:
        at: the run's instant, with time zone; default: when the run was scheduled.
    """
    gaps = tasks.look_after_logs(run_now(at), LATE)
    if not gaps:
        return Completed(message="every log is whole")
    tasks.tell_gaps(gaps)
    return Failed(message="; ".join(f"{gap.store}/{gap.source}: {gap.text}" for gap in gaps))
