"""kill -9 at any point of an erasure, then run it again: it finishes, and the certificate has all that was found."""

from __future__ import annotations

import random
from multiprocessing.connection import Connection

from tests.children import DONE, GO, kill_after
from tests.ops.erase_world import PERSON, fill, open_people
from tests.ops.world import NOW
from tiering.ops.audit import check_chain
from tiering.ops.erase import erase, look
from tiering.ops.fsck import fsck
from tiering.plan.erase import Person
from tiering.settings import Settings

KILLS = 6


def erase_person(line: Connection, settings: Settings) -> None:
    """In a process of its own."""
    with open_people(settings) as people:
        line.send(GO)
        erase(people.stores, Person(PERSON), "request 27", "child", NOW)
        line.send(DONE)


def test_killed_at_any_point_it_is_finished_by_the_next_run(fresh_settings: Settings) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    with open_people(fresh_settings) as people:
        fill(people, users=10)
        before = people.others()
        found = {item.place: item.row_count for item in look(people.stores, Person(PERSON)).found}
        kills = 0
        while kills < KILLS and not kill_after(dice.uniform(0.05, 0.4) * (1 + kills), erase_person, fresh_settings):
            kills += 1
        print("kills", kills)
        assert kills > 2
        certificate = erase(people.stores, Person(PERSON), "request 27", "test", NOW)
        assert certificate["proof"]["hits"] == []
        assert certificate["complete"]
        assert (people.persons_rows(), people.others()) == (0, before)
        if kills == KILLS:  # else the child's own certificate has them
            erased = {place["place"]: place["row_count"] for place in certificate["places"]}
            assert found.items() <= erased.items()
        assert [f for f in fsck(people.stores, NOW, deep=True).findings if not f.is_note] == []
        assert check_chain(people.stores) == []
