"""The part of the `tiering` command that keeps the heartbeat ledger beside the primary."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from tiering import cli_output as out
from tiering import errors

EXPECT_SECONDS = 300.0


def heartbeat(
    new_chain: Annotated[
        bool, typer.Option("--new-chain", help="Begin another history, after a restore made the stores disagree.")
    ] = False,
    seconds: Annotated[float | None, typer.Option(help="End after so long.  [never]", min=1)] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")
    ] = False,
) -> None:
    """Write a hash-chained row a second into every store, and keep in the vault what the servers look like.

    Drills and recoveries read from it how far a restore reaches, whether it is exact, and whether it is sound. Run it
    once, beside the primary, as a service; it brings stores level that were away.

    Example: `tiering heartbeat` · `tiering heartbeat --seconds 60`
    """
    from tiering.cli import opened
    from tiering.ops import heartbeat as ops
    from tiering.ops.notify import Notice, tell
    from tiering.settings import load_settings

    settings = load_settings()

    def alarm(store: str, problem: str) -> None:
        tell(settings.notify_urls, Notice(f"{store} takes no heartbeat", problem, is_good=False))

    with opened() as stores, ops.Heart(ops.ledgers_of(stores), alarm, new_chain=new_chain) as heart:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: heart.stop())
        out.note(f"beating into {', '.join(lane.ledger.name for lane in heart.lanes)}")
        left = seconds
        while not heart.is_ending and (left is None or left > 0):
            expect_primary()
            step = EXPECT_SECONDS if left is None else min(EXPECT_SECONDS, left)
            heart.wait(step)
            left = None if left is None else left - step
    rows = [(lane.ledger.name, lane.acknowledged.seq if lane.acknowledged else 0, lane.problem) for lane in heart.lanes]
    document = {"stores": [dict(zip(("store", "seq", "problem"), row, strict=True)) for row in rows]}
    out.emit(document, as_json, out.table_of("heartbeat", ["store", "last", "problem"], rows))
    if any(problem for *_, problem in rows):
        raise typer.Exit(out.FAILED)


def expect_primary() -> None:
    """Keep in the vault, if there is one, what the primary looks like; a server that is down is tried again later."""
    from tiering.cli_kit import describe_primary

    try:
        describe_primary()
    except errors.SettingsError as exc:
        out.note(f"what the servers look like is not kept: {exc.cause}")
    except errors.TransientError as exc:
        out.note(f"what the servers look like is kept later: {exc.cause}")
