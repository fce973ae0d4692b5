"""Recover for real: bring stores back into the places where the platform will use them, all to one common moment.

What lives in a place is overwritten only when a person approved, in words that name the moment and the places. What was
brought back is verified as in a drill before it is said to be good.
Does not: start the platform; that is a person's decision, by docs/runbooks/restore.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tiering import errors
from tiering.model_backup import StoreName
from tiering.ops.recoverers import Recoverer
from tiering.plan.drills import choose_points

log = logging.getLogger(__name__)

LATEST = "latest"


@dataclass(frozen=True, slots=True)
class Step:
    """One store's part: where it goes, what is there now (empty: nothing), what it rests on."""

    store: StoreName
    source: str
    place: str
    occupant: str
    backup_id: str


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """What a recovery will do, for a person to decide on. Holds no secret: places are shown without passwords.

    Attributes:
        at: the common moment.
        steps: one for each store.
    """

    at: datetime
    steps: tuple[Step, ...]

    @property
    def moment(self) -> str:
        """The moment in words."""
        return f"{self.at:%Y-%m-%d %H:%M:%S}Z"

    @property
    def needs_approval(self) -> bool:
        """Tell whether anything lives in a place."""
        return any(step.occupant for step in self.steps)

    @property
    def phrase(self) -> str:
        """The words with which a person approves."""
        stores = " ".join(step.store for step in self.steps if step.occupant) or "nothing"
        return f"overwrite {stores} with {self.moment}"

    @property
    def markdown(self) -> str:
        """The plan as a page."""
        lines = [
            f"# Recovery to {self.moment}",
            "",
            "| store | rests on | goes to | what lives there |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {step.store}/{step.source} | {step.backup_id} | `{step.place}` | {step.occupant or 'nothing'} |"
            for step in self.steps
        ]
        if self.needs_approval:
            lines += ["", f"**Something lives there and will be overwritten.** To approve, write: `{self.phrase}`"]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What became of one store."""

    store: StoreName
    place: str
    is_good: bool
    text: str


def plan_recovery(recoverers: Sequence[Recoverer], to: str, into: Mapping[str, str]) -> RecoveryPlan:
    """Choose the common moment and look into the places. Changes nothing.

    Args:
        recoverers: of every store.
        to: an instant with time zone, or `latest`.
        into: place by `store` or `store/source`.

    Raises:
        NotFound: (a bad argument) no such store, or the moment is in reach of none; the message says what is.
    """
    chosen = _chosen(recoverers, into)
    windows = [recoverer.window() for recoverer, _ in chosen]
    points = choose_points(windows, 0)
    if not points:
        raise errors.NotFound("read unit name", to, "there is no moment that all these stores can be brought back to")
    newest, oldest = points[0].at, points[-1].at
    at = newest if to == LATEST else _instant(to)
    if not oldest <= at <= newest:
        cause = f"all these stores reach from {oldest.isoformat()} to {newest.isoformat()}"
        raise errors.NotFound("read unit name", to, cause, "Choose a moment between; or fewer stores.")
    steps = tuple(
        Step(one.store, one.source, one.shown(place), one.occupant(place), one.newest().backup.backup_id)
        for one, place in chosen
    )
    return RecoveryPlan(at, steps)


def recover(
    recoverers: Sequence[Recoverer], into: Mapping[str, str], plan: RecoveryPlan, approved_by: str
) -> list[Recovered]:
    """Carry a plan out.

    Args:
        recoverers: of every store.
        into: as for the plan.
        plan: that a person saw.
        approved_by: who approved; empty: nobody, and then nothing that lives is touched.

    Raises:
        HeldError: a place lives and nobody approved, or it did not live when the plan was made. Nothing was written.
    """
    chosen = _chosen(recoverers, into)
    planned = {(step.store, step.source): step for step in plan.steps}
    for one, place in chosen:
        step = planned[one.store, one.source]
        occupant = one.occupant(place)
        if occupant and (not approved_by or not step.occupant):
            cause = f"{step.place} lives: {occupant}"
            raise errors.HeldError("recover", one.store, cause, f"A person has to approve: {plan.phrase!r}.")
    log.warning("recovery to %s approved by %s", plan.moment, approved_by or "nobody: all places are empty")
    found = []
    for one, place in chosen:
        step = planned[one.store, one.source]
        try:
            text = one.recover(plan.at, place, is_approved=bool(approved_by))
            found.append(Recovered(one.store, step.place, True, f"{one.store}: {text}"))
        except errors.TieringError as exc:
            found.append(Recovered(one.store, step.place, False, f"{one.store}: FAILED: {exc}"))
    return found


def _chosen(recoverers: Sequence[Recoverer], into: Mapping[str, str]) -> list[tuple[Recoverer, str]]:
    known = {name: one for one in recoverers for name in (str(one.store), f"{one.store}/{one.source}")}
    for name, place in into.items():
        if name not in known or not place:
            hint = f"There are backups of {', '.join(sorted({f'{o.store}/{o.source}' for o in recoverers}))}."
            raise errors.NotFound("read unit name", name, "no backup of such a store, or no place for it", hint)
    return [(known[name], place) for name, place in into.items()]


def _instant(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.utcoffset() is None:
        hint = "Write it with its time zone: 2026-11-23T08:00:00Z, or latest."
        raise errors.NotFound("read unit name", text, "no instant with a time zone", hint)
    return found
