"""Redis: a set of snapshots taken over the wire comes back on other servers, and a spoiled one never does."""

from __future__ import annotations

import random
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis import Redis, RedisCluster

from infra.local import Stack
from infra.local.scratch_redis import scratch_redis
from tests.wait import wait_until
from tiering import errors
from tiering.model_backup import Backup, BackupState, StoreName
from tiering.ops import backup_redis, prove_redis, restore_redis
from tiering.ops.catalogue import Catalogue
from tiering.stores import redis_wire
from tiering.stores.directory import DirectoryObjects
from tiering.stores.redis_keys import count_keys
from tiering.stores.vault import Keyring, Vault

SEED = 20261123
KEYS = 1000


@pytest.fixture(scope="module")
def cluster() -> Iterator[Stack]:
    """A cluster of the module's own: its slots are moved and its masters asked for snapshots."""
    with (
        tempfile.TemporaryDirectory(prefix="tiering-redis-") as directory,
        Stack(Path(directory), services={"redis"}) as stack,
    ):
        fill(RedisCluster.from_url(stack.redis.url), KEYS)
        yield stack


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    key = SecretStr(b64encode(b"k" * 32).decode())
    return Catalogue(Vault(DirectoryObjects(tmp_path / "bucket"), Keyring(key)))


def fill(client: Any, count: int) -> None:
    """Write values of every kind, some to expire much later."""
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    for number in range(count):
        key = f"price:{number}"
        kind = number % 5
        if kind == 0:
            client.set(key, dice.randbytes(dice.randrange(2000)), ex=dice.choice([None, 86_400]))
        elif kind == 1:
            client.rpush(key, *range(dice.randrange(1, 9)))
        elif kind == 2:
            client.hset(key, mapping={str(field): dice.random() for field in range(3)})
        elif kind == 3:
            client.zadd(key, {"a": dice.random(), "b": float("inf")})
        else:
            client.xadd(key, {"n": number})


def backup_of(catalogue: Catalogue, stack: Stack) -> Backup:
    return backup_redis.backup(catalogue, SecretStr(stack.redis.url), "main", datetime.now(UTC))


def contents(client: Any) -> dict[bytes, tuple[object, bool]]:
    """Read every key, by value, and whether it is to expire."""
    readers = {
        b"string": client.get,
        b"list": lambda key: tuple(client.lrange(key, 0, -1)),
        b"hash": lambda key: tuple(sorted(client.hgetall(key).items())),
        b"zset": lambda key: tuple(client.zrange(key, 0, -1, withscores=True)),
        b"stream": lambda key: str(client.xrange(key)),
    }
    return {
        key: (readers[client.type(key)](key), client.ttl(key) > 0) for key in client.scan_iter("price:*", count=999)
    }


def test_a_cluster_comes_back_on_other_nodes_and_is_proven(cluster: Stack, catalogue: Catalogue) -> None:
    backup = backup_of(catalogue, cluster)
    assert prove_redis.verify(catalogue, backup, datetime.now(UTC)) == backup.size_bytes
    assert prove_redis.prove(catalogue, backup, datetime.now(UTC), scratch_redis) == KEYS
    assert catalogue.entry(backup.backup_id).state is BackupState.PROVEN
    expected = contents(RedisCluster.from_url(cluster.redis.url))
    with restore_redis.load(catalogue, backup, scratch_redis) as copy:
        there = RedisCluster.from_url(copy.urls[0].get_secret_value())
        assert contents(there) == expected
        assert there.cluster_info(target_nodes=there.PRIMARIES)  # every master answers
        ids = {part.node_id for part in backup_redis.parts_of(backup)}
        assert ids.isdisjoint(master.node_id for master in redis_wire.look(copy.urls[0]).masters)


def test_a_cluster_is_restored_into_a_running_one_of_another_shape(cluster: Stack, catalogue: Catalogue) -> None:
    backup = backup_of(catalogue, cluster)
    expected = contents(RedisCluster.from_url(cluster.redis.url))
    with tempfile.TemporaryDirectory() as directory, Stack(Path(directory), services={"redis"}) as other:
        into = SecretStr(other.redis.url)
        assert restore_redis.restore(catalogue, backup, into, scratch_redis) == KEYS
        assert contents(RedisCluster.from_url(other.redis.url)) == expected
        with pytest.raises(errors.HeldError, match=f"{KEYS} keys live there"):
            restore_redis.restore(catalogue, backup, into, scratch_redis)
        assert restore_redis.restore(catalogue, backup, into, scratch_redis, is_approved=True) == KEYS


