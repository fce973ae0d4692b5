"""Files datasets: objects of a real bucket down the ladder of classes, while others write, delete and kill."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection

import pytest

import infra.sql
from tests.children import GO, Child
from tests.ops.file_world import POLICIES, Files
from tiering import errors
from tiering.model import State, StorageClass, Tier, Transition
from tiering.ops import lifecycle
from tiering.ops.install import install_schemas
from tiering.ops.sweep import sweep
from tiering.plan.policies import parse_policies
from tiering.plan.spans import unit_of
from tiering.settings import Settings
from tiering.stores.opening import open_stores


@pytest.fixture
def files(fresh_settings: Settings) -> Iterator[Files]:
    policies = parse_policies(POLICIES, "test")
    with open_stores(fresh_settings, policies) as stores:
        install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
        dataset = lifecycle.dataset_named(stores, "charts")
        yield Files(stores, dataset, unit_of(datetime.now(UTC), dataset.unit)[0])


def test_objects_go_down_the_ladder_and_keep_their_age(files: Files) -> None:
    for number in range(30):
        files.write(f"a{number}", b"x" * number, Metadata={"desk": "7"})
    assert files.plan(files.after(days=20)).moves == ()
    # Each run is later; the class is the one that is due by then, from the object's creation and not from its copy.
    steps = [
        (35, StorageClass.STANDARD_IA, Tier.WARM),
        (200, StorageClass.GLACIER_IR, Tier.COLD),
        (740, StorageClass.DEEP_ARCHIVE, Tier.COLD),
    ]
    for days, storage_class, tier in steps:
        (receipt,) = files.run(files.after(days=days))
        assert (receipt.transition, receipt.state, receipt.row_count) == (Transition.ARCHIVE, State.COMMITTED, 30)
        assert set(files.classes().values()) == {storage_class}
        (unit,) = files.stores.ledger.units("charts")
        assert (unit.tier, unit.storage_class, unit.unit.begin) == (tier, storage_class, files.today)
        assert {row.storage_class for row in files.rows()} == {storage_class}
        assert all(row.created_at < files.after(days=1) for row in files.rows())
        assert files.plan(files.after(days=days)).moves == (), "nothing is due twice"
    assert len(list(files.stores.files.versions("charts/"))) == 30
    assert [files.body(f"a{number}") for number in range(30)] == [b"x" * number for number in range(30)]
    assert files.stores.files._head("charts/a3")["Metadata"]["desk"] == "7"


def test_an_old_unit_goes_to_its_class_at_once(files: Files) -> None:
    files.write("a")
    files.run(files.after(days=800))
    assert files.classes() == {"a": "DEEP_ARCHIVE"}


def test_what_is_written_or_deleted_meanwhile_is_left_alone(files: Files) -> None:
    for name in ("over", "gone", "kept", "early"):
        files.write(name)
    at = files.after(days=40)
    (move_id,) = files.begin(at)
    files.write("early", b"written before the seal, today")
    lifecycle.seal(files.stores, move_id, at, "test")
    files.write("over", b"a new chart")
    files.stores.files._client.delete_object(Bucket=files.stores.files.bucket, Key="charts/gone")
    files.write("new", b"late")
    lifecycle.copy(files.stores, move_id, at, "test")
    lifecycle.verify(files.stores, move_id, at, "test")
    lifecycle.commit(files.stores, move_id, at, "test")
    assert files.classes() == {"early": "STANDARD_IA", "over": "STANDARD", "kept": "STANDARD_IA", "new": "STANDARD"}
    assert files.body("over") == b"a new chart"
    assert {row.key for row in files.rows()} == {"charts/early", "charts/kept"}
    # Both were created in the time of the unit: it moves again, for them.
    (receipt,) = files.run(at)
    assert receipt.row_count == 4
    assert set(files.classes().values()) == {"STANDARD_IA"}
    assert files.body("over") == b"a new chart"


def test_a_bucket_without_versions_is_refused(files: Files, fresh_settings: Settings) -> None:
    with open_stores(
        fresh_settings.model_copy(update={"files_bucket": fresh_settings.backup_bucket}), files.stores.policies
    ) as stores:
        other = replace(files, stores=stores)
        stores.files._client.put_object(Bucket=stores.files.bucket, Key="charts/x", Body=b"x")
        with pytest.raises(errors.PermanentError, match="Enable versioning"):
            other.run(files.after(days=40))


def test_expired_objects_go_with_the_sweep_and_not_before(files: Files) -> None:
    for name in ("a", "b", "over"):
        files.write(name)
    at = files.after(days=5 * 366)
    files.run(files.after(days=40))
    (receipt,) = files.run(at)
    assert receipt.transition is Transition.EXPIRE
    assert len(files.classes()) == 3, "the undo window"
    assert files.run(at) == []
    kept = files.write("over", b"new")
    assert sweep(files.stores, at, "test") == []
    later = at + timedelta(days=2)
    (swept,) = sweep(files.stores, later, "test", dry_run=True)
    assert swept.store == "files"
    assert len(files.classes()) == 3
    assert [s.store for s in sweep(files.stores, later, "test")] == ["files"]
    assert [v.version_id for v in files.stores.files.versions("charts/")] == [kept]
    assert files.body("over") == b"new"
    assert sweep(files.stores, later, "test") == []


def test_a_hold_keeps_objects_past_their_retention(files: Files) -> None:
    files.write("a")
    at = files.after(days=5 * 366)
    files.run(files.after(days=800))
    (move_id,) = files.begin(at)
    files.stores.ledger.place_hold("charts", files.today, "case 12", "counsel")
    with pytest.raises(errors.HeldError, match="case 12"):
        lifecycle.run_move(files.stores, move_id, at, "test")
    assert sweep(files.stores, at + timedelta(days=9), "test") == []
    assert files.classes() == {"a": "DEEP_ARCHIVE"}
    files.stores.ledger.lift_hold("charts", files.today, "closed", "counsel")
    files.run(at)
    files.stores.ledger.place_hold("charts", None, "case 13", "counsel")
    assert sweep(files.stores, at + timedelta(days=9), "test") == [], "a hold placed in the undo window"
    assert files.classes() == {"a": "DEEP_ARCHIVE"}


def carry_out(line: Connection, settings: Settings, move_id: int, at: datetime) -> None:
    """One move, in a process of its own."""
    with open_stores(settings, parse_policies(POLICIES, "test")) as stores:
        line.send(GO)
        lifecycle.run_move(stores, move_id, at, "child")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_killed_in_the_middle_the_next_run_finishes(files: Files, fresh_settings: Settings, share: float) -> None:
    count = 200
    for number in range(count):
        files.write(f"k{number}", b"%d" % number)
    at = files.after(days=40)
    (move_id,) = files.begin(at)
    child = Child(carry_out, fresh_settings, move_id, at)
    try:
        assert child.hear() == GO
        while sum(name != "STANDARD" for name in files.classes().values()) < share * count:
            assert child.process.is_alive(), "it was too fast to be killed in time"
    finally:
        child.kill()
    changed = sum(name != "STANDARD" for name in files.classes().values())
    print("killed at", files.stores.ledger.move(move_id).state, "with", changed, "changed")
    files.write("k7", b"overwritten between the runs")
    receipt = lifecycle.run_move(files.stores, move_id, at, "test")
    assert receipt.state is State.COMMITTED
    expected = {f"k{number}": b"%d" % number for number in range(count)} | {"k7": b"overwritten between the runs"}
    assert {name: files.body(name) for name in files.classes()} == expected
    classes = files.classes()
    assert classes.pop("k7") == "STANDARD"
    assert set(classes.values()) == {"STANDARD_IA"}
    versions = [v.key for v in files.stores.files.versions("charts/")]
    assert sorted(versions) == sorted([f"charts/k{n}" for n in range(count)] + ["charts/k7"] * (len(versions) - count))
    assert all(row.created_at < files.after(days=1) for row in files.rows())


def test_two_runs_at_once_change_everything_once(files: Files) -> None:
    for number in range(60):
        files.write(f"a{number}")
    at = files.after(days=40)
    outcomes: list[object] = []

    def run() -> None:
        for move_id in files.begin(at):
            try:
                outcomes.append(lifecycle.run_move(files.stores, move_id, at, "test").state)
            except errors.LeaseHeld as exc:
                outcomes.append(type(exc))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert State.COMMITTED in outcomes
    assert set(files.classes().values()) == {"STANDARD_IA"}
    assert len(list(files.stores.files.versions("charts/"))) == 60
