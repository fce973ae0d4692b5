"""Decide what moves, and say of everything else why it stays.

Age is measured against the reference clock, min(now, newest row): a stalled feed or a wrong clock must not age
everything out. It is judged on a unit's true end: a unit moves when even its youngest possible row is old enough.
Does not: read a clock, or know how a move is done.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from tiering.errors import VerificationError
from tiering.model import (
    Dataset,
    Form,
    Move,
    Pin,
    Plan,
    Policy,
    Reason,
    Residence,
    Span,
    State,
    Stay,
    StorageClass,
    Tier,
    Transition,
)
from tiering.model_backup import StoreName
from tiering.plan.placement import NO_PINS, SHIFTED, Pins, pin_reason, shifted
from tiering.plan.spans import due, in_utc, subtract
from tiering.plan.storage import next_class

OPEN = (State.PLANNED, State.SEALED, State.COPIED, State.VERIFIED)
"""A move in one of these is carried on; a COMMITTED one only waits for the sweep and stands in nobody's way."""

LEAVES = (Transition.HOT_TO_WARM, Transition.WARM_TO_COLD, Transition.EXPIRE)
"""After these the store that a unit was in has no copy of it any more."""


@dataclass(frozen=True, slots=True)
class _Clock:
    """The two clocks of a plan. Without any row there is no reference, and nothing has an age."""

    now: datetime
    reference: datetime | None
    cutoffs: dict[Span, datetime] = field(default_factory=dict)
    """Remembered, because ten thousand units ask for the same few."""

    def is_past(self, end: datetime, span: Span | None) -> bool:
        if span is None or self.reference is None:
            return False
        if span not in self.cutoffs:
            self.cutoffs[span] = subtract(self.reference, span)
        return end <= self.cutoffs[span]


@dataclass(frozen=True, slots=True)
class _Case:
    """One unit before the judge: where it is, the ages in force for it, and the clocks."""

    dataset: Dataset
    home: Residence
    policy: Policy
    pins: Pins
    clock: _Clock

    def is_due(self, span: Span | None) -> bool:
        return self.clock.is_past(self.home.unit.end, span)


def plan_moves(
    dataset: Dataset,
    residences: Sequence[Residence],
    newest_row_at: datetime | None,
    now: datetime,
    transitions: Collection[Transition] = tuple(Transition),
    pins: Pins = NO_PINS,
) -> Plan:
    """Plan at most one move per unit, oldest first; every other unit stays with its reasons.

    Args:
        dataset: with the policy in force.
        residences: where each unit is now, in any order.
        newest_row_at: time of the dataset's newest row in any tier; None when it has no row.
        now: the run's instant.
        transitions: plan only these; a unit due for another stays with the reason `other_transition`.
        pins: what placement decided, as `placement.collect` gathers it for `now`.

    Raises:
        ValueError: an instant without time zone, or a residence of another dataset.
        VerificationError: the plan breaks one of its own promises (`check_plan`): a bug, nothing may move.
    """
    now = in_utc(now)
    reference = None if newest_row_at is None else min(now, in_utc(newest_row_at))
    clock = _Clock(now, reference)
    moves: list[Move] = []
    stays: list[Stay] = []
    for home in sorted(residences, key=lambda item: (item.unit.begin, item.unit.end)):
        if home.unit.dataset != dataset.name:
            raise ValueError(f"{home.unit} is no unit of {dataset.name}")
        case = _Case(dataset, home, _policy(dataset, home, pins), pins, clock)
        verdict = _judge(case, transitions)
        if isinstance(verdict, Move):
            moves.append(verdict)
        else:
            stays.append(Stay(home.unit, home.tier, verdict))
    plan = Plan(dataset.name, now, reference, tuple(moves), tuple(stays))
    check_plan(plan, dataset, residences, pins)
    return plan


def _policy(dataset: Dataset, home: Residence, pins: Pins) -> Policy:
    """Return the ages in force for a unit. Pins shift nothing that is still before a cold one."""
    is_shifted = home.tier in (Tier.HOT, Tier.WARM) and dataset.form is not Form.FILES
    return shifted(dataset.policy, pins, home.unit) if is_shifted else dataset.policy


