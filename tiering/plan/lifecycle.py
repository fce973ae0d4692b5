"""Decide what moves, and say of everything else why it stays.

Age is measured against the reference clock, min(now, newest row): a stalled feed or a wrong clock must not age
everything out. It is judged on a unit's true end: a unit moves when even its youngest possible row is old enough.
Does not: read a clock, or know how a move is done.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from tiering.errors import VerificationError
from tiering.model import Dataset, Move, Plan, Reason, Residence, Span, State, Stay, Tier, Transition
from tiering.plan.spans import due, in_utc, subtract

OPEN = (State.PLANNED, State.SEALED, State.COPIED, State.VERIFIED)
"""A move in one of these is carried on; a COMMITTED one only waits for the sweep and stands in nobody's way."""


@dataclass(frozen=True, slots=True)
class _Clock:
    """The two clocks of a plan. Without any row there is no reference, and nothing has an age."""

    now: datetime
    reference: datetime | None

    def is_past(self, end: datetime, span: Span | None) -> bool:
        return span is not None and self.reference is not None and end <= subtract(self.reference, span)


def plan_moves(
    dataset: Dataset,
    residences: Sequence[Residence],
    newest_row_at: datetime | None,
    now: datetime,
    transitions: Collection[Transition] = tuple(Transition),
) -> Plan:
    """Plan at most one move per unit, oldest first; every other unit stays with its reasons.

    Args:
        dataset: with the policy in force.
        residences: where each unit is now, in any order.
        newest_row_at: time of the dataset's newest row in any tier; None when it has no row.
        now: the run's instant.
        transitions: plan only these; a unit due for another stays with the reason `other_transition`.

    Raises:
        ValueError: an instant without time zone, or a residence of another dataset.
        VerificationError: the plan breaks one of its own promises (`check_plan`): a bug, nothing may move.
    """
    now = in_utc(now)
    reference = None if newest_row_at is None else min(now, in_utc(newest_row_at))
    clock = _Clock(now, reference)
    moves: list[Move] = []
    stays: list[Stay] = []
    for residence in sorted(residences, key=lambda item: item.unit):
        if residence.unit.dataset != dataset.name:
            raise ValueError(f"{residence.unit} is no unit of {dataset.name}")
        verdict = _judge(dataset, residence, clock, transitions)
        if isinstance(verdict, Move):
            moves.append(verdict)
        else:
            stays.append(Stay(residence.unit, residence.tier, verdict))
    plan = Plan(dataset.name, now, reference, tuple(moves), tuple(stays))
    check_plan(plan, dataset, residences)
    return plan


def _judge(dataset: Dataset, home: Residence, clock: _Clock, only: Collection[Transition]) -> Move | tuple[Reason, ...]:
    if dataset.state != "moves":
        return (Reason("not_in_policy", f"{dataset.name} is {dataset.state} in the policy file: nothing moves it"),)
    if home.move_state is State.QUARANTINED or home.quarantine:
        hint = "release it once that is settled: tiering release"
        return (Reason("quarantined", f"{home.quarantine or 'a checkpoint failed'}; {hint} {home.unit.name}"),)
    if home.move_state in OPEN and home.move_transition is not None:
        return _carry_on(dataset, home, home.move_transition, clock, only)
    step = _next_transition(dataset, home, clock)
    if step is None:
        return _reasons(dataset, home, clock)
    if step not in only:
        return (Reason("other_transition", f"{step} comes first; this plan is for {', '.join(only)}", clock.now),)
    return _move(dataset, home, step)


def _carry_on(
    dataset: Dataset, home: Residence, step: Transition, clock: _Clock, only: Collection[Transition]
) -> Move | tuple[Reason, ...]:
    if step is Transition.EXPIRE and home.hold:
        return (_held(home), Reason("moving", f"{step} stopped at {home.move_state} by the hold"))
    if step is Transition.EXPIRE and not clock.is_past(home.unit.end, dataset.policy.retention):
        # Begun under another policy or a wrong date: an expiry is judged again before it is carried on.
        return (Reason("moving", f"{step} stands at {home.move_state}, but the policy in force does not allow it"),)
    if step not in only:
        return (
            Reason("moving", f"{step} is open at {home.move_state}; this plan is for {', '.join(only)}", clock.now),
        )
    return _move(dataset, home, step)


def _next_transition(dataset: Dataset, home: Residence, clock: _Clock) -> Transition | None:
    """Choose the one transition that is due, if any."""
    policy, end = dataset.policy, home.unit.end
    if home.tier is Tier.HOT:
        # Past retention too: only a sealed, counted copy may expire, so a hot unit goes warm first.
        return Transition.HOT_TO_WARM if clock.is_past(end, policy.hot_to_warm) else None
    if home.tier is Tier.EXPIRED:
        # Rows that came after the end of their unit's retention follow it.
        is_over = clock.is_past(end, policy.retention) and not home.hold
        return Transition.EXPIRE if home.late_count and is_over else None
    if home.late_count:
        # Before expiry as well: else the late rows of an expired unit would outlive it.
        return Transition.MERGE
    if clock.is_past(end, policy.retention) and not home.hold:
        return Transition.EXPIRE
    if home.tier is Tier.WARM and clock.is_past(end, policy.warm_to_cold):
        return Transition.WARM_TO_COLD
    if home.tier is Tier.WARM and not home.is_compressed and clock.is_past(end, policy.compression):
        return Transition.COMPRESS
    return None


