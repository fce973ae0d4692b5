"""Erase one person: find every row, refuse or go on, take them out tier by tier, prove it, and certify it.

Everything is found anew in each round, so a run that was killed is finished by the next one, and rows that a move
carried elsewhere meanwhile are found there. What was found is in the ledger before it is touched. The person's name
is in this process alone: the ledger, the audit trail and the certificate have a keyed hash.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from tiering import errors
from tiering.model import Dataset, Form
from tiering.ops import archive, erase_documents, erase_lake, erase_proof, erase_tables, lifecycle
from tiering.ops.audit import note_head
from tiering.plan.erase import OUT_OF_REACH, Found, Obstacle, Person, certificate_text, refused
from tiering.plan.spans import due, unit_of
from tiering.stores import erasures, person_redis
from tiering.stores.erasures import Erasure
from tiering.stores.ledger import audit
from tiering.stores.opening import Stores

log = logging.getLogger(__name__)

ROUNDS_MAX = 5
WAIT_SECONDS = 600.0
CERTIFICATES = "erasure/"


@dataclass(frozen=True, slots=True)
class Outlook:
    """What an erasure would do: where the person is, and what stands in the way."""

    found: tuple[Found, ...]
    obstacles: tuple[Obstacle, ...]


def look(stores: Stores, person: Person) -> Outlook:
    """Find the person everywhere, and every obstacle. Changes nothing."""
    found = [item for dataset in datasets(stores) for item in _find(stores, dataset, person)]
    keys = person_redis.count_keys(stores.heat, person.name)
    found += [Found("redis", f"redis {kind}", "", {None: count}) for kind, count in sorted(keys.items())]
    return Outlook(tuple(found), tuple(o for item in found for o in _obstacles(stores, item)))


def datasets(stores: Stores) -> list[Dataset]:
    """List the datasets whose rows are about a person."""
    return [dataset for dataset in stores.policies.datasets if dataset.subject]


def _find(stores: Stores, dataset: Dataset, person: Person) -> list[Found]:
    found = (erase_documents if dataset.form is Form.DOCUMENTS else erase_tables).find(stores, dataset, person)
    return [*found, *erase_lake.find(stores, dataset, person)]


def _obstacles(stores: Stores, item: Found) -> list[Obstacle]:
    """Name the holds and locks over rows found, unit by unit."""
    dataset = stores.policies.dataset(item.dataset)
    if dataset is None:
        return []
    holds = {hold.begin: hold.reason for hold in stores.ledger.holds(item.dataset)}
    lock = erase_lake.locked(stores, item.place) if item.store == "lake" else None
    found = []
    for begin, count in item.counts.items():
        reason = holds.get(begin) or holds.get(None)
        until = lock or _lock_of(dataset, item, begin)
        if reason:
            found.append(Obstacle(dataset.name, begin, item.place, count, f"under legal hold: {reason}", None))
        if until:
            text = "under object lock until the end of retention"
            found.append(Obstacle(dataset.name, begin, item.place, count, text, until))
    return found


def _lock_of(dataset: Dataset, item: Found, begin: datetime | None) -> datetime | None:
    """Find the end of retention of a locked dataset's object: also where the bucket itself keeps no lock."""
    if not dataset.lock or item.store != "lake" or begin is None or dataset.policy.retention is None:
        return None
    return due(unit_of(begin, dataset.unit)[1], dataset.policy.retention)


def erase(
    stores: Stores,
    person: Person,
    reason: str,
    actor: str,
    now: datetime,
    *,
    except_locked: bool = False,
    wait_seconds: float = WAIT_SECONDS,
) -> dict[str, Any]:
    """Erase a person and return the certificate. Run again after any crash, it finishes what was begun.

    Rows that somebody writes meanwhile may be left: what existed when it ended is erased, a second run takes the rest.

    Args:
        stores: where the person is.
        person: who.
        reason: why; for the certificate and the audit trail.
        actor: who asks.
        now: the run's instant.
        except_locked: leave what is under hold or lock, and certify what and until when.
        wait_seconds: how long to wait for a run that moves a unit of the person.

    Raises:
        ErasureRefused: a hold or lock is in the way; nothing was touched.
        InDeepArchive: objects must be restored before anybody knows whether the person is in them; that was asked
            for, nothing was touched, and the error says when to run it again.
        LeaseHeld: a unit kept being moved, or another erasure runs; run it again.
    """
    with erasures.alone(stores.warm):
        archive.ask_for_datasets(stores, [dataset.name for dataset in datasets(stores)], now)
        outlook = look(stores, person)
        if outlook.obstacles and not except_locked:
            raise refused(outlook.obstacles)
        erasure = erasures.open_erasure(stores.warm, person.digest, reason, actor)
        for _ in range(ROUNDS_MAX):
            _note(stores, erasure, outlook)
            patience = Retrying(
                retry=retry_if_exception_type((errors.LeaseHeld, errors.CommitConflict)),
                wait=wait_random_exponential(multiplier=0.1, max=5.0),
                stop=stop_after_delay(wait_seconds),
                reraise=True,
            )
            for attempt in patience:
                with attempt:
                    _round(stores, outlook, person, erasure, now, actor)
                    outlook = look(stores, person)
            if not _wanted(outlook):
                break
        return _finish(stores, person, erasure, outlook, now, actor)


