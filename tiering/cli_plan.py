"""The part of the `tiering` command that says why: plan, and explain."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiering import cli_output as out
from tiering import errors
from tiering.model import State

if TYPE_CHECKING:
    from tiering.model import Dataset, Move, Pin, Reason, Residence, Stay
    from tiering.ops.plans import Applied, Made, Surveyed
    from tiering.plan.estimates import Totals

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]
At = Annotated[
    str | None, typer.Option("--at", help="The instant to judge ages at, with time zone: 2026-11-22T08:00Z.  [now]")
]
UNITS_MAX = 60
"""Units of a dataset shown without --all; --json has them all."""


def plan(
    dataset: Annotated[str | None, typer.Option("--dataset", help="Only this dataset.")] = None,
    data_class: Annotated[str | None, typer.Option("--class", help="Only datasets of this data class.")] = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", dir_okay=False, help="Write the plan, sealed, to this file.")
    ] = None,
    apply_file: Annotated[
        Path | None, typer.Option("--apply", dir_okay=False, help="Carry out exactly the moves of this sealed plan.")
    ] = None,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Show the moves that are due, what they take and cost, and count the units that stay by reason. Writes nothing.

    With `--apply` it carries out a plan that `--out` wrote, if nothing has changed since; twice is as good as once.

    Examples: `tiering plan` · `tiering plan --dataset market_bars --out plan.json` · `tiering plan --apply plan.json`
    """
    from tiering.cli import chosen, instant, opened
    from tiering.ops import plans

    now = instant(at)
    if apply_file:
        if dataset or data_class or out_file:
            raise typer.BadParameter("a sealed plan says itself what it is for", param_hint="--apply")
        _apply(apply_file, now, as_json)
        return
    with opened() as stores:
        made = plans.make(stores, chosen(stores, dataset, data_class), now)
        version = stores.policies.version
    if out_file:
        plans.write(plans.sealed(made, version), out_file)
    document: dict[str, Any] = {"now": now, "policy_version": version, "plans": made.plans}
    document |= {"estimates": made.estimates, "totals": made.totals, "ledger_position": made.position}
    tables = () if as_json else _plan_tables(made)
    out.emit(document | ({"file": out_file} if out_file else {}), as_json, *tables)
    if out_file:
        out.note(f"{len(made.estimates)} moves sealed in {out_file}. HINT: `tiering plan --apply {out_file}`.")


def _plan_tables(made: Made) -> list[Any]:
    moves = [
        (
            str(e.move.unit),
            e.move.transition,
            e.move.row_count,
            out.bytes_shown(e.size_before),
            out.bytes_shown(e.size_after),
            e.seconds,
            e.lock_seconds,
            f"{e.month_after - e.month_before:+.4f}",
            e.move.due_at,
        )
        for e in made.estimates
    ]
    heads = ["unit", "transition", "rows", "size", "after", "seconds", "lock s", "per month", "due since"]
    counted: dict[tuple[str, str, str], list[Any]] = {}
    for plan in made.plans:
        for stay in plan.stays:
            row = counted.setdefault((plan.dataset, str(stay.tier), stay.reasons[0].code), [0, None])
            row[0] += 1
            dates = [date for date in (row[1], _next_date(stay.reasons)) if date]
            row[1] = min(dates, default=None)
    staying = [(*key, *row) for key, row in sorted(counted.items())]
    return [
        out.table_of(f"due at {made.now:%Y-%m-%d %H:%M}Z", heads, moves),
        out.table_of("staying", ["dataset", "tier", "reason", "units", "first change"], staying),
        *_total_tables(made.totals, sorted({e.basis for e in made.estimates})),
    ]


def _next_date(reasons: Sequence[Reason]) -> datetime | None:
    return min((reason.until for reason in reasons if reason.until), default=None)


