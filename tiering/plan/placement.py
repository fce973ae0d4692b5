"""Decide from heat, age and importance which transitions come earlier or later than the policy's date, and explain it.

Three terms, a hundred points in all, each +1, 0 or -1 times its weight (docs/placement.md). A total of `PROMOTE` or
more keeps a unit where it is for longer, of `DEMOTE` or less sends it on sooner: by `shift_max * total / 100` of the
transition's age. The policy stays the law: a shift never leaves [age * (1 - shift_max), age * (1 + shift_max)], never
touches retention, and never puts stages out of order; all three are judged on the unit's own dates.

Why nothing flaps: a heat band is entered at one threshold and left at another, a factor `HYSTERESIS` away; and a
decision stands for the policy's `residency`, whatever comes.
Does not: know where heat is counted (stores/heat.py) or pins are kept (stores/pins.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from math import ceil, floor

from tiering.model import (
    Dataset,
    Heat,
    Importance,
    Pin,
    Placement,
    Policy,
    Reason,
    Residence,
    Span,
    State,
    Term,
    Tier,
    Transition,
    Unit,
)
from tiering.plan.spans import add, due, subtract

HOT_ABOVE, COLD_BELOW = 100.0, 10.0
"""Accesses a day; exactly 100 and exactly 10 are warm."""

HYSTERESIS = 2.0
"""A heat band is left at its threshold divided (hot) or multiplied (cold) by this. Why so wide: read only in trading
hours, a steady dataset's decayed rate swings by a third in a day."""

YOUNG, OLD = Span(days=7), Span(months=24)
"""Ages below 7 days are hot, from 2 years on cold."""

WEIGHTS = {"heat": 60, "age": 20, "importance": 20}
PROMOTE, DEMOTE = 40, -40
OBSERVED_MIN = timedelta(days=7)
"""Nothing is called cold before it was watched for so long: counters that begin at zero look cold to everybody."""

MONTH_SECONDS = 2_629_746
"""A twelfth of the Gregorian mean year: only to express a share of an age that has months."""

STANDS = Span(days=1)
"""A pin lapses so long after its residency, unless a run of placement renews it: which it does after half of this."""

SYMBOLS_MAX = 1000
SHIFTED = (Transition.HOT_TO_WARM, Transition.WARM_TO_COLD)
_NEXT = {Tier.HOT: Transition.HOT_TO_WARM, Tier.WARM: Transition.WARM_TO_COLD}
_MOVING = (State.PLANNED, State.SEALED, State.COPIED, State.VERIFIED, State.QUARANTINED)


@dataclass(frozen=True, slots=True)
class Score:
    """Where a dataset (begin None), a unit or a symbol should be, with every term that says so."""

    dataset: str
    begin: datetime | None
    symbol: str
    terms: tuple[Term, ...]

    @property
    def is_known(self) -> bool:
        """Tell whether heat is known; without it nothing is decided."""
        return all(term.tier for term in self.terms)

    @property
    def total(self) -> int:
        """The sum of all contributions, between -100 and 100."""
        return sum(term.contribution for term in self.terms)

    @property
    def tier(self) -> Tier | None:
        """The tier it recommends; None while heat is unknown."""
        if not self.is_known:
            return None
        return Tier.HOT if self.total >= PROMOTE else Tier.COLD if self.total <= DEMOTE else Tier.WARM

    def __str__(self) -> str:
        return f"{'; '.join(map(str, self.terms))}; total {self.total:+d}: {self.tier or 'undecided'}"


@dataclass(frozen=True, slots=True)
class Decision:
    """What placement does about one transition of one subject.

    Attributes:
        score: why.
        transition: the one whose date is judged; None where none is left to judge.
        verb: "pin", "change", "lift", "renew"; "keep" (a pin stands), "wait" (residency), "none", "unknown".
        text: the same in words, with dates.
        pin: to be recorded; None when nothing is to be written.
        last: the recorded decision that it replaces.
    """

    score: Score
    transition: Transition | None
    verb: str
    text: str
    pin: Pin | None = None
    last: Pin | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A dataset's placement at one instant.

    Attributes:
        heat: what is known of it, in words.
        decisions: the dataset's, then its units', oldest first.
        hot_symbols: scores of the symbols that belong into the cache, hottest first.
    """

    dataset: str
    now: datetime
    heat: str
    decisions: tuple[Decision, ...]
    hot_symbols: tuple[Score, ...] = ()

    @property
    def changes(self) -> tuple[Decision, ...]:
        """The decisions that write something."""
        return tuple(decision for decision in self.decisions if decision.pin)


@dataclass(frozen=True, slots=True)
class Pins:
    """The pins of one dataset that are in force at one instant, found by unit; made by `collect`."""

    shift_max: float = 0.0
    by_begin: Mapping[datetime | None, tuple[Pin, ...]] = field(default_factory=dict)

    def find(self, unit: Unit, transition: Transition) -> Pin | None:
        """Find the pin that governs a unit's transition: its own, else the dataset's."""
        for begin in (unit.begin, None):
            for pin in self.by_begin.get(begin, ()):
                if pin.transition is transition:
                    return pin
        return None


NO_PINS = Pins()


def collect(pins: Iterable[Pin], placement: Placement, now: datetime) -> Pins:
    """Gather the pins in force at `now`; the others have lapsed. Symbols' pins concern no unit."""
    found: dict[datetime | None, tuple[Pin, ...]] = {}
    for pin in pins:
        if now < pin.until and not pin.symbol:
            found[pin.begin] = (*found.get(pin.begin, ()), pin)
    return Pins(placement.shift_max, found)


