"""Rules over numbers mean the same in PostgreSQL and over a batch of documents; bad documents are quarantined."""

from __future__ import annotations

import math

import psycopg2
import pyarrow as pa
import pytest
from psycopg2 import sql

from tests.ops.document_world import open_documents
from tests.ops.world import days_ago
from tiering.model import State, Transition
from tiering.ops import lifecycle
from tiering.ops.checkpoints import _broken_number
from tiering.ops.document_judge import _broken
from tiering.plan.checks import Must, Rule
from tiering.settings import Settings

VALUES = (-math.inf, -1.5, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.0000001, math.inf, math.nan, None)
BROKEN = {
    Must.SHARE: {-math.inf, -1.5, -1.0, -0.5, 1.0000001, math.inf, "nan"},
    Must.SCORE: {-math.inf, -1.5, 1.0000001, math.inf, "nan"},
    Must.FINITE: {-math.inf, math.inf, "nan"},
    Must.POSITIVE: {-math.inf, -1.5, -1.0, -0.5, -0.0, 0.0, math.inf, "nan"},
    Must.NON_NEGATIVE: {-math.inf, -1.5, -1.0, -0.5, math.inf, "nan"},
}


@pytest.mark.parametrize("must", BROKEN)
def test_sql_and_batches_judge_numbers_alike(settings: Settings, must: Must) -> None:
    rule = Rule("numbers", must, ("c",), "as it must")
    expected = [("nan" if value is not None and math.isnan(value) else value) in BROKEN[must] for value in VALUES]
    batches = [pa.record_batch({"c": pa.array([value], pa.float64())}) for value in VALUES]
    assert [bool(_broken(rule, batch)) for batch in batches] == expected
    condition = _broken_number(must, sql.Identifier("c"), False)
    assert condition is not None
    with psycopg2.connect(settings.warm_pg_url.get_secret_value()) as connection, connection.cursor() as cursor:
        statement = sql.SQL("SELECT coalesce({}, false) FROM (SELECT %s::double precision AS c) one").format(condition)
        found = []
        for value in VALUES:
            cursor.execute(statement, (value,))
            (is_broken,) = cursor.fetchone() or (None,)
            found.append(is_broken)
    connection.close()
    assert found == expected


def test_a_score_off_the_scale_quarantines_its_unit_and_no_other(fresh_settings: Settings) -> None:
    with open_documents(fresh_settings) as world:
        for days in (20, 21):
            world.insert(world.news(days_ago(days), 12, seed=days))
        bad = world.hot.find_one({"publish_time": {"$gte": days_ago(20), "$lt": days_ago(19)}})
        assert bad
        world.hot.update_one({"_id": bad["_id"]}, {"$set": {"sentiment_score": 7.5}})
        receipts = world.run(Transition.HOT_TO_WARM)
        assert {(r.unit.begin, r.state) for r in receipts} == {
            (days_ago(20), State.QUARANTINED),
            (days_ago(21), State.COMMITTED),
        }
        (stopped,) = [r for r in receipts if r.state is State.QUARANTINED]
        assert stopped.problem.startswith("sentiment_in_range: 1 break it")
        lifecycle.release(world.stores, stopped.unit, "test", "another scale")
        assert [r.state for r in world.run(Transition.HOT_TO_WARM)] == [State.COMMITTED]
        # Text where a number is declared is drift: counted, never a reason to stop.
        assert world.left(world.hot) == 0
