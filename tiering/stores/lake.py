"""The data lake: Iceberg tables whose pointer moves inside our own PostgreSQL transaction.

A commit has two halves. `stage_*` writes manifests and new metadata to the object store, where nobody looks yet;
`apply` swaps the pointer by compare-and-set in the caller's transaction, together with the ledger and whatever else
must happen at once. A crash or rollback between the two leaves orphan objects for the sweep, and nothing else.

Does not: write or delete data files, or delete anything at all. `ops/sweep.py` does, after asking `snapshot_files`.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import pyarrow.parquet as pq
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from pyarrow.lib import ArrowException
from pydantic import SecretStr
from pyiceberg.exceptions import NoSuchTableError, TableAlreadyExistsError
from pyiceberg.manifest import DataFile, ManifestContent
from pyiceberg.serializers import ToOutputFile
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata, TableMetadataV2
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER
from pyiceberg.table.update import AddSchemaUpdate, SetCurrentSchemaUpdate, SetPropertiesUpdate
from pyiceberg.types import DateType, TimestampType, TimestamptzType

from tiering.errors import AlreadyExists, CommitConflict, CorruptCopy, NotFound, SchemaMismatch
from tiering.model import Column, Span
from tiering.stores import postgres
from tiering.stores.lake_catalog import CATALOG, NAMESPACE, QuickTransaction, StagingCatalog, open_catalog
from tiering.stores.lake_schema import evolve_schema, lake_schema, partition_spec, table_properties
from tiering.stores.objects import S3Objects
from tiering.stores.parquet_schema import EXACT_FIELD_ID
from tiering.stores.postgres import Postgres

_INSTALL_LOCK = 0x7469_6572_6C61_6B65  # "tierlake": one creator of the catalog's tables at a time

_EVOLVE_ATTEMPTS = 3

_SWAP_POINTER = """
    UPDATE tiering.iceberg_tables SET metadata_location = %(new)s, previous_metadata_location = %(old)s
    WHERE catalog_name = %(catalog)s AND table_namespace = %(namespace)s AND table_name = %(dataset)s
      AND metadata_location = %(old)s
"""


@dataclass(frozen=True, slots=True)
class LakeFile:
    """A Parquet object as the lake names it: `s3://bucket/key`, its bytes and its rows."""

    location: str
    size_bytes: int
    row_count: int


@dataclass(frozen=True, slots=True)
class StagedCommit:
    """A commit that is written but not visible: it moves the dataset's pointer from old to new."""

    dataset: str
    old_location: str
    new_location: str


