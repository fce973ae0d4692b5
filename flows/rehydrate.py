"""The flow that brings a range of cold rows back into the warm tier as read copies, for a while."""

from __future__ import annotations

from prefect import State, flow, get_run_logger
from prefect.states import Completed, Failed
from pydantic import AwareDatetime

from flows.lifecycle import name_run, owner, run_now
from tasks import rehydrate as tasks


@flow(name="rehydrate", flow_run_name=name_run)
def rehydrate(
    dataset: str, begin: AwareDatetime, end: AwareDatetime, keep_for: str = "7d", at: AwareDatetime | None = None
) -> State[None]:
    """Make read copies of the range's cold units in the warm tier. Run again, it extends and completes them.

    Objects in deep archive are asked for; the run then ends as **Waiting for restores**, and one that comes later
    goes on where this one stopped.

    Args:
        dataset: whose rows.
        begin: of the range; whole units are copied.
        end: of the range, not in it.
        keep_for: how long the copies stay: `7d`, `12h`, `1mo`.
        at: the run's instant, with time zone; default: when the run was scheduled.
    """
    now, me, brought, problems = run_now(at), owner(), [], []
    tasks.prepare(dataset)
    for wish in tasks.find_wishes(dataset, begin, end):
        ended = tasks.bring_unit(wish.unit.name, wish, now, keep_for, me, return_state=True)
        if ended.is_completed():
            brought.append(ended.result())
            get_run_logger().info("%s: %s %s", wish.unit, brought[-1].state, brought[-1].text)
        else:
            problems.append(f"{wish.unit}: {ended.message}")
    tasks.show_brought(dataset, brought)
    waiting = [one for one in brought if one.state == "waiting"]
    summary = f"{sum(one.until is not None for one in brought)} units are readable in the warm tier"
    if problems:
        return Failed(message=f"{len(problems)} failed; {summary}. {'; '.join(problems[:5])}")
    if waiting:
        return Completed(name="Waiting for restores", message=f"{summary}; {len(waiting)} wait: {waiting[0].text}")
    return Completed(message=summary)
