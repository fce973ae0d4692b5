"""A ground of chart images: objects of many months in a real bucket, and writers who overwrite them."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from psycopg2 import sql
from pydantic import SecretStr

import infra.sql
from infra.local import Stack
from tests.faults import mover, outages
from tests.faults.bars import POLICIES, stop_writers
from tests.faults.files_writer import FilesJournal, body, client
from tests.faults.mover import FINISH, NOW, SWEEP, Job
from tests.faults.ports import GroundKind, Send
from tests.faults.verdict import Verdict
from tiering.model import Dataset, Policies, Span, State, Tier, Transition
from tiering.ops import install, lifecycle
from tiering.ops.sweep import sweep
from tiering.plan.policies import parse_policies
from tiering.plan.spans import unit_of
from tiering.settings import Settings
from tiering.stores.object_rows import ObjectRecord, list_objects, put_objects
from tiering.stores.opening import Stores, open_stores

DATASET = "chart_images"
PER_UNIT = 4
WRITES_PER_SECOND = 10.0
MONTH = timedelta(days=30)
DUE_MONTHS, ENDED_MONTHS = 3, 87
WORKS = {Transition.ARCHIVE: 50, Transition.EXPIRE: 26, SWEEP: 22, FINISH: 2}


@dataclass
class FilesGround:
    """See `ports.Ground`. Ages are those in the ledger: the store's own dates are all of today.

    Attributes:
        begins: the begin of each seeded key's unit.
    """

    stack: Stack
    settings: Settings
    policies: Policies
    stores: Stores
    dataset: Dataset
    directory: Path
    begins: dict[str, datetime] = field(default_factory=dict)
    journal: FilesJournal = field(default_factory=FilesJournal)
    number: int = 0
    writers: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.directory / "movers.log"

    @property
    def store(self) -> tuple[str, str, str, str]:
        """What a client of one's own needs."""
        s = self.settings
        return s.s3_url, s.s3_access_key.get_secret_value(), s.s3_secret_key.get_secret_value(), s.s3_region

    # -- what the campaign asks -----------------------------------------------------------------------------

    def primes(self, dice: random.Random) -> Iterator[Job]:
        """See `ports.Ground.primes`."""
        for work in (Transition.ARCHIVE, Transition.EXPIRE, SWEEP, FINISH):
            yield self.job(work)

    def provoke(self, work: str, call: str, dice: random.Random, send: Send) -> Job:
        """See `ports.Ground.provoke`."""
        if work == SWEEP:
            send(self.job(Transition.EXPIRE))
        return self.job(work)

    def look(self) -> Verdict:
        """Ask for every object and compare with what the writers were promised before."""
        verdict, s3, bucket = Verdict(), client(*self.store), self.settings.files_bucket
        self.journal.refresh()
        promised = dict(self.journal.acknowledged)
        ended = self._ended()
        there = {stat.key: stat.etag for stat in self.stores.files.list("charts/")}
        self.journal.refresh()
        for key, count in promised.items():
            tried = self.journal.tried[key]
            if key not in there:
                if count > 1 or self.begins.get(key) not in ended:
                    verdict.lost.append(key)
                continue
            wanted = {hashlib.md5(body(key, number)).hexdigest() for number in tried[count - 1 :]}
            if there[key] not in wanted:
                found = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
                self.journal.refresh()
                if found not in {body(key, number) for number in self.journal.tried[key][count - 1 :]}:
                    verdict.changed.append(f"{key} is {found[:40]!r}, {tried[count - 1]} was acknowledged")
        for move in self.stores.ledger.moves(DATASET, [State.QUARANTINED]):
            verdict.broken.append(f"{move} is in quarantine: {move.problem}")
        return verdict

    def settle(self) -> Verdict:
        """See `ports.Ground.settle`."""
        stop_writers(self.writers)
        mover.settle_everything(self.stores, self.dataset, Job("", NOW, DATASET, owner="settle"))
        stores = replace(self.stores, policies=replace(self.policies, grace=Span(), undo_window=Span()))
        sweep(stores, datetime.now(UTC) + timedelta(days=1), "inspector")
        verdict = self.look()
        self._compare_at_rest(verdict)
        return verdict

    def strike_outage(self, outage: str, job: Job, dice: random.Random) -> str:
        """See `ports.Ground.strike_outage`."""
        return outages.strike(outage, self, job, dice)

    def writers_errors(self) -> list[str]:
        """See `ports.Ground.writers_errors`."""
        return [line for log in self.journal.files for line in Path(f"{log}.errors").read_text().splitlines()]

    # -- means ----------------------------------------------------------------------------------------------

    def job(self, work: str) -> Job:
        """Sweeps run when the undo window of everything is over, so that they always have something to destroy."""
        at = datetime.now(UTC) + timedelta(days=3) if work == SWEEP else NOW
        return Job(str(work), at, DATASET)

    def write(self, key: str) -> None:
        """Write an object as the parent's own application; acknowledged when this returns."""
        self.number += 10
        self.journal.note("t", key, self.number)
        data = body(key, self.number)
        self.stores.files._client.put_object(Bucket=self.settings.files_bucket, Key=key, Body=data)
        self.journal.note("a", key, self.number)

    def _ended(self) -> set[datetime]:
        return {u.unit.begin for u in self.stores.ledger.units(DATASET) if u.tier is Tier.EXPIRED}

    def _compare_at_rest(self, verdict: Verdict) -> None:
        """Classes are the ledger's; no version is left that a change of class was made of, nor of an expired object."""
        listed = {stat.key: stat for stat in self.stores.files.list("charts/")}
        versions = Counter(version.key for version in self.stores.files.versions("charts/"))
        for key, count in versions.items():
            if count > len(self.journal.tried[key]):
                verdict.doubled.append(f"{key} has {count} versions of {len(self.journal.tried[key])} written")
        ended = self._ended()
        for key, begin in self.begins.items():
            if begin in ended and len(self.journal.tried[key]) == 1 and key in versions:
                verdict.broken.append(f"{key} has expired and is still there")
        classes = {u.unit.begin: u.storage_class for u in self.stores.ledger.units(DATASET)}
        with self.stores.warm.transaction("list", "objects", read_only=True) as connection:
            rows = list_objects(connection, dataset=DATASET)
        for row in rows:
            stat = listed.get(row.key)
            if stat and stat.etag == row.etag and stat.storage_class != classes.get(row.begin):
                verdict.broken.append(f"{row.key} is {stat.storage_class}, its unit {classes.get(row.begin)}")
        states = (State.PLANNED, State.SEALED, State.COPIED, State.VERIFIED)
        verdict.broken += [f"{move} is left" for move in self.stores.ledger.moves(DATASET, states)]


