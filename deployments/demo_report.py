"""What the demo says at its end: per transition units, rows, bytes, seconds of the data and of the framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from tiering.cli_output import bytes_shown
from tiering.model import Receipt, Tier

TIERS = tuple(map(str, Tier))


class Broken(Exception):
    """A promise that was not kept, or a demo that cannot go on."""


@dataclass
class Line:
    """The sums of one transition over all its runs."""

    units: int = 0
    rows: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    data_s: float = 0.0
    checkpoints: int = 0
    runs: int = 0
    start_s: float = 0.0
    wall_s: float = 0.0


@dataclass
class Report:
    """Collects receipts by transition, and the runs' own times by flow."""

    console: Console
    lines: dict[str, Line] = field(default_factory=dict)

    def note_run(self, flow: str, wall_s: float, start_s: float) -> None:
        """Add one run: how long it took from submit to end, and from submit to its first line."""
        line = self.lines.setdefault(flow, Line())
        line.runs, line.wall_s, line.start_s = line.runs + 1, line.wall_s + wall_s, line.start_s + start_s

    def note(self, receipts: Sequence[Receipt]) -> None:
        """Add what runs moved."""
        for receipt in receipts:
            line = self.lines.setdefault(str(receipt.transition), Line())
            line.units += 1
            line.rows += receipt.row_count
            line.bytes_before += receipt.bytes_before
            line.bytes_after += receipt.bytes_after
            line.data_s += receipt.seconds
            line.checkpoints += receipt.checkpoints_passed
        self.console.print(f"   {len(receipts)} units, {sum(r.row_count for r in receipts):,} rows", style="dim")

    def note_sweep(self, copies: int, size_bytes: int, data_s: float) -> None:
        """Add what the sweep destroyed."""
        line = self.lines.setdefault("sweep", Line())
        line.units, line.bytes_before, line.data_s = line.units + copies, line.bytes_before + size_bytes, data_s

    def show_classes(self, classes: Sequence[tuple[str, str, Mapping[str, int], int]]) -> None:
        """Print where the units of each data class are now."""
        table = Table(title="\nwhere it is", title_justify="left", header_style="bold")
        for head in ("data class", "datasets"):
            table.add_column(head)
        for head in (*TIERS, "rows in warm and cold"):
            table.add_column(head, justify="right")
        for name, datasets, units, rows in classes:
            table.add_row(name, datasets, *(str(units.get(tier, 0)) for tier in TIERS), f"{rows:,}")
        self.console.print(table)

    def show(self) -> None:
        """Print the table."""
        table = Table(title="\nwhat moved", title_justify="left", header_style="bold")
        table.add_column("transition")
        heads = ("units", "rows", "before", "after", "ratio", "data s", "checkpoints", "runs", "framework s", "runs s")
        for head in heads:
            table.add_column(head, justify="right")
        for name, line in self.lines.items():
            # A merge's "before" is the late rows alone: dividing by it says nothing.
            has_ratio = line.bytes_before and line.bytes_after and name != "merge"
            ratio = f"{line.bytes_after / line.bytes_before:.2f}" if has_ratio else "–"
            table.add_row(
                name,
                f"{line.units:,}",
                f"{line.rows:,}",
                bytes_shown(line.bytes_before),
                bytes_shown(line.bytes_after),
                ratio,
                f"{line.data_s:.1f}",
                str(line.checkpoints),
                str(line.runs or "–"),
                f"{line.start_s / line.runs:.1f}" if line.runs else "–",
                f"{line.wall_s:.1f}" if line.runs else "–",
            )
        self.console.print(table)
        self.console.print(
            "data s: in the stores, all lanes together · framework s: from submit to the flow's first line, per run · "
            "runs s: from submit to end, all runs · merges run inside hot-to-warm · sweep: units are copies destroyed",
            style="dim",
        )
