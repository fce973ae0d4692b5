"""The only module that destroys data: superseded copies after the undo window, leftovers of crashed runs.

Nothing is destroyed because it looks unused. A copy goes when the ledger says it was superseded, the window
is over, and no unit, open move or live Iceberg snapshot names it; a leftover goes when none of these ever
named it and it is older than the grace period by the run's clock and by the server's.

Legal holds are looked at again at the very end, behind a lock: each destruction of a superseded copy keeps one
transaction open in which no hold can be placed. A hold is then either seen, or placed after the destruction.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from psycopg2.extensions import connection as Connection

from tiering.errors import ObjectLocked, TransientError
from tiering.model import Dataset, Form
from tiering.ops import handover, rehydrate
from tiering.ops.audit import note_head
from tiering.plan.spans import subtract
from tiering.stores import tables
from tiering.stores.ledger import audit
from tiering.stores.object_rows import forget_objects, list_objects
from tiering.stores.opening import Stores
from tiering.stores.postgres import LOCK_TIMEOUT_MS, Postgres, execute, fetch, fetch_one
from tiering.stores.records import OPEN_STATES, TrashRecord

log = logging.getLogger(__name__)

STAGE_KINDS = ("rows", "late", "packed")

OBJECTS_AT_ONCE = 200
"""Lake objects destroyed under one look at the holds: whoever places a hold waits so long, at most."""


@dataclass(frozen=True, slots=True)
class Swept:
    """One thing destroyed (or that would be, in a dry run), and why."""

    store: str
    location: str
    size_bytes: int
    reason: str


def sweep(stores: Stores, now: datetime, actor: str, *, dry_run: bool = False) -> list[Swept]:
    """Destroy what nobody can need any more. May be called again and by two runs at once.

    Args:
        stores: where the copies are.
        now: the run's instant; the undo window and the grace period count back from it.
        actor: for the audit trail.
        dry_run: list only.

    Returns:
        What was destroyed, or would be.
    """
    jobs: list[Callable[[], list[Swept]]] = []
    for dataset in stores.policies.datasets:
        if dataset.state == "moves" and stores.ledger.knows(dataset.name):
            jobs += _jobs(stores, dataset, now, actor, dry_run)
    jobs.append(functools.partial(_sweep_stage, stores, dry_run))
    swept: list[Swept] = []
    problem: TransientError | None = None
    for job in jobs:
        try:
            swept += job()
        except TransientError as exc:  # a reader holds one table: the rest need not wait for it
            problem = problem or exc
    try:
        copies = rehydrate.expire(stores, now, actor, dry_run=dry_run)
        swept += [Swept("warm", copy.location, copy.size_bytes, "its time as a read copy is over") for copy in copies]
    except TransientError as exc:
        problem = problem or exc
    if not dry_run:
        _close_moves(stores)
        note_head(stores, now)
    if problem:
        raise problem
    return swept


def _jobs(
    stores: Stores, dataset: Dataset, now: datetime, actor: str, dry_run: bool
) -> list[Callable[[], list[Swept]]]:
    """List what there is to sweep of a dataset. A hold keeps superseded copies too: they may hold other values."""
    held = {hold.begin for hold in stores.ledger.holds(dataset.name)}
    over = stores.ledger.trash(dataset.name, before=subtract(now, stores.policies.undo_window))
    over = [item for item in over if not held & {None, item.begin}]
    jobs: list[Callable[[], list[Swept]]] = [
        functools.partial(_drop_trash, stores, item, actor, dry_run)
        for item in over
        if item.store not in ("lake", "files")
    ]
    jobs += [functools.partial(_drop_files, stores, item, actor, dry_run) for item in over if item.store == "files"]
    if dataset.form is not Form.FILES and stores.lake.exists(dataset.name):
        jobs.append(functools.partial(_sweep_lake, stores, dataset, over, now, actor, dry_run))
    return jobs


@contextmanager
def _unheld(stores: Stores, items: Sequence[TrashRecord]) -> Iterator[tuple[Connection, list[TrashRecord]]]:
    """Give those of the items that no hold covers, and the ledger's transaction, in which none can be placed.

    Destroy inside the body. Why SHARE: expiries and other sweeps, which only look, need not wait for each other.
    """
    with stores.warm.transaction("sweep", items[0].location, lock_timeout_ms=LOCK_TIMEOUT_MS) as connection:
        execute(connection, "LOCK TABLE tiering.hold IN SHARE MODE")
        held = {(hold.dataset, hold.begin) for hold in stores.ledger.holds()}
        yield connection, [t for t in items if not held & {(t.dataset, None), (t.dataset, t.begin)}]


def _drop_trash(stores: Stores, item: TrashRecord, actor: str, dry_run: bool) -> list[Swept]:
    if not dry_run:
        with _unheld(stores, [item]) as (ledger, free):
            if not free:
                return []
            if item.store == "warm":
                tables.drop(ledger, item.location)
            elif item.store == "documents":
                _drop_documents(stores, item)
            else:
                _drop_hot(stores, item)
            _reclaim(ledger, item, actor)
    return [Swept(item.store, item.location, item.size_bytes, "undo window over")]


def _drop_documents(stores: Stores, item: TrashRecord) -> None:
    """Destroy a collection of superseded documents, or a unit's range of one (`side:collection@begin/end`)."""
    side, _, rest = item.location.partition(":")
    where = stores.hot_documents if side == "hot" else stores.warm_documents
    collection, _, bounds = rest.partition("@")
    if not bounds:
        where.drop(collection)
        return
    dataset = stores.policies.dataset(item.dataset)
    assert dataset is not None, "the sweep goes by the policy file"
    begin, end = (datetime.fromisoformat(bound) for bound in bounds.split("/"))
    where.remove_range(collection, dataset.time_column, begin, end)


