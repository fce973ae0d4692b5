"""The flows of disaster recovery on a real Prefect server: a drill's page, a recovery that waits for a person."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.flow_runs import resume_flow_run

from flows.drill import dr_drill, recover
from infra.local import Stack
from tests.faults.drills import copied_bucket
from tests.flows.world import artifact
from tests.ops.drill_world import DrillWorld, open_drill_world
from tests.wait import wait_until
from tiering import cli_kit
from tiering.model_drill import Incident


@pytest.fixture(scope="module")
def world() -> Iterator[DrillWorld]:
    with tempfile.TemporaryDirectory(prefix="tiering-drill-flow-") as temporary:
        directory = Path(temporary)
        directory.chmod(0o711)
        with Stack(directory / "stack") as stack, open_drill_world(stack) as opened:
            opened.beat_on(5)
            yield opened


@pytest.fixture
def kit_in_environment(world: DrillWorld, prefect: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Bucket and key, as a worker far from the primary has them: nothing else of TIERING_* is set."""
    monkeypatch.chdir(tmp_path)
    for name in ("s3_url", "s3_region", "backup_bucket"):
        monkeypatch.setenv(f"TIERING_{name.upper()}", str(getattr(world.recovery, name)))
    for name in ("s3_access_key", "s3_secret_key", "backup_key"):
        monkeypatch.setenv(f"TIERING_{name.upper()}", getattr(world.recovery, name).get_secret_value())
    monkeypatch.setenv("TIERING_NOTIFY_URLS", "json://127.0.0.1:1/nobody-listens")


def test_a_drill_leaves_a_page_and_signed_evidence_and_a_dead_notifier_hides_nothing(kit_in_environment: None) -> None:
    state: State[Any] = dr_drill(tier=1, incident=Incident.COMPLETE_OUTAGE, seed=4, return_state=True)
    assert (state.is_completed(), state.message) == (True, "Drill tier 1, complete_outage: passed")
    page = artifact("drill-tier-1-complete-outage")
    assert "GREEN: met" in page
    assert "json: NOT REACHED" in page
    assert [document["passed"] for _, document in cli_kit.history()] == [True]


def test_a_failed_drill_is_a_failed_run(
    world: DrillWorld, kit_in_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with copied_bucket(world) as bucket:
        client = world.stack.s3.client()
        records = client.list_objects_v2(Bucket=bucket, Prefix="catalogue/postgresql/")["Contents"]
        client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": record["Key"]} for record in records]})
        monkeypatch.setenv("TIERING_BACKUP_BUCKET", bucket)
        state: State[Any] = dr_drill(tier=1, incident=Incident.COMPLETE_OUTAGE, seed=4, return_state=True)
    assert state.is_failed()
    assert "DEFECT missing_backup" in (state.message or "")
    assert "RED: not recovered" in artifact("drill-tier-1-complete-outage")


@pytest.mark.parametrize("is_approved", [False, True])
def test_a_recovery_waits_for_a_person_and_writes_nothing_before(
    kit_in_environment: None, tmp_path: Path, is_approved: bool
) -> None:
    place = Path(tempfile.mkdtemp(prefix="tiering-place-")) / "data"
    place.mkdir()
    (place / "PG_VERSION").write_text("18\n")
    ended: list[State[Any]] = []

    def run() -> None:
        ended.append(recover(to="latest", into={"postgresql": str(place)}, return_state=True))

    # Which server Prefect talks to is known by the context, which a thread does not inherit.
    thread = threading.Thread(target=copy_context().run, args=(run,), daemon=True)
    thread.start()
    run_id = None
    with get_client(sync_client=True) as client:

        def paused() -> bool:
            nonlocal run_id
            body = {"flow_runs": {"state": {"type": {"any_": ["PAUSED"]}}}}
            found = client.request("POST", "/flow_runs/filter", json=body).json()
            run_id = found[0]["id"] if found else None
            return bool(found)

        wait_until(paused)
    assert [file.name for file in place.iterdir()] == ["PG_VERSION"], "written before it was approved"
    phrase = artifact_phrase(str(run_id)) if is_approved else "yes"
    resume_flow_run(run_id, run_input={"approve": True, "approved_by": "Ada", "confirm": phrase})
    thread.join(timeout=120)
    assert ended
    kept = list(place.parent.glob("data.before-*"))
    if is_approved:
        assert ended[0].is_completed(), ended[0].message
        assert (place / "recovery.signal").exists()
        assert [file.name for file in kept[0].iterdir()] == ["PG_VERSION"]
    else:
        assert ended[0].is_cancelled()
        assert [file.name for file in place.iterdir()] == ["PG_VERSION"]


def artifact_phrase(run_id: str) -> str:
    """Read the words to approve with off the form, as a person does."""
    with get_client(sync_client=True) as client:
        found = client.request("POST", f"/flow_runs/{run_id}/input/filter", json={"prefix": "", "limit": 20}).json()
    text = next(item["value"] for item in found if "overwrite" in item["value"])
    return text.split("To approve, write: `")[1].split("`")[0]