@contextmanager
def open_ground(stack: Stack, directory: Path, seed: int, kills: Mapping[str, int]) -> Iterator[FilesGround]:
    """Make a fresh database and buckets, seed the months, start the writer; stop and drop all of it at the end."""
    name = f"o{seed}_{secrets.token_hex(3)}"
    settings = _create(stack, name)
    policies = parse_policies(POLICIES.read_text(), str(POLICIES))
    moving = [replace(d, state="moves") if d.name == DATASET else d for d in policies.datasets]
    policies = replace(policies, datasets=tuple(moving))
    # By another name of the same host, as in bars.py.
    own = settings.model_copy(update={"s3_url": settings.s3_url.replace("127.0.0.1", "localhost")})
    with open_stores(own, policies) as stores:
        install.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
        dataset = lifecycle.dataset_named(stores, DATASET)
        ground = FilesGround(stack, settings, policies, stores, dataset, directory)
        due = min(kills.get(Transition.ARCHIVE, 0) * 3 // 2 + 4, ENDED_MONTHS - DUE_MONTHS - 4)
        ended = (kills.get(Transition.EXPIRE, 0) + kills.get(SWEEP, 0)) * 3 // 2 + 4
        _seed(ground, [*range(DUE_MONTHS, DUE_MONTHS + due), *range(ENDED_MONTHS, ENDED_MONTHS + ended)])
        _start_writer(ground, name, seed)
        try:
            yield ground
        finally:
            stop_writers(ground.writers)
    with stack.postgres.connect("postgres") as connection, connection.cursor() as cursor:
        cursor.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
    for bucket in (settings.lake_bucket, settings.files_bucket):
        stack.s3.client().delete_bucket(Bucket=bucket)


def _create(stack: Stack, name: str) -> Settings:
    with stack.postgres.connect("postgres") as connection, connection.cursor() as cursor:
        cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    lake, files = (f"{name.replace('_', '-')}-{kind}" for kind in ("lake", "files"))
    for bucket in (lake, files):
        stack.s3.client().create_bucket(Bucket=bucket)
    stack.s3.client().put_bucket_versioning(Bucket=files, VersioningConfiguration={"Status": "Enabled"})
    url = SecretStr(stack.postgres.url(name))
    changed: dict[str, Any] = {"hot_pg_url": url, "warm_pg_url": url, "lake_bucket": lake, "files_bucket": files}
    return stack.settings().model_copy(update={**changed, "scratch_dir": None})


def _seed(ground: FilesGround, months: list[int]) -> None:
    """Write objects, and have the ledger know them as of months ago: nobody can give an object a date."""
    for month in months:
        begin = unit_of(NOW - month * MONTH, ground.dataset.unit)[0]
        for number in range(PER_UNIT):
            key = f"charts/{month:03}-{number}"
            ground.write(key)
            ground.begins[key] = begin
    bucket = ground.settings.files_bucket
    records = []
    for key, begin in ground.begins.items():
        stat = ground.stores.files.stat(key)
        records.append(ObjectRecord(bucket, key, DATASET, begin, stat.etag, stat.size, begin, stat.storage_class))
    with ground.stores.warm.transaction("seed", "objects") as connection:
        put_objects(connection, records)


def _start_writer(ground: FilesGround, name: str, seed: int) -> None:
    log = ground.directory / f"{name}.log"
    log.touch()
    Path(f"{log}.errors").touch()
    ground.journal.files.append(log)
    # The last object of each unit is nobody's: it goes all the way down, and out.
    keys = [key for key in ground.begins if not key.endswith(f"-{PER_UNIT - 1}")]
    random.Random(seed).shuffle(keys)
    orders = {
        "store": ground.store,
        "bucket": ground.settings.files_bucket,
        "keys": keys,
        "near": 12,
        "number": ground.number + 1,
        "name": "L",
        "seed": seed,
        "per_second": WRITES_PER_SECOND,
        "log": str(log),
    }
    writer = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.files_writer"],
        stdin=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )
    assert writer.stdin is not None
    writer.stdin.write(json.dumps(orders))
    writer.stdin.close()
    ground.writers.append(writer)


MODES = (GroundKind("files", WORKS, outages.ALL, open_ground, share=0.2),)
