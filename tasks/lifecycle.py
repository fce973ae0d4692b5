"""The steps of a unit's life as Prefect tasks: each opens the stores, calls the library, returns a small value."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from prefect import State as RunState
from prefect import task
from prefect.states import Completed

import infra.sql
from tasks.options import CHAIN, EFFECT, PLAN
from tasks.stores import chosen, load_policies, opened
from tiering.errors import LeaseHeld, VerificationError
from tiering.model import Plan, Receipt, State, Transition
from tiering.settings import load_settings

if TYPE_CHECKING:
    from tiering.ops.checkpoints import CheckpointReport

LEFT = "Left"
"""Name of the state of a unit that another run was working on."""


@task(name="choose datasets", **PLAN)
def choose_datasets(data_class: str | None, dataset: str | None) -> tuple[str, ...]:
    """Name the datasets that a run is about. Opens no store."""
    found = chosen(load_policies(load_settings().policies), data_class, dataset)
    return tuple(d.name for d in found)


@task(name="prepare dataset", task_run_name="prepare {dataset}", **EFFECT)
def prepare_dataset(dataset: str, now: datetime, owner: str) -> None:
    """Create what the dataset's tables need around them, and settle what a crash left half done."""
    from tiering.ops import install, lifecycle

    with opened() as stores:
        install.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
        found = lifecycle.dataset_named(stores, dataset)
        install.install_dataset(stores, found)
        install.prepare_units(stores, found, now)
        lifecycle.finish_open(stores, found, now, owner)


@task(name="plan moves", task_run_name="plan {dataset}", **PLAN)
def plan_moves(dataset: str, now: datetime, transitions: Sequence[Transition]) -> Plan:
    """Plan what is due. Writes nothing."""
    from tiering.ops import lifecycle

    with opened() as stores:
        return lifecycle.plan_dataset(stores, lifecycle.dataset_named(stores, dataset), now, transitions)


@task(name="begin moves", **EFFECT)
def begin_moves(plan: Plan) -> list[int]:
    """Record the plan's moves in the ledger and return their ids, in the plan's order."""
    from tiering.ops import lifecycle

    with opened() as stores:
        return lifecycle.begin_moves(stores, plan)


@task(name="move unit", task_run_name="move {subject}", **CHAIN)
def move_unit(subject: str, move_id: int, now: datetime, owner: str) -> CheckpointReport | RunState[None] | None:
    """Carry one unit through its steps; return the checkpoint's report if it stopped there."""
    try:
        with opened():
            return _take_steps(subject, move_id, now, owner)
    except LeaseHeld as exc:
        return Completed(name=LEFT, message=str(exc))
    except VerificationError as exc:
        note_failure(move_id, exc, owner)
        raise


def _take_steps(subject: str, move_id: int, now: datetime, owner: str) -> CheckpointReport | None:
    seal_unit(subject, move_id, now, owner)
    state, report = check_unit(subject, move_id, now, owner)
    if state is State.QUARANTINED:
        return report
    for step in (copy_unit, verify_unit, commit_unit):
        step(subject, move_id, now, owner)
    return None


@task(name="seal unit", task_run_name="seal {subject}", **EFFECT)
def seal_unit(subject: str, move_id: int, now: datetime, owner: str) -> State:
    """Close the unit to writers."""
    from tiering.ops import lifecycle

    with opened() as stores:
        return lifecycle.seal(stores, move_id, now, owner).state


@task(name="check unit", task_run_name="check {subject}", **EFFECT)
def check_unit(subject: str, move_id: int, now: datetime, owner: str) -> tuple[State, CheckpointReport | None]:
    """Judge the sealed unit's quality."""
    from tiering.ops import lifecycle

    with opened() as stores:
        record, report = lifecycle.check(stores, move_id, now, owner)
        return record.state, report


@task(name="copy unit", task_run_name="copy {subject}", **EFFECT)
def copy_unit(subject: str, move_id: int, now: datetime, owner: str) -> State:
    """Make the copy."""
    from tiering.ops import lifecycle

    with opened() as stores:
        return lifecycle.copy(stores, move_id, now, owner).state


@task(name="verify unit", task_run_name="verify {subject}", **EFFECT)
def verify_unit(subject: str, move_id: int, now: datetime, owner: str) -> State:
    """Prove the copy equal to its source."""
    from tiering.ops import lifecycle

    with opened() as stores:
        return lifecycle.verify(stores, move_id, now, owner).state


@task(name="commit unit", task_run_name="commit {subject}", **EFFECT)
def commit_unit(subject: str, move_id: int, now: datetime, owner: str) -> State:
    """Make the copy the one that counts."""
    from tiering.ops import lifecycle

    with opened() as stores:
        return lifecycle.commit(stores, move_id, now, owner).state


@task(name="note failure", **EFFECT)
def note_failure(move_id: int, error: VerificationError, owner: str) -> None:
    """Leave an audit row about a copy that was not equal to its source."""
    from tiering.ops import lifecycle

    with opened() as stores:
        lifecycle.note_failure(stores, stores.ledger.move(move_id), error, owner)


@task(name="take receipts", **PLAN)
def take_receipts(move_ids: Sequence[int]) -> list[Receipt]:
    """Read what the moves did, or how far they came, in the given order."""
    from tiering.ops import lifecycle

    with opened() as stores:
        return [lifecycle.receipt(stores, move_id) for move_id in move_ids]
