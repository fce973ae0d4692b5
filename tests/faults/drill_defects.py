"""Defects to plant before a drill: each is done to a copy of the backup bucket, or to the primary, and has its code.

A drill that passes on one of them lies. Every defect says what the drill has to name.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import SecretStr
from redis.exceptions import RedisError

from tests.ops.drill_world import DrillWorld
from tiering import cli_kit
from tiering.model_backup import StoreName
from tiering.model_drill import Incident
from tiering.ops import expect
from tiering.ops.chunks import place_of
from tiering.ops.drill_run import Kit
from tiering.plan.heartbeat import first_beat, next_beat
from tiering.settings import RecoverySettings
from tiering.stores.beats import MongoBeats
from tiering.stores.postgres import execute


@dataclass
class Planting:
    """What a defect works on: a copy of the bucket, how the drill is run, and how to repair the primary.

    Attributes:
        world: the primary.
        settings: of the copy.
        undo: called at the end.
        kit: changed before the drill, e.g. by other objectives.
        run: further arguments of `run_drill`.
        prepared: a kit that was opened before the defect.
    """

    world: DrillWorld
    settings: RecoverySettings
    undo: ExitStack
    kit: Callable[[Kit], Kit]
    run: dict[str, Any]
    prepared: Kit | None = None

    def keys(self, prefix: str) -> list[str]:
        """List objects of the copy."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    @property
    def client(self) -> Any:
        """A plain client of the object store, as an attacker or a broken disk has it."""
        return self.world.stack.s3.client()

    @property
    def bucket(self) -> str:
        """The copy's name."""
        return self.settings.backup_bucket

    def body(self, key: str) -> bytes:
        """Read the stored bytes."""
        data: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return data

    def put(self, key: str, body: bytes) -> None:
        """Replace stored bytes behind everybody's back."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body)

    def drop(self, *keys: str) -> None:
        """Lose objects."""
        for key in keys:
            self.client.delete_object(Bucket=self.bucket, Key=key)

    def flip(self, key: str) -> None:
        """Flip one bit in the middle."""
        data = bytearray(self.body(key))
        data[len(data) // 2] ^= 0x10
        self.put(key, bytes(data))

    def rewrite(self, key: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Change a sealed record of the catalogue, with the key."""
        vault = cli_kit.vault_of(self.settings)
        record = json.loads(vault.read(key))
        change(record)
        self.drop(key)
        vault.put(key, json.dumps(record).encode())

    def on_primary(self, *statements: str, repair: tuple[str, ...] = ()) -> None:
        """Do something to the primary's PostgreSQL, and repair it at the end."""
        for statement in statements:
            self._execute(statement)
        for statement in repair:
            self.undo.callback(self._execute, statement)

    def _execute(self, statement: str) -> None:
        with self.world.stores.hot.transaction("plant", "defect") as connection:
            execute(connection, statement)


@dataclass(frozen=True)
class Defect:
    """One planted defect: what is done, on which drill, and one of which codes must be told."""

    name: str
    plant: Callable[[Planting], None]
    codes: tuple[str, ...]
    tier: int = 1
    incident: Incident = Incident.PERFORMANCE_DEGRADATION
    is_primary: bool = False


def _fulls(p: Planting, store: StoreName, part: str) -> list[str]:
    return [key for key in p.keys(f"backups/{store}/") if part in key]


def _log(p: Planting, store: StoreName) -> list[str]:
    return [key for key in p.keys(f"log/{store}/") if not key.endswith("history")]


PG, MONGO, REDIS = StoreName.POSTGRESQL, StoreName.MONGODB, StoreName.REDIS


