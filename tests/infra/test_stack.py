"""The embedded stack on real servers: up twice, killed, moved ports, not root, no secret to be seen."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import psycopg2
import pytest
from botocore.exceptions import ClientError
from pymongo import MongoClient
from pymongo.errors import OperationFailure
from redis.cluster import RedisCluster

from infra.local import SERVICES, Stack
from infra.local.errors import StackError
from infra.local.processes import NOBODY, Process, is_open_to_all, is_running, read_start

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def full() -> Iterator[Stack]:
    """All services, ours to kill."""
    directory = Path(tempfile.mkdtemp(prefix="tiering-stack-"))
    stack = Stack(directory)
    try:
        stack.up()
        yield stack
    finally:
        stack.down()
        shutil.rmtree(directory, ignore_errors=True)


def _all_pids(stack: Stack) -> dict[str, int]:
    return {name: process.pid for name, process in stack.status().items() if process}


def _mongo(stack: Stack) -> MongoClient[dict[str, Any]]:
    return MongoClient(stack.mongo.url("trading"), serverSelectionTimeoutMS=5000)


def _redis(stack: Stack) -> RedisCluster:
    return RedisCluster.from_url(stack.redis.url, decode_responses=True)


def test_up_again_starts_nothing(full: Stack) -> None:
    before = _all_pids(full)
    Stack(full.directory).up()
    assert _all_pids(full) == before
    assert len(before) == 9


def test_redis_is_a_cluster_of_three_masters_with_a_replica_each(full: Stack) -> None:
    cluster = _redis(full)
    assert len(cluster.get_primaries()) == 3
    assert len(cluster.get_replicas()) == 3
    assert {info["cluster_state"] for info in cluster.cluster_info(target_nodes="all").values()} == {"ok"}
    for number in range(100):
        cluster.set(f"key:{number}", number)
    policies = cluster.config_get("maxmemory-policy", target_nodes="primaries")
    assert all("allkeys-lru" in str(policy) for policy in policies.values())
    cluster.close()


def test_redis_survives_the_loss_of_a_master(full: Stack) -> None:
    full.kill("redis-2")
    assert full.pids("redis-2") == []
    full.restart("redis-2")
    cluster = _redis(full)
    assert len(cluster.get_primaries()) == 3
    assert cluster.set("after", "kill")
    cluster.close()


def test_s3_refuses_to_write_a_name_twice(full: Stack) -> None:
    settings = full.settings()
    client = boto3.client(
        "s3",
        endpoint_url=settings.s3_url,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key.get_secret_value(),
        aws_secret_access_key=settings.s3_secret_key.get_secret_value(),
    )
    client.put_object(Bucket="tiering-lake", Key="once", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError) as caught:
        client.put_object(Bucket="tiering-lake", Key="once", Body=b"second", IfNoneMatch="*")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412


def test_mongo_answers_as_a_replica_set_and_only_to_those_it_knows(full: Stack) -> None:
    with _mongo(full) as client:
        assert client.admin.command("hello")["setName"]
    stranger = MongoClient[dict[str, Any]]("127.0.0.1", full.port("mongo"), serverSelectionTimeoutMS=2000)
    with stranger, pytest.raises(OperationFailure, match="requires authentication"):
        stranger.trading.anything.find_one()


def test_what_was_acknowledged_survives_sigkill_of_everything(full: Stack) -> None:
    with full.postgres.connect("trading") as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
    with _mongo(full) as client:
        client.trading.kept.insert_many([{"n": n} for n in range(100)])
    full.s3.client().put_object(Bucket="tiering-lake", Key="kept", Body=b"x" * 100_000)
    for service in SERVICES:
        full.kill(service)
    assert _all_pids(full) == {}

    Stack(full.directory).up()

    with full.postgres.connect("trading") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM kept")
        assert cursor.fetchall() == [(1000,)]
    with _mongo(full) as client:
        assert client.trading.kept.count_documents({}) == 100
    assert len(full.s3.client().get_object(Bucket="tiering-lake", Key="kept")["Body"].read()) == 100_000


def test_a_port_taken_meanwhile_is_replaced(full: Stack) -> None:
    full.stop("s3")
    full.stop("redis")
    old = full.port("redis-1")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", full.port("s3")))
        other.listen()
        with socket.socket() as another:
            another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            another.bind(("127.0.0.1", old))
            another.listen()
            full.up()
    assert full.port("redis-1") != old
    assert len(_redis(full).get_primaries()) == 3
    assert full.s3.is_ready()


def test_no_secret_stands_on_a_command_line(full: Stack) -> None:
    secrets = [full.state.secret(name) for name in ("postgres", "redis", "mongo", "s3")]
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in _all_pids(full).values()]
    assert lines
    assert not [line for line in lines if any(secret.encode() in line for secret in secrets)]


def test_the_record_and_the_env_file_are_private(full: Stack, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MINE=1\nTIERING_S3_URL=http://before:1\n")
    full.write_env(tmp_path / ".env")
    text = (tmp_path / ".env").read_text()
    assert "MINE=1" in text
    assert "http://before" not in text
    for file in (tmp_path / ".env", full.directory / "stack.json"):
        assert file.stat().st_mode & 0o777 == 0o600


def test_the_backup_key_is_drawn_once_and_a_turned_over_one_stays(full: Stack, tmp_path: Path) -> None:
    full.write_env(tmp_path / ".env")
    key = full.state.key("backup")
    assert len(base64.b64decode(key)) == 32
    assert f"TIERING_BACKUP_KEY={key}\n" in (tmp_path / ".env").read_text()
    (tmp_path / ".env").write_text(f"TIERING_BACKUP_KEY=newer,{key}\n")
    full.write_env(tmp_path / ".env")
    assert f"TIERING_BACKUP_KEY=newer,{key}\n" in (tmp_path / ".env").read_text()
    assert full.s3.client().get_bucket_versioning(Bucket="tiering-backup")["Status"] == "Enabled"


def test_a_pid_used_again_is_not_taken_for_our_server() -> None:
    mine = os.getpid()
    assert is_running(Process(mine, str(read_start(mine))))
    assert not is_running(Process(mine, "another boot/1"))


def test_a_server_that_dies_says_why(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = Path(tempfile.mkdtemp(prefix="tiering-stack-"))
    stack = Stack(directory, services={"postgres"})
    stack.up()
    stack.down()
    with (directory / "postgres" / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = 1\n")
    with pytest.raises(StackError, match="no_such_setting"):
        stack.up()
    stack.down()
    shutil.rmtree(directory)


def test_an_unknown_service_is_named(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="oracle"):
        Stack(tmp_path, services={"oracle"})


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: every other test here is already the one for a normal user")
def test_a_normal_user_can_run_it() -> None:
    directory = Path(tempfile.mkdtemp(prefix="tiering-stack-"))
    os.chown(directory, NOBODY, NOBODY)
    script = textwrap.dedent("""\
        import sys
        from pathlib import Path
        from infra.local import Stack
        with Stack(Path(sys.argv[1])) as stack:
            print(len([1 for process in stack.status().values() if process]))
    """)
    # The interpreter may lie below root's closed home: lend the way to it.
    lend = ["setpriv", "--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--reuid", str(NOBODY)]
    reach = [] if is_open_to_all(Path(sys.executable)) else [*lend, "--clear-groups", "--"]
    done = subprocess.run(
        [*reach, sys.executable, "-c", script, str(directory)],
        user=None if reach else NOBODY,
        env={"PATH": os.defpath, "HOME": "/nonexistent", "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    shutil.rmtree(directory)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "9"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands PostgreSQL to another user")
def test_root_can_keep_it_below_a_closed_directory() -> None:
    closed = Path(tempfile.mkdtemp(prefix="tiering-closed-"))  # 0700, as root's home is
    with Stack(closed / "stack", services={"postgres"}) as stack, stack.postgres.connect("trading") as connection:
        assert connection.info.dbname == "trading"
    assert closed.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(closed)


def test_the_url_of_two_databases_differ(full: Stack) -> None:
    urls = full.settings(two_databases=True)
    for url, name in ((urls.hot_pg_url, "trading"), (urls.warm_pg_url, "trading_warm")):
        connection = psycopg2.connect(url.get_secret_value())
        assert connection.info.dbname == name
        connection.close()
