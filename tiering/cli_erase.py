"""The part of the `tiering` command that erases a person, or proves that nobody knows them any more."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiering import cli_output as out

if TYPE_CHECKING:
    from tiering.ops.erase import Outlook
    from tiering.ops.erase_proof import Proof
    from tiering.plan.erase import Obstacle

User = Annotated[
    str, typer.Option("--user", help="The person's ID, exactly as the rows have it; - reads it from stdin.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]
At = Annotated[str | None, typer.Option("--at", help="The run's instant, with time zone.  [now]")]


def erase(
    user: User,
    reason: Annotated[str, typer.Option("--reason", help="Why: into certificate and audit trail; name nobody.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say where the person is and what is in the way.")
    ] = False,
    except_locked: Annotated[
        bool, typer.Option("--except-locked", help="Leave what is under hold or lock, and certify until when.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Erase nothing: look everywhere, and list every place.")
    ] = False,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Erase one person from every tier, with proof and a certificate; refused as a whole under a hold or lock.

    Run again after a crash, it goes on. Exit code 1: refused; 3: traces were found (or are kept).

    Example: `tiering erase --user u-4711 --reason "request of 3 March"`
    """
    from tiering.cli import instant, opened
    from tiering.cli_moves import actor
    from tiering.ops import erase as ops
    from tiering.plan.erase import Person

    person = Person(sys.stdin.readline().strip() if user == "-" else user)
    if not person.name:
        raise typer.BadParameter("whose rows?", param_hint="--user")
    if not (dry_run or verify or reason.strip()):
        raise typer.BadParameter("an erasure needs a reason", param_hint="--reason")
    if person.is_in(reason):
        raise typer.BadParameter("it names the person, and is kept for ever", param_hint="--reason")
    with opened() as stores:
        if verify:
            _show_proof(ops.verify(stores, person), as_json)
        elif dry_run:
            _show_outlook(ops.look(stores, person), as_json)
        else:
            _erase(ops, stores, person, reason, actor(), instant(at), except_locked, as_json)


def _erase(
    ops: Any, stores: Any, person: Any, reason: str, actor: str, now: datetime, except_locked: bool, as_json: bool
) -> None:
    from tiering.plan.erase import ErasureRefused

    try:
        certificate = ops.erase(stores, person, reason, actor, now, except_locked=except_locked)
    except ErasureRefused as exc:
        out.emit({"refused": True, "obstacles": exc.obstacles, "hint": exc.hint}, as_json, _obstacles(exc.obstacles))
        out.note(exc.hint)
        raise typer.Exit(out.FAILED) from exc
    if as_json:
        out.emit(certificate, True)
    else:
        sys.stdout.write(certificate["text"] + f"\nCertificate: {certificate['object']}\n")
    if not certificate["complete"]:
        raise typer.Exit(out.DIFFERENCES)


def _show_outlook(outlook: Outlook, as_json: bool) -> None:
    rows = [(f.store, f.place, f.dataset, f.row_count) for f in outlook.found]
    found = out.table_of("the person is in", ["store", "place", "dataset", "rows"], rows)
    places = [{"store": f.store, "place": f.place, "dataset": f.dataset, "rows": f.row_count} for f in outlook.found]
    out.emit(
        {"dry_run": True, "places": places, "obstacles": outlook.obstacles},
        as_json,
        found,
        _obstacles(outlook.obstacles),
    )
    if outlook.obstacles:
        raise typer.Exit(out.FAILED)


def _obstacles(obstacles: tuple[Obstacle, ...]) -> Any:
    rows = [(o.dataset, o.begin, o.place, o.row_count, o.reason, o.until or "when it is lifted") for o in obstacles]
    return out.table_of("in the way", ["dataset", "unit", "place", "rows", "reason", "possible from"], rows)


def _show_proof(proof: Proof, as_json: bool) -> None:
    title = (
        f"{proof.objects} object versions, {proof.tables} tables, {proof.collections} collections, {proof.keys} keys"
    )
    rows = [(hit.place, hit.text) for hit in proof.hits] or [("nowhere", "no trace")]
    out.emit(proof, as_json, out.table_of(f"looked through {title}", ["place", "found"], rows))
    if proof.hits:
        raise typer.Exit(out.DIFFERENCES)
