"""Move units: survey where everything is, record the moves that are due, and carry each through its states.

`seal → check → copy → verify → commit`: every step leases the move, does its effect, and advances the ledger;
a step that finds its state already reached returns at once, so any step can be run again after a crash at any
point, by anybody. Does not: destroy anything (sweep.py); know Prefect.
"""

from __future__ import annotations

import contextlib
import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime
from types import ModuleType
from typing import Any, TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from tiering import errors
from tiering.model import Dataset, Form, Plan, Receipt, Residence, State, Tier, Transition, Unit
from tiering.ops import (
    archive,
    document_checks,
    document_expire,
    document_export,
    document_handover,
    document_merge,
    documents,
    expire,
    export,
    files,
    handover,
    merge,
    pack,
)
from tiering.ops.checkpoints import CheckpointReport, prepare, run_checkpoint
from tiering.ops.install import late_units
from tiering.ops.work import Work
from tiering.plan.lifecycle import plan_moves
from tiering.plan.placement import Pins, collect
from tiering.stores import backup_rows, tables
from tiering.stores.ledger import audit
from tiering.stores.opening import Stores
from tiering.stores.pins import list_pins
from tiering.stores.postgres import identifier
from tiering.stores.records import OPEN_STATES, MoveRecord, UnitRecord
from tiering.stores.survey import filled, homes, lease_owners, newest_in, read_copies

log = logging.getLogger(__name__)
T = TypeVar("T")

STEPS: dict[tuple[Form, Transition], ModuleType] = {
    (Form.TABLE, Transition.HOT_TO_WARM): handover,
    (Form.TABLE, Transition.MERGE): merge,
    (Form.TABLE, Transition.COMPRESS): pack,
    (Form.TABLE, Transition.WARM_TO_COLD): export,
    (Form.TABLE, Transition.ARCHIVE): archive,
    (Form.TABLE, Transition.EXPIRE): expire,
    (Form.DOCUMENTS, Transition.HOT_TO_WARM): document_handover,
    (Form.DOCUMENTS, Transition.MERGE): document_merge,
    (Form.DOCUMENTS, Transition.WARM_TO_COLD): document_export,
    (Form.DOCUMENTS, Transition.ARCHIVE): archive,
    (Form.DOCUMENTS, Transition.EXPIRE): document_expire,
    (Form.FILES, Transition.ARCHIVE): files,
    (Form.FILES, Transition.EXPIRE): files,
}
ORDER = (State.PLANNED, State.SEALED, State.COPIED, State.VERIFIED, State.COMMITTED)
CHECKED = (Transition.HOT_TO_WARM, Transition.MERGE, Transition.WARM_TO_COLD)
"""Transitions whose rows are judged for quality at SEALED; the others do not bring rows to a new place."""

LOCK_ATTEMPTS = 8
LOOKS_MAX = 1000
"""Hot partitions looked into in one transaction: it holds their locks to its end, and the server has some thousand."""


def dataset_named(stores: Stores, name: str) -> Dataset:
    """Find a dataset that moves by age, or say which there are."""
    dataset = stores.policies.dataset(name)
    if dataset is None:
        known = ", ".join(d.name for d in stores.policies.datasets)
        raise errors.NotFound("find dataset", name, "not in the policy file", f"Known datasets: {known}.")
    return dataset


