"""Plans as documents: make one with its estimates, seal it, read it back, and carry out exactly its moves.

Making a plan writes nothing. Applying one is refused when it was altered, is too old, was made under another policy,
or when any of its units is no longer where the plan saw it; applied again, it finds its moves done and writes nothing.
Why a seal without a key: it finds an edit or a damaged file, and keeps no enemy out: who may apply plans may run moves.
Does not: decide (plan/lifecycle.py), or move anything itself (ops/lifecycle.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tiering import errors
from tiering.model import Dataset, Form, Move, Plan, Reason, Receipt, Residence, State, Stay, Transition, Unit
from tiering.ops import documents, lifecycle
from tiering.plan.estimates import Estimate, Estimator, Sample, Totals, learn
from tiering.plan.lifecycle import plan_moves
from tiering.plan.placement import Pins
from tiering.stores import survey, tables
from tiering.stores.opening import Stores

FORMAT = 1
VALID_FOR = timedelta(hours=24)
LEARN_FROM = 2000
"""Finished moves that estimates rest on: the last ones."""

FINISHED = (State.COMMITTED, State.RECLAIMED)
AGAIN = "Make a new plan: `tiering plan --out FILE`."

Progress = Callable[[str, int, int], None]
"""Called with (unit, done, of how many)."""


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A dataset as the plan saw it."""

    dataset: Dataset
    residences: tuple[Residence, ...]
    newest: datetime | None
    pins: Pins
    plan: Plan

    @property
    def moves(self) -> dict[datetime, Move]:
        """The plan's moves by the unit's begin."""
        return {move.unit.begin: move for move in self.plan.moves}

    @property
    def stays(self) -> dict[datetime, Stay]:
        """The units that stay, by their begin."""
        return {stay.unit.begin: stay for stay in self.plan.stays}


@dataclass(frozen=True, slots=True)
class Made:
    """Plans of one instant with what they cost.

    Attributes:
        surveyed: one for each dataset.
        estimates: of every move, in plan order.
        position: the ledger's last move when the plan was made.
        survey_seconds: how long reading took, for reports.
    """

    now: datetime
    surveyed: tuple[Surveyed, ...]
    estimates: tuple[Estimate, ...]
    totals: Totals
    position: int
    survey_seconds: float

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The datasets' plans."""
        return tuple(one.plan for one in self.surveyed)


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying a plan did.

    Attributes:
        done_before: moves that were finished already, by an earlier apply or another run.
        receipts: of the moves carried out now.
        problems: unit → what went wrong; the others were carried on.
    """

    done_before: int
    receipts: tuple[Receipt, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)


def make(
    stores: Stores, datasets: Iterable[Dataset], now: datetime, transitions: Collection[Transition] | None = None
) -> Made:
    """Plan datasets at `now` and estimate every move. Writes nothing."""
    began = time.perf_counter()
    with stores.warm.transaction("read", "ledger position", read_only=True) as connection:
        # Before the survey: a move that is recorded meanwhile is then newer than the plan.
        position = survey.position(connection)
        past = survey.past_moves(connection, LEARN_FROM)
    seen = [(dataset, *lifecycle.survey(stores, dataset)) for dataset in datasets]
    pins = [lifecycle.pins_of(stores, dataset, now) for dataset, _, _ in seen]
    took = time.perf_counter() - began
    surveyed = tuple(
        Surveyed(
            dataset,
            tuple(residences),
            newest,
            pinned,
            plan_moves(dataset, residences, newest, now, transitions or tuple(Transition), pinned),
        )
        for (dataset, residences, newest), pinned in zip(seen, pins, strict=True)
    )
    samples = (
        Sample(p.dataset, Transition(p.transition), p.bytes_before, p.bytes_after, p.stage_seconds) for p in past
    )
    estimator = Estimator(stores.policies.prices, learn(samples), stores.is_one_database)
    estimates = tuple(estimate for one in surveyed for estimate in _estimates(estimator, one))
    units = ((one.dataset, home) for one in surveyed for home in one.residences)
    return Made(now, surveyed, estimates, estimator.total(units, estimates), position, took)


def _estimates(estimator: Estimator, one: Surveyed) -> list[Estimate]:
    homes = {home.unit.begin: home for home in one.residences}
    reference = one.plan.reference
    return [estimator.estimate(one.dataset, homes[m.unit.begin], m, reference) for m in one.plan.moves]


def notes_of(stores: Stores, dataset: Dataset) -> tuple[Reason, ...]:
    """Tell what is true of a dataset's rows that belong to no unit. Writes nothing."""
    if dataset.form is Form.DOCUMENTS:
        place = documents.hot(stores, dataset)
        count = place.documents.undated(place.collection, place.time_field)
        text = f"{count} documents have no date in {place.time_field}, or none of years 1 to 9999"
        return (Reason("undated", f"{text}; they never age and stay hot"),) if count else ()
    if dataset.form is not Form.TABLE:
        return ()
    with stores.hot.transaction("count", dataset.name, read_only=True) as connection:
        count = survey.undated_rows(connection, tables.late_partition(dataset.name), dataset.time_column)
    if not count:
        return ()
    text = f"{count} rows have a time outside the calendar (infinity, BC, year 9999 on); they never age and stay hot"
    return (Reason("undated", text),)


