"""The audit chain on a real server: every writer is in it, and whoever breaks it is found out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

import infra.sql
from tests.ops.world import NOW, World, days_ago, open_world
from tiering import errors
from tiering.ops.audit import check_chain, note_head
from tiering.settings import Settings
from tiering.stores.ledger import audit
from tiering.stores.postgres import execute, fetch, fetch_one

WRITER = """
import sys, psycopg2
connection = psycopg2.connect(sys.stdin.readline().strip())
print("ready", flush=True)
number = 0
while True:
    with connection, connection.cursor() as cursor:
        values = "('killed', 'write', '%d')" % number
        cursor.execute("INSERT INTO tiering.audit (actor, action, dataset) VALUES " + values)
    number += 1
    print(number, flush=True)
"""


@pytest.fixture
def world(fresh_settings: Settings) -> Iterator[World]:
    with open_world(fresh_settings) as opened:
        write(opened, 6)
        yield opened


def write(world: World, count: int, actor: str = "test") -> None:
    for number in range(count):
        with world.stores.warm.transaction("write", "audit") as connection:
            audit(connection, actor, "look", "market_bars", NOW, {"number": number, "text": 'ü "quoted" \\'})


def tamper(world: World, *statements: str) -> None:
    """Do what only a superuser can: change rows with every trigger off."""
    with world.stores.warm.transaction("tamper", "audit") as connection:
        execute(connection, "SET LOCAL session_replication_role = replica")
        for statement in statements:
            execute(connection, statement)


def found(world: World) -> list[str]:
    return [finding.subject for finding in check_chain(world.stores)]


def test_moves_are_in_the_chain_and_it_holds(world: World) -> None:
    for days in (30, 31, 900):
        world.insert_day(days_ago(days))
    world.run()
    world.run()
    with world.stores.warm.transaction("count", "audit") as connection:
        rows = fetch_one(
            connection,
            "SELECT count(*), count(position) FROM tiering.audit LEFT JOIN tiering.audit_chain USING (audit_id)",
        )
    assert rows is not None
    assert rows[0] == rows[1] > 6
    assert note_head(world.stores, NOW) == note_head(world.stores, NOW)
    assert found(world) == []


def test_an_edited_row(world: World) -> None:
    tamper(world, "UPDATE tiering.audit SET actor = 'nobody' WHERE audit_id = 3")
    assert found(world)[0] == "audit row 3"


def test_a_row_deleted_in_the_middle(world: World) -> None:
    tamper(world, "DELETE FROM tiering.audit WHERE audit_id = 3")
    assert found(world) == ["audit row 3"]
    tamper(world, "DELETE FROM tiering.audit_chain WHERE audit_id = 3")
    assert found(world)[0] == "audit link 3"


def test_two_swapped_rows(world: World) -> None:
    tamper(
        world,
        """UPDATE tiering.audit SET details = CASE audit_id WHEN 3 THEN (SELECT details FROM tiering.audit WHERE
           audit_id = 4) ELSE (SELECT details FROM tiering.audit WHERE audit_id = 3) END WHERE audit_id IN (3, 4)""",
    )
    assert found(world)[0] == "audit row 3"


def test_a_row_put_in_behind_the_triggers_back(world: World) -> None:
    tamper(world, "INSERT INTO tiering.audit (actor, action, dataset) VALUES ('nobody', 'look', 'x')")
    assert found(world) == ["audit row 8"]


def test_the_tail_cut_off_is_found_by_the_bucket(world: World) -> None:
    note_head(world.stores, NOW)
    write(world, 2)
    note_head(world.stores, NOW)
    tamper(world, "DELETE FROM tiering.audit WHERE audit_id > 5", "DELETE FROM tiering.audit_chain WHERE position > 5")
    assert found(world) == ["audit link 6"]
    write(world, 5)  # grown over the noted heads with other rows
    assert "rewritten" in check_chain(world.stores)[0].text


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tiering.audit SET actor = ''",
        "DELETE FROM tiering.audit",
        "TRUNCATE tiering.audit",
        "UPDATE tiering.audit_chain SET hash = ''",
        "DELETE FROM tiering.audit_chain",
        "TRUNCATE tiering.audit_chain",
        "INSERT INTO tiering.audit_chain VALUES (99, 99, '')",
    ],
)
def test_nobody_changes_trail_or_chain_by_statement(world: World, statement: str) -> None:
    with pytest.raises(errors.AccessDenied), world.stores.warm.transaction("try", "audit") as connection:
        execute(connection, statement)
    assert found(world) == []


def test_eight_writers_at_once_make_one_chain(world: World) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: write(world, 40, f"writer {name}"), range(8)))
    with world.stores.warm.transaction("count", "audit") as connection:
        assert fetch(connection, "SELECT count(*), max(position) FROM tiering.audit_chain") == [(327, 327)]
    assert found(world) == []


def test_writers_that_hold_other_locks_do_not_meet_in_a_deadlock(world: World) -> None:
    """Commits that hold the publish lock or the hold table, as export and expire do, in either order."""
    publish = "SELECT pg_advisory_xact_lock(hashtextextended('tiering.publish.market_bars', 0))"
    share = "LOCK TABLE tiering.hold IN SHARE MODE"

    def many(statements: tuple[str, ...]) -> None:
        for _ in range(25):
            with world.stores.warm.transaction("write", "audit", lock_timeout_ms=20_000) as connection:
                audit(connection, "first", "look", "market_bars", None, {})
                for statement in statements:
                    execute(connection, statement)
                audit(connection, "last", "look", "market_bars", None, {})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(many, [(publish,), (share,), (publish, share), (publish, share)]))
    assert found(world) == []


def test_a_rolled_back_row_leaves_no_gap(world: World) -> None:
    with suppress(ZeroDivisionError), world.stores.warm.transaction("write", "audit") as connection:
        audit(connection, "test", "look", "market_bars", None, {})
        execute(connection, "SET CONSTRAINTS ALL IMMEDIATE")
        raise ZeroDivisionError
    write(world, 1)
    assert found(world) == []


def test_writers_killed_at_commit_leave_whole_links(world: World, fresh_settings: Settings) -> None:
    for _ in range(3):
        writers = []
        for _ in range(3):
            writer = subprocess.Popen(
                [sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert writer.stdin is not None
            writer.stdin.write(fresh_settings.warm_pg_url.get_secret_value() + "\n")
            writer.stdin.flush()
            writers.append(writer)
        for writer in writers:
            assert writer.stdout is not None
            while writer.stdout.readline().strip() != "20":
                pass
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()
    write(world, 1)
    assert found(world) == []


def test_a_ledger_from_before_there_was_a_chain_is_adopted(world: World) -> None:
    tamper(
        world,
        "DROP TRIGGER audit_is_linked ON tiering.audit",
        "DROP TABLE tiering.audit_chain",
        "INSERT INTO tiering.audit (actor, action, dataset) VALUES ('old', 'look', 'x')",
    )
    done = threading.Barrier(2)

    def upgrade() -> None:
        done.wait()
        with world.stores.warm.transaction("install", "ledger") as connection:
            execute(connection, "SELECT pg_advisory_xact_lock(hashtextextended('tiering.install', 0))")
            execute(connection, infra.sql.read("ledger"))

    with ThreadPoolExecutor(2) as pool:
        for result in [pool.submit(upgrade), pool.submit(upgrade)]:
            result.result()
    write(world, 2)
    assert found(world) == []
    with world.stores.warm.transaction("count", "audit") as connection:
        assert fetch(connection, "SELECT count(*), max(position) FROM tiering.audit_chain") == [(10, 10)]


def test_the_chain_does_not_depend_on_who_writes(world: World) -> None:
    """Time zone and date style of a session change the text of an instant, and must not change its hash."""
    with world.stores.warm.transaction("write", "audit") as connection:
        execute(connection, "SET LOCAL TimeZone = 'Asia/Shanghai'; SET LOCAL DateStyle = 'German'")
        audit(connection, "abroad", "look", "market_bars", days_ago(3), {"n": 1.5})
    assert found(world) == []
