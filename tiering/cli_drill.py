"""The part of the `tiering` command for disasters: drill them, recover from them, verify the evidence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tiering import cli_output as out
from tiering import errors
from tiering.model_drill import DrillReport, Incident

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]

evidence_app = typer.Typer(help="Signed records of drills.", no_args_is_help=True)


def drill(
    tier: Annotated[int, typer.Option(help="1 is the first to come back.", min=1, max=3)] = 1,
    incident: Annotated[Incident, typer.Option(help="That is assumed.")] = Incident.COMPLETE_OUTAGE,
    seed: Annotated[int | None, typer.Option(help="Of the random point and of what fails.  [of the day]")] = None,
    at: Annotated[
        str | None, typer.Option("--at", help="When it is assumed to have happened, with time zone.  [now]")
    ] = None,
    check: Annotated[
        str | None, typer.Option(help="Of data corruption: a SELECT that returns rows only where data is wrong.")
    ] = None,
    evidence: Annotated[Path | None, typer.Option(help="Write the signed record to this file too.")] = None,
    as_json: Json = False,
) -> None:
    """Bring a tier back from the backup bucket alone, on servers of its own; measure, judge, sign, tell.

    Needs bucket and key (TIERING_S3_*, TIERING_BACKUP_BUCKET, TIERING_BACKUP_KEY), and nothing of the primary. Exit
    code 1: the drill failed, for the reasons it names.

    Examples: `tiering drill --tier 1 --incident complete_outage` · `tiering drill --incident data_corruption --check
    "SELECT 1 FROM hot.positions WHERE quantity < 0"`
    """
    from tiering import cli_kit
    from tiering.cli import instant
    from tiering.ops.notify import Notice
    from tiering.plan import drill_report

    now = instant(at) if at else datetime.now(UTC)
    with out.progress(f"drilling tier {tier}: {incident}") as advance:
        report = cli_kit.drill(tier, incident, now.toordinal() if seed is None else seed, now, check)
        advance(1, "done", 1)
    kept = cli_kit.keep_evidence(report, evidence)
    title, body = drill_report.title_of(report), drill_report.summary_of(report)
    told = cli_kit.tell(Notice(title, body, report.passed))
    document = drill_report.document_of(report) | {"evidence": kept, "told": told}
    out.emit(document, as_json, *_tables(report))
    for one in told:
        if one.problem:
            out.note(f"not told by {one.channel}: {one.problem}")
    out.note(f"{title}. Evidence: {kept}")
    for action in drill_report.actions_of(report) if not report.passed else ():
        out.note(f"next: {action}")
    if not report.passed:
        raise typer.Exit(out.FAILED)


def _tables(report: DrillReport) -> list[Table]:
    def seconds(one: timedelta | None) -> float | None:
        return one.total_seconds() if one is not None else None

    measured = [
        (str(one.component), "met" if one.is_met else "MISSED", seconds(one.rto), seconds(one.rto_objective))
        + (seconds(one.rpo), seconds(one.rpo_objective))
        for one in report.measured
    ]
    heads = ["component", "result", "RTO s", "promised s", "RPO s", "promised s"]
    tables = [out.table_of(f"tier {report.tier}, {report.incident}", heads, measured)]
    phases = [(phase.name, phase.subject, phase.seconds) for phase in report.phases]
    tables.append(out.table_of("where the time went", ["phase", "of", "seconds"], phases))
    if report.defects:
        rows = [(defect.code, defect.subject, defect.text) for defect in report.defects]
        tables.append(out.table_of("defects", ["code", "of", "what"], rows))
    return tables


def recover(
    to: Annotated[str, typer.Option(help="The moment, with time zone, or `latest`.")],
    into: Annotated[list[str], typer.Option(help="STORE=PLACE, several times: postgresql=DIR.")],
    approve: Annotated[
        str, typer.Option(help="Your name: what lives in these places may be overwritten; needs --confirm.")
    ] = "",
    confirm: Annotated[str, typer.Option(help="The words that the plan shows.")] = "",
    as_json: Json = False,
) -> None:
    """Bring stores back for good, into the places given. Without --approve it shows the plan and writes nothing.

    A place that is empty needs no approval; one that lives does, in the words that the plan shows.

    Example: `tiering recover --to latest --into postgresql=/srv/pg --into redis=/srv/redis`
    """
    from tiering import cli_kit

    places = dict(item.partition("=")[::2] for item in into)
    plan = cli_kit.plan_recovery(to, places)
    out.note(plan.markdown)
    if plan.needs_approval and (not approve or confirm != plan.phrase):
        hint = f"--approve NAME --confirm {plan.phrase!r}"
        raise errors.HeldError("recover", plan.moment, "a place lives, and nobody approved", f"Add {hint}.")
    done = cli_kit.recover(to, places, plan, approve)
    rows = [(str(one.store), one.place, one.is_good, one.text) for one in done]
    out.emit({"recovered": done}, as_json, out.table_of("recovered", ["store", "into", "good", "what"], rows))
    if not all(one.is_good for one in done):
        raise typer.Exit(out.FAILED)


@evidence_app.command("verify")
def verify_evidence(
    file: Annotated[Path, typer.Argument(help="A record, as `tiering drill --evidence FILE` wrote it.")],
    public_key: Annotated[
        str | None, typer.Option(help="The key to trust, base64; default: made from this machine's backup key.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell whether a record is exactly what was signed. Exit code 3: it is not.

    Example: `tiering evidence verify build/drill.json --public-key …`
    """
    from tiering import cli_kit
    from tiering.ops import evidence

    trusted = [public_key] if public_key else cli_kit.trusted_keys()
    try:
        document = evidence.verify(file.read_bytes(), trusted)
    except OSError as exc:
        raise typer.BadParameter(f"{file}: {exc.strerror}") from exc
    except errors.CorruptCopy as exc:
        out.say_error(exc, as_json)
        raise typer.Exit(out.DIFFERENCES) from exc
    rows = [(document["drill_id"], document["passed"], ", ".join(document["failed_by"]))]
    out.emit(
        {"verified": True, "document": document}, as_json, out.table_of("genuine", ["drill", "passed", "why"], rows)
    )


@evidence_app.command("list")
def list_evidence(as_json: Json = False) -> None:
    """List every record of the vault, each verified, and that none was taken out between.

    Example: `tiering evidence list`
    """
    from tiering import cli_kit

    rows = [(key, document["passed"], ", ".join(document["failed_by"])) for key, document in cli_kit.history()]
    document = [dict(zip(("record", "passed", "failed_by"), row, strict=True)) for row in rows]
    out.emit({"evidence": document}, as_json, out.table_of("evidence", ["record", "passed", "why not"], rows))


@evidence_app.command("key")
def show_key(as_json: Json = False) -> None:
    """Show the public key that verifies evidence: give it to auditors.

    Example: `tiering evidence key`
    """
    from tiering import cli_kit

    keys = cli_kit.trusted_keys()
    out.emit({"public_keys": keys}, as_json, out.table_of("", ["public key"], [(key,) for key in keys]))
