"""Plans as documents: making one writes nothing, a stale one is refused, and applying one twice is as once."""

from __future__ import annotations

import json
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest
from psycopg2 import sql
from pydantic import SecretStr

from infra.local import Stack
from tests.ops.world import NOW, World, days_ago, open_world
from tiering import errors
from tiering.model import State, Tier, Transition
from tiering.ops import install, lifecycle, plans
from tiering.settings import Settings
from tiering.stores.opening import open_stores
from tiering.stores.postgres import execute, fetch, fetch_one

OWNER = "tests"


@pytest.fixture
def world(fresh_settings: Settings) -> Iterator[World]:
    """One unit in each tier, one with late rows, and three that are due."""
    with open_world(fresh_settings) as found:
        for days in (30, 31, 800, 0):
            found.insert_day(days_ago(days))
        found.run(Transition.HOT_TO_WARM)
        found.insert_day(days_ago(30), symbols=1, minutes=3, source="late")
        for days in (20, 21):
            found.insert_day(days_ago(days))
        install.prepare_units(found.stores, found.dataset, NOW)
        yield found


def sealed(world: World, **changed: Any) -> dict[str, Any]:
    made = plans.make(world.stores, [world.dataset], NOW, **changed)
    return plans.sealed(made, world.stores.policies.version)


def resealed(document: dict[str, Any], **changed: Any) -> dict[str, Any]:
    content = {key: value for key, value in (document | changed).items() if key != "sha256"}
    return content | {"sha256": plans._digest(content)}


def moved(world: World) -> list[tuple[Any, ...]]:
    """Everything in the ledger, row versions and all."""
    with world.stores.warm.transaction("look", "ledger", read_only=True) as connection:
        tables = ("move", "unit", "trash", "audit", "hold")
        found = [fetch(connection, f"SELECT xmin::text, ctid::text, t::text FROM tiering.{t} t") for t in tables]
        return [row for rows in found for row in sorted(rows)]


def objects(world: World) -> list[str]:
    return sorted(str(stat) for stat in world.stores.objects.list(""))


def log_position(world: World) -> str:
    with world.stores.warm.transaction("look", "log", read_only=True) as connection:
        row = fetch_one(connection, "SELECT pg_current_wal_insert_lsn()")
    return str(row[0]) if row else ""


def demand_no_log(world: World, act: Callable[[], object]) -> None:
    """The write-ahead log stands still over `act`. The server's own housekeeping writes too: once in a few is proof."""
    for _ in range(8):
        before = log_position(world)
        act()
        if log_position(world) == before:
            return
    raise AssertionError("each of 8 runs wrote to the write-ahead log")


@contextmanager
def onlooker(stack: Stack, settings: Settings) -> Iterator[Settings]:
    """Settings whose user may only read, in sessions that the server keeps read-only."""
    name, word = f"onlooker_{secrets.token_hex(4)}", secrets.token_hex(8)
    parts = urlsplit(settings.warm_pg_url.get_secret_value())
    with psycopg2.connect(parts.geturl()) as connection, connection.cursor() as cursor:
        role = sql.Identifier(name)
        cursor.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD %s").format(role), (word,))
        for schema in ("hot", "warm", "tiering", "tier_trash", "live"):
            place = sql.Identifier(schema)
            cursor.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(place, role))
            cursor.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA {} TO {}").format(place, role))
    connection.close()
    url = parts._replace(
        netloc=f"{name}:{word}@{parts.hostname}:{parts.port}", query="options=-c%20default_transaction_read_only%3Don"
    ).geturl()
    yield settings.model_copy(update={"hot_pg_url": SecretStr(url), "warm_pg_url": SecretStr(url)})
    connection = psycopg2.connect(parts.geturl())
    with connection, connection.cursor() as cursor:
        cursor.execute(sql.SQL("DROP OWNED BY {}").format(role))
        cursor.execute(sql.SQL("DROP ROLE {}").format(role))
    connection.close()


