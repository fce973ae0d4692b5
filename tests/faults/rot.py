"""`python -m tests.faults.rot [--flips N]`: single bytes flipped in every kind of stored object; adds to faults.json.

Each flip replaces the object in the bucket; then the step of a restore that reads it has to end with an error, and with
none once the object is as it was. Some flips are followed by a whole restore, which must start no server. Row:
`recovery.rot`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pymongo import MongoClient

from infra.local import Stack
from infra.local.processes import find_descendants
from infra.local.s3 import REGION
from infra.local.scratch_postgres import LocalScratchPostgres
from infra.local.scratch_redis import scratch_redis
from infra.local.scratch_servers import scratch_mongo, scratch_s3
from tests.faults.rot_world import RotWorld, Step, open_rot_world
from tests.faults.rows import OUT, merge
from tests.ops.postgres_world import MEMORY, SOURCE, PgWorld
from tiering import errors
from tiering.model_backup import Backup, BackupKind, StoreName
from tiering.ops import restore_lake, restore_mongo, restore_redis
from tiering.plan.recovery import Target, TargetKind
from tiering.stores.objects import S3Objects
from tiering.stores.redis_wire import Slots
from tiering.stores.scratch import ScratchServer

WHOLE_RESTORES = 30
EDGE = 64
CONTROL_SECONDS = 0.3
UNREAD = re.compile("^lease/|/REMOVED$")
"""What no restore reads the contents of: that such an object is there says all."""
UNCLEAR = (
    errors.TieringError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors that tell no operator what is wrong with a stored object."""

Say = Callable[[str], None]


@dataclass
class Found:
    """What the flips did.

    Attributes:
        kinds: flips by kind of object.
        missed: flips that nobody found, or not with a clear error, or after a server was started.
        alarms: of untouched copies.
        controls: readings of untouched copies.
        whole: restores.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    controls: int = 0
    whole: int = 0

    @property
    def flips(self) -> int:
        """Count all."""
        return self.kinds.total()


def kind_of(name: str) -> str:
    """Say what kind of object a name is of: its place without sources, backups, hashes and positions."""
    place, store, *rest = [*name.split("/"), ""]
    last = name.rsplit("/", 1)[-1]
    if place == "catalogue":
        return f"{store} {last.partition('-')[0]}"
    if place == "backups":
        kind = rest[1].split("-")[1]
        file = re.sub(r"[0-9.]+$", "", "/".join(rest[2:]).rstrip("/"))
        return f"{store} {kind} {'list' if file.startswith('list') else _part(store, file)}"
    return place if place in ("expected", "evidence") else f"{store} {place}"


def _part(store: str, file: str) -> str:
    if store == StoreName.POSTGRESQL:
        return "manifest" if file.endswith("manifest") else "part"
    return file.split("/")[0].split("-")[0] or "part"


def flip_steps(world: RotWorld, steps: Sequence[Step], choice: random.Random, flips: int, say: Say) -> Found:
    """Flip bytes, one kind of object after another, and have each read as a restore does."""
    found, readers = Found(), dict[str, list[Step]]()
    for step in steps:
        for name in step.reads:
            if step.judges(name):
                readers.setdefault(name, []).append(step)
    unread = [name for name in world.names() if name not in readers and not UNREAD.search(name)]
    groups = grouped(sorted(readers))
    say(f"{len(readers)} objects of {len(groups)} kinds, {len(unread)} besides that no restore of this moment reads")
    kinds = sorted(groups)
    while found.flips < flips:
        kind = kinds[found.flips % len(kinds)]
        name = choice.choice(groups[kind])
        step = choice.choice(readers[name])
        with flipped(world, name, choice) as where:
            problem = trouble(step.run)
        found.kinds[kind] += 1
        if problem:
            found.missed.append(f"{where}, {step.name}: {problem}")
            say(f"WRONG {found.missed[-1]}")
        # What takes long is read again after some of the flips only.
        if choice.random() < CONTROL_SECONDS / max(CONTROL_SECONDS, step.seconds):
            found.controls += 1
            if alarm := false_alarm(step.run):
                found.alarms.append(f"{step.name}: {alarm}")
        if found.flips % 100 == 0:
            say(f"{found.flips} of {flips} flips, {len(found.missed)} missed, {len(found.alarms)} false alarms")
    return found


def grouped(names: Sequence[str]) -> dict[str, list[str]]:
    """Sort names by kind."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(kind_of(name), []).append(name)
    return groups


