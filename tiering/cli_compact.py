"""The part of the `tiering` command that joins small lake files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tiering import cli_output as out
from tiering import errors

if TYPE_CHECKING:
    from tiering.ops.compact import Joined


def compact(
    dataset: Annotated[str | None, typer.Option("--dataset", help="Only this dataset.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be joined; nothing is written.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")
    ] = False,
) -> None:
    """Join small lake files for those who read them through Iceberg. Every unit keeps its own object.

    Examples: `tiering compact --dry-run` · `tiering compact --dataset social_posts`
    """
    from tiering.cli import chosen, opened
    from tiering.cli_moves import actor
    from tiering.ops import compact as ops

    joined: list[Joined] = []
    problems: list[errors.TieringError] = []
    with opened() as stores:
        for one in chosen(stores, dataset):
            try:
                joined += ops.compact(stores, one, actor(), dry_run=dry_run)
            except errors.TieringError as exc:
                problems.append(exc)
    heads = ["dataset", "from", "to", "files", "rows", "before", "after"]
    rows = [
        (
            one.dataset,
            f"{one.begin:%Y-%m-%d}",
            f"{one.end:%Y-%m-%d}",
            one.files,
            one.row_count,
            *map(out.bytes_shown, (one.bytes_before, one.bytes_after)),
        )
        for one in joined
    ]
    document = {"dry_run": dry_run, "joined": joined, "failed": [str(problem) for problem in problems]}
    title = "would be joined" if dry_run else "joined"
    out.emit(document, as_json, out.table_of(title, heads, rows))
    for problem in problems:
        out.note(str(problem))
    if problems:
        raise typer.Exit(out.FAILED)
