"""`python -m tests.faults.postgres_recovery [--targets N] [--kills N]`: adds to build/faults.json.

Rows: `recovery.postgres.pitr` (random moments of every kind restored, the rows compared on both sides of the boundary),
`recovery.postgres.rpo` and `recovery.postgres.rpo_sync` (servers killed and deleted under load, with nothing but the
bucket left).
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import psycopg2
from pydantic import SecretStr

from infra.local import Stack
from infra.local.s3 import BUCKETS, REGION
from tests.faults.rows import OUT, merge
from tests.ops.postgres_world import MEMORY, Entry, PgWorld, open_world
from tests.wait import wait_until
from tiering import errors
from tiering.model_backup import BackupKind
from tiering.plan.recovery import Target, TargetKind, parse_target
from tiering.stores.directory import DirectoryObjects
from tiering.stores.objects import S3Objects
from tiering.stores.pg_wal import WalServer

ROWS_PER_ROUND, TARGETS_PER_ROUND = 600, 60
LIVES_PER_FULL, LIVES_PER_FULL_SYNC = 10, 3
WRITERS = 4
# Longer than the bars, mostly: a server that stored nothing at all has to fail them.
LOAD_SECONDS = 1.0, 7.0
RPO_P99_MAX, RPO_MAX = 1.0, 5.0
LATEST = Target(TargetKind.LATEST)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.postgres_recovery", description=__doc__)
    parser.add_argument("--targets", type=int, default=300, help="moments to restore (default 300)")
    parser.add_argument("--kills", type=int, default=100, help="servers to kill (default 100)")
    parser.add_argument("--sync-kills", type=int, default=30, help="of them in synchronous mode, besides (default 30)")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier campaign, to repeat its choices")
    parser.add_argument("--out", type=Path, default=OUT, help="where the numbers go")
    arguments = parser.parse_args()
    seed = secrets.randbelow(100_000) if arguments.seed is None else arguments.seed
    rows = []
    if arguments.targets:
        rows.append(pitr(seed, arguments.targets))
    if arguments.kills:
        rows.append(rpo("recovery.postgres.rpo", seed, arguments.kills, is_synchronous=False))
    if arguments.sync_kills:
        rows.append(rpo("recovery.postgres.rpo_sync", seed, arguments.sync_kills, is_synchronous=True))
    merge(arguments.out, rows)
    return 0 if all(row["ok"] for row in rows) else 1


@contextmanager
def ground() -> Iterator[Path]:
    """A directory for servers, in memory where there is room: thousands of small files are made again and again."""
    directory = Path(tempfile.mkdtemp(prefix="tiering-pgr-", dir=MEMORY))
    directory.chmod(0o711)  # PostgreSQL runs as nobody below root
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


# Moments.


def pitr(seed: int, targets: int) -> dict[str, object]:
    """Restore random moments, in rounds, each with a server, two backups and a noisy neighbour of its own."""
    began, wrong, kinds, done = time.monotonic(), list[str](), Counter[str](), 0
    while done < targets:
        choice = random.Random(seed + done)
        count = min(TARGETS_PER_ROUND, targets - done)
        with ground() as directory:
            (directory / "bucket").mkdir()
            with open_world(directory, DirectoryObjects(directory / "bucket")) as world:
                entries, first, names = write_history(world, choice)
                for _ in range(count):
                    kind, target, last = choose_moment(choice, entries, first, names)
                    kinds[kind] += 1
                    found = rows_or_error(world, target)
                    if found != set(range(last + 1)):
                        wrong.append(f"{target}: rows to {last} expected, {differs(found, last)}")
        done += count
        say(f"{done} of {targets} moments, {len(wrong)} wrong")
    for problem in wrong[:20]:
        say(f"WRONG {problem}")
    numbers = {"targets": done, "sides": 2 * done, "wrong": len(wrong), "kinds": dict(kinds)}
    return report("recovery.postgres.pitr", seed, began, numbers, not wrong)


def write_history(world: PgWorld, choice: random.Random) -> tuple[list[Entry], int, dict[str, int]]:
    """Write rows one by one beside noise, with backups in between; return them, the first to aim at, and the names."""
    names: dict[str, int] = {}
    stop = threading.Event()
    world.execute("CREATE TABLE noise (id bigint, text text)")
    noise = threading.Thread(target=make_noise, args=(world, stop))
    with world.streaming() as receiver:
        noise.start()
        try:
            entries = world.insert(0, 20)
            world.backup()
            first = len(entries)
            while len(entries) < ROWS_PER_ROUND:
                entries += world.insert(len(entries), choice.randrange(1, 25))
                if choice.random() < 0.2:
                    names[f"point {len(names)}"] = len(entries) - 1
                    WalServer(world.url).restore_point(f"point {len(names) - 1}")
                if choice.random() < 0.05:
                    WalServer(world.url).switch()
                if len(entries) // (ROWS_PER_ROUND // 3) > len(world.catalogue.entries()) - 1:
                    world.backup(BackupKind.INCREMENTAL)
        finally:
            stop.set()
            noise.join()
        world.await_stored(receiver)
    return entries, first, names


def make_noise(world: PgWorld, stop: threading.Event) -> None:
    """Write in longer transactions beside the journal, some of them rolled back."""
    connection = psycopg2.connect(world.url.get_secret_value())
    with connection.cursor() as cursor:
        number = 0
        while not stop.wait(0.01):
            cursor.execute("INSERT INTO noise SELECT g, repeat('x', 200) FROM generate_series(1, 20) g")
            number += 1
            if number % 3 == 0:
                connection.rollback() if number % 2 else connection.commit()
    connection.close()


def choose_moment(
    choice: random.Random, entries: list[Entry], first: int, names: dict[str, int]
) -> tuple[str, Target, int]:
    """Choose a moment and say which row is the last one in it."""
    row = choice.randrange(first + 1, len(entries) - 1)
    entry, following = entries[row], entries[row + 1]
    kind = choice.choice(["time", "time between", "time exclusive", "xid", "xid exclusive", "lsn", "name"])
    if kind == "time":
        return kind, parse_target(entry.at.isoformat()), row
    if kind == "time between":
        between = entry.at + timedelta(microseconds=choice.randrange((following.at - entry.at) // timedelta.resolution))
        return kind, parse_target(between.isoformat()), row
    if kind == "time exclusive":
        return kind, parse_target(entry.at.isoformat(), inclusive=False), row - 1
    if kind == "xid":
        return kind, parse_target(f"xid:{entry.xid}"), row
    if kind == "xid exclusive":
        return kind, parse_target(f"xid:{entry.xid}", inclusive=False), row - 1
    if kind == "name" and names:
        name = choice.choice(sorted(names))
        return kind, parse_target(f"name:{name}"), names[name]
    return "lsn", parse_target(entry.flushed, inclusive=False), row


def rows_or_error(world: PgWorld, target: Target) -> set[int] | str:
    try:
        return world.rows_at(target)
    except errors.TieringError as exc:
        return str(exc)


def differs(found: set[int] | str, last: int) -> str:
    """Say what was found instead."""
    if isinstance(found, str):
        return found
    return f"{sorted(set(range(last + 1)) - found)[:5]} missing, {sorted(found - set(range(last + 1)))[:5]} too many"


# Losses.


@dataclass(frozen=True)
class CutOff(S3Objects):
    """A bucket that a lost machine does not reach any more: its receiver writes nothing after the end."""

    over: threading.Event = field(default_factory=threading.Event, compare=False)

    def put_new(self, key: str, file: IO[bytes], size: int, sha256: str, **more: Any) -> None:
        if self.over.is_set():
            raise errors.StoreUnavailable("put", key, "the machine is lost")
        super().put_new(key, file, size, sha256, **more)


@dataclass
class Losses:
    """What the kills cost."""

    kills: int = 0
    acknowledged: int = 0
    lost: int = 0
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def rpo(name: str, seed: int, kills: int, *, is_synchronous: bool) -> dict[str, object]:
    """Kill and delete servers under load; bring each back from the bucket, in its place, and go on with it."""
    began, losses, choice = time.monotonic(), Losses(), random.Random(seed)
    with ground() as directory, Stack(directory / "s3", {"s3"}) as bucket:
        access, secret = (SecretStr(word) for word in bucket.s3.credentials)
        objects = CutOff(bucket.s3.url, BUCKETS[1], access, secret, REGION)
        with open_world(directory, objects) as world:
            world.execute("CREATE TABLE load (id bigint PRIMARY KEY, text text)")
            for life in range(kills):
                live(world, choice, losses, life, is_synchronous, objects.over)
                worst = max(losses.seconds)
                say(f"{losses.kills} kills, {losses.lost} of {losses.acknowledged} lost, worst {worst:.2f} s")
    ordered = sorted(losses.seconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    for problem in losses.wrong[:20]:
        say(f"WRONG {problem}")
    numbers = {
        "kills": losses.kills, "acknowledged": losses.acknowledged, "lost_writes": losses.lost,
        "rpo_p50_s": round(ordered[len(ordered) // 2], 3), "rpo_p99_s": round(p99, 3),
        "rpo_max_s": round(ordered[-1], 3), "wrong": len(losses.wrong),
    }  # fmt: skip
    is_good = losses.lost == 0 if is_synchronous else p99 <= RPO_P99_MAX and ordered[-1] <= RPO_MAX
    return report(name, seed, began, numbers, is_good and not losses.wrong)


def live(
    world: PgWorld, choice: random.Random, losses: Losses, life: int, is_synchronous: bool, over: threading.Event
) -> None:
    """One life of the server: it streams, is written to, and is lost."""
    over.clear()
    world.execute("TRUNCATE load")
    if is_synchronous:
        world.execute("ALTER SYSTEM SET synchronous_standby_names = 'tiering'")
        world.execute("SELECT pg_reload_conf()")
    acknowledged: dict[int, float] = {}
    with world.streaming():
        if is_synchronous:
            states = "SELECT sync_state FROM pg_stat_replication WHERE application_name = 'tiering'"
            wait_until(lambda: world.execute(states) == [("sync",)], what="commits wait for the bucket")
        if life % (LIVES_PER_FULL_SYNC if is_synchronous else LIVES_PER_FULL) == 0:
            world.backup()
        writers = [
            threading.Thread(target=write, args=(world, (life * WRITERS + number) * 10**7, acknowledged))
            for number in range(WRITERS)
        ]
        for writer in writers:
            writer.start()
        wait_until(lambda: len(acknowledged) > 50, what="the load writes")
        deadline = time.monotonic() + choice.uniform(*LOAD_SECONDS)
        wait_until(lambda: time.monotonic() > deadline, what="the moment has come")
        over.set()
        killed_at = time.monotonic()
        world.lose()
        for writer in writers:
            writer.join()
    over.clear()
    world.come_back()
    present = {int(str(row)) for (row,) in world.execute("SELECT id FROM load WHERE id >= %s", life * WRITERS * 10**7)}
    before = {row: at for row, at in acknowledged.items() if at <= killed_at}
    missing = set(before) - present
    losses.kills += 1
    losses.acknowledged += len(before)
    losses.lost += len(missing)
    losses.seconds.append(max((killed_at - before[row] for row in missing), default=0.0))
    for number in range(WRITERS):
        judge_writer(sorted(row for row in present if row // 10**7 == life * WRITERS + number), losses)


def judge_writer(rows: list[int], losses: Losses) -> None:
    """A writer's rows are there from its first on without a hole: one transaction after the other."""
    if rows and rows != list(range(rows[0] - rows[0] % 10**7, rows[-1] + 1)):
        losses.wrong.append(f"rows of one writer with a hole before {rows[-1]}")


def write(world: PgWorld, first: int, acknowledged: dict[int, float]) -> None:
    """Insert row after row, each in a transaction of its own, until the server is gone."""
    try:
        connection = psycopg2.connect(world.url.get_secret_value())
        connection.autocommit = True
        with connection.cursor() as cursor:
            for row in range(first, first + 10**7):
                cursor.execute("INSERT INTO load VALUES (%s, repeat('y', 100))", (row,))
                acknowledged[row] = time.monotonic()
    except psycopg2.Error:
        return  # lost, as it was meant


def report(name: str, seed: int, began: float, numbers: dict[str, Any], is_good: bool) -> dict[str, object]:
    """Make a row and print it."""
    row = {"name": name, "seed": seed, **numbers, "seconds": round(time.monotonic() - began), "ok": is_good}
    say(json.dumps(row))
    return row


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