def _drop_files(stores: Stores, item: TrashRecord, actor: str, dry_run: bool) -> list[Swept]:
    """Delete the objects of an expired unit, some at a time; what was written over one of them stays."""
    unit, bucket = stores.ledger.move(item.move_id).unit, stores.files.bucket
    while not dry_run:
        with _unheld(stores, [item]) as (ledger, free):
            rows = list_objects(ledger, dataset=item.dataset, begin=item.begin, bucket=bucket, limit=OBJECTS_AT_ONCE)
            if not free:
                return []
            try:
                for row in rows:
                    stores.files.delete_expired(row.key, row.etag, unit.end)
            except ObjectLocked as exc:
                log.warning("kept location=%s cause=%s", item.location, exc)
                return []
            forget_objects(ledger, bucket, [row.key for row in rows])
            if len(rows) < OBJECTS_AT_ONCE:
                _reclaim(ledger, item, actor)
                break
    return [Swept("files", item.location, item.size_bytes, "retention and undo window over")]


def _drop_hot(stores: Stores, item: TrashRecord) -> None:
    move = stores.ledger.move(item.move_id)
    with stores.hot.transaction("sweep", item.location, lock_timeout_ms=LOCK_TIMEOUT_MS) as connection:
        # With two databases, a crash after the commit leaves the hot copy attached, under its own name.
        handover.retire_hot(connection, item.dataset, move.unit, move.source, item.location)
        tables.drop(connection, item.location)


def _sweep_lake(
    stores: Stores, dataset: Dataset, over: Iterable[TrashRecord], now: datetime, actor: str, dry_run: bool
) -> list[Swept]:
    if not dry_run:
        stores.lake.expire_snapshots(dataset.name, older_than=subtract(now, stores.policies.grace))
    # Order matters: list first, read the references after. What is published in between is then seen.
    listed = list(stores.objects.list(f"lake/{dataset.name}/"))
    metadata = list(stores.objects.list(stores.lake.metadata_prefix(dataset.name)))
    named = _named(stores, dataset)
    superseded = [t for t in over if t.store == "lake" and t.location not in named]
    old = min(subtract(now, stores.policies.grace), subtract(_server_time(stores.warm), stores.policies.grace))
    waiting = {t.location for t in stores.ledger.trash(dataset.name)}
    leftovers = [
        o for o in [*listed, *metadata] if o.modified_at < old and stores.location(o.key) not in named | waiting
    ]
    clock = min(now, old)
    places = [*(t.location for t in superseded), *(stores.location(o.key) for o in leftovers)]
    kept = _locked(stores, dataset, places, clock)
    superseded = [t for t in superseded if t.location not in kept]
    leftovers = [o for o in leftovers if stores.location(o.key) not in kept]
    if not dry_run:
        stores.objects.drop_unfinished(older_than=old, prefix=f"lake/{dataset.name}/")
        stores.objects.delete([o.key for o in leftovers])
        superseded = _delete_superseded(stores, superseded, actor)
    return (
        [Swept("lake", t.location, t.size_bytes, "grace period over") for t in superseded]
        + [Swept("lake", stores.location(o.key), o.size, "left by a crashed run") for o in leftovers]
        + [Swept("lake", place, 0, f"kept: under object lock until {until:%Y-%m-%d}") for place, until in kept.items()]
    )


