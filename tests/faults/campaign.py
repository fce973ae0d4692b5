"""A campaign: rounds of movers killed at chosen store calls and at random instants, with late writers at work."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from infra.local import Stack
from tests.faults import mover, outages
from tests.faults.ground import Ground, open_ground, stop_writers
from tests.faults.invariants import Inspector, Verdict
from tests.faults.mover import NOW, SWEEP, Job, Outcome
from tiering.model import Transition
from tiering.stores.objects import S3Objects

WORKS = (*Transition, SWEEP)
SHARES = {
    Transition.HOT_TO_WARM: 22,
    Transition.MERGE: 24,
    Transition.COMPRESS: 14,
    Transition.WARM_TO_COLD: 20,
    Transition.EXPIRE: 12,
    SWEEP: 8,
}
ROUND_KILLS = 50
YEARS_EARLIER = timedelta(days=3 * 365)
Say = Callable[[str], None]


@dataclass
class Tally:
    """The numbers of one kind of work."""

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
        points: per mode and work, the store calls of one undisturbed run.
        struck: (work, store call, before or after) of every aimed kill.
    """

    stack: Stack
    directory: Path
    seed: int
    only: str = ""
    say: Say = print
    with_outages: bool = True
    tallies: dict[str, Tally] = field(default_factory=lambda: {str(work): Tally() for work in WORKS})
    points: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    struck: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    aims: dict[tuple[str, str], Iterator[tuple[int, bool]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    @property
    def kills(self) -> int:
        return sum(tally.kills for tally in self.tallies.values())

    def run(self, kills: int, *, round_kills: int = ROUND_KILLS) -> None:
        """Make the kills, in rounds that alternate between one database and two."""
        number = 0
        while self.kills < kills and not self.problems:
            began, before = time.monotonic(), self.kills
            self.round(number, min(round_kills, kills - self.kills))
            took = time.monotonic() - began
            made = self.kills - before
            self.say(
                f"round {number + 1}: {made} kills in {took:.0f} s; {self.kills} of {kills}; "
                + ("all clean" if not self.problems else self.problems[-1])
            )
            number += 1
            assert made, "a round made no kill"

    def round(self, number: int, kills: int) -> None:
        """Run one round on fresh ground, then settle everything and look closely."""
        shares = self._shares(kills)
        old = shares.get(Transition.WARM_TO_COLD, 0) + 3
        ancient = shares.get(Transition.EXPIRE, 0) + 3
        young = max(4, shares.get(Transition.HOT_TO_WARM, 0) - old - ancient + 2)
        two = number % 2 == 1
        with open_ground(
            self.stack,
            self.directory,
            self.seed * 1000 + number,
            two_databases=two,
            young=young,
            old=old,
            ancient=ancient,
        ) as ground:
            inspector = Inspector(ground)
            _Round(self, ground, inspector, "two databases" if two else "one database").play(shares)
            self._settle(ground, inspector)

    def _shares(self, kills: int) -> dict[str, int]:
        if self.only:
            return {self.only: kills}
        total = sum(SHARES.values())
        shares = {str(work): max(1, kills * share // total) for work, share in SHARES.items()}
        shares[str(Transition.HOT_TO_WARM)] += max(0, kills - sum(shares.values()))
        return shares

    def _settle(self, ground: Ground, inspector: Inspector) -> None:
        stop_writers(ground.writers)
        job = Job("", NOW, owner="settle")
        mover.settle_everything(ground.stores, ground.dataset, job)
        self.judge("", inspector.look_at_rest(), "at the end of the round")
        for log in ground.journal.files:
            for line in Path(f"{log}.errors").read_text().splitlines():
                self.errors[line[:60]] += 1

    def judge(self, work: str, verdict: Verdict, when: str) -> None:
        """Count what an inspection found."""
        if verdict.is_clean:
            return
        self.tallies.setdefault(work, Tally()).add(verdict)
        self.problems.append(f"{work or 'settled'} {when}: {verdict}")
        self.say(f"FOUND {self.problems[-1]}")


@dataclass
class _Round:
    campaign: Campaign
    ground: Ground
    inspector: Inspector
    mode: str

    def play(self, shares: dict[str, int]) -> None:
        """Kill movers, hand-overs first since they feed the rest, until each work has had its share."""
        campaign = self.campaign
        self._prime(shares)
        wanted = Counter(shares)
        misses = 0
        while +wanted and misses < 40 and not campaign.problems:
            works = sorted((+wanted).elements())
            first = str(Transition.HOT_TO_WARM)
            work = first if wanted[first] > shares.get(first, 0) * 2 // 3 else campaign.dice.choice(works)
            made = self._strike(work)
            wanted[work] -= made
            misses = 0 if made else misses + 1
        if campaign.with_outages and not campaign.problems:
            self._outages()

    def _prime(self, shares: dict[str, int]) -> None:
        """Let one mover of each kind through unharmed, to learn its store calls and feed the next kinds."""
        earlier = NOW - YEARS_EARLIER
        for work in (Transition.HOT_TO_WARM, Transition.COMPRESS, Transition.WARM_TO_COLD, Transition.MERGE, SWEEP):
            moves_max = 1
            if self.campaign.only and work is Transition.HOT_TO_WARM and work != self.campaign.only:
                moves_max = 10_000
            if work is Transition.MERGE:
                self.ground.insert_late(self.campaign.dice)
            self._learn(Job(str(work), _instant(str(work)), moves_max=moves_max))
        # A part of what expires is to expire from the lake: it went cold years before now.
        if shares.get(Transition.EXPIRE):
            self._send(Job(str(Transition.HOT_TO_WARM), earlier, moves_max=shares[Transition.EXPIRE] // 2 + 1))
            self._send(Job(str(Transition.WARM_TO_COLD), earlier, moves_max=shares[Transition.EXPIRE] // 2))
            self._learn(Job(str(Transition.EXPIRE), NOW))

    def _learn(self, job: Job) -> None:
        outcome = self._send(job)
        key = (self.mode, job.work)
        if key not in self.campaign.points and outcome.calls:
            self.campaign.points[key] = outcome.calls

    def _aim(self, work: str) -> tuple[int, bool]:
        """Choose the next store call: all of them in random order, before and after, then again."""
        key = (self.mode, work)
        while True:
            if key not in self.campaign.aims:
                count = len(self.campaign.points.get(key, ())) or 30
                every = [(at, after) for at in range(1, count + 1) for after in (False, True)]
                self.campaign.dice.shuffle(every)
                self.campaign.aims[key] = iter(every)
            found = next(self.campaign.aims[key], None)
            if found:
                return found
            del self.campaign.aims[key]

    def _strike(self, work: str) -> int:
        """Send a mover, or two, to its death; look; return the kills made."""
        dice, now = self.campaign.dice, _instant(work)
        if work == Transition.MERGE:
            self.ground.insert_late(dice)
        how = dice.random()
        if how < 0.60:
            at, after = self._aim(work)
            jobs = [Job(work, now, at, after, owner="aimed")]
            self._note(work, at, after)
        elif how < 0.75:
            jobs = [Job(work, now, dice.randrange(1, 120), dice.random() < 0.5, statements=True, owner="fine")]
        elif how < 0.85:
            at, after = self._aim(work)
            jobs = [Job(work, now, at, after, finish_first=False, owner="heir")]
        elif how < 0.93:
            pair = [dice.randrange(1, 60) for _ in range(2)]
            jobs = [Job(work, now, at, dice.random() < 0.5, moves_max=3, owner=f"twin {at}") for at in pair]
        else:
            jobs = [Job(work, now, moves_max=3, owner="random")]
        delay = dice.uniform(0, 0.35) if jobs[0].at is None else None
        outcomes = self._send_all(jobs, delay)
        made = sum(outcome.ending == "killed" for outcome in outcomes)
        self.campaign.tallies[work].kills += made
        self.campaign.judge(work, self.inspector.look(), f"in {self.mode} after {jobs}")
        return made

    def _note(self, work: str, at: int, after: bool) -> None:
        points = self.campaign.points.get((self.mode, work), ())
        if at <= len(points):
            self.campaign.struck[work, points[at - 1], "after" if after else "before"] += 1

    def _send(self, job: Job) -> Outcome:
        return self._send_all([job], None)[0]

    def _send_all(self, jobs: list[Job], delay: float | None) -> list[Outcome]:
        ground = self.ground
        children = [mover.start(ground.settings, ground.policies, job, ground.log) for job in jobs]
        outcomes = [mover.wait(child, delay) for child in children]
        for job, outcome in zip(jobs, outcomes, strict=True):
            if outcome.ending in ("bug", "failed"):
                self.campaign.problems.append(f"{job} in {self.mode}: {outcome.ending}: {outcome.message}")
                self.campaign.say(f"FOUND {self.campaign.problems[-1]}")
        return outcomes

    def _outages(self) -> None:
        for outage in outages.ALL:
            if self.campaign.problems:
                return
            work = self.campaign.dice.choice((Transition.HOT_TO_WARM, Transition.MERGE, Transition.WARM_TO_COLD))
            if work is Transition.MERGE:
                self.ground.insert_late(self.campaign.dice)
            problem = outages.strike(outage, self.ground, Job(str(work), NOW, moves_max=2), self.campaign.dice)
            if problem:
                self.campaign.problems.append(f"{outage} during {work} in {self.mode}: {problem}")
                self.campaign.say(f"FOUND {self.campaign.problems[-1]}")
            tally = self.campaign.tallies[str(work)]
            tally.outages += 1
            self.campaign.judge(str(work), self.inspector.look(), f"after {outage}")


def _instant(work: str) -> datetime:
    """Sweeps run when the undo window of everything is over, so that they always have something to destroy."""
    return datetime.now(UTC) + timedelta(days=3) if work == SWEEP else NOW


def warm_up(stack: Stack, directory: Path, seed: int) -> None:
    """Go through every transition once in this process, so that its children find all code compiled and loaded."""
    with open_ground(stack, directory, seed, two_databases=True, young=1, old=1, ancient=1) as ground:
        stop_writers(ground.writers)
        mover.settle_everything(ground.stores, ground.dataset, Job("", NOW, owner="warm-up"))
        ground.insert_late(random.Random(seed))
        mover.settle_everything(ground.stores, ground.dataset, Job("", NOW, owner="warm-up"))
        settings = ground.settings
        objects = S3Objects(settings.s3_url, "none", settings.s3_access_key, settings.s3_secret_key, settings.s3_region)
        assert objects._client, "made here, before any fork, and never used here"
