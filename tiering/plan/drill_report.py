"""Write a drill's report for people: what was promised, what was measured, what is wrong and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from tiering.model_drill import DrillReport, Measured

ACTIONS = {
    "missing_backup": "Run the store's backup now, and find out why the scheduled one is not there: `tiering backups`.",
    "stale_backup": "Look at the schedule and the last runs of the backup's deployment; run it now.",
    "corrupt_backup": "Run a full backup now. Compare the bucket's versions of the object; look for who changed it.",
    "wrong_key": "Fetch the key from its escrow (docs/runbooks/lost-key.md) before the backups are needed.",
    "failed_verification": "Keep everything as it is, and look at the restored server's log of this run.",
    "restore_failed": "Read the defect's text: it names the step. Repeat by hand with `tiering restore`.",
    "unavailable": "Run the drill again; if the bucket stays away, see docs/runbooks/lost-region.md.",
    "log_gap": "Take a full backup now: moments behind the gap cannot be brought back. Why was the log not shipped?",
    "no_recovery_point": "The stores' logs do not reach a common moment: look at `tiering backups` for gaps.",
    "no_common_point": "Heartbeats differ between stores: is `tiering heartbeat` running once, for all stores?",
    "broken_chain": "Rows of the past were changed or lost: compare an older recovery point, find who wrote.",
    "overshoot": "A restore ended after its moment: check clocks and the store's target handling.",
    "undershoot": "A restore ended too early: part of the log is missing. Check the log's shipping.",
    "other_history": "An older point is of another history: was there a restore in between? Take a full backup.",
    "missing_extension": "Install the extension on the recovery servers, or note that it was dropped on purpose.",
    "lost_role": "Roles are missing after a restore: check that the whole server is backed up, not one database.",
    "lost_grant": "Rights are missing after a restore: applications would be refused.",
    "lost_table": "A table or view is not in the backup.",
    "lost_index": "An index is not there: queries would be slow. Check the backup's verification.",
    "lost_collection": "A collection is not in the backup.",
    "ttl_deletion": "Drop the expiring index, or restore with expiry switched off: it deletes what was restored.",
    "empty_redis": "The snapshot loads as nothing: check that it is started without the append-only file.",
    "wrong_slot_map": "Slots of the snapshot and of the restored cluster differ: take a new snapshot set.",
    "slow_probe": "Queries of the restored copy are too slow: larger servers, or warm them.",
}
"""Defect → what to do next."""

_ANY_ACTION = "Read the defect's text and look at the run's log."


def title_of(report: DrillReport) -> str:
    """Say the result in one line."""
    result = "passed" if report.passed else "FAILED"
    return f"Drill tier {report.tier}, {report.incident}: {result}"


def summary_of(report: DrillReport) -> str:
    """Say the result in a few lines of plain text, for notifications."""
    lines = [title_of(report)]
    lines += [
        f"{one.component}: {_light(one)}; RTO {_span(one.rto)} of {_span(one.rto_objective)}, "
        f"RPO {_span(one.rpo)} of {_span(one.rpo_objective)}"
        for one in report.measured
    ]
    lines += [f"DEFECT {defect.code}: {defect.subject}: {defect.text}" for defect in report.defects]
    return "\n".join(lines)


def markdown_of(report: DrillReport, told: Sequence[tuple[str, str]] = (), evidence: str = "") -> str:
    """Write the page that a manager reads.

    Args:
        report: of the drill.
        told: (channel, problem) of each notification.
        evidence: where the signed record is.
    """
    took = (report.ended_at - report.began_at).total_seconds()
    lines = [f"# {title_of(report)}", ""]
    bad = "**Do not rely on this recovery before it is repaired.**"
    lines += ["Everything came back in time." if report.passed else bad, ""]
    lines += [
        f"{report.recovery.capitalize()} recovery: {report.scope}. Begun {_at(report.began_at)}, {took:.0f} s in all.",
        "",
        "| component | result | RTO measured | promised | RPO measured | promised |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.component} | {_light(one)} | {_span(one.rto)} | {_span(one.rto_objective)} "
        f"| {_span(one.rpo)} | {_span(one.rpo_objective)} |"
        for one in report.measured
    ]
    lines += ["", "## Defects" if report.defects else "No defects.", ""]
    lines += [f"- **{defect.code}** ({_cell(defect.subject)}): {_cell(defect.text)}" for defect in report.defects]
    lines += ["", "## Next actions", "", *(f"1. {action}" for action in actions_of(report)), ""]
    lines += ["## What was brought back", ""]
    lines += [f"- {point.pick}: {_at(point.at)}" for point in report.points]
    if report.common_seq:
        lines.append(f"- all stores agree up to heartbeat {report.common_seq:,}")
    lines += [f"- {_cell(note)}" for note in report.notes]
    lines += ["", "## What was asked", ""]
    lines += [f"- {one.component}: {_cell(one.text)}" for one in report.measured]
    lines += ["", "## Where the time went", "", "| phase | of | seconds |", "|---|---|---|"]
    lines += [f"| {phase.name} | {_cell(phase.subject)} | {phase.seconds:.1f} |" for phase in report.phases]
    if told:
        lines += ["", "## Who was told", ""]
        lines += [f"- {channel}: {'NOT REACHED: ' + problem if problem else 'told'}" for channel, problem in told]
    if evidence:
        lines += ["", f"Signed evidence: `{evidence}` (`tiering evidence verify`)."]
    return "\n".join(lines) + "\n"


def actions_of(report: DrillReport) -> list[str]:
    """List what to do next, each thing once."""
    found = [ACTIONS.get(defect.code, _ANY_ACTION) for defect in report.defects]
    for one in report.measured:
        if one.rto is not None and one.rto > one.rto_objective:
            found.append(f"{one.component} took too long: see where the time went; larger servers, or smaller backups.")
        if one.rpo is not None and one.rpo > one.rpo_objective:
            found.append(f"{one.component} lost more than promised: back up or ship its log more often.")
        if not one.is_recovered and not report.defects:
            found.append(f"{one.component} did not come back.")
    return list(dict.fromkeys(found)) or ["None. The next drill comes by its schedule."]


def codes_of(report: DrillReport) -> tuple[str, ...]:
    """List why a drill failed, in codes: its defects, and the objectives that were missed."""
    missed = []
    for one in report.measured:
        missed += ["rto_missed"] if one.rto is not None and one.rto > one.rto_objective else []
        missed += ["rpo_missed"] if one.rpo is not None and one.rpo > one.rpo_objective else []
        missed += ["not_recovered"] if not one.is_recovered else []
    return tuple(dict.fromkeys([*(defect.code for defect in report.defects), *missed]))


def document_of(report: DrillReport) -> dict[str, Any]:
    """Turn a report into JSON, with its verdict: what evidence signs."""
    plain: dict[str, Any] = _plain(asdict(report))
    return plain | {"passed": report.passed, "failed_by": list(codes_of(report))}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, datetime):
        return value.isoformat()
    return value.value if isinstance(value, Enum) else value


def _light(one: Measured) -> str:
    if one.is_met:
        return "GREEN: met"
    if not one.is_recovered:
        return "RED: not recovered"
    return "RED: too late" if one.rto is None or one.rto > one.rto_objective else "RED: too much lost"


def _span(length: timedelta | None) -> str:
    if length is None:
        return "unknown"
    seconds = length.total_seconds()
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds % 1 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min".replace(".0 ", " ") if minutes < 120 else f"{minutes / 60:.1f} h".replace(".0 ", " ")


def _at(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S}Z"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
