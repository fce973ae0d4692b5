"""A durable queue on local disk: records are acknowledged after fdatasync, in groups, and read back after a crash.

Why a local log and not a Redis stream: Redis Cluster replicates after it has answered, so a failover loses what was
acknowledged, whatever `appendfsync` says; a log on disk survives `kill -9` of everybody. It does not survive the loss
of its disk: where that matters, `real_time` writes go to the database before they are acknowledged.

A directory of segments, each named by the number of its first record; a record is length, CRC-32, number, payload.
What a crash left half written at the end was never acknowledged, and is cut off. One process owns a directory at a
time (flock); whoever opens the root takes over the directories of the dead.
Does not: know what is in a record.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import queue
import struct
import threading
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tiering import errors

_HEAD = struct.Struct(">IIQ")
SEGMENT_BYTES = 64 << 20
GROUP_MAX = 512


@dataclass(frozen=True, slots=True)
class _Waiting:
    number: int
    payload: bytes
    future: asyncio.Future[None]


class Journal:
    """One directory of records, held by this process. Belongs to one event loop; a thread of its own writes.

    Attributes:
        name: unique and lasting: under it the database keeps how far the records are written.
    """

    def __init__(self, directory: Path, lock: int) -> None:
        self.directory = directory
        self.name = directory.name
        self._lock = lock
        self._is_closed = False
        self._file: int | None = None
        self._file_bytes = 0
        self._next = 1
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"Journal({self.name})"

    # -- writing -------------------------------------------------------------------------------------------

    def append(self, payload: bytes) -> tuple[int, asyncio.Future[None]]:
        """Queue a record; return its number, and what resolves when it is on disk.

        The future raises StoreFull or StoreUnavailable where the disk refuses it: it was then not acknowledged,
        though it may be found after a crash.
        """
        self._loop = self._loop or asyncio.get_running_loop()
        number, self._next = self._next, self._next + 1
        future: asyncio.Future[None] = self._loop.create_future()
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
            self._thread.start()
        self._queue.put(_Waiting(number, payload, future))
        return number, future

    def _write(self) -> None:
        while True:
            group = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(group) < GROUP_MAX:
                    group.append(self._queue.get_nowait())
            records = [one for one in group if one is not None]
            problem: errors.TieringError | None = None
            if records:
                try:
                    self._put(records)
                except OSError as exc:
                    problem = self._mapped(exc)
                assert self._loop is not None
                with contextlib.suppress(RuntimeError):  # the loop is gone, and nobody waits
                    self._loop.call_soon_threadsafe(_resolve, records, problem)
            if None in group:
                return

    def _put(self, records: list[_Waiting]) -> None:
        if self._file is None or self._file_bytes > SEGMENT_BYTES:
            self._begin_segment(records[0].number)
        assert self._file is not None
        parts = []
        for record in records:
            parts.append(_HEAD.pack(len(record.payload), zlib.crc32(record.payload), record.number))
            parts.append(record.payload)
        data = memoryview(b"".join(parts))
        begin = self._file_bytes
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fdatasync(self._file)
        except OSError:
            # Half a record in the middle would hide what follows it.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, begin)
            os.close(self._file)
            self._file = None
            raise
        self._file_bytes = os.fstat(self._file).st_size

    def _begin_segment(self, number: int) -> None:
        if self._file is not None:
            os.close(self._file)
        path = self.directory / f"{number:020d}.log"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._file_bytes = os.fstat(self._file).st_size
        _sync_directory(self.directory)

    def _mapped(self, exc: OSError) -> errors.TieringError:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            return errors.StoreFull("journal", str(self.directory.name), "no room", "Free space on the journal's disk.")
        return errors.StoreUnavailable("journal", self.directory.name, exc.strerror or str(exc))

    # -- reading back --------------------------------------------------------------------------------------

    def recover(self) -> Iterator[tuple[int, bytes]]:
        """Read every record that is there, in order; go on numbering after the last. Once, before any append.

        Raises:
            CorruptCopy: bytes are damaged elsewhere than at the very end.
        """
        segments = self._segments()
        for place, path in enumerate(segments):
            data = path.read_bytes()
            at = 0
            while at < len(data):
                record = _record_at(data, at)
                if record is None:
                    if place != len(segments) - 1 and any(p.stat().st_size for p in segments[place + 1 :]):
                        later = int(segments[place + 1].stem)
                        if later != self._next:
                            raise errors.CorruptCopy("recover", f"{self.name}/{path.name}", f"damaged at byte {at}")
                    with path.open("r+b") as file:
                        file.truncate(at)
                        os.fsync(file.fileno())
                    break
                number, payload = record
                at += _HEAD.size + len(payload)
                self._next = number + 1
                yield number, payload

    def advance_to(self, position: int) -> None:
        """Never give a number again that the database says is written."""
        self._next = max(self._next, position + 1)

    def release(self, position: int) -> None:
        """Remove segments all of whose records are written to their database."""
        segments = self._segments()
        for path, following in zip(segments, segments[1:], strict=False):
            if int(following.stem) <= position + 1:
                path.unlink(missing_ok=True)

    def keep_rejected(self, text: str) -> None:
        """Keep a record that its database refuses, for a person to look at: one line of JSON each."""
        descriptor = os.open(self.directory / "rejected.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, text.encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _segments(self) -> list[Path]:
        return sorted(self.directory.glob("*.log"))

    def close(self) -> None:
        """Write what is queued, and let go of the directory."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if not self._is_closed:
            self._is_closed = True
            os.close(self._lock)


def _resolve(records: list[_Waiting], problem: errors.TieringError | None) -> None:
    for record in records:
        if not record.future.done():
            if problem is None:
                record.future.set_result(None)
            else:
                record.future.set_exception(problem)


def _record_at(data: bytes, at: int) -> tuple[int, bytes] | None:
    """Read the record at an offset; None where none is whole."""
    if at + _HEAD.size > len(data):
        return None
    length, crc, number = _HEAD.unpack_from(data, at)
    payload = data[at + _HEAD.size : at + _HEAD.size + length]
    return (number, payload) if len(payload) == length and zlib.crc32(payload) == crc else None


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_journals(root: Path) -> list[Journal]:
    """Take over every directory under `root` that nobody holds, or make one; the first is to be written to.

    Raises:
        StoreUnavailable: the directory cannot be made or read.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = [journal for path in sorted(root.iterdir()) if path.is_dir() and (journal := _take(path))]
        if not found:
            directory = root / uuid.uuid4().hex
            directory.mkdir(mode=0o700)
            _sync_directory(root)
            taken = _take(directory)
            assert taken is not None
            found = [taken]
    except OSError as exc:
        raise errors.StoreUnavailable(
            "open", "journal", exc.strerror or str(exc), "Set TIERING_JOURNAL_DIR to a directory of yours."
        ) from exc
    return found


def _take(directory: Path) -> Journal | None:
    """Lock a directory; None where a living process has it."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return Journal(directory, descriptor)