def _middle(keys: list[str]) -> str:
    return keys[len(keys) // 2]


def wal_missing(p: Planting) -> None:
    p.drop(_middle(_log(p, PG)))


def wal_flipped(p: Planting) -> None:
    p.flip(_middle(_log(p, PG)))


def wal_cut_short(p: Planting) -> None:
    key = _middle(_log(p, PG))
    p.put(key, p.body(key)[:-7])


def wal_all_lost(p: Planting) -> None:
    p.drop(*_log(p, PG))


def wal_of_another_timeline(p: Planting) -> None:
    for key in _log(p, PG):
        parts = key.split("/")
        other = "/".join([*parts[:-2], "00000009", parts[-1]])
        p.put(other, p.body(key))
        p.drop(key)


def base_flipped(p: Planting) -> None:
    p.flip(_fulls(p, PG, "base.")[0])


def base_cut_short(p: Planting) -> None:
    key = _fulls(p, PG, "base.")[0]
    p.put(key, p.body(key)[: len(p.body(key)) // 2])


def base_exchanged(p: Planting) -> None:
    base, manifest = _fulls(p, PG, "base.")[0], _fulls(p, PG, "manifest")[0]
    p.put(base, p.body(manifest))


def manifest_missing(p: Planting) -> None:
    p.drop(_fulls(p, PG, "manifest")[0])


def stale_catalogue(p: Planting) -> None:
    """The catalogue tells of a backup whose objects are gone."""
    p.drop(*_fulls(p, PG, "/"))


def no_backup(p: Planting) -> None:
    p.drop(*p.keys(f"catalogue/{PG}/"))


def stale_backup(p: Planting) -> None:
    later = datetime.now(UTC) + timedelta(days=2)
    p.run |= {"clock": lambda: later, "incident_at": datetime.now(UTC)}


def wrong_key(p: Planting) -> None:
    other = SecretStr(base64.b64encode(secrets.token_bytes(32)).decode())
    settings = p.settings.model_copy(update={"backup_key": other})
    vault = cli_kit.vault_of(settings)
    p.kit = lambda kit: replace(kit, recoverers=cli_kit.recoverers_of(cli_kit.Catalogue(vault), None), vault=kit.vault)


def shipping_stopped(p: Planting) -> None:
    """The log's shipping died twenty minutes before the incident."""
    p.run |= {"incident_at": datetime.now(UTC) + timedelta(minutes=20)}


def slow_restore(p: Planting) -> None:
    def hurry(kit: Kit) -> Kit:
        tiers = tuple(replace(one, rto=timedelta(seconds=61)) if one.tier == 1 else one for one in kit.objectives.tiers)
        return replace(kit, objectives=replace(kit.objectives, tiers=tiers))

    p.kit = hurry


def slow_copy(p: Planting) -> None:
    p.kit = lambda kit: replace(kit, objectives=replace(kit.objectives, probe=timedelta(microseconds=1)))


def never_described(p: Planting) -> None:
    kit = cli_kit.kit_of(p.settings)
    p.drop(*p.keys(expect.PREFIX))
    p.prepared = kit


def _missing_thing(thing: str) -> Callable[[Planting], None]:
    """What a primary had and a restore has not: the description says so, the backup lacks it."""

    def plant(p: Planting) -> None:
        vault = cli_kit.vault_of(p.settings)
        last = expect.newest(vault)
        shapes = {name: dict(shape) for name, shape in last.shapes.items()}
        kind = "mongodb" if thing.startswith(("collection", "ttl")) else "postgresql"
        for name in shapes:
            if name.startswith(kind):
                shapes[name][thing] = "as it was"
        p.drop(*p.keys(expect.PREFIX))
        expect.keep(vault, replace(last, shapes=shapes))

    return plant


def role_lost(p: Planting) -> None:
    """The primary had the role when it was described; then somebody dropped it, and the backup has no such role."""
    p.on_primary("DROP ROLE IF EXISTS drill_reader", "CREATE ROLE drill_reader")
    p.on_primary("GRANT SELECT ON hot.positions TO drill_reader")
    p.world.describe()
    p.on_primary("DROP OWNED BY drill_reader", "DROP ROLE drill_reader")


def chain_broken(p: Planting) -> None:
    p.on_primary(
        "UPDATE tiering.heartbeat SET at = at - interval '1 ms' WHERE seq = 3",
        repair=("UPDATE tiering.heartbeat SET at = at + interval '1 ms' WHERE seq = 3",),
    )


def beats_deleted(p: Planting) -> None:
    p.on_primary("CREATE TABLE tiering.beats_kept AS SELECT * FROM tiering.heartbeat WHERE seq BETWEEN 3 AND 4")
    p.on_primary(
        "DELETE FROM tiering.heartbeat WHERE seq BETWEEN 3 AND 4",
        repair=("DROP TABLE tiering.beats_kept", "INSERT INTO tiering.heartbeat SELECT * FROM tiering.beats_kept"),
    )


def audit_rewritten(p: Planting) -> None:
    """A row of the audit trail is changed behind its triggers."""
    p.on_primary(
        "ALTER TABLE tiering.audit DISABLE TRIGGER ALL",
        "UPDATE tiering.audit SET actor = actor || '?' WHERE audit_id = (SELECT min(audit_id) FROM tiering.audit)",
        repair=(
            "ALTER TABLE tiering.audit ENABLE TRIGGER ALL",
            "UPDATE tiering.audit SET actor = rtrim(actor, '?')",
        ),
    )


def mongo_part_flipped(p: Planting) -> None:
    p.flip(_middle(_fulls(p, MONGO, "/dump/")))


def mongo_part_missing(p: Planting) -> None:
    p.drop(_middle(_fulls(p, MONGO, "/dump/")))


def oplog_missing(p: Planting) -> None:
    p.drop(_middle(_log(p, MONGO)))


def oplog_flipped(p: Planting) -> None:
    p.flip(_middle(_log(p, MONGO)))


def histories_differ(p: Planting) -> None:
    """MongoDB has heartbeats of another history than PostgreSQL."""
    beat = first_beat("f0f0f0f0", datetime.now(UTC) + timedelta(hours=1))
    ledger = next(lane.ledger for lane in p.world.heart.lanes if isinstance(lane.ledger, MongoBeats))
    ledger.append([beat, next_beat(beat, beat.at)])
    documents = ledger.database._collection("tiering_heartbeat")
    p.undo.callback(documents.delete_many, {"chain": "f0f0f0f0"})


def redis_part_flipped(p: Planting) -> None:
    p.flip(_fulls(p, REDIS, "rdb")[0])


def redis_part_missing(p: Planting) -> None:
    p.drop(_fulls(p, REDIS, "rdb")[-1])


def _masters(p: Planting, change: Callable[[list[dict[str, Any]]], None]) -> None:
    for key in p.keys(f"catalogue/{REDIS}/"):
        if key.endswith("UPLOADED"):
            p.rewrite(key, lambda record: change(record["facts"]["masters"]))


def slots_exchanged(p: Planting) -> None:
    def exchange(masters: list[dict[str, Any]]) -> None:
        masters[0]["slots"], masters[1]["slots"] = masters[1]["slots"], masters[0]["slots"]

    _masters(p, exchange)


def slots_missing(p: Planting) -> None:
    _masters(p, lambda masters: masters[0].update(slots=[[0, 5]]))


def redis_keys_lost(p: Planting) -> None:
    """A master's snapshot has fewer keys than were there."""
    _masters(p, lambda masters: masters[0].update(keys=masters[0]["keys"] + 1000))


def redis_empty(p: Planting) -> None:
    """The snapshots load, and hold nothing: taken from masters that had started empty."""
    others = [key for key in p.keys(f"catalogue/{REDIS}/") if key.endswith("UPLOADED")]
    moment = json.loads(cli_kit.vault_of(p.settings).read(others[0]))["facts"]["moment"]
    p.drop(*others)
    for number in range(1, 4):
        with suppress(RedisError), p.world.stack.redis.connect(f"redis-{number}") as node:
            node.execute_command("FLUSHALL")
    p.world.back_up_redis(cli_kit.Catalogue(cli_kit.vault_of(p.settings)))
    # The copy's log is older than this set: unless it says that it is as old, there is no moment of both at all.
    for key in p.keys(f"catalogue/{REDIS}/"):
        if key.endswith("UPLOADED"):
            p.rewrite(key, lambda record: record["facts"].update(moment=moment))


def _chunks(p: Planting, store: StoreName) -> list[str]:
    """The objects that hold what snapshots of a store consist of."""
    return p.keys(place_of(store, "main"))


def archive_flipped(p: Planting) -> None:
    p.flip(_middle(_chunks(p, StoreName.LAKE)))


def archive_never_backed_up(p: Planting) -> None:
    p.drop(*p.keys(f"catalogue/{StoreName.LAKE}/"))


def files_flipped(p: Planting) -> None:
    p.flip(_middle(_chunks(p, StoreName.APPLICATION_DATA)))


def configuration_lost(p: Planting) -> None:
    p.drop(*_chunks(p, StoreName.CONFIGURATION))


FULL = Incident.COMPLETE_OUTAGE
CORRUPT = ("corrupt_backup", "missing_backup")
DEFECTS: tuple[Defect, ...] = (
    Defect("missing WAL object", wal_missing, ("log_gap",)),
    Defect("flipped byte in the WAL", wal_flipped, CORRUPT),
    Defect("truncated WAL object", wal_cut_short, CORRUPT),
    Defect("all WAL lost", wal_all_lost, ("missing_backup", "no_recovery_point")),
    Defect("WAL of another timeline", wal_of_another_timeline, ("missing_backup", "no_recovery_point")),
    Defect("flipped byte in the base", base_flipped, CORRUPT),
    Defect("truncated base", base_cut_short, CORRUPT),
    Defect("objects exchanged", base_exchanged, CORRUPT),
    Defect("manifest missing", manifest_missing, CORRUPT),
    Defect("stale catalogue", stale_catalogue, CORRUPT),
    Defect("no backup at all", no_backup, ("missing_backup",)),
    Defect("stale backup", stale_backup, ("stale_backup",)),
    Defect("wrong key", wrong_key, ("wrong_key", "missing_backup")),
    Defect("log shipping stopped", shipping_stopped, ("rpo_missed",)),
    Defect("slow restore", slow_restore, ("rto_missed",)),
    Defect("slow copy", slow_copy, ("slow_probe",)),
    Defect("primary never described", never_described, ("missing_backup",)),
    Defect("missing extension", _missing_thing("extension timescaledb"), ("missing_extension",)),
    Defect("lost grant", _missing_thing("grant on hot.positions to app"), ("lost_grant",)),
    Defect("lost table", _missing_thing("table hot.orders"), ("lost_table",)),
    Defect("lost index", _missing_thing("index hot.positions_by_symbol"), ("lost_index",)),
    Defect("lost collection", _missing_thing("collection chats"), ("lost_collection",), tier=2),
    Defect("lost role", role_lost, ("lost_role",), is_primary=True),
    Defect("heartbeat changed", chain_broken, ("broken_chain",), is_primary=True),
    Defect("heartbeats deleted", beats_deleted, ("broken_chain",), is_primary=True),
    Defect("audit trail rewritten", audit_rewritten, ("failed_verification",), is_primary=True),
    Defect("flipped byte in MongoDB's dump", mongo_part_flipped, CORRUPT, tier=2),
    Defect("missing part of MongoDB's dump", mongo_part_missing, CORRUPT, tier=2),
    Defect("missing oplog object", oplog_missing, ("missing_backup", "rpo_missed", "undershoot"), tier=2),
    Defect("flipped byte in the oplog", oplog_flipped, CORRUPT, tier=2),
    Defect("histories differ", histories_differ, ("no_common_point", "overshoot"), 2, FULL, is_primary=True),
    Defect("flipped byte in a Redis snapshot", redis_part_flipped, CORRUPT, 1, FULL),
    Defect("missing Redis master", redis_part_missing, CORRUPT, 1, FULL),
    Defect("wrong slot map", slots_exchanged, ("failed_verification", "wrong_slot_map"), 1, FULL),
    Defect("slots without a master", slots_missing, ("failed_verification", "wrong_slot_map"), 1, FULL),
    Defect("Redis keys lost", redis_keys_lost, CORRUPT, 1, FULL),
    Defect("empty Redis", redis_empty, ("broken_chain", "no_common_point"), 1, FULL),
    Defect("archive: flipped byte in the lake", archive_flipped, CORRUPT, 3, FULL),
    Defect("archive: lake never backed up", archive_never_backed_up, ("missing_backup",), 3, FULL),
    Defect("archive: flipped byte in the files", files_flipped, CORRUPT, 3, FULL),
    Defect("archive: configuration lost", configuration_lost, CORRUPT, 3, FULL),
)
