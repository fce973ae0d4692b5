"""Decide about drills: what an incident needs brought back, which moments, and whether what was measured is enough.

The owner's `disaster_recovery:` is read here too. Does not: restore, ask a clock, or choose by chance: `seed` is given.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import yaml

from tiering.errors import PolicyError
from tiering.model_backup import StoreName
from tiering.model_drill import (
    Component,
    Incident,
    Objective,
    Objectives,
    Pick,
    Probe,
    Recovery,
    RecoveryPoint,
    Scope,
    Window,
)

SECTION = "disaster_recovery"
KEYS = ("tiers", "incidents", "detection", "probe")
_LENGTH = re.compile(r"(\d{1,6}) ?(s|min|h|d)")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}

PG, MONGO, REDIS = StoreName.POSTGRESQL, StoreName.MONGODB, StoreName.REDIS
LAKE, FILES, CONFIG = StoreName.LAKE, StoreName.APPLICATION_DATA, StoreName.CONFIGURATION

PROBES = (
    Probe("every slot answers and the snapshot's keys are there", Component.REDIS, frozenset({REDIS})),
    Probe("it takes writes, and its ledger's chain is whole", Component.POSTGRESQL_PRIMARY, frozenset({PG})),
    Probe("the last 7 days of one symbol", Component.TRADING_API, frozenset({PG})),
    Probe("the open positions", Component.TRADING_API, frozenset({PG})),
    Probe("the cache in front of the bars", Component.TRADING_API, frozenset({REDIS})),
    Probe("it takes writes, and every collection is there", Component.MONGODB, frozenset({MONGO})),
    Probe("sentiment by symbol", Component.ANALYTICS_API, frozenset({MONGO})),
    Probe("the newest analysis results", Component.ANALYTICS_API, frozenset({MONGO})),
    Probe("the newest sessions and reports", Component.USER_INTERFACE, frozenset({MONGO})),
    Probe("the users' settings", Component.USER_INTERFACE, frozenset({PG})),
    Probe("bars by month over all tiers", Component.REPORTING, frozenset({PG, LAKE})),
    Probe("what is due to move, by the restored ledger", Component.BATCH_JOBS, frozenset({PG, MONGO, CONFIG})),
    Probe("every object that the ledger names", Component.ARCHIVAL_DATA, frozenset({PG, LAKE})),
    Probe("every file of the snapshot", Component.ARCHIVAL_DATA, frozenset({FILES})),
)
"""What "recovered" means for each component: these questions are answered by the restored stores alone."""


# -- the owner's document -----------------------------------------------------------------------------------------


def parse_objectives(text: str, file: str) -> Objectives:
    """Read and check `disaster_recovery:` of a policy file.

    Raises:
        PolicyError: it is not there, or breaks a rule; with file, key and remedy.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise _refuse(file, SECTION, f"no YAML: {' '.join(str(exc).split())}") from None
    return read_objectives(document.get(SECTION) if isinstance(document, dict) else None, file)


def read_objectives(body: object, file: str) -> Objectives:
    """Check what stands under `disaster_recovery:`.

    Raises:
        PolicyError: a rule is broken; with file, key and remedy.
    """
    if not isinstance(body, dict):
        raise _refuse(file, SECTION, "missing: a drill is judged by it", "Copy it from deployments/policies.yaml.")
    for key in body:
        if key not in KEYS:
            raise _refuse(file, f"{SECTION}.{key}", "unknown key", f"Known: {', '.join(KEYS)}.")
    tiers = body.get("tiers")
    if not isinstance(tiers, dict) or sorted(tiers, key=str) != list(range(1, len(tiers) + 1)) or not tiers:
        raise _refuse(file, f"{SECTION}.tiers", "must be numbered from 1", "1 is the first to come back.")
    objectives = tuple(_objective(file, number, tiers[number]) for number in sorted(tiers))
    _check_tiers(file, objectives)
    return Objectives(
        tiers=objectives,
        recoveries=_recoveries(file, body.get("incidents")),
        detection=_length(file, f"{SECTION}.detection", body.get("detection", "60s")),
        probe=_length(file, f"{SECTION}.probe", body.get("probe", "1s")),
    )


