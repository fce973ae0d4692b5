"""Redis: append-only files taken while the server writes and rewrites them come back whole, or are refused."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis, RedisCluster
from redis.exceptions import ResponseError

from infra.local.errors import StackError
from infra.local.scratch_redis import scratch_redis
from tests.ops.test_redis_backup import SEED, catalogue, cluster, contents, fill
from tests.wait import wait_until
from tiering import errors
from tiering.model_backup import BackupKind, BackupState, StoreName
from tiering.ops import backup_redis, prove_redis, restore_redis
from tiering.ops.catalogue import Catalogue
from tiering.stores import redis_aof

__all__ = ["catalogue", "cluster"]

EMPTY = b"REDIS0009\xff" + bytes(8)  # a checksum of zero is none
ROUNDS = 5


@pytest.fixture
def single(tmp_path: Path) -> Iterator[SecretStr]:
    """One server that keeps append-only files, and cluster it is none."""
    empty = tmp_path / "empty.rdb"
    empty.write_bytes(EMPTY)
    with scratch_redis([empty], []) as [url]:
        client = Redis.from_url(url.get_secret_value())
        client.config_set("appendonly", "yes")
        wait_until(lambda: quiet(client), 20, "the first append-only file")
        yield url


def quiet(client: Redis) -> bool:
    told = client.info("persistence")
    return not told["aof_rewrite_in_progress"] and told["aof_last_bgrewrite_status"] == "ok"


def test_a_cluster_comes_back_from_its_append_only_files(cluster, catalogue: Catalogue) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    backup = backup_redis.backup_aof(catalogue, SecretStr(cluster.redis.url), "main", datetime.now(UTC))
    assert backup.kind is BackupKind.AOF
    expected = contents(RedisCluster.from_url(cluster.redis.url))
    assert prove_redis.verify(catalogue, backup, datetime.now(UTC)) == backup.size_bytes
    assert prove_redis.prove(catalogue, backup, datetime.now(UTC), scratch_redis) == len(expected)
    assert catalogue.entry(backup.backup_id).state is BackupState.PROVEN
    with restore_redis.load(catalogue, backup, scratch_redis) as copy:
        assert contents(RedisCluster.from_url(copy.urls[0].get_secret_value())) == expected


def test_rewrites_and_writes_meanwhile_cut_it_between_two_commands(single: SecretStr, catalogue: Catalogue) -> None:  # noqa: F811
    client = Redis.from_url(single.get_secret_value())
    client.config_set("auto-aof-rewrite-percentage", 10)
    client.config_set("auto-aof-rewrite-min-size", "64kb")
    with writing(single) as acknowledged:
        for _ in range(ROUNDS):
            least = acknowledged()
            with suppress(ResponseError):  # one is under way
                client.bgrewriteaof()
            backup = backup_redis.backup_aof(catalogue, single, "single", datetime.now(UTC))
            with restore_redis.load(catalogue, backup, scratch_redis) as copy:
                there = Redis.from_url(copy.urls[0].get_secret_value())
                numbers = sorted(int(key.split(b":")[1]) for key in there.scan_iter(count=1000))
                assert numbers == list(range(len(numbers)))
                assert len(numbers) == copy.keys >= least
            print(f"{least} were acknowledged before, {copy.keys} are there, {backup.facts['masters']}")
    assert client.config_get("auto-aof-rewrite-percentage") == {"auto-aof-rewrite-percentage": "10"}


@contextmanager
def writing(url: SecretStr):  # type: ignore[no-untyped-def]
    """Write keys `n:0`, `n:1`, … one after another; yields a count of those acknowledged."""
    client, done, stop = Redis.from_url(url.get_secret_value()), [0], threading.Event()
    dice = random.Random(SEED)

    def write() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            client.set(f"n:{number}", dice.randbytes(200))
            done[0] = number + 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        wait_until(lambda: done[0] > 100, 20)
        yield lambda: done[0]
    finally:
        stop.set()
        thread.join()


def test_a_rewrite_without_end_is_refused(single: SecretStr) -> None:
    client = Redis.from_url(single.get_secret_value())
    fill(client, 300)
    client.config_set("rdb-key-save-delay", 1_000_000)  # microseconds for each key
    client.bgrewriteaof()
    wait_until(lambda: not quiet(client), 20)
    with pytest.raises(errors.CommitConflict, match="being rewritten"), redis_aof.held(single, "single", 0.2):
        pass
    client.config_set("rdb-key-save-delay", 0)
    client.client_kill_filter(_type="replica")


def test_what_is_elsewhere_or_off_is_said(single: SecretStr, catalogue: Catalogue, tmp_path: Path) -> None:  # noqa: F811
    client = Redis.from_url(single.get_secret_value())
    client.set("a", 1)
    home = Path(client.config_get("dir")["dir"])
    folder = home / client.config_get("appenddirname")["appenddirname"]
    aside = folder.rename(tmp_path / "aside")
    with pytest.raises(errors.PermanentError, match="HINT: Run this on the server's own machine"):
        backup_redis.backup_aof(catalogue, single, "single", datetime.now(UTC))
    folder.mkdir()
    for file in aside.iterdir():  # of another server by the same path
        (folder / file.name).write_bytes(file.read_bytes() if "manifest" in file.name else b"")
    with pytest.raises(errors.PermanentError, match="another server's"):
        backup_redis.backup_aof(catalogue, single, "single", datetime.now(UTC))
    client.config_set("appendonly", "no")
    with pytest.raises(errors.PermanentError, match="keeps no append-only file"):
        backup_redis.backup_aof(catalogue, single, "single", datetime.now(UTC))
    assert catalogue.entries(StoreName.REDIS) == []


def test_a_cut_file_does_not_start_and_fails_the_proof(single: SecretStr, catalogue: Catalogue, tmp_path: Path) -> None:  # noqa: F811
    client = Redis.from_url(single.get_secret_value())
    fill(client, 50)
    backup = backup_redis.backup_aof(catalogue, single, "single", datetime.now(UTC))
    with restore_redis.load(catalogue, backup, scratch_redis) as copy:
        assert copy.keys == 50
    [part] = backup_redis.parts_of(backup)
    folder = tmp_path / "cut"
    folder.mkdir()
    for name, objects in part.files:
        (folder / name).write_bytes(b"".join(catalogue.vault.fetch(stored) for stored in objects))
    last = folder / part.files[-1][0]
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(StackError, match="it ended"), scratch_redis([folder], []):
        pass
