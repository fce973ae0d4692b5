"""The flows of files: archived by age, asked for, and told of when they can be read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from pydantic import SecretStr

import infra.sql
from flows.lifecycle import archive
from flows.restores import rehydrate_objects
from infra.local.moto import ACCESS_KEY, SECRET_KEY, Moto
from tasks.restores import AVAILABLE_EVENT
from tests.flows.world import artifact, environment
from tests.ops.file_world import POLICIES, Files
from tiering.cli import main
from tiering.ops import files as ops
from tiering.ops import lifecycle
from tiering.ops.install import install_schemas
from tiering.plan.policies import parse_policies
from tiering.plan.spans import unit_of
from tiering.settings import Settings
from tiering.stores.object_rows import put_objects
from tiering.stores.opening import open_stores

LOOKS = 40


@pytest.fixture
def files(prefect: None, fresh_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """Three charts on a store with restores; two of them are known to be of three years ago."""
    (tmp_path / "policies.yaml").write_text(POLICIES)
    with Moto() as moto:
        moto.restore_in_steps(LOOKS)
        changed = {"s3_url": moto.url, "s3_access_key": SecretStr(ACCESS_KEY), "s3_secret_key": SecretStr(SECRET_KEY)}
        settings = fresh_settings.model_copy(update=changed)
        for name, value in environment(settings).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("TIERING_POLICIES", str(tmp_path / "policies.yaml"))
        with open_stores(settings, parse_policies(POLICIES, "test")) as stores:
            stores.objects.ensure_bucket(versioned=True)
            stores.files.ensure_bucket(versioned=True)
            install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
            dataset = lifecycle.dataset_named(stores, "charts")
            made = Files(stores, dataset, unit_of(datetime.now(UTC), dataset.unit)[0])
            for name in ("old1", "old2", "new"):
                made.write(name)
            grow_old(made, "old1", "old2")
            yield made


def grow_old(files: Files, *names: str) -> None:
    begin = files.today - timedelta(days=1100)
    records = [r for found in ops._by_unit(files.stores, files.dataset).values() for r in found]
    old = [replace(r, begin=begin, created_at=begin) for r in records if r.key.removeprefix("charts/") in names]
    with files.stores.warm.transaction("grow", "old") as connection:
        put_objects(connection, old)


def run(flow: Any, **parameters: Any) -> Any:
    return flow(**{"at": datetime.now(UTC), **parameters}, return_state=True)


def events(name: str, count: int) -> list[dict[str, Any]]:
    """Read the events of a name once so many have come: the server takes them in its own time."""
    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while True:
            found = client.request("POST", "/events/filter", json={"filter": {"event": {"name": [name]}}}).json()
            if len(found["events"]) >= count:
                return list(found["events"])
            assert time.monotonic() < deadline, found


def test_archived_asked_for_and_told_of(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    state = run(archive, dataset="charts")
    assert (state.name, state.message) == ("Completed", "1 units done")
    assert files.classes() == {"old1": "DEEP_ARCHIVE", "old2": "DEEP_ARCHIVE", "new": "STANDARD"}
    assert run(archive, dataset="charts").message == "0 units done"

    for row in files.rows():
        for _ in range(LOOKS):
            files.stores.files.stat(row.key)
    state = run(rehydrate_objects, dataset="charts", days=3)
    assert state.is_completed()
    assert "2 objects asked for, the last ready about" in state.message
    assert {row["state"] for row in artifact("restores-requested")} == {"REQUESTED"}
    assert run(rehydrate_objects).message.endswith("0 became readable")

    listed = command(capsys, "objects", "status", "--dataset", "charts", "--json")
    assert [found["restore_state"] for found in listed["objects"]] == ["REQUESTED", "REQUESTED"]

    for row in files.rows():
        for _ in range(LOOKS):
            files.stores.files.stat(row.key)
    assert run(rehydrate_objects).message == "0 objects asked for; 2 became readable"
    assert {row["state"] for row in artifact("restores-changed")} == {"AVAILABLE"}
    told = events(AVAILABLE_EVENT, 2)
    assert {event["payload"]["dataset"] for event in told} == {"charts"}
    assert run(rehydrate_objects).message == "0 objects asked for; 0 became readable"
    assert files.body("old1") == b"chart"

    listed = command(capsys, "objects", "list", "--prefix", "charts/", "--json")
    assert [found["storage_class"] for found in listed["objects"]] == ["DEEP_ARCHIVE", "DEEP_ARCHIVE"]
    asked = command(capsys, "objects", "restore", "--dataset", "charts", "--days", "2", "--json")
    assert [found["restore_state"] for found in asked["objects"]] == ["AVAILABLE", "AVAILABLE"]
    command(capsys, "objects", "restore", "--json", code=1)


def command(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == code
    said = capsys.readouterr().out
    return json.loads(said)
