"""`tiering backups`, `backup`, `verify` and `restore` as people run them, on real servers."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

import infra.sql
from infra.local.scratch_servers import scratch_mongo
from tests.test_cli import environment
from tiering.settings import Settings
from tiering.stores.mongo_server import MongoServer
from tiering.stores.postgres import Postgres, execute, fetch

KEY = b64encode(b"cli" + bytes(29)).decode()
CANARY = "c4n4ry-secret"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def mongo_url() -> Iterator[SecretStr]:
    """A MongoDB of its own: a backup is of a whole server."""
    with scratch_mongo() as url:
        with MongoServer(url, "test") as server:
            server.client["shop"]["orders"].insert_many([{"_id": number, "by": "x" * 50} for number in range(500)])
        yield url


@pytest.fixture
def run(fresh_settings: Settings, mongo_url: SecretStr) -> Run:
    database = Postgres(fresh_settings.warm_pg_url, "warm PostgreSQL")
    with database.transaction("prepare", "ledger") as connection:
        execute(connection, infra.sql.read("ledger"))
    database.close()
    variables = environment(fresh_settings) | {
        "TIERING_BACKUP_BUCKET": fresh_settings.backup_bucket,
        "TIERING_BACKUP_KEY": KEY,
        "TIERING_HOT_MONGO_URL": mongo_url.get_secret_value(),
        "TIERING_WARM_MONGO_URL": mongo_url.get_secret_value(),
    }

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tiering.cli", *words],
            env={**variables, **more},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_from_nothing_to_a_restored_server(run: Run, fresh_settings: Settings) -> None:
    empty = document(run("backups", "--json"))
    assert empty["backups"] == []
    assert {one["store"] for one in empty["due"] if one["is_overdue"]} >= {"postgresql", "mongodb", "redis"}

    [taken] = document(run("backup", "mongodb", "--no-prove", "--json"))["backups"]
    assert (taken["source"], taken["kind"], taken["state"]) == ("main", "full", "VERIFIED")
    listed = document(run("backups", "--store", "mongodb", "--json"))
    assert [one["backup_id"] for one in listed["backups"]] == [taken["backup_id"]]
    assert [one["is_overdue"] for one in listed["due"]] == [False]
    assert listed["gaps"] == []

    [proven] = document(run("verify", "--store", "mongodb", "--prove", "--json"))["backups"]
    assert proven["state"] == "PROVEN"
    assert mirrored(fresh_settings) == [(taken["backup_id"], "PROVEN")]

    [judged] = document(run("backups", "retention", "--apply", "--json"))["retention"]
    assert judged["is_applied"]
    [verdict] = judged["backups"]
    assert verdict["is_kept"]
    assert "kept for 30 d" in verdict["reasons"][0]

    with scratch_mongo() as url:
        place = {"RESTORE_URL": url.get_secret_value()}
        done = document(run("restore", "--store", "mongodb", "--into", "env:RESTORE_URL", "--json", **place))
        assert "500 documents" in done["what"]
        with MongoServer(url, "test") as server:
            assert server.client["shop"]["orders"].count_documents({}) == 500
        again = run("restore", "--store", "mongodb", "--into", "env:RESTORE_URL", **place)
        assert again.returncode == 1
        assert "HINT" in again.stderr


def mirrored(settings: Settings) -> list[tuple[object, ...]]:
    database = Postgres(settings.warm_pg_url, "warm PostgreSQL")
    with database.transaction("read", "mirror", read_only=True) as connection:
        rows = [tuple(row) for row in fetch(connection, "SELECT backup_id, state FROM tiering.backup")]
    database.close()
    return rows


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("restore", "--store", "mongodb", "--into", "x", "--to", "2026-11-22T08:00:00"), 2, "no time zone"),
        (("restore", "--store", "mongodb", "--into", "env:NOT_SET"), 2, "NOT_SET"),
        (("restore", "--store", "nothing", "--into", "x"), 2, "nothing"),
        (("backup", "mongodb", "--kind", "incremental"), 1, "no incremental backups"),
        (("backup", "mongodb", "--source", "other"), 1, "no such source"),
        (("verify", "20260101T000000Z-full-000000"), 1, "tiering backups"),
    ],
)
def test_what_is_wrong_is_said(run: Run, words: tuple[str, ...], code: int, said: str) -> None:
    done = run(*words)
    assert done.returncode == code, done.stderr
    assert said in done.stderr


def test_without_a_key_it_says_how_to_get_one(run: Run) -> None:
    done = run("backups", TIERING_BACKUP_KEY="")
    assert done.returncode == 2
    assert "TIERING_BACKUP_KEY" in done.stderr


def test_no_secret_is_ever_said(run: Run) -> None:
    url = f"mongodb://user:{CANARY}@127.0.0.1:1/?serverSelectionTimeoutMS=500"
    for words in (("backup", "mongodb"), ("restore", "--store", "mongodb", "--into", "env:PLACE")):
        done = run(*words, TIERING_HOT_MONGO_URL=url, TIERING_WARM_MONGO_URL=url, PLACE=url)
        assert done.returncode == 1
        assert CANARY not in done.stdout + done.stderr
        assert KEY not in done.stdout + done.stderr
