"""What planning costs: ten thousand units of one dataset, a thousand of them partitions of the hot table."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from datetime import timedelta
from statistics import median

from tests.bench.ground import Ground, lay_out
from tests.bench.rows import Group, Row, at_most
from tests.bench.world import DATASET, DAY, NOW, opened
from tiering.model import Dataset
from tiering.ops import install, plans
from tiering.stores.opening import Stores
from tiering.stores.postgres import execute

DATABASE = "bench_plan"
UNITS, HOT_UNITS = 10_000, 1_000
SECONDS_MAX = 1.0
COLUMNS = 11
"""Fingerprinted columns of every unit in the ledger, as bars have them."""


def run(ground: Ground) -> Iterator[Row]:
    """Lay out the units, then plan them: survey, verdict and reasons of each, and the estimates of every move."""
    settings = ground.create(DATABASE)
    with opened(settings, DAY) as (stores, dataset):
        lay_out(stores, dataset)
        ground.say(f"{UNITS:,} units, {HOT_UNITS:,} of them hot")
        lay_out_units(stores, dataset)
        ground.settle()
        took, surveys, memory = [], [], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(ground.repeats + 1):
            began = time.perf_counter()
            planned = plans.make(stores, [dataset], NOW)
            took.append(time.perf_counter() - began)
            surveys.append(planned.survey_seconds)
        (plan,) = planned.plans
        assert len(plan.moves) + len(plan.stays) == UNITS, (len(plan.moves), len(plan.stays))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
        note = (
            f"median of {ground.repeats}: {len(plan.moves):,} moves with estimates and {len(plan.stays):,} reasons; "
            f"{median(surveys[1:]):.3f} s of it reading; {memory / 1024:.0f} MB more"
        )
        yield at_most("plan_10000_units_seconds", "s", median(took[1:]), SECONDS_MAX, note, None, "")
    ground.drop(DATABASE)


def lay_out_units(stores: Stores, dataset: Dataset) -> None:
    """Make the hot units as tables with a row each, and all older ones as the ledger would have recorded them."""
    today = NOW.replace(hour=0)
    days = [today - timedelta(days=number) for number in range(1, HOT_UNITS)]
    install.create_units(stores, dataset, [(day, day + timedelta(days=1)) for day in days])
    with stores.hot.transaction("fill", "hot units") as connection:
        execute(
            connection,
            f"""INSERT INTO hot.{DATASET} SELECT 'A', 'CN', '1m', day, 1, 1, 1, 1, 1, 1, 'bench'
                FROM unnest(%s::timestamptz[]) day""",
            (days,),
        )
    prints = [[f"column_{number}", 240_000, "0123456789abcdef"] for number in range(COLUMNS)]
    with stores.warm.transaction("fill", "ledger") as connection:
        execute(
            connection,
            """INSERT INTO tiering.unit (dataset, begin_at, end_at, generation, tier, location, is_compressed,
                                         row_count, size_bytes, fingerprint)
               SELECT %(dataset)s, day, day + interval '1 day', 1 + n %% 2,
                      CASE WHEN n < 1500 THEN 'warm' WHEN n < 4500 THEN 'cold' ELSE 'expired' END,
                      'somewhere/' || n, n %% 3 > 0, 240000, 30000000,
                      jsonb_build_object('rows', 240000, 'columns', %(prints)s::jsonb)
               FROM generate_series(%(first)s, %(last)s) n, LATERAL (SELECT %(today)s - n * interval '1 day') d(day)""",
            {
                "dataset": DATASET,
                "prints": str(prints).replace("'", '"'),
                "first": HOT_UNITS,
                "last": UNITS - 1,
                "today": today,
            },
        )


GROUPS = (Group(("plan_10000_units_seconds",), run),)