class IcebergLake:
    """The lake of one bucket, its catalog in schema `tiering` of the warm database.

    Making one reaches no server. Safe to share between threads. Every method may raise the transient
    `StoreUnavailable` and the permanent `AccessDenied`; methods that name a dataset raise `NotFound` when it has
    no lake table.
    """

    def __init__(
        self,
        database_url: SecretStr,
        endpoint_url: str,
        bucket: str,
        access_key: SecretStr,
        secret_key: SecretStr,
        region: str = "us-east-1",
    ) -> None:
        self._database = Postgres(database_url, "lake catalog")
        self._objects = S3Objects(endpoint_url, bucket, access_key, secret_key, region)

    def ensure_table(self, dataset: str, columns: tuple[Column, ...], unit: Span, time_column: str) -> None:
        """Create the dataset's lake table, or bring it up to its columns. Idempotent; two callers may race.

        Raises:
            SchemaMismatch: the table exists and a column changed in a way that old files cannot follow.
        """
        try:
            self.evolve(dataset, columns)
            return
        except NotFound:
            schema = lake_schema(dataset, columns)
        spec = partition_spec(unit, schema, time_column)
        location = self._objects.location(self.metadata_prefix(dataset).rstrip("/"))
        # Not catalog.create_table(): it numbers the fields anew, and our Parquet files carry ours.
        metadata = TableMetadataV2.model_validate(
            {
                "location": location,
                "table-uuid": uuid.uuid4(),
                "schemas": [schema],
                "current-schema-id": schema.schema_id,
                "last-column-id": schema.highest_field_id,
                "partition-specs": [spec],
                "default-spec-id": spec.spec_id,
                "last-partition-id": spec.last_assigned_field_id,
                "sort-orders": [UNSORTED_SORT_ORDER],
                "default-sort-order-id": UNSORTED_SORT_ORDER.order_id,
                "properties": table_properties(schema),
            }
        )
        metadata_location = f"{location}/metadata/00000-{uuid.uuid4()}.metadata.json"
        with _mapped("create lake table", dataset):
            files = self._catalog._load_file_io(location=metadata_location)
            ToOutputFile.table_metadata(metadata, files.new_output(metadata_location))
            try:
                self._catalog.register_table((NAMESPACE, dataset), metadata_location)
            except TableAlreadyExistsError:
                self.evolve(dataset, columns)

    def evolve(self, dataset: str, columns: tuple[Column, ...]) -> bool:
        """Bring added, widened or renamed columns to the lake table; say whether anything changed.

        Raises:
            SchemaMismatch: a column changed in a way that old files cannot follow; nothing was changed.
            CommitConflict: others committed meanwhile, three times over; nothing was changed.
        """
        for _ in range(_EVOLVE_ATTEMPTS - 1):
            try:
                return self._evolve(dataset, columns)
            except CommitConflict:
                continue  # most likely another run made the same change just now
        return self._evolve(dataset, columns)

    def field_ids(self, dataset: str) -> dict[str, int]:
        """Return the field id of every column that the table has or ever had, by its last name."""
        found: dict[str, int] = {}
        for schema in sorted(self._table(dataset).metadata.schemas, key=lambda schema: schema.schema_id):
            found |= {field.name: field.field_id for field in schema.fields if field.field_id != EXACT_FIELD_ID}
        return found

    def partition(self, dataset: str) -> str:
        """Name the time that a partition of the table spans: "day", "month", "year", or "" without partitions."""
        names = [str(field.transform) for field in self._table(dataset).spec().fields]
        return names[0] if names else ""

    def stage_add(self, dataset: str, file: LakeFile) -> StagedCommit:
        """Stage one new file; see `stage`."""
        return self.stage(dataset, add=(file,))

    def stage_add_many(self, dataset: str, files: Iterable[LakeFile]) -> StagedCommit:
        """Stage several new files as one commit; see `stage`."""
        return self.stage(dataset, add=files)

    def stage_swap(self, dataset: str, old_file_location: str, new_file: LakeFile) -> StagedCommit:
        """Stage the replacement of a file by its next generation; see `stage`."""
        return self.stage(dataset, add=(new_file,), remove=(old_file_location,))

    def stage_remove(self, dataset: str, *file_locations: str) -> StagedCommit:
        """Stage the disappearance of files from the table; see `stage`."""
        return self.stage(dataset, remove=file_locations)

    def stage(self, dataset: str, *, add: Iterable[LakeFile] = (), remove: Iterable[str] = ()) -> StagedCommit:
        """Write a commit that adds and removes files, without showing it to anyone. May be repeated.

        Of an added file only the footer is read. The objects of a stage that is never applied are orphans.

        Raises:
            AlreadyExists: a file to add is in the table already.
            NotFound: a file to remove is not in the table, or one to add is not in the store.
            CorruptCopy: a file to add has not the size or rows that were said, or is not Parquet.
            SchemaMismatch: a file to add has other columns than the table, or spans partitions.
        """
        table = self._table(dataset)
        live = {data_file.file_path: data_file for data_file in self._live(table)} if table.current_snapshot() else {}
        added = [self._describe(table, file, live) for file in {file.location: file for file in add}.values()]
        removed = [_find(dataset, location, live) for location in remove]
        old_location = table.metadata_location
        with _mapped("stage lake commit", dataset), QuickTransaction(table) as transaction:
            update = transaction.update_snapshot()
            with update.overwrite() if removed else update.merge_append() as snapshot:
                for data_file in added:
                    snapshot.append_data_file(data_file)
                for data_file in removed:
                    snapshot.delete_data_file(data_file)
        return StagedCommit(dataset, old_location, table.metadata_location)

    def apply(self, target: Connection | Cursor, staged: StagedCommit) -> None:
        """Move the pointer inside the caller's transaction; readers see it when the caller commits.

        One UPDATE. It waits for another transaction that moves the same pointer, under the caller's lock_timeout.
        Staging reads the committed pointer: one commit per dataset and transaction, so add several files as one.

        Raises:
            CommitConflict: the pointer is not where it was at staging; stage again. The caller rolls back.
        """
        cursor = target if isinstance(target, Cursor) else target.cursor()
        arguments = {"catalog": CATALOG, "namespace": NAMESPACE, "dataset": staged.dataset}
        arguments |= {"old": staged.old_location, "new": staged.new_location}
        with postgres.mapped("commit to lake", staged.dataset):
            cursor.execute(_SWAP_POINTER, arguments)
        if cursor.rowcount != 1:
            raise CommitConflict("commit to lake", staged.dataset, "the pointer moved since staging", "Stage it again.")

    def publish(self, staged: StagedCommit) -> None:
        """Apply a staged commit in a transaction of its own.

        Raises:
            CommitConflict: see `apply`.
        """
        with self._database.transaction("commit to lake", staged.dataset) as connection:
            self.apply(connection, staged)

    def files(self, dataset: str) -> tuple[LakeFile, ...]:
        """List the data files that a reader of the table sees now."""
        table = self._table(dataset)
        if table.current_snapshot() is None:
            return ()
        return tuple(LakeFile(f.file_path, f.file_size_in_bytes, f.record_count) for f in self._live(table))

    def metadata_location(self, dataset: str) -> str:
        """Name the table's current metadata: what DuckDB's `iceberg_scan` takes."""
        with _mapped("locate lake table", dataset):
            return self._catalog.pointer((NAMESPACE, dataset))

    def metadata_prefix(self, dataset: str) -> str:
        """Name the keys under which the table's metadata, manifests and their lists are, staged ones too."""
        return f"iceberg/{dataset}/"

    def exists(self, dataset: str) -> bool:
        """Say whether the dataset has a lake table."""
        try:
            self.metadata_location(dataset)
        except NotFound:
            return False
        return True

    def datasets(self) -> tuple[str, ...]:
        """List the datasets that have a lake table."""
        with _mapped("list lake tables", NAMESPACE):
            return tuple(sorted(name for _, name in self._catalog.list_tables(NAMESPACE)))

    def snapshot_files(self, dataset: str) -> frozenset[str]:
        """Name every object that some reader of the current metadata may still open; the rest are orphans.

        Data files, manifests and manifest lists of every snapshot in the metadata, the metadata itself and the
        earlier ones in its log. Staged commits are not among them: only their age protects those.
        """
        table = self._table(dataset)
        found = {table.metadata_location, *(entry.metadata_file for entry in table.metadata.metadata_log)}
        found |= {statistics.statistics_path for statistics in table.metadata.statistics}
        with _mapped("list lake objects", dataset):
            for snapshot in table.metadata.snapshots:
                found.add(snapshot.manifest_list)
                for manifest in snapshot.manifests(table.io):
                    found.add(manifest.manifest_path)
                    found |= {f.file_path for f in self._catalog.data_files(manifest, table.io)}
        return frozenset(found)

    def expire_snapshots(self, dataset: str, older_than: datetime) -> int:
        """Forget snapshots made before `older_than`, never the current one; return how many.

        Metadata only, in a transaction of its own: the objects become orphans for the sweep.

        Raises:
            CommitConflict: somebody committed meanwhile; nothing was changed.
        """
        if older_than.tzinfo is None:
            raise ValueError("older_than needs a time zone: pyiceberg would take local time for UTC")
        table = self._table(dataset)
        old_location, count = table.metadata_location, len(table.metadata.snapshots)
        with _mapped("expire snapshots", dataset):
            table.maintenance.expire_snapshots().older_than(older_than).commit()
        if table.metadata_location == old_location:
            return 0
        self.publish(StagedCommit(dataset, old_location, table.metadata_location))
        return count - len(table.metadata.snapshots)

    def close(self) -> None:
        """Close idle connections; the object may be used again."""
        self._database.close()
        if "_catalog" in self.__dict__:
            self._catalog.engine.dispose()

    @functools.cached_property
    def _catalog(self) -> StagingCatalog:
        """Open the catalog at first use, creating schema, tables and namespace where they are missing."""
        with self._database.transaction("open lake catalog", NAMESPACE) as connection:
            postgres.execute(connection, "SELECT pg_advisory_xact_lock(%s)", (_INSTALL_LOCK,))
            if postgres.fetch_one(connection, "SELECT to_regnamespace('tiering')") == (None,):
                # Committed at once: the catalog's own connection creates its tables in it.
                postgres.execute(connection, "CREATE SCHEMA tiering")
                connection.commit()
                postgres.execute(connection, "SELECT pg_advisory_xact_lock(%s)", (_INSTALL_LOCK,))
            catalog = open_catalog(self._database.url, self._objects)
            if not catalog.namespace_exists(NAMESPACE):
                catalog.create_namespace(NAMESPACE)
            return catalog

    def _evolve(self, dataset: str, columns: tuple[Column, ...]) -> bool:
        table = self._table(dataset)
        next_id = 1 + max(known.schema_id for known in table.metadata.schemas)
        schema = evolve_schema(dataset, table.schema(), columns, next_id)
        if schema.fields == table.schema().fields:
            return False
        updates = (
            AddSchemaUpdate(schema=schema),
            SetCurrentSchemaUpdate(),  # the one just added
            SetPropertiesUpdate(updates=table_properties(schema)),
        )
        with _mapped("evolve lake table", dataset):
            staged = self._catalog.commit_table(table, (), updates)
        self.publish(StagedCommit(dataset, table.metadata_location, staged.metadata_location))
        return True

    def _table(self, dataset: str) -> Table:
        with _mapped("open lake table", dataset):
            return self._catalog.load_table((NAMESPACE, dataset))

    def _live(self, table: Table) -> Iterator[DataFile]:
        """Yield the current snapshot's data files."""
        snapshot = table.current_snapshot()
        with _mapped("read manifests", table.name()[-1]):
            for manifest in snapshot.manifests(table.io) if snapshot else ():
                if manifest.content == ManifestContent.DATA:
                    yield from self._catalog.data_files(manifest, table.io)

    def _describe(self, table: Table, file: LakeFile, live: dict[str, DataFile]) -> DataFile:
        """Read a new file's footer and compare it with what was said of the file."""
        # Here, for it brings 50 MB of pandas along, which a process that only copies must not pay for.
        from pyiceberg.io.pyarrow import parquet_file_to_data_file

        dataset = table.name()[-1]
        if file.location in live:
            raise AlreadyExists("add to lake", file.location, f"is in lake table {dataset} already")
        try:
            try:
                found = parquet_file_to_data_file(table.io, table.metadata, file.location)
            except OverflowError:
                found = parquet_file_to_data_file(table.io, _without_far_bounds(table), file.location)
            _drop_partial_bounds(table, found)
        except ArrowException as exc:
            raise CorruptCopy("add to lake", file.location, f"not readable as Parquet: {exc}") from exc
        except (ValueError, TypeError, KeyError) as exc:
            raise SchemaMismatch("add to lake", file.location, " ".join(str(exc).split())) from exc
        if (found.file_size_in_bytes, found.record_count) != (file.size_bytes, file.row_count):
            cause = f"{found.record_count} rows in {found.file_size_in_bytes} bytes, not as said: {file}"
            raise CorruptCopy("add to lake", file.location, cause)
        return found


