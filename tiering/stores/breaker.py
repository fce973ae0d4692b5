"""A circuit breaker: after some failures in a row a store is left alone for a while, then asked by one at a time.

Why our own: the well-kept ones lock, count by exception type or need a decorator; this is a few comparisons on the
path of every call. The clock is an argument, so that a test owns it.
"""

from __future__ import annotations

from enum import IntEnum

FAILURES_MAX = 3
REST_SECONDS, REST_SECONDS_MAX = 0.25, 5.0


class BreakerState(IntEnum):
    """As the metric shows it: 0 is good."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Of one store or server.

    Args:
        failures_max: failures in a row that open it.
        rest_seconds: how long it stays open the first time; twice that after each failed trial, up to the longest.
        rest_seconds_max: the longest.
    """

    __slots__ = ("_failures", "_failures_max", "_open_until", "_rest", "_rest_first", "_rest_max", "_trial_until")

    def __init__(
        self,
        failures_max: int = FAILURES_MAX,
        rest_seconds: float = REST_SECONDS,
        rest_seconds_max: float = REST_SECONDS_MAX,
    ) -> None:
        self._failures_max = failures_max
        self._rest_first, self._rest_max = rest_seconds, rest_seconds_max
        self._rest = rest_seconds
        self._failures = 0
        self._open_until: float | None = None
        self._trial_until = 0.0

    @property
    def is_tripped(self) -> bool:
        """Whether it is anything but closed: the one question on the path of every call."""
        return self._open_until is not None

    def state(self, now: float) -> BreakerState:
        """Say how it stands at an instant of a monotonic clock."""
        if self._open_until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._open_until else BreakerState.HALF_OPEN

    def allows(self, now: float) -> bool:
        """Tell whether to ask the store now. After the rest, one caller is let through at a time: the trial."""
        if self._open_until is None:
            return True
        if now < self._open_until or now < self._trial_until:
            return False
        # A trial that never reports back must not keep everybody out for ever.
        self._trial_until = now + self._rest_max
        return True

    def succeeded(self) -> None:
        """Note an answer: closed from now on."""
        self._failures = 0
        if self._open_until is not None:
            self._open_until, self._trial_until, self._rest = None, 0.0, self._rest_first

    def failed(self, now: float) -> None:
        """Note a failure: that of a trial, and one too many in a row, open it."""
        self._failures += 1
        if self._open_until is not None:
            if now >= self._open_until:
                self._rest = min(self._rest * 2, self._rest_max)
                self._open_until, self._trial_until = now + self._rest, 0.0
        elif self._failures >= self._failures_max:
            self._open_until = now + self._rest
