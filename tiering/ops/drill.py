"""Drill a disaster: bring a tier back from the backup bucket alone, on servers of its own, measure, and tell the truth.

Whatever goes wrong becomes a defect with a name and the drill goes on, so that one run tells everything that is wrong;
a drill with a defect, or beyond an objective, has failed. It sees bucket and key, and nothing of the primary: neither
its servers nor its secrets nor its catalogue.
Does not: touch the primary, or repair what it finds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from tiering import errors
from tiering.model_backup import StoreName
from tiering.model_drill import (
    Beat,
    Component,
    DrillReport,
    Incident,
    Measured,
    Pick,
    Probe,
    RecoveryPoint,
    Window,
)
from tiering.ops import expect
from tiering.ops.drill_corruption import Check, find_last_good
from tiering.ops.drill_run import Kit, Run, code_of
from tiering.ops.probes import Ground, ask
from tiering.ops.recoverers import Recoverer, Restored
from tiering.plan import drills as plan
from tiering.plan.heartbeat import common_beat, judge_chain
from tiering.plan.shapes import compare

GRACE = timedelta(hours=1)
"""How late a backup may be before it is stale: it takes a while."""

LAG_BEATS = 2
"""So many beats a store may be behind the moment asked for: one is being written, one is being archived."""

Chains = Mapping[str, Sequence[Beat]]


def run_drill(
    kit: Kit,
    tier: int,
    incident: Incident,
    *,
    seed: int,
    incident_at: datetime | None = None,
    check: Check | None = None,
    is_quick: bool = False,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> DrillReport:
    """Run one drill to its end.

    Args:
        kit: bucket, key, ways to restore.
        tier: whose components are brought back.
        incident: that is assumed.
        seed: of the random recovery point, the failing store, the moment of corruption.
        incident_at: when it is assumed to have happened: RTO and RPO count from there; default: the drill's begin.
        check: of data corruption: tells whether a restored store is good; default: the corruption is assumed, at a
            random heartbeat.
        is_quick: only the newest moment is brought back, none of the older ones.
        clock: tells the time.

    Returns:
        The report, whatever happened.
    """
    began_at, began = clock(), time.monotonic()
    objective = kit.objectives.of(tier)
    scope = plan.scope_of(objective, incident, kit.objectives.recoveries[incident], seed)
    happened = incident_at or began_at
    run = Run(kit, objective, incident, scope, seed, happened, happened, began_at, began)
    with run.phase("choose"):
        pairs = _look(run)
    points = plan.choose_points([window for _, window in pairs], seed)
    if not points:
        reach = [f"{window.store} reaches from {window.begins} to {window.ends}" for _, window in pairs]
        text = "; ".join(reach) or "nothing can be brought back"
        run.blame("no_recovery_point", f"tier {tier}", f"no moment is in reach of all stores: {text}")
        return _report(run, (), None, clock())
    with ExitStack() as servers:
        latest = points[0].at
        if incident is Incident.DATA_CORRUPTION:
            latest = _search(run, pairs, latest, check)
            points = (RecoveryPoint(Pick.LATEST, latest), *(point for point in points[1:] if point.at < latest))
        restored = _restore_all(run, servers, [recoverer for recoverer, _ in pairs], latest)
        chains = _verify(run, restored, latest)
        common = _find_common(run, chains)
        _ask_all(run, [copy for _, copy in restored])
    points = points[:1] if is_quick else points
    for point in points[1:]:
        _try_older(run, point, [recoverer for recoverer, _ in pairs], chains)
    return _report(run, points, common, clock())


# -- choosing ------------------------------------------------------------------------------------------------------


def _look(run: Run) -> list[tuple[Recoverer, Window]]:
    """Find out what can be brought back; a store without a backup, or with a stale one, is a defect."""
    found = []
    for recoverer in run.kit.recoverers:
        if recoverer.store not in run.scope.stores:
            continue
        subject = f"{recoverer.store}/{recoverer.source}"
        try:
            newest = recoverer.newest().backup.began_at
            window = recoverer.window()
            found.append((recoverer, window))
            if window.gap:
                run.blame("log_gap", subject, window.gap)
        except errors.TieringError as exc:
            run.blame(code_of(exc), subject, str(exc))
            continue
        every = run.kit.cadence.get(recoverer.store)
        late = plan.stale_by(newest, every, run.began_at, GRACE) if every else None
        if late is not None:
            text = f"the newest backup is of {newest:%Y-%m-%d %H:%M}Z: the next one is overdue by {late}"
            run.blame("stale_backup", subject, text)
    for store in run.scope.stores:
        if not any(recoverer.store is store for recoverer in run.kit.recoverers):
            run.blame("missing_backup", store, "the bucket has no backup of it")
    return found


def _search(run: Run, pairs: Sequence[tuple[Recoverer, Window]], latest: datetime, check: Check | None) -> datetime:
    """Find the last moment before the corruption, by restoring; without one, the latest is brought back and judged."""
    logged = [pair for pair in pairs if not pair[1].moments]
    if not logged:
        run.blame("no_recovery_point", "data_corruption", "no store in scope keeps a log to search in")
        return latest
    with run.phase("search", "last good point"):
        recoverer, window = logged[0]
        window = replace(window, begins=plan.earliest([window for _, window in pairs]))
        site = expect.newest(run.kit.vault).site
        found = find_last_good(recoverer, window, latest, site, run.seed, check)
        run.notes.append(found.text)
        if found.at is None:
            run.blame("no_recovery_point", "data_corruption", found.text)
            return latest
        # What was written after the corruption is no loss: it is what one wants to be rid of.
        run.loss_until = found.corrupted_at or run.loss_until
        return found.at
    return latest


# -- restoring and verifying ---------------------------------------------------------------------------------------


def _restore_all(
    run: Run, servers: ExitStack, recoverers: Sequence[Recoverer], at: datetime
) -> list[tuple[Recoverer, Restored]]:
    """Bring every store back to one moment, side by side; those that fail are defects."""

    def restore(recoverer: Recoverer) -> tuple[Recoverer, Restored] | None:
        with run.phase("restore", f"{recoverer.store}/{recoverer.source}"):
            manager = recoverer.restore(at)
            restored = manager.__enter__()
            with run.lock:
                servers.push(manager)
            return recoverer, restored
        return None

    if not recoverers:
        return []
    with ThreadPoolExecutor(len(recoverers), "drill") as pool:
        return [pair for pair in pool.map(restore, recoverers) if pair is not None]


def _verify(run: Run, restored: Sequence[tuple[Recoverer, Restored]], at: datetime) -> dict[str, list[Beat]]:
    """Check each restored store by its own tools, by its shape and by its heartbeats; return the latter."""
    before, after = None, None
    with run.phase("expectations"):
        before, after = expect.around_moment(run.kit.vault, at)
    chains: dict[str, list[Beat]] = {}
    described = before or after
    if described is None:
        return chains  # without the names of databases there is nothing to look into
    if before is None:
        run.notes.append(f"nobody had described the primary by {at:%Y-%m-%d %H:%M:%S}Z: shapes were not compared")
    site = described.site

    def verify(pair: tuple[Recoverer, Restored]) -> None:
        recoverer, copy = pair
        subject = f"{copy.store}/{copy.source}"
        with run.phase("verify", subject):
            for defect in recoverer.check(copy):
                run.blame(defect.code, defect.subject, defect.text)
            for name, shape in recoverer.shapes(copy, site).items():
                known = before.shapes.get(name) if before else None
                later = after.shapes.get(name) if after else None
                for defect in compare(subject, known, later, shape) if known is not None else ():
                    run.blame(defect.code, defect.subject, defect.text)
            beats = recoverer.beats(copy, site)
            if beats is not None:
                chains[subject] = beats
                _judge_beats(run, copy, beats)
            else:
                run.reached[copy.store] = copy.at

    with ThreadPoolExecutor(max(1, len(restored)), "drill") as pool:
        list(pool.map(verify, restored))
    _demand_moment(run, restored, chains, at)
    return chains


def _judge_beats(run: Run, copy: Restored, beats: Sequence[Beat]) -> None:
    subject = f"{copy.store}/{copy.source}"
    verdict = judge_chain(subject, beats)
    if verdict.problem:
        run.blame("broken_chain", subject, verdict.problem)
    if verdict.last is not None:
        known = run.reached.get(copy.store)
        run.reached[copy.store] = min(known, verdict.last.at) if known else verdict.last.at


def _demand_moment(run: Run, restored: Sequence[tuple[Recoverer, Restored]], chains: Chains, at: datetime) -> None:
    """Demand that each store is exactly at the moment: nothing after it, and nothing missing before it.

    What should be there is told by the store that reaches furthest.
    """
    everywhere = {beat.seq: beat for beats in chains.values() for beat in beats if beats}
    for _, copy in restored:
        subject = f"{copy.store}/{copy.source}"
        beats = chains.get(subject)
        if not beats:
            continue
        if beats[-1].at > at:
            late = (beats[-1].at - at).total_seconds()
            run.blame("overshoot", subject, f"it has a write {late:.3f} s after the moment {at.isoformat()}")
        due = max((beat.seq for beat in everywhere.values() if beat.at <= copy.at), default=0)
        if due - beats[-1].seq > LAG_BEATS and copy.at <= at:
            text = f"it ends {due - beats[-1].seq} heartbeats before the moment {copy.at.isoformat()}"
            run.blame("undershoot", subject, text)


def _find_common(run: Run, chains: Chains) -> Beat | None:
    """Find the recovery point that all stores share, or say that they are not of one history."""
    if not chains:
        return None
    common, problem = common_beat(chains)
    if problem:
        run.blame("no_common_point", " and ".join(chains), problem)
    return common


def _try_older(run: Run, point: RecoveryPoint, recoverers: Sequence[Recoverer], newest: Chains) -> None:
    """Bring an older moment back too: that the newest works says nothing of those that are promised besides.

    Its heartbeats must be those that the newest restore has of that time.
    """
    with ExitStack() as servers, run.phase(f"{point.pick} point", f"{point.at:%Y-%m-%d %H:%M:%S}Z"):
        restored = _restore_all(run, servers, recoverers, point.at)
        before = len(run.defects)
        reached = dict(run.reached)
        chains = _verify(run, restored, point.at)
        run.reached = reached  # the RPO is of the latest point
        _find_common(run, chains)
        for subject, beats in chains.items():
            there = {beat.seq: beat for beat in newest.get(subject, ())}
            other = [beat.seq for beat in beats if beat.seq in there and there[beat.seq] != beat]
            if other:
                run.blame("other_history", subject, f"heartbeat {other[0]} is not the one of the newest restore")
        if len(run.defects) == before:
            run.notes.append(f"the {point.pick} point, {point.at:%Y-%m-%d %H:%M:%S}Z, was brought back and is good")


# -- asking and judging --------------------------------------------------------------------------------------------


def _ask_all(run: Run, restored: Sequence[Restored]) -> None:
    """Ask the restored stores what the components ask; the time of the last right answer is the component's RTO."""
    there = {copy.store for copy in restored}
    questions = plan.probes_of(run.scope)
    for probe in questions:
        if not probe.stores <= there:
            run.failed.add(probe.component)
    answerable = [probe for probe in questions if probe.stores <= there]
    if not answerable:
        return
    with run.phase("open"):
        site = expect.newest(run.kit.vault).site
        with run.kit.opened(site, restored) as stores:
            ground = Ground(stores, site, {copy.store: copy for copy in restored})
            for probe in answerable:
                _ask_one(run, ground, probe)
        return
    run.failed.update(probe.component for probe in answerable)


