"""The flow that pins: datasets and units that are read much stay hotter for longer, those that are not go sooner.

It moves nothing: the next lifecycle run finds units due later or earlier, inside the bounds of the policy.
"""

from __future__ import annotations

from prefect import State, flow, get_run_logger
from prefect.states import Completed, Failed
from pydantic import AwareDatetime

from flows.lifecycle import name_run, owner, run_now
from tasks.lifecycle import choose_datasets
from tasks.placement import place_dataset, show_placement


@flow(name="placement", flow_run_name=name_run)
def placement(
    data_class: str | None = None,
    dataset: str | None = None,
    at: AwareDatetime | None = None,
    dry_run: bool = False,
) -> State[None]:
    """Decide from access frequency, age and importance which transitions come earlier or later.

    Args:
        data_class: only its datasets.
        dataset: only this one.
        at: the run's instant, with time zone; default: when the run was scheduled.
        dry_run: publish every term of every score and record nothing.
    """
    changed, problems = 0, []
    for name in choose_datasets(data_class, dataset):
        ended = place_dataset(name, run_now(at), owner(), dry_run, return_state=True)
        if not ended.is_completed():
            problems.append(f"{name}: {ended.message}")
            continue
        applied = ended.result()
        show_placement(applied)
        changed += applied.shifts_changed
        get_run_logger().info("%s: %s; %d dates changed", name, applied.outcome.heat, applied.shifts_changed)
    summary = "dry run, nothing was changed" if dry_run else f"{changed} dates changed"
    if problems:
        return Failed(message=f"{len(problems)} failed; {summary}. {'; '.join(problems)}")
    return Completed(message=summary)
