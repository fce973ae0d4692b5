"""`python -m tests.bench [--rows N] [--only NAME …] [--quick]`: measure ourselves beside our peers, on one machine.

Writes build/bench.json and prints a table. Ends with 0, with 3 when a bar was missed. Every comparison alternates
ours, peer, ours, peer … after one round to warm up; the ratio is the median of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from infra.local import Stack
from tests.bench import (
    access,
    backup,
    bars,
    compression,
    documents,
    drill,
    erase,
    export,
    fidelity,
    flow,
    metadata,
    plan,
    stream,
)
from tests.bench.ground import Ground
from tests.bench.rows import Group, Row

OUT = Path(__file__).parents[2] / "build" / "bench.json"
PREFIX = "lifecycle."
ROWS, QUICK_ROWS, SEED, REPEATS = 2_400_000, 120_000, 20, 3
CHECKS_FOUND_DIFFERENCES = 3


GROUPS = tuple(
    group
    for module in (export, stream, metadata, plan, compression, documents, erase, fidelity, backup, flow, drill, access)
    for group in module.GROUPS
)


def main() -> int:
    """Measure, print, write; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=None, help=f"bars in the big unit (default {ROWS:,})")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", default=[], help="rows that begin so; others stay as they are"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_ROWS:,} rows, one pair: whether it runs, not how fast"
    )
    parser.add_argument("--skip-prefect", action="store_true", help="without the rows that need a Prefect server")
    arguments = parser.parse_args()
    wanted = [name.removeprefix(PREFIX) for name in arguments.only] or [""]
    groups = [g for g in GROUPS if any(n.startswith(w) for n in g.names for w in wanted)]
    if arguments.skip_prefect:
        groups = [g for g in groups if g not in flow.GROUPS]
    if not groups:
        parser.error(f"no such row; there are: {', '.join(name for g in GROUPS for name in g.names)}")
    if export.WHOLE_MOVE in groups:
        export.find_rivet()  # better now than after minutes
    rows = arguments.rows or (QUICK_ROWS if arguments.quick else ROWS)
    began = time.monotonic()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)

    def say(text: str) -> None:
        console.print(f"[{time.monotonic() - began:5.0f} s] {text}", markup=False)

    say(f"bench: {rows:,} bars of {bars.SYMBOLS} symbols, seed {SEED}; nothing else should run on this machine")
    found: list[Row] = []
    try:
        for row in measure(groups, rows, 1 if arguments.quick else REPEATS, say):
            if any(row.name.startswith(w) for w in wanted):
                found.append(row)
    finally:
        # What was measured is kept when a later group fails.
        write(
            [replace(row, name=row.name if "." in row.name else PREFIX + row.name) for row in found],
            keep=bool(arguments.only),
        )
        show(console, found)
    missed = [row.name for row in found if not row.ok]
    say(f"bars missed: {', '.join(missed)}" if missed else "bench: OK")
    return CHECKS_FOUND_DIFFERENCES if missed else 0


def measure(groups: list[Group], rows: int, repeats: int, say: Callable[[str], None]) -> Iterator[Row]:
    """Run the groups on servers of their own, in a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="tiering-bench-") as temporary:
        directory = Path(temporary)
        directory.chmod(0o711)  # PostgreSQL runs as nobody below root
        with Stack(directory / "stack", services={"postgres", "s3", "mongo"}) as stack:
            ground = Ground(stack, directory, rows, SEED, repeats, say)
            for group in groups:
                for row in group.run(ground):
                    verdict = "" if row.bar is None else (" ok" if row.ok else " MISSED")
                    ratio = "" if row.ratio is None else f", ratio {row.ratio:.3g}"
                    say(f"  {row.name}: {row.ours:,.4g} {row.unit}{ratio}{verdict}")
                    yield row


def write(rows: list[Row], keep: bool) -> None:
    """Write build/bench.json; with `keep`, rows of other names stay in it."""
    measured = {row.name for row in rows}
    old = json.loads(OUT.read_text()) if keep and OUT.exists() else []
    lines = [row for row in old if row["name"] not in measured] + [row.as_json() for row in rows]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n")


def show(console: Console, rows: list[Row]) -> None:
    """Print the table, and below it how each number came about."""
    table = Table(title="bench")
    for title in ("lifecycle.", "unit", "ours", "peer", "peer's name", "ratio", "bar", "ok"):
        table.add_column(title, justify="right" if title in ("ours", "peer", "ratio", "bar") else "left")
    for row in rows:
        numbers = ["–" if n is None else f"{n:,.4g}" if abs(n) < 1000 else f"{n:,.0f}" for n in (row.ours, row.peer)]
        ratio, bar = ("–" if n is None else f"{n:.3g}" for n in (row.ratio, row.bar))
        verdict = "" if row.bar is None else "yes" if row.ok else "[bold red]NO[/]"
        table.add_row(row.name, row.unit, *numbers, row.peer_name, ratio, bar, verdict)
    console.print(table)
    for row in rows:
        console.print(f"{row.name}: {row.note}", markup=False, style="dim")


if __name__ == "__main__":
    raise SystemExit(main())