def _without_far_bounds(table: Table) -> TableMetadata:
    """Return the metadata as if it asked for no bounds of dates and times, but the partition's own.

    Why: pyiceberg reads bounds as Python dates, which end with the year 9999; PostgreSQL's do not. The file's own
    statistics stay right, so readers that look into it lose nothing.
    """
    sources = {field.source_id for field in table.spec().fields}
    is_time = (DateType, TimestampType, TimestamptzType)
    far = [f.name for f in table.schema().fields if isinstance(f.field_type, is_time) and f.field_id not in sources]
    asked = {f"write.metadata.metrics.column.{name}": "counts" for name in far}
    return table.metadata.model_copy(update={"properties": {**table.metadata.properties, **asked}})


def _drop_partial_bounds(table: Table, found: DataFile) -> None:
    """Take bounds off columns that they do not hold for: readers leave a file out by its bounds, rows and all.

    Why: Arrow keeps no min and max of a row group where one is longer than 4 KB, and pyiceberg makes the file's bounds
    of the other groups'.
    """
    if len(found.split_offsets or ()) < 2:  # one row group: its bounds are the file's, or there are none
        return
    from pyiceberg.io.pyarrow import parquet_path_to_id_mapping

    with table.io.new_input(found.file_path).open() as footer:
        groups = pq.read_metadata(footer)
    ids = parquet_path_to_id_mapping(table.schema())
    for group in map(groups.row_group, range(groups.num_row_groups)):
        for column in map(group.column, range(groups.num_columns)):
            told = column.statistics
            if told is not None and not told.has_min_max and told.null_count != column.num_values:
                for bounds in (found.lower_bounds, found.upper_bounds):
                    (bounds or {}).pop(ids[column.path_in_schema], None)


def _find(dataset: str, location: str, live: dict[str, DataFile]) -> DataFile:
    if location not in live:
        raise NotFound("remove from lake", location, f"is not in lake table {dataset}")
    return live[location]


@contextmanager
def _mapped(operation: str, dataset: str) -> Iterator[None]:
    """Turn pyiceberg's and the catalog database's exceptions into ours; the object store's are ours already."""
    try:
        with postgres.mapped(operation, dataset):
            yield
    except NoSuchTableError as exc:
        raise NotFound(operation, dataset, "has no lake table", "`tiering install` creates it.") from exc
