"""What a request for a range does to every unit that it touches."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tiering.errors import PermanentError
from tiering.model import Residence, Tier, Unit
from tiering.plan.rehydrate import Verb, plan_rehydration

START = datetime(2024, 1, 1, tzinfo=UTC)


def at(day: float) -> datetime:
    return START + timedelta(days=day)


def home(day: int, tier: Tier, generation: int = 1) -> Residence:
    return Residence(Unit("bars", at(day), at(day + 1), generation), tier, "somewhere")


def test_every_unit_that_is_touched_is_decided() -> None:
    homes = [home(0, Tier.COLD), home(1, Tier.COLD, 2), home(2, Tier.COLD), home(3, Tier.WARM), home(4, Tier.COLD)]
    wishes = plan_rehydration(homes, {at(1): 1, at(2): 1}, at(0.5), at(4))
    assert [wish.verb for wish in wishes] == [Verb.COPY, Verb.COPY, Verb.EXTEND, Verb.NOTHING]
    assert [wish.text for wish in wishes[1:]] == ["has an older copy", "has a copy of this generation", "is warm"]


def test_the_end_is_not_in_the_range() -> None:
    assert [
        wish.unit.begin for wish in plan_rehydration([home(0, Tier.COLD), home(1, Tier.COLD)], {}, at(0), at(1))
    ] == [at(0)]


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(PermanentError, match="an empty range"):
        plan_rehydration([], {}, at(1), at(1))