def survey(stores: Stores, dataset: Dataset) -> tuple[list[Residence], datetime | None]:
    """Find where every unit of a dataset is now, and the time of its newest row. Reads only.

    Hot first, ledger second: a unit handed over in between is found at its new place, and never missed.
    """
    if dataset.form is Form.FILES:
        return files.survey(stores, dataset)
    survey_hot = documents.survey_hot if dataset.form is Form.DOCUMENTS else _survey_hot
    hot, waiting, newest = survey_hot(stores, dataset)
    late = {unit.begin: count for unit, count in waiting}
    open_moves = {move.unit.begin: move for move in stores.ledger.moves(dataset.name, OPEN_STATES)}
    holds = {hold.begin: hold.reason for hold in stores.ledger.holds(dataset.name)}
    with stores.warm.transaction("survey", dataset.name, read_only=True) as connection:
        records = homes(connection, dataset.name)
        leases = lease_owners(connection, dataset.name) if open_moves else {}
        copies = read_copies(connection, dataset.name)
        saved = backup_rows.newest(connection) if dataset.wait_for_backup else {}
    # Rows may come before their unit's partition does: they lie in the late partition, and are hot all the same.
    location = tables.late_partition(dataset.name)
    found = {unit.begin: Residence(unit, Tier.HOT, location, row_count=count) for unit, count in waiting}
    found |= {r.unit.begin: r for r in hot} | {record.unit.begin: _at_home(record) for record in records}
    is_homeless = any(home.location == location for home in found.values())
    taken = sorted(home.unit for home in found.values() if home.location != location) if is_homeless else []
    residences = []
    for begin, home in sorted(found.items()):
        move = open_moves.get(begin)
        told: dict[str, Any] = {
            "late_count": 0 if home.tier is Tier.HOT else late.get(begin, 0),
            "move_state": move.state if move else None,
            "move_transition": move.transition if move else None,
            "quarantine": move.problem if move and move.state is State.QUARANTINED else "",
            "hold": holds.get(begin) or holds.get(None) or "",
            "lease_owner": leases.get(move.move_id, "") if move else "",
            "rehydrated_until": copies.get(begin),
            "overlaps": _cut(home.unit, taken) if home.location == location else "",
            "backed_up_at": files.backed_up_at(dataset, home.tier, saved),
        }
        residences.append(replace(home, **told) if any(told.values()) else home)
    if newest is None and records:
        newest = max(record.unit.end for record in records)
    return [_with_open_merge(r, open_moves.get(r.unit.begin)) for r in residences], newest


def _at_home(record: UnitRecord) -> Residence:
    return Residence(
        unit=record.unit,
        tier=record.tier,
        location=record.location,
        is_compressed=record.is_compressed,
        row_count=record.row_count,
        size_bytes=record.size_bytes,
        storage_class=record.storage_class,
        written_at=record.changed_at,
    )


def _cut(unit: Unit, taken: Sequence[Unit]) -> str:
    """Name the first of the taken units, in order and disjoint, that a unit overlaps; empty if none."""
    at = bisect_right(taken, unit.begin, key=lambda other: other.end)
    return taken[at].name if at < len(taken) and taken[at].begin < unit.end else ""


def _survey_hot(stores: Stores, dataset: Dataset) -> tuple[list[Residence], list[tuple[Unit, int]], datetime | None]:
    """List the hot units, count the late rows by unit, find the newest row.

    Why again: a table that another scheduler hands over between the catalog and our look into it has another name
    by then, even in one snapshot, because names are resolved by the newest catalog.
    """
    for attempt in Retrying(
        retry=retry_if_exception_type(errors.NotFound), stop=stop_after_attempt(LOCK_ATTEMPTS), reraise=True
    ):
        with attempt:
            with stores.hot.transaction("survey", dataset.name, read_only=True) as connection:
                parents = (tables.hot_parent(dataset.name), tables.sealed_parent(dataset.name))
                parts = [part for parent in parents for part in tables.partitions(connection, parent)]
                waiting = late_units(connection, dataset)
                newest = newest_in(connection, tables.late_partition(dataset.name), dataset.time_column)
            hot = _hot_units(stores, dataset, parts)
            if hot:
                with stores.hot.transaction("survey", dataset.name, read_only=True) as connection:
                    last = newest_in(connection, hot[-1].location, dataset.time_column)
                newest = max((at for at in (newest, last) if at), default=None)
    return hot, waiting, newest


