"""One person out of every tier: nothing of them is left, nothing of anybody else is changed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.ops.erase_world import NEIGHBOUR, PERSON, People, fill, open_people
from tests.ops.world import NOW, days_ago
from tiering import errors
from tiering.model import Tier, Transition
from tiering.ops import lifecycle
from tiering.ops.audit import check_chain
from tiering.ops.erase import erase, look, verify
from tiering.ops.fsck import fsck
from tiering.plan.erase import ErasureRefused, Person
from tiering.settings import Settings
from tiering.stores import erasures
from tiering.stores.postgres import execute, fetch

WHO = Person(PERSON)


@pytest.fixture
def people(fresh_settings: Settings) -> Iterator[People]:
    with open_people(fresh_settings) as opened:
        yield opened


def test_one_of_many_is_erased_from_every_tier(people: People) -> None:
    fill(people)
    outlook = look(people.stores, WHO)
    schemas = {item.place.split(".")[0].split("/")[0] for item in outlook.found}
    assert schemas >= {"hot", "warm", "tier_trash", "s3:"}, outlook
    assert any(item.place.endswith("_packed") for item in outlook.found), outlook
    before = people.others()
    assert people.persons_rows() > 20

    certificate = erase(people.stores, WHO, "request 17", "test", NOW)

    assert people.persons_rows() == 0
    assert people.others() == before
    assert certificate["proof"]["hits"] == []
    assert certificate["complete"]
    assert look(people.stores, WHO).found == ()
    assert verify(people.stores, WHO).hits == ()
    assert verify(people.stores, Person(NEIGHBOUR)).hits != ()
    assert [f for f in fsck(people.stores, NOW, deep=True).findings if not f.is_note] == []
    assert PERSON not in str(certificate)
    people.run()
    people.run(people.audit_log)
    assert people.others() == before


def test_in_two_databases_too(fresh_two_database_settings: Settings) -> None:
    with open_people(fresh_two_database_settings) as people:
        fill(people)
        before = people.others()
        certificate = erase(people.stores, WHO, "request 17", "test", NOW)
        assert (people.persons_rows(), certificate["proof"]["hits"]) == (0, [])
        assert people.others() == before
        assert [f for f in fsck(people.stores, NOW, deep=True).findings if not f.is_note] == []


def test_a_person_that_nobody_knows_leaves_nothing_but_a_certificate(people: People) -> None:
    people.insert(days_ago(40))
    people.run()
    certificate = erase(people.stores, Person("user-none"), "request 18", "test", NOW)
    assert (certificate["places"], certificate["complete"]) == ([], True)
    assert check_chain(people.stores) == []


def test_the_only_person_of_a_unit(people: People) -> None:
    """A unit without rows is no unit any more; rows that come later are hot, and move again."""
    for days in (0, 40, 800):
        people.insert(days_ago(days), users=1)
    people.run()
    assert {r.tier for r in people.stores.ledger.units("user_activity")} == {Tier.WARM, Tier.COLD}
    certificate = erase(people.stores, WHO, "request 19", "test", NOW)
    assert certificate["complete"], certificate
    assert people.stores.ledger.units("user_activity") == []
    people.insert(days_ago(0), users=2)
    people.insert(days_ago(800), users=2)
    before = people.everybody()
    people.run()
    assert people.everybody() == before
    assert fsck(people.stores, NOW, deep=True).is_clean


def test_a_hold_refuses_before_anything_is_touched(people: People) -> None:
    fill(people)
    people.stores.ledger.place_hold("user_activity", days_ago(40), "case 9", "lawyer")
    rows = people.persons_rows()
    with pytest.raises(ErasureRefused, match="case 9") as caught:
        erase(people.stores, WHO, "request 20", "test", NOW)
    assert {o.begin for o in caught.value.obstacles} == {days_ago(40)}
    assert people.persons_rows() == rows

    before = people.others()
    certificate = erase(people.stores, WHO, "request 20", "test", NOW, except_locked=True)
    assert not certificate["complete"]
    assert {p["begin"][:10] for p in certificate["places"] if p["state"] == "KEPT"} == {days_ago(40).date().isoformat()}
    assert people.persons_rows() > 0
    assert people.others() == before
    people.stores.ledger.lift_hold("user_activity", days_ago(40), "closed", "lawyer")
    assert erase(people.stores, WHO, "request 20", "test", NOW)["complete"]
    assert (people.persons_rows(), people.others()) == (0, before)


def test_moves_that_stand_half_way_are_made_again_without_the_person(people: People) -> None:
    fill(people)
    people.insert(days_ago(50))
    people.insert(days_ago(900))
    ids = people.world(people.activity).begin(Transition.HOT_TO_WARM, Transition.MERGE)
    for move_id in ids:
        lifecycle.seal(people.stores, move_id, NOW, "half")
        lifecycle.check(people.stores, move_id, NOW, "half")
        lifecycle.copy(people.stores, move_id, NOW, "half")
        lifecycle.verify(people.stores, move_id, NOW, "half")
    before = people.others()
    certificate = erase(people.stores, WHO, "request 21", "test", NOW)
    assert certificate["complete"], certificate["proof"]
    for move_id in ids:
        assert lifecycle.run_move(people.stores, move_id, NOW, "half").state == "COMMITTED"
    assert (people.persons_rows(), people.others()) == (0, before)
    people.run()
    assert (people.persons_rows(), people.others()) == (0, before)
    assert fsck(people.stores, NOW, deep=True).is_clean


def test_a_unit_that_another_run_moves_is_waited_for(people: People) -> None:
    people.insert(days_ago(0))
    people.insert(days_ago(40))
    (move_id,) = people.world(people.activity).begin(Transition.HOT_TO_WARM)
    lifecycle.seal(people.stores, move_id, NOW, "other")
    with people.stores.ledger.lease(move_id, "other"), pytest.raises(errors.LeaseHeld, match="other"):
        erase(people.stores, WHO, "request 22", "test", NOW, wait_seconds=0.5)
    assert erase(people.stores, WHO, "request 22", "test", NOW)["complete"]


def test_the_ledger_does_not_say_who(people: People) -> None:
    people.insert(days_ago(40))
    people.run()
    erase(people.stores, WHO, "request 23", "test", NOW)
    with people.stores.warm.transaction("read", "erasures") as connection:
        rows = fetch(connection, "SELECT * FROM tiering.erasure") + fetch(connection, "SELECT * FROM tiering.audit")
        rows += fetch(connection, "SELECT * FROM tiering.erasure_place")
    assert PERSON not in str(rows)
    assert check_chain(people.stores) == []


def test_a_short_name_is_no_part_of_another(people: People) -> None:
    people.insert(days_ago(0))
    people.insert(days_ago(40))
    people.insert(days_ago(800))
    for days in (0, 40, 800):
        with people.stores.hot.transaction("insert", "short") as connection:
            for who in ("12", "123", "412"):
                execute(
                    connection,
                    """INSERT INTO hot.user_activity (user_id, activity_id, ts, action, details)
                       VALUES (%s, 'x', %s, 'view', jsonb_build_object('n', 12))""",
                    (who, days_ago(days)),
                )
    people.run()
    certificate = erase(people.stores, Person("12"), "request 24", "test", NOW)
    assert certificate["complete"], certificate["proof"]
    left = {row[0] for row in people.world(people.activity).rows()}
    assert {"123", "412"} < left
    assert "12" not in left


def test_only_one_erasure_at_a_time(people: People) -> None:
    with erasures.alone(people.stores.warm), pytest.raises(errors.LeaseHeld):
        erase(people.stores, WHO, "request 25", "test", NOW)


def test_rows_that_come_during_an_erasure_are_left_to_the_next(people: People) -> None:
    for days in (0, 40, 800):
        people.insert(days_ago(days), users=20)
    people.run()
    stop, written = threading.Event(), []

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with people.stores.hot.transaction("insert", "meanwhile") as connection:
                for who in (PERSON, "user-8"):
                    execute(
                        connection,
                        "INSERT INTO hot.user_activity (user_id, activity_id, ts, action) VALUES (%s, %s, %s, 'late')",
                        (who, f"m{number}", days_ago((0, 40, 800)[number % 3])),
                    )
            written.append(number)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        try:
            erase(people.stores, WHO, "request 26", "test", NOW)
        finally:
            stop.set()
        writer.result()
    assert written
    people.run()
    certificate = erase(people.stores, WHO, "request 26", "test", NOW)
    assert certificate["proof"]["hits"] == []
    assert certificate["complete"]
    assert people.persons_rows() == 0
    others = people.others()
    assert sum(f"m{n}" in row for n in written for row in others) == len(written)