def _ask_one(run: Run, ground: Ground, probe: Probe) -> None:
    seconds, answer = 0.0, ""
    before = len(run.defects)
    with run.phase("ask", f"{probe.component}: {probe.name}"):
        began = time.monotonic()
        answer = ask(ground, probe)
        seconds = time.monotonic() - began
        if run.incident is Incident.PERFORMANCE_DEGRADATION:
            # The first question also pays for connecting and for a cold cache.
            began = time.monotonic()
            ask(ground, probe)
            seconds = time.monotonic() - began
            if timedelta(seconds=seconds) > run.kit.objectives.probe:
                run.blame("slow_probe", probe.component, f"{probe.name}: {seconds:.2f} s")
    if len(run.defects) > before and not answer:
        run.failed.add(probe.component)
        return
    _, answers = run.answered.get(probe.component, (0.0, []))
    run.answered[probe.component] = (run.elapsed(), [*answers, f"{probe.name}: {answer} ({seconds:.2f} s)"])


def _report(run: Run, points: Sequence[RecoveryPoint], common: Beat | None, ended_at: datetime) -> DrillReport:
    waited = max(timedelta(0), run.began_at - run.incident_at)
    measured = []
    for component in run.scope.components:
        asked = run.answered.get(component)
        is_back = asked is not None and component not in run.failed
        rto = waited + run.kit.objectives.detection + timedelta(seconds=asked[0]) if is_back and asked else None
        text = "; ".join(asked[1]) if asked else "nothing was answered"
        rpo = _rpo(run, component)
        measured.append(Measured(component, is_back, rto, rpo, run.objective.rto, run.objective.rpo, text))
    _note_snapshots(run)
    return DrillReport(
        drill_id=f"{run.began_at:%Y%m%dT%H%M%S%f}Z-tier{run.objective.tier}-{run.incident}",
        tier=run.objective.tier,
        incident=run.incident,
        recovery=run.scope.recovery,
        scope=run.scope.reason,
        seed=run.seed,
        incident_at=run.incident_at,
        began_at=run.began_at,
        ended_at=ended_at,
        points=tuple(points),
        common_seq=common.seq if common else 0,
        phases=tuple(sorted(run.phases, key=lambda phase: phase.ended_after_s)),
        measured=tuple(measured),
        defects=tuple(run.defects),
        notes=tuple(run.notes),
    )


def _note_snapshots(run: Run) -> None:
    """Tell the age of what no RPO is measured by."""
    ages = {store: run.loss_until - at for store, at in run.reached.items() if store in run.scope.stores}
    if age := ages.get(StoreName.REDIS):
        run.notes.append(
            f"Redis is a cache: its snapshot was {age.total_seconds():.0f} s old; what it lacks is filled from "
            "PostgreSQL and MongoDB when it is asked for, and its RPO is theirs"
        )


def _rpo(run: Run, component: Component) -> timedelta | None:
    """Measure what is lost: from the last write that is back in all of the component's stores to the incident."""
    stores = {store for probe in plan.probes_of(run.scope) if probe.component is component for store in probe.stores}
    records = stores - {StoreName.CONFIGURATION, StoreName.REDIS}
    if not records:
        # A cache loses nothing that its records do not lose; those that did not fail lose nothing at all.
        records = {store for store in run.scope.failed if store in (StoreName.POSTGRESQL, StoreName.MONGODB)}
        if not records:
            return timedelta(0)
    if not records <= run.reached.keys():
        return None
    return max(max(timedelta(0), run.loss_until - run.reached[store]) for store in records)
