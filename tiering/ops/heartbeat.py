"""Keep the heartbeat ledger: one beat a second into every store, each store by a thread of its own.

A store that is down gets its beats when it is back, in order, so that its chain has no hole; the others go on. After a
pause of the daemon itself the stores are brought level before the next beat. Stores that disagree about the past stop
it: papering over that would hide what a drill is to find.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from pydantic import SecretStr

from tiering import errors
from tiering.model_drill import Beat, ChainVerdict
from tiering.plan.heartbeat import common_beat, continue_from, first_beat, judge_chain, next_beat
from tiering.stores.beats import BeatLedger, MongoBeats, ObjectBeats, PostgresBeats, RedisBeats
from tiering.stores.opening import Stores

log = logging.getLogger(__name__)

TAIL = 7200
"""Beats that are looked at when the daemon starts: stores that were apart for longer than two hours need a person."""

KEEP_FOR = timedelta(days=2)
PENDING_MAX = 86_400
FORGET_EVERY = 3600
ALARM_SECONDS = 60.0
"""A store that took no beat for so long is told to a person."""

BATCH = 500


@dataclass
class Lane:
    """One store's queue of beats, and how it fares.

    Attributes:
        ledger: of the store.
        pending: beats that it has not acknowledged.
        acknowledged: the newest one that it has.
        problem: why the last attempt failed; empty if it did not.
    """

    ledger: BeatLedger
    pending: deque[Beat] = field(default_factory=lambda: deque(maxlen=PENDING_MAX))
    acknowledged: Beat | None = None
    problem: str = ""
    wakes: threading.Event = field(default_factory=threading.Event)


class Heart:
    """The daemon. `with Heart(ledgers)` beats inside; `lanes` tell how each store fares.

    Args:
        ledgers: one for every store.
        alarm: told (store, problem) once when a store has been silent for `ALARM_SECONDS`.
        new_chain: begin another history, after a restore made the stores disagree about the old one.

    Raises:
        VerificationError: on entering, the stores disagree about the past.
    """

    def __init__(
        self, ledgers: Sequence[BeatLedger], alarm: Callable[[str, str], None] | None = None, *, new_chain: bool = False
    ) -> None:
        self.lanes = [Lane(ledger) for ledger in ledgers]
        self.last: Beat | None = None
        self._alarm = alarm or (lambda store, problem: log.error("%s takes no heartbeat: %s", store, problem))
        self._new_chain = new_chain
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Heart:
        self._catch_up()
        self._threads = [threading.Thread(target=self._write, args=(lane,), daemon=True) for lane in self.lanes]
        self._threads.append(threading.Thread(target=self._beat, daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        for lane in self.lanes:
            lane.wakes.set()
        for thread in self._threads:
            thread.join(timeout=15)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the daemon is told to end, or for so long."""
        self._ending.wait(seconds)

    @property
    def is_ending(self) -> bool:
        """Tell whether it was told to end."""
        return self._ending.is_set()

    def stop(self) -> None:
        """Tell the daemon to end; may be called from a signal handler."""
        self._ending.set()

    def _catch_up(self) -> None:
        tails: dict[str, list[Beat]] = {}
        for lane in self.lanes:
            try:
                tails[lane.ledger.name] = lane.ledger.read(TAIL) if lane.ledger.every <= timedelta(seconds=1) else []
            except errors.TransientError as exc:
                lane.problem = exc.cause
        now = _now()
        newest, missing, disagreement = continue_from(tails)
        if disagreement and not self._new_chain:
            hint = "After a restore to different moments: `tiering heartbeat --new-chain`. Else look for who wrote."
            raise errors.VerificationError("continue", "heartbeat", disagreement, hint)
        if self._new_chain or newest is None:
            self.last = first_beat(secrets.token_hex(4), now)
            for lane in self.lanes:
                lane.pending.append(self.last)
            return
        self.last = newest
        every = max(tails.values(), key=lambda beats: (beats[-1].at, beats[-1].seq) if beats else (_EPOCH, 0))
        for lane in self.lanes:
            # A store that is down now may lack anything: it is offered all, and takes what it has not.
            lane.pending.extend(missing.get(lane.ledger.name, every) if lane.ledger.every <= _SECOND else [newest])

    def _beat(self) -> None:
        previous = self.last
        while previous is not None and not self._ending.wait(_until_next_second()):
            previous = next_beat(previous, _now())
            self.last = previous
            for lane in self.lanes:
                if previous.seq % max(1, int(lane.ledger.every.total_seconds())) == 0 or lane.ledger.every <= _SECOND:
                    lane.pending.append(previous)
                    lane.wakes.set()

    def _write(self, lane: Lane) -> None:
        silent_since, is_told, written = _now(), False, 0
        while not self._ending.is_set() or (lane.pending and not lane.problem):
            batch = [lane.pending[index] for index in range(min(BATCH, len(lane.pending)))]
            try:
                if batch:
                    lane.ledger.append(batch)
                    lane.acknowledged, lane.problem = batch[-1], ""
                    silent_since, is_told = _now(), False
                    for _ in batch:
                        lane.pending.popleft()
                    written += len(batch)
                    if written % FORGET_EVERY < len(batch):
                        lane.ledger.forget(batch[-1].at - KEEP_FOR)
            except errors.TieringError as exc:
                lane.problem = exc.cause
                if (_now() - silent_since).total_seconds() > ALARM_SECONDS and not is_told:
                    self._alarm(lane.ledger.name, exc.cause)
                    is_told = True
            if len(lane.pending) == 0 or lane.problem:
                lane.wakes.wait(1.0)
                lane.wakes.clear()


def verify(ledgers: Sequence[BeatLedger], limit: int = PENDING_MAX) -> tuple[list[ChainVerdict], Beat | None, str]:
    """Read every store's heartbeats after a restore: each chain, the newest beat that all have, and why none, if so."""
    chains = {ledger.name: ledger.read(limit) for ledger in ledgers}
    verdicts = [judge_chain(name, beats) for name, beats in chains.items()]
    newest, problem = common_beat(chains)
    return verdicts, newest, problem


def ledgers_of(stores: Stores) -> list[BeatLedger]:
    """Name the ledgers of a platform: every server that is backed up by itself has one, and the files bucket."""
    found: list[BeatLedger] = []
    if _server(stores.hot.url) == _server(stores.warm.url):
        found.append(PostgresBeats("postgresql/main", stores.hot))
    else:
        found += [PostgresBeats("postgresql/hot", stores.hot), PostgresBeats("postgresql/warm", stores.warm)]
    hot, warm = stores.hot_documents, stores.warm_documents
    if hot.url.get_secret_value():
        is_one = not warm.url.get_secret_value() or _server(hot.url) == _server(warm.url)
        found.append(MongoBeats("mongodb/main" if is_one else "mongodb/hot", hot))
        found += [] if is_one else [MongoBeats("mongodb/warm", warm)]
    if stores.heat.url is not None:
        found.append(RedisBeats("redis/main", stores.heat.url))
    return [*found, ObjectBeats("application_data/main", stores.files)]


def _server(url: SecretStr) -> str:
    return urlsplit(url.get_secret_value()).netloc.rpartition("@")[2]


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)


def _now() -> datetime:
    # Milliseconds: what every kind of store keeps.
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def _until_next_second() -> float:
    return 1.0 - datetime.now(UTC).microsecond / 1_000_000