def test_planning_works_in_a_session_that_cannot_write_and_writes_nothing(
    world: World, stack: Stack, fresh_settings: Settings, tmp_path: Path
) -> None:
    before, things = moved(world), objects(world)
    with onlooker(stack, fresh_settings) as settings, open_stores(settings, world.stores.policies) as stores:
        with pytest.raises(errors.AccessDenied), stores.warm.transaction("write", "something") as connection:
            execute(connection, "CREATE TEMPORARY TABLE scratch (x int)")

        def act() -> None:
            made = plans.make(stores, [world.dataset], NOW)
            assert {move.transition for move in made.plans[0].moves} == {
                Transition.HOT_TO_WARM, Transition.MERGE, Transition.COMPRESS, Transition.WARM_TO_COLD,
            }  # fmt: skip
            plans.write(plans.sealed(made, stores.policies.version), tmp_path / "plan.json")
            assert plans.notes_of(stores, world.dataset) == ()

        demand_no_log(world, act)
    assert (moved(world), objects(world)) == (before, things)


def test_a_sealed_plan_is_private_complete_and_read_back(world: World, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    document = sealed(world)
    plans.write(document, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]
    assert plans.read(path) == json.loads(json.dumps(document))
    assert document["policy_version"] == world.stores.policies.version
    assert {row["transition"] for row in document["moves"]} == {"hot-to-warm", "merge", "compress", "warm-to-cold"}
    for row in document["moves"]:
        assert row["estimate"]["seconds"] > 0
        assert row["location"]
    with pytest.raises(errors.PermanentError, match="No such file"):
        plans.write(document, tmp_path / "nowhere" / "plan.json")


def test_an_applied_plan_moves_exactly_its_units_and_again_nothing(world: World) -> None:
    document, rows = sealed(world), world.rows()
    steps = {(row["begin"], row["transition"]) for row in document["moves"]}
    told: list[tuple[str, int, int]] = []
    applied = plans.apply(world.stores, document, NOW, OWNER, lambda *news: told.append(news))
    assert {(r.unit.begin.isoformat(), str(r.transition)) for r in applied.receipts} == steps
    assert {receipt.state for receipt in applied.receipts} == {State.COMMITTED}
    assert (applied.done_before, applied.problems) == (0, {})
    assert [news[1:] for news in told] == [(number + 1, len(steps)) for number in range(len(steps))]
    assert world.rows() == rows

    before, things = moved(world), objects(world)
    for later in (NOW, NOW + timedelta(days=3)):
        again = plans.apply(world.stores, document, later, OWNER)
        assert (again.done_before, again.receipts, again.problems) == (len(steps), (), {})
    assert (moved(world), objects(world)) == (before, things)
    demand_no_log(world, lambda: plans.apply(world.stores, document, NOW, OWNER))


def test_what_was_done_meanwhile_is_left_alone_and_the_rest_goes_on(world: World) -> None:
    document = sealed(world)
    world.run(Transition.HOT_TO_WARM)  # another scheduler was quicker with some
    begun = world.begin(Transition.MERGE)  # … and died on the way with another
    lifecycle.seal(world.stores, begun[0], NOW, "a run that died")
    applied = plans.apply(world.stores, document, NOW, OWNER)
    assert applied.done_before == 2
    assert {receipt.state for receipt in applied.receipts} == {State.COMMITTED}
    assert len(applied.receipts) == len(document["moves"]) - 2


def test_a_move_that_was_open_when_the_plan_was_made_is_finished_once(world: World) -> None:
    (first, *_) = world.begin(Transition.HOT_TO_WARM)
    lifecycle.seal(world.stores, first, NOW, "a run that died")
    document = sealed(world)
    assert "SEALED" in {row["open_at"] for row in document["moves"]}
    lifecycle.run_move(world.stores, first, NOW, "the run that carried it on")
    assert plans.apply(world.stores, document, NOW, OWNER).done_before == 1
    assert plans.apply(world.stores, document, NOW, OWNER).receipts == ()


def test_two_people_applying_one_plan_do_each_move_once(world: World) -> None:
    document, rows = sealed(world), world.rows()
    ended: list[object] = []

    def act() -> None:
        try:
            ended.append(plans.apply(world.stores, document, NOW, OWNER))
        except errors.TieringError as exc:
            ended.append(exc)

    people = [threading.Thread(target=act) for _ in range(2)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert len(ended) == 2
    plans_left = plans.apply(world.stores, document, NOW, OWNER)
    assert plans_left.problems == {}
    assert world.rows() == rows
    with world.stores.warm.transaction("look", "audit", read_only=True) as connection:
        counted = fetch(connection, "SELECT begin_at, action, count(*) FROM tiering.audit GROUP BY 1, 2")
    assert {count for *_, count in counted} == {1}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda text: text.replace("hot-to-warm", "expire", 1), "altered"),
        (lambda text: text.replace('"row_count": ', '"row_count": 1', 1), "altered"),
        (lambda text: text[:-20], "not a JSON document"),
        (lambda text: "[]", "not a plan"),
        (lambda text: text.replace('"format": 1', '"format": 9'), "format 9"),
    ],
)
def test_an_altered_file_is_refused(world: World, tmp_path: Path, spoil: Callable[[str], str], told: str) -> None:
    path = tmp_path / "plan.json"
    plans.write(sealed(world), path)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(errors.PermanentError, match=told) as caught:
        plans.read(path)
    assert "tiering plan --out" in caught.value.hint


