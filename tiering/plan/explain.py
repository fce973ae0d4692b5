"""Explain a unit: every rule that applies to it, with the value it is judged on, the threshold, and the date.

Does not: decide anything: the plan does, and these are its own rules written out.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from tiering.model import Dataset, Form, Pin, Residence, Span, StorageClass, Tier, Transition
from tiering.plan.placement import SHIFTED, Pins, shifted
from tiering.plan.spans import due, subtract
from tiering.plan.storage import RANKS

_RANK = {Tier.HOT: 0, Tier.WARM: 1, Tier.COLD: 2, Tier.EXPIRED: 3}


@dataclass(frozen=True, slots=True)
class Rule:
    """One stage of the policy, judged on one unit.

    Attributes:
        transition: what the rule leads to.
        target: the storage class of an ARCHIVE, else empty.
        value: the unit's age now: from its end to the reference clock.
        threshold: the age in force, after pins.
        policy: the age as the policy file has it; differs from the threshold where a pin shifts it.
        due_at: when the threshold is reached.
        verdict: "done", "due", "waits", "held" or "later" (reached, but another step comes first).
    """

    transition: Transition
    target: str
    value: str
    threshold: str
    policy: str
    due_at: datetime
    verdict: str


def rules_of(
    dataset: Dataset, home: Residence, pins: Pins, reference: datetime | None, coming: Transition | None
) -> tuple[Rule, ...]:
    """Write out the rules of a unit, in the order of its life.

    Args:
        dataset: with the policy in force.
        home: where the unit is.
        pins: those in force.
        reference: the clock that ages are measured against; None when the dataset has no row.
        coming: the transition that the plan has for it, if any.
    """
    plain, policy = dataset.policy, shifted(dataset.policy, pins, home.unit)
    stages = [
        (Transition.HOT_TO_WARM, "", policy.hot_to_warm, plain.hot_to_warm),
        (Transition.COMPRESS, "", policy.compression, plain.compression),
        (Transition.WARM_TO_COLD, "", policy.warm_to_cold, plain.warm_to_cold),
        *((Transition.ARCHIVE, str(name), age, age) for name, age in dataset.storage),
        (Transition.EXPIRE, "", policy.retention, plain.retention),
    ]
    return tuple(
        Rule(
            transition=step,
            target=target,
            value=_age(home.unit.end, reference),
            threshold=str(age),
            policy=str(written),
            due_at=due(home.unit.end, age),
            verdict=_verdict(dataset, home, step, target, age, reference, coming),
        )
        for step, target, age, written in stages
        if age is not None
    )


def pins_on(home: Residence, pins: Pins) -> tuple[Pin, ...]:
    """List the pins that govern a unit, its own before the dataset's, with the terms that decided them."""
    found = (pins.find(home.unit, step) for step in SHIFTED)
    return tuple(pin for pin in found if pin)


def _age(end: datetime, reference: datetime | None) -> str:
    if reference is None:
        return "unknown: the dataset has no row"
    if reference < end:
        return "not over yet"
    hours = (reference - end) // timedelta(hours=1)
    days, hours = divmod(hours, 24)
    return f"{days}d{hours}h" if hours else f"{days}d"


def _verdict(
    dataset: Dataset,
    home: Residence,
    step: Transition,
    target: str,
    age: Span,
    reference: datetime | None,
    coming: Transition | None,
) -> str:
    if _is_done(dataset, home, step, target):
        return "done"
    if reference is None or home.unit.end > subtract(reference, age):
        return "waits"
    if step is Transition.EXPIRE and home.hold:
        return "held"
    return "due" if step is coming else "later"


def _is_done(dataset: Dataset, home: Residence, step: Transition, target: str) -> bool:
    if step is Transition.ARCHIVE:
        return home.tier is Tier.EXPIRED or RANKS[StorageClass(target)] <= RANKS[home.storage_class]
    if step is Transition.EXPIRE:
        return home.tier is Tier.EXPIRED
    if dataset.form is Form.FILES:
        return False
    rank = _RANK[home.tier]
    if step is Transition.COMPRESS:
        return rank > 1 or home.is_compressed
    return rank >= (1 if step is Transition.HOT_TO_WARM else 2)
