"""Rehydration as Prefect tasks, and the artifact that says what came back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from prefect import task
from prefect.artifacts import create_table_artifact

from tasks.options import EFFECT, PLAN
from tasks.report import ROWS_MAX, artifact_key
from tasks.stores import opened

if TYPE_CHECKING:
    from tiering.ops.rehydrate import Brought
    from tiering.plan.rehydrate import Wish


@task(name="find cold units", task_run_name="find cold units of {dataset}", **PLAN)
def find_wishes(dataset: str, begin: datetime, end: datetime) -> tuple[Wish, ...]:
    """Say what is to be done for each unit of the range. Writes nothing."""
    from tiering.ops import lifecycle, rehydrate

    with opened() as stores:
        return rehydrate.look(stores, lifecycle.dataset_named(stores, dataset), begin, end)


@task(name="prepare rehydration", task_run_name="prepare {dataset}", **EFFECT)
def prepare(dataset: str) -> None:
    """Bring the warm table's columns up to date before rows are put beside it."""
    from tiering.ops import install, lifecycle

    with opened() as stores:
        install.install_dataset(stores, lifecycle.dataset_named(stores, dataset))


@task(name="bring unit", task_run_name="bring {subject}", **EFFECT)
def bring_unit(subject: str, wish: Wish, now: datetime, keep_for: str, owner: str) -> Brought:
    """Make or extend the read copy of one unit, or ask for the restore of its object."""
    from tiering.ops import lifecycle, rehydrate
    from tiering.plan.spans import add, parse_span

    with opened() as stores:
        dataset = lifecycle.dataset_named(stores, wish.unit.dataset)
        return rehydrate.bring(stores, dataset, wish, now, add(now, parse_span(keep_for)), owner)


def show_brought(dataset: str, brought: Sequence[Brought]) -> None:
    """Publish what was done for each unit."""
    rows = [
        {
            "unit": str(one.unit),
            "state": one.state,
            "rows": one.row_count,
            "until": one.until.isoformat() if one.until else "",
            "what": one.text,
        }
        for one in brought
    ]
    create_table_artifact(rows[:ROWS_MAX], artifact_key("rehydrate", dataset), f"{len(rows)} units of {dataset}")
