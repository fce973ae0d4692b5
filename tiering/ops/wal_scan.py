"""Look into the stored log for a moment: which record is the last one in it, and which commits stand next to it.

Segments are fetched as far as the search goes, into a private directory where all have the name of one timeline:
pg_waldump then reads across the places where a timeline ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tiering.ops.wal_archive import LogArchive, write_private
from tiering.plan.recovery import END, Target, TargetKind, at, find_gaps, refuse_holes, refuse_late
from tiering.stores.pg_tools import PgTools, WalRecord, lsn_text
from tiering.stores.pg_wal import segment_name

_CHUNK_SEGMENTS = 16
_READERS = 4
_NAMED_BY = 1


@dataclass(frozen=True, slots=True)
class Found:
    """A commit next to the boundary."""

    lsn: int
    xid: int
    ended_at: datetime

    def __str__(self) -> str:
        return f"xid {self.xid} of {self.ended_at:%Y-%m-%d %H:%M:%S.%f}Z at {lsn_text(self.lsn)}"


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where a recovery stops.

    Attributes:
        stop: where the last record begins that is replayed.
        beyond: where the next one begins; 0: nobody knows of one.
        included: the last commit replayed, as far as was looked.
        excluded: the first one that is not.
    """

    stop: int
    beyond: int
    included: Found | None
    excluded: Found | None


