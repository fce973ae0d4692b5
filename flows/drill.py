"""The flows of disaster recovery: drill it, and do it.

A drill ends as **Failed** whenever it found a defect or missed an objective; the page, the evidence and the
notifications are there all the same. A recovery waits for a person before it overwrites anything that lives.
"""

from __future__ import annotations

from prefect import State, flow, get_run_logger
from prefect.states import Cancelled, Completed, Failed
from pydantic import AwareDatetime

from flows.lifecycle import run_now
from tasks import drill as tasks
from tiering.model_drill import Incident

APPROVAL_SECONDS = 4 * 3600


@flow(name="dr-drill", flow_run_name="drill tier {tier} {incident}")
def dr_drill(
    tier: int = 1,
    incident: Incident = Incident.COMPLETE_OUTAGE,
    seed: int | None = None,
    at: AwareDatetime | None = None,
    check: str | None = None,
) -> State[None]:
    """Bring a tier back from the backups alone, on servers of its own; measure, judge, sign, tell.

    Args:
        tier: 1, 2 or 3.
        incident: that is assumed.
        seed: of the random recovery point and of what fails; default: of the day.
        at: when the incident is assumed to have happened, with time zone; default: when the run was scheduled. The
            objective's clock starts there, so that waiting for a worker counts.
        check: of data corruption: one SELECT that returns rows only where data is wrong; default: the corruption is
            assumed, from a random second on.
    """
    now = run_now(at)
    report = tasks.run_drill(tier, incident, now.toordinal() if seed is None else seed, now, check)
    title, body = tasks.summary_of(report)
    evidence = tasks.keep_evidence(report)
    told = tasks.tell(title, body, report.passed)
    tasks.show_report(report, told, evidence)
    get_run_logger().info("%s", body)
    return Completed(message=title) if report.passed else Failed(message=body)


@flow(name="recover", flow_run_name="recover to {to}")
def recover(to: str, into: dict[str, str]) -> State[None]:
    """Bring stores back for good. It pauses for a person's approval in the Prefect UI before it writes anywhere.

    Args:
        to: the moment: an instant with time zone, or `latest`.
        into: where each store goes: `{"postgresql": DIRECTORY, "mongodb": URL, "redis": DIRECTORY}`; `mongodb` may be
            the name of an environment variable that holds the URL, so that no secret stands in a parameter.
    """
    plan = tasks.plan_recovery(to, into)
    answer = tasks.ask_approval(plan, APPROVAL_SECONDS)
    if not answer.approve or answer.confirm != plan.phrase:
        return Cancelled(message=f"not approved: nothing was written. To approve, write {plan.phrase!r}.")
    done = tasks.recover(to, into, plan, answer.approved_by or "somebody")
    tasks.show_recovery(plan, done)
    title = f"Recovered to {to}, approved by {answer.approved_by}"
    tasks.tell(title, "\n".join(one.text for one in done), all(one.is_good for one in done))
    bad = [one.text for one in done if not one.is_good]
    return Failed(message="; ".join(bad)) if bad else Completed(message=title)