def _hot_units(stores: Stores, dataset: Dataset, parts: Sequence[tables.Partition]) -> list[Residence]:
    """List the hot partitions that hold rows, oldest first; an empty one is no unit yet."""
    names, kept = [part.name for part in parts if part.begin], set[str]()
    for start in range(0, len(names), LOOKS_MAX):
        with stores.hot.transaction("survey", dataset.name, read_only=True) as connection:
            kept |= filled(connection, names[start : start + LOOKS_MAX])
    found = [
        Residence(Unit(dataset.name, p.begin, p.end), Tier.HOT, p.name, False, p.row_estimate, p.size_bytes)
        for p in parts
        if p.begin and p.end and p.name in kept
    ]
    return sorted(found, key=lambda home: home.unit.begin)


def _with_open_merge(residence: Residence, move: MoveRecord | None) -> Residence:
    # The late rows of an open move are sealed already: still late, until the move is committed.
    if move and move.state is not State.QUARANTINED and move.unit.generation > residence.unit.generation:
        return replace(residence, late_count=max(residence.late_count, 1))
    return residence


def plan_dataset(
    stores: Stores, dataset: Dataset, now: datetime, transitions: Collection[Transition] | None = None
) -> Plan:
    """Plan a dataset's moves at `now`; only the given transitions if any are given. Writes nothing."""
    residences, newest = survey(stores, dataset)
    return plan_moves(dataset, residences, newest, now, transitions or tuple(Transition), pins_of(stores, dataset, now))


def pins_of(stores: Stores, dataset: Dataset, now: datetime) -> Pins:
    """Read what placement decided about a dataset and is in force at `now`."""
    return collect(list_pins(stores.warm, dataset.name), stores.policies.placement, now)


def begin_moves(stores: Stores, plan: Plan) -> list[int]:
    """Record a plan's moves in the ledger and return their ids. Run twice, the second run gets the same ids."""
    return stores.ledger.open_moves(plan, stores.policies.version)


def seal(stores: Stores, move_id: int, now: datetime, owner: str) -> MoveRecord:
    """Close the unit to writers; late rows go to the late partition from here on."""
    return _step(stores, move_id, State.SEALED, now, owner)


def copy(stores: Stores, move_id: int, now: datetime, owner: str) -> MoveRecord:
    """Make the copy. Refused while the checkpoint at SEALED has not passed."""
    return _step(stores, move_id, State.COPIED, now, owner)


def verify(stores: Stores, move_id: int, now: datetime, owner: str) -> MoveRecord:
    """Prove the copy equal to its source."""
    return _step(stores, move_id, State.VERIFIED, now, owner)


def commit(stores: Stores, move_id: int, now: datetime, owner: str) -> MoveRecord:
    """Make the copy the only one that counts, in one transaction."""
    return _step(stores, move_id, State.COMMITTED, now, owner)


def check(stores: Stores, move_id: int, now: datetime, owner: str) -> tuple[MoveRecord, CheckpointReport | None]:
    """Judge a sealed unit's quality; a unit that fails is quarantined, with the failing expectation.

    Returns:
        The move, and the report, None where nothing had to be checked (again).
    """
    with stores.ledger.lease(move_id, owner) as record:
        if record.state is not State.SEALED or record.transition not in CHECKED or record.details.get("checked"):
            return record, None
        dataset = dataset_named(stores, record.unit.dataset)
        work = Work(stores, dataset, record, now, owner)
        prepare()  # imports for seconds, once per process: not this unit's time
        began = time.perf_counter()
        try:
            report = _with_patience(lambda: _run_check(work))
        except errors.IncompatibleColumns as exc:
            return _quarantine(work, str(exc), record.state), None
        took = time.perf_counter() - began
        if report.passed or record.forced_because:
            record = work.advance_alone(
                State.SEALED,
                checkpoints_passed=int(report.passed),
                row_count=_counted(report, record.row_count),
                details={"checked": True},
            )
        else:
            record = _quarantine(work, report.problem, record.state)
        stores.ledger.note_seconds(record, "check", took)
        return record, report


def _counted(report: CheckpointReport, estimate: int) -> int:
    counted = dict(report.metrics).get("row_count")
    return estimate if counted is None else counted


