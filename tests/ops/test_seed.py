"""Seeded history: the same for the same seed, in every tier's age range, and never twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ops.world import NOW, World, open_world
from tiering.model import Transition
from tiering.ops import install
from tiering.ops.seed import Scale, seed, seed_dataset
from tiering.plan import seeds
from tiering.settings import Settings
from tiering.stores.postgres import fetch

SMALL = Scale(symbols=3, days=2, seed=7)


@pytest.fixture
def world(fresh_settings: Settings) -> Iterator[World]:
    with open_world(fresh_settings) as opened:
        for name in ("technical_indicators", "financial_statements"):
            dataset = opened.stores.policies.dataset(name)
            assert dataset is not None
            install.install_dataset(opened.stores, dataset)
        yield opened


def test_history_covers_every_age_range_and_passes_every_checkpoint(world: World) -> None:
    seeded = {s.dataset: s for s in seed(world.stores, NOW, SMALL)}
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
    first = seed(world.stores, NOW, SMALL)
    rows = world.rows()
    world.run()
    again = seed(world.stores, NOW, SMALL)
    assert [s.rows for s in again] == [0, 0, 0]
    assert [s.units_left_alone for s in again] == [s.units for s in first]
    assert world.rows() == rows


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
