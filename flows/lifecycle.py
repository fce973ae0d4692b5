"""The flows that move units through their life: hot → warm → compressed → cold → archived → expired.

All five are one order of steps with other transitions: prepare, plan, and per due unit, several at once,
seal → check → copy → verify → commit. What is due, and how each step is done, is the library's.

How a run ends: **Failed** when a unit or a dataset failed, naming each (the others were carried on); **Quarantined**,
which counts as completed, while a unit of its datasets is in quarantine: the flow did its work, the data needs a
person; else Completed. Units that another run was working on are reported and left to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from prefect import State, flow, get_run_logger, runtime
from prefect.concurrency.sync import concurrency
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner
from pydantic import AwareDatetime

from tasks import lifecycle, report
from tasks.options import open_runner
from tiering.model import Plan, Receipt, Transition

Problems = dict[str, str]
"""Unit or dataset → what went wrong with it."""

NAMED_MAX = 5


def name_run() -> str:
    """Name a run by what it moves: `warm-to-cold market_data 2026-11-22`."""
    given = runtime.flow_run.parameters
    words = [given.get("data_class"), given.get("dataset")]
    subject = "/".join(word for word in words if word) or "everything"
    name = f"{runtime.flow_run.flow_name} {subject} {run_now(given.get('at')):%Y-%m-%d}"
    return f"{name} (dry run)" if given.get("dry_run") else name


@flow(name="hot-to-warm", flow_run_name=name_run)
def hot_to_warm(
    data_class: str | None = None,
    dataset: str | None = None,
    at: AwareDatetime | None = None,
    dry_run: bool = False,
) -> State[None]:
    """Hand units over to the warm tier, and merge rows that came late for units that left.

    Args:
        data_class: only its datasets.
        dataset: only this one.
        at: the run's instant, with time zone; default: when the run was scheduled.
        dry_run: publish the plan and change nothing.
    """
    return _carry_out((Transition.HOT_TO_WARM, Transition.MERGE), data_class, dataset, run_now(at), dry_run)


@flow(name="compress", flow_run_name=name_run)
def compress(
    data_class: str | None = None,
    dataset: str | None = None,
    at: AwareDatetime | None = None,
    dry_run: bool = False,
) -> State[None]:
    """Compress warm units where they are. Parameters as for `hot_to_warm`."""
    return _carry_out((Transition.COMPRESS,), data_class, dataset, run_now(at), dry_run)


@flow(name="warm-to-cold", flow_run_name=name_run)
def warm_to_cold(
    data_class: str | None = None,
    dataset: str | None = None,
    at: AwareDatetime | None = None,
    dry_run: bool = False,
) -> State[None]:
    """Export warm units to the lake. Parameters as for `hot_to_warm`."""
    return _carry_out((Transition.WARM_TO_COLD,), data_class, dataset, run_now(at), dry_run)


@flow(name="archive", flow_run_name=name_run)
def archive(
    data_class: str | None = None,
    dataset: str | None = None,
    at: AwareDatetime | None = None,
    dry_run: bool = False,
) -> State[None]:
    """Give files and cold objects past their age the storage class that is due. Parameters as for `hot_to_warm`."""
    return _carry_out((Transition.ARCHIVE,), data_class, dataset, run_now(at), dry_run)


@flow(name="expire", flow_run_name=name_run)
def expire(
    data_class: str | None = None,
    dataset: str | None = None,
    at: AwareDatetime | None = None,
    dry_run: bool = False,
) -> State[None]:
    """Let units past their retention go, unless a hold keeps them. Parameters as for `hot_to_warm`."""
    return _carry_out((Transition.EXPIRE,), data_class, dataset, run_now(at), dry_run)


def run_now(at: datetime | None) -> datetime:
    """Choose the run's one instant: as given, else as scheduled, which stays the same over retries."""
    return datetime.fromtimestamp((at or runtime.flow_run.scheduled_start_time).timestamp(), UTC)


def owner() -> str:
    """Name this run in leases and in the audit trail."""
    return f"{runtime.flow_run.name} ({runtime.flow_run.id})"


