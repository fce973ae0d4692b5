"""A campaign: rounds of movers killed at chosen store calls and at random instants, with late writers at work.

It aims at every kind of store call that any run showed, and ends when the kills asked for were made and a mover has
died before and after each. What is aimed at is the n-th call of a name, so that a repetition does not shift the aim.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from infra.local import Stack
from tests.fakes import AFTER
from tests.faults import mover
from tests.faults.coverage import Coverage, Kind
from tests.faults.mover import Job, Outcome
from tests.faults.ports import Ground, GroundKind
from tests.faults.verdict import Verdict
from tiering.model import Transition

ROUND_KILLS = 60
OUTAGES_UNDER = (Transition.HOT_TO_WARM, Transition.MERGE, Transition.WARM_TO_COLD, Transition.ARCHIVE)
EARLY_STRIKES_MAX = 6
Say = Callable[[str], None]


@dataclass
class Tally:
    """The numbers of one work."""

    kills: int = 0
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    broken: int = 0
    outages: int = 0

    def add(self, verdict: Verdict) -> None:
        self.lost += len(verdict.lost)
        self.doubled += len(verdict.doubled)
        self.changed += len(verdict.changed)
        self.broken += len(verdict.broken)


@dataclass
class Campaign:
    """Kills to be made and what came of them; one seed makes all choices.

    Attributes:
        only: kill in this work only; empty for all.
        covers: go on until every kind was struck.
        outages_every: let servers die in every so many-th round of a ground.
        outages_max: of so many kinds of outages then.
        tell: told of every mover, if given.
        problems: what must not be; ends the campaign.
    """

    stack: Stack
    directory: Path
    seed: int
    grounds: Sequence[GroundKind]
    only: str = ""
    covers: bool = True
    outages_every: int = 2
    outages_max: int = 100
    say: Say = print
    tell: Say | None = None
    coverage: Coverage = field(default_factory=Coverage)
    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    @property
    def kills(self) -> int:
        return sum(tally.kills for tally in self.tallies.values())

    def tally(self, mode: str, work: str) -> Tally:
        return self.tallies.setdefault((mode, work), Tally())

    def total(self, *, mode: str | None = None, work: str | None = None) -> Tally:
        """Add up the tallies of a ground, or of a work."""
        total = Tally()
        for (of_mode, of_work), tally in self.tallies.items():
            if mode in (None, of_mode) and work in (None, of_work):
                for name, number in vars(tally).items():
                    setattr(total, name, getattr(total, name) + number)
        return total

    def run(self, kills: int, *, round_kills: int = ROUND_KILLS) -> None:
        """Make the kills, in rounds that alternate between the grounds, and go on until every kind was struck."""
        number = 0
        while not self.problems and (self.kills < kills or (self.covers and self._open())):
            kind = self.grounds[number % len(self.grounds)]
            number += 1
            is_known = any(known.mode == kind.mode for known in self.coverage.occurrences)
            if self.kills >= kills and is_known and not self._open(kind.mode):
                continue  # this ground's kinds are struck; it is the others' turn
            began, before = time.monotonic(), self.kills
            if self.covers or len(self.grounds) == 1:
                size = round_kills if self.covers else min(round_kills, kills - self.kills)
            else:
                size = min(round(round_kills * kind.share), kills - self.kills)
            if not size:
                continue
            self._fight(number, kind, size)
            missing = len(self.coverage.missing)
            self.say(
                f"round {number} ({kind.mode}): {self.kills - before} kills in {time.monotonic() - began:.0f} s; "
                f"{self.kills} of {kills} kills, {len(self.coverage.occurrences) - missing} of "
                f"{len(self.coverage.occurrences)} kinds; " + (self.problems[-1] if self.problems else "all clean")
            )
        if self.covers and not self.only:
            self.problems += [f"NOT STRUCK: {kind}" for kind in self.coverage.missing]

    def _open(self, mode: str | None = None) -> list[Kind]:
        return self.coverage.open(mode, self.only or None)

    def _fight(self, number: int, kind: GroundKind, kills: int) -> None:
        """Fight one round on fresh ground, then settle everything and look closely."""
        shares = self._shares(kind, kills)
        with kind.open(self.stack, self.directory, self.seed * 1000 + number, shares) as ground:
            fought = Round(self, ground, kind)
            fought.prime()
            fought.play(shares)
            if not self.problems and (number - 1) // len(self.grounds) % self.outages_every == 0:
                fought.outages()
            if not self.problems:
                self.judge(kind.mode, "", ground.settle(), "at the end of the round")
            for line in ground.writers_errors():
                self.errors[line[:60]] += 1

    def _shares(self, kind: GroundKind, kills: int) -> dict[str, int]:
        """Divide a round's kills among the works: as many as each has kinds not struck, or as the ground says."""
        if self.only:
            return {self.only: kills}
        weights: Mapping[str, int] = kind.works
        open_kinds = Counter(k.work for k in self._open(kind.mode))
        if self.covers and open_kinds:
            weights = {work: open_kinds[str(work)] for work in kind.works}
            kills = min(kills, max(8, round(sum(weights.values()) * 1.3)))
        total = sum(weights.values())
        shares = {str(work): max(1, kills * weight // total) for work, weight in weights.items() if weight}
        shares[max(shares, key=lambda work: shares[work])] += max(0, kills - sum(shares.values()))
        return shares

    def judge(self, mode: str, work: str, verdict: Verdict, when: str) -> None:
        """Count what an inspection found."""
        if verdict.is_clean:
            return
        self.tally(mode, work).add(verdict)
        self.find(f"{work or 'settled'} in {mode} {when}: {verdict}")

    def find(self, problem: str) -> None:
        self.problems.append(problem)
        self.say(f"FOUND {problem}")


class Round:
    """The kills on one ground."""

    def __init__(self, campaign: Campaign, ground: Ground, kind: GroundKind) -> None:
        self.campaign, self.ground, self.mode = campaign, ground, kind.mode
        self.all_outages, self.works = kind.outages, kind.works
        self.dice, self.coverage = campaign.dice, campaign.coverage

    def prime(self) -> None:
        """Let one mover of each work through unharmed, to learn its calls and feed the next ones.

        Before it, aim at what later movers cannot be killed at, because only the first of a ground calls it.
        """
        only = self.campaign.only
        for job in self.ground.primes(self.dice):
            early = [] if only and job.work != only else self.coverage.open(self.mode, job.work, early=True)
            for kind in early[:EARLY_STRIKES_MAX]:
                if not self.campaign.problems:
                    self._strike(kind.work, [self._aimed(replace(job, finish_first=False), kind)], kind)
            if self.campaign.problems:
                return
            self.send(job)

    def play(self, shares: Mapping[str, int]) -> None:
        """Kill movers until each work has had its share, the first work first since it feeds the rest."""
        wanted, misses = Counter(shares), 0
        first = next(iter(shares))
        while +wanted and misses < 40 and not self.campaign.problems:
            works = sorted((+wanted).elements())
            work = first if wanted[first] > shares[first] * 2 // 3 else self.dice.choice(works)
            made = self._kill_one(work)
            wanted[work] -= max(made, int(misses > 10))
            misses = 0 if made else misses + 1

    def _kill_one(self, work: str) -> int:
        """Send a mover, or two, to its death; look; return the kills made."""
        dice, share = self.dice, self.dice.random()
        kind = self.coverage.choose(self.mode, work, dice)
        is_open = kind is not None and not self.coverage.struck[kind]
        if kind and share < (0.88 if is_open else 0.6):
            job = self.ground.provoke(work, kind.call, dice, self.send)
            aimed = self._aimed(replace(job, finish_first=dice.random() < 0.8), kind)
            return self._strike(work, [aimed], kind)
        job = self.ground.provoke(work, "", dice, self.send)
        how = dice.random()
        if how < 0.45:
            at, after = dice.randrange(1, 120), dice.random() < 0.5
            return self._strike(work, [replace(job, at=at, after=after, statements=True, owner="fine")])
        if how < 0.75:
            pair = [dice.randrange(1, 60) for _ in range(2)]
            twins = [
                replace(job, at=at, after=dice.random() < 0.5, moves_max=3, owner=f"twin {number} {at}")
                for number, at in enumerate(pair)
            ]
            return self._strike(work, twins)
        return self._strike(work, [replace(job, moves_max=3, owner="random")], delay=dice.uniform(0, 0.35))

    def _aimed(self, job: Job, kind: Kind) -> Job:
        at = self.coverage.occurrence(kind, self.dice)
        return replace(job, at=at, after=kind.phase == AFTER, call=(kind.work, kind.call), owner="aimed")

    def _strike(self, work: str, jobs: list[Job], kind: Kind | None = None, delay: float | None = None) -> int:
        outcomes = self._send_all(jobs, delay)
        killed = [outcome for outcome in outcomes if outcome.ending == "killed"]
        for outcome in outcomes:
            self.coverage.note(kind, Kind(self.mode, *outcome.died_at) if outcome.died_at else None)
        self.campaign.tally(self.mode, work).kills += len(killed)
        self.campaign.judge(self.mode, work, self.ground.look(), f"after {jobs}")
        return len(killed)

    def send(self, job: Job) -> Outcome:
        """Let a mover do a job unharmed."""
        return self._send_all([job], None)[0]

    def _send_all(self, jobs: list[Job], delay: float | None) -> list[Outcome]:
        ground = self.ground
        children = [mover.start(ground.settings, ground.policies, job, ground.log) for job in jobs]
        outcomes = [mover.wait(child, delay) for child in children]
        for job, outcome in zip(jobs, outcomes, strict=True):
            if self.campaign.tell:
                self.campaign.tell(f"{outcome.seconds:.2f} s {outcome.ending} at {outcome.died_at} {job}")
            if not job.statements:  # on the fine wire, calls are counted that have no names of their own
                self.coverage.learn(self.mode, outcome.calls, job.moves_max)
            if outcome.ending in ("bug", "failed"):
                self.campaign.find(f"{job} in {self.mode}: {outcome.ending}: {outcome.message}")
        return outcomes

    def outages(self) -> None:
        """Let each kind of outage happen once, under movers of any work."""
        for outage in self.dice.sample(self.all_outages, min(self.campaign.outages_max, len(self.all_outages))):
            began = time.monotonic()
            if self.campaign.problems:
                return
            work = str(self.dice.choice([work for work in OUTAGES_UNDER if work in self.works]))
            job = replace(self.ground.provoke(work, "", self.dice, self.send), moves_max=2)
            problem = self.ground.strike_outage(outage, job, self.dice)
            if problem:
                self.campaign.find(f"{outage} during {work} in {self.mode}: {problem}")
            self.campaign.tally(self.mode, work).outages += 1
            self.campaign.judge(self.mode, work, self.ground.look(), f"after {outage}")
            if self.campaign.tell:
                self.campaign.tell(f"{time.monotonic() - began:.2f} s {outage} under {work}")
