"""Decide how a moment of PostgreSQL is brought back: which backup, which log, or why it cannot be.

Positions are numbers here (`at`), half-open ranges `[begins, ends)`. A *path* is the history of one timeline: which
timeline was in force between which positions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from tiering.errors import NotFound, PermanentError
from tiering.model_backup import Backup, BackupKind, BackupState, CatalogueEntry, LogRange, encode_position

END = 1 << 64
_LSN = re.compile(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}")


class TargetKind(StrEnum):
    """By what a moment is named."""

    LATEST = "latest"
    TIME = "time"
    LSN = "lsn"
    XID = "xid"
    NAME = "name"


@dataclass(frozen=True, slots=True)
class Target:
    """A moment to bring back.

    Attributes:
        kind: by what it is named.
        at: of TIME.
        value: position of LSN, number of XID, name of NAME (a restore point).
        inclusive: whether what happened exactly there is in it. By TIME, commits of that very microsecond; by LSN, the
            record that begins there; by XID, that transaction.
        timeline: which branch of history; 0: the newest.
    """

    kind: TargetKind
    at: datetime | None = None
    value: str = ""
    inclusive: bool = True
    timeline: int = 0

    def __str__(self) -> str:
        what = f"{self.at:%Y-%m-%d %H:%M:%S.%f}Z" if self.at else self.value
        return f"{self.kind} {what}".strip() + ("" if self.inclusive else " (exclusive)")


@dataclass(frozen=True, slots=True)
class Stretch:
    """A timeline in force between two positions."""

    timeline: int
    begins: int
    ends: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Log that is missing between what is there before and after it."""

    timeline: int
    begins: int
    ends: int


@dataclass(frozen=True, slots=True)
class LogReport:
    """What a look at a source's log found.

    Attributes:
        ends: up to where the log is there without a hole, from the newest full backup; 0: there is none.
        gaps: holes since the oldest backup that is still to be restored to.
        needs_full: why a new full backup is needed; empty if none is.
    """

    timeline: int
    ends: int
    gaps: tuple[Gap, ...]
    needs_full: str


def at(position: str) -> int:
    """Return an LSN as a number."""
    return int(encode_position(position), 16)


def parse_target(text: str, *, inclusive: bool = True, timeline: int = 0) -> Target:
    """Read `latest`, an instant with time zone, `0/3000028`, `xid:740` or `name:before_release`.

    Raises:
        PermanentError: it is none of these, or an instant without time zone.
    """
    if text == TargetKind.LATEST:
        return Target(TargetKind.LATEST, timeline=timeline)
    if _LSN.fullmatch(text):
        return Target(TargetKind.LSN, None, text.upper(), inclusive, timeline)
    kind, colon, value = text.partition(":")
    if colon and kind == TargetKind.XID and value.isdigit():
        return Target(TargetKind.XID, None, value, inclusive, timeline)
    if colon and kind == TargetKind.NAME and value:
        return Target(TargetKind.NAME, None, value, inclusive, timeline)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        hint = "Write latest, 2026-11-22T08:00:00Z, 0/3000028, xid:740 or name:before_release."
        raise PermanentError("read target", text, "not a moment", hint) from None
    if moment.utcoffset() is None:
        raise PermanentError("read target", text, "it has no time zone", f"Write it like {text}Z.")
    return Target(TargetKind.TIME, moment.astimezone(UTC), "", inclusive, timeline)


def parse_history(timeline: int, text: str) -> tuple[Stretch, ...]:
    """Read a timeline's history file into its path, the oldest stretch first."""
    path, begins = [], 0
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if len(words) >= 2:
            ends = at(words[1])
            path.append(Stretch(int(words[0]), begins, ends))
            begins = ends
    return (*path, Stretch(timeline, begins, END))


def choose_path(ranges: Sequence[LogRange], histories: Mapping[int, str], timeline: int = 0) -> tuple[Stretch, ...]:
    """Choose the branch of history: the one asked for, else the newest.

    Raises:
        NotFound: the log has no such timeline, or its history is missing.
    """
    known = {one.timeline for one in ranges} | set(histories)
    wanted = timeline or max(known, default=1)
    if timeline and known and timeline not in known:
        there = ", ".join(map(str, sorted(known)))
        raise NotFound("find", f"timeline {timeline}", f"the log has {there}", "Choose one of them.")
    if wanted > 1 and wanted not in histories:
        raise NotFound("find", f"history of timeline {wanted}", "it is not in the bucket", "Let the log stream run.")
    return parse_history(wanted, histories.get(wanted, ""))


