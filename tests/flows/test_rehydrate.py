"""The flows that join lake files and bring cold rows back, on a real Prefect server."""

from __future__ import annotations

from flows.compact import compact
from flows.lifecycle import hot_to_warm, warm_to_cold
from flows.rehydrate import rehydrate
from tests.flows.world import artifact, ask, run
from tests.ops.world import World, days_ago

BARS = "market_bars"


def test_cold_days_are_joined_and_brought_back(world: World) -> None:
    for age in (802, 801, 0):
        world.insert_day(days_ago(age))
    for flow in (hot_to_warm, warm_to_cold):
        assert run(flow, dataset=BARS).message == "2 units done"
    assert run(compact, dataset=BARS, dry_run=True).message == "2 files would become 1"
    assert run(compact, dataset=BARS).message == "2 files became 1"
    assert [row["files"] for row in artifact("compact-all")] == [2]
    bring = {"dataset": BARS, "begin": days_ago(802), "end": days_ago(800), "keep_for": "3d"}
    assert run(rehydrate, **bring).message == "2 units are readable in the warm tier"
    assert [row["state"] for row in artifact("rehydrate-market-bars")] == ["copied", "copied"]
    assert run(rehydrate, **bring).message == "2 units are readable in the warm tier"
    assert [row["state"] for row in artifact("rehydrate-market-bars")] == ["extended", "extended"]
    assert ask(world, "SELECT count(*) FROM live.market_bars") == [(180,)]
