"""Drills on a platform in small: they pass when all is well, name what is not, and show no secret."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra.local import Stack
from tests.faults.drill_defects import DEFECTS, Defect
from tests.faults.drills import judge_planted, run_planted
from tests.ops.drill_world import KEY, DrillWorld, open_drill_world
from tiering.model_drill import Incident, Pick
from tiering.ops.drill import run_drill
from tiering.ops.recoverers import Restored
from tiering.plan.drill_report import codes_of, document_of, markdown_of
from tiering.stores.postgres import Postgres, execute, fetch

SAMPLE = ("missing WAL object", "flipped byte in the base", "wrong slot map")


@pytest.fixture(scope="module")
def world() -> Iterator[DrillWorld]:
    with tempfile.TemporaryDirectory(prefix="tiering-drill-") as temporary:
        directory = Path(temporary)
        directory.chmod(0o711)
        with Stack(directory / "stack") as stack, open_drill_world(stack) as opened:
            opened.beat_on(6)
            yield opened


def test_tier_1_comes_back_within_its_objectives_and_no_secret_is_seen(
    world: DrillWorld, caplog: pytest.LogCaptureFixture
) -> None:
    canaries = [KEY, *(world.stack.state.secret(name) for name in ("postgres", "redis", "mongo"))]
    seen: set[bytes] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(file.read_bytes())
                except OSError:
                    continue

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    with caplog.at_level(logging.DEBUG):
        report = run_drill(world.kit(), 1, Incident.COMPLETE_OUTAGE, seed=11)
    over.set()
    watcher.join()
    assert report.passed, markdown_of(report)
    assert [point.pick for point in report.points][:1] == [Pick.LATEST]
    assert len(report.points) == 3
    assert report.common_seq > 0
    assert (report.ended_at - report.began_at).total_seconds() <= 120
    told = caplog.text + markdown_of(report) + repr(document_of(report)) + b" ".join(seen).decode("utf-8", "replace")
    assert len(seen) > 20
    assert [canary for canary in canaries if canary in told] == []


def test_a_corruption_is_found_by_restoring_and_the_last_good_moment_comes_back(world: DrillWorld) -> None:
    world.beat_on(3)
    with world.stores.hot.transaction("corrupt", "positions") as connection:
        before = fetch(connection, "SELECT count(*), clock_timestamp() FROM hot.positions")[0]
        execute(connection, "UPDATE hot.positions SET quantity = -1")
    world.beat_on(4)
    opened: list[int] = []

    def is_good(restored: Restored) -> bool:
        url = restored.url.get_secret_value() + "trading"
        database = Postgres(type(restored.url)(url), "restored")
        try:
            with database.transaction("check", "positions", read_only=True) as connection:
                bad = fetch(connection, "SELECT count(*) FROM hot.positions WHERE quantity < 0")[0][0]
                opened.append(bad)
                return bool(bad == 0)
        finally:
            database.close()

    report = run_drill(world.kit(), 1, Incident.DATA_CORRUPTION, seed=5, check=is_good)
    assert report.passed, markdown_of(report)
    latest = report.points[0].at
    assert latest <= before[1]
    assert (before[1] - latest).total_seconds() <= 2.5, "good rows were given up"
    assert opened[0] == before[0], "the newest restore has the corruption"
    assert 0 in opened
    assert "restores" in report.notes[0]


def test_an_assumed_corruption_is_cut_off_exactly(world: DrillWorld) -> None:
    report = run_drill(world.kit(), 1, Incident.DATA_CORRUPTION, seed=8)
    assert report.passed, markdown_of(report)
    assert "corruption was assumed from heartbeat" in report.notes[0]


@pytest.mark.parametrize("defect", [d for d in DEFECTS if d.name in SAMPLE], ids=lambda d: d.name.replace(" ", "-"))
def test_a_planted_defect_fails_the_drill_by_its_name(world: DrillWorld, defect: Defect) -> None:
    report = run_planted(world, defect, seed=3)
    assert judge_planted(defect, report) == "", markdown_of(report)


def test_a_drill_without_any_backup_says_so_and_ends(world: DrillWorld) -> None:
    kit = replace(world.kit(), recoverers=())
    report = run_drill(kit, 3, Incident.COMPLETE_OUTAGE, seed=1, incident_at=datetime.now(UTC))
    missing = {defect.subject for defect in report.defects if defect.code == "missing_backup"}
    assert not report.passed
    assert {"configuration", "lake", "application_data", "postgresql", "mongodb"} <= missing
    assert "not_recovered" in codes_of(report)
