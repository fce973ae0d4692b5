"""The demo: market data's whole life through Prefect deployments, on servers of its own: `python -m deployments.demo`.

Brings everything up in `build/demo`, seeds history, loads a real index series, runs every transition, makes trouble
(late rows, a bad unit, a legal hold), then proves that every row is still there and the same, and stops everything.
The last line is `demo: OK`, or `demo: FAILED` with the reason.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from rich.console import Console

from deployments import bringup, demo_report
from infra.local import Stack, find_given_services
from infra.local.processes import is_running
from tiering.errors import TieringError

SEED = 2026
SYMBOLS, DAYS = 20, 4
PLACE = bringup.PROJECT / "build" / "demo"
ROUND = ("hot-to-warm", "compress", "warm-to-cold", "expire")
SERIES = {"^GSPC": "sp500", "^IXIC": "nasdaq"}
LATE_ROWS = 25

out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@dataclass
class Demo:
    """What the steps share: open stores, the one instant, and what was seen so far."""

    stores: Any
    now: datetime
    api_url: str
    report: demo_report.Report


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deployments.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave servers and data up; `--stop` ends them")
    parser.add_argument("--stop", action="store_true", help="only stop what an earlier `--keep` left")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    began = time.monotonic()
    failure = ""
    try:
        if options.stop:
            bringup.down(PLACE / "stack", _say)
            return 0
        _demo()
    except (demo_report.Broken, TieringError) as exc:
        failure = " ".join(str(exc).split())
    except KeyboardInterrupt:
        failure = "interrupted"
    except Exception as exc:  # said in the one line that everybody looks at; the traceback is for the rest of us
        out.print_exception()
        failure = f"{type(exc).__name__}: {exc}"
    finally:
        if not options.keep and not options.stop:
            _stop(keep_data=bool(failure))
    out.print(f"\nwhole demo: {time.monotonic() - began:.0f} s")
    print(f"demo: FAILED {failure}" if failure else "demo: OK", flush=True)
    return 1 if failure else 0


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _say(name: str, news: str) -> None:
    out.print(f"  {name}: {news}", markup=False, style="dim")


@contextmanager
def _step(title: str) -> Iterator[None]:
    out.print(f"\n[bold]== {title}[/bold]")
    began = time.monotonic()
    yield
    out.print(f"   {time.monotonic() - began:.1f} s", style="dim")


def _stop(*, keep_data: bool) -> None:
    """Stop every server, whatever happened; data and logs stay only after a failure."""
    if not PLACE.exists():
        return
    out.print("\n[bold]== stopping everything[/bold]")
    # A second Ctrl-C must not leave servers behind.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    bringup.down(PLACE / "stack", _say)
    if keep_data:
        out.print(f"   data and logs are kept in {PLACE}")
    else:
        shutil.rmtree(PLACE, ignore_errors=True)


def _demo() -> None:
    if given := find_given_services():
        # It plants bad rows and expires old ones: not on servers that hold somebody's data.
        raise demo_report.Broken(
            f"the environment names servers of your own ({', '.join(sorted(given))}): unset TIERING_*_URL"
        )
    with _step("bringing servers, Prefect, deployments and worker up"):
        stack = _bring_up()
    from tiering.plan.policies import parse_policies
    from tiering.stores.opening import open_stores

    policies = PLACE / "deployments" / "policies.yaml"
    with open_stores(stack.settings(), parse_policies(policies.read_text(encoding="utf-8"), str(policies))) as stores:
        now = datetime.now(UTC).replace(second=0, microsecond=0)
        api_url = bringup.client_environment(stack)["PREFECT_API_URL"]
        demo = Demo(stores, now, api_url, demo_report.Report(out))
        _tell_story(demo)
        demo.report.show()


def _bring_up() -> Stack:
    stack_directory = PLACE / "stack"
    if stack_directory.exists():
        bringup.down(stack_directory, _say)
        shutil.rmtree(PLACE)
    (PLACE / "deployments").mkdir(parents=True)
    shutil.copy(bringup.PROJECT / "prefect.yaml", PLACE)
    for file in (bringup.PROJECT / "deployments").glob("*.yaml"):
        shutil.copy(file, PLACE / "deployments")
    # Any free port, not 4200: that is for `make up`, which may be running or just starting.
    Stack(stack_directory).state.port(bringup.SERVER)
    timings = bringup.up(stack_directory, PLACE, _say)
    out.print(
        f"   servers {timings.stack_s} s, Prefect server {timings.server_s} s, "
        f"deployments {timings.deploy_s} s, worker {timings.worker_s} s"
    )
    stack = Stack(stack_directory)
    down = [name for name, process in stack.status().items() if process is None or not is_running(process)]
    if down:
        raise demo_report.Broken(f"not running: {', '.join(down)}")
    return stack


# -- the story --------------------------------------------------------------------------------------------------


def _tell_story(demo: Demo) -> None:
    from deployments import demo_data as data

    with _step("installing schemas, ledger and tables"):
        data.install(demo.stores, demo.now)
    with _step(f"seeding history in all age ranges: {SYMBOLS} symbols, {DAYS} days per range, seed {SEED}"):
        for seeded in data.seed(demo.stores, demo.now, SYMBOLS, DAYS, SEED):
            out.print(f"   {seeded.dataset}: {seeded.rows:,} rows in {seeded.units} units")
    with _step("loading daily S&P 500 and NASDAQ bars from 1999 on (package arch), digits as in the source"):
        source = data.load_series(demo.stores, SERIES, PLACE, demo.now)
        out.print(f"   index_bars: {len(source):,} rows; a bar of today keeps the series' clock going")
    with _step("planting trouble: a unit with a low above its high, a legal hold on a unit past its retention"):
        bad = data.plant_bad_unit(demo.stores, demo.now)
        held = data.hold_oldest(demo.stores, demo.now, "demo: case 12/2026")
        out.print(f"   bad: {bad.name} · held: {held.name}")
    before = data.take_inventory(demo.stores)
    out.print(f"   inventory taken: {before.rows:,} rows of {len(before.groups)} days")

    for name in ROUND:
        _run(demo, name)
    data.demand_quarantined(demo.stores, bad, demo.now)
    data.demand_held(demo.stores, held, demo.now)
    out.print(f"   {bad.name} is in quarantine, the others went on; {held.name} is held, the others expired")

    with _step(f"{LATE_ROWS} rows come late for a warm and for a cold unit; the bad unit is released for a reason"):
        late = data.insert_late(demo.stores, demo.now, LATE_ROWS)
        out.print(f"   late for {', '.join(unit.name for unit in late)}")
        data.release(demo.stores, bad, "demo: the low is as the exchange sent it")
        expected = data.take_inventory(demo.stores)
    with _step("lifting the hold"):
        data.lift(demo.stores, held)
    for name in ("hot-to-warm", "compress", "expire"):
        _run(demo, name)
    data.demand_merged(demo.stores, late)
    data.demand_settled(demo.stores, demo.now)
    out.print(f"   {', '.join(unit.name for unit in late)} are generation 2 now; nothing more is due anywhere")

    later = demo.now + timedelta(days=3)  # past undo window and grace
    _run(demo, "sweep", at=later)

    with _step("asking the whole index series back and comparing it with its source"):
        count = data.demand_series(demo.stores, source)
        out.print(f"   {count:,} bars from the cold tier, equal to the source to the last digit")
    with _step("comparing every row that has not expired with the inventory"):
        kept, expired = data.demand_nothing_lost(demo.stores, before, expected)
        out.print(f"   {kept:,} rows there, each once and unchanged; {expired:,} expired by policy; 0 lost")
    with _step("checking ledger, PostgreSQL, Iceberg and bucket against each other, every byte"):
        out.print("   " + data.demand_sound(demo.stores, later))


def _run(demo: Demo, flow: str, at: datetime | None = None) -> None:
    """Run a deployment as its schedule would, wait, and note what it did."""
    from prefect.deployments import run_deployment
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from deployments import demo_data as data

    name = f"{flow}/{'all' if flow == 'sweep' else 'market-data'}"
    instant = at or demo.now
    with _step(f"prefect deployment run '{name}' --param at={instant:%Y-%m-%dT%H:%MZ}"):
        mark = data.database_time(demo.stores)
        began = time.monotonic()
        with temporary_settings({PREFECT_API_URL: demo.api_url}):
            run: Any = run_deployment(
                name, parameters={"at": instant.isoformat()}, timeout=240, poll_interval=0.5, as_subflow=False
            )
        wall = time.monotonic() - began
        state = run.state
        out.print(f"   {state.name}: {state.message or ''}", markup=False)
        if not state.is_completed():
            raise demo_report.Broken(f"{name} ended as {state.name}: {state.message}")
        started = run.start_time and (run.start_time - run.expected_start_time).total_seconds()
        demo.report.note(flow, data.receipts_since(demo.stores, mark), wall, max(0.0, started or 0.0))
        if flow == "sweep":
            demo.report.note_sweep(*data.swept_since(demo.stores, mark), wall - (started or 0.0))


if __name__ == "__main__":
    sys.exit(main())
