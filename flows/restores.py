"""The flow of restores: asks for archived objects and tells when they can be read.

A restore takes hours, and no worker waits for it: each run looks once, and the schedule runs again.
"""

from __future__ import annotations

from prefect import State, flow
from prefect.states import Completed
from pydantic import AwareDatetime

from flows.lifecycle import name_run, owner, run_now
from tasks import restores as tasks


@flow(name="rehydrate-objects", flow_run_name=name_run)
def rehydrate_objects(
    dataset: str | None = None,
    begin: AwareDatetime | None = None,
    end: AwareDatetime | None = None,
    prefix: str = "",
    days: int = 7,
    speed: str = "Standard",
    at: AwareDatetime | None = None,
) -> State[None]:
    """Ask for the restore of what is named, if anything is, and tell which restores came to an end.

    Every object that became readable is told of once: by an event `tiering.object.available` and in the artifact
    `restores-changed`. May be run at any time and twice.

    Args:
        dataset: ask for its objects in deep archive.
        begin: only those of units that end after this.
        end: only those of units that begin before this.
        prefix: ask for the objects whose keys begin so, of any dataset.
        days: how long they shall be readable.
        speed: "Standard" (12 hours) or "Bulk" (48 hours, cheapest).
        at: the run's instant, with time zone; default: when the run was scheduled.
    """
    now, asked = run_now(at), []
    if dataset or prefix:
        asked = tasks.request_restores(dataset, begin, end, prefix, now, owner(), days, speed)
        tasks.show_asked(asked)
    changes = tasks.poll_restores(now, owner())
    tasks.tell(changes)
    ready = sum(change.record.restore_state.value == "AVAILABLE" for change in changes)
    waiting = [record for record in asked if record.ready_at]
    until = (
        f", the last ready about {max(r.ready_at for r in waiting if r.ready_at):%Y-%m-%d %H:%M}Z" if waiting else ""
    )
    return Completed(message=f"{len(asked)} objects asked for{until}; {ready} became readable")
