"""The flow that destroys what nobody can need any more: superseded copies after the undo window, crash leftovers."""

from __future__ import annotations

from prefect import State, flow, runtime
from prefect.states import Completed
from pydantic import AwareDatetime

from flows.lifecycle import name_run, owner, run_now
from tasks import report
from tasks.sweep import sweep_copies


@flow(name="sweep", flow_run_name=name_run)
def sweep(at: AwareDatetime | None = None, dry_run: bool = False) -> State[None]:
    """Destroy superseded copies whose undo window is over, and what crashed runs left behind.

    Args:
        at: the run's instant, with time zone; default: when the run was scheduled.
        dry_run: list what would go and destroy nothing.
    """
    swept = sweep_copies(run_now(at), owner(), dry_run)
    report.show_swept(runtime.flow_run.flow_name, swept, dry_run)
    return Completed(message=f"{len(swept)} copies {'would go' if dry_run else 'destroyed'}")
