"""Faults that have a name: each is told as a clear error with operation, subject and remedy, and loses nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pydantic import SecretStr

from infra.local import Stack
from tests.fakes import Tripwire, wired
from tests.ops.world import World, days_ago, open_world
from tests.stores.faulty_proxy import Fault, FaultyProxy, http_answer
from tiering import errors
from tiering.model import State, Transition
from tiering.ops import install, lifecycle
from tiering.settings import Settings
from tiering.stores.opening import Stores, open_stores
from tiering.stores.postgres import execute


@pytest.fixture
def world(fresh_settings: Settings) -> Iterator[World]:
    with open_world(fresh_settings) as opened:
        yield opened


def with_settings(world: World, settings: Settings, **changed: object) -> AbstractContextManager[Stores]:
    """Open the same world's stores with some settings changed."""
    return open_stores(settings.model_copy(update=changed), world.stores.policies)


def demand_clear(error: errors.TieringError, *words: str) -> None:
    """An error is clear when it names what was done, to what, and what to do next; and shows no password."""
    text = str(error)
    assert error.operation
    assert error.subject
    assert error.hint, text
    assert "Traceback" not in text
    for word in words:
        assert word in text, text


def begin(world: World, transition: Transition = Transition.HOT_TO_WARM) -> int:
    install.prepare_units(world.stores, world.dataset, world.now)
    plan = lifecycle.plan_dataset(world.stores, world.dataset, world.now, [transition])
    (move_id,) = lifecycle.begin_moves(world.stores, plan)
    return move_id


def begin_cold(world: World) -> tuple[int, list[tuple[object, ...]]]:
    """Bring one old unit to warm and begin its way to the lake."""
    world.insert_day(days_ago(800))
    world.insert_day(days_ago(0))
    world.run(Transition.HOT_TO_WARM)
    return begin(world, Transition.WARM_TO_COLD), world.rows()


# --- servers that cannot be reached or refuse -------------------------------------------------------------------


def test_postgres_that_is_not_there(world: World, fresh_settings: Settings) -> None:
    nobody = SecretStr("postgresql://tiering:very-secret@127.0.0.1:1/trading")
    with (
        with_settings(world, fresh_settings, hot_pg_url=nobody, warm_pg_url=nobody) as stores,
        pytest.raises(errors.StoreUnavailable) as caught,
    ):
        lifecycle.plan_dataset(stores, world.dataset, world.now)
    demand_clear(caught.value, "market_bars", "stack status")
    assert "very-secret" not in str(caught.value)


def test_a_wrong_password_of_postgres(world: World, fresh_settings: Settings) -> None:
    right = fresh_settings.hot_pg_url.get_secret_value()
    head, _, tail = right.partition("@")
    wrong = SecretStr(f"{head.rpartition(':')[0]}:very-secret@{tail}")
    with (
        with_settings(world, fresh_settings, hot_pg_url=wrong, warm_pg_url=wrong) as stores,
        pytest.raises(errors.AccessDenied) as caught,
    ):
        lifecycle.plan_dataset(stores, world.dataset, world.now)
    demand_clear(caught.value, "PG_URL")
    assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"s3_url": "http://127.0.0.1:1"}, errors.StoreUnavailable),
        ({"s3_secret_key": SecretStr("very-secret")}, errors.AccessDenied),
    ],
)
def test_an_object_store_that_is_away_or_refuses(
    world: World, fresh_settings: Settings, changed: dict[str, object], error: type[errors.TieringError]
) -> None:
    move_id, rows = begin_cold(world)
    with with_settings(world, fresh_settings, **changed) as stores, pytest.raises(error) as caught:
        lifecycle.run_move(stores, move_id, world.now, "test")
    demand_clear(caught.value)
    assert "very-secret" not in str(caught.value)
    assert world.rows() == rows
    assert lifecycle.run_move(world.stores, move_id, world.now, "test").state is State.COMMITTED
    assert world.rows() == rows


# --- an object store that fails half way ------------------------------------------------------------------------


FULL = http_answer("507 Insufficient Storage", "QuotaExceeded", "bucket is full")
ILL = http_answer("500 Internal Server Error", "InternalError", "try later")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("up", 0, ILL), errors.StoreUnavailable),
        (Fault("up", 0, FULL), errors.StoreFull),
        (Fault("up", 300), errors.StoreUnavailable),
        # A PUT whose answer is lost is sent again and finds itself done: never a permanent failure.
        (Fault("down", 100), None),
    ],
    ids=["500", "full bucket", "cut on the way there", "cut on the way back"],
)
def test_an_object_store_that_fails_in_every_step_of_an_export(
    world: World, fresh_settings: Settings, fault: Fault, expected: type[errors.TieringError] | None
) -> None:
    move_id, rows = begin_cold(world)
    proxy = FaultyProxy(fresh_settings.s3_url)
    try:
        with with_settings(world, fresh_settings, s3_url=proxy.url) as stores:
            for step in (lifecycle.seal, lifecycle.check):
                step(stores, move_id, world.now, "test")
            for step in (lifecycle.copy, lifecycle.verify, lifecycle.commit):
                with proxy.fault(fault):
                    error = error_of(lambda step=step: step(stores, move_id, world.now, "test"))
                assert error or not expected, step
                if error:
                    demand_clear(error)
                if not expected:
                    assert error is None or isinstance(error, errors.TransientError), error
                if expected and step is lifecycle.copy:
                    assert isinstance(error, expected), error
                assert world.rows() == rows
                step(stores, move_id, world.now, "test")
    finally:
        proxy.close()
    assert lifecycle.receipt(world.stores, move_id).state is State.COMMITTED
    assert world.rows() == rows


