"""Decide which small lake files are joined. Pure: no I/O, clock, randomness or logging.

Does not: know which partitions a lake table has; the caller says how long a file may stretch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from tiering.model import Unit

TARGET_BYTES = 128 << 20
"""A joined file is about this large: between the 64 and 256 MiB at which readers of Parquet do best."""

SMALL_BYTES = 32 << 20
"""A file of this size or more is left alone: joining it would win little."""

INPUTS_MIN = 2


@dataclass(frozen=True, slots=True)
class Part:
    """One cold unit's object, as far as joining goes."""

    unit: Unit
    location: str
    size_bytes: int
    row_count: int


@dataclass(frozen=True, slots=True)
class Group:
    """Parts that become one file, oldest first."""

    parts: tuple[Part, ...]

    @property
    def begin(self) -> datetime:
        """Of the first part."""
        return self.parts[0].unit.begin

    @property
    def end(self) -> datetime:
        """Of the last part."""
        return self.parts[-1].unit.end

    @property
    def size_bytes(self) -> int:
        """Of all parts together; the joined file is somewhat smaller."""
        return sum(part.size_bytes for part in self.parts)

    def __str__(self) -> str:
        return f"{self.parts[0].unit.name} … {self.parts[-1].unit.slug} ({len(self.parts)} files)"


def plan_groups(
    parts: Sequence[Part],
    partition: str,
    joined: Sequence[Collection[str]],
    *,
    target_bytes: int = TARGET_BYTES,
    small_bytes: int = SMALL_BYTES,
) -> tuple[Group, ...]:
    """Group small neighbours within a partition of the lake table up to the target size.

    Args:
        parts: of a dataset's cold units that Iceberg readers see.
        partition: of the lake table: "day", "month", "year", or "" for none.
        joined: the locations that each joined file of now stands for. A group that is exactly one of them is done.
        target_bytes: a group grows no further.
        small_bytes: a file of this size or more joins none.
    """
    groups: list[list[Part]] = []
    open_group: list[Part] = []
    for part in sorted(parts, key=lambda p: p.unit.begin):
        if part.size_bytes >= small_bytes:
            continue
        size = sum(p.size_bytes for p in open_group)
        is_full = size + part.size_bytes > target_bytes
        if open_group and (is_full or _place(open_group[-1].unit, partition) != _place(part.unit, partition)):
            groups.append(open_group)
            open_group = []
        open_group.append(part)
    groups.append(open_group)
    done = {frozenset(locations) for locations in joined}
    chosen = [Group(tuple(g)) for g in groups if len(g) >= INPUTS_MIN]
    return tuple(g for g in chosen if frozenset(p.location for p in g.parts) not in done)


def _place(unit: Unit, partition: str) -> tuple[int, ...]:
    """Name the partition that a unit lies in; without partitions, files are kept within a year all the same."""
    begin = unit.begin
    parts = {"day": (begin.year, begin.month, begin.day), "month": (begin.year, begin.month)}
    return parts.get(partition, (begin.year,))


def joined_key(group: Group, sha256: str) -> str:
    """Return the object key of a joined file: `lake/posts/joined/20240105-20240131-<hash>.parquet`."""
    first, last = group.parts[0].unit, group.parts[-1].unit
    return f"lake/{first.dataset}/joined/{first.slug}-{last.slug}-{sha256[:16]}.parquet"
