"""The tar stream of pg_basebackup: passed on with its manifest picked out, and unpacked while every file is hashed."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from tiering.errors import CorruptCopy
from tiering.stores.pg_manifest import NAME, ManifestFile, compare, parse_manifest

_BLOCK = 512
_SIZE = slice(124, 136)


class ManifestTap(io.RawIOBase):
    """Hand a tar stream on unchanged, and keep the manifest that passes by.

    Args:
        stream: of pg_basebackup.
        progress: told of every so many bytes.
    """

    def __init__(self, stream: IO[bytes], progress: Callable[[int], None]) -> None:
        super().__init__()
        self._stream = stream
        self._progress = progress
        self._header = bytearray()
        self._skip = 0
        self._wanted = 0
        self._manifest = bytearray()
        self.count = 0

    @property
    def manifest(self) -> bytes:
        """The manifest, once everything was read.

        Raises:
            CorruptCopy: there was none.
        """
        if not self._manifest or self._wanted:
            raise CorruptCopy("back up", "PostgreSQL", "the stream had no manifest at its end", "Back up again.")
        return bytes(self._manifest)

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def read(self, size: int = -1) -> bytes:
        """See `io.RawIOBase`."""
        data = self._stream.read(size)
        self.count += len(data)
        self._progress(len(data))
        self._scan(memoryview(data))
        return data

    def _scan(self, data: memoryview) -> None:
        """Follow the headers from file to file."""
        while data:
            if self._wanted:
                part = data[: self._wanted]
                self._manifest += part
                self._wanted -= len(part)
                data = data[len(part) :]
            elif self._skip:
                step = min(self._skip, len(data))
                self._skip -= step
                data = data[step:]
            else:
                part = data[: _BLOCK - len(self._header)]
                self._header += part
                data = data[len(part) :]
                if len(self._header) == _BLOCK:
                    self._enter(bytes(self._header))
                    self._header.clear()

    def _enter(self, header: bytes) -> None:
        if not any(header):
            return
        size = tarfile.nti(header[_SIZE])  # type: ignore[attr-defined]
        padding = -size % _BLOCK
        if header[:100].rstrip(b"\0") == NAME.encode():
            self._manifest.clear()
            self._wanted, self._skip = size, padding
        else:
            self._skip = size + padding


def unpack(stream: IO[bytes], manifest_data: bytes, directory: Path | None, subject: str) -> None:
    """Unpack a base backup and hold every file to the manifest meanwhile; without a directory only look.

    Raises:
        CorruptCopy: a file is missing, changed or too many, or the manifest is another one.
    """
    manifest = parse_manifest(manifest_data, subject)
    found: dict[str, ManifestFile] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as archive:
            for member in archive:
                for file in _unpack_member(archive, member, directory):
                    found[file.path] = file
    except tarfile.TarError as exc:
        raise CorruptCopy("unpack", subject, f"it is no tar stream ({exc})", "Choose another backup.") from exc
    own = found.pop(NAME, None)
    if own is None or own.sha256 != hashlib.sha256(manifest_data).hexdigest():
        raise CorruptCopy("unpack", subject, "its manifest is not the one that was kept apart", "Choose another.")
    compare(manifest, {path: file for path, file in found.items() if not path.startswith("pg_wal/")}, subject)


def _unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, directory: Path | None) -> Iterator[ManifestFile]:
    name = member.name.removeprefix("./")
    if member.isdir():
        if directory is not None:
            _inside(directory, name).mkdir(mode=0o700, exist_ok=True)
        return
    source = archive.extractfile(member) if member.isreg() else None
    if source is None:
        raise CorruptCopy("unpack", name, "it is neither file nor directory", "Choose another backup.")
    digest, size = hashlib.sha256(), 0
    path = _inside(directory, name) if directory is not None else Path(os.devnull)
    with open(path, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as target:
        while block := source.read(1 << 20):
            digest.update(block)
            size += len(block)
            target.write(block)
    yield ManifestFile(name, size, digest.hexdigest())


def _inside(directory: Path, name: str) -> Path:
    """Refuse names that lead out of the directory: the vault is authentic, but a server's file names are not ours."""
    path = directory / name
    if name.startswith("/") or ".." in Path(name).parts:
        raise CorruptCopy("unpack", name, "its name leads out of the directory", "Choose another backup.")
    return path
