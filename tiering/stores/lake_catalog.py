"""pyiceberg's SQL catalog, taught two things: to commit without moving the pointer, and to use our object store.

Does not: move a pointer (`lake.py` does, inside the caller's transaction), or delete an object.
"""

from __future__ import annotations

import hashlib
import io
import threading
from typing import Any, BinaryIO

from cachetools import LRUCache
from pydantic import SecretStr
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.io import FileIO, InputFile, OutputFile
from pyiceberg.manifest import DataFile, ManifestFile
from pyiceberg.serializers import FromInputFile
from pyiceberg.table import CommitTableResponse, Table, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.update import TableRequirement, TableUpdate
from pyiceberg.typedef import EMPTY_DICT, Identifier, Properties
from sqlalchemy import select
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from tiering.errors import AlreadyExists, NotFound
from tiering.stores.objects import S3Objects

CATALOG = "tiering"
"""The catalog's name: what an outside reader passes to `SqlCatalog(name, …)`."""

NAMESPACE = "lake"
CATALOG_SCHEMA = "tiering"


def open_catalog(database_url: SecretStr, objects: S3Objects) -> StagingCatalog:
    """Connect to the catalog, creating its two tables if the schema has none."""
    url = make_url(database_url.get_secret_value()).set(drivername="postgresql+psycopg2")
    given = url.query.get("options", "")
    options = f"{given if isinstance(given, str) else ' '.join(given)} -csearch_path={CATALOG_SCHEMA}".strip()
    url = url.update_query_dict({"options": options, "application_name": "tiering", "connect_timeout": "5"})
    return StagingCatalog(
        CATALOG,
        **{
            "uri": url.render_as_string(hide_password=False),
            "pool_pre_ping": "true",
            "warehouse": f"s3://{objects.bucket}/iceberg",
            "py-io-impl": f"{ObjectFiles.__module__}.{ObjectFiles.__name__}",
            "s3.endpoint": objects.endpoint_url,
            "s3.access-key-id": objects.access_key.get_secret_value(),
            "s3.secret-access-key": objects.secret_key.get_secret_value(),
            "s3.region": objects.region,
        },
    )


class StagingCatalog(SqlCatalog):
    """A SQL catalog whose commits write everything but leave the pointer alone.

    After a commit through it, `Table.metadata_location` names the new metadata, which nobody else sees yet.
    Metadata and manifests never change once written, so both are kept by location.
    """

    def __init__(self, name: str, **properties: str) -> None:
        super().__init__(name, **properties)
        self._metadata: LRUCache[str, TableMetadata] = LRUCache(16)
        self._data_files: LRUCache[str, tuple[DataFile, ...]] = LRUCache(256)
        self._lock = threading.Lock()

    def commit_table(
        self, table: Table, requirements: tuple[TableRequirement, ...], updates: tuple[TableUpdate, ...]
    ) -> CommitTableResponse:
        """Write the new metadata file. The parent's method would go on to swap the pointer by itself."""
        staged = self._update_and_stage_table(table, table.name(), requirements, updates)
        if staged.metadata == table.metadata:
            return _response(table.metadata, table.metadata_location)
        self._write_metadata(staged.metadata, staged.io, staged.metadata_location)
        with self._lock:
            self._metadata[staged.metadata_location] = staged.metadata
        return _response(staged.metadata, staged.metadata_location)

    def load_table(self, identifier: str | Identifier) -> Table:
        """Load what the pointer names now."""
        location = self.pointer(identifier)
        files = self._load_file_io(location=location)
        with self._lock:
            metadata = self._metadata.get(location)
        if metadata is None:
            metadata = FromInputFile.table_metadata(files.new_input(location))
            with self._lock:
                self._metadata[location] = metadata
        return Table(Catalog.identifier_to_tuple(identifier), metadata, location, files, self)

    def pointer(self, identifier: str | Identifier) -> str:
        """Read where the table's metadata is now.

        Raises:
            NoSuchTableError: there is no such table.
        """
        namespace = Catalog.namespace_to_string(Catalog.namespace_from(identifier))
        with Session(self.engine) as session:
            location = session.scalar(
                select(IcebergTables.metadata_location).where(
                    IcebergTables.catalog_name == self.name,
                    IcebergTables.table_namespace == namespace,
                    IcebergTables.table_name == Catalog.table_name_from(identifier),
                )
            )
        if location is None:
            raise NoSuchTableError(f"no lake table {identifier}")
        return location

    def data_files(self, manifest: ManifestFile, files: FileIO) -> tuple[DataFile, ...]:
        """List the live data files that one manifest names."""
        with self._lock:
            found = self._data_files.get(manifest.manifest_path)
        if found is None:
            found = tuple(entry.data_file for entry in manifest.fetch_manifest_entry(files, discard_deleted=True))
            with self._lock:
                self._data_files[manifest.manifest_path] = found
        return found