def _judge(case: _Case, only: Collection[Transition]) -> Move | tuple[Reason, ...]:
    dataset, home = case.dataset, case.home
    if dataset.state != "moves":
        return (resting_reason(dataset),)
    if home.lease_owner and home.move_transition is not None:
        text = f"{home.lease_owner} works on it now: {home.move_transition} at {home.move_state}"
        return (Reason("leased", f"{text}; should that run die, the next one carries it on"),)
    if home.move_state is State.QUARANTINED or home.quarantine:
        hint = "release it once that is settled: tiering release"
        return (Reason("quarantined", f"{home.quarantine or 'a checkpoint failed'}; {hint} {home.unit.name}"),)
    if home.move_state in OPEN and home.move_transition is not None:
        return _carry_on(case, home.move_transition, only)
    if home.overlaps:
        text = f"its rows lie in the late partition, and its range cuts into {home.overlaps}, which has another length"
        return (Reason("overlap", f"{text}; docs/runbooks/stuck-unit.md says how to make room for it"),)
    step = _next_transition(case)
    if step is None:
        return _reasons(case)
    if step in LEAVES and (reason := _unsaved(case, step)):
        return (reason,)
    if step not in only:
        return (Reason("other_transition", f"{step} comes first; this plan is for {_listed(only)}", case.clock.now),)
    return _move(case, step)


def _unsaved(case: _Case, step: Transition) -> Reason | None:
    """Say what a unit that is due waits for, where its dataset asks that a backup of its store holds it first."""
    home = case.home
    if not case.dataset.wait_for_backup or home.tier is Tier.EXPIRED:
        return None
    written = home.written_at or home.unit.end
    if home.backed_up_at and home.backed_up_at >= written:
        return None
    newest = f"the newest began {home.backed_up_at:%Y-%m-%d %H:%M}Z" if home.backed_up_at else "there is none"
    store = keeper(case.dataset, home.tier)
    text = f"{step} is due; it waits for a backup of {store} that began after {written:%Y-%m-%d %H:%M}Z, and {newest}"
    return Reason("waiting_for_backup", f"{text}: tiering backup {store}")


def keeper(dataset: Dataset, tier: Tier) -> StoreName:
    """Name what is backed up when a unit of this dataset and tier is to be in a backup; the lake's has files too."""
    is_object = tier is Tier.COLD or dataset.form is Form.FILES
    return StoreName.LAKE if is_object else StoreName(dataset.hot)


def resting_reason(dataset: Dataset) -> Reason:
    """Say why a dataset that does not move by age is left alone."""
    if dataset.state == "state":
        return Reason("state_table", f"{dataset.name} is a state table: it never moves by age; backups carry it")
    return Reason("not_in_policy", f"{dataset.name} is {dataset.state} in the policy file: nothing moves it")


def _listed(only: Collection[Transition]) -> str:
    return only if isinstance(only, str) else ", ".join(only)


def _carry_on(case: _Case, step: Transition, only: Collection[Transition]) -> Move | tuple[Reason, ...]:
    state = case.home.move_state
    if step is Transition.EXPIRE and case.home.hold:
        return (_held(case.home), Reason("moving", f"{step} stopped at {state} by the hold"))
    if step is Transition.EXPIRE and not case.is_due(case.policy.retention):
        # Begun under another policy or a wrong date: an expiry is judged again before it is carried on.
        return (Reason("moving", f"{step} stands at {state}, but the policy in force does not allow it"),)
    if step not in only:
        fence = "" if state is State.PLANNED else ", its copy fenced against writes"
        text = f"{step} is open at {state}{fence}; this plan is for {_listed(only)}"
        return (Reason("moving", text, case.clock.now),)
    return _move(case, step)


def _next_transition(case: _Case) -> Transition | None:
    """Choose the one transition that is due, if any."""
    home, policy = case.home, case.policy
    is_over = case.is_due(policy.retention) and not home.hold
    if case.dataset.form is Form.FILES:
        if home.tier is Tier.EXPIRED:
            return None
        return Transition.EXPIRE if is_over else Transition.ARCHIVE if case.is_due(_class_age(case)) else None
    if home.tier is Tier.HOT:
        # Past retention too: only a sealed, counted copy may expire, so a hot unit goes warm first.
        return Transition.HOT_TO_WARM if case.is_due(policy.hot_to_warm) else None
    if home.tier is Tier.EXPIRED:
        # Rows that came after the end of their unit's retention follow it.
        return Transition.EXPIRE if home.late_count and is_over else None
    if home.late_count and not _is_out_of_reach(home):
        # Before expiry as well: else the late rows of an expired unit would outlive it.
        return Transition.MERGE
    if is_over:
        return Transition.EXPIRE
    if home.tier is Tier.COLD:
        return Transition.ARCHIVE if case.is_due(_class_age(case)) else None
    if case.is_due(policy.warm_to_cold):
        return Transition.WARM_TO_COLD
    return Transition.COMPRESS if not home.is_compressed and case.is_due(policy.compression) else None


