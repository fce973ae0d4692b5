"""Read the stored log of one PostgreSQL history: segments put together, histories, small objects merged.

Does not: stream or push (`ops/wal.py`), or decide what a hole means (`plan/recovery.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from tiering.errors import AlreadyExists, NotFound, PermanentError
from tiering.model_backup import LogRange, StoreName
from tiering.ops.catalogue import Catalogue
from tiering.plan import recovery
from tiering.plan.recovery import Stretch, at
from tiering.stores.pg_tools import lsn_text

STORE = StoreName.POSTGRESQL
SMALL_COUNT_MAX = 120
_READERS = 8


class LogArchive:
    """The log of one system, as it was listed when this was made.

    Args:
        catalogue: of the bucket.
        source: which server.
        incarnation: its system id.
        segment_bytes: size of its segment files.
        timeline: which branch of history; 0: the newest.
    """

    def __init__(
        self, catalogue: Catalogue, source: str, incarnation: str, segment_bytes: int, timeline: int = 0
    ) -> None:
        self._catalogue = catalogue
        self._source = source
        self._incarnation = incarnation
        self._timeline = timeline
        self.segment_bytes = segment_bytes
        self._list()

    @cached_property
    def histories(self) -> dict[int, str]:
        """Every history file, by timeline."""
        return histories(self._catalogue, self._source, self._incarnation)

    @cached_property
    def path(self) -> tuple[Stretch, ...]:
        """The branch of history. Raises NotFound where it is not known."""
        return recovery.choose_path(self.ranges, self.histories, self._timeline)

    def covered_until(self, begins: int) -> int:
        """Return up to where the log follows from a position without a hole."""
        return recovery.covered_until(self.ranges, self.path, begins)

    def pieces(self, timeline: int, begins: int) -> Iterator[tuple[int, bytes]]:
        """Read what is stored of one timeline in the segment that begins there.

        Several objects at a time: in synchronous mode a segment comes in hundreds, and a recovery waits for each.

        Raises:
            CorruptCopy: an object is not what was stored.
        """
        ranges = self._by_segment.get((timeline, begins // self.segment_bytes), [])
        with ThreadPoolExecutor(_READERS, "log") as pool:
            read = list(pool.map(lambda one: self._catalogue.vault.read(one.stored.name), ranges))
        for one, data in zip(ranges, read, strict=True):
            if len(data) != at(one.ends) - at(one.begins):
                cause = f"it has {len(data)} bytes, and its name says {at(one.ends) - at(one.begins)}"
                raise NotFound("read", one.stored.name, cause, "Choose an earlier moment.")
            yield at(one.begins), data

    def is_whole(self, timeline: int, begins: int) -> bool:
        """Say whether every byte of a segment is stored, of one timeline."""
        stretch = Stretch(timeline, 0, recovery.END)
        return recovery.covered_until(self.ranges, [stretch], begins) >= begins + self.segment_bytes

    def segment(self, begins: int) -> dict[int, bytes]:
        """Put a segment together along the path, by the timelines it is named by; zeros where nothing is stored.

        More than one where a timeline ended in it: recovery reads the newest, and the summarizer of the recovered
        server the older ones; without them it would wait for ever, and the server would keep all log from then on.

        Raises:
            NotFound: nothing of it is stored.
        """
        for attempt in (1, 2):
            try:
                return self._segment(begins)
            except NotFound:
                if attempt == 2:
                    raise
                # Small objects are merged meanwhile: what was listed may have become another object.
                self._list()
        raise AssertionError("unreachable")

    def has_switch(self, begins: int) -> bool:
        """Say whether a timeline ended inside a segment."""
        return any(begins < stretch.ends < begins + self.segment_bytes for stretch in self.path)

    def branch(self, timeline: int) -> LogArchive:
        """Open the same log along another timeline."""
        return LogArchive(self._catalogue, self._source, self._incarnation, self.segment_bytes, timeline)

    def put_histories(self, directory: Path) -> None:
        """Write every history file: by them PostgreSQL finds its way, and a number for its next timeline."""
        for timeline, text in self.histories.items():
            write_private(directory / f"{timeline:08X}.history", text.encode())

    def _segment(self, begins: int) -> dict[int, bytes]:
        buffer, found = bytearray(self.segment_bytes), dict[int, bytes]()
        for stretch in self.path:
            if stretch.begins >= begins + self.segment_bytes or stretch.ends <= begins:
                continue
            is_there = False
            for start, data in self.pieces(stretch.timeline, begins):
                # A timeline's own bytes end where the next one begins; the next one repeats those before.
                kept = data[: max(0, stretch.ends - start)]
                buffer[start - begins : start - begins + len(kept)] = kept
                is_there = True
            if is_there:
                found[stretch.timeline] = bytes(buffer)
        if not found:
            hint = "Choose an earlier moment; `tiering backups` shows the gaps."
            raise NotFound("read", f"log at {lsn_text(begins)}", "nothing of it is in the bucket", hint)
        return found

    def _list(self) -> None:
        self.ranges = self._catalogue.logs(STORE, self._source, self._incarnation)
        self._by_segment: dict[tuple[int, int], list[LogRange]] = {}
        obsolete = {one.stored.name for one in recovery.superseded(self.ranges)}
        for one in self.ranges:
            if one.stored.name not in obsolete:
                key = (one.timeline, at(one.begins) // self.segment_bytes)
                self._by_segment.setdefault(key, []).append(one)


def store_history(catalogue: Catalogue, source: str, incarnation: str, timeline: int, text: str) -> None:
    """Store a timeline's history file; a second time the same is no error.

    Raises:
        PermanentError: another server has begun a timeline of this number.
    """
    name = f"{_histories(source, incarnation)}{timeline:08x}"
    try:
        catalogue.vault.put(name, text.encode())
    except AlreadyExists:
        if catalogue.vault.read(name).decode() != text:
            hint = "Two servers were recovered from the same backup: give one of them a source of its own."
            cause = f"the bucket has another history of timeline {timeline}"
            raise PermanentError("store history", source, cause, hint) from None


def histories(catalogue: Catalogue, source: str, incarnation: str) -> dict[int, str]:
    """Read every history file of a system, by timeline."""
    prefix = _histories(source, incarnation)
    return {
        int(stat.key.removeprefix(prefix), 16): catalogue.vault.read(stat.key).decode()
        for stat in catalogue.vault.names(prefix)
    }


def merge(catalogue: Catalogue, source: str, incarnation: str, segment_bytes: int) -> int:
    """Make one object of the many small ones of a segment; return how many objects are gone.

    Each merged object is read back before those that it replaces are discarded; a crash in between leaves both, and
    the next run discards them.
    """
    ranges = catalogue.logs(STORE, source, incarnation)
    for run in recovery.choose_merges(ranges, segment_bytes, SMALL_COUNT_MAX):
        joined = bytearray()
        first = at(run[0].begins)
        for one in run:
            data = catalogue.vault.read(one.stored.name)
            joined += data[first + len(joined) - at(one.begins) :]
        where = (source, incarnation, run[0].timeline, run[0].begins, run[-1].ends)
        merged = catalogue.put_log(STORE, *where, bytes(joined))
        if catalogue.vault.read(merged.stored.name) != joined:
            raise PermanentError("merge log", merged.stored.name, "it is not what was stored", "Nothing was discarded.")
    obsolete = recovery.superseded(catalogue.logs(STORE, source, incarnation))
    catalogue.vault.discard([one.stored.name for one in obsolete])
    return len(obsolete)


def judge(catalogue: Catalogue, source: str, incarnation: str) -> recovery.LogReport:
    """Look for holes in a source's log, from the bucket alone."""
    return recovery.judge_log(
        catalogue.entries(STORE, source),
        catalogue.logs(STORE, source, incarnation),
        histories(catalogue, source, incarnation),
        incarnation,
    )


def _histories(source: str, incarnation: str) -> str:
    return f"history/{STORE}/{source}/{incarnation}/"


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read."""
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data)
