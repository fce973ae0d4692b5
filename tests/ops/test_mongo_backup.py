"""MongoDB: backup, archive and restore on real servers, and what must be refused or noticed."""

from __future__ import annotations

import random
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bson
import pytest
from bson import Timestamp, json_util
from pydantic import SecretStr
from pymongo import MongoClient

from infra.local import Stack
from infra.local.scratch_servers import scratch_mongo
from tests.faults import mongo_pitr, mongo_rpo
from tests.faults.mongo_load import Load, differences, state_of
from tests.faults.mongo_pitr import Archiver
from tests.wait import wait_until
from tiering import errors
from tiering.model_backup import BackupState, StoreName
from tiering.ops import backup_mongo, prove_mongo, restore_mongo
from tiering.ops.catalogue import Catalogue
from tiering.stores.bson_edit import apply_update, split
from tiering.stores.directory import DirectoryObjects
from tiering.stores.mongo_entries import Position, merged
from tiering.stores.mongo_replay import Replay
from tiering.stores.mongo_server import MongoServer
from tiering.stores.vault import Keyring, Vault

Client = MongoClient[dict[str, Any]]
SEED = 20261123


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Stack]]:
    """A server to back up, and one to restore into."""
    directory = tmp_path_factory.mktemp("mongo")
    with Stack(directory / "source", services={"mongo"}) as source, Stack(directory / "into", {"mongo"}) as into:
        yield source, into


@pytest.fixture
def source(servers: tuple[Stack, Stack]) -> SecretStr:
    """The server to back up, empty and of a new history."""
    return _emptied(servers[0])


@pytest.fixture
def into(servers: tuple[Stack, Stack]) -> SecretStr:
    """The server to restore into, empty."""
    return _emptied(servers[1])


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    """A catalogue in a directory."""
    key = SecretStr(b64encode(bytes(range(32))).decode())
    return Catalogue(Vault(DirectoryObjects(tmp_path / "objects"), Keyring(key)))


def now() -> datetime:
    return datetime.now(UTC)


def test_every_restored_entry_is_exact_on_both_sides(servers: tuple[Stack, Stack], catalogue: Catalogue) -> None:
    _emptied(servers[0])
    print(f"seed {SEED}")
    backup, moments = mongo_pitr.record(catalogue, servers[0], SEED, 40)
    outcome = mongo_pitr.check(catalogue, backup, moments, servers[1], SEED, targets=15, full=1)
    assert (outcome.targets, outcome.full_restores, outcome.wrong) == (15, 2, [])


def test_a_backup_is_proven_and_its_directory_is_what_mongorestore_reads(
    source: SecretStr, catalogue: Catalogue, tmp_path: Path
) -> None:
    client: Client = MongoClient(source.get_secret_value())
    client["trading"]["a/b %"].insert_many([{"_id": i, "x": "y" * 50} for i in range(500)])
    client["trading"]["a/b %"].create_index([("x", 1)], unique=False, sparse=True)
    client["trading"].create_collection("seen", viewOn="a/b %", pipeline=[{"$match": {"_id": 1}}])
    backup = backup_mongo.backup(catalogue, source, "main", now())
    assert backup.facts["collections"][0]["count"] == 500  # type: ignore[index]
    prove_mongo.verify(catalogue, backup, now())
    assert prove_mongo.prove(catalogue, backup, scratch_mongo, now()).documents == 500
    assert catalogue.entry(backup.backup_id).state is BackupState.PROVEN
    other = Keyring(SecretStr(b64encode(b"o" * 32).decode()))
    keyless = Catalogue(Vault(DirectoryObjects(tmp_path / "objects"), other))
    for check in (prove_mongo.verify, lambda *of: prove_mongo.prove(*of[:2], scratch_mongo, of[2])):
        with pytest.raises(errors.KeyMissing):
            check(keyless, backup, now())
    assert catalogue.entry(backup.backup_id).state is BackupState.PROVEN, "it says nothing of the backup"

    backup_mongo.export(catalogue, backup, tmp_path / "dump")
    files = sorted(str(path.relative_to(tmp_path / "dump")) for path in (tmp_path / "dump").rglob("*.*"))
    stem = "trading/a%2Fb%20%25"
    assert files == ["oplog.bson", f"{stem}.bson", f"{stem}.metadata.json", "trading/seen.metadata.json"]
    dumped = bson.decode_all((tmp_path / "dump" / f"{stem}.bson").read_bytes())
    assert dumped == list(client["trading"]["a/b %"].find())
    told = json_util.loads((tmp_path / "dump" / f"{stem}.metadata.json").read_text())
    assert [index["name"] for index in told["indexes"]] == ["_id_", "x_1"]
    assert (tmp_path / "dump" / f"{stem}.bson").stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_exact_is_refused(source: SecretStr, into: SecretStr, catalogue: Catalogue) -> None:
    client: Client = MongoClient(source.get_secret_value())
    with Archiver(catalogue, source) as archiver:
        client["trading"]["t"].insert_one({"_id": 1})
        backup = backup_mongo.backup(catalogue, source, "main", now())
        client["trading"]["t"].insert_one({"_id": 2})
        wait_until(lambda: archiver.has(Position.parse(backup.ends)), what="the archive reaches the backup's end")
    end = max(Position.parse(one.ends) for one in catalogue.logs(StoreName.MONGODB, "main"))
    before = Position.parse(backup.begins).preceding
    for target in (str(end), (now() + timedelta(hours=1)).isoformat(), str(before)):
        with pytest.raises(errors.NotFound, match="restore mongodb main"):
            restore_mongo.restore(catalogue, target, into, now=now())
    assert not MongoServer(into).databases()
    done = restore_mongo.restore(catalogue, str(end.preceding), into, now=now())
    assert done.documents == 2
    with pytest.raises(errors.HeldError, match="collections on it"):
        restore_mongo.restore(catalogue, "latest", into, now=now())


