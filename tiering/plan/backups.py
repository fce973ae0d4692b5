"""Read the owner's `backup_strategy:`, and tell what is due next by it.

Does not: take backups, or ask a clock.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

import yaml

from tiering.errors import PolicyError
from tiering.model_backup import BackupKind, BackupSchedule, BackupStrategy, StoreName, StoreStrategy
from tiering.plan.spans import parse_span

SECTION = "backup_strategy"
LOG = "log"
CONTINUOUS = "continuous"
ON_CHANGE = "on change"
RETENTION = "retention"
KINDS = {
    StoreName.POSTGRESQL: (BackupKind.FULL, BackupKind.INCREMENTAL),
    StoreName.MONGODB: (BackupKind.FULL,),
    StoreName.REDIS: (BackupKind.FULL, BackupKind.AOF),
    StoreName.APPLICATION_DATA: (BackupKind.FULL,),
    StoreName.CONFIGURATION: (BackupKind.FULL,),
    StoreName.LAKE: (BackupKind.FULL,),
}
"""What can be taken of each store."""

LOGGED = (StoreName.POSTGRESQL, StoreName.MONGODB)
_DAILY = re.compile(r"daily (?:at )?([01]\d|2[0-3]):([0-5]\d)(?: ([A-Za-z]+))?")
_EVERY = re.compile(r"every (\d{1,2}) ?(?:h|hours?)")
_WHEN = "Write `daily 02:00 UTC`, `every 4h` (from midnight UTC) or a list of these."


@dataclass(frozen=True, slots=True)
class Due:
    """The next backup of a kind, and whether one that should be there is not.

    Attributes:
        last_due_at: when the last one should have begun.
        is_overdue: nothing of that kind was begun since then, or a full one instead of it.
    """

    store: StoreName
    kind: BackupKind
    next_at: datetime
    last_due_at: datetime
    is_overdue: bool


# -- reading ---------------------------------------------------------------------------------------------------------


def parse_strategy(text: str, file: str) -> BackupStrategy:
    """Read and check `backup_strategy:` of a policy file.

    Raises:
        PolicyError: it is not there, or breaks a rule; with file, key and remedy.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise _refuse(file, SECTION, f"not YAML: {' '.join(str(exc).split())}") from None
    body = document.get(SECTION) if isinstance(document, dict) else None
    if body is None:
        raise _refuse(file, SECTION, "missing: backups follow it", "Copy it from deployments/policies.yaml.")
    return read_strategy(body, file)


def read_strategy(body: object, file: str) -> BackupStrategy:
    """Check what stands under `backup_strategy:`.

    Raises:
        PolicyError: a rule is broken; with file, key and remedy.
    """
    stores = _mapping(body, file, SECTION, [str(store) for store in StoreName])
    if not stores:
        raise _refuse(file, SECTION, "empty: nothing would be backed up")
    return BackupStrategy(tuple(_store(StoreName(name), value, file) for name, value in stores.items()))


def _store(store: StoreName, body: object, file: str) -> StoreStrategy:
    at = f"{SECTION}.{store}"
    kinds = KINDS[store]
    keys = [*map(str, kinds), RETENTION] + ([LOG] if store in LOGGED else [])
    fields = _mapping(body, file, at, keys)
    if BackupKind.FULL not in fields:
        raise _refuse(file, f"{at}.{BackupKind.FULL}", "missing: every store has full backups", _WHEN)
    if fields.get(LOG, CONTINUOUS) != CONTINUOUS:
        raise _refuse(file, f"{at}.{LOG}", f"{fields[LOG]!r} is not known", f"Write {CONTINUOUS}, or leave it out.")
    schedules = tuple(_schedule(kind, fields[kind], file, f"{at}.{kind}") for kind in kinds if kind in fields)
    _check_clashes(schedules, file, at)
    promised = [str(one.kind) for one in schedules] + ([LOG] if LOG in fields else [])
    kept = _retention(fields.get(RETENTION), promised, file, f"{at}.{RETENTION}")
    _check_retention(schedules, kept, file, f"{at}.{RETENTION}")
    return StoreStrategy(store, schedules, {BackupKind(k): kept[k] for k in kept if k != LOG}, kept.get(LOG))


def _schedule(kind: BackupKind, body: object, file: str, at: str) -> BackupSchedule:
    texts = body if isinstance(body, list) else [body]
    times: set[time] = set()
    for text in texts:
        if text != ON_CHANGE:
            times |= _times(text, file, at)
    if not times:
        raise _refuse(file, at, "needs a time of the day, too: a change that nobody saw is found by it", _WHEN)
    return BackupSchedule(kind, tuple(sorted(times)), ON_CHANGE in texts)


def _times(text: object, file: str, at: str) -> set[time]:
    words = " ".join(text.split()) if isinstance(text, str) else ""
    if found := _DAILY.fullmatch(words):
        if found[3] != "UTC":
            raise _refuse(file, at, f"{text!r} does not say UTC", f"Write `daily {found[1]}:{found[2]} UTC`.")
        return {time(int(found[1]), int(found[2]))}
    if found := _EVERY.fullmatch(words):
        hours = int(found[1])
        if hours == 0 or 24 % hours:
            raise _refuse(file, at, f"{text!r} does not divide a day", "1, 2, 3, 4, 6, 8, 12 or 24 hours.")
        return {time(hour) for hour in range(0, 24, hours)}
    raise _refuse(file, at, f"{text!r} is no schedule", _WHEN)


