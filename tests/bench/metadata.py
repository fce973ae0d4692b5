"""What must not cost more for more rows: handing a unit over in one database, and ending its life."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from tests.bench import bars
from tests.bench.ground import OLD, Ground, fill, lay_out, reach
from tests.bench.rows import Group, Row, flat
from tests.bench.world import DATASET, DAY, NOW, begin, carry_out, opened
from tiering.model import Receipt, Span, Transition, Unit
from tiering.ops import checkpoints
from tiering.plan.spans import add, unit_of
from tiering.stores import pgcopy

DATABASE = "bench_metadata"
UNITS = 8
"""Of each size, in turn."""

WARM_UNITS = UNITS // 2
"""Of each size: those that expire from the warm tier; the others go to the lake first."""

SMALL_SHARE = 40
"""A unit of 1× has a fortieth of the bench's rows, one of 10× a quarter."""

GROWTH_MAX = 1.5
STAGES = ("seal", "copy", "verify", "commit")


def run(ground: Ground) -> Iterator[Row]:
    """Load units of two sizes in turn, hand them over, send the older half to the lake, and let all expire."""
    settings = ground.create(DATABASE)
    minutes = min(144, max(1, ground.rows // SMALL_SHARE // bars.SYMBOLS))
    sizes = f"{minutes * bars.SYMBOLS:,} and {10 * minutes * bars.SYMBOLS:,} rows"
    pgcopy.warm_up()
    checkpoints.prepare()
    with opened(settings, DAY) as (stores, dataset):
        lay_out(stores, dataset)
        ground.say(f"{UNITS} units each of {sizes}")
        walk = bars.Walk(ground.seed)
        for number in range(2 * UNITS):
            day = OLD + timedelta(days=number)
            fill(stores, dataset, Unit(DATASET, *unit_of(day, DAY)), [walk.chunk(day, _size(number, minutes))])
        ground.settle()
        ground.say("metadata hand-over at 1x and 10x rows")
        handed = carry_out(stores, begin(stores, dataset, Transition.HOT_TO_WARM))
        note = f"seal and commit only, no row is read; median of {UNITS} units each of {sizes}"
        yield flat("handover_seconds_10x", *_by_size(handed, ("seal", "commit")), GROWTH_MAX, note)

        ground.say("expiry at 1x and 10x rows, from the lake and from the warm tier")
        old = begin(stores, dataset, Transition.WARM_TO_COLD, most=2 * (UNITS - WARM_UNITS))
        carry_out(stores, old)
        ground.settle()
        after = add(NOW, Span(months=12 * 10))
        reach(stores, dataset, after)
        expired = carry_out(stores, begin(stores, dataset, Transition.EXPIRE, after), after)
        cold, warm = expired[: len(old)], expired[len(old) :]
        note = f"the whole move, metadata only; median of {{}} units each of {sizes}"
        yield flat("expiry_seconds_10x", *_by_size(cold, STAGES), GROWTH_MAX, note.format(len(cold) // 2))
        yield flat("expiry_warm_seconds_10x", *_by_size(warm, STAGES), GROWTH_MAX, note.format(len(warm) // 2))
    ground.drop(DATABASE)


def _size(number: int, minutes: int) -> int:
    return minutes * (10 if number % 2 else 1)


def _by_size(receipts: Sequence[Receipt], stages: Sequence[str]) -> tuple[list[float], list[float]]:
    """Seconds of the small units and of the big ones, in the given stages."""
    seconds = [sum(took for stage, took in receipt.stage_seconds if stage in stages) for receipt in receipts]
    return seconds[::2], seconds[1::2]


GROUPS = (Group(("handover_seconds_10x", "expiry_seconds_10x", "expiry_warm_seconds_10x"), run),)
