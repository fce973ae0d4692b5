"""Storage classes, restores, versions and locks: on SeaweedFS as far as it goes, on moto where it takes a Glacier."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from infra.local.moto import ACCESS_KEY, SECRET_KEY, Moto
from tests.stores.contract_objects import ObjectStoreContract, fetched, put
from tiering import errors
from tiering.settings import Settings
from tiering.stores.objects import S3Objects
from tiering.stores.objects_classes import COPIED_FROM
from tiering.stores.ports import RestoreState

LADDER = ("STANDARD_IA", "GLACIER_IR", "DEEP_ARCHIVE")


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    with Moto() as running:
        yield running


def on_moto(moto: Moto) -> S3Objects:
    return S3Objects(moto.url, "none", SecretStr(ACCESS_KEY), SecretStr(SECRET_KEY))


def on_seaweed(settings: Settings) -> S3Objects:
    return S3Objects(settings.s3_url, "none", settings.s3_access_key, settings.s3_secret_key, settings.s3_region)


def made(server: S3Objects, *, versioned: bool = False, lockable: bool = False) -> S3Objects:
    bucket = dataclasses.replace(server, bucket=f"classes-{uuid.uuid4().hex[:8]}")
    bucket.ensure_bucket(versioned=versioned, lockable=lockable)
    return bucket


@pytest.fixture(params=["seaweed", "moto"])
def server(request: pytest.FixtureRequest, settings: Settings) -> S3Objects:
    return on_seaweed(settings) if request.param == "seaweed" else on_moto(request.getfixturevalue("moto"))


@pytest.fixture(params=[False, True], ids=["unversioned", "versioned"])
def store(request: pytest.FixtureRequest, server: S3Objects) -> S3Objects:
    return made(server, versioned=request.param)


@pytest.fixture(scope="module")
def versioned_bucket(settings: Settings) -> S3Objects:
    return made(on_seaweed(settings), versioned=True)


class TestVersionedS3(ObjectStoreContract):
    """The contract of every object store, in a bucket that keeps versions."""

    @pytest.fixture
    def store(self, versioned_bucket: S3Objects) -> S3Objects:
        return versioned_bucket


def write(store: S3Objects, key: str, data: bytes, **options: object) -> str:
    """Write as an application does: over what is there."""
    answer = store._client.put_object(Bucket=store.bucket, Key=key, Body=data, **options)
    return str(answer.get("VersionId", ""))


def test_a_server_that_is_away_is_said_in_our_words() -> None:
    away = S3Objects("http://127.0.0.1:1", "none", SecretStr("key"), SecretStr("secret"))
    for ask in (away.is_versioned, away.is_lockable, lambda: away.request_restore("x", 1)):
        with pytest.raises(errors.StoreUnavailable):
            ask()


def test_a_change_of_class_keeps_all_else(store: S3Objects) -> None:
    data = b"picture" * 100_000
    kept = {"ContentType": "image/png", "CacheControl": "no-cache", "ContentDisposition": "inline"}
    sha256 = hashlib.sha256(data).hexdigest()
    write(store, "a/x", data, **kept, Metadata={"sha256": sha256, "owner": "desk 7"}, Tagging="team=quant&kind=chart")
    etag = store.stat("a/x").etag
    for name in LADDER:
        etag = store.change_class("a/x", name, etag).etag
        head = store._head("a/x")
        assert head["StorageClass"] == name
        assert {key: head[key] for key in kept} == kept
        assert {k: v for k, v in head["Metadata"].items() if k != COPIED_FROM} == {"sha256": sha256, "owner": "desk 7"}
        assert store.stat("a/x").sha256 == sha256
        assert [found.storage_class for found in store.list("a/")] == [name]
        assert len(list(store.versions("a/x"))) == 1, "no version is left behind"
        if name != "DEEP_ARCHIVE":
            assert fetched(store, "a/x") == data
            tags = store._client.get_object_tagging(Bucket=store.bucket, Key="a/x")["TagSet"]
            assert {(tag["Key"], tag["Value"]) for tag in tags} == {("team", "quant"), ("kind", "chart")}


def test_a_change_of_class_by_parts(store: S3Objects) -> None:
    """Above 5 GiB S3 copies by ranges; here every object is above the limit."""
    data = b"model" * 300_000
    write(store, "m", data, Metadata={"sha256": hashlib.sha256(data).hexdigest()}, ContentType="application/x-onnx",
          Tagging="team=quant")  # fmt: skip
    by_parts = dataclasses.replace(store, whole_copy_max=0)
    found = by_parts.change_class("m", "STANDARD_IA", store.stat("m").etag)
    assert (found.storage_class, found.size) == ("STANDARD_IA", len(data))
    head = store._head("m")
    assert head["ContentType"] == "application/x-onnx"
    assert store._client.get_object_tagging(Bucket=store.bucket, Key="m")["TagSet"] == [
        {"Key": "team", "Value": "quant"}
    ]
    assert fetched(store, "m") == data
    assert len(list(store.versions("m"))) == 1


def test_a_change_may_be_made_twice(store: S3Objects) -> None:
    put(store, "x", b"data")
    etag = store.stat("x").etag
    first = store.change_class("x", "STANDARD_IA", etag)
    again = store.change_class("x", "STANDARD_IA", etag)
    assert (again.etag, again.storage_class) == (first.etag, "STANDARD_IA")
    assert fetched(store, "x") == b"data"


def test_another_object_is_left_alone(store: S3Objects) -> None:
    put(store, "x", b"data")
    etag = store.stat("x").etag
    write(store, "x", b"other")
    with pytest.raises(errors.CommitConflict, match="x"):
        store.change_class("x", "STANDARD_IA", etag)
    assert store.stat("x").storage_class == "STANDARD"
    assert fetched(store, "x") == b"other"
    store.delete(["x"])
    with pytest.raises(errors.NotFound):
        store.change_class("x", "STANDARD_IA", etag)


def test_a_change_that_was_cut_off_is_finished_by_the_next(server: S3Objects) -> None:
    """Killed after the copy and before the source went: the copy says what it was made of."""
    store = made(server, versioned=True)
    put(store, "x", b"data")
    etag = store.stat("x").etag
    store.change_class("x", "STANDARD_IA", etag, keep_source=True)
    assert len(list(store.versions("x"))) == 2
    store.change_class("x", "STANDARD_IA", etag)
    assert len(list(store.versions("x"))) == 1
    assert fetched(store, "x") == b"data"
    assert store.finish_change("x").storage_class == "STANDARD_IA"


def test_a_copy_that_was_made_twice_goes_with_its_source(server: S3Objects) -> None:
    """As where the answer is lost, and the client asks again by itself."""
    store = made(server, versioned=True)
    put(store, "x", b"data")
    etag, head = store.stat("x").etag, store._head("x")
    for _ in range(2):
        store._copy_whole("x", head, "STANDARD_IA")
    assert len(list(store.versions("x"))) == 3
    assert store.change_class("x", "STANDARD_IA", etag).storage_class == "STANDARD_IA"
    assert len(list(store.versions("x"))) == 1
    assert fetched(store, "x") == b"data"


@pytest.mark.parametrize("finder", ["finish_change", "change_class"])
def test_of_what_was_overwritten_our_copy_goes(server: S3Objects, finder: str) -> None:
    """Somebody writes between copy and finish: what they wrote stays, and what was there before, once each."""
    store = made(server, versioned=True)
    put(store, "x", b"data")
    etag = store.stat("x").etag
    was = [version.version_id for version in store.versions_of("x")]
    store.change_class("x", "STANDARD_IA", etag, keep_source=True)
    new = write(store, "x", b"other")
    with pytest.raises(errors.CommitConflict, match="x"):
        store.finish_change("x", etag) if finder == "finish_change" else store.change_class("x", "STANDARD_IA", etag)
    assert [version.version_id for version in store.versions_of("x")] == [new, *was]
    assert fetched(store, "x") == b"other"


def test_an_overwrite_at_the_same_instant_is_what_counts(settings: Settings) -> None:
    """SeaweedFS looks at a copy's conditions without a lock, so some copies end up over a newer version."""
    store = made(on_seaweed(settings), versioned=True)
    outcomes: list[str] = []
    for number in range(60):
        key, new = f"k{number}", b"new%d" % number
        put(store, key, b"old" * 1000)
        etag, start = store.stat(key).etag, threading.Barrier(2)

        def change(key: str = key, etag: str = etag, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                store.change_class(key, "STANDARD_IA", etag, keep_source=True)
                outcomes.append("changed")
            except errors.CommitConflict:
                outcomes.append("overwritten")

        changer = threading.Thread(target=change)
        changer.start()
        start.wait()
        version = write(store, key, new)
        changer.join()
        try:
            store.finish_change(key, etag)
        except errors.CommitConflict:
            outcomes.append("came to light")
        assert fetched(store, key) == new
        left = [found.version_id for found in store.versions_of(key)]
        assert version in left
        assert len(left) <= 2, "what was there before, and nothing of ours"
    print({name: outcomes.count(name) for name in set(outcomes)})


def test_deep_archive_says_so_at_once_and_is_readable_once_restored(moto: Moto) -> None:
    store = made(on_moto(moto), versioned=True)
    put(store, "x", b"data")
    store.change_class("x", "DEEP_ARCHIVE", store.stat("x").etag)
    began = time.monotonic()
    for attempt in (lambda: fetched(store, "x"), lambda: store.open("x").read()):
        with pytest.raises(errors.InDeepArchive, match="no restore was asked for") as caught:
            attempt()
        assert (caught.value.key, caught.value.is_requested) == ("x", False)
        assert pickle.loads(pickle.dumps(caught.value)).key == "x"
    assert time.monotonic() - began < 5
    moto.restore_in_steps(20)
    assert {store.restore_status("x").state for _ in range(20)} == {RestoreState.NONE}
    assert store.request_restore("x", 3).state is RestoreState.REQUESTED
    assert store.request_restore("x", 3).state is RestoreState.REQUESTED
    with pytest.raises(errors.InDeepArchive, match="under way") as caught:
        fetched(store, "x")
    assert caught.value.is_requested
    states = [store.restore_status("x") for _ in range(20)]
    assert states[-1].state is RestoreState.AVAILABLE
    assert states[-1].until
    assert timedelta(days=2, hours=23) < states[-1].until - datetime.now(UTC) <= timedelta(days=3)
    assert fetched(store, "x") == b"data"
    assert store.stat("x").storage_class == "DEEP_ARCHIVE"


def test_what_is_in_deep_archive_cannot_change_its_class(moto: Moto) -> None:
    store = made(on_moto(moto))
    put(store, "x", b"data")
    etag = store.change_class("x", "DEEP_ARCHIVE", store.stat("x").etag).etag
    with pytest.raises(errors.InDeepArchive, match="x"):
        store.change_class("x", "STANDARD", etag)


def test_a_store_without_restores_has_everything_at_hand(settings: Settings) -> None:
    store = made(on_seaweed(settings))
    put(store, "x", b"data")
    store.change_class("x", "DEEP_ARCHIVE", store.stat("x").etag)
    assert store.request_restore("x", 1).state is RestoreState.AVAILABLE
    assert fetched(store, "x") == b"data"


# moto forgets the lock of an upload in parts, and refuses one on a copy.
def test_a_lock_keeps_every_version_until_its_date(settings: Settings) -> None:
    store = made(on_seaweed(settings), lockable=True)
    until = (datetime.now(UTC) + timedelta(seconds=4)).replace(microsecond=0)
    data = b"log"
    store.put_new("x", io.BytesIO(data), len(data), hashlib.sha256(data).hexdigest(), locked_until=until)
    put(store, "free", b"data")
    assert store.locked_until("x") == until
    assert store.locked_until("free") is None
    store.change_class("x", "STANDARD_IA", store.stat("x").etag)
    assert store.locked_until("x") == until, "the copy is under the same lock"
    assert len(list(store.versions("x"))) == 2, "and what it was made of stays"
    with pytest.raises(errors.ObjectLocked, match=f"{until:%Y-%m-%d %H:%M}Z") as caught:
        store.delete(["x", "free"])
    assert caught.value.until == until
    assert pickle.loads(pickle.dumps(caught.value)).until == until
    assert list(store.versions("free")) == [], "what was not locked is gone"
    assert fetched(store, "x") == data
    while datetime.now(UTC) <= until + timedelta(seconds=1):
        threading.Event().wait(0.2)
    store.delete(["x"])
    assert list(store.versions("x")) == []


def test_a_lock_on_an_object_that_goes_up_in_parts(settings: Settings) -> None:
    store = dataclasses.replace(made(on_seaweed(settings), lockable=True), whole_bytes_max=0)
    until = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)
    store.put_new("x", io.BytesIO(b"log"), 3, hashlib.sha256(b"log").hexdigest(), locked_until=until)
    assert store.locked_until("x") == until


