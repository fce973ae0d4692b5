"""What a campaign asks of the ground it is fought on. One ground per kind of dataset and placing of stores.

To add one: write a class with these members, a context manager that opens it, and name both in `grounds.GROUNDS`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from infra.local import Stack
from tests.faults.mover import Job, Outcome
from tests.faults.verdict import Verdict
from tiering.model import Policies
from tiering.settings import Settings

Send = Callable[[Job], Outcome]
"""Let a mover do a job, unharmed, and say how it ended."""


class Ground(Protocol):
    """Fresh stores full of units of one dataset, with writers at work, and the means to judge what became of them.

    Attributes:
        settings: what movers are given.
        log: where movers' own output goes.
    """

    settings: Settings
    policies: Policies
    log: Path

    def primes(self, dice: random.Random) -> Iterator[Job]:
        """Yield the jobs that are to go through unharmed first, one of each work and what feeds the later ones.

        What a job needs is made when it is asked for, so whoever iterates carries each out before the next.
        """

    def provoke(self, work: str, call: str, dice: random.Random, send: Send) -> Job:
        """Make something due for a work, if possible such that a mover makes the given call; return its job.

        Args:
            work: one of the ground's works.
            call: the name of the store call that is aimed at, empty for any.
            dice: for all choices.
            send: for what must have been moved before.
        """

    def look(self) -> Verdict:
        """Read all that a reader sees now, and compare with what the writers were promised. Harms nothing."""

    def settle(self) -> Verdict:
        """Stop the writers, carry every due move through, and demand that all is as it should be at rest."""

    def strike_outage(self, outage: str, job: Job, dice: random.Random) -> str:
        """Let servers die or cut connections while a mover does a job; return what was worse than a clear error."""

    def writers_errors(self) -> list[str]:
        """List what the writers were told instead of an acknowledgement."""


@dataclass(frozen=True)
class GroundKind:
    """A way to make grounds.

    Attributes:
        mode: its name.
        works: what movers do there, and how often to kill them at random at it, relative to the others.
        outages: what may happen to its servers, for `Ground.strike_outage`.
        share: of a sample's kills on each ground, relative to the others; 0: on this one none.
        open: make one from the stack, a directory, a seed, and the kills to be made per work.
    """

    mode: str
    works: Mapping[str, int]
    outages: tuple[str, ...]
    open: Callable[[Stack, Path, int, Mapping[str, int]], AbstractContextManager[Ground]]
    share: float = 1.0
