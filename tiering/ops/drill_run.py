"""What the parts of a drill share: its kit, its phases, its defects. What goes wrong is noted, and it goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tiering import errors
from tiering.model_backup import StoreName
from tiering.model_drill import Component, Defect, Incident, Objective, Objectives, Phase, Scope
from tiering.ops.recoverers import Recoverer, Restored
from tiering.stores.opening import Stores
from tiering.stores.vault import Vault

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kit:
    """What a drill has.

    Attributes:
        vault: the backup bucket and its key.
        recoverers: one for each source of each store.
        objectives: the owner's.
        cadence: how often each store is backed up, by the owner's schedule.
        opened: opens the restored servers as the stores of the platform.
    """

    vault: Vault
    recoverers: Sequence[Recoverer]
    objectives: Objectives
    cadence: Mapping[StoreName, timedelta]
    opened: Callable[[Mapping[str, str], Sequence[Restored]], AbstractContextManager[Stores]]


@dataclass
class Run:
    """The state of one drill: phases and defects as they come, from several threads.

    Attributes:
        incident_at: from where the RTO counts.
        loss_until: back from where the RPO counts: the incident, or the corruption before it.
        answered: when a component's last question was answered, in seconds from the drill's begin, and the answers.
        failed: components one of whose questions was not answered.
        reached: up to which moment each store's data is back.
    """

    kit: Kit
    objective: Objective
    incident: Incident
    scope: Scope
    seed: int
    incident_at: datetime
    loss_until: datetime
    began_at: datetime
    began: float
    phases: list[Phase] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    answered: dict[Component, tuple[float, list[str]]] = field(default_factory=dict)
    failed: set[Component] = field(default_factory=set)
    reached: dict[StoreName, datetime] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def elapsed(self) -> float:
        """Count the seconds since the drill began."""
        return time.monotonic() - self.began

    def blame(self, code: str, subject: str, text: str) -> None:
        """Note a defect."""
        with self.lock:
            self.defects.append(Defect(code, subject, " ".join(text.split())))
        log.warning("drill: %s: %s: %s", code, subject, text)

    @contextmanager
    def phase(self, name: str, subject: str = "") -> Iterator[None]:
        """Measure a phase; what goes wrong in it becomes a defect, and the drill goes on."""
        began = self.elapsed()
        try:
            yield
        except errors.TieringError as exc:
            self.blame(code_of(exc), subject or name, str(exc))
        finally:
            ended = self.elapsed()
            with self.lock:
                self.phases.append(Phase(name, subject, round(ended - began, 3), round(ended, 3)))
            log.info("drill: %s %s: %.1f s", name, subject, ended - began)


def code_of(error: errors.TieringError) -> str:
    """Name the kind of defect that an error is."""
    kinds: tuple[tuple[type[errors.TieringError], str], ...] = (
        (errors.KeyMissing, "wrong_key"),
        (errors.CorruptCopy, "corrupt_backup"),
        (errors.VerificationError, "failed_verification"),
        (errors.NotFound, "missing_backup"),
        (errors.TransientError, "unavailable"),
    )
    return next((name for kind, name in kinds if isinstance(error, kind)), "restore_failed")
