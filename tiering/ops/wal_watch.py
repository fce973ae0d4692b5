"""Watch over the stored log: is it whole, does it keep up, and is a new full backup the only help?

Looks at the bucket and at the server, not at the stream: an alarm must come also when the stream believes all is well.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import SecretStr

from tiering.errors import TieringError
from tiering.ops import wal_archive
from tiering.ops.catalogue import Catalogue
from tiering.ops.wal import Tell
from tiering.plan.recovery import END, Gap, LogReport, Stretch, at, covered_until
from tiering.stores.pg_tools import lsn_text
from tiering.stores.pg_wal import WalServer, WalStream

log = logging.getLogger(__name__)

EVERY_SECONDS = 20.0
PATIENCE_SECONDS = 15.0
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class LogCheck:
    """What a look at a source found.

    Attributes:
        report: on holes, from the bucket alone.
        system_id: of the server.
        behind_bytes: what the server had at the look, and the bucket not even after a while.
        problems: in sentences; empty if all is well.
    """

    report: LogReport
    system_id: str
    behind_bytes: int
    problems: tuple[str, ...]


def check_log(
    catalogue: Catalogue, url: SecretStr, source: str, patience_seconds: float = PATIENCE_SECONDS
) -> LogCheck:
    """Look for holes, and whether what the server has now reaches the bucket in time.

    Raises:
        StoreUnavailable: server or bucket did not answer.
    """
    stream = WalStream(url, "tiering check")
    try:
        here = stream.identify()
    finally:
        stream.close()
    deadline = time.monotonic() + patience_seconds
    while (behind := _behind(catalogue, source, here.system_id, here.timeline, here.flushed)) > 0:
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
    report = wal_archive.judge(catalogue, source, here.system_id)
    problems = [_gap_text(gap) for gap in report.gaps]
    if behind > 0:
        problems.append(f"the log in the bucket is {behind} bytes behind: does `tiering stream postgresql` run?")
    if report.needs_full:
        problems.append(f"a new full backup is needed: {report.needs_full}")
    return LogCheck(report, here.system_id, max(0, behind), tuple(problems))


class Watch:
    """Check again and again; tell what is new, merge small objects, and ask for a full backup where only that helps.

    Args:
        catalogue: of the bucket.
        url: of the server.
        source: which one it is.
        tell: told of each problem once, and when it is over.
        take_full: takes a full backup; None: somebody else does.
        every_seconds: between two looks; with the patience of one, less than the minute an alarm may take.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        url: SecretStr,
        source: str,
        tell: Tell = log.warning,
        take_full: Callable[[], object] | None = None,
        every_seconds: float = EVERY_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._catalogue = catalogue
        self._url = url
        self._source = source
        self._tell = tell
        self._take_full = take_full
        self._every_seconds = every_seconds
        self._patience_seconds = patience_seconds
        self._told: set[str] = set()
        self.last: LogCheck | None = None

    def run(self, stop: threading.Event) -> None:
        """Watch until told to stop. What goes wrong is told, and tried again."""
        while not stop.is_set():
            try:
                self.look()
            except TieringError as exc:
                self._tell(f"{self._source}: the log could not be looked after: {exc}")
            stop.wait(self._every_seconds)

    def look(self) -> LogCheck:
        """Check once, and act."""
        found = check_log(self._catalogue, self._url, self._source, self._patience_seconds)
        self.last = found
        for problem in found.problems:
            if problem not in self._told:
                self._tell(f"{self._source}: ALARM: {problem}")
        if self._told and not found.problems:
            self._tell(f"{self._source}: the log is whole again")
        self._told = set(found.problems)
        if found.report.needs_full and self._take_full is not None:
            self._take_full()
        segment_bytes = WalServer(self._url).segment_bytes()
        wal_archive.merge(self._catalogue, self._source, found.system_id, segment_bytes)
        return found


def _behind(catalogue: Catalogue, source: str, system_id: str, timeline: int, flushed: int) -> int:
    """Count the bytes between the end of the newest stretch of log without a hole and a position."""
    ranges = [one for one in catalogue.logs(wal_archive.STORE, source, system_id) if one.timeline == timeline]
    if not ranges:
        return flushed
    # From the newest stretch on: older holes are told apart, and are no lag.
    before = [at(one.begins) for one in ranges if at(one.begins) <= flushed]
    return flushed - covered_until(ranges, [Stretch(timeline, 0, END)], max(before, default=0))


def _gap_text(gap: Gap) -> str:
    where = f"from {lsn_text(gap.begins)} to {lsn_text(gap.ends)} on timeline {gap.timeline}"
    return f"the log has a hole {where}: no moment in it can be brought back"
