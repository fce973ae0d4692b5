"""Bring any range of cold rows back as read copies that go again by themselves: partitions of the warm table, or
collections of documents (`rehydrate_documents.py`).

The cold object stays the one copy that counts, and stays published. A copy is made in one transaction: read from the
object, whose hash the ledger knows, proved equal to the ledger's fingerprint, attached and recorded. So a crash
leaves nothing, and running it again does what is missing. Whoever changes the unit drops its copy in its own commit
(`stores/copies.forget_copy`), so that no reader of the warm table ever sees a row that counts no more.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

from psycopg2.extensions import connection as Connection
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from tiering import errors
from tiering.model import Dataset, Form, Span, Tier, Unit
from tiering.ops import archive, rehydrate_documents
from tiering.ops.columns import recorded_print, settle
from tiering.ops.export import fetched
from tiering.ops.lifecycle import survey
from tiering.ops.work import demand_equal
from tiering.plan.rehydrate import Verb, Wish, plan_rehydration
from tiering.plan.spans import add
from tiering.stores import parquet, pgcopy, pghash, tables
from tiering.stores.copies import CopyRecord, drop_copy, extend_copy, list_copies, lock_copies, lock_copy, put_copy
from tiering.stores.ledger import audit, units
from tiering.stores.opening import Stores
from tiering.stores.parquet_schema import columns_in
from tiering.stores.postgres import LOCK_TIMEOUT_MS, identifier
from tiering.stores.records import UnitRecord

log = logging.getLogger(__name__)

RESTORE_SPEED = "Bulk"
LOCK_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Brought:
    """What was done for one unit.

    Attributes:
        state: "copied", "extended", "waiting" (for the restore of its object), or "as it is".
        until: of the copy.
        ready_about: when the object can be read, while waiting.
    """

    unit: Unit
    state: str
    text: str = ""
    row_count: int = 0
    size_bytes: int = 0
    until: datetime | None = None
    ready_about: datetime | None = None


def look(stores: Stores, dataset: Dataset, begin: datetime, end: datetime) -> tuple[Wish, ...]:
    """Say what a rehydration of the range would do. Writes nothing.

    Raises:
        PermanentError: the range is empty, or the dataset is one of files.
    """
    if dataset.form is Form.FILES:
        hint = "Its objects are read in place; archived ones come back by `tiering objects restore`."
        raise errors.PermanentError("rehydrate", dataset.name, f"a dataset of {dataset.form}", hint)
    residences, _ = survey(stores, dataset)
    with stores.warm.transaction("list copies of", dataset.name, read_only=True) as connection:
        copies = {copy.unit.begin: copy.unit.generation for copy in list_copies(connection, dataset.name)}
    return plan_rehydration(residences, copies, begin, end)


def rehydrate(
    stores: Stores, dataset: Dataset, begin: datetime, end: datetime, now: datetime, keep_for: Span, actor: str
) -> list[Brought]:
    """Bring the cold units of `[begin, end)` back as read copies until `now + keep_for`.

    Called again, it extends the copies that are there and makes those that are missing.
    """
    wishes = look(stores, dataset, begin, end)
    return [bring(stores, dataset, wish, now, add(now, keep_for), actor) for wish in wishes]


def bring(stores: Stores, dataset: Dataset, wish: Wish, now: datetime, until: datetime, actor: str) -> Brought:
    """Carry one wish out: make the copy, extend it, or say what it waits for.

    Raises:
        FingerprintMismatch, CorruptCopy: the object is not what the ledger says; nothing was changed.
    """
    if wish.verb is Verb.NOTHING:
        return Brought(wish.unit, "as it is", wish.text)
    attempts = Retrying(
        retry=retry_if_exception_type(errors.CommitConflict),
        wait=wait_random_exponential(multiplier=0.1, max=2.0),
        stop=stop_after_attempt(LOCK_ATTEMPTS),
        reraise=True,
    )
    done: Brought = attempts(_bring, stores, dataset, wish.unit.begin, now, until, actor)
    log.info("rehydrated unit=%s state=%s rows=%d", done.unit, done.state, done.row_count)
    return done


def _bring(stores: Stores, dataset: Dataset, begin: datetime, now: datetime, until: datetime, actor: str) -> Brought:
    record = stores.ledger.unit(dataset.name, begin)
    if record is None or record.tier is not Tier.COLD:
        raise errors.CommitConflict("rehydrate", f"{dataset.name} {begin}", "the unit moved meanwhile", "Run it again.")
    with stores.warm.transaction("rehydrate", str(record.unit)) as connection:
        lock_copy(connection, dataset.name, begin)
        is_there = dataset.form is Form.TABLE or rehydrate_documents.has_copy(stores, record.unit)
        kept = extend_copy(connection, record.unit, until) if is_there else None
        if kept is not None:
            return Brought(record.unit, "extended", row_count=record.row_count, until=kept)
    try:
        # Asked for once, however often this is called; no read hangs on it.
        archive.ask_for(stores, record, now, speed=RESTORE_SPEED, days=max(1, (until - now).days))
        copy = _copy(stores, dataset, record, now, until, actor)
    except errors.InDeepArchive as exc:
        about = f"{exc.ready_about:%Y-%m-%d %H:%M}Z" if exc.ready_about else "a time that the store does not tell"
        text = f"cold, restore requested, ready about {about}"
        return Brought(record.unit, "waiting", text, ready_about=exc.ready_about)
    return Brought(copy.unit, "copied", "", copy.row_count, copy.size_bytes, copy.until)


def _copy(
    stores: Stores, dataset: Dataset, record: UnitRecord, now: datetime, until: datetime, actor: str
) -> CopyRecord:
    """Make one unit's copy, in one transaction."""
    unit, name = record.unit, dataset.name
    if dataset.form is Form.DOCUMENTS:
        with stores.warm.transaction("rehydrate", str(unit), lock_timeout_ms=LOCK_TIMEOUT_MS) as connection:
            lock_copies(connection, name, shared=True)
            lock_copy(connection, name, unit.begin)
            if rehydrate_documents.has_copy(stores, unit):
                _demand_unchanged(connection, record)
            # An older generation's, or one that somebody dropped by hand.
            rehydrate_documents.forget(stores, connection, dataset, unit.begin)
            _demand_unchanged(connection, record)
            copy = rehydrate_documents.make(stores, dataset, record, connection, now, until)
            _record(connection, copy, actor)
        return copy
    columns = settle(stores, name, actor).stored
    with (
        fetched(stores, record) as file,
        stores.warm.transaction("rehydrate", str(unit), lock_timeout_ms=LOCK_TIMEOUT_MS) as connection,
    ):
        # Seen by nobody before the commit. Two runs at once make one each; the second to come finds the first's.
        table = tables.stage_table(unit, f"copy{connection.info.backend_pid}")
        tables.create_like(connection, table, tables.warm_parent(name), unit, dataset.time_column)
        known = columns_in(file, columns)
        pgcopy.write_rows(connection, identifier(table), known, parquet.read_parquet_batches(file, known))
        if record.fingerprint is not None:
            expected, compared = recorded_print(file, record.fingerprint, known)
            found = pghash.fingerprint(connection, identifier(table), compared, dataset.key)
            demand_equal(f"{unit} (read copy)", expected, found)
        lock_copy(connection, name, unit.begin)
        _demand_unchanged(connection, record)
        drop_copy(connection, stores.warm_tables, dataset, unit.begin)
        location = stores.warm_tables.put(connection, dataset, unit, table)
        size = stores.warm_tables.size_bytes(connection, dataset, location)
        copy = CopyRecord(unit, location, record.row_count, size, now, until)
        _record(connection, copy, actor)
    return copy


