"""`python -m tests.faults.access_kills [--kills 200] [--seed N]`: writers, Redis and PostgreSQL are killed while rows
are written through and behind; then every acknowledged row is looked for, in the database and through the client.

A row counts as doubled when its table took it twice: a trigger notes each time. Only `kill -9`, one at a time, after
the writers have acknowledged more than at the last one. Prints what was found; ends with 0, or with 1 where a row was
lost or doubled. Redis is one server with AOF, the journal a directory on this machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path

import psycopg2

from infra.local import Stack
from tests.access.world import OneRedis, client, installed, one_redis, run
from tests.faults.access_writer import BEHIND, THROUGH, write_for_ever
from tests.wait import wait_until
from tiering.plan.calendars import sessions_for
from tiering.settings import Settings

WRITER, REDIS, POSTGRES = "writer", "Redis", "PostgreSQL"
WEIGHTS = {WRITER: 5, REDIS: 4, POSTGRES: 1}
WRITERS = 2
READ_BACK = 200
"""Rows written through that are read through the client at the end."""

_WATCH = """
CREATE TABLE public.taken (key text NOT NULL);
CREATE FUNCTION public.note_taken() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.taken VALUES (to_jsonb(NEW) ->> TG_ARGV[0]);
    RETURN NULL;
END $$;
CREATE TRIGGER taken AFTER INSERT OR UPDATE ON hot.market_bars
    FOR EACH ROW EXECUTE FUNCTION public.note_taken('symbol');
CREATE TRIGGER taken AFTER INSERT OR UPDATE ON hot.user_configurations
    FOR EACH ROW EXECUTE FUNCTION public.note_taken('user_id');
"""


@dataclass
class Outcome:
    """What a campaign found."""

    kills: Counter[str] = field(default_factory=Counter)
    acknowledged: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)

    def __str__(self) -> str:
        kills = ", ".join(f"{count} of {name}" for name, count in sorted(self.kills.items()))
        text = (
            f"access kills: {self.kills.total()} ({kills}) in {self.seconds:.0f} s; acknowledged "
            f"{self.acknowledged[THROUGH]:,} rows through and {self.acknowledged[BEHIND]:,} behind; "
            f"lost {len(self.lost)}, doubled {len(self.doubled)}, read back wrong {len(self.wrong)}"
        )
        found = [*self.lost, *self.doubled, *self.wrong]
        return f"{text}: {', '.join(found[:5])}" if found else text


class Campaign:
    """Servers, writers, and what they noted."""

    def __init__(self, stack: Stack, redis: OneRedis, settings: Settings, notes: Path, dice: random.Random) -> None:
        self._stack, self._redis, self._settings, self._notes, self._dice = stack, redis, settings, notes, dice
        self._writers: dict[int, BaseProcess] = {}
        self._started = 0
        self.outcome = Outcome()

    def start_writer(self, place: int) -> None:
        """Start a writer; forked, as a new interpreter would take seconds."""
        self._started += 1
        arguments = (self._settings, self._notes, f"w{self._started}")
        process = multiprocessing.get_context("fork").Process(target=write_for_ever, args=arguments)
        process.start()
        self._writers[place] = process

    def noted(self) -> int:
        """How many bytes of acknowledgements there are."""
        return self._notes.stat().st_size if self._notes.exists() else 0

    def kill_one(self) -> None:
        """Wait for acknowledgements, and kill one at random."""
        before = self.noted()
        wait_until(lambda: self.noted() > before, 120, "the writers go on")
        time.sleep(self._dice.random() * 0.15)  # the instant is what the dice choose; nothing waits for anything here
        target = self._dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        self.outcome.kills[target] += 1
        if target == WRITER:
            place = self._dice.choice(list(self._writers))
            self.end_writer(place)
            self.start_writer(place)
        elif target == REDIS:
            self._redis.kill()
            self._redis.start()
        else:
            self._stack.kill("postgres")
            self._stack.restart("postgres")

    def end_writer(self, place: int) -> None:
        """Kill a writer."""
        process = self._writers.pop(place)
        process.kill()
        process.join()

    def end_writers(self) -> None:
        """Kill those that are left."""
        for place in list(self._writers):
            self.end_writer(place)

    def judge(self) -> None:
        """Let a new client take over the journals, and look for every acknowledged row."""
        acknowledged: dict[str, list[str]] = {THROUGH: [], BEHIND: []}
        for line in self._notes.read_text().splitlines():
            mode, _, key = line.partition(" ")
            acknowledged[mode].append(key)
        self.outcome.acknowledged.update({mode: len(keys) for mode, keys in acknowledged.items()})
        sample = self._dice.sample(acknowledged[THROUGH], min(READ_BACK, len(acknowledged[THROUGH])))
        self.outcome.wrong += run(self._read_back(sample), 300)
        with suppress(psycopg2.Error), psycopg2.connect(self._settings.hot_pg_url.get_secret_value()) as connection:
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT symbol FROM hot.market_bars UNION ALL SELECT user_id FROM hot.user_configurations"
                )
                there = Counter(row[0] for row in cursor.fetchall())
                cursor.execute("SELECT key FROM public.taken")
                taken = Counter(row[0] for row in cursor.fetchall())
            self.outcome.lost = [key for keys in acknowledged.values() for key in keys if not there[key]]
            self.outcome.doubled = [key for key, count in (there | taken).items() if count > 1]
            return
        self.outcome.wrong.append("PostgreSQL does not answer")

    async def _read_back(self, sample: list[str]) -> list[str]:
        wrong = []
        async with client(self._settings) as access:
            if not await access.recover(120):
                wrong.append("the journals are not drained")
            for user in sample:
                row = await access.read_row("user_configurations", user_id=user)
                if row is None or row["settings"] != {"of": user}:
                    wrong.append(user)
        return wrong


@contextmanager
def campaign(dice: random.Random) -> Iterator[Campaign]:
    """Servers of its own, and writers at work."""
    for market in ("CN", "HK", "US"):
        sessions_for(market, datetime.now(UTC))  # else every writer makes them, and does nothing else for seconds
    with tempfile.TemporaryDirectory(prefix="tiering-kills-") as temporary, one_redis() as redis:
        directory = Path(temporary)
        directory.chmod(0o711)
        with (
            Stack(directory / "stack", services={"postgres", "s3"}) as stack,
            installed(stack.settings(), directory / "journal", redis.url) as (_, settings),
        ):
            with psycopg2.connect(settings.hot_pg_url.get_secret_value()) as connection, connection.cursor() as cursor:
                cursor.execute(_WATCH)
            connection.close()
            found = Campaign(stack, redis, settings, directory / "notes", dice)
            try:
                for place in range(WRITERS):
                    found.start_writer(place)
                yield found
            finally:
                found.end_writers()


def carry_out(kills: int, seed: int, say: bool = False) -> Outcome:
    """Kill so many times, and judge."""
    began = time.monotonic()
    with campaign(random.Random(seed)) as found:
        for number in range(1, kills + 1):
            found.kill_one()
            if say and number % 20 == 0:
                print(f"[{time.monotonic() - began:5.0f} s] {number} kills", flush=True)
        found.end_writers()
        found.judge()
    found.outcome.seconds = time.monotonic() - began
    return found.outcome


def main() -> int:
    """Run the campaign; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.access_kills")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=20261123)
    arguments = parser.parse_args()
    print(f"access kills: seed {arguments.seed}", flush=True)
    outcome = carry_out(arguments.kills, arguments.seed, say=True)
    print(outcome)
    return 0 if outcome.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