def _run_check(work: Work) -> CheckpointReport:
    if work.dataset.form is Form.DOCUMENTS:
        return document_checks.run(work, _row_count_before(work))
    record = work.record
    columns = work.stored_columns() if record.transition is Transition.WARM_TO_COLD else work.columns()
    if record.transition is Transition.WARM_TO_COLD:
        database, relation = work.stores.warm, export.warm_relation(work, columns)
        # A packed copy was proven equal to a partition of the warm table, whose key the server enforced.
        is_packed = export.warm_unit(work).is_compressed
        keyed = tables.warm_parent(work.dataset.name) if is_packed else record.source
    else:
        database, relation, keyed = work.stores.hot, identifier(record.source), record.source
    before = _row_count_before(work)
    with database.transaction("check", str(record.unit), read_only=True) as connection:
        is_unique = tables.unique_key_covers(connection, keyed, work.dataset.key)
        return run_checkpoint(connection, relation, work.dataset, record.unit, columns, before, is_unique, "sealed")


def _row_count_before(work: Work) -> int | None:
    """Return the rows of the unit just before this one, if it has moved already and this is no late generation."""
    if work.record.transition is not Transition.HOT_TO_WARM:
        return None
    older = [u for u in work.stores.ledger.units(work.dataset.name) if u.unit.end == work.unit.begin]
    return older[0].row_count if older and older[0].tier is not Tier.EXPIRED else None


def _quarantine(work: Work, problem: str, back_to: State) -> MoveRecord:
    """Stop a move for a person to look at; `back_to` is where a release lets it go on."""
    with work.stores.warm.transaction("quarantine", str(work.record)) as connection:
        work.audit(connection, "quarantine", problem=problem)
        record = work.advance(
            connection, State.QUARANTINED, problem=problem[:2000], details={"quarantined_at": str(back_to)}
        )
    log.warning("quarantined move=%s problem=%s", record, problem)
    return record


def _step(stores: Stores, move_id: int, state: State, now: datetime, owner: str) -> MoveRecord:
    with stores.ledger.lease(move_id, owner) as record:
        if record.state is State.QUARANTINED or record.has_reached(state):
            if state is State.COMMITTED and record.state is State.COMMITTED:
                _settle(Work(stores, dataset_named(stores, record.unit.dataset), record, now, owner))
            return record
        previous = ORDER[ORDER.index(state) - 1]
        if record.state is not previous:
            raise errors.PermanentError(
                state.lower(), str(record), f"the move is {record.state}, not {previous}", "Run the steps in order."
            )
        if state is State.COPIED and record.transition in CHECKED and not record.details.get("checked"):
            raise errors.PermanentError("copy", str(record), "not checked yet", "Run the checkpoint first.")
        work = Work(stores, dataset_named(stores, record.unit.dataset), record, now, owner)
        if state is State.SEALED and work.dataset.form is Form.DOCUMENTS:
            _settle_before(work)
        began = time.perf_counter()
        try:
            done = _with_patience(lambda: _FUNCTIONS[state](STEPS[work.dataset.form, record.transition])(work))
        except errors.IncompatibleColumns as exc:
            # The unit waits for its remedy; the others go on. Released, it begins again where its rows are untouched.
            return _quarantine(work, str(exc), State.SEALED if record.has_reached(State.SEALED) else State.PLANNED)
        except errors.VerificationError as exc:
            # Released, the copy is made anew: what is wrong with this one will not pass by itself.
            _quarantine(work, str(exc), State.SEALED)
            raise
        took = time.perf_counter() - began
        if state is State.COMMITTED:
            _settle(work.at(done))
        stores.ledger.note_seconds(done, _STAGE[state], took)
        log.info("%s move=%s rows=%d bytes=%d seconds=%.3f", state, done, done.row_count, done.bytes_after, took)
        return done


_STAGE = {State.SEALED: "seal", State.COPIED: "copy", State.VERIFIED: "verify", State.COMMITTED: "commit"}
_FUNCTIONS: dict[State, Callable[[ModuleType], Callable[[Work], MoveRecord]]] = {
    State.SEALED: lambda module: module.seal,
    State.COPIED: lambda module: module.copy,
    State.VERIFIED: lambda module: module.verify,
    State.COMMITTED: lambda module: module.commit,
}


