"""What every service of the stack looks like to `Stack`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from infra.local.processes import Command


class Service(Protocol):
    """One service: one process or several. All methods may be called again at any time; what is done stays done."""

    @property
    def name(self) -> str:
        """Its name in SERVICES."""

    @property
    def port_names(self) -> Sequence[str]:
        """The names under which its ports are recorded."""

    def prepare(self) -> None:
        """Create directories and write configuration. The service is not running."""

    def commands(self) -> Sequence[Command]:
        """Say what to start, one command per process."""

    def is_ready(self) -> bool:
        """Ask every server whether it serves; False (never an exception) while it does not."""

    def settle(self) -> None:
        """Create databases, buckets, cluster membership. The service is ready."""
