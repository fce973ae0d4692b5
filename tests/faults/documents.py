"""Grounds of news in MongoDB: units of three ages, and writers who insert late documents and change others."""

from __future__ import annotations

import functools
import json
import random
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psycopg2 import sql
from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.database import Database

import infra.sql
from infra.local import Stack
from tests.faults import mover, outages
from tests.faults.bars import POLICIES, stop_writers
from tests.faults.document_journal import DocumentJournal, Version, document
from tests.faults.document_writer import DAY_MS, save
from tests.faults.mover import FINISH, NOW, SWEEP, Job
from tests.faults.ports import GroundKind, Send
from tests.faults.verdict import Verdict
from tiering.model import Dataset, Policies, State, Tier, Transition
from tiering.ops import document_merge, install, lifecycle
from tiering.ops.work import Work
from tiering.plan.policies import parse_policies
from tiering.settings import Settings
from tiering.stores.opening import Stores, open_stores

if TYPE_CHECKING:
    from tests.faults.document_invariants import Inspector

DATASET = "news"
MIDNIGHT = NOW.replace(hour=0)
PER_DAY = 4
WRITERS = 2
WRITES_PER_SECOND = 10.0
YEARS_EARLIER = timedelta(days=3 * 365)
YOUNG, OLD, ANCIENT = 10, 300, 1900
SPARE_UNITS = 4
WORKS = {
    Transition.HOT_TO_WARM: 24,
    Transition.MERGE: 32,
    Transition.WARM_TO_COLD: 22,
    Transition.EXPIRE: 12,
    SWEEP: 8,
    FINISH: 4,
}
TRANSACTIONS_END = 0.8
"""How often the next mover does not meet the transaction of the one that was killed: it would wait for a minute."""
OF_THE_LAKE = ("s3.", "warm.catalog")
"""Calls that a merge or a sweep makes only of cold units."""


