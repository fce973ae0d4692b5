"""The append-only files of a Redis on this machine, held open as one set that a server starts on.

Nothing of the server is changed: its list of files is read before and after they are opened, and must be the same.
An open file stays readable when a rewrite removes it, and each is read only as far as it was when all were open.

Does not: judge their contents; Redis keeps no checksum in them, so the vault's own are the only ones.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from pydantic import SecretStr
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tiering import errors
from tiering.stores.beats import redis_mapped

QUIET_SECONDS_MAX = 60.0
POLL_SECONDS = 0.02
_LINE = re.compile(r"file ([^\s\"]+) seq \d+ type ([bih])\b.*")
_ELSEWHERE = "Run this on the server's own machine, as a user who may read there; snapshots (`full`) need neither."


@dataclass(frozen=True, slots=True)
class AofFile:
    """One file of the set: read `length` bytes of it, from its beginning."""

    name: str
    length: int
    file: BinaryIO


@dataclass(frozen=True, slots=True)
class AofSet:
    """The files of one server, as of one instant between two of its commands.

    Attributes:
        manifest_name: of the list.
        manifest: the list itself.
        files: in the order of the list.
        keys: of the server at that instant, those over but not yet removed included.
        expiring: how many of them have a time to live.
        offset: of its replication history.
    """

    manifest_name: str
    manifest: bytes
    files: tuple[AofFile, ...]
    keys: int
    expiring: int
    offset: int


@contextmanager
def held(url: SecretStr, subject: str, patience: float = QUIET_SECONDS_MAX) -> Iterator[AofSet]:
    """Open the append-only files of a server so that they fit together; they stay open inside.

    Args:
        url: of the server; the user may read its settings.
        subject: what to call it.
        patience: how long to wait for a rewrite to end.

    Raises:
        PermanentError: it keeps none, or they are not on this machine.
        CommitConflict: rewrites did not end in time.
        StoreUnavailable: it does not answer, or could not write them itself.
    """
    client = Redis.from_url(
        url.get_secret_value(), decode_responses=True, socket_timeout=10, retry=Retry(NoBackoff(), 0)
    )
    with redis_mapped("copy", subject), closing(client):
        manifest, uncounted = _manifest_path(client, subject), _Uncounted()
        deadline = time.monotonic() + patience
        while True:
            with ExitStack() as files:
                found = _try(client, manifest, files, uncounted, subject)
                if found is not None:
                    held_open = files.pop_all()
                    break
            if time.monotonic() > deadline:
                cause = f"its files were being rewritten for {patience:.0f} s"
                raise errors.CommitConflict("copy", subject, cause, "Try again later.")
            time.sleep(POLL_SECONDS)
    with held_open:
        yield found


class Beginning:
    """A file of which only the first bytes count; enough of a file to be read from."""

    def __init__(self, file: AofFile, subject: str) -> None:
        self._file, self._left, self._subject = file, file.length, subject

    def read(self, size: int = -1) -> bytes:
        """Read as a file does.

        Raises:
            StoreUnavailable: the file is shorter than it was.
        """
        data = self._file.file.read(self._left if size < 0 else min(size, self._left))
        if self._left and size and not data:
            raise errors.StoreUnavailable("copy", self._subject, f"{self._file.name} was cut short meanwhile")
        self._left -= len(data)
        return data

    def as_file(self) -> IO[bytes]:
        """Return itself, for what asks for a file and only reads."""
        return cast(IO[bytes], self)


def _manifest_path(client: Any, subject: str) -> Path:
    if int(client.info("persistence")["aof_enabled"]) == 0:
        hint = "`appendonly yes` in its configuration, or back up snapshots only."
        raise errors.PermanentError("copy", subject, "it keeps no append-only file", hint)
    told = {name: str(client.config_get(name)[name]) for name in ("dir", "appenddirname", "appendfilename")}
    path: Path = Path(told["dir"]) / told["appenddirname"] / f"{told['appendfilename']}.manifest"
    try:
        path.read_bytes()
    except OSError as exc:
        cause = f"its append-only files are not readable here ({exc.strerror})"
        raise errors.PermanentError("copy", subject, cause, _ELSEWHERE) from exc
    return path


class _Uncounted:
    """Bytes of the files that the server does not count: none, or the first file's, if it made that when it started."""

    def __init__(self) -> None:
        self._manifest, self._low, self._high = "", 0, 0

    def narrow(self, manifest: str, low: int, high: int, first: int) -> int | None:
        """Take in that they are from `low` to `high`; return how many, or None while that is not clear.

        Raises:
            LookupError: they are neither.
        """
        if manifest == self._manifest:
            low, high = max(low, self._low), min(high, self._high)
        self._manifest, self._low, self._high = manifest, low, high
        fitting = {count for count in (0, first) if low <= count <= high}
        if not fitting:
            raise LookupError
        return fitting.pop() if len(fitting) == 1 else None


def _try(client: Any, manifest: Path, files: ExitStack, uncounted: _Uncounted, subject: str) -> AofSet | None:
    """Open everything once; None if the files changed under it, or the server is between two states."""
    try:
        text = manifest.read_text()
        lines = _lines(text, subject)
        opened = [files.enter_context((manifest.parent / line[1]).open("rb")) for line in lines]
    except FileNotFoundError:
        return None
    before = int(client.info("persistence")["aof_current_size"])
    sizes = [file.seek(0, 2) for file in opened]
    info = client.info("persistence", "replication", "keyspace")
    if manifest.read_text() != text or int(info["aof_rewrite_in_progress"]) or int(info["aof_buffer_length"]):
        return None
    if "err" in (info["aof_last_write_status"], info["aof_last_bgrewrite_status"]):
        raise errors.StoreUnavailable("copy", subject, "it could not write its append-only files", "See its log.")
    counted = int(info["aof_current_size"])
    try:
        besides = uncounted.narrow(text, sum(sizes) - counted, sum(sizes) - before, sizes[0])
    except LookupError:
        cause = f"the files here have {sum(sizes)} bytes, the server counts {counted}: they are another server's"
        raise errors.PermanentError("copy", subject, cause, _ELSEWHERE) from None
    if besides is None:
        return None
    lengths = [*sizes[:-1], counted + besides - sum(sizes[:-1])]
    for file in opened:
        file.seek(0)
    # Redis keeps all but database 0 empty in a cluster; outside of one, all count.
    spaces = [info[name] for name in info if re.fullmatch(r"db\d+", name)]
    named = zip(lines, lengths, opened, strict=True)
    return AofSet(
        manifest.name,
        "".join(line[0] + "\n" for line in lines).encode(),
        tuple(AofFile(line[1], length, file) for line, length, file in named),
        sum(int(space["keys"]) for space in spaces),
        sum(int(space["expires"]) for space in spaces),
        int(info["master_repl_offset"]),
    )


def _lines(text: str, subject: str) -> list[re.Match[str]]:
    found = [_LINE.fullmatch(line) for line in text.splitlines()]
    lines = [match for match in found if match]
    if not lines or len(lines) != len(found):
        raise errors.PermanentError("copy", subject, f"its list of files is not understood: {text[:80]!r}")
    return [match for match in lines if match[2] != "h"]  # history: about to be removed
