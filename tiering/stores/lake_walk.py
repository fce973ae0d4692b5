"""Which objects a lake's catalog needs, found from its pointers by whatever reads an object's bytes.

Does not: ask the object store itself, so that what is lost can be read from a backup instead.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyiceberg.io import FileIO, InputFile, OutputFile
from pyiceberg.serializers import FromInputFile

from tiering.errors import CorruptCopy, TieringError
from tiering.stores.postgres import Postgres, fetch

Read = Callable[[str], bytes]
"""Return the bytes of an object by its location; raises NotFound, CorruptCopy."""

_POINTERS = "SELECT table_name, metadata_location FROM tiering.iceberg_tables ORDER BY table_name"
_LEDGER = """
    SELECT location, size_bytes, sha256, true FROM tiering.unit WHERE tier = 'cold'
    UNION ALL SELECT location, size_bytes, sha256, true FROM tiering.joined
    UNION ALL SELECT location, size_bytes, NULL, false FROM tiering.trash WHERE store = 'lake' AND reclaimed_at IS NULL
"""


@dataclass(frozen=True, slots=True)
class Reference:
    """An object that somebody names.

    Attributes:
        location: `s3://bucket/key`.
        size: in bytes; -1 where it is not said.
        sha256: of its bytes; empty where it is not said.
        is_needed: data is lost without it; else it is a superseded copy, inside its undo window.
    """

    location: str
    size: int = -1
    sha256: str = ""
    is_needed: bool = True


def pointers(database: Postgres) -> dict[str, str]:
    """Read where the metadata of every lake table is, by dataset."""
    with database.transaction("read", "lake catalog", read_only=True) as connection:
        if fetch(connection, "SELECT to_regclass('tiering.iceberg_tables')") == [(None,)]:
            return {}
        return {str(name): str(location) for name, location in fetch(connection, _POINTERS)}


def ledger_references(database: Postgres) -> list[Reference]:
    """List the lake objects that the ledger names."""
    with database.transaction("read", "ledger", read_only=True) as connection:
        rows = fetch(connection, _LEDGER)
    lake = [row for row in rows if str(row[0]).startswith("s3://")]
    return [Reference(str(name), int(size), sha256 or "", needed) for name, size, sha256, needed in lake]


def table_references(metadata_location: str, read: Read) -> list[Reference]:
    """List every object that a reader of a table may open, its metadata first.

    Raises:
        NotFound, CorruptCopy: a part of the metadata itself cannot be had, or is not what it should be.
    """
    files: Any = _Files(read)
    found = {metadata_location: Reference(metadata_location)}
    try:
        metadata = FromInputFile.table_metadata(files.new_input(metadata_location))
        for entry in metadata.metadata_log:
            found[entry.metadata_file] = Reference(entry.metadata_file, is_needed=False)
        for snapshot in metadata.snapshots:
            found[snapshot.manifest_list] = Reference(snapshot.manifest_list)
            is_current = snapshot.snapshot_id == metadata.current_snapshot_id
            for manifest in snapshot.manifests(files):
                found[manifest.manifest_path] = Reference(manifest.manifest_path, manifest.manifest_length)
                for one in manifest.fetch_manifest_entry(files, discard_deleted=True):
                    file = one.data_file
                    known = found.get(file.file_path)
                    needed = is_current or (known is not None and known.is_needed)
                    found[file.file_path] = Reference(file.file_path, file.file_size_in_bytes, is_needed=needed)
    except TieringError:
        raise
    except (ValueError, KeyError, TypeError, EOFError, AssertionError) as exc:
        raise CorruptCopy("read", metadata_location, f"the table's metadata is not understood: {exc}") from exc
    return list(found.values())


class _Files(FileIO):
    def __init__(self, read: Read) -> None:
        super().__init__({})
        self._read = read

    def new_input(self, location: str) -> InputFile:
        return _Held(location, self._read(location))

    def new_output(self, location: str) -> OutputFile:
        raise NotImplementedError(f"nothing is written here: {location}")

    def delete(self, location: str | InputFile | OutputFile) -> None:
        raise NotImplementedError(f"nothing is deleted here: {location}")


class _Held(InputFile):
    def __init__(self, location: str, data: bytes) -> None:
        super().__init__(location)
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def exists(self) -> bool:
        return True

    def open(self, seekable: bool = True) -> Any:
        return io.BytesIO(self._data)
