"""Check the stores against each other: ledger ↔ PostgreSQL ↔ Iceberg ↔ bucket, and the audit chain. Changes nothing.

What it finds is looked for a second time, so that a move in flight is not taken for damage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import IO

from psycopg2 import sql

from tiering import errors
from tiering.model import Dataset, Fingerprint, Form, Tier
from tiering.ops import documents
from tiering.ops.archive import is_out_of_lake
from tiering.ops.audit import check_chain
from tiering.ops.columns import look, recorded_print
from tiering.ops.export import fetched
from tiering.ops.sweep import STAGE_KINDS
from tiering.plan.columns import plan_columns
from tiering.plan.fsck import Code, Finding, lasting
from tiering.plan.spans import subtract
from tiering.stores import parquet, pghash, tables
from tiering.stores.bson_batches import print_of
from tiering.stores.bson_typed import RAW_COLUMN, document_columns
from tiering.stores.copies import list_copies
from tiering.stores.joined import JoinedFile, list_joined
from tiering.stores.opening import Stores
from tiering.stores.ports import ObjectStat
from tiering.stores.postgres import fetch, fetch_one
from tiering.stores.records import OPEN_STATES, TrashRecord, UnitRecord

STALE_AFTER = timedelta(days=1)
"""A move that nobody advanced for this long is stuck: every schedule would have carried it on."""

Progress = Callable[[str, int, int], None]
"""Called with (what is checked, done, of how many)."""


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a check.

    Attributes:
        findings: differences and notes, in order.
        units: looked at, in the ledger.
        objects: looked at, in the bucket.
        rows: counted or read again (deep only).
    """

    findings: tuple[Finding, ...]
    units: int
    objects: int
    rows: int

    @property
    def is_clean(self) -> bool:
        """Tell whether nothing but notes was found."""
        return all(finding.is_note for finding in self.findings)


def _silent(_what: str, _done: int, _total: int) -> None:
    pass


def fsck(stores: Stores, now: datetime, *, deep: bool = False, progress: Progress = _silent) -> Checked:
    """Check everything; `deep` counts every warm unit's rows and reads every byte and row of the lake again.

    Args:
        stores: what to check.
        now: the instant that windows and staleness count back from.
        deep: also compare contents: the lake's by hash and fingerprint, the warm tier's by number of rows (a warm
            copy has no fingerprint in the ledger).
        progress: told during the deep part.
    """
    moving = [d for d in stores.policies.datasets if d.state == "moves" and d.form is not Form.FILES]
    units = objects = rows = 0
    found: list[Finding] = []
    for dataset in moving:
        look = _Look(stores, dataset, now)
        findings, counted = look.run()
        if findings:
            findings = lasting(findings, _Look(stores, dataset, now).run()[0])
        found += findings
        units, objects = units + counted[0], objects + counted[1]
        if deep:
            damaged = {finding.subject for finding in findings}
            contents, read = _deep(stores, dataset, damaged, progress)
            found, rows = found + contents, rows + read
    found += _left_in_stage(stores)
    found += check_chain(stores)
    return Checked(tuple(found), units, objects, rows)