def test_a_log_that_rolled_over_is_a_gap_told_aloud_and_not_crossed(
    source: SecretStr, into: SecretStr, catalogue: Catalogue
) -> None:
    client: Client = MongoClient(source.get_secret_value())
    backup_mongo.backup(catalogue, source, "main", now())
    with Archiver(catalogue, source) as archiver:
        client["trading"]["t"].insert_one({"_id": 1})
        wait_until(lambda: archiver.told, what="something is archived")
    newest = max(catalogue.logs(StoreName.MONGODB, "main"), key=lambda one: one.ends)
    # As if the server had forgotten what was archived last: the archive ends with an entry it does not have.
    entry = bson.encode({"op": "n", "ns": "", "o": {}, "ts": _timestamp(Position.parse(newest.ends).following)})
    begins, ends = Position.parse(newest.ends), Position.parse(newest.ends).following.following
    catalogue.put_log(StoreName.MONGODB, "main", newest.incarnation, 0, str(begins), str(ends), entry)
    with Archiver(catalogue, source) as archiver:
        client["trading"]["t"].insert_one({"_id": 2})
        wait_until(lambda: archiver.gaps and archiver.told, what="the gap is told")
    assert "no longer reaches back" in archiver.gaps[0].reason
    with pytest.raises(errors.NotFound, match="gap"):
        restore_mongo.restore(catalogue, "latest", into, now=now())
    again = backup_mongo.backup(catalogue, source, "main", now())
    assert restore_mongo.restore(catalogue, again.ends, into, now=now()).documents == 2


def test_a_restored_server_begins_another_history(source: SecretStr, into: SecretStr, catalogue: Catalogue) -> None:
    client: Client = MongoClient(source.get_secret_value())
    client["trading"]["t"].insert_one({"_id": 1})
    first = backup_mongo.backup(catalogue, source, "main", now())
    with Archiver(catalogue, source) as archiver:
        client["trading"]["t"].insert_one({"_id": 2})
        wait_until(lambda: archiver.told, what="something is archived")
        kept = {one.stored.name for one in catalogue.logs(StoreName.MONGODB, "main")}
        restore_mongo.restore(catalogue, first.ends, source, now=now(), is_approved=True)
        client["trading"]["t"].insert_one({"_id": 3})
        histories = lambda: {one.incarnation for one in catalogue.logs(StoreName.MONGODB, "main")}  # noqa: E731
        wait_until(lambda: len(histories()) == 2, what="the new history is archived")
    assert kept <= {one.stored.name for one in catalogue.logs(StoreName.MONGODB, "main")}
    with pytest.raises(errors.NotFound, match="another history"):
        restore_mongo.restore(catalogue, "latest", into, now=now())
    second = backup_mongo.backup(catalogue, source, "main", now())
    assert second.incarnation != first.incarnation
    restore_mongo.restore(catalogue, "latest", into, now=now())
    assert differences(state_of(client), state_of(MongoClient(into.get_secret_value()))) == []