def _settle(work: Work) -> None:
    """Take the hot copy of a committed move out of sight; where a reader is in the way, the next run does."""
    if work.dataset.form is Form.FILES or work.record.transition is Transition.ARCHIVE:
        return
    settle = documents.settle if work.dataset.form is Form.DOCUMENTS else handover.settle
    with contextlib.suppress(errors.CommitConflict):
        _with_patience(lambda: settle(work))


def _settle_before(work: Work) -> None:
    """Settle what is left of the unit's earlier moves, by whoever committed them, before the unit moves on.

    Why: settling removes documents that equal a move's copy. Later, that copy need not be what readers are given.

    Raises:
        LeaseHeld: another run is about it; try again.
    """
    for earlier in work.stores.ledger.moves(work.dataset.name, [State.COMMITTED], work.unit.begin):
        if earlier.details.get("unsettled"):
            commit(work.stores, earlier.move_id, work.now, work.owner)
            if work.stores.ledger.move(earlier.move_id).details.get("unsettled"):
                raise errors.CommitConflict("seal", str(work.record), f"{earlier} is not settled yet")


def _with_patience(step: Callable[[], T]) -> T:
    """Try a step again when a lock or the Iceberg pointer was taken: milliseconds here, minutes in Prefect.

    Why jitter: two movers that met once must not meet at the same instant again.
    """
    attempts = Retrying(
        retry=retry_if_exception_type(errors.CommitConflict),
        wait=wait_random_exponential(multiplier=0.05, max=1.0),
        stop=stop_after_attempt(LOCK_ATTEMPTS),
        reraise=True,
    )
    return attempts(step)


def finish_open(stores: Stores, dataset: Dataset, now: datetime, owner: str) -> int:
    """Settle committed moves whose source is not out of sight yet (a crash between two stores); return how many."""
    committed = stores.ledger.moves(dataset.name, [State.COMMITTED])
    if dataset.form is Form.DOCUMENTS:
        committed = [record for record in committed if record.details.get("unsettled")]
        for record in committed:
            commit(stores, record.move_id, now, owner)
    elif stores.is_one_database:
        return 0
    else:
        for record in committed:
            _settle(Work(stores, dataset, record, now, owner))
    return len(committed)


def run_move(stores: Stores, move_id: int, now: datetime, owner: str) -> Receipt:
    """Carry one move through all its steps in this process. Flows run the steps as tasks of their own."""
    seal(stores, move_id, now, owner)
    check(stores, move_id, now, owner)
    record = copy(stores, move_id, now, owner)
    if record.state is not State.QUARANTINED:
        verify(stores, move_id, now, owner)
        commit(stores, move_id, now, owner)
    return receipt(stores, move_id)


def receipt(stores: Stores, move_id: int) -> Receipt:
    """Say what a move did, or how far it came."""
    record = stores.ledger.move(move_id)
    return Receipt(
        unit=record.unit,
        transition=record.transition,
        state=record.state,
        row_count=record.row_count,
        bytes_before=record.bytes_before,
        bytes_after=record.bytes_after,
        seconds=round(sum(record.stage_seconds.values()), 3),
        checkpoints_passed=record.checkpoints_passed,
        problem=record.problem,
        stage_seconds=tuple(sorted(record.stage_seconds.items())),
    )


def release(stores: Stores, unit: Unit, actor: str, force_reason: str = "") -> MoveRecord:
    """Let a quarantined unit's move go on: its checkpoint is tried again, or overruled for a stated reason."""
    return stores.ledger.release(unit.name, unit.dataset, unit.begin, actor, force_reason)


def note_failure(stores: Stores, record: MoveRecord, error: errors.TieringError, actor: str) -> None:
    """Leave an audit row about a verification that failed: the move stays where it is, with every copy."""
    with stores.warm.transaction("note", str(record)) as connection:
        audit(connection, actor, "verification-failed", record.unit.dataset, record.unit.begin, {"error": str(error)})
