"""Object lock: what is under it can be neither destroyed nor replaced, and an erasure says until when."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from botocore.exceptions import ClientError

from tests.ops.erase_world import PERSON, People, open_people
from tests.ops.world import NOW, days_ago
from tiering import errors
from tiering.model import Tier
from tiering.ops.erase import erase
from tiering.ops.fsck import fsck
from tiering.ops.sweep import sweep
from tiering.plan.erase import ErasureRefused, Person
from tiering.plan.spans import due
from tiering.settings import Settings
from tiering.stores.records import UnitRecord

WHO = Person(PERSON)


@pytest.fixture
def people(fresh_settings: Settings) -> Iterator[People]:
    with open_people(fresh_settings, lock=True) as opened:
        for days in (0, 500):
            opened.insert(days_ago(days), 5, dataset="audit_log")
            opened.insert(days_ago(days), 5)
        opened.run()
        opened.run(opened.audit_log)
        yield opened


def cold(people: People) -> UnitRecord:
    return next(r for r in people.stores.ledger.units("audit_log") if r.tier is Tier.COLD)


def test_a_locked_object_can_be_neither_deleted_nor_overwritten(people: People) -> None:
    record, objects = cold(people), people.stores.objects
    key, client = people.stores.key(record.location), objects._client
    retention = people.audit_log.policy.retention
    assert retention is not None
    until = due(record.unit.end, retention)
    assert objects.locked_until(key) == until == datetime(2030, 2, 7, tzinfo=UTC)
    (version,) = objects.versions_of(key)
    with pytest.raises(errors.ObjectLocked):
        objects.delete([key])
    with pytest.raises(ClientError, match="AccessDenied|WORM|locked"):
        client.delete_object(
            Bucket=objects.bucket, Key=key, VersionId=version.version_id, BypassGovernanceRetention=True
        )
    with pytest.raises(errors.AlreadyExists):
        objects.put_new(key, io.BytesIO(b"x"), 1, "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881")
    with pytest.raises(ClientError):  # nor can its lock be shortened
        client.put_object_retention(
            Bucket=objects.bucket, Key=key, Retention={"Mode": "COMPLIANCE", "RetainUntilDate": NOW.replace(year=2027)}
        )
    assert fsck(people.stores, NOW, deep=True).is_clean


def test_a_superseded_locked_file_stays_until_its_date(people: People) -> None:
    old = cold(people)
    people.insert(days_ago(500), 9, dataset="audit_log")
    people.run(people.audit_log)
    assert cold(people).unit.generation == 2
    later = NOW.replace(year=2027)
    swept = sweep(people.stores, later, "test")
    assert [s.reason for s in swept if s.location == old.location] == ["kept: under object lock until 2030-02-07"]
    assert people.stores.objects.stat(people.stores.key(old.location)).size == old.size_bytes
    assert {f.code for f in fsck(people.stores, later).findings if not f.is_note} == set()


def test_a_bucket_without_locks_is_refused_for_locked_datasets(fresh_settings: Settings) -> None:
    plain = fresh_settings.model_copy(update={"lake_bucket": fresh_settings.backup_bucket})
    with open_people(plain, lock=True) as people:
        for days in (0, 500):
            people.insert(days_ago(days), 5, dataset="audit_log")
        people.run(people.audit_log, rounds=1)
        with pytest.raises(errors.PermanentError, match="object lock") as caught:
            people.run(people.audit_log, rounds=1)
        assert "TIERING_LAKE_BUCKET" in caught.value.hint
        assert {r.tier for r in people.stores.ledger.units("audit_log")} == {Tier.WARM}


def test_an_erasure_under_lock_is_refused_with_the_date(people: People) -> None:
    rows, before = people.persons_rows(), people.others()
    with pytest.raises(ErasureRefused, match="2030-02-07") as caught:
        erase(people.stores, WHO, "request 1", "test", NOW)
    assert [(o.dataset, o.until) for o in caught.value.obstacles] == [("audit_log", datetime(2030, 2, 7, tzinfo=UTC))]
    assert people.persons_rows() == rows
    certificate = erase(people.stores, WHO, "request 1", "test", NOW, except_locked=True)
    kept = [place for place in certificate["places"] if place["state"] == "KEPT"]
    assert [(place["place"], place["details"]["until"][:10]) for place in kept] == [
        (cold(people).location, "2030-02-07")
    ]
    assert {hit["place"] for hit in certificate["proof"]["hits"]} >= {cold(people).location}
    assert people.others() == before
    assert people.persons_rows() == 2  # of the locked unit