def test_delete_leaves_no_version_and_no_marker(server: S3Objects) -> None:
    store = made(server, versioned=True)
    for data in (b"1", b"2", b"3"):
        write(store, "x", data)
    store._client.delete_object(Bucket=store.bucket, Key="x")
    write(store, "x2", b"other")
    found = list(store.versions("x"))
    assert [(v.key, v.is_latest, v.is_delete_marker) for v in found][0] == ("x", True, True)
    assert len(found) == 5
    old = next(v for v in store.versions_of("x") if not v.is_delete_marker)
    file = io.BytesIO()
    store.fetch_version("x", old.version_id, file)
    assert file.getvalue() == b"3"
    store.delete(["x", "none"])
    assert [v.key for v in store.versions()] == ["x2"]
    assert store.is_versioned()
    assert not made(server).is_versioned()


def test_an_expired_object_goes_and_what_was_written_over_it_stays(server: S3Objects) -> None:
    store = made(server, versioned=True)
    later = datetime.now(UTC) + timedelta(hours=1)
    put(store, "same", b"old")
    etag = store.stat("same").etag
    store.delete_expired("same", etag, later)
    assert list(store.versions("same")) == []
    put(store, "over", b"old")
    etag = store.stat("over").etag
    kept = write(store, "over", b"new")
    store.delete_expired("over", etag, later)
    assert [v.version_id for v in store.versions("over")] == [kept]
    store.delete_expired("none", "", later)
