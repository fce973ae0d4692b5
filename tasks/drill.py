"""Drills and recoveries as Prefect tasks, the page a manager reads, and the form a person approves with."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from prefect import pause_flow_run, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.input import RunInput
from pydantic import create_model

from tasks.report import artifact_key
from tiering.model_drill import Approval, DrillReport, Incident

if TYPE_CHECKING:
    from tiering.ops.recover import Recovered, RecoveryPlan

ONCE: dict[str, Any] = {"cache_policy": NO_CACHE}
"""Never tried again by itself: a drill that needed two attempts has failed its objective; a recovery is decided on."""


@task(name="drill", task_run_name="drill tier {tier}: {incident}", **ONCE)
def run_drill(tier: int, incident: Incident, seed: int, incident_at: datetime, check: str | None) -> DrillReport:
    """Bring the tier back from the backup bucket, on servers of its own; whatever is wrong is in the report."""
    from tiering import cli_kit

    logging.getLogger("tiering").setLevel(logging.INFO)
    return cli_kit.drill(tier, incident, seed, incident_at, check)


@task(name="keep evidence", **ONCE)
def keep_evidence(report: DrillReport) -> str:
    """Sign the report, keep it in the vault, and say where."""
    from tiering import cli_kit

    return cli_kit.keep_evidence(report)


@task(name="notify", **ONCE)
def tell(title: str, body: str, is_good: bool) -> tuple[tuple[str, str], ...]:
    """Tell people; what became of each channel is returned, and fails nothing."""
    from tiering import cli_kit
    from tiering.ops.notify import Notice

    return tuple((told.channel, told.problem) for told in cli_kit.tell(Notice(title, body, is_good)))


def show_report(report: DrillReport, told: tuple[tuple[str, str], ...], evidence: str) -> None:
    """Publish the page that a manager reads."""
    from tiering.plan.drill_report import markdown_of

    key = artifact_key("drill", f"tier-{report.tier}", report.incident)
    create_markdown_artifact(markdown_of(report, told, evidence), key, report.drill_id)


def summary_of(report: DrillReport) -> tuple[str, str]:
    """Say the result in one line, and in a few."""
    from tiering.plan import drill_report

    return drill_report.title_of(report), drill_report.summary_of(report)


@task(name="plan recovery", **ONCE)
def plan_recovery(to: str, into: dict[str, str]) -> RecoveryPlan:
    """Choose what leads to the moment, and look what is in the places it would go to. Changes nothing."""
    from tiering import cli_kit

    return cli_kit.plan_recovery(to, into)


@task(name="recover", task_run_name="recover to {to}", **ONCE)
def recover(to: str, into: dict[str, str], plan: RecoveryPlan, approved_by: str) -> list[Recovered]:
    """Bring the stores back into their places, once a person has agreed."""
    from tiering import cli_kit

    return cli_kit.recover(to, into, plan, approved_by)


def ask_approval(plan: RecoveryPlan, seconds: int) -> Approval:
    """Pause the run until a person has filled in the form in the UI; it shows what will be overwritten."""
    bases: Any = (RunInput, Approval)
    form: type[RunInput] = create_model("ApprovalForm", __base__=bases)
    answer = pause_flow_run(form.with_initial_data(description=plan.markdown), timeout=seconds, poll_interval=2)
    return cast(Approval, answer)


def show_recovery(plan: RecoveryPlan, done: list[Recovered]) -> None:
    """Publish what was brought back where."""
    lines = [plan.markdown, "", "## Done", "", *(f"- {one.text}" for one in done)]
    create_markdown_artifact("\n".join(lines), artifact_key("recovery"), plan.moment)
