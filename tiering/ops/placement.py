"""Place datasets: look where everything is and how hot, decide what is pinned, record it. Moves nothing itself.

A pin changes the date of a transition; the lifecycle's plan then finds the unit due later, or sooner. Without heat
(no Redis, or one that does not answer) nothing is changed, and pins in force lapse on their own date.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tiering import errors
from tiering.model import Dataset, Heat, Residence
from tiering.ops import lifecycle
from tiering.plan.placement import Decision, Outcome, describe, plan_placement
from tiering.stores import pins
from tiering.stores.heat import HeatCounters
from tiering.stores.ledger import audit
from tiering.stores.opening import Stores

log = logging.getLogger(__name__)

Surveyed = tuple[Sequence[Residence], datetime | None]
"""What `lifecycle.survey` returns: where each unit is, and the time of the newest row."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What a run of placement recorded.

    Attributes:
        outcome: every decision with its terms.
        written: of the decisions that change something, those that this run recorded.
        left: those that another run had changed meanwhile: that one's stand.
    """

    outcome: Outcome
    written: tuple[Decision, ...] = ()
    left: tuple[Decision, ...] = ()

    @property
    def shifts_changed(self) -> int:
        """How many transitions have another date now; renewals have not."""
        return sum(decision.verb != "renew" for decision in self.written)


def read_heat(heat: HeatCounters, dataset: str, now: datetime) -> Heat:
    """Read a dataset's heat; unknown where Redis is absent, down or refuses us: never an error."""
    try:
        return heat.read(dataset, now)
    except errors.TieringError as exc:
        # Without Redis by choice there is nothing to warn of.
        log.log(logging.WARNING if heat.url else logging.INFO, "placement of %s knows no heat: %s", dataset, exc)
        return Heat()


def place(
    stores: Stores, heat: HeatCounters, dataset: Dataset, now: datetime, surveyed: Surveyed | None = None
) -> Outcome:
    """Decide about a dataset, its units and symbols. Writes nothing.

    Args:
        stores: to survey, and to read the pins from.
        heat: the counters.
        dataset: what is placed.
        now: the run's instant.
        surveyed: where each unit is and when the newest row was, if that is known already.
    """
    residences, newest = surveyed or lifecycle.survey(stores, dataset)
    known = read_heat(heat, dataset.name, now)
    recorded = pins.list_pins(stores.warm, dataset.name)
    return plan_placement(dataset, stores.policies.placement, residences, newest, known, recorded, now)


def apply(stores: Stores, outcome: Outcome, actor: str) -> Applied:
    """Record what was decided, and every changed date in the audit trail, in one transaction.

    Applied twice, the second time changes nothing: a decision only replaces the one it was made upon.
    """
    if not outcome.changes:
        return Applied(outcome)
    written: list[Decision] = []
    left: list[Decision] = []
    with stores.warm.transaction("record pins of", outcome.dataset) as connection:
        for decision in outcome.changes:
            assert decision.pin is not None
            (written if pins.put_pin(connection, decision.pin, decision.last) else left).append(decision)
        # Last, because the audit trail has one end, and everybody else who writes to it waits until we commit.
        for decision in written:
            if decision.verb != "renew":
                audit(connection, actor, decision.verb, outcome.dataset, decision.score.begin, _details(decision))
    return Applied(outcome, tuple(written), tuple(left))


def _details(decision: Decision) -> dict[str, object]:
    pin = decision.pin
    assert pin is not None
    return {
        "transition": pin.transition,
        "shift": describe(pin.shift_seconds),
        "shift_seconds": pin.shift_seconds,
        "shift_seconds_before": decision.last.shift_seconds if decision.last else 0,
        "score": str(decision.score),
        "until": pin.until,
    }


def explain_terms(
    stores: Stores, heat: HeatCounters, dataset: Dataset, now: datetime, surveyed: Surveyed | None = None
) -> Mapping[datetime | None, tuple[str, ...]]:
    """Say in lines, for the dataset (None) and each unit (by begin), what placement sees in it and does about it."""
    return lines_of(place(stores, heat, dataset, now, surveyed))


def lines_of(outcome: Outcome) -> dict[datetime | None, tuple[str, ...]]:
    """Write an outcome's decisions as lines: each term, the total, and what follows."""
    found: dict[datetime | None, tuple[str, ...]] = {None: (f"heat: {outcome.heat}",)}
    for decision in outcome.decisions:
        score = decision.score
        judged = f"total {score.total:+d}: {score.tier or 'undecided, heat is unknown'}"
        lines = (*map(str, score.terms), judged, f"{decision.transition or 'no transition'}: {decision.text}")
        found[score.begin] = (*found.get(score.begin, ()), *lines)
    return found
