"""A mover: a real process that carries due moves through and may be killed at any store call, or any instant.

Children are forked from a parent that has imported everything and holds no connection they use, because starting
Python with numba, pyarrow and Great Expectations takes seconds, and a kill should take a fraction of one.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from tests.fakes import Tripwire, kill_self, wired_databases
from tests.faults.mongo_wire import mongo_through_wire
from tests.faults.wire import through_wire, wire_s3
from tiering import errors
from tiering.model import Dataset, Policies, State, Transition
from tiering.ops import install, lifecycle
from tiering.ops.sweep import sweep
from tiering.settings import Settings
from tiering.stores.opening import Stores, open_stores
from tiering.stores.records import OPEN_STATES

LOG_TAIL = 8_000
SWEEP = "sweep"
FINISH = "finish"
"""What every run does first: look for what others left. What it then carries on counts as that transition's."""

NOW = datetime(2024, 6, 20, 12, tzinfo=UTC)
MOVING = [state for state in OPEN_STATES if state is not State.QUARANTINED]
RUNS_MAX = 150
END_SECONDS = 120.0
"""A mover that has not ended by then hangs: it tells where, and is killed."""
PATIENCE_SECONDS = 75
"""Longer than MongoDB keeps the transaction of a client that was killed: what it held is in the way so long."""


@dataclass(frozen=True)
class Job:
    """One child's orders.

    Attributes:
        work: a transition, or SWEEP; FINISH only finishes what is open.
        now: the run's instant.
        dataset: what to move.
        at, after: the store call to die at, and whether after its effect; None: at none.
        call: work and name of the calls that `at` counts; None: all calls.
        statements: count SQL statements as calls.
        finish_first: complete what the one before left, unharmed; else the kill may strike there.
        moves_max: begin at most so many moves.
    """

    work: str
    now: datetime
    dataset: str
    at: int | None = None
    after: bool = False
    call: tuple[str, str] | None = None
    statements: bool = False
    finish_first: bool = True
    moves_max: int = 1
    owner: str = "mover"


@dataclass(frozen=True)
class Outcome:
    """How a child ended: `killed`, `done`, or `failed` or `bug` with a message.

    Attributes:
        calls: work and name of the store calls it made, as far as it could tell.
        died_at: work, name and phase of the call it killed itself at.
    """

    ending: str
    calls: tuple[tuple[str, str], ...] = ()
    died_at: tuple[str, str, str] | None = None
    message: str = ""
    seconds: float = 0.0


def carry_out(stores: Stores, dataset: Dataset, job: Job, wire: Tripwire, ready: Callable[[], None]) -> None:
    """Do a job: finish what is open, then begin and carry through what is due."""
    on_wire = wired_databases(stores, wire)
    if job.finish_first and job.work != FINISH:
        finish(stores, dataset, job, wire)
        _clear_the_way(stores, dataset, job)
    ready()
    wire.arm(job.at, after=job.after, name=job.call)
    if not job.finish_first or job.work == FINISH:
        finish(on_wire, dataset, job, wire)
    wire.work = job.work
    if job.work == SWEEP:
        patiently(lambda: sweep(on_wire, job.now, job.owner))
    elif job.work != FINISH:
        for move_id in due(on_wire, dataset, job):
            run(on_wire, move_id, job)


def finish(stores: Stores, dataset: Dataset, job: Job, wire: Tripwire | None = None) -> None:
    """Carry on what crashed movers left, as every flow's start does; for a sweep's far now, not before its time."""
    wire = wire or Tripwire()
    job = replace(job, now=min(job.now, NOW))
    wire.work = FINISH
    patiently(lambda: lifecycle.finish_open(stores, dataset, job.now, job.owner))
    for record in stores.ledger.moves(dataset.name, MOVING):
        wire.work = str(record.transition)
        run(stores, record.move_id, job)
        wire.work = FINISH


def run(stores: Stores, move_id: int, job: Job) -> None:
    patiently(lambda: lifecycle.run_move(stores, move_id, job.now, job.owner))


def patiently(act: Callable[[], Any]) -> Any:
    """Try again after transient errors, as Prefect's retries do: a dead mover's lease ends with its connection."""
    attempts = Retrying(
        retry=retry_if_exception_type(errors.TransientError),
        wait=wait_random_exponential(multiplier=0.02, max=0.5),
        stop=stop_after_delay(PATIENCE_SECONDS),
        reraise=True,
    )
    return attempts(act)


def due(stores: Stores, dataset: Dataset, job: Job, only: Transition | None = None) -> list[int]:
    """Plan a job's moves and record them; return their ids."""

    def begin() -> list[int]:
        install.prepare_units(stores, dataset, job.now)
        plan = lifecycle.plan_dataset(stores, dataset, job.now, [only or Transition(job.work)])
        return lifecycle.begin_moves(stores, replace(plan, moves=plan.moves[: job.moves_max]))

    found: list[int] = patiently(begin)
    return found