def _total_tables(totals: Totals, bases: Sequence[str]) -> list[Any]:
    places = [
        (
            place.place,
            place.units_before,
            place.units_after,
            out.bytes_shown(place.bytes_before),
            out.bytes_shown(place.bytes_after),
            f"{place.month_before:.4f}",
            f"{place.month_after:.4f}",
        )
        for place in totals.places
    ]
    sums = [
        ("work of one lane", f"{totals.seconds:,.1f} s"),
        ("locks, in all and at most", f"{totals.lock_seconds:,.2f} s, {totals.lock_seconds_max:.3f} s"),
        ("storage", f"{totals.month_after - totals.month_before:+.4f} {totals.currency} a month"),
        ("requests", f"{totals.once:.4f} {totals.currency} once"),
        ("estimated from", "; ".join(bases) or "nothing: no move is due"),
    ]
    title = f"{totals.moves} moves, {totals.row_count:,} rows, {out.bytes_shown(totals.size_bytes)}"
    heads = ["tier", "units", "after", "size", "after ", f"{totals.currency} a month", "after  "]
    return [out.table_of(title, ["estimate", ""], sums), out.table_of("what the tiers cost", heads, places)]


def _apply(path: Path, now: datetime, as_json: bool) -> None:
    from tiering.cli import opened
    from tiering.cli_moves import actor
    from tiering.ops import plans

    document = plans.read(path)
    with opened() as stores, out.progress("applying", len(document["moves"])) as advance:
        applied = plans.apply(
            stores, document, now, actor(), lambda unit, _done, total: advance(1, unit, total)
        )  # fmt: skip
    _say_applied(applied, path, now, as_json)


def _say_applied(applied: Applied, path: Path, now: datetime, as_json: bool) -> None:
    is_old = not applied.receipts and not applied.problems
    title = "already applied: nothing was changed" if is_old else f"applied {path}"
    if applied.done_before and not is_old:
        title += f"; {applied.done_before} of its moves were done before"
    rows = [(str(r.unit), r.transition, r.state, r.row_count, r.seconds) for r in applied.receipts]
    table = out.table_of(title, ["unit", "transition", "state", "rows", "seconds"], rows)
    document = {"now": now, "file": path, "already_applied": is_old, "done_before": applied.done_before}
    out.emit(document | {"receipts": applied.receipts, "problems": applied.problems}, as_json, table)
    for unit, problem in applied.problems.items():
        out.note(f"{unit}: {problem}")
    if applied.problems:
        raise typer.Exit(out.FAILED)
    if any(receipt.state is State.QUARANTINED for receipt in applied.receipts):
        raise typer.Exit(out.DIFFERENCES)


