"""Leases in a bucket: of two who want to do the same thing at once, one is refused.

    lease/<what>/<epoch>/held              who took it
    lease/<what>/<epoch>/beat-<number>     a sign of life; a thread writes one now and then
    lease/<what>/<epoch>/knock-<token>     somebody else asks: its time is the bucket's clock
    lease/<what>/<epoch>/closed            the epoch is over, by its holder's hand or by its successor's

Every object is written under a new name or not at all, so each question has one winner. To take over from a holder
without a sign of life, its epoch is closed first; the holder closes it, too, before it publishes. So of a holder that
was thought dead and its successor only one publishes, whatever their clocks say (fencing).

Why the knock: ages are differences between two times of the bucket; nobody's own clock counts.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tiering.errors import AlreadyExists, LeaseHeld, PermanentError, TieringError, TransientError
from tiering.stores.ports import ObjectStat
from tiering.stores.vault import Vault

LEASES = "lease/"
EXPIRES_AFTER = timedelta(minutes=2)
_BEATS_PER_LIFE = 4
_BEAT_MIN = timedelta(milliseconds=100)
_HINT = "Wait for it to end; after its death it is free within minutes."


@dataclass
class Lease:
    """The right to do something alone, for as long as signs of life are seen.

    Attributes:
        what: it is for.
        owner: in words, for those who are refused.
        epoch: counts the holders.
    """

    vault: Vault
    what: str
    owner: str
    since: datetime
    epoch: int
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    _is_open: bool = True
    _trouble: PermanentError | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def check(self) -> None:
        """Make sure that nobody took it over.

        Raises:
            LeaseHeld: somebody did.
            PermanentError: signs of life cannot be written.
        """
        if self._trouble:
            raise self._trouble
        names = {stat.key for stat in self.vault.names(self._place)}
        newest = _newest(self.vault, self.what)
        if newest[0] != self.epoch or (self._is_open and self._place + "closed" in names):
            raise _held(self.what, "somebody took the lease over, no sign of life having been seen")

    def taken_at(self) -> datetime:
        """Ask the bucket when it was taken, by the bucket's clock."""
        return next(self.vault.names(self._place + "held")).modified_at

    def spend(self) -> None:
        """Close the epoch by the holder's own hand, for the one thing that must not be done twice; take the next one.

        Raises:
            LeaseHeld: somebody else closed it.
        """
        with self._lock:
            if not self._is_open:
                self.epoch = _enter(self.vault, self.what, self._said(), self.epoch + 1, self.token)
                self._is_open = True
            if not _close(self.vault, self._place, self.token):
                raise _held(self.what, "somebody took the lease over, no sign of life having been seen")
            self._is_open = False

    def release(self) -> None:
        """Let the next one have it; if the bucket is away, they wait for the lease to expire."""
        with self._lock:
            if self._is_open:
                with suppress(TransientError):
                    _close(self.vault, self._place, self.token)
            self._is_open = False

    def keep(self, stop: threading.Event, every: timedelta) -> None:
        """Give signs of life until told to stop; the one before is taken away. For a thread of its own."""
        number, last = 0, ""
        while not stop.wait(every.total_seconds()):
            with self._lock:
                name = f"{self._place}beat-{number:010d}"
                try:
                    if self._is_open:
                        self.vault.put(name, b"")
                        if last:
                            self.vault.discard([last])
                        last = name
                    number += 1
                except AlreadyExists:
                    number += 1
                except TransientError:
                    continue
                except PermanentError as exc:
                    self._trouble = exc
                    return

    @property
    def _place(self) -> str:
        return _epoch_place(self.what, self.epoch)

    def _said(self) -> bytes:
        return json.dumps({"owner": self.owner, "since": self.since.isoformat(), "token": self.token}).encode()


@contextmanager
def take(vault: Vault, what: str, owner: str, now: datetime, expires_after: timedelta) -> Iterator[Lease]:
    """Take the lease of `what`, renew it by a thread, and let it go at the end.

    Raises:
        LeaseHeld: somebody else has it and gave a sign of life within `expires_after`.
    """
    epoch = _free_epoch(vault, what, expires_after)
    lease = Lease(vault, what, owner, now, epoch)
    _enter(vault, what, lease._said(), epoch, lease.token)
    stop = threading.Event()
    every = max(expires_after / _BEATS_PER_LIFE, _BEAT_MIN)
    thread = threading.Thread(target=lease.keep, args=(stop, every), daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        stop.set()
        thread.join()
        lease.release()


def spent_names(vault: Vault, before: datetime) -> list[str]:
    """Name the objects of epochs that are over since `before` and of which there is a newer one: litter."""
    newest: dict[str, int] = {}
    found: list[tuple[str, int, ObjectStat]] = []
    for stat in vault.names(LEASES):
        what, epoch, _ = stat.key.rsplit("/", 2)
        newest[what] = max(newest.get(what, 0), int(epoch))
        found.append((what, int(epoch), stat))
    late = {(what, epoch) for what, epoch, stat in found if stat.modified_at >= before}
    return [stat.key for what, epoch, stat in found if epoch < newest[what] and (what, epoch) not in late]


def _free_epoch(vault: Vault, what: str, expires_after: timedelta) -> int:
    """Return the number that the next holder takes; close the epoch of one that is dead."""
    epoch, stats = _newest(vault, what)
    place = _epoch_place(what, epoch)
    if not stats or any(stat.key == place + "closed" for stat in stats):
        return epoch + 1
    alive = max(stat.modified_at for stat in stats if "/knock-" not in stat.key)
    knock = f"{place}knock-{secrets.token_hex(8)}"
    vault.put(knock, b"")
    asked = next(vault.names(knock)).modified_at
    vault.discard([knock])
    if asked - alive < expires_after:
        said = json.loads(vault.read(place + "held"))
        raise _held(what, f"{said['owner']} is at it since {said['since']}")
    _close(vault, place, "")
    return epoch + 1


def _enter(vault: Vault, what: str, said: bytes, epoch: int, token: str) -> int:
    """Be the holder of an epoch, or raise LeaseHeld."""
    place = _epoch_place(what, epoch)
    if not _put_own(vault, place + "held", said, token):
        raise _held(what, "somebody else took it in the same moment")
    # Whoever listed long ago may enter an epoch that was over and swept meanwhile.
    if _newest(vault, what)[0] != epoch:
        _close(vault, place, token)
        raise _held(what, "somebody else took it meanwhile")
    return epoch


def _close(vault: Vault, place: str, token: str) -> bool:
    """End an epoch; False if somebody else did."""
    return _put_own(vault, place + "closed", json.dumps({"token": token}).encode(), token)


def _put_own(vault: Vault, name: str, data: bytes, token: str) -> bool:
    """Write an object once; True also if a lost answer hid that it was we who wrote it."""
    try:
        vault.put(name, data)
        return True
    except AlreadyExists:
        return bool(token) and json.loads(vault.read(name))["token"] == token


def _newest(vault: Vault, what: str) -> tuple[int, list[ObjectStat]]:
    """Return the newest epoch and its objects; 0 and nothing if there was none."""
    epochs: dict[int, list[ObjectStat]] = {}
    for stat in vault.names(f"{LEASES}{what}/"):
        epochs.setdefault(int(stat.key.rsplit("/", 2)[1]), []).append(stat)
    newest = max(epochs, default=0)
    return newest, epochs.get(newest, [])


def _epoch_place(what: str, epoch: int) -> str:
    return f"{LEASES}{what}/{epoch:010d}/"


def _held(what: str, cause: str) -> TieringError:
    return LeaseHeld("lease", what, cause, _HINT)
