"""The part of the `tiering` command that shows placement, and applies it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiering import cli_output as out

if TYPE_CHECKING:
    from tiering.plan.placement import Decision


def placement(
    dataset: Annotated[str | None, typer.Option("--dataset", help="Only this dataset.")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Record the pins; else nothing is written.")] = False,
    at: Annotated[str | None, typer.Option("--at", help="The run's instant, with time zone.  [now]")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")
    ] = False,
) -> None:
    """Show which transitions come earlier or later than the policy's date, with every term: heat, age, importance.

    Examples: `tiering placement --dataset market_bars` · `tiering placement --apply --json`
    """
    from tiering.cli import chosen, instant, opened
    from tiering.cli_moves import actor
    from tiering.ops import placement as ops

    now = instant(at)
    with opened() as stores:
        found = [ops.Applied(ops.place(stores, stores.heat, one, now)) for one in chosen(stores, dataset)]
        if apply:
            found = [ops.apply(stores, one.outcome, actor()) for one in found]
    outcomes = [one.outcome for one in found]
    written = sum(len(one.written) for one in found)
    document = {
        "now": now,
        "applied": apply,
        "pins_written": written,
        "datasets": [
            {
                "dataset": outcome.dataset,
                "heat": outcome.heat,
                "decisions": [_plain(decision) for decision in outcome.decisions],
                "hot_symbols": [score.symbol for score in outcome.hot_symbols],
            }
            for outcome in outcomes
        ],
    }
    heads = ["subject", "heat", "age", "importance", "total", "belongs", "transition", "does", "what"]
    rows = [_shown(decision) for outcome in outcomes for decision in outcome.decisions]
    title = f"placement at {now:%Y-%m-%d %H:%M}Z, {f'{written} pins written' if apply else 'nothing written'}"
    out.emit(document, as_json, out.table_of(title, heads, rows))
    for outcome in outcomes:
        hot = ", ".join(score.symbol for score in outcome.hot_symbols)
        out.note(f"{outcome.dataset}: {outcome.heat}{f'; hot symbols: {hot}' if hot else ''}")


def _plain(decision: Decision) -> dict[str, Any]:
    score, pin = decision.score, decision.pin
    return {
        "begin": score.begin,
        "terms": [{**out.plain(term), "contribution": term.contribution} for term in score.terms],
        "total": score.total,
        "tier": score.tier,
        "transition": decision.transition,
        "verb": decision.verb,
        "text": decision.text,
        "shift_seconds": pin.shift_seconds if pin else None,
        "until": pin.until if pin else None,
    }


def _shown(decision: Decision) -> tuple[Any, ...]:
    score = decision.score
    subject = f"{score.dataset} {score.begin:%Y-%m-%dT%H}" if score.begin else score.dataset
    terms = (f"{term.value} ({term.threshold}) {term.contribution:+d}" for term in score.terms)
    tier = score.tier or "unknown"
    return (subject, *terms, score.total, tier, decision.transition or "", decision.verb, decision.text)
