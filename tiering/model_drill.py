"""The nouns of disaster recovery: what is promised, what happened, what was measured, and whether that is enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import BaseModel

from tiering.model_backup import StoreName


class Incident(StrEnum):
    """What happened."""

    COMPLETE_OUTAGE = "complete_outage"
    PARTIAL_OUTAGE = "partial_outage"
    DATA_CORRUPTION = "data_corruption"
    PERFORMANCE_DEGRADATION = "performance_degradation"


class Recovery(StrEnum):
    """How much is brought back: everything of a tier, or only what failed."""

    FULL = "full"
    PARTIAL = "partial"


class Component(StrEnum):
    """What the owner counts as one thing that is up or down."""

    REDIS = "redis"
    POSTGRESQL_PRIMARY = "postgresql_primary"
    TRADING_API = "trading_api"
    MONGODB = "mongodb"
    ANALYTICS_API = "analytics_api"
    USER_INTERFACE = "user_interface"
    REPORTING = "reporting"
    BATCH_JOBS = "batch_jobs"
    ARCHIVAL_DATA = "archival_data"


class Pick(StrEnum):
    """Why a recovery point was chosen."""

    LATEST = "latest"
    RANDOM = "random"
    OLDEST = "oldest"


@dataclass(frozen=True, slots=True)
class Objective:
    """What is promised of one tier.

    Attributes:
        tier: 1 is the first to come back.
        components: of the tier.
        rto: at most so long from the incident until it serves again.
        rpo: at most so much of the last writes may be gone.
    """

    tier: int
    components: tuple[Component, ...]
    rto: timedelta
    rpo: timedelta


@dataclass(frozen=True, slots=True)
class Objectives:
    """The owner's `disaster_recovery:`.

    Attributes:
        tiers: in order.
        recoveries: how much each incident brings back.
        detection: how long it takes to notice an incident; part of every RTO.
        probe: a component's query answers within so long.
    """

    tiers: tuple[Objective, ...]
    recoveries: Mapping[Incident, Recovery]
    detection: timedelta
    probe: timedelta

    def of(self, tier: int) -> Objective:
        """Return the promise of a tier; KeyError where there is none."""
        return {objective.tier: objective for objective in self.tiers}[tier]


@dataclass(frozen=True, slots=True)
class Probe:
    """A query whose answer shows that a component works.

    Attributes:
        name: for people.
        component: that asks it.
        stores: that must be back for it.
    """

    name: str
    component: Component
    stores: frozenset[StoreName]


@dataclass(frozen=True, slots=True)
class Scope:
    """What a drill has to bring back.

    Attributes:
        recovery: full or partial.
        components: that must work afterwards.
        failed: the stores that are taken for lost.
        stores: that are restored: those, and stand-ins for survivors, which a drill must not reach.
        reason: why these, in words.
    """

    recovery: Recovery
    components: tuple[Component, ...]
    failed: tuple[StoreName, ...]
    stores: tuple[StoreName, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Window:
    """What of one store can be brought back.

    Attributes:
        store: whose.
        source: which server of it.
        begins: the first moment.
        ends: the last moment.
        moments: the only ones there are; empty: every moment between, the log reaches all.
        gap: what is missing in the log between the moments or behind them; empty: nothing.
    """

    store: StoreName
    source: str
    begins: datetime
    ends: datetime
    moments: tuple[datetime, ...] = ()
    gap: str = ""


@dataclass(frozen=True, slots=True)
class RecoveryPoint:
    """A moment that a drill brings back, and why this one."""

    pick: Pick
    at: datetime


@dataclass(frozen=True, slots=True)
class Beat:
    """One row of the heartbeat ledger: the same in every store that is up.

    Attributes:
        chain: which history; another after a person began one.
        seq: counts from 1 without a gap.
        at: when it was made, by the primary's clock.
        digest: sha256(previous digest || payload), hexadecimal.
    """

    chain: str
    seq: int
    at: datetime
    digest: str


@dataclass(frozen=True, slots=True)
class ChainVerdict:
    """What the heartbeats of one restored store say.

    Attributes:
        store: whose.
        first: the oldest beat looked at; None if there is none.
        last: the newest one, up to which the chain is unbroken.
        problem: why the chain is no good; empty if it is.
    """

    store: str
    first: Beat | None
    last: Beat | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a drill: what was done, to what, how long."""

    name: str
    subject: str
    seconds: float
    ended_after_s: float


@dataclass(frozen=True, slots=True)
class Defect:
    """A reason for which a drill failed: a code for machines, whose, and what was seen."""

    code: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class Measured:
    """What one component measured against what was promised.

    Attributes:
        component: which.
        is_recovered: its stores are back and its queries answered.
        rto: from the incident to its first right answer; None if there was none.
        rpo: between the incident and the last write that is back; None if that cannot be told.
        rto_objective: as promised.
        rpo_objective: as promised.
        text: what was asked and what came.
    """

    component: Component
    is_recovered: bool
    rto: timedelta | None
    rpo: timedelta | None
    rto_objective: timedelta
    rpo_objective: timedelta
    text: str = ""

    @property
    def is_met(self) -> bool:
        """Tell whether it came back, and in time, and with enough of the data."""
        in_time = self.rto is not None and self.rto <= self.rto_objective
        return self.is_recovered and in_time and self.rpo is not None and self.rpo <= self.rpo_objective


@dataclass(frozen=True, slots=True)
class DrillReport:
    """What a drill found. It passed only if there is no defect and every objective was met.

    Attributes:
        drill_id: `<UTC time>-tier<n>-<incident>`.
        tier: drilled.
        incident: that was assumed.
        recovery: full or partial.
        scope: why these stores and components.
        seed: of every choice.
        incident_at: from when the RTO counts, and back from which the RPO.
        began_at: when the drill began.
        ended_at: when it was over.
        points: what was brought back.
        common_seq: the last heartbeat that all stores had at the latest point; 0: none.
        phases: where the time went.
        measured: per component.
        defects: every reason for failing.
        notes: what a reader should know besides.
    """

    drill_id: str
    tier: int
    incident: Incident
    recovery: Recovery
    scope: str
    seed: int
    incident_at: datetime
    began_at: datetime
    ended_at: datetime
    points: tuple[RecoveryPoint, ...]
    common_seq: int
    phases: tuple[Phase, ...]
    measured: tuple[Measured, ...]
    defects: tuple[Defect, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Tell the truth in one word."""
        return bool(self.measured) and not self.defects and all(one.is_met for one in self.measured)


class Approval(BaseModel):
    """A person's answer to a recovery plan.

    Attributes:
        approve: go on.
        approved_by: the person's name.
        confirm: the words that the plan shows, written by hand.
    """

    approve: bool = False
    approved_by: str = ""
    confirm: str = ""
