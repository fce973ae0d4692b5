"""Estimates: what is learnt from past moves, what stands in before there are any, and that the money adds up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from tests.builders import NOW, dataset, residence
from tests.strategies import ledgers
from tiering.model import Dataset, Prices, Residence, Span, StorageClass, Tier, Transition
from tiering.plan.estimates import GIB, Estimate, Estimator, Sample, learn
from tiering.plan.lifecycle import plan_moves

PRICES = Prices(
    gib_month=(("hot", 0.25), ("warm", 0.1), ("STANDARD", 0.02), ("STANDARD_IA", 0.01), ("GLACIER_IR", 0.004)),
    put_thousand=5.0,
    get_thousand=1.0,
    currency="EUR",
)
PLAIN = Estimator(PRICES)
BARS = dataset(storage=((StorageClass.STANDARD_IA, Span(months=36)),))


def estimate(home: Residence, by: Estimator = PLAIN, of: Dataset = BARS) -> Estimate:
    (move,) = plan_moves(of, [home], NOW, NOW).moves
    return by.estimate(of, home, move, NOW)


def sample(step: Transition, size: int, seconds: float, after: int = 0, of: str = "market_bars") -> Sample:
    return Sample(of, step, size, after, {"seal": 0.25 * seconds, "copy": 0.5 * seconds, "commit": 0.25 * seconds})


@pytest.mark.parametrize(
    ("home", "places", "shrunk", "once"),
    [
        (residence("2026-06-20"), ("hot", "warm"), 1.0, 0.0),
        (residence("2026-06-20", Tier.WARM), ("warm", "warm"), 0.25, 0.0),
        (residence("2024-01-05", Tier.WARM), ("warm", "STANDARD"), 0.3, 0.03),
        (residence("2023-01-05", Tier.COLD), ("STANDARD", "STANDARD_IA"), 1.0, 0.006),
        (residence("2016-01-05", Tier.COLD), ("STANDARD", ""), 0.0, 0.024),
    ],
)
def test_places_sizes_and_money_of_each_transition(
    home: Residence, places: tuple[str, str], shrunk: float, once: float
) -> None:
    found = estimate(replace(home, size_bytes=GIB))
    assert (found.place_before, found.place_after) == places
    assert found.size_after == int(GIB * shrunk)
    prices = dict(PRICES.gib_month)
    assert found.month_before == pytest.approx(prices[places[0]])
    assert found.month_after == pytest.approx(prices.get(places[1], 0.0) * shrunk)
    assert found.once == pytest.approx(once)


def test_before_any_history_a_stated_default_stands_in() -> None:
    cold = estimate(residence("2024-01-05", Tier.WARM, size_bytes=50_000_000))
    assert cold.seconds == 5.0
    assert "no past move" in cold.basis
    assert estimate(residence("2026-06-20", size_bytes=50_000_000)).seconds == 0.1, "no row is read in one database"
    two = Estimator(PRICES, is_one_database=False)
    assert estimate(residence("2026-06-20", size_bytes=50_000_000), two).seconds == 5.0


def test_seconds_locks_and_sizes_are_learnt_from_the_larger_moves() -> None:
    step = Transition.WARM_TO_COLD
    small = [sample(step, 1_000, 0.5, 900) for _ in range(3)]
    large = [sample(step, 40_000_000, 2.0, 8_000_000) for _ in range(4)]
    by = Estimator(PRICES, learn([*small, *large]))
    found = estimate(residence("2024-01-05", Tier.WARM, size_bytes=100_000_000), by)
    assert (found.seconds, found.size_after) == (5.0, 20_000_000)
    assert found.lock_seconds == 1.0
    assert found.basis == "7 past moves of market_bars"
    tiny = estimate(residence("2024-01-05", Tier.WARM, size_bytes=10), by)
    assert tiny.seconds == 0.5, "no move is quicker than the quickest"


def test_another_dataset_s_past_is_better_than_none() -> None:
    by = Estimator(PRICES, learn([sample(Transition.WARM_TO_COLD, 10_000_000, 1.0, of="index_bars")]))
    found = estimate(residence("2024-01-05", Tier.WARM, size_bytes=20_000_000), by)
    assert (found.seconds, found.basis) == (2.0, "1 past move of other datasets")


def test_files_pay_a_request_for_every_object() -> None:
    charts = dataset(name="charts", hot="s3", warm="s3", storage=((StorageClass.STANDARD_IA, Span(months=1)),))
    home = replace(residence("2026-05-05"), row_count=2000)
    home = replace(home, unit=replace(home.unit, dataset="charts"))
    found = estimate(home, of=charts)
    assert found.once == pytest.approx(2 * (5.0 + 1.0))
    assert (found.place_before, found.place_after) == ("STANDARD", "STANDARD_IA")


def test_what_has_no_price_costs_nothing_and_breaks_nothing() -> None:
    found = estimate(residence("2024-01-05", Tier.WARM), Estimator(Prices()))
    assert (found.month_before, found.month_after, found.once) == (0.0, 0.0, 0.0)


@given(ledgers())
def test_the_sums_are_those_of_the_units(ledger: tuple[Dataset, list[Residence]]) -> None:
    of, homes = ledger
    moves = plan_moves(of, homes, NOW, NOW).moves
    by_begin = {home.unit.begin: home for home in homes}
    found = [PLAIN.estimate(of, by_begin[move.unit.begin], move, NOW) for move in moves]
    totals = PLAIN.total([(of, home) for home in homes], found)
    assert sum(place.units_before for place in totals.places) == sum(home.tier is not Tier.EXPIRED for home in homes)
    assert sum(place.bytes_before for place in totals.places) == sum(
        home.size_bytes for home in homes if home.tier is not Tier.EXPIRED
    )
    change = sum(one.month_after - one.month_before for one in found)
    assert totals.month_after - totals.month_before == pytest.approx(change, abs=1e-9)
    assert (totals.moves, totals.currency) == (len(moves), "EUR")
    assert totals.seconds == pytest.approx(sum(one.seconds for one in found))
    assert all(one.seconds > 0 and one.lock_seconds > 0 for one in found)