def test_two_backups_at_once_and_a_rename_are_refused(source: SecretStr, catalogue: Catalogue) -> None:
    client: Client = MongoClient(source.get_secret_value())
    client["trading"]["t"].insert_one({"_id": 1})
    with catalogue.lease(StoreName.MONGODB, "main", "another", now()), pytest.raises(errors.LeaseHeld):
        backup_mongo.backup(catalogue, source, "main", now())
    renamed = []

    def rename_once(_: int, what: str) -> None:
        if not renamed and what == "trading.t":
            renamed.append(client["trading"]["t"].rename("u"))

    with pytest.raises(errors.CommitConflict, match="renamed"):
        backup_mongo.backup(catalogue, source, "main", now(), rename_once)
    assert catalogue.entries(StoreName.MONGODB) == []


def test_a_flipped_byte_anywhere_is_found_before_anything_is_written(
    source: SecretStr, into: SecretStr, catalogue: Catalogue, tmp_path: Path
) -> None:
    client: Client = MongoClient(source.get_secret_value())
    client["trading"]["t"].insert_many([{"_id": i} for i in range(100)])
    with Archiver(catalogue, source) as archiver:
        backup = backup_mongo.backup(catalogue, source, "main", now())
        client["trading"]["t"].insert_one({"_id": "late"})
        wait_until(lambda: archiver.has(Position.parse(backup.ends)), what="the archive reaches the backup's end")
    dice = random.Random(SEED)
    print(f"seed {SEED}")
    names = [stored.name for stored in backup.objects]
    names += [o.stored.name for o in restore_mongo.prepare(catalogue, restore_mongo.Target(), "main").ranges]
    for name in names * 10:
        path = tmp_path / "objects" / name
        whole = path.read_bytes()
        at = dice.randrange(len(whole))
        path.chmod(0o600)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << dice.randrange(8)]) + whole[at + 1 :])
        with pytest.raises((errors.CorruptCopy, errors.KeyMissing)):
            restore_mongo.restore(catalogue, "latest", into, now=now())
        path.write_bytes(whole)
    assert not MongoServer(into).databases()
    restore_mongo.restore(catalogue, "latest", into, now=now())


def test_the_archive_goes_on_behind_a_killed_server(
    servers: tuple[Stack, Stack], source: SecretStr, into: SecretStr, catalogue: Catalogue
) -> None:
    backup_mongo.backup(catalogue, source, "main", now())
    with Archiver(catalogue, source) as archiver, Load(source.get_secret_value(), random.Random(SEED)) as load:
        for _ in range(30):
            load.step()
        servers[0].kill("mongo")
        servers[0].restart("mongo")
        for _ in range(30):
            load.step()
        newest = MongoServer(source).now()
        MongoClient[dict[str, Any]](source.get_secret_value())["trading"]["end"].insert_one({})
        wait_until(lambda: archiver.has(newest), what="the archive has everything")
    assert not archiver.gaps
    restore_mongo.restore(catalogue, "latest", into, now=now())
    clients = [MongoClient[dict[str, Any]](url.get_secret_value()) for url in (source, into)]
    assert differences(*map(state_of, clients)) == []


