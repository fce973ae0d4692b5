"""Read PostgreSQL's backup manifests and hold files to them, by code of our own.

Why not pg_verifybackup: older ones refuse newer manifests, packaged ones were seen to crash, and it wants the whole
backup on a disk. Here a file is hashed while it is unpacked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tiering.errors import CorruptCopy, PermanentError
from tiering.stores.pg_tools import parse_lsn

NAME = "backup_manifest"
# Written by a recovery's preparation or by pg_combinebackup, never listed.
UNLISTED = (NAME, "postgresql.auto.conf", "standby.signal", "recovery.signal")
_CHECKSUM = b'"Manifest-Checksum"'


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file as the manifest lists it; `sha256` in hexadecimal."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class WalRange:
    """Log that the backup needs, half-open."""

    timeline: int
    begins: int
    ends: int


@dataclass(frozen=True)
class Manifest:
    """A manifest whose own checksum was right.

    Attributes:
        system_id: of the server; empty in manifests of version 1, which do not say.
        files: by path.
        ranges: the log that is needed to make the backup consistent, oldest first.
    """

    system_id: str
    files: Mapping[str, ManifestFile]
    ranges: tuple[WalRange, ...]

    @property
    def size_bytes(self) -> int:
        """Count the bytes of all files."""
        return sum(file.size_bytes for file in self.files.values())


def parse_manifest(data: bytes, subject: str) -> Manifest:
    """Read a manifest and check its own checksum.

    Raises:
        CorruptCopy: it is not what PostgreSQL wrote.
        PermanentError: its files are not hashed by SHA-256, or its version is not known.
    """
    at = data.rfind(_CHECKSUM)
    try:
        told = json.loads(data)
        claimed = str(told["Manifest-Checksum"])
    except (ValueError, KeyError, TypeError):
        raise _corrupt(subject, "the manifest cannot be read") from None
    # Everything before the line of the checksum is under it.
    if at < 0 or hashlib.sha256(data[:at]).hexdigest() != claimed:
        raise _corrupt(subject, "the manifest's own checksum is wrong")
    version = told.get("PostgreSQL-Backup-Manifest-Version")
    if version not in (1, 2):
        raise PermanentError("verify", subject, f"manifest of version {version}", "Update this program.")
    files = {file.path: file for file in map(lambda one: _file(one, subject), told["Files"])}
    if len(files) != len(told["Files"]):
        raise _corrupt(subject, "the manifest lists a file twice")
    ranges = tuple(
        WalRange(int(one["Timeline"]), parse_lsn(one["Start-LSN"]), parse_lsn(one["End-LSN"]))
        for one in told["WAL-Ranges"]
    )
    if not ranges:
        raise _corrupt(subject, "the manifest names no log")
    return Manifest(str(told.get("System-Identifier", "")), files, tuple(sorted(ranges, key=lambda one: one.begins)))


def compare(manifest: Manifest, found: Mapping[str, ManifestFile], subject: str) -> None:
    """Hold what was found to the manifest.

    Raises:
        CorruptCopy: a file is missing, changed, or not in the manifest; the first few are named.
    """
    problems = [f"{path} is missing" for path in manifest.files if path not in found]
    for path, file in found.items():
        listed = manifest.files.get(path)
        if listed is None:
            problems += [] if is_unlisted(path) else [f"{path} is not in the manifest"]
        elif listed.size_bytes != file.size_bytes:
            problems.append(f"{path} has {file.size_bytes} bytes, not {listed.size_bytes}")
        elif listed.sha256 != file.sha256:
            problems.append(f"{path} has other bytes")
    if problems:
        raise _corrupt(subject, "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if problems[5:] else ""))


def verify_directory(directory: Path, subject: str) -> Manifest:
    """Read every file of an unpacked backup and hold it to the manifest beside them.

    Raises:
        CorruptCopy: as `compare`.
    """
    manifest = parse_manifest((directory / NAME).read_bytes(), subject)
    compare(manifest, {file.path: file for file in _hashed(directory)}, subject)
    return manifest


def is_unlisted(path: str) -> bool:
    """Say whether a file belongs into a data directory without being in its manifest."""
    return path in UNLISTED or path.startswith("pg_wal/")


def _hashed(directory: Path) -> Iterator[ManifestFile]:
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != NAME and not name.startswith("pg_wal/"):
            with path.open("rb") as file:
                yield ManifestFile(name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _file(told: Mapping[str, object], subject: str) -> ManifestFile:
    encoded = told.get("Encoded-Path")
    path = bytes.fromhex(str(encoded)).decode("utf-8", "surrogateescape") if encoded else str(told.get("Path", ""))
    if told.get("Checksum-Algorithm") != "SHA256" or not path:
        hint = "Back up with --manifest-checksums=SHA256, as `tiering backup` does."
        raise PermanentError("verify", subject, f"{path or 'a file'} has no SHA-256 in the manifest", hint)
    return ManifestFile(path, int(str(told["Size"])), str(told["Checksum"]))


def _corrupt(subject: str, cause: str) -> CorruptCopy:
    return CorruptCopy("verify", subject, cause, "Nothing was started on it. Choose another backup: `tiering backups`.")