class _Look:
    """One look at one dataset."""

    def __init__(self, stores: Stores, dataset: Dataset, now: datetime) -> None:
        self.stores, self.dataset, self.now = stores, dataset, now

    def run(self) -> tuple[list[Finding], tuple[int, int]]:
        """Return what is found, and how many units and objects were looked at."""
        name = self.dataset.name
        records = self.stores.ledger.units(name)
        listed = {self.stores.location(o.key): o for o in self.stores.objects.list(f"lake/{name}/")}
        # What documents lie in has no partitions and no columns that could differ.
        is_table = self.dataset.form is Form.TABLE
        found = [
            *(self._tables(records) if is_table else ()),
            *(self._columns() if is_table else ()),
            *self._objects(records, listed),
            *self._lake(records),
            *self._moves(),
            *self._trash(listed),
        ]
        return found, (len(records), len(listed))

    def _tables(self, records: list[UnitRecord]) -> Iterator[Finding]:
        stores, name = self.stores, self.dataset.name
        warm = {record.location: record for record in records if record.tier is Tier.WARM}
        with stores.warm.transaction("check", name, read_only=True) as connection:
            parents = (tables.warm_parent(name), f"{tables.warm_parent(name)}_packed")
            attached = [child for parent in parents for child in tables.children(connection, parent)]
            copies = {copy.location: copy for copy in list_copies(connection, name)}
        for location in attached:
            if location not in warm and location not in copies:
                text = "attached to the warm table, but no unit of the ledger"
                yield Finding(Code.UNKNOWN_PARTITION, location, text)
        cold = {record.unit for record in records if record.tier is Tier.COLD}
        for location, copy in copies.items():
            if location not in attached:
                yield Finding(Code.MISSING_TABLE, str(copy.unit), f"its read copy {location} is not there")
            elif copy.unit not in cold:
                yield Finding(Code.TWO_COPIES, str(copy.unit), f"{location} is a copy of what the unit was before")
        for record in (record for location, record in warm.items() if location not in attached):
            text = f"the ledger says its copy is {record.location}, which no reader of the warm table sees"
            yield Finding(Code.MISSING_TABLE, str(record.unit), text)
        with stores.hot.transaction("check", name, read_only=True) as connection:
            hot = [
                part
                for parent in (tables.hot_parent(name), tables.sealed_parent(name))
                for part in tables.partitions(connection, parent)
            ]
        left = {record.unit.begin: record for record in records}
        open_moves = {move.unit.begin for move in stores.ledger.moves(name, OPEN_STATES)}
        for part in hot:
            if part.begin in left and part.begin not in open_moves:
                text = f"{part.name} is still in the hot tier, though the unit is {left[part.begin].tier}"
                yield Finding(Code.TWO_COPIES, str(left[part.begin].unit), text)

    def _columns(self) -> Iterator[Finding]:
        name = self.dataset.name
        with self.stores.hot.transaction("describe", name, read_only=True) as connection:
            if not tables.exists(connection, tables.hot_parent(name)):
                return
        with self.stores.warm.transaction("describe", name, read_only=True) as connection:
            if not tables.exists(connection, tables.warm_parent(name)):
                if self.stores.ledger.knows(name):  # else it was never installed, which is no difference
                    yield Finding(Code.SCHEMA_DRIFT, name, f"{tables.warm_parent(name)} does not exist")
                return
            warm = {n: t for n, t, _ in tables.described_columns(connection, tables.warm_parent(name))}
        layout = look(self.stores, name)
        hot = {c.name: c.pg_type for c in (*layout.live, *layout.retired)}
        for column in sorted(hot.keys() | warm.keys()):
            if hot.get(column) != warm.get(column):
                text = f"column {column} is {hot.get(column, 'absent')} hot and {warm.get(column, 'absent')} warm"
                yield Finding(Code.SCHEMA_DRIFT, f"{name}.{column}", text)

    def _objects(self, records: list[UnitRecord], listed: dict[str, ObjectStat]) -> Iterator[Finding]:
        for record in records:
            if record.tier is not Tier.COLD:
                continue
            stat, unit = listed.get(record.location), str(record.unit)
            if stat is None:
                yield Finding(Code.MISSING_OBJECT, unit, f"{record.location} is not in the bucket")
            elif stat.size != record.size_bytes:
                yield Finding(
                    Code.WRONG_SIZE, unit, f"{record.location} has {stat.size} bytes, not {record.size_bytes}"
                )
        named = {record.location for record in records}
        named |= {file.location for file in self._joined()}
        named |= {item.location for item in self.stores.ledger.trash(self.dataset.name)}
        named |= {move.target for move in self.stores.ledger.moves(self.dataset.name, OPEN_STATES)}
        for location in sorted(listed.keys() - named):
            yield Finding(Code.ORPHAN_OBJECT, location, f"{listed[location].size} bytes that nothing names")

    def _joined(self) -> list[JoinedFile]:
        with self.stores.warm.transaction("list joined files of", self.dataset.name, read_only=True) as connection:
            return list_joined(connection, self.dataset.name)

    def _lake(self, records: list[UnitRecord]) -> Iterator[Finding]:
        name = self.dataset.name
        cold = {r.location: r for r in records if r.tier is Tier.COLD and not is_out_of_lake(r)}
        files = {f.location: f for f in self.stores.lake.files(name)} if self.stores.lake.exists(name) else {}
        joined = {file.location: file for file in self._joined()}
        hidden = {part for file in joined.values() for part in file.parts}
        for location in sorted(joined.keys() - files.keys()):
            yield Finding(Code.NOT_IN_LAKE, location, "a joined file that is not in the Iceberg table")
        for location in sorted(hidden - cold.keys()):
            yield Finding(Code.LAKE_DIFFERS, location, "a joined file stands for it, and it is no unit's copy")
        for location in sorted(hidden & files.keys()):
            yield Finding(Code.LAKE_DIFFERS, location, "in the Iceberg table beside the joined file with its rows")
        for location in sorted(cold.keys() - files.keys() - hidden):
            yield Finding(Code.NOT_IN_LAKE, str(cold[location].unit), f"{location} is not in the Iceberg table")
        for location in sorted(files.keys() - cold.keys() - joined.keys()):
            yield Finding(Code.NOT_IN_LEDGER, location, "in the Iceberg table, but no unit's copy")
        for location in sorted(files.keys() & cold.keys()):
            file, record = files[location], cold[location]
            if (file.size_bytes, file.row_count) != (record.size_bytes, record.row_count):
                text = f"{file.row_count} rows in {file.size_bytes} bytes in Iceberg, not as in the ledger"
                yield Finding(Code.LAKE_DIFFERS, str(record.unit), text)

    def _moves(self) -> Iterator[Finding]:
        with self.stores.warm.transaction("check moves of", self.dataset.name, read_only=True) as connection:
            rows = fetch(
                connection,
                """SELECT move_id, transition, begin_at, state, changed_at FROM tiering.move
                   WHERE dataset = %s AND state IN ('PLANNED', 'SEALED', 'COPIED', 'VERIFIED') AND changed_at < %s""",
                (self.dataset.name, self.now - STALE_AFTER),
            )
        for move_id, transition, begin, state, changed in rows:
            text = f"{transition} of {begin:%Y-%m-%d} is {state} since {changed:%Y-%m-%d %H:%M}Z"
            yield Finding(Code.STALE_MOVE, f"move {move_id}", text)

    def _trash(self, listed: dict[str, ObjectStat]) -> Iterator[Finding]:
        stores = self.stores
        over = subtract(subtract(self.now, stores.policies.undo_window), stores.policies.grace)
        for item in stores.ledger.trash(self.dataset.name):
            if item.trashed_at < over and not self._is_locked(item):
                text = f"superseded at {item.trashed_at:%Y-%m-%d %H:%M}Z and still there, {item.size_bytes} bytes"
                yield Finding(Code.OVERDUE_TRASH, item.location, text)
            if item.store == "lake":
                is_there = item.location in listed
            else:
                database = stores.hot if item.store == "hot" else stores.warm
                with database.transaction("check", item.location, read_only=True) as connection:
                    # A crash before the hot copy's own transaction leaves it where it was: TWO_COPIES says so.
                    is_there = item.store == "hot" or tables.exists(connection, item.location)
            if not is_there:
                yield Finding(Code.MISSING_TRASH, item.location, "gone before its undo window was over")

    def _is_locked(self, item: TrashRecord) -> bool:
        """Tell whether a superseded object may stay because nobody can destroy it yet."""
        if item.store != "lake" or not self.dataset.lock:
            return False
        try:
            until = self.stores.objects.locked_until(self.stores.key(item.location))
        except errors.NotFound:
            return False
        return until is not None and until > self.now


