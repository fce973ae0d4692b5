"""Seeded history: the same for the same seed, in every tier's age range, and never twice."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tests.ops.world import NOW, World, open_world
from tiering.model import Form, Tier, Transition, Unit
from tiering.ops import install, lifecycle, plans
from tiering.ops.seed import Scale, seed, seed_dataset
from tiering.ops.seed_documents import load_documents, make_document
from tiering.plan import seeds
from tiering.settings import Settings
from tiering.stores.bson_encode import encode_documents
from tiering.stores.postgres import fetch

SMALL = Scale(symbols=3, days=2, seed=7)


@pytest.fixture
def world(fresh_settings: Settings) -> Iterator[World]:
    with open_world(fresh_settings) as opened:
        for dataset in opened.stores.policies.datasets:
            if dataset.state == "moves":
                install.install_dataset(opened.stores, dataset)
        yield opened


def test_history_covers_every_age_range_and_passes_every_checkpoint(world: World) -> None:
    seeded = {s.dataset: s for s in seed(world.stores, NOW, SMALL, data_class="market_data")}
    days = seeds.trading_days(world.dataset, NOW, SMALL.days)
    assert seeded["market_bars"].units == len(days) == 8
    assert seeded["financial_statements"].rows > 0
    assert seeded["technical_indicators"].rows > 0

    receipts = world.run()
    assert {r.transition for r in receipts} == {Transition.HOT_TO_WARM}
    assert not [r.problem for r in receipts if r.problem]
    then = world.run()
    assert {r.transition for r in then} == {Transition.COMPRESS, Transition.WARM_TO_COLD, Transition.EXPIRE}
    assert not [r.problem for r in then if r.problem]


def test_seeding_twice_adds_nothing_even_after_units_have_moved(world: World) -> None:
    first = seed(world.stores, NOW, SMALL, data_class="market_data")
    rows = world.rows()
    world.run()
    again = seed(world.stores, NOW, SMALL, data_class="market_data")
    assert {s.rows for s in again} == {0}
    assert [s.units_left_alone for s in again] == [s.units for s in first]
    assert world.rows() == rows


@pytest.mark.parametrize("data_class", ["news_data", "social_data", "analysis_results", "user_data", "audit_logs"])
def test_every_class_is_seeded_in_every_age_range_and_moves_to_where_it_belongs(world: World, data_class: str) -> None:
    # The real now: an object store refuses a lock that ended before its own clock's.
    now, small = datetime.now(UTC), Scale(symbols=3, days=1, seed=7)

    def seed_again() -> int:
        return sum(s.rows for s in seed(world.stores, now, small, data_class=data_class))

    seeded = {s.dataset: s for s in seed(world.stores, now, small, data_class=data_class)}
    datasets = world.stores.policies.of_class(data_class)
    assert seeded.keys() == {d.name for d in datasets}
    assert all(s.rows >= s.units >= 4 for s in seeded.values())
    assert seed_again() == 0
    for dataset in datasets:
        receipts = [r for _ in range(3) for r in World(world.stores, dataset, now).run()]
        assert not [r.problem for r in receipts if r.problem]
        moved = {Transition.HOT_TO_WARM, Transition.WARM_TO_COLD}
        moved = {Transition.ARCHIVE} if dataset.form is Form.FILES else moved
        assert {r.transition for r in receipts} == moved | {Transition.EXPIRE}, dataset.name
        homes, _ = lifecycle.survey(world.stores, dataset)
        assert {home.tier for home in homes} == {Tier.HOT, Tier.WARM, Tier.COLD, Tier.EXPIRED}, dataset.name
    assert seed_again() == 0


def test_documents_have_the_drift_that_the_platform_has(world: World) -> None:
    dataset = lifecycle.dataset_named(world.stores, "news")
    unit = Unit("news", NOW - timedelta(days=3), NOW - timedelta(days=2))
    made = [make_document(dataset, unit, n, NOW, (20, 20), 7) for n in range(100)]
    assert made == [make_document(dataset, unit, n, NOW, (20, 20), 7) for n in range(100)]
    assert len({d["_id"] for d in made}) == 100
    assert {type(d.get("sentiment_score")) for d in made} == {str, int, float, Decimal, type(None)}
    undated = [d for d in made if isinstance(d["publish_time"], str)]
    assert len(undated) == 2
    assert load_documents(world.stores, dataset, unit, NOW, (20, 20), 7) == 10
    (note,) = plans.notes_of(world.stores, dataset)
    assert (note.code, note.text.split()[0]) == ("undated", "1")
    sizes = [len(encode_documents([d]).document(0)) for d in made]
    assert 1_000 < sum(sizes) / len(sizes) < 5_000
    reports = lifecycle.dataset_named(world.stores, "research_reports")
    report = encode_documents([make_document(reports, unit, 0, NOW, (3, 3), 7)])
    assert 15_000 < report.size_bytes < 90_000


def test_state_tables_are_filled_and_never_move(world: World) -> None:
    seed(world.stores, NOW, SMALL, data_class="user_data")
    with world.stores.hot.transaction("count", "state tables") as connection:
        for table in ("user_configurations", "positions", "alert_triggers"):
            (count,) = fetch(connection, f"SELECT count(*) FROM hot.{table}")[0]
            assert count >= SMALL.users, table


def test_the_same_seed_makes_the_same_rows_and_another_seed_others(world: World) -> None:
    def hashed(seed_number: int) -> tuple[object, ...]:
        with world.stores.hot.transaction("empty", "bars") as connection, connection.cursor() as cursor:
            cursor.execute("TRUNCATE hot.market_bars")
        seed_dataset(world.stores, "market_bars", NOW, Scale(symbols=2, days=1, seed=seed_number))
        with world.stores.hot.transaction("hash", "bars") as connection:
            return fetch(connection, "SELECT count(*), md5(string_agg(b::text, '' ORDER BY b)) FROM hot.market_bars b")[
                0
            ]

    assert hashed(1) == hashed(1)
    assert hashed(1) != hashed(2)


def test_rows_say_how_much_at_least(world: World) -> None:
    seeded = seed_dataset(world.stores, "market_bars", NOW, Scale(symbols=5, rows=20_000))
    assert seeded.rows >= 15_600, "the newest session is cut at now"


def test_a_scale_of_nothing_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        seed(world.stores, NOW, Scale(symbols=0))
