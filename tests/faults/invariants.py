"""What must hold after every kill, and what must hold when all is settled. Reads only, by its own means:
plain SQL, the ledger's tables and the bytes of the lake's objects.
"""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg2.extensions import connection as Connection

from tests.faults.bars import TableGround
from tests.faults.journal import Key
from tests.faults.verdict import Verdict
from tiering.errors import NotFound
from tiering.model import Span
from tiering.ops.export import fetched
from tiering.ops.sweep import sweep
from tiering.plan.columns import plan_columns
from tiering.stores import ledger, parquet, tables
from tiering.stores.postgres import fetch
from tiering.stores.records import UnitRecord

DAY = timedelta(days=1)
Rows = list[tuple[Any, ...]]


class Inspector:
    """Looks at one ground. Keeps the rows of the lake's objects: they are write-once."""

    def __init__(self, ground: TableGround) -> None:
        self.ground = ground
        self.shape = ground.shape
        self._objects: dict[str, Rows] = {}
        with ground.stores.hot.transaction("describe", self.shape.dataset) as connection:
            self._columns = plan_columns(tables.described_columns(connection, tables.hot_parent(self.shape.dataset)))

    def look(self) -> Verdict:
        """Read every row that a reader sees now and compare with what the writers were promised before."""
        ground, verdict = self.ground, Verdict()
        ground.journal.refresh()
        promised = dict(ground.journal.acknowledged)
        for attempt in range(3):
            try:
                seen, expired = self._read(verdict)
                break
            except NotFound:  # swept between the look at the ledger and the fetch: by a sweep at this very moment
                if attempt == 2:
                    raise
                verdict = Verdict()
        ground.journal.refresh()
        self._compare(promised, seen, expired, verdict)
        return verdict

    def _read(self, verdict: Verdict) -> tuple[dict[Key, tuple[Any, ...]], set[datetime]]:
        """Hot first, then warm, ledger and cold in one snapshot: a row under way is seen twice, never missed."""
        stores, shape = self.ground.stores, self.shape
        select = f"SELECT {shape.selected} FROM live.{shape.dataset}"
        layers: list[Rows] = []
        if not stores.is_one_database:
            with stores.hot.transaction("look", "hot", read_only=True) as connection:
                layers.append(fetch(connection, select))
        with stores.warm.transaction("look", "warm", read_only=True) as connection:
            layers.append(fetch(connection, select))
            units = ledger.units(connection, self.ground.dataset.name)
            self._compare_partitions(connection, units, verdict)
        cold = [unit for unit in units if unit.tier == "cold"]
        layers.append([row for unit in cold for row in self._rows_of(unit)])
        seen: dict[Key, tuple[Any, ...]] = {}
        for rows in layers:
            found = Counter(shape.key_of(row) for row in rows)
            verdict.doubled += [f"{key} ×{count}" for key, count in found.items() if count > 1]
            for row in rows:
                seen.setdefault(shape.key_of(row), tuple(row))
        self._find_deleted(cold, verdict)
        return seen, {unit.unit.begin for unit in units if unit.tier == "expired"}

    def _compare(
        self,
        promised: dict[Key, int],
        seen: dict[Key, tuple[Any, ...]],
        expired: set[datetime],
        verdict: Verdict,
    ) -> None:
        tried, version_of = self.ground.journal.tried, self.shape.version_of
        for key, version in promised.items():
            day = datetime.fromtimestamp(key[1] // 86400 * 86400, UTC)
            if day in expired:
                if key in seen:
                    verdict.doubled.append(f"{key} is expired and still there")
            elif key not in seen:
                verdict.lost.append(f"{key} v{version}")
            elif version_of(seen[key]) < version:
                verdict.changed.append(f"{key} is v{version_of(seen[key])}, v{version} was acknowledged")
        for key, row in seen.items():
            if version_of(row) not in tried.get(key, ()) or row != self.shape.row(key, version_of(row)):
                verdict.changed.append(f"{key} was never written so: {row}")

    def _rows_of(self, unit: UnitRecord) -> Rows:
        if unit.location not in self._objects:
            rows: Rows = []
            with fetched(self.ground.stores, unit) as file:
                for batch in parquet.read_parquet_batches(file, self._columns):  # type: ignore[arg-type]
                    rows += [tuple(_plain(row[name]) for name in self.shape.columns) for row in batch.to_pylist()]
            self._objects[unit.location] = rows
        return self._objects[unit.location]

    def _find_deleted(self, cold: list[UnitRecord], verdict: Verdict) -> None:
        stores = self.ground.stores
        there = {stores.location(found.key) for found in stores.objects.list("lake/")} if cold else set()
        for unit in cold:
            if unit.location not in there:
                raise NotFound("find", unit.location, "a live object is gone")

    def _compare_partitions(self, connection: Connection, units: list[UnitRecord], verdict: Verdict) -> None:
        attached = {
            part.name
            for parent in (f"warm.{self.shape.dataset}", f"warm.{self.shape.dataset}_packed")
            for part in tables.partitions(connection, parent)
        }
        said = {unit.location for unit in units if unit.tier == "warm"}
        verdict.broken += [f"{name} is attached, not in the ledger" for name in sorted(attached - said)]
        verdict.broken += [f"{name} is in the ledger, not attached" for name in sorted(said - attached)]

    # -- at rest -------------------------------------------------------------------------------------------

    def look_at_rest(self) -> Verdict:
        """Sweep with no grace left, then demand that nothing is left over and every catalog agrees.

        Only when nobody moves or writes: without grace, a sweep may take what is just being made.
        """
        stores = replace(self.ground.stores, policies=replace(self.ground.policies, grace=Span(), undo_window=Span()))
        later = datetime.now(UTC) + DAY
        sweep(stores, later, "inspector")
        sweep(stores, later + DAY, "inspector")  # metadata that the first one's own snapshot expiry left
        verdict = self.look()
        self._find_leftovers(verdict)
        self._compare_catalogs(verdict)
        self._compare_expired(verdict)
        return verdict

    def _find_leftovers(self, verdict: Verdict) -> None:
        stores = self.ground.stores
        for database in {stores.hot, stores.warm}:
            with database.transaction("look", "leftovers") as connection:
                left = fetch(
                    connection,
                    """SELECT schemaname || '.' || tablename FROM pg_tables
                       WHERE schemaname IN ('tiering_stage', 'tier_trash')""",
                )
            verdict.broken += [f"left over: {name}" for (name,) in left]
        with stores.hot.transaction("look", "hot") as connection:
            sealed = [part.name for part in tables.partitions(connection, f"hot.{self.shape.dataset}_sealed")]
            verdict.broken += [f"still sealed: {name}" for name in sealed]
            ((late,),) = fetch(connection, f"SELECT count(*) FROM hot.{self.shape.dataset}_late")
            verdict.broken += [f"{late} rows still late"] if late else []

    def _compare_catalogs(self, verdict: Verdict) -> None:
        stores, name = self.ground.stores, self.ground.dataset.name
        units = {unit.location: unit for unit in stores.ledger.units(name) if unit.tier == "cold"}
        said = set(units)
        listed = {stores.location(found.key): found.storage_class for found in stores.objects.list("lake/")}
        there = {location for location in listed if location in said or not self._is_locked(location)}
        for location in said & there:
            self._compare_object(units[location], listed[location], verdict)
        published = {file.location for file in stores.lake.files(name)} if stores.lake.exists(name) else set()
        for orphan in sorted(there - said)[:2]:
            self._tell_of(orphan, verdict)
        if not said == there == published:
            verdict.broken.append(
                f"ledger {len(said)}, bucket {len(there)}, Iceberg {len(published)} files; "
                f"orphans {sorted(there - said)[:2]}, unpublished {sorted(said ^ published)[:2]}"
            )
        if stores.lake.exists(name):
            live = stores.lake.snapshot_files(name)
            orphans = {stores.location(found.key) for found in stores.objects.list("iceberg/")} - live
            verdict.broken += [f"orphan metadata {orphan}" for orphan in sorted(orphans)]

    def _is_locked(self, location: str) -> bool:
        """Tell whether nobody could have destroyed a superseded object."""
        until = self.ground.stores.objects.locked_until(self.ground.stores.key(location))
        return until is not None and until > datetime.now(UTC)

    def _compare_object(self, unit: UnitRecord, storage_class: str, verdict: Verdict) -> None:
        """A live object has the ledger's class, no second version, and is under lock where its dataset is."""
        if storage_class != unit.storage_class:
            verdict.broken.append(f"{unit.location} is {storage_class}, its unit {unit.storage_class}")
        versions = list(self.ground.stores.objects.versions_of(self.ground.stores.key(unit.location)))
        if len(versions) != 1:
            verdict.doubled.append(f"{unit.location} has {len(versions)} versions")
        if self.ground.dataset.lock and not self._is_locked(unit.location):
            verdict.broken.append(f"{unit.location} is not under lock")

    def _tell_of(self, location: str, verdict: Verdict) -> None:
        """Say what the ledger knows of an object that should have been swept."""
        stores = self.ground.stores
        with stores.warm.transaction("look", "trash") as connection:
            trash = fetch(
                connection,
                "SELECT move_id, trashed_at, reclaimed_at FROM tiering.trash WHERE location = %s",
                (location,),
            )
            moves = fetch(
                connection,
                "SELECT move_id, transition, state FROM tiering.move WHERE target = %s OR source = %s",
                (location, location),
            )
        stat = stores.objects.stat(stores.key(location))
        named = location in stores.lake.snapshot_files(self.ground.dataset.name)
        verdict.broken.append(f"{location}: {stat}, trash {trash}, moves {moves}, in a snapshot: {named}")

    def _compare_expired(self, verdict: Verdict) -> None:
        """Every expired unit has one audit row, and it names exactly the rows that the unit had."""
        stores = self.ground.stores
        with stores.warm.transaction("look", "audit") as connection:
            told = fetch(
                connection,
                "SELECT begin_at, (details->>'rows')::int FROM tiering.audit WHERE action = 'expire' ORDER BY 1",
            )
        expired = [u.unit.begin for u in stores.ledger.units(self.ground.dataset.name) if u.tier == "expired"]
        wanted = [(begin, self.ground.seeded[begin]) for begin in expired]
        if [tuple(row) for row in told] != wanted:
            verdict.broken.append(f"audit says of expired units {told}, not {wanted}")
        if not set(expired) <= set(self.ground.ancient):
            verdict.broken.append("a unit expired before its time")


def _plain(value: Any) -> Any:
    """Say a value of the lake as PostgreSQL was asked for it."""
    return str(value) if isinstance(value, uuid.UUID) else value
