"""The library, opened for measuring: stores, one dataset with units of a chosen length, and moves of it.

Imports nothing that the library does not: the children that measure memory start here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tiering.model import Dataset, Receipt, Span, Transition
from tiering.ops import lifecycle
from tiering.plan.policies import parse_policies
from tiering.settings import Settings
from tiering.stores.opening import Stores, open_stores

PROJECT = Path(__file__).parents[2]
POLICIES = PROJECT / "deployments" / "policies.yaml"
DATASET = "market_bars"
NOW = datetime(2024, 6, 20, 12, tzinfo=UTC)
OWNER = "bench"

DAY, YEAR = Span(days=1), Span(months=12)
"""A whole year as one unit, so that one move has all the rows; or a day, as the policy file has it."""


@contextmanager
def opened(settings: Settings, unit: Span) -> Iterator[tuple[Stores, Dataset]]:
    """Open the stores, with units of the given length for the bars."""
    policies = parse_policies(POLICIES.read_text(), str(POLICIES))
    changed = tuple(replace(d, unit=unit) if d.name == DATASET else d for d in policies.datasets)
    with open_stores(settings, replace(policies, datasets=changed)) as stores:
        yield stores, lifecycle.dataset_named(stores, DATASET)


def begin(
    stores: Stores, dataset: Dataset, transition: Transition, now: datetime = NOW, most: int | None = None
) -> list[int]:
    """Plan and record the due moves of one transition, oldest first, `most` of them."""
    plan = lifecycle.plan_dataset(stores, dataset, now, [transition])
    return lifecycle.begin_moves(stores, replace(plan, moves=plan.moves[:most]))


def carry_out(stores: Stores, move_ids: Iterable[int], now: datetime = NOW) -> list[Receipt]:
    """Carry moves through, one after the other; every one of them must reach its end."""
    receipts = [lifecycle.run_move(stores, move_id, now, OWNER) for move_id in move_ids]
    assert receipts, "nothing was due"
    assert all(receipt.state == "COMMITTED" for receipt in receipts), receipts
    return receipts


@contextmanager
def opened_documents(settings: Settings) -> Iterator[tuple[Stores, Dataset]]:
    """Open the stores for the news, whatever the policy file says of their state."""
    policies = parse_policies(POLICIES.read_text(), str(POLICIES))
    changed = tuple(replace(d, state="moves") if d.name == "news" else d for d in policies.datasets)
    with open_stores(settings, replace(policies, datasets=changed)) as stores:
        yield stores, lifecycle.dataset_named(stores, "news")
