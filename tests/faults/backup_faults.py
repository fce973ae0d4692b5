"""`python -m tests.faults.backup_faults [--only TEXT] [--tests]`: faults of backups and restores; adds to faults.json.

Every fault that fits is done to every kind of backup. A backup under a fault either raises and is not in the catalogue,
or it is there and restores to exactly what the source has; and the next backup works. A restore under a fault raises,
or brings exactly the right contents. Anything else is a silent wrong result. Row: `recovery.faults`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.faults.rows import OUT, merge
from tests.faults.scenarios import TESTS
from tests.faults.subjects import Ground, MongoLogSubject, PostgresLogSubject, Subject, contents_of, open_ground
from tests.ops.postgres_world import KEY, OTHER_KEY
from tiering import errors
from tiering.model_backup import Backup
from tiering.ops.catalogue import RECORDS, UPLOADED, Catalogue
from tiering.stores.directory import DirectoryObjects
from tiering.stores.ports import ObjectStore
from tiering.stores.vault import Keyring, Vault

ROOT = Path(__file__).parents[2]
IMPATIENT = timedelta(seconds=-60)
"""Whoever holds a lease is taken for dead: in these scenarios it is."""
Say = Callable[[str], None]


class WrongResult(AssertionError):
    """A fault changed what came back, or hid that something is missing."""


class Faulty:
    """A bucket: every call goes through to a real one; at the `at`-th, and later if `lasting`, something happens."""

    def __init__(
        self, inner: ObjectStore, at: int, effect: Callable[[], object], *, after: bool = False, lasting: bool = False
    ) -> None:
        self._inner, self._at, self._effect, self._after, self._lasting = inner, at, effect, after, lasting
        self._numbers = itertools.count(1)
        self.calls = 0

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._inner, attribute)

        def through(*args: Any, **kwargs: Any) -> Any:
            self.calls = number = next(self._numbers)
            is_hit = number == self._at or (self._lasting and number > self._at)
            if is_hit and not self._after:
                self._effect()
            answer = found(*args, **kwargs)
            if is_hit and self._after:
                self._effect()
            return answer

        return through


@dataclass(frozen=True)
class Play:
    """One fault being done to one subject.

    Attributes:
        ground: servers, bucket and backups.
        subject: the kind of backup.
        choice: of places.
        private: an empty directory.
    """

    ground: Ground
    subject: Subject
    choice: random.Random
    private: Path

    @property
    def backup(self) -> Backup:
        """The subject's backup, from before the fault."""
        return self.ground.backups[self.subject.name]

    def copied(self) -> Path:
        """Copy the bucket, to spoil it."""
        return Path(
            shutil.copytree(self.ground.bucket, self.private / "copy", ignore=shutil.ignore_patterns(".incoming"))
        )

    def victim(self, bucket: Path) -> Path:
        """Choose an object that the restore needs."""
        file = bucket / self.choice.choice(self.subject.needed(catalogue_of(DirectoryObjects(bucket)), self.backup))
        file.chmod(0o600)
        return file

    def calls(self, run: Callable[[Any], object]) -> int:
        """Count the calls to the bucket that something makes where all is well, and choose one."""
        counting = Faulty(DirectoryObjects(self.ground.bucket), 0, _never)
        run(counting)
        return self.choice.randrange(1, counting.calls + 1)


def catalogue_of(objects: Any, key: Any = KEY) -> Catalogue:
    """Open a bucket; nobody's lease is waited for."""
    return Catalogue(Vault(objects, Keyring(key)), expires_after=IMPATIENT)


def now() -> datetime:
    """The instant."""
    return datetime.now(UTC)


def _never() -> None:
    raise AssertionError("no call has this number")


def _away() -> None:
    raise errors.StoreUnavailable("reach", "the bucket", "it does not answer")


def _full() -> None:
    raise errors.StoreFull("put", "the bucket", "no space is left")


def _denied() -> None:
    raise errors.AccessDenied("reach", "the bucket", "403")


# Faults of a backup.


def judge_backup(play: Play, objects: Any, at: datetime | None = None) -> str:
    """Back up through a faulty bucket; hold what is there then to the promise; return what happened."""
    good = catalogue_of(DirectoryObjects(play.ground.bucket))
    before = {entry.backup.backup_id for entry in good.entries()}
    try:
        play.subject.backup(catalogue_of(objects), at or now())
        said = "done"
    except errors.TieringError as exc:
        said = type(exc).__name__
    return f"{said}; {judge_bucket(play, before, is_promised=said == 'done')}"


