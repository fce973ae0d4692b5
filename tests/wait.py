"""Wait for something to become true: the one place in the tests that sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(test: Callable[[], object], seconds: float = 60.0, what: str = "") -> None:
    """Look again and again until `test()` is true; AssertionError after so long."""
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline, f"still not so after {seconds:.0f} s: {what or test}"
        time.sleep(0.05)