@dataclass
class DocumentsGround:
    """See `ports.Ground`. `stores` are the parent's own, for looking; movers open theirs.

    Attributes:
        young, old, ancient: the units' days: due for warm, for cold, and past retention.
        doomed: keys that came after the end of their unit: they may be seen, and go with the next expiry.
        expiring: how many units are to expire, most of them from the lake.
    """

    stack: Stack
    settings: Settings
    policies: Policies
    stores: Stores
    dataset: Dataset
    young: list[datetime]
    old: list[datetime]
    ancient: list[datetime]
    directory: Path
    journal: DocumentJournal = field(default_factory=DocumentJournal)
    doomed: set[str] = field(default_factory=set)
    expiring: int = 0
    number: int = 0
    writers: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.directory / "movers.log"

    @functools.cached_property
    def inspector(self) -> Inspector:
        from tests.faults.document_invariants import Inspector

        return Inspector(self)

    # -- what the campaign asks -----------------------------------------------------------------------------

    def primes(self, dice: random.Random) -> Iterator[Job]:
        """See `ports.Ground.primes`."""
        earlier = NOW - YEARS_EARLIER
        yield self.job(Transition.HOT_TO_WARM)
        # What expires is to expire from the lake, but for two units: the others went cold years before now.
        yield self.job(Transition.HOT_TO_WARM, earlier, moves_max=self.expiring)
        yield self.job(Transition.WARM_TO_COLD, earlier, moves_max=max(1, self.expiring - 2))
        yield self.job(Transition.HOT_TO_WARM, moves_max=SPARE_UNITS)
        yield self._merge_of(Tier.WARM, dice)
        yield self.job(Transition.WARM_TO_COLD)
        yield self._merge_of(Tier.COLD, dice)
        yield self.job(Transition.EXPIRE)
        self._insert_doomed(dice)
        yield self.job(Transition.EXPIRE)
        yield self.job(SWEEP)
        self._leave_unsettled(dice)
        yield self.job(FINISH)

    def provoke(self, work: str, call: str, dice: random.Random, send: Send) -> Job:
        """See `ports.Ground.provoke`."""
        if dice.random() < TRANSACTIONS_END:
            self._end_transactions()
        tier = Tier.COLD if call.startswith(OF_THE_LAKE) else dice.choice((Tier.WARM, Tier.COLD))
        if work == Transition.MERGE:
            return self._merge_of(Tier.WARM if " warm" in call or " trash" in call else tier, dice)
        if work == Transition.EXPIRE and call.startswith(("mongo.", "warm.commit fence", "warm.begin fence")):
            self._insert_doomed(dice)
        if work == Transition.HOT_TO_WARM and dice.random() < 0.5:
            self._wander(dice)
        if work == SWEEP and call:
            send(self._merge_of(tier, dice))
        if work == FINISH:
            self._leave_unsettled(dice)
        return self.job(work)

    def look(self) -> Verdict:
        """See `ports.Ground.look`."""
        return self.inspector.look()

    def settle(self) -> Verdict:
        """See `ports.Ground.settle`."""
        self._end_transactions()
        stop_writers(self.writers)
        mover.settle_everything(self.stores, self.dataset, Job("", NOW, DATASET, owner="settle"))
        verdict = self.inspector.look_at_rest()
        self._let_go()
        return verdict

    def strike_outage(self, outage: str, job: Job, dice: random.Random) -> str:
        """See `ports.Ground.strike_outage`."""
        return outages.strike(outage, self, job, dice)

    def writers_errors(self) -> list[str]:
        """See `ports.Ground.writers_errors`."""
        return [line for log in self.journal.files for line in Path(f"{log}.errors").read_text().splitlines()]

    # -- means ----------------------------------------------------------------------------------------------

    def job(self, work: str, now: datetime | None = None, moves_max: int = 1) -> Job:
        """Sweeps run when the undo window of everything is over, so that they always have something to destroy."""
        at = now or (datetime.now(UTC) + timedelta(days=3) if work == SWEEP else NOW)
        return Job(str(work), at, DATASET, moves_max=moves_max)

    def database(self, stack: ExitStack, side: int) -> Database[dict[str, Any]]:
        """Open the hot (0) or warm (1) database; what is left open in a fork belongs to nobody."""
        url = (self.settings.hot_mongo_url, self.settings.warm_mongo_url)[side]
        assert url is not None
        client = MongoClient[dict[str, Any]](url.get_secret_value(), w="majority")
        return stack.enter_context(client).get_default_database()

    def write(self, keys: Sequence[tuple[str, int]], side: int = 0, *, stays: bool = True) -> None:
        """Write documents as the parent's own application; acknowledged when this returns."""
        with ExitStack() as stack:
            collection = self.database(stack, side)["warm_news" if side else "news"]
            for key, at in keys:
                self.number += 10
                version = (at, self.number)
                self.journal.note("t", key, version)
                save([collection], key, version, stays=stays)
                self.journal.note("a", key, version)

    def _merge_of(self, tier: Tier, dice: random.Random) -> Job:
        """Write late documents of one tier's units; some supersede what is there."""
        days = {*self.young, *self.old}
        units = [u.unit.begin for u in self.stores.ledger.units(DATASET) if u.tier is tier and u.unit.begin in days]
        day = ms(dice.choice(units or self.young[:1]))
        key = f"P-{day}-{dice.randrange(2)}"
        at = self.journal.last(key)[0] if key in self.journal.tried else day + dice.randrange(DAY_MS)
        if tier is Tier.COLD and dice.random() < 0.5:
            self.write([(key, at)], 1)  # as if it had changed while its unit was copied
        self.write([(key, at)])
        return self.job(Transition.MERGE, moves_max=2)

    def _wander(self, dice: random.Random) -> None:
        """Give a document of a warm unit the time of the unit that leaves the hot collection next.

        Only of a unit that is not due for cold: what is cold counts under its old time as well, for ever.
        """
        known = {u.unit.begin for u in self.stores.ledger.units(DATASET)}
        waiting = [day for day in sorted(self.ancient + self.old + self.young) if day not in known]
        homes = [day for day in self.young if day in known]
        if waiting and homes:
            home = ms(dice.choice(homes))
            key = f"W-{home}-{self.number}"
            self.write([(key, home + dice.randrange(DAY_MS))], 1)
            self.write([(key, ms(waiting[0]) + dice.randrange(DAY_MS))], stays=False)

    def _insert_doomed(self, dice: random.Random) -> None:
        """Write a document of a unit that has expired."""
        gone = [u.unit.begin for u in self.stores.ledger.units(DATASET) if u.tier is Tier.EXPIRED]
        if gone:
            key = f"D-{self.number}"
            self.doomed.add(key)
            self.write([(key, ms(dice.choice(gone)) + dice.randrange(DAY_MS))])

    def _leave_unsettled(self, dice: random.Random) -> None:
        """Carry a merge as far as a run that dies right after its commit does."""
        job = replace(self._merge_of(dice.choice((Tier.WARM, Tier.COLD)), dice), moves_max=1, owner="unsettled")
        mover.finish(self.stores, self.dataset, job)
        for move_id in mover.due(self.stores, self.dataset, job):
            for step in (lifecycle.seal, lifecycle.check, lifecycle.copy, lifecycle.verify):
                step(self.stores, move_id, NOW, job.owner)
            with self.stores.ledger.lease(move_id, job.owner) as record:
                if record.state is State.VERIFIED:
                    document_merge.commit(Work(self.stores, self.dataset, record, NOW, job.owner))
        self._let_go()

    def _end_transactions(self) -> None:
        """End the transactions of clients that were killed, as if the minute that a server keeps them were over."""
        with MongoClient[dict[str, Any]](self.stack.mongo.url("admin")) as client:
            client.admin.command("killAllSessions", [])

    def _let_go(self) -> None:
        """Close what no fork may find open."""
        self.stores.hot_documents.close()
        self.stores.warm_documents.close()