def judge_bucket(play: Play, before: set[str], *, is_promised: bool) -> str:
    """Restore whatever backup is there and was not; then take another, which must work."""
    good = catalogue_of(DirectoryObjects(play.ground.bucket))
    new = [entry.backup for entry in good.entries() if entry.backup.backup_id not in before]
    if is_promised and not new:
        raise WrongResult("it said that it is done, and there is no backup")
    for backup in new:
        check(play, play.subject.restore(good, backup), is_late=True)
    again = play.subject.backup(good, now() + timedelta(seconds=1))
    if not all(good.vault.fetch(stored) for stored in again.objects if stored.size_bytes):
        raise WrongResult("the next backup has other objects than it says")
    return f"{len(new)} backups there and right, the next one works"


def check(play: Play, found: object, *, is_late: bool = False) -> None:
    """Compare what was restored with what there is to be."""
    wanted = contents_of(play.subject, is_late=True) if is_late else play.ground.expected[play.subject.name]
    if found != wanted:
        raise WrongResult(f"other contents came back: {str(found)[:200]}")


def unreachable(play: Play) -> str:
    at = play.calls(lambda objects: play.subject.backup(catalogue_of(objects), now()))
    return judge_backup(play, Faulty(DirectoryObjects(play.ground.bucket), at, _away, lasting=True))


def once_unreachable(play: Play) -> str:
    at = play.calls(lambda objects: play.subject.backup(catalogue_of(objects), now()))
    return judge_backup(play, Faulty(DirectoryObjects(play.ground.bucket), at, _away))


def answer_lost(play: Play) -> str:
    at = play.calls(lambda objects: play.subject.backup(catalogue_of(objects), now()))
    return judge_backup(play, Faulty(DirectoryObjects(play.ground.bucket), at, _away, after=True))


def bucket_full(play: Play) -> str:
    at = play.calls(lambda objects: play.subject.backup(catalogue_of(objects), now()))
    return judge_backup(play, Faulty(DirectoryObjects(play.ground.bucket), at, _full, lasting=True))


def bucket_denied(play: Play) -> str:
    at = play.calls(lambda objects: play.subject.backup(catalogue_of(objects), now()))
    return judge_backup(play, Faulty(DirectoryObjects(play.ground.bucket), at, _denied, lasting=True))


def clock_behind(play: Play) -> str:
    return judge_backup(play, DirectoryObjects(play.ground.bucket), now() - timedelta(days=1))


def clock_ahead(play: Play) -> str:
    return judge_backup(play, DirectoryObjects(play.ground.bucket), now() + timedelta(days=1))


def two_at_once(play: Play) -> str:
    catalogue = Catalogue(Vault(DirectoryObjects(play.ground.bucket), Keyring(KEY)))
    store, source = play.backup.store, play.backup.source
    before = {entry.backup.backup_id for entry in catalogue.entries()}
    with catalogue_of(DirectoryObjects(play.ground.bucket)).lease(store, source, "another", now()):
        try:
            play.subject.backup(catalogue, now())
        except errors.LeaseHeld:
            return f"LeaseHeld; {judge_bucket(play, before, is_promised=False)}"
    raise WrongResult("two were taken at once")


def killed(play: Play) -> str:
    at = play.calls(lambda objects: play.subject.backup(catalogue_of(objects), now()))
    good = catalogue_of(DirectoryObjects(play.ground.bucket))
    before = {entry.backup.backup_id for entry in good.entries()}
    after = play.choice.random() < 0.5
    child = multiprocessing.get_context("spawn").Process(
        target=back_up_and_die, args=(play.subject, play.ground.bucket, at, after)
    )
    child.start()
    child.join(300)
    ended = "killed" if child.exitcode == -signal.SIGKILL else f"ended with {child.exitcode}"
    where = f"{'after' if after else 'before'} call {at}"
    return f"{ended} {where}; {judge_bucket(play, before, is_promised=child.exitcode == 0)}"