def hold(world: World) -> None:
    world.stores.ledger.place_hold(world.dataset.name, days_ago(4000), "case 12", "test")


def merge_first(world: World) -> None:
    world.insert_day(days_ago(800), symbols=1, minutes=1, source="later")


def empty_a_unit(world: World) -> None:
    with world.stores.hot.transaction("truncate", "a unit") as connection:
        execute(connection, f"TRUNCATE hot.market_bars_{days_ago(20):%Y%m%d}")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (merge_first, r"merge of generation 2 comes first"),
        (empty_a_unit, r"has no rows any more"),
    ],
)
def test_a_plan_whose_units_are_elsewhere_is_refused_and_changes_nothing(
    world: World, change: Callable[[World], None], told: str
) -> None:
    document = sealed(world)
    change(world)
    before = moved(world)
    with pytest.raises(errors.PermanentError, match=told) as caught:
        plans.apply(world.stores, document, NOW, OWNER)
    assert "1 of its units changed" in str(caught.value)
    assert moved(world) == before


def test_a_held_unit_a_leased_one_and_another_generation_refuse_the_plan(world: World) -> None:
    world.insert_day(days_ago(4000))
    world.run(Transition.HOT_TO_WARM)
    document = sealed(world, transitions=[Transition.EXPIRE])
    assert [row["transition"] for row in document["moves"]] == ["expire"]
    hold(world)
    with pytest.raises(errors.PermanentError, match="case 12|warm-to-cold"):
        plans.apply(world.stores, document, NOW, OWNER)
    world.stores.ledger.lift_hold(world.dataset.name, days_ago(4000), "closed", "test")

    document = sealed(world)
    (merge,) = world.begin(Transition.MERGE)
    with (
        world.stores.ledger.lease(merge, "run 7"),
        pytest.raises(errors.PermanentError, match="leased: run 7 works on it now"),
    ):
        plans.apply(world.stores, document, NOW, OWNER)
    lifecycle.run_move(world.stores, merge, NOW, OWNER)
    world.insert_day(days_ago(30), symbols=1, minutes=5, source="later still")
    world.run(Transition.MERGE)
    stale = resealed(document, ledger_position=10**6)  # as if those merges had been before it
    with pytest.raises(errors.PermanentError, match="generation 1 is 3 now"):
        plans.apply(world.stores, stale, NOW, OWNER)