class Scan:
    """A search in one branch of history.

    Args:
        archive: the stored log.
        tools: PostgreSQL's programs.
        directory: private, for segments.
        incarnation: the system.
    """

    def __init__(self, archive: LogArchive, tools: PgTools, directory: Path, incarnation: str) -> None:
        self.archive = archive
        self.incarnation = incarnation
        self._tools = tools
        self._directory = directory
        self._here: dict[int, int] = {}
        self._searched = END

    def find(self, target: Target, begins: int, consistent: int) -> Boundary | None:
        """Find where to stop, from a base backup on; None: the moment is not in what this base leads to.

        Args:
            target: the moment.
            begins: where the base's log begins.
            consistent: where its state is whole; a recovery cannot stop before.

        Raises:
            NotFound: the moment is past the end of the log.
        """
        ends = self.archive.covered_until(begins)
        if target.kind is TargetKind.LATEST:
            refuse_holes(find_gaps(self.archive.ranges, self.archive.path, begins), target)
            found = self._latest(ends)
        elif target.kind is TargetKind.LSN:
            found = self._at_position(target, begins, ends, consistent)
        elif target.kind is TargetKind.TIME:
            found = self._at_time(target, begins, ends)
        else:
            found = self._at_record(target, begins, min(ends, self._searched))
            self._searched = begins + self.archive.segment_bytes
        if found is None or (found.beyond and max(found.stop, found.beyond) < consistent):
            return None
        return found

    def last_commit(self, begins: int) -> Found | None:
        """Return the last commit that can be restored from a base."""
        ends = self.archive.covered_until(begins)
        return self._last_commit_before(begins, ends)

    def deliver(self, directory: Path, begins: int, ends: int, timeline: int) -> None:
        """Put the segments that hold `[begins, ends)`, as a recovery to a timeline wants them, and all histories.

        Raises:
            NotFound, CorruptCopy, StoreUnavailable: as reading them does. Nothing is left out in silence.
        """
        archive = self.archive if timeline == self.archive.path[-1].timeline else self.archive.branch(timeline)
        starts = range(begins - begins % archive.segment_bytes, ends, archive.segment_bytes)
        if archive is self.archive:
            self._bring(starts)
        archive.put_histories(directory)

        def put(start: int) -> None:
            if archive is self.archive and not archive.has_switch(start):
                name = segment_name(self._here[start], start, archive.segment_bytes)
                self._path(start).replace(directory / name)
                return
            for named_by, data in archive.segment(start).items():
                write_private(directory / segment_name(named_by, start, archive.segment_bytes), data)

        with ThreadPoolExecutor(_READERS, "log-put") as pool:
            list(pool.map(put, starts))
        self._here.clear()

    def _latest(self, ends: int) -> Boundary | None:
        last = self._record_before(ends + 1, 0, ends)
        return Boundary(last.lsn, 0, self._last_commit_before(0, ends), None) if last else None

    def _at_position(self, target: Target, begins: int, ends: int, consistent: int) -> Boundary | None:
        wanted = at(target.value)
        if wanted < consistent:
            return None
        if wanted > ends or (wanted == ends and target.inclusive):
            raise refuse_late(target, ends, None)
        last = self._record_before(wanted + 1 if target.inclusive else wanted, begins, ends)
        return self._around(last.lsn, begins, ends) if last else None

    def _at_time(self, target: Target, begins: int, ends: int) -> Boundary | None:
        assert target.at is not None
        last = None
        for record in self._transactions(begins, ends):
            if not record.is_commit or record.ended_at is None:
                continue
            if record.ended_at > target.at or (record.ended_at == target.at and not target.inclusive):
                return Boundary(record.previous, record.lsn, last, _found(record))
            last = _found(record)
        if last is None or last.ended_at < target.at:
            # Nothing proves that no commit of before that moment is missing.
            raise refuse_late(target, ends, last.ended_at if last else None)
        return self._around(last.lsn, begins, ends)

    def _at_record(self, target: Target, begins: int, ends: int) -> Boundary | None:
        """Find a transaction's end, or a restore point: the last of that name."""
        found = None
        rmgr = "XLOG" if target.kind is TargetKind.NAME else "Transaction"
        for record in self._forward(begins, ends, rmgr):
            is_named = rmgr == "XLOG" and record.text == f"RESTORE_POINT {target.value}"
            if is_named or (rmgr == "Transaction" and record.ended_at and str(record.xid) == target.value):
                found = record
        if found is None:
            return None
        return self._around(found.lsn if target.inclusive else found.previous, begins, ends)

    def _around(self, stop: int, begins: int, ends: int) -> Boundary:
        """Describe a boundary after the record that begins at `stop`."""
        segment_bytes = self.archive.segment_bytes
        following = next((r for r in self._records(stop, min(ends, stop + 2 * segment_bytes)) if r.lsn > stop), None)
        later = (r for r in self._transactions(stop, ends) if r.is_commit and r.lsn > stop)
        excluded = next(later, None) if following else None
        included = self._last_commit_before(begins, stop, and_at=True)
        return Boundary(stop, following.lsn if following else 0, included, _found(excluded) if excluded else None)

    def _record_before(self, position: int, begins: int, ends: int) -> WalRecord | None:
        """Return the last whole record that begins before a position."""
        for step in self._backwards(begins, min(position, ends)):
            last = None
            for record in self._records(step, ends):
                if record.lsn >= position:
                    break
                last = record
            if last is not None:
                return last
        return None

    def _last_commit_before(self, begins: int, position: int, and_at: bool = False) -> Found | None:
        for step in self._backwards(begins, position):
            last = None
            until = position + 2 * self.archive.segment_bytes if and_at else position
            for record in self._records(step, until, "Transaction"):
                if record.lsn > position or (record.lsn == position and not and_at):
                    break
                last = _found(record) if record.is_commit else last
            if last is not None:
                return last
        return None

    def _transactions(self, begins: int, ends: int) -> Iterator[WalRecord]:
        return self._forward(begins, ends, "Transaction")

    def _forward(self, begins: int, ends: int, rmgr: str) -> Iterator[WalRecord]:
        """Yield records in order, fetching more and more of the log as they are asked for."""
        segment_bytes, count, seen = self.archive.segment_bytes, 1, -1
        low = begins
        while low < ends:
            high = min(ends, low - low % segment_bytes + count * segment_bytes)
            # Begin a segment early: a record that crosses into this chunk began in the one before.
            for record in self._records(max(begins, low - segment_bytes), high, rmgr):
                if record.lsn > seen:
                    seen = record.lsn
                    yield record
            low, count = high, min(2 * count, _CHUNK_SEGMENTS)

    def _backwards(self, begins: int, position: int) -> Iterator[int]:
        """Yield where to begin to look for what is before a position: its segment, the one before, …"""
        segment_bytes = self.archive.segment_bytes
        step = (position - 1) - (position - 1) % segment_bytes
        while step > begins and self.archive.covered_until(step) > step:
            yield step
            step -= segment_bytes
        if begins:
            yield begins

    def _records(self, begins: int, ends: int, *rmgrs: str) -> Iterator[WalRecord]:
        ends = min(ends, self.archive.covered_until(begins))
        segment_bytes = self.archive.segment_bytes
        self._bring(range(begins - begins % segment_bytes, ends, segment_bytes))
        return self._tools.records(self._directory, _NAMED_BY, begins, ends, *rmgrs)

    def _bring(self, starts: range) -> None:
        """Fetch segments that are not here yet."""

        def bring(start: int) -> None:
            named_by, data = max(self.archive.segment(start).items())
            write_private(self._path(start), data)
            self._here[start] = named_by

        with ThreadPoolExecutor(_READERS, "log-read") as pool:
            list(pool.map(bring, [start for start in starts if start not in self._here]))

    def _path(self, start: int) -> Path:
        return self._directory / segment_name(_NAMED_BY, start, self.archive.segment_bytes)


def _found(record: WalRecord) -> Found:
    assert record.ended_at is not None
    return Found(record.lsn, record.xid, record.ended_at)