def back_up_and_die(subject: Subject, bucket: Path, at: int, after: bool) -> None:
    """In a process of its own: back up until a call, and end there as a power cut would."""
    objects = Faulty(DirectoryObjects(bucket), at, lambda: os.kill(os.getpid(), signal.SIGKILL), after=after)
    subject.backup(catalogue_of(objects), now())


# Faults of a restore.


def judge_restore(
    play: Play, objects: Any, key: Any = KEY, *, must_raise: bool = True, near: Path | None = None
) -> str:
    """Restore from a spoiled bucket; return what happened."""
    try:
        catalogue = catalogue_of(objects, key)
        backup = catalogue.entry(play.backup.backup_id).backup
        found = play.subject.restore(catalogue, backup, near)
    except errors.TieringError as exc:
        return type(exc).__name__
    check(play, found)
    if must_raise:
        raise WrongResult("it was restored, though what it needs is spoiled")
    return "restored rightly"


def cut(play: Play) -> str:
    file = play.victim(bucket := play.copied())
    os.truncate(file, play.choice.randrange(1, file.stat().st_size))
    return judge_restore(play, DirectoryObjects(bucket))


def emptied(play: Play) -> str:
    os.truncate(play.victim(bucket := play.copied()), 0)
    return judge_restore(play, DirectoryObjects(bucket))


def lengthened(play: Play) -> str:
    file = play.victim(bucket := play.copied())
    file.write_bytes(file.read_bytes() + b"\0" * play.choice.randrange(1, 100))
    return judge_restore(play, DirectoryObjects(bucket))


def missing(play: Play) -> str:
    play.victim(bucket := play.copied()).unlink()
    return judge_restore(play, DirectoryObjects(bucket))


def exchanged(play: Play) -> str:
    file = play.victim(bucket := play.copied())
    others = [one for one in bucket.rglob("*") if one.is_file() and one != file]
    file.write_bytes(play.choice.choice(sorted(others)).read_bytes())
    return judge_restore(play, DirectoryObjects(bucket))


def zeroed(play: Play) -> str:
    """A page of zeros in the middle, as a lost block of a disk leaves it."""
    file = play.victim(bucket := play.copied())
    body = bytearray(file.read_bytes())
    begin = play.choice.randrange(max(1, len(body) - 4096))
    body[begin : begin + 4096] = bytes(len(body[begin : begin + 4096]))
    file.write_bytes(body)
    return judge_restore(play, DirectoryObjects(bucket))


def record_missing(play: Play) -> str:
    record_of(play, bucket := play.copied()).unlink()
    return judge_restore(play, DirectoryObjects(bucket))


def record_cut(play: Play) -> str:
    file = record_of(play, bucket := play.copied())
    os.truncate(file, play.choice.randrange(file.stat().st_size))
    return judge_restore(play, DirectoryObjects(bucket))


def record_of(play: Play, bucket: Path) -> Path:
    """Return the file of a backup's record."""
    one = play.backup
    file = bucket / RECORDS / one.store / one.source / one.backup_id / UPLOADED
    file.chmod(0o600)
    return file


def wrong_key(play: Play) -> str:
    return judge_restore(play, DirectoryObjects(play.ground.bucket), OTHER_KEY)


def outage(play: Play) -> str:
    def whole(objects: Any) -> None:
        catalogue = catalogue_of(objects)
        check(play, play.subject.restore(catalogue, catalogue.entry(play.backup.backup_id).backup))

    at = play.calls(whole)
    return judge_restore(play, Faulty(DirectoryObjects(play.ground.bucket), at, _away, lasting=True))


def no_room(play: Play) -> str:
    """Restore into a file system of four pages."""
    small = play.private / "small"
    small.mkdir(mode=0o711)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=711", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        raise Unfit("only root can make a small file system")
    try:
        return judge_restore(play, DirectoryObjects(play.ground.bucket), must_raise=False, near=small)
    finally:
        subprocess.run(["umount", "-l", small], check=True)


class Unfit(Exception):
    """A scenario cannot be played here."""