def _objective(file: str, number: int, body: object) -> Objective:
    at = f"{SECTION}.tiers.{number}"
    if not isinstance(body, dict) or set(body) != {"components", "rto", "rpo"}:
        raise _refuse(file, at, "must have exactly components, rto and rpo")
    names = body["components"]
    if not isinstance(names, list) or not names:
        raise _refuse(file, f"{at}.components", "must be a list of components")
    for name in names:
        if name not in list(Component):
            raise _refuse(
                file, f"{at}.components", f"unknown component {name!r}", f"Known: {', '.join(map(str, Component))}."
            )
    rto, rpo = (_length(file, f"{at}.{key}", body[key]) for key in ("rto", "rpo"))
    return Objective(number, tuple(Component(name) for name in names), rto, rpo)


def _check_tiers(file: str, objectives: Sequence[Objective]) -> None:
    named = [component for objective in objectives for component in objective.components]
    for component in Component:
        if named.count(component) != 1:
            problem = "in no tier" if component not in named else "in two tiers"
            raise _refuse(file, f"{SECTION}.tiers", f"{component} is {problem}", "Every component is in one.")
    for one, other in zip(objectives, objectives[1:], strict=False):
        if one.rto > other.rto or one.rpo > other.rpo:
            raise _refuse(file, f"{SECTION}.tiers.{other.tier}", f"promises more than tier {one.tier}")


def _recoveries(file: str, body: object) -> dict[Incident, Recovery]:
    at = f"{SECTION}.incidents"
    if not isinstance(body, dict) or {str(key) for key in body} != {str(incident) for incident in Incident}:
        raise _refuse(file, at, f"must say full or partial for each of {', '.join(Incident)}")
    for name, kind in body.items():
        if kind not in list(Recovery):
            raise _refuse(file, f"{at}.{name}", f"unknown recovery {kind!r}", "Known: full, partial.")
    return {Incident(name): Recovery(kind) for name, kind in body.items()}


def _length(file: str, at: str, value: object) -> timedelta:
    found = _LENGTH.fullmatch(value) if isinstance(value, str) else None
    if found is None or int(found[1]) == 0:
        raise _refuse(file, at, f"{value!r} is no length of time", "Write a number and s, min, h or d: 15min.")
    return timedelta(seconds=int(found[1]) * _SECONDS[found[2]])


def _refuse(file: str, at: str, rule: str, hint: str = "") -> PolicyError:
    return PolicyError("check policies", f"{file}: {at}", rule, hint)


# -- what to bring back --------------------------------------------------------------------------------------------


def scope_of(objective: Objective, incident: Incident, recovery: Recovery, seed: int) -> Scope:
    """Say which components and stores a recovery brings back.

    Full: all of the tier and all that its components ask. Partial: of an outage, one store that failed (the seed says
    which) and the components that ask it; of a degradation, a second, untouched copy of the tier's busiest store to
    read from, since the one in place is up. What those components ask besides is restored as a stand-in.
    """
    stores = _stores_of(objective.components)
    if recovery is Recovery.FULL:
        reason = "everything of the tier, and what its components ask"
        return Scope(recovery, objective.components, stores, stores, reason)
    if incident is Incident.PERFORMANCE_DEGRADATION:
        failed, why = max(stores, key=lambda store: _weight(objective, store)), "a copy to read from, of the busiest"
    else:
        failed, why = stores[choose(seed, f"{incident} tier {objective.tier}", len(stores))], "the one that failed"
    asked = [probe for probe in PROBES if probe.component in objective.components and failed in probe.stores]
    components = tuple(one for one in objective.components if any(probe.component is one for probe in asked))
    needed = {store for probe in asked for store in probe.stores}
    ordered = tuple(store for store in StoreName if store in needed)
    stand_ins = ", ".join(store for store in ordered if store is not failed)
    reason = f"{why}: {failed}" + (f"; stand-ins for what is still up: {stand_ins}" if stand_ins else "")
    return Scope(recovery, components, (failed,), ordered, reason)


