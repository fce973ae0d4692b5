"""kill -9 at any point of an erasure, then run it again: it finishes, and the certificate has all that was found."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from pathlib import Path

from tests.bench.ground import as_values
from tests.ops.erase_world import PERSON, fill, open_people
from tests.ops.world import NOW
from tiering.ops.audit import check_chain
from tiering.ops.erase import erase, look
from tiering.ops.fsck import fsck
from tiering.plan.erase import Person
from tiering.settings import Settings

PROJECT = Path(__file__).parents[2]
KILLS = 10


def kill_after(seconds: float, settings: Settings) -> bool:
    """Run one erasure and kill it so long after it began; tell whether it was faster."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.ops.erase_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(as_values(settings)) + "\n")
    child.stdin.flush()
    assert child.stdout.readline() == "go\n"
    timer = threading.Timer(seconds, child.kill)
    timer.start()
    is_done = child.stdout.readline() == "done\n"
    timer.cancel()
    child.wait()
    return is_done


def test_killed_at_any_point_it_is_finished_by_the_next_run(fresh_settings: Settings) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    with open_people(fresh_settings) as people:
        fill(people, users=10)
        before = people.others()
        found = {item.place: item.row_count for item in look(people.stores, Person(PERSON)).found}
        kills = 0
        while kills < KILLS and not kill_after(dice.uniform(0.05, 0.4) * (1 + kills), fresh_settings):
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
