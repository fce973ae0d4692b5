"""What a run shows in the Prefect UI: the plan, the receipts, progress, and why a unit is in quarantine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from tiering.model import Plan, Receipt, Stay

if TYPE_CHECKING:
    from tiering.ops.checkpoints import CheckpointReport
    from tiering.ops.sweep import Swept

ROWS_MAX = 500
"""Rows of an artifact's table: it is for reading; `tiering explain` and the ledger have all."""

STAYS_MAX = 50
NEED_A_LOOK = ("quarantined", "overlap", "leased", "held")
"""Reasons that do not pass by themselves, or not by waiting alone."""


def artifact_key(*words: str) -> str:
    """Join words to a key as Prefect allows them: lower-case letters, digits and dashes."""
    return "-".join(words).lower().replace("_", "-").replace("/", "-")


def show_plan(flow_name: str, plan: Plan) -> None:
    """Publish what a dry run would do."""
    rows = [
        {
            "unit": str(move.unit),
            "transition": move.transition.value,
            "rows": move.row_count,
            "bytes": move.size_bytes,
            "due at": _at(move.due_at),
        }
        for move in plan.moves
    ]
    count = _shown(len(rows))
    text = f"Dry run at {plan.now:%Y-%m-%d %H:%M}Z: {len(plan.moves)} moves due{count}, {len(plan.stays)} units stay."
    create_table_artifact(rows[:ROWS_MAX], artifact_key(flow_name, plan.dataset, "plan"), text)
    show_stays(flow_name, plan)


def show_stays(flow_name: str, plan: Plan) -> None:
    """Publish why the other units stay: how many for which reason, then those that need a look, then the soonest."""
    if not plan.stays:
        return
    rows = [
        {
            "unit": str(stay.unit),
            "tier": stay.tier.value,
            "why": "; ".join(f"{reason.code}: {reason.text}" for reason in stay.reasons),
            "until": _at(_next_date(stay)),
        }
        for stay in sorted(plan.stays, key=_urgency)[:STAYS_MAX]
    ]
    counts = Counter(stay.reasons[0].code for stay in plan.stays)
    listed = ", ".join(f"{count} {code}" for code, count in counts.most_common())
    shown = "" if len(plan.stays) <= STAYS_MAX else f"; {STAYS_MAX} shown"
    text = f"{len(plan.stays)} units stay{shown}: {listed}."
    create_table_artifact(rows, artifact_key(flow_name, plan.dataset, "stays"), text)


def quarantined(plan: Plan) -> tuple[str, ...]:
    """Name the units that an earlier run put in quarantine."""
    return tuple(str(stay.unit) for stay in plan.stays if any(r.code == "quarantined" for r in stay.reasons))


def show_receipts(
    flow_name: str, dataset: str, receipts: Sequence[Receipt], problems: Mapping[str, str], seconds: Mapping[str, float]
) -> None:
    """Publish what became of each unit, those with a problem first; and where the time went."""
    rows = [
        {
            "unit": str(receipt.unit),
            "transition": receipt.transition.value,
            "state": receipt.state.value,
            "rows": receipt.row_count,
            "bytes before": receipt.bytes_before,
            "bytes after": receipt.bytes_after,
            "seconds": receipt.seconds,
            "checkpoints": receipt.checkpoints_passed,
            "problem": problems.get(str(receipt.unit)) or receipt.problem,
        }
        for receipt in receipts
    ]
    rows.sort(key=lambda row: not row["problem"])
    times = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    text = f"{len(rows)} units{_shown(len(rows))}, {sum(r.row_count for r in receipts):,} rows; {times}."
    create_table_artifact(rows[:ROWS_MAX], artifact_key(flow_name, dataset), text)


def show_quarantine(report: CheckpointReport) -> None:
    """Publish why a unit failed its checkpoint: expectation, what was seen, and some of the rows."""
    lines = [f"# {report.subject} is in quarantine", "", f"Checkpoint at {report.stage}, nothing was moved.", ""]
    for failure in report.failures:
        lines += [f"## {failure.expectation}", "", f"{failure.description}. Observed: **{failure.observed}**", ""]
        lines += [*(f"    {sample}" for sample in failure.samples), ""]
    unit = "/".join(report.subject.split("/")[:2])  # as `tiering release` reads it, with or without generation
    lines += [
        f'Overrule it: `tiering release {unit} --force --reason "…"`.',
        f"Or correct the rows and `tiering release {unit}`: their table is sealed, that is, fenced against writes;",
        "`docs/runbooks/quarantine.md` says how to lift the fence for one transaction.",
    ]
    create_markdown_artifact("\n".join(lines), artifact_key("quarantine", report.subject))


def start_progress(flow_name: str, dataset: str, total: int) -> UUID:
    """Publish a progress bar."""
    created = create_progress_artifact(0.0, artifact_key(flow_name, dataset, "progress"), f"{dataset}: {total} units")
    return cast(UUID, created)  # typed for async callers too


def show_progress(progress: UUID, done: int, total: int) -> None:
    """Move the bar, in steps of five per cent: each is a request to the server."""
    if done == total or done * 20 // total > (done - 1) * 20 // total:
        update_progress_artifact(progress, 100.0 * done / total)


def show_swept(flow_name: str, swept: Sequence[Swept], dry_run: bool) -> None:
    """Publish what a sweep destroyed, or would."""
    rows = [
        {"store": item.store, "location": item.location, "bytes": item.size_bytes, "why": item.reason} for item in swept
    ]
    size = sum(item.size_bytes for item in swept)
    text = f"{len(rows)} copies{_shown(len(rows))}, {size:,} bytes {'would go' if dry_run else 'gone'}."
    create_table_artifact(rows[:ROWS_MAX], artifact_key(flow_name), text)


def _shown(count: int) -> str:
    return f" ({ROWS_MAX} shown)" if count > ROWS_MAX else ""


def _at(instant: datetime | None) -> str:
    return f"{instant:%Y-%m-%d %H:%M}Z" if instant else ""


def _next_date(stay: Stay) -> datetime | None:
    return min((reason.until for reason in stay.reasons if reason.until), default=None)


def _urgency(stay: Stay) -> tuple[bool, float, Any]:
    at = _next_date(stay)
    is_calm = all(reason.code not in NEED_A_LOOK for reason in stay.reasons)
    return is_calm, at.timestamp() if at else float("inf"), stay.unit
