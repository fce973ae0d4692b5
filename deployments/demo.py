"""The demo: all six data classes' whole life through Prefect deployments, on servers of its own:
`python -m deployments.demo`.

Brings everything up in `build/demo`, seeds history, loads a real index series, runs every transition, makes trouble
(late rows and documents, bad units, a legal hold), then proves that every row and document is still there and the
same, erases one user, and stops everything.
The last line is `demo: OK`, or `demo: FAILED` with the reason.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
MARKET = "market-data"
OTHERS = ("news-data", "social-data", "analysis-results", "user-data", "audit-logs")
# Runs of a wave go side by side, as schedules do; a wave waits for the one before it.
WAVES = (
    [("hot-to-warm", name) for name in (MARKET, *OTHERS)],
    [("compress", MARKET), *(("warm-to-cold", name) for name in OTHERS)],
    [("warm-to-cold", MARKET), ("archive", "all")],
    [("expire", name) for name in (MARKET, *OTHERS)],
)
RELEASED = (
    [("hot-to-warm", MARKET), ("hot-to-warm", "news-data")],
    [("compress", MARKET), ("expire", MARKET)],
)
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
        _survive(demo, stack, policies.read_text(encoding="utf-8"))
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
    from deployments import demo_classes as classes
    from deployments import demo_data as data

    with _step("installing schemas, ledger and tables"):
        data.install(demo.stores, demo.now)
    with _step(f"seeding history in all age ranges: {SYMBOLS} symbols, {DAYS} days per range, seed {SEED}"):
        for seeded in data.seed(demo.stores, demo.now, SYMBOLS, DAYS, SEED):
            out.print(f"   {seeded.dataset}: {seeded.rows:,} rows in {seeded.units} units")
    with _step("loading daily S&P 500 and NASDAQ bars from 1999 on (package arch), digits as in the source"):
        source = data.load_series(demo.stores, SERIES, PLACE, demo.now)
        out.print(f"   index_bars: {len(source):,} rows; a bar of today keeps the series' clock going")
    with _step("planting trouble: a low above its high, a sentiment of 7.5, a legal hold on a unit past its retention"):
        bad = data.plant_bad_unit(demo.stores, demo.now)
        bad_news = classes.plant_bad_news(demo.stores, demo.now)
        held = data.hold_oldest(demo.stores, demo.now, "demo: case 12/2026")
        out.print(f"   bad: {bad.name}, {bad_news.name} · held: {held.name}")
        before = data.take_inventory(demo.stores)
        out.print(f"   inventory taken: {before.rows:,} rows and documents of {len(before.groups):,} hours")

    for wave in WAVES:
        _run(demo, wave)
    data.demand_quarantined(demo.stores, {bad: "low", bad_news: "sentiment"})
    data.demand_held(demo.stores, held, demo.now)
    out.print(f"   {bad.name} and {bad_news.name} are in quarantine, the others went on; {held.name} is held")

    with _step(f"{LATE_ROWS} rows and a document come late for warm and cold units; the bad ones are released"):
        late = [*data.insert_late(demo.stores, demo.now, LATE_ROWS), classes.insert_late_news(demo.stores)]
        out.print(f"   late for {', '.join(unit.name for unit in late)}")
        data.release(demo.stores, bad, "demo: the low is as the exchange sent it")
        data.release(demo.stores, bad_news, "demo: the scale is another one")
        expected = data.take_inventory(demo.stores)
        data.lift(demo.stores, held)
        out.print(f"   the hold on {held.name} is lifted")
    for wave in RELEASED:
        _run(demo, wave)
    data.demand_merged(demo.stores, late)
    data.demand_settled(demo.stores, demo.now)
    out.print(f"   {', '.join(unit.name for unit in late)} are generation 2 now; nothing more is due anywhere")

    later = demo.now + timedelta(days=3)  # past undo window and grace
    _run(demo, [("sweep", "all")], at=later)

    with _step("asking the whole index series back and comparing it with its source"):
        count = data.demand_series(demo.stores, source)
        out.print(f"   {count:,} bars from the cold tier, equal to the source to the last digit")
    with _step("comparing every row and document that has not expired with the inventory, byte for byte"):
        kept, expired = data.demand_nothing_lost(demo.stores, before, expected)
        out.print(f"   {kept:,} there, each once and unchanged; {expired:,} expired by policy; 0 lost")
    with _step("one query over cold documents; locks and storage classes as the object store tells them"):
        out.print("   " + classes.ask_cold_news(demo.stores))
        out.print("   " + classes.demand_lock(demo.stores))
        out.print("   charts: " + classes.demand_classes(demo.stores))
    demo.report.show_classes(classes.table_of_classes(demo.stores))
    with _step(f"erasing {classes.PERSON} from every tier"):
        for told in classes.erase_person(demo.stores, later):
            out.print("   " + told)
    with _step("checking ledger, PostgreSQL, MongoDB, Iceberg and bucket against each other, every byte"):
        out.print("   " + data.demand_sound(demo.stores, later))


def _survive(demo: Demo, stack: Stack, policies: str) -> None:
    """Back up, corrupt a row and bring it back, drill the loss of tier 1."""
    from deployments import demo_recovery as recovery

    with recovery.guarded(demo.stores, stack.settings(), policies) as guard:
        with _step("backing every store up: encrypted, hashed, from then on with every change"):
            for told in recovery.back_up(guard):
                out.print("   " + told)
        with _step("corrupting a row, bringing the moment before back, repairing it from there"):
            for told in recovery.corrupt_and_restore(guard):
                out.print("   " + told)
        with _step("prefect deployment run dr-drill/tier-1: from the backup bucket and its key alone"):
            guard.beat_on(2)
            _run_one(demo, "dr-drill/tier-1", datetime.now(UTC))
            out.print("   " + recovery.evidence_of(guard))


def _run(demo: Demo, wave: Sequence[tuple[str, str]], at: datetime | None = None) -> None:
    """Run deployments as their schedules would, side by side, wait for all, and note what they did."""
    from deployments import demo_data as data

    instant = at or demo.now
    names = [f"{flow}/{name}" for flow, name in wave]
    with _step(f"prefect deployment run --param at={instant:%Y-%m-%dT%H:%MZ} {' · '.join(names)}"):
        mark = data.database_time(demo.stores)
        with ThreadPoolExecutor(len(names)) as pool:
            ended = list(pool.map(lambda name: _run_one(demo, name, instant), names))
        receipts = data.receipts_since(demo.stores, mark)
        demo.report.note(receipts)
        for (flow, _), (wall, started) in zip(wave, ended, strict=True):
            demo.report.note_run(flow, wall, started)
            if flow == "sweep":
                demo.report.note_sweep(*data.swept_since(demo.stores, mark), wall - started)


def _run_one(demo: Demo, name: str, instant: datetime) -> tuple[float, float]:
    """Run one deployment; return seconds from submit to end, and from submit to its first line."""
    from prefect.deployments import run_deployment
    from prefect.settings import PREFECT_API_URL, temporary_settings

    began = time.monotonic()
    with temporary_settings({PREFECT_API_URL: demo.api_url}):
        # What has files; the others have no storage classes in the policy, and looking at each takes a second.
        given = {"data_class": "analysis_results"} if name == "archive/all" else {}
        run: Any = run_deployment(
            name, parameters={"at": instant.isoformat(), **given}, timeout=240, poll_interval=0.5, as_subflow=False
        )
    wall, state = time.monotonic() - began, run.state
    out.print(f"   {name}: {state.name}: {state.message or ''}", markup=False)
    if not state.is_completed():
        raise demo_report.Broken(f"{name} ended as {state.name}: {state.message}")
    started = run.start_time and (run.start_time - run.expected_start_time).total_seconds()
    return wall, max(0.0, started or 0.0)


if __name__ == "__main__":
    sys.exit(main())