def _check_clashes(schedules: Iterable[BackupSchedule], file: str, at: str) -> None:
    taken: dict[time, BackupKind] = {}
    for schedule in schedules:
        for when in schedule.times:
            if when in taken:
                rule = f"{schedule.kind} and {taken[when]} both begin at {when:%H:%M} UTC; one would be refused"
                raise _refuse(file, f"{at}.{schedule.kind}", rule, "Two backups of a store never run at once.")
            taken[when] = schedule.kind


def _retention(body: object, promised: list[str], file: str, at: str) -> dict[str, timedelta]:
    """Read a length for each kind; one length alone counts for all."""
    if body is None:
        raise _refuse(file, at, "missing: say how long backups are kept", f"For each of {', '.join(promised)}.")
    lengths = _mapping(body, file, at, promised) if isinstance(body, dict) else dict.fromkeys(promised, body)
    for kind in promised:
        if kind not in lengths:
            raise _refuse(file, f"{at}.{kind}", "missing", f"Say it for each of {', '.join(promised)}.")
    return {kind: _length(lengths[kind], file, f"{at}.{kind}") for kind in promised}


def _check_retention(schedules: Iterable[BackupSchedule], kept: dict[str, timedelta], file: str, at: str) -> None:
    full = kept[BackupKind.FULL]
    for kind, length in kept.items():
        if kind in (BackupKind.INCREMENTAL, LOG) and length > full:
            hint = "Neither is of use without the full backup that it rests on."
            raise _refuse(file, f"{at}.{kind}", f"{kind} is kept longer than full backups", hint)
    if LOG in kept and kept.get(BackupKind.INCREMENTAL, full) < kept[LOG]:
        hint = "Where the log has a gap, only they bring back the moments behind it."
        raise _refuse(file, f"{at}.{BackupKind.INCREMENTAL}", "incrementals are kept shorter than the log", hint)
    for schedule in schedules:
        if kept[schedule.kind] < longest_pause(schedule):
            rule = f"{schedule.kind} backups would be gone before the next one is there"
            raise _refuse(file, f"{at}.{schedule.kind}", rule)


def _length(value: object, file: str, at: str) -> timedelta:
    """Turn a calendar length into days, rounded up: a promise is never kept shorter than its months can be."""
    if not isinstance(value, str):
        raise _refuse(file, at, f"{value!r} is not a length of time", "Write a number and a unit, for example 30d.")
    try:
        span = parse_span(value)
    except PolicyError as exc:
        raise _refuse(file, at, f"{exc.subject}: {exc.cause}", exc.hint) from None
    years, months = divmod(span.months, 12)
    found = timedelta(days=years * 366 + months * 31 + span.days, hours=span.hours)
    if not found:
        raise _refuse(file, at, "nothing is kept for no time")
    return found


def _mapping(value: object, file: str, at: str, known: Collection[str]) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _refuse(file, at, f"must be a mapping with the keys {', '.join(known)}")
    for key in value:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."
            raise _refuse(file, f"{at}.{key}", "unknown key", hint)
    return value


def _refuse(file: str, at: str, rule: str, hint: str = "") -> PolicyError:
    return PolicyError("check policies", f"{file}: {at}", rule, hint)


# -- what is due -----------------------------------------------------------------------------------------------------


def cron_of(schedule: BackupSchedule) -> tuple[str, ...]:
    """Write a schedule as cron expressions (UTC), one for each minute of the hour that it uses."""
    minutes = sorted({when.minute for when in schedule.times})
    hours = {minute: [str(when.hour) for when in schedule.times if when.minute == minute] for minute in minutes}
    return tuple(f"{at} {'*' if len(hours[at]) == 24 else ','.join(hours[at])} * * *" for at in minutes)


def longest_pause(schedule: BackupSchedule) -> timedelta:
    """Return the longest time between two backups of a kind, when all goes well."""
    moments = [timedelta(hours=when.hour, minutes=when.minute) for when in schedule.times]
    following = [*moments[1:], moments[0] + timedelta(days=1)]
    return max(after - before for before, after in zip(moments, following, strict=True))


def due_next(
    strategy: StoreStrategy, begun: Iterable[tuple[BackupKind, datetime]], now: datetime, grace: timedelta
) -> tuple[Due, ...]:
    """Tell for each kind when it comes next, and whether the last one that was due is missing.

    Args:
        strategy: of the store.
        begun: kind and beginning of the store's backups that count.
        now: the instant.
        grace: for how long after its time a backup may still be under way.
    """
    have = list(begun)
    found = []
    for schedule in strategy.schedules:
        next_at, last = _around(schedule, now)
        _, due = _around(schedule, now - grace)
        counts = (schedule.kind, BackupKind.FULL)
        is_overdue = not any(kind in counts and at >= due for kind, at in have)
        found.append(Due(strategy.store, schedule.kind, next_at, last, is_overdue))
    return tuple(found)


def _around(schedule: BackupSchedule, now: datetime) -> tuple[datetime, datetime]:
    """Return the next and the last scheduled time, seen from `now`."""
    today = now.astimezone(UTC).date()
    moments = [
        datetime.combine(today + timedelta(days=day), when, UTC) for day in (-1, 0, 1) for when in schedule.times
    ]
    return min(at for at in moments if at > now), max(at for at in moments if at <= now)
