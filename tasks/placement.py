"""Placement as Prefect tasks, and the artifact that shows every term."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from prefect import task
from prefect.artifacts import create_table_artifact

import infra.sql
from tasks.options import EFFECT
from tasks.report import ROWS_MAX, artifact_key
from tasks.stores import opened

if TYPE_CHECKING:
    from tiering.ops.placement import Applied
    from tiering.plan.placement import Decision


@task(name="place dataset", task_run_name="place {dataset}", **EFFECT)
def place_dataset(dataset: str, now: datetime, owner: str, dry_run: bool) -> Applied:
    """Decide from heat, age and importance what is pinned, and record it unless this is a dry run."""
    from tiering.ops import install, lifecycle, placement

    with opened() as stores:
        found = lifecycle.dataset_named(stores, dataset)
        if not dry_run:
            install.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
            install.install_dataset(stores, found)
        outcome = placement.place(stores, stores.heat, found, now)
        return placement.Applied(outcome) if dry_run else placement.apply(stores, outcome, owner)


def show_placement(applied: Applied) -> None:
    """Publish every decision with every term of its score, those that change something first."""
    outcome = applied.outcome
    rows = [_row(decision) for decision in sorted(outcome.decisions, key=lambda d: (d.pin is None, d.verb == "none"))]
    symbols = ", ".join(score.symbol for score in outcome.hot_symbols[:50])
    text = (
        f"{outcome.dataset} at {outcome.now:%Y-%m-%d %H:%M}Z: {outcome.heat}; {len(outcome.changes)} of "
        f"{len(rows)} decisions write a pin, {len(applied.written)} written. Hot symbols: {symbols or 'none'}."
    )
    create_table_artifact(rows[:ROWS_MAX], artifact_key("placement", outcome.dataset), text)


def _row(decision: Decision) -> dict[str, object]:
    score = decision.score
    subject = f"{score.dataset} {score.begin:%Y-%m-%dT%H:%M}Z" if score.begin else score.dataset
    terms = {term.name: f"{term.value} ({term.threshold}): {term.contribution:+d}" for term in score.terms}
    judged = {"total": score.total, "belongs": str(score.tier or "unknown")}
    return {"subject": subject, **terms, **judged, "transition": str(decision.transition or ""),
            "does": decision.verb, "what": decision.text}  # fmt: skip
