"""Estimate what a plan costs: rows, bytes, seconds, lock time, and money per tier. Pure; prices are the policy file's.

Seconds are learnt from moves of the same dataset and transition, else of the same transition, else a stated default.
Does not: know how a move is done, or promise anything: every estimate says what it rests on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median

from tiering.model import Dataset, Form, Move, Prices, Residence, Tier, Transition
from tiering.plan.lifecycle import next_storage

GIB = 1024**3

DEFAULT_BYTES_PER_SECOND = 10_000_000.0
"""Of transitions that read rows, before there is any history."""

DEFAULT_SECONDS = 0.1
"""A move that changes only metadata, and the least that any takes, before there is any history."""

DEFAULT_LOCK_SECONDS = 0.01
SHRINKS = {Transition.COMPRESS: 0.25, Transition.WARM_TO_COLD: 0.3, Transition.EXPIRE: 0.0}
"""Size afterwards as a share of the size before, until history tells; other transitions keep it."""

PUBLISHED_OBJECTS = 4
"""Requests of one commit to the lake beside the data file: table metadata, manifest list, manifest, and its check."""

COPYING = (Transition.MERGE, Transition.COMPRESS, Transition.WARM_TO_COLD)
"""Transitions that read every row. HOT_TO_WARM does too, where hot and warm are two databases."""


@dataclass(frozen=True, slots=True)
class Experience:
    """What the past says of one transition: the medians of the moves that were large for it.

    Attributes:
        basis: what it was learnt from, in words.
        bytes_per_second: None where time does not depend on size, or nothing is known.
        seconds_min: what the quickest took.
        lock_seconds: seal and commit, which hold locks.
        shrink: size afterwards by size before.
        is_default: nothing was learnt; the constants above stand in.
    """

    basis: str
    bytes_per_second: float | None
    seconds_min: float
    lock_seconds: float
    shrink: float
    is_default: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished move."""

    dataset: str
    transition: Transition
    size_before: int
    size_after: int
    stage_seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one move will cost and save.

    Attributes:
        seconds: of one worker, from seal to commit.
        lock_seconds: while writers of its table may have to wait.
        place_before, place_after: tier or storage class, as prices name them; "" when gone.
        month_before, month_after: storage of this unit for a month.
        once: requests, paid once.
        basis: what the seconds rest on.
    """

    move: Move
    size_before: int
    size_after: int
    seconds: float
    lock_seconds: float
    place_before: str
    place_after: str
    month_before: float
    month_after: float
    once: float
    basis: str


@dataclass(frozen=True, slots=True)
class PlaceTotal:
    """One tier or storage class of the plan's datasets, before and after the plan."""

    place: str
    units_before: int
    units_after: int
    bytes_before: int
    bytes_after: int
    month_before: float
    month_after: float


@dataclass(frozen=True, slots=True)
class Totals:
    """The sums of a plan. `seconds` is of one worker; several share it."""

    moves: int
    row_count: int
    size_bytes: int
    seconds: float
    lock_seconds: float
    lock_seconds_max: float
    once: float
    month_before: float
    month_after: float
    currency: str
    places: tuple[PlaceTotal, ...] = field(default=())


def learn(samples: Iterable[Sample]) -> dict[tuple[str, Transition], Experience]:
    """Learn from finished moves, per dataset and transition, and per transition under the dataset ""."""
    groups: dict[tuple[str, Transition], list[Sample]] = {}
    for sample in samples:
        for dataset in (sample.dataset, ""):
            groups.setdefault((dataset, sample.transition), []).append(sample)
    return {key: _experience(key[0], found) for key, found in groups.items()}