def covered_until(ranges: Sequence[LogRange], path: Sequence[Stretch], begins: int) -> int:
    """Follow the log from a position without a hole; return where it ends."""
    position = begins
    for stretch in path:
        if position >= stretch.ends:
            continue
        for low, high in _merged(ranges, stretch.timeline):
            if low <= position < high:
                position = min(high, stretch.ends)
        if position < stretch.ends:
            break
    return position


def resume_at(ranges: Sequence[LogRange], stretch: Stretch, restart: int, segment_bytes: int) -> int:
    """Say from where to stream a timeline again, so that no hole is left.

    Args:
        ranges: what is stored.
        stretch: the timeline.
        restart: from where the server certainly has its log.
        segment_bytes: a segment is read from its first page on, so a beginning is that of a segment.
    """
    spans = _merged(ranges, stretch.timeline)
    if not spans:
        begins = stretch.begins if stretch.begins else restart
        return begins - begins % segment_bytes
    # What the server keeps for us begins where all is stored; behind it may be pieces that arrived out of order.
    before = [(low, high) for low, high in spans if low <= restart]
    return before[-1][1] if before else restart - restart % segment_bytes


def find_gaps(ranges: Sequence[LogRange], path: Sequence[Stretch], begins: int) -> tuple[Gap, ...]:
    """Find the holes after a position: log is missing, and there is log behind it."""
    gaps: list[Gap] = []
    position = begins
    for stretch in path:
        merged = [span for span in _merged(ranges, stretch.timeline) if span[1] > position and span[0] < stretch.ends]
        for low, high in merged:
            if low > position:
                gaps.append(Gap(stretch.timeline, position, low))
            position = max(position, min(high, stretch.ends))
        is_last = stretch is path[-1]
        if not is_last and position < stretch.ends:
            gaps.append(Gap(stretch.timeline, position, stretch.ends))
            position = stretch.ends
    return tuple(gaps)


def is_on(backup: Backup, path: Sequence[Stretch]) -> bool:
    """Say whether a backup ended on this branch of history."""
    ends = at(backup.ends)
    timeline = int(str(backup.facts.get("timeline", 1)))
    return any(one.timeline == timeline and one.begins <= ends <= one.ends for one in path)


def usable_bases(entries: Sequence[CatalogueEntry], path: Sequence[Stretch], incarnation: str) -> list[Backup]:
    """Return the backups to restore from, the newest first: not failed, on the branch, with all their links usable."""
    good = {
        entry.backup.backup_id: entry.backup
        for entry in entries
        if entry.state is not BackupState.FAILED
        and entry.backup.incarnation == incarnation
        and is_on(entry.backup, path)
    }
    whole = [one for one in good.values() if one.parent_id is None or one.parent_id in good]
    return sorted(whole, key=lambda one: (at(one.ends), one.backup_id), reverse=True)


def links_of(backup: Backup, entries: Sequence[CatalogueEntry]) -> tuple[Backup, ...]:
    """Return a backup with everything it rests on, the full one first.

    Raises:
        NotFound: a link is missing.
    """
    by_id = {entry.backup.backup_id: entry.backup for entry in entries}
    links = [backup]
    while (parent := links[0].parent_id) is not None:
        if parent not in by_id:
            raise NotFound("restore", backup.backup_id, f"it rests on {parent}, which is gone", "Choose another.")
        links.insert(0, by_id[parent])
    return tuple(links)


def ended_at(backup: Backup) -> datetime:
    """Return when a backup was whole, by its server's clock: what was committed before is in it."""
    told = backup.facts.get("server_ended_at")
    return datetime.fromisoformat(str(told)) if told else backup.ended_at


def bases_before(bases: Sequence[Backup], target: Target) -> list[Backup]:
    """Leave out the bases that were not whole yet at an instant: they hold commits of after it."""
    return [one for one in bases if target.at is None or ended_at(one) <= target.at]


def refuse_late(target: Target, ends: int, last_commit: datetime | None) -> NotFound:
    """Make the refusal of a moment past the end of the log."""
    of = f", its last commit is of {last_commit:%Y-%m-%d %H:%M:%S.%f}Z" if last_commit else ""
    cause = f"the log that can be restored ends at {_text(ends)}{of}"
    return NotFound("restore", str(target), cause, "Choose an earlier moment, or `latest` for all there is.")


def refuse_holes(gaps: Sequence[Gap], target: Target) -> None:
    """Refuse the latest moment where the log has a hole before it: it would be an earlier one in silence.

    Raises:
        NotFound: names the first hole.
    """
    if gaps:
        cause = f"the log has a hole from {_text(gaps[0].begins)} to {_text(gaps[0].ends)}, and goes on behind it"
        hint = f"Up to the hole it can be restored: name a moment, or `{_text(gaps[0].begins)}` (exclusive)."
        raise NotFound("restore", str(target), cause, hint)