def _is_out_of_reach(home: Residence) -> bool:
    """Tell whether the unit's object must be restored before it can be read."""
    return home.storage_class is StorageClass.DEEP_ARCHIVE and home.tier is Tier.COLD and not home.rehydrated_until


def next_storage(dataset: Dataset, home: Residence, reference: datetime | None) -> tuple[StorageClass, Span] | None:
    """Return the storage class that a unit's objects go to next, and its age; None where there is none."""
    if not dataset.storage:
        return None
    found = next_class(dataset.storage, home.storage_class, home.unit.end, reference)
    return (found[0], dict(dataset.storage)[found[0]]) if found else None


def _class_age(case: _Case) -> Span | None:
    step = next_storage(case.dataset, case.home, case.clock.reference)
    return step[1] if step else None


def _move(case: _Case, step: Transition) -> Move:
    home, span = case.home, _ages(case)[step]
    is_late = step is Transition.MERGE or home.tier is Tier.EXPIRED
    return Move(
        unit=replace(home.unit, generation=home.unit.generation + 1) if is_late else home.unit,
        transition=step,
        row_count=home.row_count + (home.late_count if is_late else 0),
        size_bytes=home.size_bytes,
        due_at=None if span is None else due(home.unit.end, span),
    )


def _ages(case: _Case) -> dict[Transition, Span | None]:
    policy = case.policy
    return {
        Transition.HOT_TO_WARM: policy.hot_to_warm,
        Transition.MERGE: None,
        Transition.COMPRESS: policy.compression,
        Transition.WARM_TO_COLD: policy.warm_to_cold,
        Transition.ARCHIVE: _class_age(case),
        Transition.EXPIRE: policy.retention,
    }


def _reasons(case: _Case) -> tuple[Reason, ...]:
    """Say why nothing is due: the next step and its date, and all that stands in the way or shifts it."""
    home = case.home
    found = [_held(home)] if home.hold else []
    if home.tier is Tier.EXPIRED:
        late = f"; {home.late_count} late rows wait in the hot tier" if home.late_count else ""
        return (*found, Reason("expired", f"its retention is over{late}"))
    if home.late_count and _is_out_of_reach(home):
        text = f"{home.late_count} late rows wait: its object is in deep archive and must be restored to be merged"
        found.append(Reason("deep_archive", f"{text}: tiering rehydrate"))
    if coming := _next_step(case):
        found.append(_waiting(*coming, case))
    elif not found:
        code = "not_in_policy" if home.tier is Tier.HOT else "no_later_stage"
        text = f"the policy of {case.dataset.policy.name} has no later stage for a {home.tier} unit"
        found.append(Reason(code, text))
    return (*found, *_circumstances(case))


def _next_step(case: _Case) -> tuple[datetime, Transition] | None:
    """Find the next step and its date, reckoning with pins that lapse before it comes."""
    start: datetime | None = None
    while True:
        end, steps = case.home.unit.end, _later_stages(case)
        coming = min(((due(end, span), step) for step, span in steps), default=None)
        lapses = [pin.until for pin in _pins(case) if start is None or pin.until > start]
        if coming is None:
            return None
        at = coming[0] if start is None else max(coming[0], start)
        if not lapses or at < min(lapses):
            return at, coming[1]
        start = min(lapses)
        left = {begin: tuple(p for p in pins if p.until > start) for begin, pins in case.pins.by_begin.items()
                if begin in (None, case.home.unit.begin)}  # fmt: skip
        pins = replace(case.pins, by_begin=left)
        case = replace(case, pins=pins, policy=_policy(case.dataset, case.home, pins))


def _pins(case: _Case) -> list[Pin]:
    if not case.pins.by_begin:
        return []
    return [pin for begin in (None, case.home.unit.begin) for pin in case.pins.by_begin.get(begin, ())]


