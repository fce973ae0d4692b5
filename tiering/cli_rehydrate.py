"""The part of the `tiering` command that brings cold rows back for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tiering import cli_output as out
from tiering import errors

if TYPE_CHECKING:
    from tiering.ops.rehydrate import Brought


def rehydrate(
    dataset: Annotated[str, typer.Argument(help="Whose rows.")],
    begin: Annotated[str, typer.Option("--from", help="Begin of the range, with time zone; whole units are copied.")],
    end: Annotated[str, typer.Option("--to", help="End of the range, not in it.")],
    keep_for: Annotated[str, typer.Option("--for", help="How long the copies stay.")] = "7d",
    at: Annotated[str | None, typer.Option("--at", help="The run's instant, with time zone.  [now]")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")
    ] = False,
) -> None:
    """Bring a range of cold rows back into the warm tier as read copies that go again by themselves.

    The cold objects stay the ones that count. Run again, it extends the copies and makes those that are missing.

    Example: `tiering rehydrate market_bars --from 2024-01-05T00:00Z --to 2024-02-01T00:00Z --for 14d`
    """
    from tiering.cli import instant, opened
    from tiering.cli_moves import actor
    from tiering.ops import install, lifecycle
    from tiering.ops import rehydrate as ops
    from tiering.plan.spans import add, parse_span

    now, first, last, span = instant(at), instant(begin), instant(end), parse_span(keep_for)
    brought: list[Brought] = []
    problems: list[errors.TieringError] = []
    with opened() as stores, out.progress("rehydrating") as advance:
        found = lifecycle.dataset_named(stores, dataset)
        wishes = ops.look(stores, found, first, last)
        install.install_dataset(stores, found)
        for wish in wishes:
            try:
                brought.append(ops.bring(stores, found, wish, now, add(now, span), actor()))
            except errors.TieringError as exc:
                problems.append(exc)
            advance(1, str(wish.unit), len(wishes))
    heads = ["unit", "state", "rows", "until", "what"]
    rows = [(str(b.unit), b.state, b.row_count, b.until or "", b.text) for b in brought]
    document = {"now": now, "units": brought, "failed": [str(problem) for problem in problems]}
    out.emit(document, as_json, out.table_of(f"{dataset}: read copies in the warm tier", heads, rows))
    for problem in problems:
        out.note(str(problem))
    if problems:
        raise typer.Exit(out.FAILED)
