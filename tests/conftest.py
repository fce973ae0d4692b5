"""Fixtures for tests on real servers: one stack per session, a database and buckets per test."""

from __future__ import annotations

import contextlib
import gc
import itertools
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg2 import sql
from pydantic import SecretStr
from pymongo import MongoClient
from xdist.scheduler import LoadFileScheduling

from infra.local import Stack
from tiering.settings import Settings

_numbers = itertools.count(1)


class _FilesAndFlows(LoadFileScheduling):
    """Hand out the tests of a file together, and all of flows: the fixtures of a file and a Prefect server are dear."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return "tests/flows" if file.startswith("tests/flows/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Share the tests among processes our own way, whatever `--dist` says."""
    return _FilesAndFlows(config, log)


def pytest_collection_finish() -> None:
    """Spare the collector what all the imports made: it would look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def stack_directory() -> Iterator[Path]:
    """A directory for the session's servers; not pytest's own, which is closed to the user PostgreSQL runs as."""
    directory = Path(tempfile.mkdtemp(prefix="tiering-test-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def stack(stack_directory: Path) -> Iterator[Stack]:
    """PostgreSQL, MongoDB and S3, up for the session. Tests that kill servers make a stack of their own."""
    with Stack(stack_directory, services={"postgres", "s3", "mongo"}) as running:
        yield running


@pytest.fixture(scope="session")
def redis_url(stack_directory: Path) -> Iterator[SecretStr]:
    """A Redis Cluster of six for the session. Tests that kill it make one of their own."""
    with Stack(stack_directory / "redis-cluster", services={"redis"}) as running:
        yield SecretStr(running.redis.url)


@pytest.fixture(scope="session")
def settings(stack: Stack) -> Settings:
    """One database for hot and warm, shared by the session's tests."""
    return stack.settings()


@pytest.fixture(scope="session")
def two_database_settings(stack: Stack) -> Settings:
    """Two databases, hot and warm apart, shared by the session's tests."""
    return stack.settings(two_databases=True)


@pytest.fixture
def fresh_settings(stack: Stack) -> Iterator[Settings]:
    """One empty database of each kind for hot and warm, and empty buckets; all gone after the test."""
    name = f"t{next(_numbers)}_{secrets.token_hex(3)}"
    yield _open_fresh(stack, name, name, name)
    _drop_fresh(stack, [name], name)


@pytest.fixture
def fresh_two_database_settings(stack: Stack) -> Iterator[Settings]:
    """Empty hot databases, empty warm ones, and empty buckets; all gone after the test."""
    name = f"t{next(_numbers)}_{secrets.token_hex(3)}"
    hot, warm = f"{name}_hot", f"{name}_warm"
    yield _open_fresh(stack, name, hot, warm)
    _drop_fresh(stack, [hot, warm], name)


def _open_fresh(stack: Stack, name: str, hot: str, warm: str) -> Settings:
    with stack.postgres.connect("postgres") as connection, connection.cursor() as cursor:
        cursor.execute("SET wal_compression = off")  # seven eighths of the time, for a log that nobody keeps
        for database in sorted({hot, warm}):
            cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
    lake, backup = (bucket.format(name.replace("_", "-")) for bucket in ("{}-lake", "{}-backup"))
    files = f"{name.replace('_', '-')}-files"
    stack.s3.client().create_bucket(Bucket=files)
    stack.s3.client().put_bucket_versioning(Bucket=files, VersioningConfiguration={"Status": "Enabled"})
    for bucket in (lake, backup):
        stack.s3.client().create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=bucket == lake)
    urls = {"hot_pg_url": stack.postgres.url(hot), "warm_pg_url": stack.postgres.url(warm)}
    urls |= {"hot_mongo_url": stack.mongo.url(hot), "warm_mongo_url": stack.mongo.url(warm)}
    changed = {key: SecretStr(url) for key, url in urls.items()} | {"lake_bucket": lake, "backup_bucket": backup}
    changed |= {"files_bucket": files}
    return stack.settings().model_copy(update=changed)


def _drop_fresh(stack: Stack, databases: list[str], name: str) -> None:
    with stack.postgres.connect("postgres") as connection, connection.cursor() as cursor:
        for database in databases:
            cursor.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database)))
    with MongoClient[dict[str, object]](stack.mongo.url("admin")) as client:
        for database in databases:
            client.drop_database(database)
    for kind in ("lake", "backup", "files"):
        # SeaweedFS drops a bucket with everything in it, but for objects under lock: they go with the session's stack.
        with contextlib.suppress(stack.s3.client().exceptions.ClientError):
            stack.s3.client().delete_bucket(Bucket=f"{name.replace('_', '-')}-{kind}")