def _deep(stores: Stores, dataset: Dataset, damaged: set[str], progress: Progress) -> tuple[list[Finding], int]:
    """Count the warm copies, read the cold ones; units that are damaged for a reason already found are left out."""
    if dataset.form is Form.TABLE:
        with stores.hot.transaction("describe", dataset.name, read_only=True) as connection:
            if not tables.exists(connection, tables.hot_parent(dataset.name)):
                return [], 0
    found, rows = [], 0
    records = [r for r in stores.ledger.units(dataset.name) if r.tier is not Tier.EXPIRED]
    for done, record in enumerate(records, start=1):
        if str(record.unit) not in damaged:
            look = _deep_cold if record.tier is Tier.COLD else _deep_warm
            findings = look(stores, dataset, record)
            if findings and stores.ledger.unit(dataset.name, record.unit.begin) == record:
                found += findings
            rows += record.row_count
        progress(dataset.name, done, len(records))
    return found, rows


def _deep_warm(stores: Stores, dataset: Dataset, record: UnitRecord) -> list[Finding]:
    if dataset.form is Form.DOCUMENTS:
        return _deep_warm_documents(stores, dataset, record)
    try:
        with stores.warm.transaction("count", str(record.unit), read_only=True) as connection:
            columns = plan_columns(tables.described_columns(connection, tables.warm_parent(dataset.name)))
            relation = stores.warm_tables.relation(connection, dataset, record, columns)
            row = fetch_one(connection, sql.SQL("SELECT count(*) FROM {}").format(relation))
    except errors.NotFound as exc:
        return [Finding(Code.MISSING_TABLE, str(record.unit), exc.cause)]
    return _counted(record, row[0] if row else 0)


