"""Erasing one of a thousand persons who is in every one of a hundred lake files, proof and certificate included."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

from tests.bench.ground import Ground
from tests.bench.rows import Group, Row, at_most
from tests.ops.erase_world import PERSON, People, open_people
from tests.ops.world import NOW, days_ago
from tiering.model import Tier
from tiering.ops.erase import erase
from tiering.plan.erase import Person

NAME = "bench_erase"
USERS, FILES, SECONDS_MAX = 1000, 100, 60.0
ROWS_FOR_EACH = 240_000
"""Of the bench's rows: one more row for each person and file."""


def erase_user(ground: Ground) -> Iterator[Row]:
    """Erase one person, once: there is nobody left to erase a second time."""
    settings = ground.create(NAME)
    each = max(1, ground.rows // ROWS_FOR_EACH)
    with open_people(settings) as people:
        ground.say(f"{USERS} persons with {each} rows in each of {FILES} lake files")
        _fill(people, each)
        ground.settle()
        ground.say("erasing one of them")
        began = time.perf_counter()
        certificate = erase(people.stores, Person(PERSON), "bench", "bench", NOW)
        took = time.perf_counter() - began
        assert certificate["complete"], certificate["proof"]["hits"]
        objects = certificate["proof"]["objects"]
    ground.drop(NAME)
    note = (
        f"{USERS * each:,} rows a file, {objects} object versions scanned for 0 hits; find, rewrite, prove, publish, "
        "destroy, scan and certify"
    )
    yield at_most("erase_user_seconds", "s", took, SECONDS_MAX, note, None, "")


def _fill(people: People, each: int) -> None:
    people.insert(days_ago(0), USERS, 1)
    first = days_ago(900)
    for day in range(FILES):
        people.insert(first + timedelta(days=day), USERS, each)
    people.run(rounds=3)  # to warm, packed, to cold
    cold = [r for r in people.stores.ledger.units("user_activity") if r.tier is Tier.COLD]
    assert len(cold) == FILES, len(cold)


GROUPS = (Group(("erase_user_seconds",), erase_user),)
