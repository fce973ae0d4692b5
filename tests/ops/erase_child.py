"""Erase the person in a process of its own, so that it can be killed: settings on stdin, `go` on stdout."""

from __future__ import annotations

import json
import sys

from tests.ops.erase_world import PERSON, open_people
from tests.ops.world import NOW
from tiering.ops.erase import erase
from tiering.plan.erase import Person
from tiering.settings import Settings

if __name__ == "__main__":
    with open_people(Settings(**json.loads(sys.stdin.readline()))) as people:
        print("go", flush=True)
        erase(people.stores, Person(PERSON), "request 27", "child", NOW)
        print("done", flush=True)
