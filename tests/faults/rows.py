"""The rows of build/faults.json: each campaign puts its own beside those of the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

OUT = Path(__file__).parents[2] / "build" / "faults.json"


def merge(out: Path, rows: Sequence[dict[str, object]]) -> None:
    """Put rows into the file, in place of those of the same name."""
    names = {row["name"] for row in rows}
    old = read(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([row for row in old if row["name"] not in names] + list(rows), indent=1) + "\n")


def read(out: Path) -> list[dict[str, object]]:
    """Read the rows that are there."""
    found: list[dict[str, object]] = json.loads(out.read_text()) if out.exists() else []
    return found