def _response(metadata: TableMetadata, location: str) -> CommitTableResponse:
    return CommitTableResponse.model_validate({"metadata": metadata, "metadata-location": location})


class QuickTransaction(Transaction):
    """A transaction that works out its metadata once per change.

    Why: the parent copies the whole metadata, every snapshot of it, at each of some fifteen looks per commit;
    with 200 snapshots that was most of a commit's time.
    """

    def __init__(self, table: Table) -> None:
        super().__init__(table, autocommit=False)
        self._known: tuple[int, TableMetadata] = (0, table.metadata)

    @property
    def table_metadata(self) -> TableMetadata:
        """The metadata as it will be after the changes so far."""
        if self._known[0] != len(self._updates):
            self._known = (len(self._updates), super().table_metadata)
        return self._known[1]


class ObjectFiles(FileIO):
    """pyiceberg's file layer over S3Objects: one error mapping, one connection pool, write-once everywhere."""

    def __init__(self, properties: Properties = EMPTY_DICT) -> None:
        super().__init__(properties)

    def _objects(self, location: str) -> S3Objects:
        bucket = location.removeprefix("s3://").split("/", 1)[0]
        given = self.properties
        keys = SecretStr(given["s3.access-key-id"]), SecretStr(given["s3.secret-access-key"])
        return S3Objects(given["s3.endpoint"], bucket, *keys, given["s3.region"])

    def new_input(self, location: str) -> InputFile:
        """Name an object to read."""
        return _Input(location, self._objects(location))

    def new_output(self, location: str) -> OutputFile:
        """Name an object to write."""
        return _Output(location, self._objects(location))

    def delete(self, location: str | InputFile | OutputFile) -> None:
        """Leave it: pyiceberg tidies up after failed commits here, but only `ops/sweep.py` destroys data."""


class _Recent:
    """The small objects that this process wrote or read last; right for ever, because they are write-once."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes: LRUCache[tuple[S3Objects, str], bytes] = LRUCache(bytes_max, len)
        self._lock = threading.Lock()

    def get(self, objects: S3Objects, key: str) -> bytes | None:
        with self._lock:
            return self._bytes.get((objects, key))

    def put(self, objects: S3Objects, key: str, data: bytes) -> None:
        with self._lock:
            if len(data) <= self._bytes.maxsize // 4:
                self._bytes[objects, key] = data


_recent = _Recent(16 << 20)


class _Input(InputFile):
    def __init__(self, location: str, objects: S3Objects) -> None:
        super().__init__(location)
        self._objects, self._key = objects, objects.key(location)
        self._size: int | None = None

    def __len__(self) -> int:
        if self._size is None:
            self._size = self._objects.stat(self._key).size
        return self._size

    def exists(self) -> bool:
        try:
            return len(self) >= 0
        except NotFound:
            return False

    def open(self, seekable: bool = True) -> Any:
        # Parquet is read in ranges; metadata, manifests and their lists are small and read whole.
        if self._key.endswith(".parquet"):
            file = self._objects.open(self._key)
            self._size = file.seek(0, io.SEEK_END)
            file.seek(0)
            return file
        data = _recent.get(self._objects, self._key)
        if data is None:
            whole = io.BytesIO()
            self._objects.fetch(self._key, whole)
            data = whole.getvalue()
            _recent.put(self._objects, self._key, data)
        return io.BytesIO(data)


class _Output(OutputFile):
    def __init__(self, location: str, objects: S3Objects) -> None:
        super().__init__(location)
        self._objects, self._key = objects, objects.key(location)

    def __len__(self) -> int:
        return self._objects.stat(self._key).size

    def exists(self) -> bool:
        return _Input(self.location, self._objects).exists()

    def to_input_file(self) -> InputFile:
        return _Input(self.location, self._objects)

    def create(self, overwrite: bool = False) -> Any:
        return _Upload(self._objects, self._key)


class _Upload(io.BytesIO):
    """Collects a small object and stores it when closed without an error."""

    def __init__(self, objects: S3Objects, key: str) -> None:
        super().__init__()
        self._objects, self._key = objects, key

    def __exit__(self, *error: Any) -> None:
        if error[0] is not None:
            super().close()
        else:
            self.close()

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            body: BinaryIO = io.BytesIO(data)
            sha256 = hashlib.sha256(data).hexdigest()
            try:
                self._objects.put_new(self._key, body, len(data), sha256)
            except AlreadyExists:
                # The answer to the first try was lost, and its repetition found it: the names are random.
                if self._objects.stat(self._key).sha256 != sha256:
                    raise
            _recent.put(self._objects, self._key, data)
