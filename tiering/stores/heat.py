"""Count accesses in Redis, decayed: what was read a half-life ago counts half. Redis Cluster or a single server.

Per dataset and epoch one hash: `since`, the dataset, its units, its symbols. A count is kept as the sum of
weight * 2^((t - start of epoch) / half-life), so that counting is one addition, whatever the order: exact, atomic, and
nothing is lost between concurrent writers. Reading scales it back to the instant asked for; the epoch before the last
one counts 2^-32 and less, and is left to its time to live. That, and `FIELDS_MAX`, bound the memory.

Why forward decay: value and time stamp would need a read before every write.
Source: Cormode, Shkapenyuk, Srivastava, Xu: "Forward Decay", ICDE 2009.
Losing it all loses no data: placement then knows no heat, and changes nothing.
Does not: decide what is hot (plan/placement.py).
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import SecretStr

from tiering import errors
from tiering.model import Heat

log = logging.getLogger(__name__)

EPOCH_HALF_LIVES = 32
"""Length of an epoch: sums stay below 2^32 times their count, which the server's 64-bit mantissa holds exactly."""

FIELDS_MAX = 50_000
"""Fields of one hash, some 4 MB: beyond, only units and symbols that are counted already go on."""

TIMEOUT_SECONDS = 0.25
REST_SECONDS = 30.0
QUEUE_MAX = 1000
LEAVE_SECONDS = 0.3

# KEYS: this epoch's hash, the one before. ARGV: now, seconds to live, FIELDS_MAX, increment, fields …
_ADD = """
redis.call('HSETNX', KEYS[1], 'since', redis.call('HGET', KEYS[2], 'since') or ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
local room = ARGV[3] - redis.call('HLEN', KEYS[1])
for i = 5, #ARGV do
  local known = redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1
  if known or room > 0 then redis.call('HINCRBYFLOAT', KEYS[1], ARGV[i], ARGV[4]) end
  if not known then room = room - 1 end
end
"""


@dataclass(frozen=True, slots=True)
class Touch:
    """One access: to a dataset, and to those of its units (by begin) and symbols that it named."""

    dataset: str
    now: datetime
    units: Collection[datetime] = ()
    symbols: Collection[str] = ()
    weight: float = 1.0