def test_of_a_server_that_is_gone_seconds_are_lost_at_most(catalogue: Catalogue, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    losses = mongo_rpo.run(catalogue, tmp_path / "servers", SEED, kills=1)
    assert losses.kills == 1
    assert losses.acknowledged > 0
    assert losses.wrong == []
    assert max(losses.seconds) <= 5


def test_mongodbs_own_notations_are_carried_out(into: SecretStr) -> None:
    """What the embedded server never logs: deltas, transactions as `applyOps`, large and prepared ones, views."""

    def entry(second: int, kind: str, namespace: str, change: dict[str, Any], **more: Any) -> tuple[Position, bytes]:
        document = {"op": kind, "ns": namespace, "o": change, "ts": Timestamp(second, 1), "v": 2} | more
        return Position(second, 1), bson.encode(document)

    def part(second: int, number: int, previous: int, change: dict[str, Any]) -> tuple[Position, bytes]:
        session = {"lsid": {"id": bson.Binary(bytes(16), 4)}, "txnNumber": number}
        before = {"ts": Timestamp(previous, 1 if previous else 0), "t": 1}
        return entry(second, "c", "admin.$cmd", change, **session, prevOpTime=before)

    def put(identity: int) -> list[dict[str, Any]]:
        return [{"op": "i", "ns": "t.c", "o": {"_id": identity}}]

    delta = {
        "d": {"a": False},
        "i": {"z": 1},
        "slist": {"a": True, "l": 3, "u1": 9},
        "sin": {"u": {"x": 5}, "i": {"n": 1}},
    }
    whole = {"_id": 1, "a": 1, "list": [1, 2, 3, 4], "in": {"x": 1, "y": 2}}
    index = {"createIndexes": "c", "v": 2, "key": {"z": 1}, "name": "z_1", "unique": True, "sparse": True}
    entries = [
        entry(1, "c", "t.$cmd", {"create": "c"}),
        entry(2, "i", "t.c", whole, o2={"_id": 1}),
        entry(3, "u", "t.c", {"$v": 2, "diff": delta}, o2={"_id": 1}),
        entry(4, "u", "t.c", {"$v": 1, "$set": {"in.x": 6}, "$unset": {"in.y": True}}, o2={"_id": 1}),
        part(5, 1, 0, {"applyOps": put(2), "partialTxn": True}),
        entry(6, "i", "t.c", {"_id": 3}),
        part(7, 1, 5, {"applyOps": put(4), "count": 2}),
        part(8, 2, 0, {"applyOps": put(5), "prepare": True}),
        part(9, 2, 8, {"abortTransaction": 1}),
        entry(10, "i", "t.system.views", {"_id": "t.v", "viewOn": "c", "pipeline": []}),
        entry(11, "c", "t.$cmd", index),
    ]
    with MongoServer(into) as server:
        replay = Replay(server)
        replay.apply(entries, may_be_newer=False)
        replay.finish()
        assert replay.differences() == []
        broken = part(12, 1, 4, {"applyOps": put(6)})
        with pytest.raises(errors.CorruptCopy, match="beginning of a transaction"):
            replay.apply([broken], may_be_newer=False)
    client: Client = MongoClient(into.get_secret_value())
    changed = {"_id": 1, "list": [1, 9, 3], "in": {"x": 6, "n": 1}, "z": 1}
    assert list(client["t"]["c"].find()) == [changed, {"_id": 3}, {"_id": 2}, {"_id": 4}]
    assert list(client["t"]["v"].find({"_id": 3})) == [{"_id": 3}]
    assert client["t"]["c"].index_information()["z_1"]["unique"]


def test_entries_carried_out_on_documents_that_are_newer_end_alike() -> None:
    states: list[dict[str, Any]] = [
        {"_id": 1, "a": {"b": 1}, "list": [1, 2, 3]},
        {"_id": 1, "a": {"b": 2}, "list": [1, 2, 3, 4]},
        {"_id": 1, "list": [1, 2, 3, 4]},
        {"_id": 1, "list": "none"},
        {"_id": 1, "list": [5], "a.b": 1},
    ]
    changes: list[dict[str, Any]] = [
        {"updatedFields": {"a.b": 2, "list.3": 4}, "removedFields": [], "truncatedArrays": []},
        {"updatedFields": {}, "removedFields": ["a"], "truncatedArrays": []},
        {"updatedFields": {"list": "none"}, "removedFields": [], "truncatedArrays": []},
        {"updatedFields": {"list": [5], "a.b": 1}, "removedFields": [], "truncatedArrays": []},
    ]
    updates = [split(bson.encode({"$v": 2, "diff": change})) for change in changes]
    for number, state in enumerate(states):
        exact = bson.encode(state)
        if number < len(updates):
            assert bson.decode(apply_update(exact, updates[number])) == states[number + 1]
        for update in updates:
            exact = apply_update(exact, update, may_be_newer=True)
        assert bson.decode(exact) == states[-1], number


def test_what_is_archived_late_or_twice_is_put_in_its_place() -> None:
    def entry(second: int, text: str) -> bytes:
        return bson.encode({"ts": Timestamp(second, 1), "op": "n", "o": {"t": text}})

    one, two, late = entry(1, "a") + entry(3, "c"), entry(3, "c") + entry(4, "d"), entry(2, "b") + entry(2, "b2")
    texts = [bson.decode(raw)["o"]["t"] for _, raw in merged([one, two, late])]
    assert texts == ["a", "b", "b2", "c", "d"]


def _emptied(stack: Stack) -> SecretStr:
    url = SecretStr(stack.mongo.url("admin"))
    client: Client = MongoClient(url.get_secret_value())
    for name in client.list_database_names():
        if name not in ("admin", "local", "config"):
            client.drop_database(name)
    client.close()
    return url


def _timestamp(position: Position) -> Timestamp:
    return Timestamp(position.seconds, position.increment)
