"""Keys of a Redis as a restore sees them: how many, in which slots, and copied from one server to another."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr
from redis import Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException
from redis.retry import Retry

from tiering.stores.beats import redis_mapped

BATCH = 512


@dataclass(frozen=True, slots=True)
class LoadedKeys:
    """What a server says of the snapshot that it was started on.

    Attributes:
        loaded: keys it took in.
        expired: keys that were over.
        slots: that it claims in a cluster.
        keys: that it has now.
    """

    loaded: int
    expired: int
    slots: frozenset[int]
    keys: int


def loaded(url: SecretStr) -> LoadedKeys:
    """Ask a server what it took from its snapshot."""
    with redis_mapped("look at", "restored Redis"), closing(_node(url)) as node:
        told = node.info("persistence")
        slots: set[int] = set()
        if int(node.info("cluster").get("cluster_enabled", 0)):
            node.set_response_callback("CLUSTER NODES", lambda text: text.decode())
            mine = next(line for line in node.execute_command("CLUSTER NODES").splitlines() if "myself" in line)
            for word in mine.split()[8:]:
                begin, _, end = word.partition("-")
                if not word.startswith("["):
                    slots |= set(range(int(begin), int(end or begin) + 1))
        return LoadedKeys(
            int(told["rdb_last_load_keys_loaded"]),
            int(told["rdb_last_load_keys_expired"]),
            frozenset(slots),
            sum(int(space["keys"]) for space in node.info("keyspace").values()),
        )


def count_keys(url: SecretStr) -> int:
    """Count the keys of a server, or of all masters of its cluster."""
    with redis_mapped("count keys of", "Redis"), closing(_whole(url)) as client:
        return int(
            client.dbsize(target_nodes=client.PRIMARIES) if isinstance(client, RedisCluster) else client.dbsize()
        )


def copy_keys(source: SecretStr, target: SecretStr) -> int:
    """Copy every key of one server into another or into its cluster, with its time of expiry; return how many.

    A key of the same name is replaced. RESTORE checks the sum that DUMP put under each value.
    """
    count, cursor = 0, 0
    with redis_mapped("copy keys to", "Redis"), closing(_node(source)) as node, closing(_whole(target)) as client:
        _copy_functions(node, client)
        while True:
            cursor, keys = node.scan(cursor, count=BATCH)
            reading = node.pipeline(transaction=False)
            for key in keys:
                reading.dump(key)
                reading.pexpiretime(key)
            answers = reading.execute()
            writing = client.pipeline(transaction=False)
            for key, value, until in zip(keys, answers[::2], answers[1::2], strict=True):
                if value is not None:  # else it expired since it was listed
                    writing.restore(key, max(until, 0), value, replace=True, absttl=until > 0)
                    count += 1
            writing.execute()
            if cursor == 0:
                return count


def _copy_functions(node: Any, client: Any) -> None:
    library = node.execute_command("FUNCTION DUMP")
    if node.execute_command("FUNCTION LIST"):
        where = {"target_nodes": client.PRIMARIES} if isinstance(client, RedisCluster) else {}
        client.execute_command("FUNCTION RESTORE", library, "REPLACE", **where)


def _node(url: SecretStr) -> Any:
    return Redis.from_url(url.get_secret_value(), socket_timeout=30, retry=Retry(NoBackoff(), 0))


def _whole(url: SecretStr) -> Any:
    try:
        return RedisCluster.from_url(url.get_secret_value(), socket_timeout=30)
    except RedisClusterException as exc:
        if "Cluster mode is not enabled" not in str(exc):
            raise
        return _node(url)