class HeatCounters:
    """The counters behind one Redis URL. Opens no connection until asked; safe to share between threads.

    Args:
        url: of a server, or of any node of a cluster; None: there is no Redis, and no heat is known.
        half_life: after it an access counts half.
        timeout_seconds: longest wait for an answer.
        rest_seconds: after a failure, `touch` leaves Redis alone for so long.
    """

    def __init__(
        self,
        url: SecretStr | None,
        half_life: timedelta = timedelta(days=1),
        timeout_seconds: float = TIMEOUT_SECONDS,
        rest_seconds: float = REST_SECONDS,
    ) -> None:
        self.url = url
        self._half_life = half_life
        self._timeout, self._rest = timeout_seconds, rest_seconds
        self._epoch = half_life * EPOCH_HALF_LIVES
        self._client: Any = None
        # Apart: whoever touches must not wait for another thread that connects.
        self._connecting, self._starting = threading.Lock(), threading.Lock()
        self._queue: queue.Queue[Touch] = queue.Queue(QUEUE_MAX)
        self._writer: threading.Thread | None = None
        self._rests_until = 0.0

    def __repr__(self) -> str:
        return f"HeatCounters({'Redis' if self.url else 'none'})"

    # -- counting ------------------------------------------------------------------------------------------

    def record(self, touch: Touch) -> None:
        """Count one access, in one round trip, whatever it touched.

        Raises:
            StoreUnavailable: there is no Redis, or it does not answer.
            ValueError: a weight that is no positive number.
        """
        if not (math.isfinite(touch.weight) and touch.weight > 0):
            raise ValueError(f"weight {touch.weight!r} is no positive number")
        number, into = divmod(_seconds(touch.now), self._epoch.total_seconds())
        increment = touch.weight * 2.0 ** (into / self._half_life.total_seconds())
        fields = ["dataset", *(f"u:{_seconds(begin):.0f}" for begin in set(touch.units))]
        fields += [f"s:{symbol}" for symbol in set(touch.symbols)]
        keys = [self._key(touch.dataset, int(number)), self._key(touch.dataset, int(number) - 1)]
        lives = round(2 * self._epoch.total_seconds())
        with self._mapped("count access to", touch.dataset):
            arguments = [repr(_seconds(touch.now)), lives, FIELDS_MAX, repr(increment), *fields]
            self._connected().eval(_ADD, len(keys), *keys, *arguments)

    def touch(
        self, dataset: str, now: datetime, units: Collection[datetime] = (), symbols: Collection[str] = ()
    ) -> None:
        """Count an access if that is possible, from a thread of its own: never waits, never fails.

        What comes faster than Redis takes it, or while Redis rests after a failure, is not counted.
        """
        if self.url is None or time.monotonic() < self._rests_until:
            return
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(Touch(dataset, now, tuple(units), tuple(symbols)))
        with self._starting:
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="heat", daemon=True)
                self._writer.start()

    def _write(self) -> None:
        while True:
            touch = self._queue.get()
            try:
                if time.monotonic() >= self._rests_until:
                    self.record(touch)
            except (errors.TieringError, ValueError) as exc:
                self._rests_until = time.monotonic() + self._rest
                log.info("accesses are not counted for %.0f s: %s", self._rest, exc)
            finally:
                self._queue.task_done()

    def flush(self, seconds: float = LEAVE_SECONDS) -> bool:
        """Wait until every touch was dealt with, at most so long; tell whether that was so."""
        with self._queue.all_tasks_done:
            return self._queue.all_tasks_done.wait_for(lambda: not self._queue.unfinished_tasks, seconds)

    # -- reading -------------------------------------------------------------------------------------------

    def read(self, dataset: str, now: datetime) -> Heat:
        """Read a dataset's accesses per day as of `now`: what a steady rate would have to be to leave these counts.

        A dataset that nobody counted for one or two epochs is unknown, not cold: its readers may not count.

        Raises:
            StoreUnavailable: there is no Redis, or it does not answer.
        """
        number = int(_seconds(now) // self._epoch.total_seconds())
        with self._mapped("read heat of", dataset):
            hashes = [(n, self._connected().hgetall(self._key(dataset, n))) for n in (number, number - 1)]
        rates: dict[str, float] = {}
        since: float | None = None
        for epoch, fields in hashes:
            if b"since" in fields:
                began = float(fields.pop(b"since"))
                since = began if since is None else min(since, began)
            for name, value in fields.items():
                rates[name.decode()] = rates.get(name.decode(), 0.0) + float(value) * self._rate(epoch, now)
        return Heat(
            since=None if since is None else datetime.fromtimestamp(since, UTC),
            dataset=rates.get("dataset", 0.0),
            units={datetime.fromtimestamp(int(n[2:]), UTC): rate for n, rate in rates.items() if n.startswith("u:")},
            symbols={name[2:]: rate for name, rate in rates.items() if name.startswith("s:")},
        )

    def _rate(self, epoch: int, now: datetime) -> float:
        """Turn an epoch's sums into accesses per day: decayed to `now`, times ln 2 per half-life."""
        half_life = self._half_life.total_seconds()
        decay = 2.0 ** ((epoch * self._epoch.total_seconds() - _seconds(now)) / half_life)
        return float(decay * math.log(2) * 86400 / half_life)

    def _key(self, dataset: str, epoch: int) -> str:
        # The braces put all of a dataset's keys into one slot of a cluster, where a script can use them together.
        return f"tiering:heat:{{{dataset}}}:{epoch}"

    # -- the server ----------------------------------------------------------------------------------------

    def _connected(self) -> Any:
        with self._connecting:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Any:
        from redis import Redis, RedisCluster  # 0.2 s, paid only by those who count or read
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        if self.url is None:
            raise errors.StoreUnavailable("connect", "Redis", "TIERING_REDIS_URL is not set")
        url = self.url.get_secret_value()
        timeouts = {"socket_timeout": self._timeout, "socket_connect_timeout": self._timeout}
        try:
            single = Redis.from_url(url, retry=Retry(NoBackoff(), 1), **timeouts)
        except ValueError:  # its text may quote the URL, password and all
            hint = "Write redis://:password@host:port/0."
            raise errors.SettingsError("read settings", "TIERING_REDIS_URL", "malformed", hint) from None
        if not single.info("cluster").get("cluster_enabled"):
            return single
        single.close()
        return RedisCluster.from_url(url, retry=Retry(NoBackoff(), 2), **timeouts)

    @contextlib.contextmanager
    def _mapped(self, operation: str, dataset: str) -> Iterator[None]:
        """Turn the driver's exceptions into ours. The client itself finds servers again that were away."""
        from redis import exceptions

        try:
            yield
        except (exceptions.AuthenticationError, exceptions.NoPermissionError) as exc:
            hint = "Check the password in TIERING_REDIS_URL, and its user's rights."
            raise errors.AccessDenied(operation, dataset, str(exc), hint) from exc
        except (exceptions.RedisError, exceptions.RedisClusterException, OSError) as exc:
            cause = " ".join(str(exc).split()) or type(exc).__name__
            raise errors.StoreUnavailable(operation, dataset, cause, "Is Redis up? `tiering stack status`.") from exc

    def close(self) -> None:
        """Give what was touched a moment to be counted, and close the connections."""
        if self._writer is not None:
            self.flush()
        if self._connecting.acquire(timeout=LEAVE_SECONDS):  # else Redis does not answer: there is nothing to close
            client, self._client = self._client, None
            self._connecting.release()
            if client is not None:
                client.close()


def _seconds(instant: datetime) -> float:
    if instant.utcoffset() is None:
        raise ValueError(f"{instant.isoformat()} has no time zone")
    return instant.timestamp()