@contextmanager
def flipped(world: RotWorld, name: str, choice: random.Random) -> Iterator[str]:
    """Replace an object by itself with one byte changed, for a while; a third of them near its ends."""
    client, bucket = world.stack.s3.client(), world.objects.bucket
    whole: bytes = client.get_object(Bucket=bucket, Key=name)["Body"].read()
    edge = min(EDGE, len(whole))
    begin = choice.choice([choice.randrange(len(whole)), choice.randrange(len(whole)), choice.randrange(-edge, edge)])
    place = begin % len(whole)
    body = bytearray(whole)
    body[place] ^= choice.randrange(1, 256)
    client.put_object(Bucket=bucket, Key=name, Body=bytes(body))
    try:
        yield f"byte {place} of {name}"
    finally:
        client.put_object(Bucket=bucket, Key=name, Body=whole)


def trouble(run: Callable[[], object]) -> str:
    """Run on a spoiled object; say what is wrong with how it ended; nothing if with a clear error."""
    try:
        run()
    except (errors.VerificationError, errors.PermanentError):
        return ""
    except UNCLEAR as exc:
        return f"ended with {type(exc).__name__}: {exc}"
    return "was not found"


def false_alarm(run: Callable[[], object]) -> str:
    """Run on what is right; say what it complained of."""
    try:
        run()
    except UNCLEAR as exc:
        return f"{type(exc).__name__}: {exc}"
    return ""


# Whole restores.


@dataclass
class Starts:
    """Counts the servers that restores start."""

    count: int = 0

    def redis(self, files: Sequence[Path], slots: Sequence[Slots]) -> Any:
        """Start Redis, and count it."""
        self.count += 1
        return scratch_redis(files, slots)


class CountedPostgres(LocalScratchPostgres):
    """Starts PostgreSQL, and counts it."""

    def __init__(self, starts: Starts) -> None:
        super().__init__(MEMORY)
        self._starts = starts

    @contextmanager
    def start(self, directory: Path, superuser: str) -> Iterator[ScratchServer]:
        self._starts.count += 1
        with super().start(directory, superuser) as server:
            yield server


@dataclass(frozen=True)
class Whole:
    """A whole restore.

    Attributes:
        name: in words.
        run: restores, and starts servers on what was restored.
        is_empty: nothing was written into the server that it restores into, if there is one.
        clear: makes that so again.
    """

    name: str
    run: Callable[[], object]
    is_empty: Callable[[], bool] = lambda: True
    clear: Callable[[], object] = lambda: None


def flip_whole(world: RotWorld, choice: random.Random, count: int, found: Found, say: Say) -> None:
    """Flip a byte of something that a whole restore reads, and restore: no server may be started on it."""
    starts = Starts()
    with ExitStack() as until_end:
        wholes = _wholes(world, starts, until_end)
        read = {whole.name: world.watched(Step(whole.name, whole.run)).reads for whole in wholes}
        for number in range(count):
            whole = wholes[number % len(wholes)]
            whole.clear()
            # A spoiled record of the catalogue leaves an older backup, which is restored rightly.
            groups = grouped(sorted(name for name in read[whole.name] if not name.startswith("catalogue/")))
            kind = choice.choice(sorted(groups))
            before, starts.count = _servers(), 0
            with flipped(world, choice.choice(groups[kind]), choice) as where:
                problem = trouble(whole.run)
            left = len(_servers() - before)
            if problem or starts.count or left or not whole.is_empty():
                told = f"{starts.count} servers started, {left} left, empty: {whole.is_empty()}"
                found.missed.append(f"{where}, restore of {whole.name}: {problem or 'a clear error'}, {told}")
            found.kinds[kind] += 1
            found.whole += 1
        for whole in wholes:
            whole.clear()
            if alarm := false_alarm(whole.run):
                found.alarms.append(f"restore of {whole.name}: {alarm}")
    say(f"{found.whole} flips before whole restores, {len(found.missed)} missed")


