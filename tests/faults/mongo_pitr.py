"""Restore MongoDB to hundreds of exact positions, and compare both sides of each with what the server itself had.

A writer makes one change at a time and looks at everything after each; a full backup is taken in the middle of it, and
the oplog is archived all the while. Then, from that one backup, a second server is brought forward to every chosen
entry: to just before it, and to it. Some of the targets are restored from scratch too.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bson import Timestamp
from pydantic import SecretStr
from pymongo import MongoClient

from infra.local import Stack
from tests.faults.mongo_load import Load, State, differences, state_of
from tests.wait import wait_until
from tiering.model_backup import Backup
from tiering.ops import backup_mongo, oplog, restore_mongo
from tiering.ops.catalogue import Catalogue
from tiering.stores import mongo_replay
from tiering.stores.mongo_entries import Position
from tiering.stores.mongo_server import MongoServer

Client = MongoClient[dict[str, Any]]


@dataclass(frozen=True)
class Moment:
    """A change: its entries' first and last position, and what the server had before and after."""

    first: Position
    last: Position
    before: State
    after: State


@dataclass
class Outcome:
    """What was compared, and what was wrong."""

    targets: int = 0
    full_restores: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass
class Archiver:
    """The archiver in a thread."""

    catalogue: Catalogue
    url: SecretStr
    source: str = "main"
    told: list[oplog.Archived] = field(default_factory=list)
    gaps: list[oplog.Gap] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def __enter__(self) -> Archiver:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def has(self, position: Position) -> bool:
        """Say whether the archive has everything up to a position."""
        return bool(self.told) and max(Position.parse(one.through) for one in self.told) > position

    def _run(self) -> None:
        oplog.stream(
            self.catalogue,
            self.url,
            self.source,
            clock=lambda: datetime.now(UTC),
            stop=self._stop,
            told=self.told.append,
            on_gap=self.gaps.append,
            on_trouble=lambda exc: self.troubles.append(str(exc)),
        )


def record(catalogue: Catalogue, stack: Stack, seed: int, changes: int) -> tuple[Backup, list[Moment]]:
    """Make changes, take a backup in the middle, archive; return the changes behind the backup's end."""
    url = SecretStr(stack.mongo.url("admin"))
    moments: list[Moment] = []
    backups: list[Backup] = []

    def back_up() -> None:
        backups.append(backup_mongo.backup(catalogue, url, "main", datetime.now(UTC)))

    with Archiver(catalogue, url) as archiver, Load(url.get_secret_value(), random.Random(seed)) as load:
        client: Client = MongoClient(url.get_secret_value())
        for _ in range(changes // 4):
            load.step()
        wait_until(lambda: archiver.told, what="the archiver has begun")
        load.renames = False
        thread = threading.Thread(target=back_up)
        thread.start()
        while thread.is_alive():
            load.step()
        load.renames = True
        before, since = state_of(client), _newest(client)
        while len(moments) < changes:
            load.step()
            after = state_of(client)
            moments += _moments(client, since, before, after)
            before, since = after, moments[-1].last if moments else since
        wait_until(lambda: archiver.has(moments[-1].last), what="the archiver is behind")
        client.close()
    assert not archiver.gaps, archiver.gaps
    return backups[-1], moments


def _newest(client: Client) -> Position:
    found = next(client["local"]["oplog.rs"].find().sort("$natural", -1).limit(1))["ts"]
    return Position(found.time, found.inc)


def _moments(client: Client, since: Position, before: State, after: State) -> list[Moment]:
    """Find the entries of the last change in the server's own oplog."""
    newer = {"ts": {"$gt": Timestamp(since.seconds, since.increment)}, "op": {"$ne": "n"}}
    found = [Position(e["ts"].time, e["ts"].inc) for e in client["local"]["oplog.rs"].find(newer, {"ts": 1})]
    return [Moment(min(found), max(found), before, after)] if found else []


def check(
    catalogue: Catalogue, backup: Backup, moments: list[Moment], into: Stack, seed: int, targets: int, full: int
) -> Outcome:
    """Restore to both sides of `targets` changes, `full` of them from scratch, and compare."""
    dice, outcome = random.Random(seed), Outcome()
    chosen = sorted(dice.sample(moments, min(targets, len(moments))), key=lambda moment: moment.last)
    url = SecretStr(into.mongo.url("admin"))
    client: Client = MongoClient(url.get_secret_value())
    for moment in dice.sample(chosen, min(full, len(chosen))):
        for position, expected in ((moment.first.preceding, moment.before), (moment.last, moment.after)):
            restore_mongo.restore(catalogue, str(position), url, now=datetime.now(UTC), is_approved=True)
            outcome.full_restores += 1
            outcome.wrong += [f"full {position}: {one}" for one in differences(expected, state_of(client))]
    _bring_forward(catalogue, backup, chosen, url, client, outcome)
    client.close()
    return outcome


def _bring_forward(
    catalogue: Catalogue, backup: Backup, chosen: list[Moment], url: SecretStr, client: Client, outcome: Outcome
) -> None:
    plan = restore_mongo.prepare(catalogue, restore_mongo.Target(position=chosen[-1].last), "main", backup.backup_id)
    with MongoServer(url) as server:
        restore_mongo.make_room(server, is_approved=True)
        replay = mongo_replay.Replay(server)
        restore_mongo.load_backup(catalogue, backup, replay, lambda *_: None)
        waiting = [entry for entries in restore_mongo.read_log(catalogue, plan) for entry in entries]
        for moment in chosen:
            for position, expected in ((moment.first.preceding, moment.before), (moment.last, moment.after)):
                count = sum(1 for at, _ in waiting if at <= position)
                replay.apply(waiting[:count], may_be_newer=False)
                replay.flush()
                waiting = waiting[count:]
                found = differences(_with_documents(expected), state_of(client), with_indexes=False)
                outcome.wrong += [f"{position}: {one}" for one in found]
                outcome.wrong += [f"{position}: {one}" for one in _other_indexes(expected, replay)]
            outcome.targets += 1
        outcome.wrong += replay.differences()


def _with_documents(state: State) -> State:
    """Leave out what is made at the end only: views, and indexes where nothing else is."""
    return {namespace: content for namespace, content in state.items() if content[0]}


def _other_indexes(expected: State, replay: mongo_replay.Replay) -> list[str]:
    wrong = []
    for namespace, (_, indexes) in expected.items():
        content = replay.contents.get(namespace)
        names = tuple(sorted(["_id_", *content.indexes])) if content and content.kind == "collection" else ()
        if names != indexes:
            wrong.append(f"{namespace}: indexes {names}, not {indexes}")
    return wrong