def explain(
    dataset: Annotated[str, typer.Argument(help="A dataset, e.g. market_bars.")],
    unit: Annotated[str | None, typer.Argument(help="One unit, e.g. market_bars/2024-01-05.")] = None,
    unit_option: Annotated[str | None, typer.Option("--unit", help="The same as an option.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every unit, and of each every rule.")] = False,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Say of every unit where it is, what happens to it next and when, and why not now.

    For one unit, or with --all: every rule with its value, its threshold and its date, and what placement decided.

    Examples: `tiering explain market_bars` · `tiering explain market_bars market_bars/2024-01-05 --json`
    """
    from tiering.cli import chosen, instant, opened
    from tiering.cli_moves import unit_named
    from tiering.ops import placement, plans

    now, name = instant(at), unit or unit_option
    in_full = bool(name) or everything
    with opened() as stores:
        resting = stores.policies.dataset(dataset)
        if resting and resting.state != "moves":
            _say_resting(resting, now, as_json)
            return
        (found,) = chosen(stores, dataset)
        wanted = unit_named(stores, name) if name else None
        (seen,) = plans.make(stores, [found], now).surveyed
        notes = plans.notes_of(stores, found)
        surveyed = (seen.residences, seen.newest)
        terms = placement.explain_terms(stores, stores.heat, found, now, surveyed) if in_full else {}
    moves, stays = seen.moves, seen.stays
    rows = [
        _explained(seen, home, moves.get(home.unit.begin), stays.get(home.unit.begin))
        | {"placement": terms.get(home.unit.begin, ())}
        for home in seen.residences
        if wanted is None or home.unit.begin == wanted.begin
    ]
    if wanted and not rows:
        raise errors.NotFound("read unit name", str(name), "no such unit has rows", f"`tiering explain {dataset}`.")
    document = {"now": now, "dataset": found.name, "reference": seen.plan.reference, "notes": notes, "units": rows}
    document |= {"placement": terms.get(None, ())}
    out.emit(document, as_json, *(() if as_json else _explain_tables(seen, rows, in_full)))
    for note in notes:
        out.note(f"{found.name}: {note.code}: {note.text}")


def _say_resting(dataset: Dataset, now: datetime, as_json: bool) -> None:
    from tiering.plan.lifecycle import resting_reason

    reason = resting_reason(dataset)
    document = {"now": now, "dataset": dataset.name, "reference": None, "notes": [reason], "units": []}
    out.emit(document, as_json)
    out.note(f"{dataset.name}: {reason.code}: {reason.text}")


def _explained(seen: Surveyed, home: Residence, move: Move | None, stay: Stay | None) -> dict[str, Any]:
    from tiering.plan.explain import pins_on, rules_of

    coming = move.transition if move else None
    reasons = stay.reasons if stay else ()
    return {
        "unit": str(home.unit),
        "tier": home.tier,
        "storage_class": home.storage_class,
        "compressed": home.is_compressed,
        "state": home.move_state or "at rest",
        "transition": home.move_transition,
        "generation": home.unit.generation,
        "rows": home.row_count,
        "size_bytes": home.size_bytes,
        "late_rows": home.late_count,
        "location": home.location,
        "next": coming,
        "due_at": move.due_at if move else None,
        "next_date": _next_date(reasons),
        "reasons": reasons,
        "rules": rules_of(seen.dataset, home, seen.pins, seen.plan.reference, coming),
        "pins": pins_on(home, seen.pins),
        "hold": home.hold,
        "lease": home.lease_owner,
        "rehydrated_until": home.rehydrated_until,
    }


def _explain_tables(seen: Surveyed, rows: Sequence[dict[str, Any]], in_full: bool) -> list[Any]:
    shown = rows if in_full else rows[-UNITS_MAX:]
    reference = out.shown(seen.plan.reference) or "nothing: it has no rows"
    few = f"; the newest {len(shown)} of {len(rows)} units, --all shows all" if len(shown) < len(rows) else ""
    heads = ["unit", "tier", "state", "rows", "late", "size", "next, or why it stays"]
    table = out.table_of(f"{seen.dataset.name}, ages counted from {reference}{few}", heads, map(_unit_row, shown))
    if not in_full:
        return [table]
    rule_heads = ["rule", "age", "threshold", "policy", "date", "verdict"]
    rules = [table_of_rules for row in shown for table_of_rules in _unit_tables(row, rule_heads)]
    return [table, *rules]


def _unit_row(row: dict[str, Any]) -> tuple[Any, ...]:
    place = row["storage_class"] if row["tier"] == "cold" else ""
    tier = " ".join(word for word in (row["tier"], "compressed" if row["compressed"] else "", place) if word)
    reasons = "; ".join(f"{reason.code}: {reason.text}" for reason in row["reasons"])
    size = out.bytes_shown(row["size_bytes"])
    return row["unit"], tier, row["state"], row["rows"], row["late_rows"], size, reasons or f"{row['next']} now"


def _unit_tables(row: dict[str, Any], heads: Sequence[str]) -> list[Any]:
    rules = [
        (
            f"{rule.transition} {rule.target}".strip(),
            rule.value,
            rule.threshold,
            rule.policy if rule.policy != rule.threshold else "",
            rule.due_at,
            rule.verdict,
        )
        for rule in row["rules"]
    ]
    lines = [("at", row["location"] or "nowhere: expired")]
    lines += [(what, row[what]) for what in ("hold", "lease") if row[what]]
    lines += [("placement", "; ".join(row["placement"]))] if row["placement"] else []
    tables = [out.table_of(f"{row['unit']}: {'; '.join(': '.join(line) for line in lines)}", heads, rules)]
    return tables + [_pin_table(pin) for pin in row["pins"]]


def _pin_table(pin: Pin) -> Any:
    from tiering.plan.placement import describe

    title = f"pinned: {pin.transition} {describe(pin.shift_seconds)}, until {out.shown(pin.until)} unless renewed"
    terms = [(t.name, t.value, t.threshold, t.tier, f"{t.contribution:+d}") for t in pin.terms]
    return out.table_of(title, ["term", "value", "threshold", "tier", "points"], terms)