# --- the document -----------------------------------------------------------------------------------------------


def sealed(made: Made, policy_version: str) -> dict[str, Any]:
    """Write a plan as a JSON object that carries the hash of its own content."""
    homes = {(o.dataset.name, h.unit.begin): h for o in made.surveyed for h in o.residences}
    content = {
        "kind": "tiering-plan",
        "format": FORMAT,
        "policy_version": policy_version,
        "now": _text(made.now),
        "valid_until": _text(made.now + VALID_FOR),
        "datasets": [one.dataset.name for one in made.surveyed],
        "ledger_position": made.position,
        "totals": asdict(made.totals),
        "moves": [
            _move_row(e, homes[e.move.unit.dataset, e.move.unit.begin]) for e in made.estimates
        ],
    }  # fmt: skip
    return content | {"sha256": _digest(content)}


def _move_row(estimate: Estimate, home: Residence) -> dict[str, Any]:
    move, unit = estimate.move, estimate.move.unit
    told = {key: value for key, value in _slots(estimate).items() if key != "move"}
    return {
        "dataset": unit.dataset,
        "begin": _text(unit.begin),
        "end": _text(unit.end),
        "generation": unit.generation,
        "transition": str(move.transition),
        "due_at": _text(move.due_at) if move.due_at else None,
        "tier": str(home.tier),
        "storage_class": str(home.storage_class),
        "location": home.location,
        "source_generation": home.unit.generation,
        "row_count": move.row_count,
        "size_bytes": home.size_bytes,
        "late_count": home.late_count,
        "open_at": str(home.move_state) if home.move_state else None,
        "estimate": told,
    }


