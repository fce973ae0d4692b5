"""What writers were promised: every version of every bar that was tried, and the newest that was acknowledged."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

Key = tuple[str, int]
"""Symbol and epoch second; market, timeframe and source are always the same."""

INSERT = """INSERT INTO hot.market_bars (symbol, market, timeframe, ts, open, high, low, close, volume, amount, source)
VALUES {} ON CONFLICT (symbol, market, timeframe, ts, source) DO UPDATE SET open = excluded.open,
    high = excluded.high, low = excluded.low, close = excluded.close, volume = excluded.volume,
    amount = excluded.amount"""
SELECTED = "symbol, market, timeframe, ts, open, high, low, close, volume, amount, source"


def bar(key: Key, version: int) -> tuple[Any, ...]:
    """Make the one bar that a key has in a version: every column of it depends on both."""
    symbol, epoch = key
    price = 10 + Decimal(version * 7919 % 99_999_989).scaleb(-8)
    moved = Decimal(version % 97).scaleb(-2)
    values = (price, price + moved + 1, price - 1, price + moved, version, Decimal(version * 125).scaleb(-2))
    return symbol, "US", "1m", datetime.fromtimestamp(epoch, UTC), *values, "faults"


@dataclass
class Journal:
    """All writers' logs as one. A line is `t` (tried) or `a` (acknowledged), symbol, epoch, version."""

    files: list[Path] = field(default_factory=list)
    tried: dict[Key, list[int]] = field(default_factory=dict)
    acknowledged: dict[Key, int] = field(default_factory=dict)
    _read: dict[Path, int] = field(default_factory=dict)

    def note_tried(self, key: Key, version: int) -> None:
        self.tried.setdefault(key, []).append(version)

    def note_acknowledged(self, key: Key, version: int) -> None:
        self.acknowledged[key] = version

    def refresh(self) -> None:
        """Read the whole lines that the writers added since."""
        for path in self.files:
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in whole.decode().splitlines():
                kind, symbol, epoch, version = line.split()
                note = self.note_tried if kind == "t" else self.note_acknowledged
                note((symbol, int(epoch)), int(version))