def _carry_out(
    transitions: Sequence[Transition], data_class: str | None, dataset: str | None, now: datetime, dry_run: bool
) -> State[None]:
    """Carry out the transitions for each of the datasets, one after the other; a failing one stops no other."""
    waited = time.time() - runtime.flow_run.scheduled_start_time.timestamp()
    get_run_logger().info("at %s, begun %.1f s after it was scheduled", now.isoformat(), waited)
    problems: Problems = {}
    receipts: list[Receipt] = []
    quarantined: list[str] = []
    for name in lifecycle.choose_datasets(data_class, dataset):
        try:
            # One run at a time works on a dataset; should the limit be missing, the leases keep runs apart.
            with nullcontext() if dry_run else concurrency(f"tiering-{name}", lease_duration=60):
                plan = _plan(name, transitions, now, dry_run)
                quarantined += report.quarantined(plan)
                get_run_logger().info("%s: %d due, %d stay", name, len(plan.moves), len(plan.stays))
                if plan.moves and not dry_run:
                    receipts += _move(plan, now, problems, waited)
        except Exception as exc:  # the datasets are independent: it is said at the end, and the next one goes on
            problems[name] = str(exc)
            get_run_logger().exception("%s failed", name)
    quarantined += [str(receipt.unit) for receipt in receipts if receipt.state.value == "QUARANTINED"]
    done = sum(receipt.state.value in ("COMMITTED", "RECLAIMED") for receipt in receipts)
    return _conclude("dry run, nothing was changed" if dry_run else f"{done} units done", problems, quarantined)


def _plan(dataset: str, transitions: Sequence[Transition], now: datetime, dry_run: bool) -> Plan:
    if not dry_run:
        lifecycle.prepare_dataset(dataset, now, owner())
    plan = lifecycle.plan_moves(dataset, now, transitions)
    show: Callable[[str, Plan], None] = report.show_plan if dry_run else report.show_stays
    show(runtime.flow_run.flow_name, plan)
    return plan


def _move(plan: Plan, now: datetime, problems: Problems, waited: float) -> list[Receipt]:
    """Carry the plan's units through their steps, several at once; add what fails to `problems`."""
    began = time.monotonic()
    ids = lifecycle.begin_moves(replace(plan, stays=()))
    with open_runner() as runner:
        opened = time.monotonic()
        found = _watch(plan, _submit(runner, plan, ids, now))
    problems.update(found)
    receipts = lifecycle.take_receipts(ids)
    seconds = {
        "submit to flow": waited,
        "plan to first unit": opened - began,
        "units": time.monotonic() - opened,
        "of which in the stores, all lanes": sum(receipt.seconds for receipt in receipts),
    }
    report.show_receipts(runtime.flow_run.flow_name, plan.dataset, receipts, found, seconds)
    return receipts


def _submit(runner: TaskRunner[Any], plan: Plan, ids: Sequence[int], now: datetime) -> dict[PrefectFuture[Any], str]:
    # The undo window counts from here. A run that was late by days must not leave its copies a window that is over.
    began = now if runtime.flow_run.parameters.get("at") else datetime.now(UTC)
    me = owner()
    units = [(move.unit, move_id) for move, move_id in zip(plan.moves, ids, strict=True)]
    return {
        runner.submit(lifecycle.move_unit, {"subject": unit.name, "move_id": move_id, "now": began, "owner": me}): str(
            unit
        )
        for unit, move_id in units
    }


def _watch(plan: Plan, futures: dict[PrefectFuture[Any], str]) -> Problems:
    """Wait for all units, showing progress and quarantines as they come; return what failed."""
    log = get_run_logger()
    flow_name, total = runtime.flow_run.flow_name, len(futures)
    progress = report.start_progress(flow_name, plan.dataset, total)
    problems: Problems = {}
    for done, future in enumerate(as_completed(list(futures)), start=1):
        future.wait()
        unit, result = futures[future], future.state.result(raise_on_failure=False)
        if isinstance(result, Exception):
            problems[unit] = str(result)
        elif future.state.name == lifecycle.LEFT:
            log.info("%s is left to another run: %s", unit, future.state.message)
        elif result is not None:
            log.warning("%s is in quarantine: %s", unit, result.problem)
            report.show_quarantine(result)
        report.show_progress(progress, done, total)
    return problems


def _conclude(summary: str, problems: Problems, quarantined: Sequence[str]) -> State[None]:
    """Choose how the run ends; the first few troubles stand in its message, all of them in the artifacts."""
    if quarantined:
        listed = ", ".join(quarantined[:NAMED_MAX]) + (", …" if len(quarantined) > NAMED_MAX else "")
        summary += f"; {len(quarantined)} in quarantine until `tiering release`: {listed}"
    if problems:
        listed = "; ".join(f"{name}: {text[:400]}" for name, text in list(problems.items())[:NAMED_MAX])
        return Failed(message=f"{len(problems)} failed; {summary}. {listed}")
    if quarantined:
        return Completed(name="Quarantined", message=summary)
    return Completed(message=summary)
