"""The lines of the bench: a number of ours, a peer's beside it, and the bar it has to pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from tests.bench.ground import Ground

Result = TypeVar("Result")


@dataclass(frozen=True)
class Row:
    """One line. A row without a bar is for information and always `ok`; `note` says how it was measured."""

    name: str
    unit: str
    ours: float
    peer: float | None
    peer_name: str
    ratio: float | None
    bar: float | None
    ok: bool
    note: str = ""

    def as_json(self) -> dict[str, object]:
        """The row as build/bench.json keeps it."""
        numbers = {"ours": rounded(self.ours), "peer": rounded(self.peer)}
        told = {"peer_name": self.peer_name, "ratio": rounded(self.ratio), "bar": self.bar, "ok": self.ok}
        return {"name": self.name, "unit": self.unit, **numbers, **told}


@dataclass(frozen=True)
class Group:
    """Rows that are measured together, in this order."""

    names: tuple[str, ...]
    run: Callable[[Ground], Iterator[Row]]


def rounded(number: float | None) -> float | None:
    """Four digits that mean something."""
    return None if number is None else float(f"{number:.4g}")


def alternate(
    ours: Callable[[], Result], peer: Callable[[], Result], repeats: int, *, warm_up: bool = True
) -> list[tuple[Result, Result]]:
    """Run ours, peer, ours, peer … in the same minutes, so that a neighbour on the machine disturbs both alike."""
    pairs = [(ours(), peer()) for _ in range(repeats + warm_up)]
    return pairs[warm_up:]


def higher(name: str, unit: str, pairs: list[tuple[float, float]], peer_name: str, bar: float | None, note: str) -> Row:
    """A rate beside a peer's: the median of the pairs' ratios is at least the bar."""
    ratio = median(ours / peer for ours, peer in pairs)
    return _row(name, unit, pairs, peer_name, ratio, bar, bar is None or ratio >= bar, note)


def lower(name: str, unit: str, pairs: list[tuple[float, float]], peer_name: str, bar: float | None, note: str) -> Row:
    """A cost beside a peer's: the median of the pairs' ratios is at most the bar."""
    ratio = median(ours / peer for ours, peer in pairs)
    return _row(name, unit, pairs, peer_name, ratio, bar, bar is None or ratio <= bar, note)


def at_most(name: str, unit: str, ours: float, bar: float | None, note: str, peer: float | None, peer_name: str) -> Row:
    """A number of ours that stays under a bar of its own; a peer's is shown beside it."""
    ratio = ours / peer if peer else None
    return Row(name, unit, ours, peer, peer_name, ratio, bar, bar is None or ours <= bar, note)


def flat(name: str, small: list[float], big: list[float], bar: float, note: str) -> Row:
    """A cost that must not grow with the rows: medians over several units of 10× and of 1× rows."""
    ours, peer = median(big), median(small)
    return Row(name, "s", ours, peer, "ours at 1x rows", ours / peer, bar, ours / peer <= bar, note)


def _row(
    name: str,
    unit: str,
    pairs: list[tuple[float, float]],
    peer_name: str,
    ratio: float,
    bar: float | None,
    ok: bool,
    note: str,
) -> Row:
    ours, peer = median(p[0] for p in pairs), median(p[1] for p in pairs)
    return Row(name, unit, ours, peer, peer_name, ratio, bar, ok, note)
