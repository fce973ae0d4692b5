"""Decide what a request for a range brings back: which cold units get a read copy, which have one. Pure.

Does not: know stores; read a clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from tiering.errors import PermanentError
from tiering.model import Residence, Tier, Unit


class Verb(StrEnum):
    """What is to be done for one unit of the range."""

    COPY = "copy"
    EXTEND = "extend"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Wish:
    """One unit of the range: what is to be done for it, and why."""

    unit: Unit
    verb: Verb
    text: str


def plan_rehydration(
    residences: Sequence[Residence], copies: Mapping[datetime, int], begin: datetime, end: datetime
) -> tuple[Wish, ...]:
    """Choose what to do for every unit that `[begin, end)` touches: whole units are copied, never parts.

    Args:
        residences: of the dataset.
        copies: begin of a unit → generation of the read copy that it has.
        begin: of the range.
        end: of the range, not in it.

    Raises:
        PermanentError: the range is empty.
    """
    if begin >= end:
        raise PermanentError("rehydrate", f"{begin} … {end}", "an empty range", "The end has to come after the begin.")
    found = []
    for home in residences:
        unit = home.unit
        if unit.end <= begin or unit.begin >= end:
            continue
        if home.tier is not Tier.COLD:
            found.append(Wish(unit, Verb.NOTHING, f"is {home.tier}"))
        elif copies.get(unit.begin) == unit.generation:
            found.append(Wish(unit, Verb.EXTEND, "has a copy of this generation"))
        else:
            found.append(Wish(unit, Verb.COPY, "has an older copy" if unit.begin in copies else "is cold"))
    return tuple(found)