Fault = Callable[[Play], str]
OF_BACKUPS: dict[str, Fault] = {
    "the bucket goes away": unreachable,
    "one call fails": once_unreachable,
    "one answer is lost": answer_lost,
    "the bucket is full": bucket_full,
    "the bucket refuses": bucket_denied,
    "killed": killed,
    "two at once": two_at_once,
    "clock a day behind": clock_behind,
    "clock a day ahead": clock_ahead,
}
OF_RESTORES: dict[str, Fault] = {
    "an object is cut": cut,
    "an object is empty": emptied,
    "an object is longer": lengthened,
    "an object is missing": missing,
    "an object is another": exchanged,
    "a page of zeros": zeroed,
    "the record is missing": record_missing,
    "the record is cut": record_cut,
    "the key is another": wrong_key,
    "the bucket goes away": outage,
    "no room": no_room,
}
LOGS = (PostgresLogSubject, MongoLogSubject)


def scenarios(ground: Ground) -> Iterator[tuple[str, Fault, Subject]]:
    """Name every fault of every subject that it fits."""
    for subject in ground.subjects:
        if not isinstance(subject, LOGS):  # logs are archived all the time, not backed up
            for name, fault in OF_BACKUPS.items():
                yield f"backup of {subject.name}: {name}", fault, subject
        for name, fault in OF_RESTORES.items():
            has_room = name == "no room" and not subject.name.startswith(("PostgreSQL", "Redis", "files"))
            if not has_room and not (isinstance(subject, LOGS) and "record" in name):
                yield f"restore of {subject.name}: {name}", fault, subject


# The campaign.


def main() -> int:
    """Run the campaign; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.backup_faults", description=__doc__)
    parser.add_argument("--only", default="", help="scenarios with this in their names")
    parser.add_argument("--tests", action="store_true", help="run the tests that play further scenarios, too")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier campaign, to repeat its choices")
    parser.add_argument("--out", type=Path, default=OUT, help="where the numbers go")
    arguments = parser.parse_args()
    seed = secrets.randbelow(100_000) if arguments.seed is None else arguments.seed
    began = time.monotonic()
    say(f"faults of backups and restores, seed {seed}")
    played, unfit, wrong = play_all(seed, arguments.only)
    tests = run_tests() if arguments.tests else (0, 0)
    row = {
        "name": "recovery.faults", "seed": seed, "scenarios": played, "unfit": unfit,
        "silent_wrong_results": len(wrong),
        "tests": tests[0], "tests_failed": tests[1], "seconds": round(time.monotonic() - began),
        "ok": not wrong and not tests[1] and played > 0,
    }  # fmt: skip
    for problem in wrong:
        say(f"WRONG {problem}")
    say(json.dumps(row))
    merge(arguments.out, [row])
    return 0 if row["ok"] else 1


def play_all(seed: int, only: str) -> tuple[int, int, list[str]]:
    """Play every scenario; return how many were, could not be, and what was wrong."""
    played, unfit, wrong = 0, 0, []
    with tempfile.TemporaryDirectory(prefix="tiering-bf-") as temporary:
        directory = Path(temporary)
        directory.chmod(0o711)  # PostgreSQL runs as nobody below root
        with open_ground(directory, seed, KEY) as ground:
            for number, (name, fault, subject) in enumerate(scenarios(ground)):
                if only not in name:
                    continue
                try:
                    outcome = play_one(
                        ground, fault, subject, directory / f"play{number}", random.Random(f"{seed} {name}")
                    )
                    played += 1
                except Unfit as exc:
                    outcome, unfit = f"not played: {exc}", unfit + 1
                except WRONG as exc:
                    outcome, played = f"WRONG {type(exc).__name__}: {exc}", played + 1
                    wrong.append(f"{name}: {outcome}")
                say(f"{played:>4}  {name}: {outcome}")
    return played, unfit, wrong


WRONG = (errors.TieringError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""A wrong result, or an error that is not told as one of ours."""


def play_one(ground: Ground, fault: Fault, subject: Subject, private: Path, choice: random.Random) -> str:
    """Play one scenario in a directory of its own."""
    private.mkdir(mode=0o711)
    try:
        return fault(Play(ground, subject, choice, private))
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(private)


def run_tests() -> tuple[int, int]:
    """Run the tests that play further scenarios; return how many there are, and 1 if some failed."""
    names: Sequence[str] = [f"tests/{scenario.test}" for scenario in TESTS]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *dict.fromkeys(names)], cwd=ROOT, check=False)
    return len(names), int(done.returncode != 0)


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
