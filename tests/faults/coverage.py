"""Which kinds of store call are known, which were struck, and which to aim at next."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.fakes import AFTER, BEFORE

TRIES_ANYWHERE = 4
"""Then a kind is aimed at where nothing has been moved yet as well: some calls are made once in a ground's life."""
TRIES_MAX = 16


def phases(call: str) -> tuple[str, ...]:
    """Say when one can die at a call. After a transaction's begin nothing has happened yet that could be lost: the
    places of a transaction are before its begin, before its commit, and after its commit.
    """
    return (BEFORE,) if ".begin " in call else (BEFORE, AFTER)


@dataclass(frozen=True, order=True)
class Kind:
    """A place to die at: before or after a named call of one work in one mode."""

    mode: str
    work: str
    call: str
    phase: str

    def __str__(self) -> str:
        return f"{self.phase} {self.call!r} in {self.work}, {self.mode}"


@dataclass
class Coverage:
    """The kinds of all modes.

    Attributes:
        occurrences: per kind, how often one move makes the call, roughly; in the order they were first seen.
        struck: how often a mover really died there.
        misses: how often one was aimed there and did not, since the last time one did.
    """

    occurrences: dict[Kind, int] = field(default_factory=dict)
    struck: Counter[Kind] = field(default_factory=Counter)
    misses: Counter[Kind] = field(default_factory=Counter)

    def learn(self, mode: str, calls: Iterable[tuple[str, str]], moves: int) -> None:
        """Know every call that a run of so many moves shows."""
        for (work, call), count in Counter(calls).items():
            for phase in phases(call):
                self.occurrences.setdefault(Kind(mode, work, call, phase), max(1, count // moves))

    def note(self, aimed: Kind | None, died_at: Kind | None) -> None:
        """Count a death, and a miss if it was to be elsewhere."""
        if died_at in self.occurrences:
            self.struck[died_at] += 1
        if aimed and aimed != died_at:
            self.misses[aimed] += 1

    def open(self, mode: str | None = None, work: str | None = None, *, early: bool = False) -> list[Kind]:
        """List the kinds not struck yet and not given up; `early`: those that need ground where nothing was moved."""
        return [
            kind
            for kind in self.occurrences
            if not self.struck[kind]
            and mode in (None, kind.mode)
            and work in (None, kind.work)
            and self.misses[kind] < TRIES_MAX
            and (not early or self.misses[kind] >= TRIES_ANYWHERE)
        ]

    def choose(self, mode: str, work: str, dice: random.Random) -> Kind | None:
        """Choose the next to aim at: of those not struck, one of those missed least; else any that was hit before."""
        candidates = [k for k in self.open(mode, work) if self.misses[k] < TRIES_ANYWHERE or self.misses[k] % 2]
        if candidates:
            least = min(self.misses[kind] for kind in candidates)
            return dice.choice([kind for kind in candidates if self.misses[kind] == least])
        known = [kind for kind in self.occurrences if (kind.mode, kind.work) == (mode, work) and self.struck[kind]]
        return dice.choice(known) if known else None

    def occurrence(self, kind: Kind, dice: random.Random) -> int:
        """Choose which of the calls of that name; after a miss rather an early one, which more runs make."""
        return dice.randint(1, max(1, self.occurrences[kind] >> self.misses[kind]))

    @property
    def missing(self) -> list[Kind]:
        """The known kinds that no mover died at."""
        return [kind for kind in self.occurrences if not self.struck[kind]]