def _servers() -> set[int]:
    return {one.pid for one in find_descendants(os.getpid())}


def _wholes(world: RotWorld, starts: Starts, until_end: ExitStack) -> list[Whole]:
    found = [Whole("PostgreSQL", lambda: _postgres(world, starts))]
    for kind in (BackupKind.FULL, BackupKind.AOF):
        [backup] = [one for one in world.backups if one.store is StoreName.REDIS and one.kind is kind]
        found.append(Whole(f"Redis {kind}", lambda backup=backup: _redis(world, backup, starts)))
    url = until_end.enter_context(scratch_mongo())
    client: MongoClient[dict[str, object]] = until_end.enter_context(MongoClient(url.get_secret_value()))
    found.append(Whole("MongoDB", lambda: _mongo(world, url), lambda: not _databases(client), lambda: _drop(client)))
    if world.lake is not None:
        lake, access = world.lake.stores, until_end.enter_context(scratch_s3()).s3
        login = (SecretStr(word) for word in access.credentials)
        target = S3Objects(access.url, lake.objects.bucket, *login, REGION)
        found.append(
            Whole(
                "the lake",
                lambda: restore_lake.restore(world.catalogue(), lake.warm, target),
                lambda: not list(target.list()),
                lambda: target.delete([stat.key for stat in target.list()]),
            )
        )
    return found


def _postgres(world: RotWorld, starts: Starts) -> None:
    pg = PgWorld(world.stack, world.catalogue(), CountedPostgres(starts))
    rows = pg.rows_at(Target(TargetKind.LATEST))
    assert rows, "the journal has rows"


def _redis(world: RotWorld, backup: Backup, starts: Starts) -> None:
    with restore_redis.load(world.catalogue(), backup, starts.redis, MEMORY) as copy:
        assert copy.keys


def _mongo(world: RotWorld, into: SecretStr) -> None:
    restore_mongo.restore(world.catalogue(), restore_mongo.LATEST, into, now=datetime.now(UTC), source=SOURCE)


def _databases(client: MongoClient[dict[str, object]]) -> list[str]:
    return [name for name in client.list_database_names() if name not in ("admin", "config", "local")]


def _drop(client: MongoClient[dict[str, object]]) -> None:
    for name in _databases(client):
        client.drop_database(name)


# The campaign.


def main() -> int:
    """Run the campaign; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.rot", description=__doc__)
    parser.add_argument("--flips", type=int, default=2000, help="bytes to flip (default 2000)")
    parser.add_argument("--restores", type=int, default=WHOLE_RESTORES, help="whole restores besides (default 30)")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier campaign, to repeat its choices")
    parser.add_argument("--out", type=Path, default=OUT, help="where the numbers go")
    arguments = parser.parse_args()
    seed = secrets.randbelow(100_000) if arguments.seed is None else arguments.seed
    began, choice = time.monotonic(), random.Random(seed)
    say(f"rot: {arguments.flips} flips, seed {seed}")
    with tempfile.TemporaryDirectory(prefix="tiering-rot-") as temporary:
        directory = Path(temporary)
        directory.chmod(0o711)  # PostgreSQL runs as nobody below root
        with Stack(directory / "stack") as stack, open_rot_world(stack, directory, seed) as world:
            say(f"every store backed up after {time.monotonic() - began:.0f} s")
            found = flip_steps(world, world.steps(), choice, arguments.flips, say)
            flip_whole(world, choice, arguments.restores, found, say)
    for kind, count in sorted(found.kinds.items()):
        say(f"{count:>6}  {kind}")
    for problem in [*found.missed[:20], *found.alarms[:20]]:
        say(f"WRONG {problem}")
    row = {
        "name": "recovery.rot", "seed": seed, "flips": found.flips, "kinds": len(found.kinds),
        "missed": len(found.missed), "controls": found.controls, "false_alarms": len(found.alarms),
        "whole_restores": found.whole, "seconds": round(time.monotonic() - began),
        "ok": not found.missed and not found.alarms,
    }  # fmt: skip
    say(json.dumps(row))
    merge(arguments.out, [row])
    return 0 if row["ok"] else 1


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
