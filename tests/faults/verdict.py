"""What an inspection found wrong."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Verdict:
    """What was found wrong, in words; the numbers are of rows."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.doubled or self.changed or self.broken)

    def __str__(self) -> str:
        named = (("lost", self.lost), ("doubled", self.doubled), ("changed", self.changed), ("broken", self.broken))
        return "; ".join(f"{name} {len(found)}: {', '.join(found[:4])}" for name, found in named if found) or "clean"