def error_of(act: Callable[[], object]) -> errors.TieringError | None:
    """Return the error that an act ends with, None if it succeeds; any other exception is a bug."""
    try:
        act()
    except errors.TieringError as exc:
        return exc
    return None


# --- a source whose columns change ------------------------------------------------------------------------------


def change(world: World, statement: str) -> None:
    with world.stores.hot.transaction("drift", "market_bars") as connection:
        execute(connection, statement)


@pytest.mark.parametrize("mode", ["fresh_settings", "fresh_two_database_settings"])
def test_a_column_added_to_the_source_is_followed(mode: str, request: pytest.FixtureRequest) -> None:
    with open_world(request.getfixturevalue(mode)) as world:
        for days in (30, 800, 0):
            world.insert_day(days_ago(days))
        world.run(Transition.HOT_TO_WARM)
        world.run(Transition.WARM_TO_COLD)
        change(world, "ALTER TABLE hot.market_bars ADD COLUMN venue text")
        install.install_dataset(world.stores, world.dataset)
        change(
            world,
            f"INSERT INTO hot.market_bars VALUES ('V','US','1m','{days_ago(30)}',10,12,9,11,1,1,'test','XNYS'), "
            f"('V','US','1m','{days_ago(801)}',10,12,9,11,1,1,'test','XLON'), "
            # and one for a unit whose lake file is older than the column
            f"('W','US','1m','{days_ago(800)}',10,12,9,11,1,1,'test','XLON')",
        )
        for transition in (Transition.MERGE, Transition.HOT_TO_WARM, Transition.COMPRESS, Transition.WARM_TO_COLD):
            for receipt in world.run(transition):
                assert receipt.state is State.COMMITTED, receipt
        with world.stores.warm.transaction("read", "venue") as connection, connection.cursor() as cursor:
            cursor.execute("SELECT venue FROM live.market_bars WHERE symbol = 'V'")
            assert cursor.fetchall() == [("XNYS",)]
        assert {file.row_count for file in world.stores.lake.files("market_bars")} == {61, 1}


# --- two at once, and a server that restarts --------------------------------------------------------------------


def test_two_runs_at_once_share_the_moves_and_do_each_once(world: World) -> None:
    for day in range(30, 36):
        world.insert_day(days_ago(day))
    world.insert_day(days_ago(0))
    rows, problems = world.rows(), []

    def run(owner: str) -> None:
        try:
            install.prepare_units(world.stores, world.dataset, world.now)
            plan = lifecycle.plan_dataset(world.stores, world.dataset, world.now, [Transition.HOT_TO_WARM])
            for move_id in lifecycle.begin_moves(world.stores, plan):
                with suppress(errors.TransientError):  # the other run has this one
                    lifecycle.run_move(world.stores, move_id, world.now, owner)
        except Exception as exc:  # noqa: BLE001 - a thread's error must reach the test
            problems.append(exc)

    runs = [threading.Thread(target=run, args=(f"run {number}",)) for number in range(2)]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    assert problems == []
    world.run(Transition.HOT_TO_WARM)
    assert len(world.stores.ledger.units(world.dataset.name)) == 6
    assert world.rows() == rows


@pytest.fixture
def own_stack() -> Iterator[Stack]:
    """A PostgreSQL and an S3 of this test's own, to be killed."""
    with TemporaryDirectory(prefix="tiering-named-") as directory:
        Path(directory).chmod(0o711)
        with Stack(Path(directory) / "stack", services={"postgres", "s3"}) as stack:
            yield stack


def test_postgres_that_restarts_in_the_middle_of_a_step(own_stack: Stack) -> None:
    """Killed at the fourth store call of each step, and up again before the next: the step fails or goes on."""
    with open_world(own_stack.settings()) as world:
        move_id, rows = begin_cold(world)
        for step in (lifecycle.seal, lifecycle.check, lifecycle.copy, lifecycle.verify, lifecycle.commit):

            def crash() -> None:
                own_stack.kill("postgres")
                own_stack.restart("postgres")

            wire = Tripwire(crash)
            wire.arm(4)
            error = error_of(lambda step=step, wire=wire: step(wired(world.stores, wire), move_id, world.now, "test"))
            assert error is None or isinstance(error, errors.TransientError), error
            assert world.rows() == rows
            step(world.stores, move_id, world.now + timedelta(seconds=1), "test")
        assert lifecycle.receipt(world.stores, move_id).state is State.COMMITTED
        assert world.rows() == rows