def shifted(policy: Policy, pins: Pins, unit: Unit) -> Policy:
    """Return the ages in force for one unit: the policy's, moved by its pins inside their bounds.

    Retention stays. Compression is not shifted itself and follows, so that the order of stages holds. Where the
    calendar leaves no room for both order and bounds, the policy holds as it is written.
    """
    moved = {step: pins.find(unit, step) for step in SHIFTED} if pins.by_begin else {}
    if not any(pin and pin.shift_seconds for pin in moved.values()):
        return policy
    end, limit = unit.end, pins.shift_max
    hot = _within(policy.hot_to_warm, moved[Transition.HOT_TO_WARM], limit, end)
    cold = _within(policy.warm_to_cold, moved[Transition.WARM_TO_COLD], limit, end)
    cold = _sooner(cold, policy.retention, end)
    hot = _sooner(hot, policy.retention, end)
    if hot and cold and due(end, hot) > due(end, cold):
        cold = hot
        if due(end, cold) > due(end, scaled(policy.warm_to_cold or cold, limit)):
            return policy
    packed = policy.compression
    if packed and hot and due(end, packed) < due(end, hot):
        packed = hot
    return replace(policy, hot_to_warm=hot, warm_to_cold=cold, compression=packed and _sooner(packed, cold, end))


@lru_cache(maxsize=4096)
def scaled(age: Span, share: float | Fraction) -> Span:
    """Lengthen (or, negative, shorten) an age by a share of it, to whole hours, rounded towards the age itself.

    Whole months stay calendar months: half of 2y is 1y. A part of a month counts by the mean year.
    """
    if not share:
        return age
    factor = 1 + Fraction(share)
    months = age.months * factor
    rest = (months - floor(months)) * MONTH_SECONDS + (age.days * 86400 + age.hours * 3600) * factor
    hours = (ceil if share < 0 else floor)(rest / 3600)
    return Span(floor(months), *divmod(hours, 24))


def bounds(age: Span, placement: Placement) -> tuple[Span, Span]:
    """Return the earliest and the latest age that placement may give a transition."""
    return scaled(age, -placement.shift_max), scaled(age, placement.shift_max)


def _within(age: Span | None, pin: Pin | None, shift_max: float, end: datetime) -> Span | None:
    """Shift an age by a pin; what would leave the bounds on this unit's dates stops at them.

    Why also at the age itself: 0.94 of a month, counted by the mean year, is longer than a February.
    """
    if age is None or pin is None or not pin.shift_seconds:
        return age
    limit = Fraction(shift_max)
    share = min(max(Fraction(pin.shift_seconds, nominal_seconds(age) or 1), -limit), limit)
    bound, found = scaled(age, limit if share > 0 else -limit), scaled(age, share)
    sooner, later = (age, bound) if share > 0 else (bound, age)
    if due(end, sooner) >= due(end, later):
        return age
    if due(end, found) > due(end, later):
        return later
    return sooner if due(end, found) < due(end, sooner) else found


def _sooner(one: Span | None, other: Span | None, end: datetime) -> Span | None:
    return one if one is None or other is None or due(end, one) <= due(end, other) else other


def nominal_seconds(age: Span) -> int:
    """Measure an age by the mean year: only for shares of it, never for dates."""
    return age.months * MONTH_SECONDS + age.days * 86400 + age.hours * 3600


def pin_reason(policy: Policy, pins: Pins, unit: Unit, transition: Transition) -> Reason | None:
    """Say why a unit's transition has another date than the policy's; None when it has not."""
    pin = pins.find(unit, transition)
    plain, moved = age_of(policy, transition), age_of(shifted(policy, pins, unit), transition)
    if pin is None or plain is None or moved is None or plain == moved:
        return None
    was, comes = due(unit.end, plain), due(unit.end, moved)
    way = "later" if comes > was else "earlier"
    text = (
        f"{transition} at {comes:%Y-%m-%d %H:%M}Z, {way} than the policy's {was:%Y-%m-%d %H:%M}Z: "
        f"{'; '.join(map(str, pin.terms))}; decided {pin.decided_at:%Y-%m-%d %H:%M}Z, "
        f"lapses {pin.until:%Y-%m-%d %H:%M}Z unless renewed"
    )
    return Reason("pinned", text, comes)