def _record(connection: Connection, copy: CopyRecord, actor: str) -> None:
    unit = copy.unit
    put_copy(connection, copy)
    audit(
        connection, actor, "rehydrate", unit.dataset, unit.begin, {"generation": unit.generation, "until": copy.until}
    )


def _demand_unchanged(connection: Connection, record: UnitRecord) -> None:
    """Raise CommitConflict if the unit is another than it was, or another run made its copy meanwhile.

    From here on a change of the unit waits for us: both take the lock of the copy first.
    """
    unit = record.unit
    is_made = any(copy.unit == unit for copy in list_copies(connection, unit.dataset, unit.begin))
    if is_made or units(connection, unit.dataset, unit.begin) != [record]:
        raise errors.CommitConflict("rehydrate", str(unit), "the unit changed meanwhile", "Run it again.")


def expire(stores: Stores, now: datetime, actor: str, *, dry_run: bool = False) -> list[CopyRecord]:
    """Drop every read copy whose time is over; return them. Called by the sweep.

    Raises:
        TransientError: readers hold some of them; the others were dropped.
    """
    gone: list[CopyRecord] = []
    problem: errors.TransientError | None = None
    for dataset in stores.policies.datasets:
        with stores.warm.transaction("list copies of", dataset.name, read_only=True) as connection:
            over = [copy for copy in list_copies(connection, dataset.name) if copy.until <= now]
        for copy in over:
            try:
                if dry_run or _expire(stores, dataset, copy, now, actor):
                    gone.append(copy)
            except errors.TransientError as exc:
                problem = problem or exc
        if dataset.form is Form.DOCUMENTS and dataset.state == "moves":
            rehydrate_documents.sweep_leftovers(stores, dataset, dry_run=dry_run)
    if problem:
        raise problem
    return gone


def _expire(stores: Stores, dataset: Dataset, copy: CopyRecord, now: datetime, actor: str) -> bool:
    with stores.warm.transaction("drop copy of", str(copy.unit), lock_timeout_ms=LOCK_TIMEOUT_MS) as connection:
        lock_copy(connection, dataset.name, copy.unit.begin)
        if not any(found.until <= now for found in list_copies(connection, dataset.name, copy.unit.begin)):
            return False  # extended, or gone, since we looked
        rehydrate_documents.forget(stores, connection, dataset, copy.unit.begin)
        audit(connection, actor, "drop-copy", dataset.name, copy.unit.begin, {"location": copy.location})
        return True
