"""How long a drill of tier 1 takes: choose, restore, verify, ask, at three recovery points, on the demo's data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from infra.local import Stack
from tests.bench.ground import Ground
from tests.bench.rows import Group, Row, at_most
from tests.ops.drill_world import open_drill_world
from tiering.model_drill import Incident
from tiering.ops.drill import run_drill
from tiering.ops.seed import Scale
from tiering.plan.drill_report import codes_of

SECONDS_MAX = 120.0
SYMBOLS, DAYS = 20, 4
"""As the demo has them."""


def run(ground: Ground) -> Iterator[Row]:
    """Drill on a stack of its own, since a drill needs every store."""
    ground.say(f"a tier-1 drill on {SYMBOLS} symbols, {DAYS} days per age range")
    scale = Scale(symbols=SYMBOLS, days=DAYS, seed=20)
    with Stack(ground.directory / "drill-stack") as stack, open_drill_world(stack, scale) as world:
        world.beat_on(10)
        report = run_drill(world.kit(), 1, Incident.COMPLETE_OUTAGE, seed=20)
    took = (report.ended_at - report.began_at).total_seconds()
    first = max((one.rto.total_seconds() for one in report.measured if one.rto), default=0.0)
    told = "passed" if report.passed else f"FAILED: {', '.join(codes_of(report))}"
    note = f"{told}; RTO {first:.0f} s of 900 s with 60 s of detection in it; then a random and the oldest point"
    row = at_most("backup.drill_tier1_seconds", "s", took, SECONDS_MAX, note, None, "promised RTO 900 s")
    yield row if report.passed else replace(row, ok=False)


GROUPS = (Group(("backup.drill_tier1_seconds",), run),)
