"""Which backup and which log lead to a moment: compared with a history that is known position by position."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiering.errors import NotFound, PermanentError
from tiering.model_backup import (
    Backup,
    BackupKind,
    BackupState,
    CatalogueEntry,
    LogRange,
    StoredObject,
    StoreName,
)
from tiering.plan import recovery
from tiering.plan.recovery import END, Gap, Stretch, Target, TargetKind, at, parse_target

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SEGMENT = 16
STRETCHES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=12)


def lsn(position: int) -> str:
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def piece(begins: int, ends: int, timeline: int = 1, incarnation: str = "7") -> LogRange:
    stored = StoredObject(f"{timeline}/{begins}-{ends}", ends - begins, ends - begins, "")
    return LogRange(StoreName.POSTGRESQL, "main", incarnation, timeline, lsn(begins), lsn(ends), stored, NOON)


def entry(
    name: str, begins: int, ends: int, *, parent: str | None = None, timeline: int = 1,
    state: BackupState = BackupState.PROVEN, hours: int = 0, incarnation: str = "7",
) -> CatalogueEntry:  # fmt: skip
    kind = BackupKind.INCREMENTAL if parent else BackupKind.FULL
    ended = NOON + timedelta(hours=hours)
    facts = {"timeline": timeline, "server_ended_at": ended.isoformat()}
    found = Backup(
        name, StoreName.POSTGRESQL, "main", kind, parent, incarnation, ended, ended, lsn(begins), lsn(ends), (), facts
    )  # fmt: skip
    return CatalogueEntry(found, state)


def held(pieces: Sequence[LogRange], timeline: int = 1) -> set[int]:
    """Every position that the log has: the plain truth that spans are held against."""
    return {p for one in pieces if one.timeline == timeline for p in range(at(one.begins), at(one.ends))}


# -- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latest", Target(TargetKind.LATEST)),
        ("0/3000028", Target(TargetKind.LSN, None, "0/3000028")),
        ("a/ff", Target(TargetKind.LSN, None, "A/FF")),
        ("xid:740", Target(TargetKind.XID, None, "740")),
        ("name:before release", Target(TargetKind.NAME, None, "before release")),
        ("2026-11-23T12:00:00Z", Target(TargetKind.TIME, NOON)),
        ("2026-11-23T13:00:00+01:00", Target(TargetKind.TIME, NOON)),
    ],
)
def test_a_target_is_read(text: str, expected: Target) -> None:
    assert parse_target(text) == expected


@pytest.mark.parametrize("text", ["", "now", "xid:", "xid:-1", "xid:7x", "name:", "0/", "0/123456789", "12", "LATEST"])
def test_what_is_no_target_is_refused_with_all_notations(text: str) -> None:
    with pytest.raises(PermanentError, match="not a moment.*latest.*xid:740"):
        parse_target(text)


def test_an_instant_without_time_zone_is_refused() -> None:
    with pytest.raises(PermanentError, match="time zone"):
        parse_target("2026-11-23T12:00:00")


def test_inclusiveness_and_timeline_are_kept_and_shown() -> None:
    found = parse_target("0/10", inclusive=False, timeline=3)
    assert (found.inclusive, found.timeline, str(found)) == (False, 3, "lsn 0/10 (exclusive)")


# -- branches of history ---------------------------------------------------------------------------------------------

HISTORIES = {2: "1\t0/20\tno recovery target specified\n", 3: "1\t0/20\tbefore\n\n2\t0/30\tat # restore point\n"}


def test_a_history_is_a_path_without_holes() -> None:
    assert recovery.parse_history(1, "") == (Stretch(1, 0, END),)
    path = recovery.parse_history(3, HISTORIES[3])
    assert path == (Stretch(1, 0, 0x20), Stretch(2, 0x20, 0x30), Stretch(3, 0x30, END))


def test_the_newest_branch_is_chosen_unless_another_is_asked_for() -> None:
    pieces = [piece(0, 0x20), piece(0x20, 0x30, 2), piece(0x30, 0x40, 3)]
    assert recovery.choose_path(pieces, HISTORIES)[-1].timeline == 3
    assert recovery.choose_path(pieces, HISTORIES, 2)[-1].timeline == 2
    assert recovery.choose_path([], {})[-1].timeline == 1
    with pytest.raises(NotFound, match="the log has 1, 2, 3"):
        recovery.choose_path(pieces, HISTORIES, 9)
    with pytest.raises(NotFound, match="history of timeline 3"):
        recovery.choose_path(pieces, {2: HISTORIES[2]})


def test_log_of_an_abandoned_branch_fills_no_hole() -> None:
    """Timeline 1 went on after the fork: what it wrote there is of another history."""
    path = recovery.parse_history(2, HISTORIES[2])
    pieces = [piece(0, 0x40), piece(0x28, 0x40, 2)]
    assert recovery.covered_until(pieces, path, 0) == 0x20
    assert recovery.find_gaps(pieces, path, 0) == (Gap(2, 0x20, 0x28),)
    assert recovery.covered_until([*pieces, piece(0x20, 0x28, 2)], path, 0) == 0x40


def test_a_branch_whose_old_log_ends_early_has_a_hole_before_the_fork() -> None:
    path = recovery.parse_history(2, HISTORIES[2])
    pieces = [piece(0, 0x18), piece(0x20, 0x28, 2)]
    assert recovery.find_gaps(pieces, path, 0) == (Gap(1, 0x18, 0x20),)
    assert recovery.covered_until(pieces, path, 0) == 0x18


# -- holes -----------------------------------------------------------------------------------------------------------


@given(STRETCHES, st.integers(0, 60))
def test_cover_and_gaps_are_those_of_the_positions(spans: list[tuple[int, int]], begins: int) -> None:
    pieces = [piece(low, low + size) for low, size in spans]
    path, there = recovery.parse_history(1, ""), held(pieces)
    reach = begins
    while reach in there:
        reach += 1
    assert recovery.covered_until(pieces, path, begins) == reach
    lacking = {p for p in range(begins, max(there, default=0)) if p not in there}
    gaps = recovery.find_gaps(pieces, path, begins)
    assert {p for gap in gaps for p in range(gap.begins, gap.ends)} == lacking
    assert all(one.ends < other.begins for one, other in zip(gaps, gaps[1:], strict=False)), "told once each"


@given(STRETCHES, st.integers(0, 72))
def test_streaming_goes_on_where_no_hole_is_left(spans: list[tuple[int, int]], restart: int) -> None:
    """What is stored and what is streamed from there on have no hole after the point that the server vouches for."""
    pieces = [piece(low, low + size) for low, size in spans]
    begins = recovery.resume_at(pieces, Stretch(1, 0, END), restart, SEGMENT)
    assert begins <= max(restart, max((at(one.ends) for one in pieces), default=0))
    assert begins % SEGMENT == 0 or begins in {at(one.ends) for one in pieces}
    if spans and min(low for low, _ in spans) <= restart:
        assert begins <= restart or set(range(restart, begins)) <= held(pieces)


def test_a_new_timeline_is_streamed_from_the_segment_of_its_beginning() -> None:
    assert recovery.resume_at([], Stretch(2, 0x25, END), 0x90, SEGMENT) == 0x20
    assert recovery.resume_at([], Stretch(1, 0, END), 0x95, SEGMENT) == 0x90


def test_the_latest_moment_is_refused_behind_a_hole() -> None:
    recovery.refuse_holes((), Target(TargetKind.LATEST))
    with pytest.raises(NotFound, match=r"hole from 0/10 to 0/18.*goes on behind it.*`0/10`"):
        recovery.refuse_holes((Gap(1, 0x10, 0x18),), Target(TargetKind.LATEST))


# -- bases -----------------------------------------------------------------------------------------------------------


def test_bases_are_whole_good_and_of_the_branch() -> None:
    path = recovery.parse_history(2, HISTORIES[2])
    entries = [
        entry("a", 0, 4),
        entry("a1", 8, 10, parent="a"),
        entry("b", 12, 14, state=BackupState.FAILED),
        entry("b1", 16, 18, parent="b"),
        entry("abandoned", 0x30, 0x32),
        entry("other", 0x30, 0x32, timeline=2, incarnation="8"),
        entry("c", 0x28, 0x2A, timeline=2),
    ]
    found = [one.backup_id for one in recovery.usable_bases(entries, path, "7")]
    assert found == ["c", "a1", "a"]
    links = recovery.links_of(entries[1].backup, entries)
    assert [one.backup_id for one in links] == ["a", "a1"]
    with pytest.raises(NotFound, match="rests on b, which is gone"):
        recovery.links_of(entries[3].backup, [entries[3]])


def test_a_base_that_was_not_whole_yet_holds_commits_of_after() -> None:
    bases = [entry("late", 8, 9, hours=2).backup, entry("early", 0, 4).backup]
    chosen = recovery.bases_before(bases, Target(TargetKind.TIME, NOON + timedelta(hours=1)))
    assert [one.backup_id for one in chosen] == ["early"]
    assert recovery.bases_before(bases, Target(TargetKind.LATEST)) == bases


def test_refusals_say_what_there_is() -> None:
    time = Target(TargetKind.TIME, NOON)
    assert "tiering backup postgresql" in str(recovery.refuse_early([], time))
    base = entry("a", 0, 4, hours=1).backup
    assert "before the oldest backup a, which ends at 0/4" in str(recovery.refuse_early([base], time))
    assert "knows nothing of it" in str(recovery.refuse_early([base], Target(TargetKind.XID, None, "7")))
    late = str(recovery.refuse_late(time, 0x40, NOON))
    assert "ends at 0/40" in late
    assert "2026-11-23 12:00:00" in late


# -- the watch over the log ------------------------------------------------------------------------------------------


def test_a_log_is_judged_from_its_newest_full_backup() -> None:
    entries, whole = [entry("a", 0, 4)], [piece(0, 0x10), piece(0x10, 0x20)]
    judged = recovery.judge_log(entries, whole, {}, "7")
    assert (judged.ends, judged.gaps, judged.needs_full) == (0x20, (), "")
    holed = [piece(0, 0x10), piece(0x18, 0x30)]
    judged = recovery.judge_log(entries, holed, {}, "7")
    assert judged.gaps == (Gap(1, 0x10, 0x18),)
    assert "hole at 0/10" in judged.needs_full
    healed = recovery.judge_log([*entries, entry("b", 0x1C, 0x20)], holed, {}, "7")
    assert (healed.ends, healed.needs_full, healed.gaps) == (0x30, "", (Gap(1, 0x10, 0x18),))
    assert "no full backup" in recovery.judge_log([], whole, {}, "7").needs_full
    assert "no full backup" in recovery.judge_log(entries, whole, {}, "8").needs_full


# -- merging ---------------------------------------------------------------------------------------------------------


@given(STRETCHES)
def test_what_is_superseded_is_needed_by_nobody(spans: list[tuple[int, int]]) -> None:
    pieces = [piece(low, low + size) for low, size in spans]
    gone = recovery.superseded(pieces)
    left = list(pieces)
    for one in gone:
        left.remove(one)
    assert held(left) == held(pieces)
    spans_left = [(at(one.begins), at(one.ends)) for one in left]
    inner = [(a, b) for a in spans_left for b in spans_left if a is not b and b[0] <= a[0] and a[1] <= b[1]]
    assert not inner, "nothing that lies within another is left"


def test_superseded_looks_at_one_timeline_and_history_at_a_time() -> None:
    assert recovery.superseded([piece(0, 9), piece(2, 4, 2), piece(2, 4, 1, "8")]) == []


def test_merges_cross_no_segment_and_have_no_hole() -> None:
    seed = 20261123
    print(f"seed {seed}")
    choice = random.Random(seed)
    for _ in range(200):
        pieces = _streamed(choice)
        for run in recovery.choose_merges(pieces, SEGMENT, choice.randrange(2, 6)):
            assert len(run) > 1
            assert len({at(one.begins) // SEGMENT for one in run} | {(at(one.ends) - 1) // SEGMENT for one in run}) == 1
            assert all(at(b.begins) <= at(a.ends) < at(b.ends) for a, b in zip(run, run[1:], strict=False))


def test_the_newest_segment_is_merged_only_when_it_has_many_pieces() -> None:
    small = [piece(p, p + 2) for p in range(0, 12, 2)]
    assert recovery.choose_merges(small, SEGMENT, 10) == []
    [run] = recovery.choose_merges(small, SEGMENT, 4)
    assert len(run) == 6


def _streamed(choice: random.Random) -> list[LogRange]:
    """Log as a stream stores it: small pieces, cut at segments, with a hole or a piece twice now and then."""
    pieces, position = [], 0
    while position < 5 * SEGMENT:
        ends = min(position + choice.randrange(1, 9), position - position % SEGMENT + SEGMENT)
        if choice.random() < 0.9:
            pieces.append(piece(position, ends))
        if choice.random() < 0.1:
            pieces.append(piece(position, min(position + 1, ends)))
        position = ends
    choice.shuffle(pieces)
    return pieces
