"""Processes of tests that are there to be killed: forked from one that has imported all, so that work is hit."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable
from typing import Any

# An interpreter for each would import longer than it works, and most kills would strike the imports.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.ops.erase_world", "tests.ops.document_world", "great_expectations"])

GO, DONE = "go", "done"


class Child:
    """A process that works on `work(line, *arguments)` and says on the line how far it is."""

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        self._line, theirs = _FORKS.Pipe(duplex=False)
        self.process = _FORKS.Process(target=work, args=(theirs, *arguments))
        self.process.start()
        theirs.close()

    def hear(self) -> object:
        """Wait for its next word; None when it has ended."""
        try:
            return self._line.recv()
        except EOFError:
            return None

    def kill(self) -> None:
        """End it as kill -9 does, and wait until it is gone."""
        self.process.kill()
        self.process.join()


def kill_after(seconds: float, work: Callable[..., None], *arguments: Any) -> bool:
    """Start a child and kill it so long after it said `GO`; tell whether it was faster and said `DONE`.

    Raises:
        AssertionError: it ended by an error of its own, so that nothing was killed.
    """
    child = Child(work, *arguments)
    assert child.hear() == GO
    timer = threading.Timer(seconds, child.process.kill)
    timer.start()
    is_done = child.hear() == DONE
    timer.cancel()
    timer.join()
    child.process.join()
    assert is_done or child.process.exitcode == -signal.SIGKILL, f"it ended by itself, with {child.process.exitcode}"
    return is_done
