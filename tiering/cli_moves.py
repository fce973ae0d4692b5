"""The part of the `tiering` command that changes where data is: run, release, hold, sweep; and the policy lint."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiering import cli_output as out
from tiering import errors
from tiering.model import State, Transition, Unit

if TYPE_CHECKING:
    from tiering.model import Dataset, Receipt
    from tiering.stores.opening import Stores

hold_app = typer.Typer(help="Legal holds: what is held does not expire.", no_args_is_help=True)
policies_app = typer.Typer(help="The policy file.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]
At = Annotated[str | None, typer.Option("--at", help="The run's instant, with time zone.  [now]")]
Subject = Annotated[str, typer.Argument(help="A dataset (market_bars) or one unit (market_bars/2024-01-05).")]
Reason = Annotated[str, typer.Option("--reason", help="Why: it goes into the audit trail.")]


def actor() -> str:
    """Name the person for the audit trail."""
    try:
        return f"tiering ({getpass.getuser()})"
    except (KeyError, OSError):  # a user id without a name, as in many containers
        return "tiering"


def unit_named(stores: Stores, text: str) -> Unit:
    """Read a unit's name as `explain` writes it: `market_bars/2024-01-05`, with or without `T08` and `/g2`.

    Raises:
        NotFound: (a bad argument) no dataset, no date, or not where a unit begins.
    """
    from tiering.plan.spans import unit_of

    parts = text.split("/")
    hint = "Write it as `tiering explain` does: market_bars/2024-01-05."
    dataset = stores.policies.dataset(parts[0])
    if dataset is None or len(parts) not in (2, 3):
        raise errors.NotFound("read unit name", text, "no unit of a known dataset", hint)
    try:
        begin = datetime.strptime(parts[1], "%Y-%m-%dT%H" if "T" in parts[1] else "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise errors.NotFound("read unit name", text, f"{parts[1]!r} is no date", hint) from None
    found = unit_of(begin, dataset.unit)
    if found[0] != begin:
        raise errors.NotFound(
            "read unit name", text, f"units of {dataset.name} are {dataset.unit} long", f"You mean {found[0]:%Y-%m-%d}."
        )
    return Unit(dataset.name, *found)


def run(
    transition: Annotated[Transition, typer.Argument(help="What to do with the units that are due for it.")],
    dataset: Annotated[str | None, typer.Option("--dataset", help="Only this dataset.")] = None,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Carry out the moves that are due, here and now, without Prefect. Safe beside its flows, and after a crash.

    Examples: `tiering run hot-to-warm` · `tiering run warm-to-cold --dataset market_bars`
    """
    from tiering.cli import chosen, instant, opened

    now = instant(at)
    receipts: list[Receipt] = []
    problems: list[errors.TieringError] = []
    with opened() as stores:
        for one in chosen(stores, dataset):
            try:
                _run_dataset(stores, one, transition, now, receipts, problems)
            except errors.TieringError as exc:
                # What the others did is told all the same.
                problems.append(exc)
    rows = [
        (
            str(r.unit),
            r.transition,
            r.state,
            r.row_count,
            *map(out.bytes_shown, (r.bytes_before, r.bytes_after)),
            r.seconds,
        )
        for r in receipts
    ]
    heads = ["unit", "transition", "state", "rows", "before", "after", "seconds"]
    document = {"now": now, "receipts": receipts, "failed": [str(problem) for problem in problems]}
    out.emit(document, as_json, out.table_of(f"{transition} at {now:%Y-%m-%d %H:%M}Z", heads, rows))
    for receipt in receipts:
        if receipt.problem:
            out.note(
                f"{receipt.unit} is {receipt.state}: {receipt.problem}. HINT: `tiering release {receipt.unit.name}`."
            )
    for problem in problems:
        out.note(str(problem))
    if problems:
        raise typer.Exit(out.FAILED)
    if any(receipt.state is State.QUARANTINED for receipt in receipts):
        raise typer.Exit(out.DIFFERENCES)


def _run_dataset(
    stores: Stores,
    dataset: Dataset,
    transition: Transition,
    now: datetime,
    receipts: list[Receipt],
    problems: list[errors.TieringError],
) -> None:
    """Run a dataset's due moves, adding to receipts and problems; one that fails does not keep the others back.

    A move that another run works on is noted, and no problem: it is being done.
    """
    from tiering.ops import install, lifecycle

    install.install_dataset(stores, dataset)
    install.prepare_units(stores, dataset, now)
    lifecycle.finish_open(stores, dataset, now, actor())
    plan = lifecycle.plan_dataset(stores, dataset, now, [transition])
    for stay in plan.stays:
        for reason in stay.reasons:
            if reason.code == "leased":
                out.note(f"{stay.unit}: {reason.text}")
    ids = lifecycle.begin_moves(stores, plan)
    with out.progress(f"{transition} {dataset.name}", len(ids)) as advance:
        for move_id in ids:
            try:
                receipts.append(lifecycle.run_move(stores, move_id, now, actor()))
            except errors.LeaseHeld as exc:
                out.note(str(exc))
            except errors.TieringError as exc:
                problems.append(exc)
            advance(1, "", len(ids))