def probes_of(scope: Scope) -> tuple[Probe, ...]:
    """List the questions that the restored stores must answer: those that ask one of the failed ones."""
    failed = set(scope.failed)
    return tuple(probe for probe in PROBES if probe.component in scope.components and probe.stores & failed)


def _stores_of(components: Sequence[Component]) -> tuple[StoreName, ...]:
    needed = {store for probe in PROBES if probe.component in components for store in probe.stores}
    return tuple(store for store in StoreName if store in needed)


def _weight(objective: Objective, store: StoreName) -> int:
    return sum(store in probe.stores for probe in PROBES if probe.component in objective.components)


# -- which moments -------------------------------------------------------------------------------------------------


def choose_points(windows: Sequence[Window], seed: int) -> tuple[RecoveryPoint, ...]:
    """Choose latest, random and oldest moment that every store can be brought back to.

    Stores without a log follow with their last snapshot before the moment: they only say how early it may be.
    """
    logged = [window for window in windows if not window.moments] or list(windows)
    if not logged:
        return ()
    begins, ends = earliest(windows), min(window.ends for window in logged)
    if begins > ends:
        return ()
    span = int((ends - begins) / timedelta(milliseconds=1))
    between = begins + timedelta(milliseconds=choose(seed, "random point", span + 1))
    picks = ((Pick.LATEST, ends), (Pick.RANDOM, between), (Pick.OLDEST, begins))
    found: dict[datetime, RecoveryPoint] = {}
    for pick, at in picks:
        found.setdefault(at, RecoveryPoint(pick, at))
    return tuple(found.values())


def earliest(windows: Sequence[Window]) -> datetime:
    """Return the first moment that every store can be brought back to."""
    return max(min((*window.moments, window.ends)) if window.moments else window.begins for window in windows)


def snapshot_before(moments: Sequence[datetime], at: datetime) -> datetime | None:
    """Choose the last snapshot at or before a moment; None if all are later."""
    return max((moment for moment in moments if moment <= at), default=None)


def corruption_candidates(window: Window, count: int) -> tuple[datetime, ...]:
    """Spread moments over a window, oldest first, for the search of the last good one."""
    if window.moments:
        return tuple(sorted(window.moments))
    step = (window.ends - window.begins) / max(1, count - 1)
    found = [window.begins + step * index for index in range(count - 1)] + [window.ends]
    return tuple(dict.fromkeys(found))


def next_to_try(count: int, verdicts: Mapping[int, bool]) -> int | None:
    """Choose the candidate to restore next when looking for the last good one; None when it is known.

    Candidates are ordered by age, the oldest first: what is bad stays bad. The last good one is then the greatest
    index with a good verdict; there is none if even the oldest is bad. At most log2(count) + 1 are tried.
    """
    good = max((index for index, is_good in verdicts.items() if is_good), default=-1)
    bad = min((index for index, is_good in verdicts.items() if not is_good), default=count)
    return (good + bad) // 2 if bad - good > 1 else None


def last_good(verdicts: Mapping[int, bool]) -> int | None:
    """Name the last good candidate of a finished search."""
    return max((index for index, is_good in verdicts.items() if is_good), default=None)


def choose(seed: int, what: str, count: int) -> int:
    """Choose a number below `count`: the same for the same seed, another for another purpose."""
    return int.from_bytes(hashlib.sha256(f"{seed} {what}".encode()).digest()[:8], "big") % max(1, count)


# -- is that enough ------------------------------------------------------------------------------------------------


def stale_by(newest: datetime | None, every: timedelta, now: datetime, grace: timedelta) -> timedelta | None:
    """Say by how much the next backup is overdue; None if it is not."""
    if newest is None:
        return every
    late = now - newest - every - grace
    return late if late > timedelta(0) else None
