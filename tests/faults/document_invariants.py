"""What must hold of documents after every kill, and when all is settled. Reads only, by its own means: plain finds on
both collections, the ledger's tables, and the bytes of the lake's objects.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import bson
import pyarrow.parquet as pq
from bson.raw_bson import RawBSONDocument

from tests.faults.document_journal import Version, identity, written
from tests.faults.verdict import Verdict
from tiering.errors import NotFound
from tiering.model import Span, State, Tier
from tiering.ops.export import fetched
from tiering.ops.query import query
from tiering.ops.sweep import sweep
from tiering.stores.records import OPEN_STATES, UnitRecord

if TYPE_CHECKING:
    from tests.faults.documents import DocumentsGround

DAY = timedelta(days=1)
LOOKS_MAX = 6
Seen = dict[bytes, bytes]
"""The bytes of each document by its `_id`, as BSON."""


class Inspector:
    """Looks at one ground. Keeps the documents of the lake's objects: they are write-once."""

    def __init__(self, ground: DocumentsGround) -> None:
        self.ground = ground
        self._objects: dict[str, list[bytes]] = {}

    def look(self) -> Verdict:
        """Read every document that a reader sees now and compare with what the writers were promised before."""
        ground = self.ground
        for attempt in range(LOOKS_MAX):
            verdict = Verdict()
            ground.journal.refresh()
            promised = dict(ground.journal.acknowledged)
            before = self._units()
            try:
                seen = self._read(before, verdict)
            except NotFound:  # merged and swept between the look at the ledger and the fetch
                continue
            if self._units() == before:
                break
            assert attempt + 1 < LOOKS_MAX, "units keep moving, and nobody should move any"
        ground.journal.refresh()
        self._compare(promised, seen, before, verdict)
        stuck = ground.stores.ledger.moves(ground.dataset.name, [State.QUARANTINED])
        verdict.broken += [f"{move} is in quarantine: {move.problem}" for move in stuck]
        return verdict

    def _units(self) -> list[UnitRecord]:
        return self.ground.stores.ledger.units(self.ground.dataset.name)

    def _read(self, units: list[UnitRecord], verdict: Verdict) -> Seen:
        """Hot before warm before cold; warm documents count in the ranges of units that are warm or cold."""
        hot, warm = self._found("news", 0), self._found("warm_news", 1)
        homes = [u.unit for u in units if u.tier in (Tier.WARM, Tier.COLD)]
        seen = dict(hot)
        for key, raw in warm.items():
            at = _time(raw)
            if any(unit.begin <= at < unit.end for unit in homes):
                seen.setdefault(key, raw)
        cold = [raw for unit in units if unit.tier is Tier.COLD for raw in self._rows_of(unit)]
        times = Counter(_key(raw) for raw in cold)
        verdict.doubled += [
            f"{bson.decode(key)['_id']} ×{count} in the lake" for key, count in times.items() if count > 1
        ]
        for raw in cold:
            seen.setdefault(_key(raw), raw)
        return seen

    def _found(self, collection: str, side: int) -> Seen:
        with ExitStack() as stack:
            database = self.ground.database(stack, side)
            options: Any = bson.CodecOptions(document_class=RawBSONDocument)
            documents = list(database.get_collection(collection, codec_options=options).find({}, batch_size=100_000))
            return {_key(d.raw): d.raw for d in documents}

    def _rows_of(self, unit: UnitRecord) -> list[bytes]:
        if unit.location not in self._objects:
            with fetched(self.ground.stores, unit) as file:
                self._objects[unit.location] = pq.read_table(file, columns=["_raw"])["_raw"].to_pylist()
        return self._objects[unit.location]

    def _compare(self, promised: dict[str, int], seen: Seen, units: list[UnitRecord], verdict: Verdict) -> None:
        ground, tried = self.ground, self.ground.journal.tried
        expired = [u.unit for u in units if u.tier is Tier.EXPIRED]
        for key, count in promised.items():
            at = _instant(tried[key][-1])
            raw = seen.get(bson.encode({"_id": identity(key)}))
            if any(unit.begin <= at < unit.end for unit in expired):
                if raw is not None and key not in ground.doomed:
                    verdict.doubled.append(f"{key} is expired and still there")
            elif raw is None:
                verdict.lost.append(f"{key} {tried[key][count - 1]}")
            elif raw not in {written(key, version) for version in tried[key][count - 1 :]}:
                found, wanted = bson.decode(raw), tried[key][count - 1]
                verdict.changed.append(f"{key} is {found['at'], found['version']}; {wanted} was acknowledged")
        known = {bson.encode({"_id": identity(key)}): key for key in tried}
        for name, raw in seen.items():
            key = known.get(name, "")
            if not any(raw == written(key, version) for version in tried.get(key, ())):
                verdict.changed.append(f"{key} was never written so: {bson.decode(raw)}")

    # -- at rest -------------------------------------------------------------------------------------------

    def look_at_rest(self) -> Verdict:
        """Sweep with no grace left, then demand that nothing is left over and every catalog agrees.

        Only when nobody moves or writes: without grace, a sweep may take what is just being made.
        """
        ground = self.ground
        stores = replace(ground.stores, policies=replace(ground.policies, grace=Span(), undo_window=Span()))
        later = datetime.now(UTC) + DAY
        sweep(stores, later, "inspector")
        sweep(stores, later + DAY, "inspector")  # metadata that the first one's own snapshot expiry left
        verdict = self.look()
        self._find_leftovers(verdict)
        self._compare_catalogs(verdict)
        self._ask_the_product(verdict)
        return verdict

    def _find_leftovers(self, verdict: Verdict) -> None:
        ground = self.ground
        units = {u.unit: u.tier for u in self._units()}
        for side in (0, 1):
            with ExitStack() as stack:
                names = ground.database(stack, side).list_collection_names()
            left = {name for name in names if not name.startswith("system.")} - {"news", "warm_news"}
            verdict.broken += [f"left over: {name}" for name in sorted(left)]
        for raw in self._found("news", 0).values():
            verdict.broken += [f"still late: {bson.decode(raw)['key']}" for unit in units if _is_in(raw, unit)]
        for raw in self._found("warm_news", 1).values():
            if not any(_is_in(raw, unit) for unit, tier in units.items() if tier is Tier.WARM):
                verdict.broken.append(f"warm, and not of a warm unit: {bson.decode(raw)['key']}")
        moves = ground.stores.ledger.moves(ground.dataset.name, [*OPEN_STATES, State.COMMITTED, State.RECLAIMED])
        verdict.broken += [
            f"{move} is left {move.state}"
            for move in moves
            if move.state in OPEN_STATES or move.details.get("unsettled")
        ]

    def _compare_catalogs(self, verdict: Verdict) -> None:
        stores, name = self.ground.stores, self.ground.dataset.name
        cold = [unit for unit in self._units() if unit.tier is Tier.COLD]
        verdict.broken += [f"{u.unit} has not the rows it says" for u in cold if len(self._rows_of(u)) != u.row_count]
        said = {unit.location for unit in cold}
        there = {stores.location(found.key) for found in stores.objects.list("lake/")}
        published = {file.location for file in stores.lake.files(name)} if stores.lake.exists(name) else set()
        if not said == there == published:
            verdict.broken.append(
                f"ledger {len(said)}, bucket {len(there)}, Iceberg {len(published)} files; "
                f"orphans {sorted(there - said)[:2]}, unpublished {sorted(said ^ published)[:2]}"
            )

    def _ask_the_product(self, verdict: Verdict) -> None:
        """What `tiering query` answers must be what this inspector read."""
        answered = Counter(query(self.ground.stores, "SELECT _raw FROM news")["_raw"].to_pylist())
        mine = Counter(self._read(self._units(), verdict).values())
        if answered != mine:
            verdict.broken.append(f"the query sees {len(answered - mine)} others, not {len(mine - answered)} of these")


def _key(raw: bytes) -> bytes:
    return bson.encode({"_id": bson.decode(raw)["_id"]})


def _time(raw: bytes) -> datetime:
    return _instant((int(bson.decode(raw)["at"]), 0))


def _is_in(raw: bytes, unit: Any) -> bool:
    return bool(unit.begin <= _time(raw) < unit.end)


def _instant(version: Version) -> datetime:
    return datetime.fromtimestamp(version[0] / 1000, UTC)
