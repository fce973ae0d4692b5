"""Builders: realistic values with one thing changed, so that a test shows only what it is about."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from tiering.model import Dataset, Policy, Residence, Span, Tier, Unit
from tiering.plan.spans import unit_of

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
DAY = Span(days=1)
MARKET_DATA = Policy(
    name="market_data",
    hot_to_warm=Span(days=7),
    warm_to_cold=Span(months=24),
    compression=Span(days=7),
    retention=Span(months=120),
)
BAR_COLUMNS = ("symbol", "market", "timeframe", "ts", "open", "high", "low", "close", "volume", "amount", "source")


def policy(**changed: Any) -> Policy:
    """Market data's policy, but for what is named."""
    return replace(MARKET_DATA, **changed)


def dataset(**changed: Any) -> Dataset:
    """`market_bars` as the policy file declares it, but for what is named."""
    bars_dataset = Dataset(
        name="market_bars",
        policy=MARKET_DATA,
        hot="postgresql",
        warm="postgresql",
        time_column="ts",
        key=("symbol", "market", "timeframe", "ts", "source"),
        unit=DAY,
        suite="market_bars",
        sort=("symbol", "ts", "market", "timeframe", "source"),
    )
    return replace(bars_dataset, **changed)


def unit(
    day: str | datetime = "2024-01-05", *, dataset: str = "market_bars", length: Span = DAY, generation: int = 1
) -> Unit:
    """The unit that a day (or instant) falls into."""
    instant = datetime.fromisoformat(day).replace(tzinfo=UTC) if isinstance(day, str) else day
    begin, end = unit_of(instant, length)
    return Unit(dataset, begin, end, generation)


def residence(of: Unit | str = "2024-01-05", tier: Tier = Tier.HOT, **changed: Any) -> Residence:
    """A unit of 100,000 rows at home in a tier, but for what is named."""
    home = unit(of) if isinstance(of, str) else of
    location = {
        Tier.HOT: f"hot.{home.dataset}_{home.slug}",
        Tier.WARM: f"warm.{home.dataset}_{home.slug}",
        Tier.COLD: f"s3://tiering-lake/lake/{home.dataset}/{home.slug}-g{home.generation}.parquet",
        Tier.EXPIRED: "",
    }[tier]
    return replace(Residence(home, tier, location, row_count=100_000, size_bytes=12_000_000), **changed)


def bars(
    rows: int,
    seed: int,
    *,
    begin: datetime = datetime(2024, 1, 5, tzinfo=UTC),
    symbols: int = 10,
    step_minutes: int = 1,
) -> list[tuple[Any, ...]]:
    """Make valid minute bars in the order of BAR_COLUMNS: symbol after symbol for each minute, keys unique."""
    dice = random.Random(seed)
    prices = [dice.randint(500, 50_000) for _ in range(symbols)]
    made = []
    for index in range(rows):
        minute, which = divmod(index, symbols)
        first = prices[which]
        last = max(1, first + dice.randint(-20, 20))
        prices[which] = last
        high, low = max(first, last) + dice.randint(0, 5), max(1, min(first, last) - dice.randint(0, 5))
        volume = dice.randint(0, 100_000)
        made.append(
            (
                f"{600_000 + which}",
                "CN",
                f"{step_minutes}m",
                begin + timedelta(minutes=minute * step_minutes),
                _price(first),
                _price(high),
                _price(low),
                _price(last),
                volume,
                _price(last) * volume,
                "synthetic",
            )
        )
    return made


def _price(cents: int) -> Decimal:
    return Decimal(cents).scaleb(-2)
