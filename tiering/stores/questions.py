"""Questions that the platform's components ask of their stores, for probes of restored servers. They keep nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from pydantic import SecretStr
from pymongo import DESCENDING

from tiering import errors
from tiering.stores.beats import TAGS, connect_redis, redis_mapped
from tiering.stores.documents import Documents
from tiering.stores.documents_errors import mapped
from tiering.stores.postgres import Postgres, execute, fetch, fetch_one

SLOTS = 16384


def write_to_postgres(database: Postgres) -> int:
    """Make it commit a transaction that leaves nothing; return the transaction's number.

    Raises:
        StoreUnavailable: it is still in recovery, or read-only.
    """
    with database.transaction("write to", database.name) as connection:
        row = fetch_one(connection, "SELECT pg_is_in_recovery()")
        if row is None or row[0]:
            raise errors.StoreUnavailable("write to", database.name, "it is still in recovery")
        execute(connection, "CREATE TEMPORARY TABLE drill_probe (n int) ON COMMIT DROP")
        number = fetch_one(connection, "SELECT pg_current_xact_id()::text::bigint")
    return int(number[0]) if number else 0


def week_of_a_symbol(database: Postgres) -> tuple[str, int, Any]:
    """Read the last 7 days of the newest bar's symbol: its name, the number of bars, the last close."""
    with database.transaction("ask for", "market_bars", read_only=True) as connection:
        newest = fetch_one(connection, "SELECT symbol, ts FROM live.market_bars ORDER BY ts DESC LIMIT 1")
        if newest is None:
            raise errors.VerificationError("ask for", "market_bars", "there is not one bar")
        statement = """SELECT count(*), (array_agg(close ORDER BY ts DESC))[1] FROM live.market_bars
                       WHERE symbol = %s AND ts > %s"""
        row = fetch_one(connection, statement, (newest[0], newest[1] - timedelta(days=7)))
    return (newest[0], row[0], row[1]) if row else (newest[0], 0, None)


def count_of(database: Postgres, table: str) -> int:
    """Count the rows of one of the state tables of the hot tier, reading each."""
    statements = {
        "positions": "SELECT count(*), count(DISTINCT user_id || symbol), sum(quantity) FROM hot.positions",
        "user_configurations": "SELECT count(*), sum(length(settings::text)) FROM hot.user_configurations",
    }
    with database.transaction("ask for", table, read_only=True) as connection:
        row = fetch_one(connection, statements[table])
    return int(row[0]) if row else 0


def units_by_tier(database: Postgres) -> dict[str, int]:
    """Count the units of the ledger."""
    with database.transaction("ask for", "the ledger", read_only=True) as connection:
        return dict(fetch(connection, "SELECT tier, count(*) FROM tiering.unit GROUP BY tier ORDER BY tier"))


def write_to_mongo(database: Documents) -> int:
    """Make it store and return one document, and drop it; return the number of collections."""
    with mapped("write to", database.name):
        probe = database._collection("tiering_drill_probe")
        probe.insert_one({"_id": "probe"})
        there = probe.count_documents({})
        probe.drop()
        names = database._database.list_collection_names()
    if there != 1:
        raise errors.VerificationError("write to", database.name, "what was written is not there")
    return len(names)


def sentiment_by_symbol(database: Documents) -> int:
    """Average the sentiment by symbol, as the analytics do; return the number of symbols."""
    pipeline: list[dict[str, Any]] = [
        {"$match": {"score": {"$exists": True}}},
        {"$group": {"_id": "$symbol", "score": {"$avg": "$score"}, "posts": {"$sum": "$post_count"}}},
    ]
    with mapped("ask for", "social_sentiment"):
        return len(list(database._collection("social_sentiment").aggregate(pipeline)))


def newest_documents(database: Documents, collections: Sequence[str], time_field: str) -> dict[str, int]:
    """Read the 20 newest documents of each collection; return how many came."""
    found = {}
    with mapped("ask for", ", ".join(collections)):
        for name in collections:
            cursor = database._collection(name).find().sort(time_field, DESCENDING).limit(20)
            found[name] = sum(1 for _ in cursor)
    return found


def ask_redis(url: SecretStr) -> tuple[int, int]:
    """Write and read a key in every eighth of the slots; return how many slots are served, and how many keys there are.

    Raises:
        VerificationError: a slot is not served, or a key did not come back.
    """
    with redis_mapped("ask", "Redis"):
        client = connect_redis(url)
        try:
            for tag in TAGS:
                key = f"tiering:drill:{{{tag}}}"
                client.set(key, tag, ex=60)
                if client.get(key) != tag:
                    raise errors.VerificationError("ask", "Redis", f"what was written to {key} did not come back")
                client.unlink(key)
            if not hasattr(client, "cluster_info"):
                return SLOTS, int(client.dbsize())
            info = client.cluster_info()
            first = info if "cluster_state" in info else next(iter(info.values()))
            served = int(first["cluster_slots_ok"])
            if first["cluster_state"] != "ok" or served != SLOTS:
                raise errors.VerificationError("ask", "Redis", f"{served} of {SLOTS} slots are served")
            return served, int(client.dbsize(target_nodes=client.PRIMARIES))
        finally:
            client.close()
