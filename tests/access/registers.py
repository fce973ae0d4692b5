"""Is a history of reads and writes of one register linearizable? Wing and Gong's search, with Lowe's memory.

A write whose outcome nobody knows (it timed out) may take effect at any time after it began, or never.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Operation:
    """One call: when it began and ended (inf: its outcome is not known), what it wrote or read."""

    began: float
    ended: float
    is_write: bool
    value: int | None


def explain(history: list[Operation], first: int | None = None) -> str:
    """Return why a history is not linearizable; empty when it is."""
    operations = sorted(history, key=lambda o: o.began)
    todo = [o for o in operations if o.is_write or o.ended < inf]
    seen: set[tuple[int, int | None]] = set()
    stack: list[tuple[int, int | None]] = [(0, first)]
    everything = sum(1 << i for i, o in enumerate(todo) if o.ended < inf)
    best = 0
    while stack:
        done, value = stack.pop()
        if done & everything == everything:
            return ""
        best = max(best, (done & everything).bit_count())
        # What may come next began before any that is left ended.
        limit = min((o.ended for i, o in enumerate(todo) if not done >> i & 1), default=inf)
        for i, operation in enumerate(todo):
            if done >> i & 1 or operation.began > limit:
                continue
            if not operation.is_write and operation.value != value:
                continue
            state = (done | 1 << i, operation.value if operation.is_write else value)
            if state not in seen:
                seen.add(state)
                stack.append(state)
    lines = [f"{o.began:.4f}..{o.ended:.4f} {'write' if o.is_write else 'read'} {o.value}" for o in todo]
    return f"no order of these fits; {best} of {everything.bit_count()} do:\n" + "\n".join(lines)