def test_an_old_plan_one_of_the_future_and_one_of_another_policy_are_refused(world: World) -> None:
    document, before = sealed(world), moved(world)
    with pytest.raises(errors.PermanentError, match="more than 24 h old"):
        plans.apply(world.stores, document, NOW + timedelta(hours=24, seconds=1), OWNER)
    with pytest.raises(errors.PermanentError, match="which is after"):
        plans.apply(world.stores, document, NOW - timedelta(seconds=1), OWNER)
    other = replace(world.stores, policies=replace(world.stores.policies, version="another"))
    with pytest.raises(errors.PermanentError, match="policy file is another one"):
        plans.apply(other, document, NOW, OWNER)
    assert moved(world) == before


def test_a_lease_is_seen_while_it_is_held_and_not_longer(world: World) -> None:
    (merge,) = world.begin(Transition.MERGE)

    def owner() -> str:
        homes, _ = lifecycle.survey(world.stores, world.dataset)
        return next(home.lease_owner for home in homes if home.unit.begin == days_ago(30))

    assert owner() == ""
    with world.stores.ledger.lease(merge, "run 7"):
        assert owner() == "run 7"
        (stay,) = [
            stay
            for stay in lifecycle.plan_dataset(world.stores, world.dataset, NOW).stays
            if stay.unit.begin == days_ago(30)
        ]
        assert [reason.code for reason in stay.reasons] == ["leased"]
    assert owner() == "", "the ledger remembers the owner, but nobody holds the lock"


def test_rows_that_cut_into_a_partition_of_another_length_say_so_and_are_not_planned(world: World) -> None:
    begin = days_ago(100)
    with world.stores.hot.transaction("create", "a partition") as connection:
        execute(
            connection,
            "CREATE TABLE hot.market_bars_own PARTITION OF hot.market_bars FOR VALUES FROM (%s) TO (%s)",
            (begin + timedelta(hours=12), begin + timedelta(days=3)),
        )
    world.insert_day(begin)  # its rows of the morning fall beside the partition
    world.insert_day(begin + timedelta(days=1))
    install.prepare_units(world.stores, world.dataset, NOW)
    plan = lifecycle.plan_dataset(world.stores, world.dataset, NOW)
    (stay,) = [stay for stay in plan.stays if stay.unit.begin == begin]
    assert (stay.tier, stay.reasons[0].code) == (Tier.HOT, "overlap")
    applied = plans.apply(world.stores, sealed(world), NOW, OWNER)
    assert applied.problems == {}

    # As docs/runbooks/stuck-unit.md has it: room for the rows, of whatever length is free.
    rows, noon = world.rows(), begin + timedelta(hours=12)
    with world.stores.hot.transaction("make room", "by hand") as connection:
        for statement in (
            "LOCK TABLE hot.market_bars, hot.market_bars_late IN ACCESS EXCLUSIVE MODE",
            "CREATE TABLE hot.market_bars_gap (LIKE hot.market_bars INCLUDING ALL)",
            """WITH taken AS (DELETE FROM hot.market_bars_late WHERE ts >= %(begin)s AND ts < %(end)s RETURNING *)
               INSERT INTO hot.market_bars_gap SELECT * FROM taken""",
            "ALTER TABLE hot.market_bars ATTACH PARTITION hot.market_bars_gap FOR VALUES FROM (%(begin)s) TO (%(end)s)",
        ):
            execute(connection, statement, {"begin": begin, "end": noon})
    (receipt,) = world.run(Transition.HOT_TO_WARM)
    assert (receipt.unit.begin, receipt.unit.end, receipt.state) == (begin, noon, State.COMMITTED)
    assert world.rows() == rows


def test_rows_outside_the_calendar_are_counted(world: World) -> None:
    with world.stores.hot.transaction("insert", "undated") as connection:
        execute(
            connection,
            """INSERT INTO hot.market_bars SELECT 'S', 'US', '1m', at, 1, 1, 1, 1, 1, 1, 'test'
               FROM unnest('{infinity,-infinity,9999-06-01}'::timestamptz[]) at""",
        )
    (note,) = plans.notes_of(world.stores, world.dataset)
    assert (note.code, note.text[:6]) == ("undated", "3 rows")
