"""What can go wrong with the embedded stack, as the project's errors."""

from __future__ import annotations

from pathlib import Path

from tiering.errors import PermanentError

LOG_TAIL_LINES = 15


class StackError(PermanentError):
    """A server of the embedded stack could not be installed, started or stopped."""


def read_log_tail(log: Path) -> str:
    """Read the last lines of a server's log: the reason why it died is nearly always there."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(lines[-LOG_TAIL_LINES:])