def _later_stages(case: _Case) -> list[tuple[Transition, Span]]:
    """List the steps that are still before a unit, with their ages; a held one does not expire."""
    ages, home = _ages(case), case.home
    if case.dataset.form is Form.FILES or home.tier is Tier.COLD:
        steps = [Transition.ARCHIVE, Transition.EXPIRE]
    elif home.tier is Tier.HOT:
        steps = [Transition.HOT_TO_WARM]
    elif home.is_compressed:
        steps = [Transition.WARM_TO_COLD, Transition.EXPIRE]
    else:
        steps = [Transition.COMPRESS, Transition.WARM_TO_COLD, Transition.EXPIRE]
    found = [(step, ages[step]) for step in steps if not (home.hold and step is Transition.EXPIRE)]
    return [(step, span) for step, span in found if span is not None]


def _waiting(at: datetime, step: Transition, case: _Case) -> Reason:
    clock = case.clock
    if clock.reference is None:
        return Reason("no_rows", f"the dataset has no row to measure age against; {step} at {at:%Y-%m-%d %H:%M}Z", at)
    if case.home.unit.begin > clock.now:
        return Reason("future", f"its rows are dated after now and do not age; {step} at {at:%Y-%m-%d %H:%M}Z", at)
    if at <= clock.now:
        text = f"the newest row is of {clock.reference:%Y-%m-%d %H:%M}Z; {step} once a row of {at:%Y-%m-%d %H:%M}Z came"
        return Reason("newest", text, at)
    return Reason("young", f"{step} at {at:%Y-%m-%d %H:%M}Z", at)


def _circumstances(case: _Case) -> list[Reason]:
    """Tell what else is true of a unit that waits: pins, a read copy, a storage class that is slow to read."""
    home, found = case.home, []
    for step, _ in _later_stages(case):
        pin = case.pins.find(home.unit, step) if step in SHIFTED else None
        reason = pin_reason(case.dataset.policy, case.pins, home.unit, step) if pin else None
        if pin and reason and reason.until:
            # The earlier of its two ends: the transition comes, or the pin lapses.
            found.append(replace(reason, until=min(reason.until, pin.until)))
    if home.rehydrated_until and home.rehydrated_until > case.clock.now:
        text = f"a read copy is in the warm tier until {home.rehydrated_until:%Y-%m-%d %H:%M}Z"
        found.append(Reason("rehydrated", text, home.rehydrated_until))
    if home.storage_class is StorageClass.DEEP_ARCHIVE and not home.late_count:
        found.append(Reason("deep_archive", "reading it takes a restore of hours: tiering rehydrate"))
    return found


def _held(home: Residence) -> Reason:
    return Reason("held", f"legal hold: {home.hold}; it does not expire until that is lifted")


def check_plan(plan: Plan, dataset: Dataset, residences: Sequence[Residence], pins: Pins = NO_PINS) -> None:
    """Check a plan against what it promises, by other means than it was made.

    Raises:
        VerificationError: names the unit and the broken promise.
    """
    by_begin = {residence.unit.begin: residence for residence in residences}
    named = [move.unit.begin for move in plan.moves] + [stay.unit.begin for stay in plan.stays]
    if len(named) != len(residences) or set(named) != by_begin.keys() or len(set(named)) != len(named):
        raise _broken(plan.dataset, "a unit is planned twice or not at all")
    for stay in plan.stays:
        if not stay.reasons:
            raise _broken(str(stay.unit), "it stays without a reason")
    clock = _Clock(plan.now, plan.reference)
    for move in plan.moves:
        home = by_begin[move.unit.begin]
        is_hot = home.tier is Tier.HOT and dataset.form is not Form.FILES
        if move.transition is Transition.EXPIRE and (home.hold or is_hot):
            raise _broken(str(move.unit), "it would expire though it is held or hot")
        is_saved = home.backed_up_at is not None and home.backed_up_at >= (home.written_at or home.unit.end)
        if dataset.wait_for_backup and not (is_saved or home.move_state in OPEN) and move.transition in LEAVES[1:]:
            raise _broken(str(move.unit), f"{move.transition} though no backup holds it")
        is_open = home.move_state in OPEN and move.transition is not Transition.EXPIRE
        if is_open or move.transition is Transition.MERGE:
            continue
        span = _ages(_Case(dataset, home, _policy(dataset, home, pins), pins, clock))[move.transition]
        if span is None or plan.reference is None or subtract(plan.reference, span) < home.unit.end:
            raise _broken(str(move.unit), f"{move.transition} though it is too young")


def _broken(subject: str, cause: str) -> VerificationError:
    return VerificationError("check plan", subject, cause, "Report this as a bug; nothing was changed.")