def _move(dataset: Dataset, home: Residence, step: Transition) -> Move:
    span = _ages(dataset)[step]
    is_late = step is Transition.MERGE or home.tier is Tier.EXPIRED
    return Move(
        unit=replace(home.unit, generation=home.unit.generation + 1) if is_late else home.unit,
        transition=step,
        row_count=home.row_count + (home.late_count if is_late else 0),
        size_bytes=home.size_bytes,
        due_at=None if span is None else due(home.unit.end, span),
    )


def _ages(dataset: Dataset) -> dict[Transition, Span | None]:
    policy = dataset.policy
    return {
        Transition.HOT_TO_WARM: policy.hot_to_warm,
        Transition.MERGE: None,
        Transition.COMPRESS: policy.compression,
        Transition.WARM_TO_COLD: policy.warm_to_cold,
        Transition.EXPIRE: policy.retention,
    }


def _reasons(dataset: Dataset, home: Residence, clock: _Clock) -> tuple[Reason, ...]:
    """Say why nothing is due: the next step and its date, and a hold where there is one."""
    found = [_held(home)] if home.hold else []
    if home.tier is Tier.EXPIRED:
        late = f"; {home.late_count} late rows wait in the hot tier" if home.late_count else ""
        return (*found, Reason("expired", f"its retention is over{late}"))
    steps = [(due(home.unit.end, span), step) for step, span in _later_stages(dataset, home) if span is not None]
    steps = [(at, step) for at, step in steps if not (home.hold and step is Transition.EXPIRE)]
    if steps:
        return (*found, _waiting(*min(steps), home, clock))
    if found:
        return tuple(found)
    code = "not_in_policy" if home.tier is Tier.HOT else "no_later_stage"
    return (Reason(code, f"the policy of {dataset.policy.name} has no later stage for a {home.tier} unit"),)


def _later_stages(dataset: Dataset, home: Residence) -> Iterable[tuple[Transition, Span | None]]:
    ages = _ages(dataset)
    if home.tier is Tier.HOT:
        steps = [Transition.HOT_TO_WARM]
    elif home.tier is Tier.WARM and home.is_compressed:
        steps = [Transition.WARM_TO_COLD, Transition.EXPIRE]
    elif home.tier is Tier.WARM:
        steps = [Transition.COMPRESS, Transition.WARM_TO_COLD, Transition.EXPIRE]
    else:
        steps = [Transition.EXPIRE]
    return [(step, ages[step]) for step in steps]


def _waiting(at: datetime, step: Transition, home: Residence, clock: _Clock) -> Reason:
    if clock.reference is None:
        return Reason("no_rows", f"the dataset has no row to measure age against; {step} at {at:%Y-%m-%d %H:%M}Z", at)
    if home.unit.begin > clock.now:
        return Reason("future", f"its rows are dated after now and do not age; {step} at {at:%Y-%m-%d %H:%M}Z", at)
    if at <= clock.now:
        text = f"the newest row is of {clock.reference:%Y-%m-%d %H:%M}Z; {step} once a row of {at:%Y-%m-%d %H:%M}Z came"
        return Reason("newest", text, at)
    return Reason("young", f"{step} at {at:%Y-%m-%d %H:%M}Z", at)


def _held(home: Residence) -> Reason:
    return Reason("held", f"legal hold: {home.hold}; it does not expire until that is lifted")


def check_plan(plan: Plan, dataset: Dataset, residences: Sequence[Residence]) -> None:
    """Check a plan against what it promises, by other means than it was made.

    Raises:
        VerificationError: names the unit and the broken promise.
    """
    by_name = {residence.unit.name: residence for residence in residences}
    named = [move.unit.name for move in plan.moves] + [stay.unit.name for stay in plan.stays]
    if len(named) != len(residences) or set(named) != by_name.keys() or len(set(named)) != len(named):
        raise _broken(plan.dataset, "a unit is planned twice or not at all")
    for stay in plan.stays:
        if not stay.reasons:
            raise _broken(str(stay.unit), "it stays without a reason")
    ages = _ages(dataset)
    for move in plan.moves:
        home, span = by_name[move.unit.name], ages[move.transition]
        if move.transition is Transition.EXPIRE and (home.hold or home.tier is Tier.HOT):
            raise _broken(str(move.unit), "it would expire though it is held or hot")
        is_open = home.move_state in OPEN and move.transition is not Transition.EXPIRE
        if is_open or move.transition is Transition.MERGE:
            continue
        if span is None or plan.reference is None or subtract(plan.reference, span) < home.unit.end:
            raise _broken(str(move.unit), f"{move.transition} though it is too young")


def _broken(subject: str, cause: str) -> VerificationError:
    return VerificationError("check plan", subject, cause, "Report this as a bug; nothing was changed.")