def ms(day: datetime) -> int:
    """Count milliseconds since 1970."""
    return int(day.timestamp()) * 1000


@contextmanager
def open_ground(
    two_databases: bool, stack: Stack, directory: Path, seed: int, kills: Mapping[str, int]
) -> Iterator[DocumentsGround]:
    """Make fresh databases and a bucket, seed the units, start the writers; stop and drop all of it at the end."""
    expiring = kills.get(Transition.EXPIRE, 0) + 2
    old = kills.get(Transition.WARM_TO_COLD, 0) * 3 // 2 + SPARE_UNITS  # a mover that is missed uses one up as well
    ancient = expiring + 1
    young = max(SPARE_UNITS, kills.get(Transition.HOT_TO_WARM, 0) * 3 // 2 - old - ancient)
    name = f"d{seed}_{secrets.token_hex(3)}"
    names = [f"{name}_hot", f"{name}_warm"] if two_databases else [name]
    bucket = f"{name.replace('_', '-')}-lake"
    settings = _create(stack, names, bucket)
    policies = parse_policies(POLICIES.read_text(), str(POLICIES))
    others = [replace(d, state="moves") if d.name == DATASET else d for d in policies.datasets]
    policies = replace(policies, datasets=tuple(others))
    # By another name of the same host: the library shares one client per address, and forked movers must not
    # share the parent's open connections.
    own = settings.model_copy(update={"s3_url": settings.s3_url.replace("127.0.0.1", "localhost")})
    with open_stores(own, policies) as stores:
        install.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
        dataset = lifecycle.dataset_named(stores, DATASET)
        install.install_dataset(stores, dataset)
        groups = [(YOUNG, young), (OLD, old), (ANCIENT, ancient)]
        days = [[MIDNIGHT - timedelta(days=first + i) for i in range(n)] for first, n in groups]
        young_days, old_days, gone = days
        ground = DocumentsGround(
            stack, settings, policies, stores, dataset, young_days, old_days, gone, directory, expiring=expiring
        )
        _seed(ground)
        ground._let_go()
        _start_writers(ground, name, seed)
        try:
            yield ground
        finally:
            ground._end_transactions()
            stop_writers(ground.writers)
    _drop(stack, names, bucket)


def _create(stack: Stack, names: list[str], bucket: str) -> Settings:
    with stack.postgres.connect("postgres") as connection, connection.cursor() as cursor:
        for name in names:
            cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    stack.s3.client().create_bucket(Bucket=bucket)
    urls = {"hot_pg_url": stack.postgres.url(names[0]), "warm_pg_url": stack.postgres.url(names[-1])}
    urls |= {"hot_mongo_url": stack.mongo.url(names[0]), "warm_mongo_url": stack.mongo.url(names[-1])}
    changed = {key: SecretStr(url) for key, url in urls.items()}
    return stack.settings().model_copy(update=changed | {"lake_bucket": bucket, "scratch_dir": None})


def _drop(stack: Stack, names: list[str], bucket: str) -> None:
    """Drop all but the documents, which go with the stack.

    Why not them: the embedded server waits for ever for the transaction of a client that was killed just before.
    """
    with stack.postgres.connect("postgres") as connection, connection.cursor() as cursor:
        for name in names:
            cursor.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
    stack.s3.client().delete_bucket(Bucket=bucket)


def _seed(ground: DocumentsGround) -> None:
    """Insert documents of every day; each writer goes on with its own."""
    versions: list[tuple[str, Version]] = []
    for day in [MIDNIGHT, *ground.young, *ground.old, *ground.ancient]:
        for n in range(PER_DAY):
            ground.number += 10
            versions.append((f"S{n % WRITERS + 1}-{ms(day)}-{n}", (ms(day) + n * DAY_MS // PER_DAY, ground.number)))
    with ExitStack() as stack:
        ground.database(stack, 0)[DATASET].insert_many([document(*one) for one in versions])
    for key, version in versions:
        ground.journal.note("t", key, version)
        ground.journal.note("a", key, version)


def _start_writers(ground: DocumentsGround, name: str, seed: int) -> None:
    settings, ancient = ground.settings, {ms(day) for day in ground.ancient}
    for number in range(1, WRITERS + 1):
        log = ground.directory / f"{name}.{number}.log"
        log.touch()
        Path(f"{log}.errors").touch()
        ground.journal.files.append(log)
        wander = [ms(day) for day in (*ground.young[:2], ground.young[-1])]
        orders = {
            "urls": [url.get_secret_value() for url in (settings.hot_mongo_url, settings.warm_mongo_url) if url],
            "keys": {
                key: all_of[-1]
                for key, all_of in ground.journal.tried.items()
                if key.startswith(f"S{number}-") and all_of[-1][0] // DAY_MS * DAY_MS not in ancient
            },
            "days": [ms(day) for day in ground.young + ground.old],
            "near_days": [*wander, ms(ground.old[0])],
            "wander_days": wander,
            "near": 0.92,
            "keys_max": 15,
            "number": ground.number + number,
            "name": f"L{number}",
            "seed": seed * 10 + number,
            "per_second": WRITES_PER_SECOND,
            "log": str(log),
        }
        writer = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.document_writer"],
            stdin=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        assert writer.stdin is not None
        writer.stdin.write(json.dumps(orders))
        writer.stdin.close()
        ground.writers.append(writer)


OUTAGES = (*outages.ALL, outages.MONGO_KILLED, outages.MONGO_CUT)
MODES = (
    GroundKind("documents", WORKS, OUTAGES, functools.partial(open_ground, False), share=0.0),
    GroundKind("documents, two databases", WORKS, OUTAGES, functools.partial(open_ground, True), share=0.6),
)