def age_of(policy: Policy, transition: Transition) -> Span | None:
    """Return the age of a transition that placement may shift."""
    return policy.hot_to_warm if transition is Transition.HOT_TO_WARM else policy.warm_to_cold


def heat_term(per_day: float, since: datetime | None, now: datetime, held: str = "") -> Term:
    """Judge accesses per day. `held` is the band of the decision that stands: it is left later than it is entered."""
    weight, value = WEIGHTS["heat"], f"{per_day:.1f}/day"
    if since is None:
        return Term("heat", "unknown", "no counters", "", weight, 0)
    hot_above = HOT_ABOVE / HYSTERESIS if held == Tier.HOT else HOT_ABOVE
    cold_below = COLD_BELOW * HYSTERESIS if held == Tier.COLD else COLD_BELOW
    if per_day > hot_above:
        return Term("heat", value, f"> {hot_above:g}/day", Tier.HOT, weight, 1)
    if per_day >= cold_below:
        return Term("heat", value, f"{cold_below:g} to {hot_above:g}/day", Tier.WARM, weight, 0)
    if now - since < OBSERVED_MIN:
        watched = f"watched since {since:%Y-%m-%d %H:%M}Z, shorter than {OBSERVED_MIN.days} d"
        return Term("heat", f"unknown ({value} so far)", watched, "", weight, 0)
    return Term("heat", value, f"< {cold_below:g}/day", Tier.COLD, weight, -1)


def age_term(end: datetime, reference: datetime) -> Term:
    """Judge the age of what ended at `end`; exactly 7 d is warm, exactly 2 y is cold."""
    weight, days = WEIGHTS["age"], (reference - end) / timedelta(days=1)
    value = f"{days:.1f} d"
    if end > subtract(reference, YOUNG):
        return Term("age", value, f"< {YOUNG}", Tier.HOT, weight, 1)
    if end > subtract(reference, OLD):
        return Term("age", value, f"{YOUNG} to {OLD}", Tier.WARM, weight, 0)
    return Term("age", value, f">= {OLD}", Tier.COLD, weight, -1)


def importance_term(importance: Importance) -> Term:
    """Judge what the policy file says about the dataset."""
    tier, points = {
        Importance.CRITICAL: (Tier.HOT, 1),
        Importance.IMPORTANT: (Tier.WARM, 0),
        Importance.ARCHIVE: (Tier.COLD, -1),
    }[importance]
    return Term("importance", importance, "as declared", tier, WEIGHTS["importance"], points)


def plan_placement(
    dataset: Dataset,
    placement: Placement,
    residences: Sequence[Residence],
    newest_row_at: datetime | None,
    heat: Heat,
    pins: Iterable[Pin],
    now: datetime,
) -> Outcome:
    """Judge a dataset, its units and its symbols.

    Counters that tell units decide unit by unit; where only the dataset is counted, one decision holds for all.

    Args:
        dataset: with the policy in force.
        placement: bounds and residency.
        residences: where each unit is.
        newest_row_at: None when the dataset has no row: nothing is decided then.
        heat: as counted at `now`.
        pins: every recorded decision about the dataset, lapsed ones too: residency counts from them.
        now: the run's instant.
    """
    if newest_row_at is None:
        return Outcome(dataset.name, now, "no rows: nothing to place", ())
    desk = _Desk(dataset, placement, heat, min(now, newest_row_at), now, {(p.begin, p.transition): p for p in pins})
    decisions = [desk.judge_dataset(step, newest_row_at) for step in SHIFTED if age_of(dataset.policy, step)]
    decisions += [desk.judge_unit(home) for home in sorted(residences, key=lambda r: r.unit) if home.tier in _NEXT]
    return Outcome(dataset.name, now, _known(heat), tuple(decisions), desk.hot_symbols(newest_row_at))


def _known(heat: Heat) -> str:
    if heat.since is None:
        return "no heat known: nothing is changed"
    told = f"{heat.dataset:.1f} accesses a day, counted since {heat.since:%Y-%m-%d %H:%M}Z"
    return f"{told}, {len(heat.units)} units and {len(heat.symbols)} symbols told apart"