def _deep_warm_documents(stores: Stores, dataset: Dataset, record: UnitRecord) -> list[Finding]:
    """Count a warm unit's documents, unless a move is putting some there or taking some away."""
    if record.unit.begin in {move.unit.begin for move in stores.ledger.moves(dataset.name, OPEN_STATES)}:
        return []
    return _counted(record, documents.warm(stores, dataset).count(record.unit))


def _counted(record: UnitRecord, count: int) -> list[Finding]:
    if count == record.row_count:
        return []
    return [Finding(Code.WRONG_ROWS, str(record.unit), f"{count} rows, the ledger says {record.row_count}")]


def _deep_cold(stores: Stores, dataset: Dataset, record: UnitRecord) -> list[Finding]:
    """Compare the object's bytes with the ledger's hash, and its rows with the ledger's fingerprint."""
    unit = str(record.unit)
    try:
        with fetched(stores, record) as file:
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != record.sha256:  # type: ignore[arg-type]
                return [Finding(Code.WRONG_HASH, unit, f"{record.location} has other bytes than were written")]
            file.seek(0)
            if record.fingerprint is None:
                return []
            differences = _differences(stores, dataset, record.fingerprint, file)
    except errors.NotFound as exc:
        return [Finding(Code.MISSING_OBJECT, unit, exc.cause)]
    except errors.CorruptCopy as exc:
        return [Finding(Code.WRONG_HASH, unit, f"{record.location}: {exc.cause}")]
    return [Finding(Code.WRONG_PRINT, unit, "; ".join(differences[:3]))] if differences else []


def _differences(stores: Stores, dataset: Dataset, expected: Fingerprint, file: IO[bytes]) -> list[str]:
    """Compare a lake file's rows, or the raw documents in it, with the fingerprint of the ledger."""
    if dataset.form is Form.DOCUMENTS:
        raw = tuple(c for c in document_columns(dataset) if c.name == RAW_COLUMN)
        batches = parquet.read_parquet_batches(file, raw)
        found = documents.sum_of(print_of([documents.raw_of(batch.column(RAW_COLUMN))]) for batch in batches)
        return expected.differences(found)
    # A column that came later was not fingerprinted then.
    recorded, columns = recorded_print(file, expected, look(stores, dataset.name).stored)
    batches = parquet.read_parquet_batches(file, columns)
    return recorded.differences(pghash.fingerprint_batches(batches, columns, dataset.key))


def _left_in_stage(stores: Stores) -> list[Finding]:
    in_use = {
        tables.stage_table(move.unit, kind)
        for dataset in stores.policies.datasets
        for move in stores.ledger.moves(dataset.name, OPEN_STATES)
        for kind in STAGE_KINDS
    }
    found = []
    for database in {stores.warm, stores.hot}:
        with database.transaction("list", "stage tables", read_only=True) as connection:
            rows = fetch(
                connection,
                """SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname = 'tiering_stage' AND c.relkind IN ('r', 'p') ORDER BY 1""",
            )
        found += [
            Finding(Code.LEFT_IN_STAGE, name, f"in the {database.name}, and no open move uses it")
            for (name,) in rows
            if name not in in_use
        ]
    return found
