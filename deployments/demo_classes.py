"""The demo's deeds and proofs beyond market data: documents, user activity, the audit log, files, and one erasure."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from deployments.demo_report import Broken
from tiering.model import Form, StorageClass, Tier, Unit
from tiering.ops import documents, erase, lifecycle
from tiering.ops.query import query
from tiering.plan.erase import ErasureRefused, Person
from tiering.stores.bson_encode import encode_documents
from tiering.stores.opening import Stores
from tiering.stores.records import UnitRecord

NEWS, AUDIT, FILES = "news", "audit_log", "chart_images"
PERSON = "user-00003"


def plant_bad_news(stores: Stores, now: datetime) -> Unit:
    """Insert an article whose sentiment is off the scale, into a unit of news that is due for the warm tier."""
    dataset = lifecycle.dataset_named(stores, NEWS)
    homes, _ = lifecycle.survey(stores, dataset)
    unit = [home.unit for home in homes if home.unit.end < now - timedelta(days=2)][-1]
    _insert(stores, unit, {"title": "评分错误", "sentiment_score": 7.5, "source": "demo"}, b"bad")
    return unit


def insert_late_news(stores: Stores) -> Unit:
    """Insert an article for a day that is in the lake already, as an application would: into the hot collection."""
    unit = [record.unit for record in stores.ledger.units(NEWS) if record.tier is Tier.COLD][-1]
    _insert(
        stores, unit, {"title": "迟到的消息", "symbol": "S00000", "sentiment_score": 0.5, "source": "late"}, b"late"
    )
    return unit


def _insert(stores: Stores, unit: Unit, document: dict[str, Any], name: bytes) -> None:
    place = documents.hot(stores, lifecycle.dataset_named(stores, unit.dataset))
    identity = name.ljust(12, b".")
    made = {"_id": identity, place.time_field: unit.begin + timedelta(hours=9)} | document
    if place.documents.insert_missing(place.collection, encode_documents([made])) != 1:
        raise Broken(f"the document {name.decode()} was there already")


def ask_cold_news(stores: Stores) -> str:
    """Ask one SQL over documents that are Parquet in the lake now."""
    cold = [record for record in stores.ledger.units(NEWS) if record.tier is Tier.COLD]
    begin, end = cold[0].unit.begin, cold[-1].unit.end
    answer = query(
        stores,
        f"""SELECT count(*) AS n, count(DISTINCT symbol) AS symbols, round(avg(sentiment_score), 3) AS mean
            FROM {NEWS} WHERE publish_time >= '{begin:%Y-%m-%d}' AND publish_time < '{end:%Y-%m-%d}'""",
    )
    (row,) = answer.to_pylist()
    if row["n"] != sum(record.row_count for record in cold):
        raise Broken(f"{row['n']} articles came back of {sum(record.row_count for record in cold)} in the lake")
    return f"{row['n']} articles from Parquet, about {row['symbols']} symbols, mean sentiment {row['mean']}"


def demand_lock(stores: Stores) -> str:
    """The audit log's objects in the lake are under object lock until the end of their retention."""
    cold = [record for record in stores.ledger.units(AUDIT) if record.tier is Tier.COLD]
    until = [stores.objects.locked_until(stores.key(record.location)) for record in cold]
    if not until or None in until:
        raise Broken(f"of {len(cold)} objects of the audit log some are under no lock")
    last = max(filter(None, until))
    return f"{len(cold)} objects of the audit log, under lock until {last:%Y-%m-%d}: nobody can delete them"


def demand_classes(stores: Stores) -> str:
    """The object store itself says that every chart is in the storage class that its unit's age asks for."""
    dataset = lifecycle.dataset_named(stores, FILES)
    wanted: Counter[StorageClass] = Counter()
    homes, _ = lifecycle.survey(stores, dataset)
    for home in homes:
        wanted[home.storage_class] += home.row_count if home.tier is not Tier.EXPIRED else 0
    found = Counter(StorageClass(stat.storage_class) for stat in stores.files.list(dataset.prefix))
    if found != +wanted or not {StorageClass.STANDARD, StorageClass.DEEP_ARCHIVE} <= found.keys():
        raise Broken(f"charts are in {dict(found)}, and the ledger says {dict(wanted)}")
    return ", ".join(f"{count} {name}" for name, count in sorted(found.items()))


def table_of_classes(stores: Stores) -> list[tuple[str, str, Counter[str], int]]:
    """List per data class: its datasets, its units by tier, and the rows that left the hot tier."""
    found = []
    for policy in stores.policies.classes:
        tiers: Counter[str] = Counter()
        rows = 0
        datasets = stores.policies.of_class(policy.name)
        for dataset in datasets:
            homes, _ = lifecycle.survey(stores, dataset)
            tiers.update(str(home.tier) for home in homes)
            rows += sum(home.row_count for home in homes if home.tier in (Tier.WARM, Tier.COLD))
        found.append((policy.name, ", ".join(d.name for d in datasets), tiers, rows))
    return found


def cold_objects(stores: Stores) -> list[UnitRecord]:
    """List the units whose copy is an object of the lake."""
    datasets = [d for d in stores.policies.datasets if d.state == "moves" and d.form is not Form.FILES]
    return [record for d in datasets for record in stores.ledger.units(d.name) if record.tier is Tier.COLD]


def erase_person(stores: Stores, now: datetime) -> tuple[str, str]:
    """Ask for one user's erasure: refused while a lock is in the way; then all that is not locked.

    Returns:
        What was in the way, and what was certified.
    """
    person, reason = Person(PERSON), "demo: asked for it"
    try:
        erase.erase(stores, person, reason, "demo", now)
    except ErasureRefused as exc:
        dates = [o.until for o in exc.obstacles if o.until]
        rows = sum(o.row_count for o in exc.obstacles)
        refused = f"refused: {rows} rows of the audit log are locked; possible from {max(dates):%Y-%m-%d}"
    else:
        raise Broken("an erasure went through an object lock")
    certificate = erase.erase(stores, person, reason, "demo", now, except_locked=True)
    demand_gone(stores, {place["dataset"] for place in certificate["places"]})
    return refused, f"certificate {certificate['object'].rpartition('/')[2]}, {len(certificate['places'])} places"


def demand_gone(stores: Stores, touched: set[str]) -> None:
    """The person is in no dataset any more, but for the locked rows of the audit log."""
    subjects = [d for d in stores.policies.datasets if d.state == "moves" and d.subject and not d.lock]
    for dataset in subjects:
        answer = query(
            stores, f"SELECT count(*) AS n, count(_exact) FROM {dataset.name} WHERE {dataset.subject} = '{PERSON}'"
        )
        if answer.to_pylist()[0]["n"]:
            raise Broken(f"{dataset.name} still has rows of the erased user")
    if not {"user_activity", "social_posts"} <= touched:
        raise Broken(f"the erased user was found in {', '.join(sorted(touched)) or 'nothing'} only")