@dataclass(frozen=True, slots=True)
class _Desk:
    """One dataset's judging: what all of its decisions share."""

    dataset: Dataset
    placement: Placement
    heat: Heat
    reference: datetime
    now: datetime
    last: Mapping[tuple[datetime | None, Transition], Pin]

    def score(self, per_day: float, end: datetime, held: Pin | None, begin: datetime | None, symbol: str = "") -> Score:
        stands = held.terms if held and self.now < held.until else ()
        band = next((term.tier for term in stands if term.name == "heat"), "")
        terms = (
            heat_term(per_day, self.heat.since, self.now, band),
            age_term(end, self.reference),
            importance_term(self.dataset.importance),
        )
        return Score(self.dataset.name, begin, symbol, terms)

    def judge_dataset(self, step: Transition, newest: datetime) -> Decision:
        last = self.last.get((None, step))
        score = self.score(self.heat.dataset, min(newest, self.now), last, None)
        if self.heat.units:
            return self._decide(score, step, last, 0, "its units are judged one by one")
        return self._decide(score, step, last, self._wanted(score, step))

    def judge_unit(self, home: Residence) -> Decision:
        step, begin = _NEXT[home.tier], home.unit.begin
        last, age = self.last.get((begin, step)), age_of(self.dataset.policy, step)
        # Where only the dataset is counted, that is what is known of each unit.
        per_day = self.heat.units.get(begin, 0.0) if self.heat.units else self.heat.dataset
        score = self.score(per_day, home.unit.end, last, begin)
        if age is None:
            return Decision(score, None, "none", f"the policy has no {step}")
        if home.move_state in _MOVING:
            return Decision(score, step, "none", f"its move is {home.move_state}")
        earliest, latest = bounds(age, self.placement)
        if subtract(self.reference, earliest) < home.unit.end:
            return Decision(score, step, "none", f"nothing to decide before {due(home.unit.end, earliest):%Y-%m-%d}")
        if subtract(self.reference, latest) >= home.unit.end:
            return Decision(
                score, step, "none", f"{step} was due by {due(home.unit.end, latest):%Y-%m-%d} at the latest"
            )
        if not self.heat.units:
            return self._decide(score, step, last, 0, "the dataset is judged as a whole")
        return self._decide(score, step, last, self._wanted(score, step))

    def hot_symbols(self, newest: datetime) -> tuple[Score, ...]:
        if "symbol" not in self.dataset.key:
            return ()
        hottest = sorted(self.heat.symbols.items(), key=lambda item: (-item[1], item[0]))[:SYMBOLS_MAX]
        scores = [self.score(per_day, min(newest, self.now), None, None, symbol) for symbol, per_day in hottest]
        return tuple(score for score in scores if score.tier is Tier.HOT)

    def _wanted(self, score: Score, step: Transition) -> int:
        age = age_of(self.dataset.policy, step)
        if age is None or score.tier in (None, Tier.WARM):
            return 0
        return int(Fraction(self.placement.shift_max) * score.total * nominal_seconds(age) / 100)

    def _decide(self, score: Score, step: Transition, last: Pin | None, wanted: int, why: str = "") -> Decision:
        if not score.is_known:
            return Decision(score, step, "unknown", "heat is unknown: nothing is changed")
        current = last.shift_seconds if last and self.now < last.until else 0
        until = add(add(self.now, self.placement.residency), STANDS)
        if wanted == current:
            if not (last and wanted):
                return Decision(score, step, "none", why or "as the policy says")
            if until - last.until < timedelta(hours=12):
                return Decision(score, step, "keep", f"{describe(wanted)}, pinned until {_date(last.until)}")
            renewed = replace(last, until=until, terms=score.terms)
            return Decision(score, step, "renew", f"{describe(wanted)}, pinned until {_date(until)}", renewed, last)
        free_at = add(_changed_at(last, self.now), self.placement.residency) if last else self.now
        if self.now < free_at:
            return Decision(
                score, step, "wait", f"{describe(wanted)} from {_date(free_at)} on; {describe(current)} now"
            )
        pin = Pin(self.dataset.name, score.begin, step, wanted, score.terms, self.now, until)
        verb = "pin" if not current else "change" if wanted else "lift"
        return Decision(score, step, verb, why or f"{describe(wanted)}, until {_date(until)} unless renewed", pin, last)


def _changed_at(last: Pin, now: datetime) -> datetime:
    """Find when the shift in force last changed: when it was decided, or when it lapsed."""
    return last.until if last.shift_seconds and last.until <= now else last.decided_at


def describe(shift_seconds: int) -> str:
    """Write a shift for people: `2d 19h later`."""
    if not shift_seconds:
        return "as the policy says"
    days, hours = divmod(abs(shift_seconds) // 3600, 24)
    length = " ".join(f"{count}{letter}" for count, letter in ((days, "d"), (hours, "h")) if count) or "under 1h"
    return f"{length} {'later' if shift_seconds > 0 else 'earlier'}"


def _date(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}Z"