def _wanted(outlook: Outlook) -> list[Found]:
    """List what is to be erased: what was found, less the units that something stands before."""
    blocked = {(o.place, o.begin) for o in outlook.obstacles}
    kept = [
        replace(f, counts={b: n for b, n in f.counts.items() if (f.place, b) not in blocked}) for f in outlook.found
    ]
    return [item for item in kept if item.counts]


def _note(stores: Stores, erasure: Erasure, outlook: Outlook) -> None:
    with stores.warm.transaction("note", "erasure") as connection:
        for item in _wanted(outlook):
            begin = next(iter(item.counts)) if len(item.counts) == 1 else None
            erasures.note_found(connection, erasure, item.place, item.store, item.dataset, begin, item.row_count)


def _round(stores: Stores, outlook: Outlook, person: Person, erasure: Erasure, now: datetime, actor: str) -> None:
    """Go through the tiers once, hot first, as moves do: what moves meanwhile is met further down or next time."""
    wanted = _wanted(outlook)
    unfinished = {
        place["dataset"] for place in erasures.places(stores.warm, erasure)
        if place["store"] == "lake" and place["state"] == "FOUND"
    }  # fmt: skip
    for dataset in datasets(stores):
        mine = [item for item in wanted if item.dataset == dataset.name]
        spared = [
            unit_of(o.begin, dataset.unit)
            for o in outlook.obstacles
            if o.dataset == dataset.name and o.begin is not None
        ]
        if mine and dataset.state == "moves":
            lifecycle.finish_open(stores, dataset, now, actor)
        in_documents = [item for item in mine if item.store == "documents"]
        if in_documents:
            erase_documents.erase(stores, dataset, in_documents, person, erasure, spared)
        in_tables = [item for item in mine if item.store in ("hot", "warm")]
        if in_tables:
            erase_tables.erase(stores, dataset, in_tables, person, erasure, spared, actor)
        in_lake = [item for item in mine if item.store == "lake"]
        if in_lake:
            erase_lake.erase(stores, dataset, in_lake, person, erasure, now, actor)
        elif dataset.name in unfinished:
            erase_lake.forget(stores, dataset, [], erasure, actor)
    if any(item.store == "redis" for item in wanted):
        person_redis.remove_keys(stores.heat, person.name)


def _finish(
    stores: Stores, person: Person, erasure: Erasure, outlook: Outlook, now: datetime, actor: str
) -> dict[str, Any]:
    """Prove, certify, sign. Left open, with the proof's findings, where rows of the person still came."""
    _conclude(stores, erasure, outlook)
    touched = [p["place"] for p in erasures.places(stores.warm, erasure) if p["store"] in ("hot", "warm")]
    erase_tables.forget_samples(stores, person, touched)
    proof = erase_proof.prove(stores, person)
    certificate = {
        "erasure_id": erasure.erasure_id,
        "subject_hash": erasure.subject_hash,
        "asked_by": erasure.asked_by,
        "reason": erasure.reason,
        "opened_at": erasure.opened_at.isoformat(),
        "closed_at": now.isoformat(),
        "complete": not outlook.found and not proof.hits,
        "places": [_plain(place) for place in erasures.places(stores.warm, erasure)],
        "proof": _plain(asdict(proof)),
        "out_of_reach": list(OUT_OF_REACH),
    }
    certificate["text"] = certificate_text(certificate)
    data = json.dumps(certificate, sort_keys=True, ensure_ascii=False).encode()
    sha256 = hashlib.sha256(data).hexdigest()
    key = f"{CERTIFICATES}{erasure.erasure_id:08d}-{sha256[:16]}.json"
    with suppress(errors.AlreadyExists):
        stores.objects.put_new(key, io.BytesIO(data), len(data), sha256)
    if _wanted(outlook):
        with stores.warm.transaction("note", "erasure") as connection:
            audit(connection, actor, "erase-unfinished", "", None, {"erasure": erasure.erasure_id, "sha256": sha256})
    else:
        erasures.close_erasure(stores.warm, erasure, certificate, sha256, actor)
    note_head(stores, now)
    log.info("erased erasure=%d places=%d hits=%d", erasure.erasure_id, len(certificate["places"]), len(proof.hits))
    return certificate | {"object": stores.location(key), "sha256": sha256}


def _conclude(stores: Stores, erasure: Erasure, outlook: Outlook) -> None:
    """Mark every place: erased where nothing is left, kept with the reason where something stood in the way."""
    left = {item.place for item in outlook.found}
    with stores.warm.transaction("conclude", "erasure") as connection:
        for place in erasures.places(stores.warm, erasure):
            if place["state"] == "FOUND" and place["place"] not in left:
                erasures.note_done(connection, erasure, place["place"], {})
        for o in outlook.obstacles:
            erasures.note_found(connection, erasure, o.place, "kept", o.dataset, o.begin, o.row_count)
            erasures.note_done(connection, erasure, o.place, {"reason": o.reason, "until": o.until}, "KEPT")


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def verify(stores: Stores, person: Person) -> erase_proof.Proof:
    """Look everywhere for a person, without erasing anything."""
    return erase_proof.prove(stores, person)