def release(
    unit: Annotated[str, typer.Argument(help="A quarantined unit, e.g. market_bars/2024-01-05.")],
    force: Annotated[bool, typer.Option("--force", help="Ignore the checkpoint that failed; needs --reason.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why the checkpoint may be ignored.")] = "",
    as_json: Json = False,
) -> None:
    """Let a quarantined unit go on: its checkpoint is tried again, or overruled for a reason.

    Examples: `tiering release market_bars/2024-01-05` · `… --force --reason "prices checked with the exchange"`
    """
    from tiering.cli import opened
    from tiering.ops import lifecycle

    if force != bool(reason.strip()):
        raise typer.BadParameter("--force and --reason go together", param_hint="--force")
    with opened() as stores:
        record = lifecycle.release(stores, unit_named(stores, unit), actor(), reason.strip())
    document = {"unit": str(record.unit), "transition": record.transition, "state": record.state, "forced": force}
    out.emit(document, as_json, out.table_of("released", list(document), [list(document.values())]))


def sweep(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be destroyed.")] = False,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Destroy superseded copies whose undo window is over, and what crashed runs left behind.

    Examples: `tiering sweep --dry-run` · `tiering sweep`
    """
    from tiering.cli import instant, opened
    from tiering.ops import sweep as ops

    now = instant(at)
    with opened() as stores:
        swept = ops.sweep(stores, now, actor(), dry_run=dry_run)
    rows = [(s.store, s.location, out.bytes_shown(s.size_bytes), s.reason) for s in swept]
    title = f"{'would be destroyed' if dry_run else 'destroyed'}: {len(rows)}"
    document = {"now": now, "dry_run": dry_run, "swept": swept}
    out.emit(document, as_json, out.table_of(title, ["store", "location", "size", "why"], rows))


@hold_app.command("place")
def hold_place(subject: Subject, reason: Reason, as_json: Json = False) -> None:
    """Put a legal hold on a dataset or a unit.

    Example: `tiering hold place market_bars/2014-01-06 --reason "case 12/2024"`
    """
    from tiering.cli import opened

    if not reason.strip():
        raise typer.BadParameter("a hold needs a reason", param_hint="--reason")
    with opened() as stores:
        dataset, begin = _held(stores, subject)
        stores.ledger.place_hold(dataset, begin, reason, actor())
    _say_hold("held", subject, reason, as_json)


@hold_app.command("lift")
def hold_lift(subject: Subject, reason: Reason, as_json: Json = False) -> None:
    """Lift a legal hold.

    Example: `tiering hold lift market_bars/2014-01-06 --reason "case closed"`
    """
    from tiering.cli import opened

    with opened() as stores:
        stores.ledger.lift_hold(*_held(stores, subject), reason, actor())
    _say_hold("lifted", subject, reason, as_json)


@hold_app.command("list")
def hold_list(as_json: Json = False) -> None:
    """List the holds in force.

    Example: `tiering hold list --json`
    """
    from tiering.cli import opened

    with opened() as stores:
        holds = stores.ledger.holds()
    rows = [(h.dataset, h.begin or "the whole dataset", h.reason, h.placed_by) for h in holds]
    out.emit({"holds": holds}, as_json, out.table_of("holds", ["dataset", "unit", "reason", "placed by"], rows))


def _held(stores: Stores, subject: str) -> tuple[str, datetime | None]:
    if "/" in subject:
        unit = unit_named(stores, subject)
        return unit.dataset, unit.begin
    if stores.policies.dataset(subject) is None:
        known = ", ".join(d.name for d in stores.policies.datasets)
        raise errors.NotFound("find dataset", subject, "not in the policy file", f"Known datasets: {known}.")
    return subject, None


def _say_hold(what: str, subject: str, reason: str, as_json: bool) -> None:
    document: dict[str, Any] = {what: subject, "reason": reason}
    out.emit(document, as_json, out.table_of("", list(document), [list(document.values())]))


@policies_app.command("lint")
def policies_lint(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)] = Path("deployments/policies.yaml"),
    as_json: Json = False,
) -> None:
    """Check a policy file and show the ages in force; exit code 2 names file, key and rule that is broken.

    Example: `tiering policies lint deployments/policies.yaml`
    """
    from tiering.plan.policies import parse_policies

    policies = parse_policies(file.read_text(encoding="utf-8"), str(file))
    rows = [
        {
            "dataset": d.name,
            "class": d.policy.name,
            "unit": str(d.unit),
            "hot_to_warm": d.policy.hot_to_warm and str(d.policy.hot_to_warm),
            "compression": d.policy.compression and str(d.policy.compression),
            "warm_to_cold": d.policy.warm_to_cold and str(d.policy.warm_to_cold),
            "retention": d.policy.retention and str(d.policy.retention),
            "state": d.state,
        }
        for d in policies.datasets
    ]
    table = out.table_of(f"{file}: in order", list(rows[0]) if rows else ["dataset"], [list(r.values()) for r in rows])
    out.emit({"file": file, "version": policies.version, "datasets": rows}, as_json, table)