def _experience(dataset: str, samples: Sequence[Sample]) -> Experience:
    # Of small moves the fixed cost is all: their rate says nothing about big ones.
    large = sorted(samples, key=lambda sample: sample.size_before)[len(samples) // 2 :]
    rates = [s.size_before / _seconds(s) for s in large if s.size_before and _seconds(s)]
    shrinks = [s.size_after / s.size_before for s in large if s.size_before and s.size_after]
    locks = [s.stage_seconds.get("seal", 0.0) + s.stage_seconds.get("commit", 0.0) for s in samples]
    step, count = samples[0].transition, len(samples)
    return Experience(
        basis=f"{count} past move{'' if count == 1 else 's'} of {dataset or 'other datasets'}",
        bytes_per_second=median(rates) if rates else None,
        seconds_min=min(_seconds(s) for s in samples),
        lock_seconds=median(locks),
        shrink=median(shrinks) if shrinks else SHRINKS.get(step, 1.0),
    )


def _seconds(sample: Sample) -> float:
    return sum(sample.stage_seconds.values())


@dataclass(frozen=True, slots=True)
class Estimator:
    """All that estimates of one run share.

    Attributes:
        prices: of the policy file.
        past: as `learn` made it.
        is_one_database: handing a unit over to the warm tier then reads no row.
    """

    prices: Prices
    past: Mapping[tuple[str, Transition], Experience] = field(default_factory=dict)
    is_one_database: bool = True

    def estimate(self, dataset: Dataset, home: Residence, move: Move, reference: datetime | None) -> Estimate:
        """Estimate one move of a unit, planned against the reference clock."""
        known = self._experience(dataset, move.transition)
        after = self._size_after(dataset, home, move, known)
        is_flat = known.bytes_per_second is None or not self._copies(dataset, move)
        basis = known.basis
        if known.is_default:
            rate = known.bytes_per_second or DEFAULT_BYTES_PER_SECOND
            basis += f"{known.seconds_min:g} s" if is_flat else f"{rate / 1e6:.0f} MB/s"
        took = 0.0 if is_flat else home.size_bytes / (known.bytes_per_second or DEFAULT_BYTES_PER_SECOND)
        place = place_of(dataset, home)
        target = _place_after(dataset, home, move, reference)
        return Estimate(
            move=move,
            size_before=home.size_bytes,
            size_after=after,
            seconds=round(max(took, known.seconds_min), 3),
            lock_seconds=round(known.lock_seconds, 4),
            place_before=place,
            place_after=target,
            month_before=self.month(place, home.size_bytes),
            month_after=self.month(target, after),
            once=self._requests(dataset, home, move),
            basis=basis,
        )

    def month(self, place: str, size_bytes: int) -> float:
        """Price the storage of so many bytes for a month; what has no price in the policy file costs nothing."""
        return dict(self.prices.gib_month).get(place, 0.0) * size_bytes / GIB if place else 0.0

    def total(self, units: Iterable[tuple[Dataset, Residence]], estimates: Sequence[Estimate]) -> Totals:
        """Add up a plan: its moves, and every unit by place before and after, the ones that stay as well."""
        changed = {(e.move.unit.dataset, e.move.unit.begin): e for e in estimates}
        sums: dict[str, list[int]] = {}
        for dataset, home in units:
            one = changed.get((dataset.name, home.unit.begin))
            before = place_of(dataset, home)
            after, size = (one.place_after, one.size_after) if one else (before, home.size_bytes)
            for place, at, bytes_here in ((before, 0, home.size_bytes), (after, 1, size)):
                if place:
                    row = sums.setdefault(place, [0, 0, 0, 0])
                    row[at] += 1
                    row[2 + at] += bytes_here
        places = tuple(
            PlaceTotal(place, row[0], row[1], row[2], row[3], self.month(place, row[2]), self.month(place, row[3]))
            for place, row in sorted(sums.items(), key=lambda item: _rank(item[0]))
        )
        return Totals(
            moves=len(estimates),
            row_count=sum(e.move.row_count for e in estimates),
            size_bytes=sum(e.size_before for e in estimates),
            seconds=round(sum(e.seconds for e in estimates), 3),
            lock_seconds=round(sum(e.lock_seconds for e in estimates), 4),
            lock_seconds_max=max((e.lock_seconds for e in estimates), default=0.0),
            once=sum(e.once for e in estimates),
            month_before=sum(place.month_before for place in places),
            month_after=sum(place.month_after for place in places),
            currency=self.prices.currency,
            places=places,
        )

    def _experience(self, dataset: Dataset, step: Transition) -> Experience:
        for name in (dataset.name, ""):
            if found := self.past.get((name, step)):
                return found
        return Experience(
            "no past move: ",
            DEFAULT_BYTES_PER_SECOND,
            DEFAULT_SECONDS,
            DEFAULT_LOCK_SECONDS,
            SHRINKS.get(step, 1.0),
            is_default=True,
        )

    def _copies(self, dataset: Dataset, move: Move) -> bool:
        if move.transition is Transition.HOT_TO_WARM:
            return dataset.form is not Form.TABLE or not self.is_one_database
        return move.transition in COPYING

    def _size_after(self, dataset: Dataset, home: Residence, move: Move, known: Experience) -> int:
        if move.transition is Transition.MERGE and home.row_count:
            return home.size_bytes * move.row_count // home.row_count
        if move.transition in (Transition.ARCHIVE, Transition.EXPIRE, Transition.MERGE):
            return 0 if move.transition is Transition.EXPIRE else home.size_bytes
        if move.transition is Transition.HOT_TO_WARM and dataset.form is Form.TABLE:
            return home.size_bytes
        return int(home.size_bytes * known.shrink)

    def _requests(self, dataset: Dataset, home: Residence, move: Move) -> float:
        objects = home.row_count if dataset.form is Form.FILES else 1
        puts, gets = {
            Transition.WARM_TO_COLD: (1 + PUBLISHED_OBJECTS, 1 + PUBLISHED_OBJECTS),
            Transition.ARCHIVE: (objects, objects),
            Transition.EXPIRE: (PUBLISHED_OBJECTS, PUBLISHED_OBJECTS) if home.tier is Tier.COLD else (0, 0),
            Transition.MERGE: (1 + PUBLISHED_OBJECTS, 2 + PUBLISHED_OBJECTS) if home.tier is Tier.COLD else (0, 0),
        }.get(move.transition, (0, 0))
        return (puts * self.prices.put_thousand + gets * self.prices.get_thousand) / 1000


def place_of(dataset: Dataset, home: Residence) -> str:
    """Name the tier or storage class that a unit is paid for; empty when it is gone."""
    if home.tier is Tier.EXPIRED:
        return ""
    return str(home.storage_class) if home.tier is Tier.COLD or dataset.form is Form.FILES else str(home.tier)


def _place_after(dataset: Dataset, home: Residence, move: Move, reference: datetime | None) -> str:
    if move.transition is Transition.ARCHIVE and (step := next_storage(dataset, home, reference)):
        return str(step[0])
    places = {Transition.HOT_TO_WARM: "warm", Transition.WARM_TO_COLD: "STANDARD", Transition.EXPIRE: ""}
    return places.get(move.transition, place_of(dataset, home))


def _rank(place: str) -> tuple[int, str]:
    order = ("hot", "warm", "STANDARD", "STANDARD_IA", "GLACIER_IR", "DEEP_ARCHIVE")
    return (order.index(place) if place in order else len(order)), place