def refuse_early(bases: Sequence[Backup], target: Target) -> NotFound:
    """Make the refusal of a moment before everything that can be restored."""
    if not bases:
        return NotFound("restore", str(target), "there is no usable backup", "Take one: `tiering backup postgresql`.")
    if target.kind in (TargetKind.XID, TargetKind.NAME):
        cause = "the log since the oldest backup knows nothing of it"
        return NotFound("restore", str(target), cause, "Is it the right source? A moment by time always works.")
    oldest = min(bases, key=lambda one: at(one.ends))
    cause = (
        f"it is before the oldest backup {oldest.backup_id}, which ends at {oldest.ends} ({ended_at(oldest):%F %T.%f}Z)"
    )
    return NotFound("restore", str(target), cause, "A backup can only be restored to its end or later.")


def judge_log(
    entries: Sequence[CatalogueEntry], ranges: Sequence[LogRange], histories: Mapping[int, str], incarnation: str
) -> LogReport:
    """Look for holes in the log of one history, and say whether only a new full backup helps.

    Gaps before the newest full backup stay told, while a backup older than them is kept: no moment in them, or between
    them and that full backup's end, can be brought back.
    """
    here = [one for one in ranges if one.incarnation == incarnation]
    path = choose_path(here, histories)
    bases = usable_bases(entries, path, incarnation)
    timeline = path[-1].timeline
    if not bases:
        return LogReport(timeline, 0, (), "there is no full backup of this history")
    gaps = find_gaps(here, path, at(bases[-1].begins))
    fulls = [one for one in bases if one.kind is BackupKind.FULL]
    ends = max((covered_until(here, path, at(one.begins)) for one in fulls), default=0)
    newest = max((at(one.ends) for one in here if one.timeline == timeline), default=0)
    if not fulls:
        return LogReport(timeline, ends, gaps, "there is no full backup of this history")
    if ends < newest:
        why = f"the log has a hole at {_text(ends)}: what came after cannot be restored from any backup"
        return LogReport(timeline, ends, gaps, why)
    return LogReport(timeline, ends, gaps, "")


def choose_merges(ranges: Sequence[LogRange], segment_bytes: int, small_count_max: int) -> list[tuple[LogRange, ...]]:
    """Choose stretches of log to be made one object each: whole segments, and many small ones of the newest.

    Args:
        ranges: of one history.
        segment_bytes: no object crosses a segment.
        small_count_max: in the newest segment, merge only more than so many.
    """
    groups: dict[tuple[int, int], list[LogRange]] = {}
    for one in ranges:
        groups.setdefault((one.timeline, at(one.begins) // segment_bytes), []).append(one)
    newest = max(groups, default=None)
    chosen = []
    for key, group in groups.items():
        run = _chain(group)
        if len(run) < 2:
            continue
        is_whole = at(run[0].begins) % segment_bytes == 0 and at(run[-1].ends) % segment_bytes == 0
        if (is_whole and key != newest) or len(run) > small_count_max:
            chosen.append(tuple(run))
    return chosen


def superseded(ranges: Sequence[LogRange]) -> list[LogRange]:
    """Return the stretches that lie wholly within one other stretch of the same timeline: nothing needs them."""
    found: list[LogRange] = []
    groups: dict[tuple[str, int], list[LogRange]] = {}
    for one in ranges:
        groups.setdefault((one.incarnation, one.timeline), []).append(one)
    for group in groups.values():
        reach = -1
        # Of several with one begin the longest comes first; one that ends within reach began within its begetter.
        for one in sorted(group, key=lambda one: (at(one.begins), -at(one.ends))):
            if at(one.ends) <= reach:
                found.append(one)
            reach = max(reach, at(one.ends))
    return found


def _chain(group: Sequence[LogRange]) -> list[LogRange]:
    """Pick the ranges of a segment that follow each other without a hole, from the first on."""
    run: list[LogRange] = []
    for one in sorted(group, key=lambda one: (at(one.begins), -at(one.ends))):
        if not run or at(run[-1].begins) < at(one.begins) <= at(run[-1].ends) < at(one.ends):
            run.append(one)
        elif at(one.begins) > at(run[-1].ends):
            break
    return run


def _merged(ranges: Sequence[LogRange], timeline: int) -> list[tuple[int, int]]:
    spans = sorted((at(one.begins), at(one.ends)) for one in ranges if one.timeline == timeline)
    merged: list[tuple[int, int]] = []
    for low, high in spans:
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def _text(position: int) -> str:
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"