def _locked(stores: Stores, dataset: Dataset, places: Iterable[str], clock: datetime) -> dict[str, datetime]:
    """Say which objects are under lock, and until when. Nobody can destroy them; they go with a later sweep."""
    if not dataset.lock:
        return {}
    found = {place: stores.objects.locked_until(stores.key(place)) for place in places}
    return {place: until for place, until in found.items() if until and until > clock}


def _delete_superseded(stores: Stores, superseded: Iterable[TrashRecord], actor: str) -> list[TrashRecord]:
    """Delete lake objects that no hold covers, some at a time; return those."""
    deleted: list[TrashRecord] = []
    waiting = iter(superseded)
    while items := list(itertools.islice(waiting, OBJECTS_AT_ONCE)):
        with _unheld(stores, items) as (ledger, free):
            keys = [stores.key(item.location) for item in free]
            stores.objects.delete(keys)
            forget_objects(ledger, stores.objects.bucket, keys)
            for item in free:
                _reclaim(ledger, item, actor)
        deleted += free
    return deleted


def _named(stores: Stores, dataset: Dataset) -> set[str]:
    """List every object that a unit, an open move or a live snapshot names."""
    units = {record.location for record in stores.ledger.units(dataset.name)}
    moves = {move.target for move in stores.ledger.moves(dataset.name, OPEN_STATES)}
    return units | moves | set(stores.lake.snapshot_files(dataset.name))


def _sweep_stage(stores: Stores, dry_run: bool) -> list[Swept]:
    """Drop stage tables that no open move can use."""
    swept = []
    for database in {stores.warm, stores.hot}:
        with database.transaction("list", "stage tables") as connection:
            staged = fetch(
                connection,
                """SELECT n.nspname || '.' || c.relname, pg_total_relation_size(c.oid) FROM pg_class c
                   JOIN pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname = 'tiering_stage' AND c.relkind IN ('r', 'p')""",
            )
        # Of every dataset, not only those of the policy file: one taken out for a while still has its moves.
        moves = stores.ledger.moves(None, OPEN_STATES)
        in_use = {tables.stage_table(move.unit, kind) for move in moves for kind in STAGE_KINDS}
        for name, size in staged:
            if name not in in_use:
                if not dry_run:
                    with database.transaction("sweep", name, lock_timeout_ms=LOCK_TIMEOUT_MS) as connection:
                        tables.drop(connection, name)
                swept.append(Swept(database.name, name, size, "left by a crashed run"))
    return swept


def _reclaim(ledger: Connection, item: TrashRecord, actor: str) -> None:
    """Note in the ledger's transaction that a copy is gone; of two sweeps at once, the first notes it."""
    statement = """UPDATE tiering.trash SET reclaimed_at = clock_timestamp()
                   WHERE trash_id = %s AND reclaimed_at IS NULL"""
    if execute(ledger, statement, (item.trash_id,)):
        details = {"store": item.store, "location": item.location, "bytes": item.size_bytes}
        audit(ledger, actor, "reclaim", item.dataset, item.begin, details)
        log.info("reclaimed location=%s bytes=%d", item.location, item.size_bytes)


def _close_moves(stores: Stores) -> None:
    """Advance moves whose every superseded copy is gone to RECLAIMED."""
    with stores.warm.transaction("close", "moves") as connection:
        execute(
            connection,
            """UPDATE tiering.move m SET state = 'RECLAIMED', changed_at = clock_timestamp()
               WHERE state = 'COMMITTED' AND details->>'unsettled' IS NULL AND NOT EXISTS
                 (SELECT 1 FROM tiering.trash t WHERE t.move_id = m.move_id AND t.reclaimed_at IS NULL)""",
        )


def _server_time(database: Postgres) -> datetime:
    with database.transaction("read the clock of", database.name) as connection:
        row = fetch_one(connection, "SELECT clock_timestamp()")
    assert row is not None
    found: datetime = row[0]
    return found