def test_one_server_without_slots(catalogue: Catalogue, tmp_path: Path) -> None:
    empty = tmp_path / "empty.rdb"
    empty.write_bytes(b"REDIS0009\xff" + bytes(8))  # a checksum of zero is none
    with scratch_redis([empty], []) as [url], scratch_redis([empty], []) as [other]:
        backup = backup_redis.backup(catalogue, url, "single", datetime.now(UTC))
        assert prove_redis.prove(catalogue, backup, datetime.now(UTC), scratch_redis) == 0
        fill(Redis.from_url(url.get_secret_value()), 100)
        backup = backup_redis.backup(catalogue, url, "single", datetime.now(UTC))
        assert restore_redis.restore(catalogue, backup, other, scratch_redis) == 100
        assert len(contents(Redis.from_url(other.get_secret_value()))) == 100


def test_slots_on_their_way_are_refused(cluster: Stack, catalogue: Catalogue) -> None:
    first, second = (cluster.redis.connect(node) for node in ("redis-1", "redis-2"))
    ids = [str(node.execute_command("CLUSTER MYID")) for node in (first, second)]
    second.execute_command("CLUSTER SETSLOT", 7, "IMPORTING", ids[0])
    first.execute_command("CLUSTER SETSLOT", 7, "MIGRATING", ids[1])
    try:
        with pytest.raises(errors.CommitConflict, match=r"on their way between masters: \[7"):
            backup_of(catalogue, cluster)
        assert catalogue.entries() == []
    finally:
        for node in (first, second):
            node.execute_command("CLUSTER SETSLOT", 7, "STABLE")
    backup_of(catalogue, cluster)


def test_a_change_of_masters_meanwhile_is_refused(cluster: Stack, catalogue: Catalogue) -> None:
    def bump(_: int, master: str) -> None:
        cluster.redis.connect("redis-1").execute_command("CLUSTER BUMPEPOCH")

    with pytest.raises(errors.CommitConflict, match="changed meanwhile"):
        backup_redis.backup(catalogue, SecretStr(cluster.redis.url), "main", datetime.now(UTC), bump)
    assert catalogue.entries() == []


def test_a_wrong_map_fails_the_proof(cluster: Stack, catalogue: Catalogue) -> None:
    backup = backup_of(catalogue, cluster)
    masters = [dict(one) for one in backup.facts["masters"]]  # type: ignore[attr-defined]
    masters[0]["slots"], masters[1]["slots"] = masters[1]["slots"], masters[0]["slots"]
    swapped = replace(backup, backup_id=f"{backup.backup_id}x", facts={**backup.facts, "masters": masters})
    catalogue.publish(swapped)
    with pytest.raises(errors.TieringError):
        prove_redis.prove(catalogue, swapped, datetime.now(UTC), scratch_redis)
    assert catalogue.entry(swapped.backup_id).state is BackupState.FAILED
    short = replace(backup, facts={**backup.facts, "masters": masters[1:]})
    with pytest.raises(errors.VerificationError, match="of 16384 slots"):
        prove_redis.verify(catalogue, short, datetime.now(UTC))


def test_a_flipped_byte_is_found_before_a_server_starts(cluster: Stack, catalogue: Catalogue, tmp_path: Path) -> None:
    backup = backup_of(catalogue, cluster)
    path = tmp_path / "bucket" / backup.objects[1].name
    body = bytearray(path.read_bytes())
    body[random.Random(SEED).randrange(len(body))] ^= 1
    path.chmod(0o600)
    path.write_bytes(body)
    for check in (
        lambda: prove_redis.verify(catalogue, backup, datetime.now(UTC)),
        lambda: prove_redis.prove(catalogue, backup, datetime.now(UTC), never),
    ):
        with pytest.raises((errors.CorruptCopy, errors.KeyMissing)):
            check()


def never(*_: object) -> Any:
    raise AssertionError("a server was to be started")


def test_a_server_that_dies_while_it_sends_leaves_no_backup(catalogue: Catalogue) -> None:
    with tempfile.TemporaryDirectory() as directory, Stack(Path(directory), services={"redis"}) as stack:
        client = RedisCluster.from_url(stack.redis.url)
        for number in range(300):
            client.set(f"k{number}", random.Random(number).randbytes(20_000))

        def kill(*_: object) -> None:
            stack.kill("redis")

        with pytest.raises(errors.StoreUnavailable):
            backup_redis.backup(catalogue, SecretStr(stack.redis.url), "main", datetime.now(UTC), kill)
        assert catalogue.entries(StoreName.REDIS) == []
        wait_until(lambda: not catalogue.entries(), 1)


def test_a_wrong_password_is_said_and_not_shown(cluster: Stack) -> None:
    url = cluster.redis.url.replace(cluster.redis.url.split(":")[2].split("@")[0], "very-secret")
    with pytest.raises(errors.AccessDenied) as caught:
        redis_wire.look(SecretStr(url))
    assert "very-secret" not in str(caught.value)


def test_a_cluster_that_is_not_there_is_told_as_such() -> None:
    with pytest.raises(errors.StoreUnavailable, match="cannot be connected"):
        count_keys(SecretStr("redis://127.0.0.1:1"))