def _clear_the_way(stores: Stores, dataset: Dataset, job: Job) -> None:
    """Merge late rows while they keep every unit from the transition that is wanted."""
    if job.work in (SWEEP, Transition.MERGE):
        return
    for _ in range(20):
        plan = patiently(lambda: lifecycle.plan_dataset(stores, dataset, job.now))
        if any(move.transition == job.work for move in plan.moves):
            return
        ids = due(stores, dataset, replace(job, moves_max=1), Transition.MERGE)
        if not ids:
            return
        for move_id in ids:
            run(stores, move_id, job)


def settle_everything(stores: Stores, dataset: Dataset, job: Job) -> None:
    """Run every due move to completion."""
    for _ in range(RUNS_MAX):
        finish(stores, dataset, job)
        install.prepare_units(stores, dataset, job.now)
        plan = lifecycle.plan_dataset(stores, dataset, job.now)
        if not plan.moves:
            return
        for move_id in lifecycle.begin_moves(stores, plan):
            run(stores, move_id, job)
    raise AssertionError(f"moves are still due after {RUNS_MAX} runs: {plan.moves[:3]}")


# --- processes --------------------------------------------------------------------------------------------------


@dataclass
class Child:
    """A forked mover and the pipe it speaks through."""

    pid: int
    pipe: int
    began: float
    log: Path
    data: bytes = b""


def start(settings: Settings, policies: Policies, job: Job, log: Path) -> Child:
    """Fork a mover."""
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _be_child(settings, policies, job, write, log)
    os.close(write)
    return Child(pid, read, time.monotonic(), log)


def _be_child(settings: Settings, policies: Policies, job: Job, write: int, log: Path) -> NoReturn:
    code = 4
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        faulthandler.dump_traceback_later(END_SECONDS - 2, file=out)
        wire = Tripwire(lambda: _die(write, wire), statements=job.statements)
        wire_s3(settings, wire)
        with open_stores(mongo_through_wire(through_wire(settings, wire), wire), policies) as stores:
            dataset = lifecycle.dataset_named(stores, job.dataset)
            carry_out(stores, dataset, job, wire, lambda: _say(write, {"ready": True}))
        _say(write, {"ending": "done", "calls": wire.calls})
        code = 0
    except errors.TieringError as exc:
        _say(write, {"ending": "failed", "message": f"{type(exc).__name__}: {exc}"})
        code = 3
    except BaseException:
        _say(write, {"ending": "bug", "message": traceback.format_exc()})
    finally:
        os._exit(code)


def _die(write: int, wire: Tripwire) -> None:
    """Tell the parent where, and end as a power cut would."""
    _say(write, {"dying": wire.struck, "calls": wire.calls})
    kill_self()


def _say(write: int, news: dict[str, Any]) -> None:
    os.write(write, json.dumps(news).encode() + b"\n")


def await_ready(child: Child) -> None:
    """Wait until a mover begins with what it was sent for, or has ended."""
    while b"ready" not in child.data:
        data = os.read(child.pipe, 1 << 16)
        if not data:
            return
        child.data += data


def wait(child: Child, kill_after: float | None = None) -> Outcome:
    """Wait for a mover's end; `kill_after` seconds after it got ready, kill it."""
    deadline = child.began + END_SECONDS
    kill_at: float | None = None
    while True:
        now = time.monotonic()
        until = min(deadline, kill_at or deadline)
        if now >= until:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            if now >= deadline:
                os.waitpid(child.pid, 0)
                where = child.log.read_text(errors="replace")[-LOG_TAIL:]
                return Outcome("bug", message=f"no end after {END_SECONDS} s\n{where}", seconds=now - child.began)
            kill_at = deadline
            continue
        if select.select([child.pipe], [], [], until - now)[0]:
            data = os.read(child.pipe, 1 << 16)
            if not data:
                break
            child.data += data
            if kill_after is not None and kill_at is None and b"ready" in child.data:
                kill_at = time.monotonic() + kill_after
    os.close(child.pipe)
    _, status = os.waitpid(child.pid, 0)
    seconds = time.monotonic() - child.began
    said = [json.loads(line) for line in child.data.splitlines() if b"ending" in line or b"dying" in line]
    news = said[-1] if said else {}
    calls = tuple((work, name) for work, name in news.get("calls", ()))
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        at = tuple(news["dying"]) if "dying" in news else None
        return Outcome("killed", calls, at, seconds=seconds)
    if "ending" not in news:
        return Outcome("bug", message=f"ended with status {status} and said nothing", seconds=seconds)
    return Outcome(news["ending"], calls, None, news.get("message", ""), seconds)
