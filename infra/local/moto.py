"""moto as an S3 server: what SeaweedFS does not have, which is archived objects that must be restored first.

For tests only, and no part of a stack: it keeps everything in memory and believes whatever keys it is shown.
"""

from __future__ import annotations

import signal
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from infra.local.errors import StackError, read_log_tail
from infra.local.processes import POLL_SECONDS, Command, bare_environment, is_running, spawn, stop

START_SECONDS_MAX = 60.0
STOP_SECONDS = 5.0
ATTEMPTS = 3
ACCESS_KEY, SECRET_KEY = "tiering", "any-will-do"


class Moto:
    """One moto server on a free port; up while the `with` block runs."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="tiering-moto-")
        self._port = 0

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Moto:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._start()
                return self
            except StackError:
                # Somebody may have taken the port between our look and its start.
                if attempt == ATTEMPTS:
                    self._directory.cleanup()
                    raise
        raise AssertionError

    def __exit__(self, *_: object) -> None:
        stop(self._process, signal.SIGTERM, STOP_SECONDS)
        self._directory.cleanup()

    def restore_in_steps(self, looks: int) -> None:
        """Make restores take time: an object shows as in progress until it was looked at so often.

        moto begins counting with the object's first look: look at it so often before its restore is asked for.
        """
        body = f'{{"model_name": "s3::keyrestore", "transition": {{"progression": "manual", "times": {looks}}}}}'
        self._post("/moto-api/state-manager/set-transition", body)

    def _post(self, path: str, body: str) -> None:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, body.encode(), headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()

    def _start(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        directory = Path(self._directory.name)
        arguments: list[str | Path] = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)]
        environment = bare_environment(directory)
        log = directory / "moto.log"
        self._process = spawn(Command("moto", arguments, log, environment, directory))
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._answers():
            if not is_running(self._process) or time.monotonic() > deadline:
                stop(self._process, signal.SIGKILL, STOP_SECONDS)
                raise StackError("start", "moto", read_log_tail(log), "Install the `test` extra.")
            time.sleep(POLL_SECONDS)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/moto-api/", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False