def _slots(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _text(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat()


def _digest(content: Mapping[str, Any]) -> str:
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def write(document: Mapping[str, Any], path: Path) -> None:
    """Write a sealed plan to a file that only its owner reads; a file of that name is replaced whole.

    Raises:
        PermanentError: the file cannot be written there.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
        os.replace(beside, path)
    except OSError as exc:
        raise errors.PermanentError("write plan", str(path), exc.strerror or "failed", "Choose another path.") from exc


def read(path: Path) -> dict[str, Any]:
    """Read a sealed plan and prove its seal.

    Raises:
        PermanentError: not a plan, of another format, or altered.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        cause = (exc.strerror or "unreadable") if isinstance(exc, OSError) else "not a JSON document"
        raise errors.PermanentError("read plan", str(path), cause, AGAIN) from exc
    if not isinstance(document, dict) or document.get("kind") != "tiering-plan":
        raise errors.PermanentError("read plan", str(path), "not a plan of `tiering plan --out`", AGAIN)
    if document.get("format") != FORMAT:
        raise errors.PermanentError("read plan", str(path), f"format {document.get('format')}, not {FORMAT}", AGAIN)
    content = {key: value for key, value in document.items() if key != "sha256"}
    if document.get("sha256") != _digest(content):
        raise errors.PermanentError("apply plan", str(path), "it was altered since it was sealed", AGAIN)
    return document


# --- applying ---------------------------------------------------------------------------------------------------


def apply(
    stores: Stores, document: Mapping[str, Any], now: datetime, owner: str, progress: Progress | None = None
) -> Applied:
    """Carry out exactly the moves of a sealed plan; those that are done already are left alone.

    Raises:
        PermanentError: stale: too old, made under another policy, or a unit is elsewhere. Nothing was changed.
        NotFound: a dataset is not in the policy file any more.
    """
    rows: list[dict[str, Any]] = document["moves"]
    open_rows = _undone(stores, rows, document["ledger_position"])
    done_before = len(rows) - len(open_rows)
    if not open_rows:
        return Applied(done_before)
    _demand_fresh(stores, document, open_rows, now)
    receipts: list[Receipt] = []
    problems: dict[str, str] = {}
    begun = _begin(stores, open_rows, now, problems)
    for number, (move, move_id) in enumerate(begun, start=1):
        try:
            receipts.append(lifecycle.run_move(stores, move_id, now, owner))
        except errors.TieringError as exc:
            problems[str(move.unit)] = str(exc)
        if progress:
            progress(move.unit.name, number, len(begun))
    return Applied(done_before, tuple(receipts), problems)


def _undone(stores: Stores, rows: Sequence[dict[str, Any]], position: int) -> list[dict[str, Any]]:
    """Leave out the moves that were finished since the plan was made, whoever did them."""
    by_dataset: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_dataset.setdefault(row["dataset"], []).append(row)
    done: set[tuple[str, str]] = set()
    with stores.warm.transaction("read", "moves of a plan", read_only=True) as connection:
        for dataset, some in by_dataset.items():
            found = survey.moves_of(connection, dataset, [_instant(row["begin"]) for row in some])
            history: dict[datetime, list[tuple[Any, ...]]] = {}
            for move_id, begin, *rest in found:
                history.setdefault(begin, []).append((move_id, *rest))
            done |= {
                (dataset, row["begin"])
                for row in some
                if _is_done(row, history.get(_instant(row["begin"]), []), position)
            }
    return [row for row in rows if (row["dataset"], row["begin"]) not in done]


def _is_done(row: Mapping[str, Any], history: Sequence[tuple[Any, ...]], position: int) -> bool:
    newer = [entry for entry in history if entry[0] > position]
    older = [entry for entry in history if entry[0] <= position]
    # A move that was open when the plan was made is the last one before it.
    mine = newer + (older[-1:] if row["open_at"] else [])
    wanted = (row["generation"], row["transition"])
    return any((generation, step) == wanted and state in FINISHED for _, generation, step, state in mine)


def _demand_fresh(stores: Stores, document: Mapping[str, Any], rows: Sequence[dict[str, Any]], now: datetime) -> None:
    """Raise PermanentError, with everything that is no longer as the plan saw it."""
    made_at = _instant(document["now"])
    if document["policy_version"] != stores.policies.version:
        cause = f"the policy file is another one: {stores.policies.version}, not {document['policy_version']}"
        raise _stale(document, cause)
    if now < made_at:
        raise _stale(document, f"it is for {made_at:%Y-%m-%d %H:%M}Z, which is after {now:%Y-%m-%d %H:%M}Z")
    if now - made_at > VALID_FOR:
        cause = f"it is of {made_at:%Y-%m-%d %H:%M}Z, more than {VALID_FOR // timedelta(hours=1)} h old"
        raise _stale(document, cause)
    changes = [change for name in sorted({row["dataset"] for row in rows}) for change in _changes(
        stores, name, [row for row in rows if row["dataset"] == name], now)]  # fmt: skip
    if changes:
        more = f"; and {len(changes) - 10} more" if len(changes) > 10 else ""
        raise _stale(document, f"{len(changes)} of its units changed: {'; '.join(changes[:10])}{more}")


def _stale(document: Mapping[str, Any], cause: str) -> errors.PermanentError:
    return errors.PermanentError("apply plan", document["sha256"][:12], f"{cause}; nothing was changed", AGAIN)


def _changes(stores: Stores, name: str, rows: Sequence[dict[str, Any]], now: datetime) -> list[str]:
    dataset = lifecycle.dataset_named(stores, name)
    residences, newest = lifecycle.survey(stores, dataset)
    plan = plan_moves(dataset, residences, newest, now, pins=lifecycle.pins_of(stores, dataset, now))
    homes = {home.unit.begin: home for home in residences}
    verdicts: dict[datetime, Move | Stay] = {move.unit.begin: move for move in plan.moves}
    verdicts |= {stay.unit.begin: stay for stay in plan.stays}
    found = (
        _change(row, homes.get(_instant(row["begin"])), verdicts.get(_instant(row["begin"]))) for row in rows
    )  # fmt: skip
    return [change for change in found if change]


def _change(row: Mapping[str, Any], home: Residence | None, verdict: Move | Stay | None) -> str:
    """Say in words how a unit differs from what the plan saw; empty when it does not."""
    unit = _unit(row)
    if home is None or verdict is None:
        return f"{unit.name} has no rows any more"
    seen = {
        "tier": (row["tier"], str(home.tier)),
        "generation": (row["source_generation"], home.unit.generation),
        "storage class": (row["storage_class"], str(home.storage_class)),
        "end": (row["end"], _text(home.unit.end)),
    }
    for what, (before, after) in seen.items():
        if before != after:
            return f"{unit.name}: {what} {before} is {after} now"
    if isinstance(verdict, Stay):
        return f"{unit.name}: {row['transition']} is not due, {verdict.reasons[0].code}: {verdict.reasons[0].text}"
    if (verdict.transition, verdict.unit) != (row["transition"], unit):
        return f"{unit.name}: {verdict.transition} of generation {verdict.unit.generation} comes first"
    return ""


def _begin(
    stores: Stores, rows: Sequence[dict[str, Any]], now: datetime, problems: dict[str, str]
) -> list[tuple[Move, int]]:
    """Record the moves; one whose unit another run has begun something else with meanwhile is a problem."""
    begun: list[tuple[Move, int]] = []
    for name in dict.fromkeys(row["dataset"] for row in rows):
        moves = tuple(_move(row) for row in rows if row["dataset"] == name)
        ids = lifecycle.begin_moves(stores, Plan(name, now, None, moves, ()))
        for move, move_id in zip(moves, ids, strict=True):
            record = stores.ledger.move(move_id)
            if (record.transition, record.unit.generation) == (move.transition, move.unit.generation):
                begun.append((move, move_id))
            else:
                problems[str(move.unit)] = f"another run began {record} meanwhile; it was left alone"
    return begun


def _move(row: Mapping[str, Any]) -> Move:
    due_at = _instant(row["due_at"]) if row["due_at"] else None
    return Move(_unit(row), Transition(row["transition"]), row["row_count"], row["size_bytes"], due_at)


def _unit(row: Mapping[str, Any]) -> Unit:
    return Unit(row["dataset"], _instant(row["begin"]), _instant(row["end"]), row["generation"])


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
