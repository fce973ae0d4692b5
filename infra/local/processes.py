"""Start, recognise and end server processes. A process is its pid and its start: pids are used again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.local.errors import StackError

POLL_SECONDS = 0.03
NOBODY = 65534

# Children of this very process: they stay zombies, and would look alive, until polled.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Process:
    """A process for good: `started` is the machine's boot and the clock tick at which the pid began."""

    pid: int
    started: str


@dataclass(frozen=True)
class Command:
    """What to run and how: arguments never carry a secret, since everybody can read them under /proc."""

    name: str
    arguments: Sequence[str | Path]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path | None = None
    unprivileged: bool = False


def inherited_environment() -> dict[str, str]:
    """Copy the environment for a child. The one place in `infra` that reads it; nothing is looked up in the copy.

    Why: what a user sets (TIERING_*, proxies, locale) must reach the flows, which are children of the Prefect worker.
    """
    return dict(os.environ)


def bare_environment(home: Path) -> dict[str, str]:
    """Build a server's environment from nothing, so that no PGHOST or AWS_PROFILE of the user reaches it."""
    return {"PATH": os.defpath, "HOME": str(home), "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def spawn(command: Command) -> Process:
    """Start a server in a session of its own (the terminal's Ctrl-C must not reach it), output into its log."""
    arguments, identity = _drop_root(command) if command.unprivileged else (list(command.arguments), {})
    with command.log.open("ab") as log:
        child = subprocess.Popen(
            [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(command.environment),
            cwd=command.directory,
            start_new_session=True,
            **identity,
        )
    _children[child.pid] = child
    return Process(child.pid, read_start(child.pid) or "ended at once")


def run_tool(command: Command) -> None:
    """Run a short helper program to its end.

    Raises:
        StackError: it failed; its output is in the message.
    """
    arguments, identity = _drop_root(command) if command.unprivileged else (list(command.arguments), {})
    done = subprocess.run(
        [str(argument) for argument in arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=dict(command.environment),
        cwd=command.directory,
        check=False,
        **identity,
    )
    if done.returncode != 0:
        raise StackError("run", command.name, (done.stderr or done.stdout).strip() or f"exit code {done.returncode}")


def read_start(pid: int) -> str | None:
    """Read when a pid began, or None when there is no such live process (a zombie is not alive)."""
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        del _children[pid]
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, ticks = fields[0], fields[19]
    # A killed process shows Z while its other threads still close its sockets; of a child, poll() knows the end.
    return None if state in "ZX" and child is None else f"{boot}/{ticks}"


def is_running(process: Process | None) -> bool:
    """Say whether this very process lives: the pid exists and began when ours did."""
    return process is not None and read_start(process.pid) == process.started


def wait_ended(process: Process, seconds: float) -> bool:
    """Wait until the process has ended; False when it has not in time."""
    deadline = time.monotonic() + seconds
    while is_running(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def stop(process: Process, how: signal.Signals, grace_seconds: float) -> None:
    """End a process: ask, wait, then force it."""
    for number, patience in ((how, grace_seconds), (signal.SIGKILL, 10.0)):
        if is_running(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        if wait_ended(process, patience):
            return
    raise StackError("stop", f"pid {process.pid}", "still there after SIGKILL", "Look at it with ps; is it in state D?")


def is_listening(process: Process, port: int) -> bool:
    """Tell whether it is this process, or a child of it, that listens on a TCP port, and not a stranger."""
    listening = "0A"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[3] == listening and row[1].endswith(f":{port:04X}")}
    for pid in (process.pid, *(child.pid for child in find_descendants(process.pid))):
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(link) in sockets:
                        return True
    return False


def find_descendants(pid: int) -> list[Process]:
    """Find children, their children and so on: what SIGKILL of the parent alone would leave behind."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    found, todo = [], [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            todo.append(child)
            if (started := read_start(child)) is not None:
                found.append(Process(child, started))
    return found


def _drop_root(command: Command) -> tuple[list[str | Path], dict[str, Any]]:
    """Make root run a command as `nobody`; anybody else runs it as himself.

    Why two ways: below a directory closed to others (root's home is), `nobody` could not even reach the program;
    setpriv then lends him the right to pass closed directories, and nothing else of root.
    """
    if os.geteuid() != 0:
        return list(command.arguments), {}
    identity = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    needed = [Path(command.arguments[0]), *([command.directory] if command.directory else [])]
    if all(is_open_to_all(path) for path in needed):
        return list(command.arguments), identity
    setpriv = shutil.which("setpriv", path=os.defpath)
    if setpriv is None:
        raise StackError(
            "start",
            command.name,
            f"as root it must run as nobody, who cannot enter {needed[0].parent}",
            "Install setpriv (util-linux), run as a normal user, or clone the project where everybody can read.",
        )
    lend = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    lend += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return [setpriv, *lend, "--", *command.arguments], {}


def is_open_to_all(path: Path) -> bool:
    """Say whether every directory above the path lets everybody through."""
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def give_away(paths: Iterable[Path]) -> None:
    """Hand files to the user that unprivileged servers run as (needed, and possible, only for root)."""
    if os.geteuid() == 0:
        for path in paths:
            os.chown(path, NOBODY, NOBODY)
