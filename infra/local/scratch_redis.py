"""Redis masters that load snapshots or append-only files: isolated, without replicas, ended whatever happens."""

from __future__ import annotations

import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydantic import SecretStr
from redis import Redis
from redis.exceptions import RedisError

from infra.local.binaries import find_redis_server
from infra.local.errors import StackError, read_log_tail
from infra.local.processes import POLL_SECONDS, Command, Process, bare_environment, is_running, spawn, stop
from infra.local.state import choose_port, write_private

START_SECONDS_MAX = 60.0
SLOTS = 16384

# `appendonly no`: with it on, a server takes an empty AOF for the truth and does not look at its snapshot.
CONFIGURATION = """\
bind 127.0.0.1
port {port}
dir "{directory}"
requirepass {password}
appendonly {appendonly}
save ""
maxmemory 0
cluster-node-timeout 2000
daemonize no
"""
# A set that was cut must not start: what is missing at its end would go unnoticed.
OF_AOF = """\
appenddirname aof
appendfilename "{name}"
aof-load-truncated no
auto-aof-rewrite-percentage 0
"""
OF_A_CLUSTER = "cluster-enabled yes\ncluster-port {bus}\ncluster-config-file nodes.conf\n"


@contextmanager
def scratch_redis(
    snapshots: Sequence[Path], slots: Sequence[Sequence[tuple[int, int]]], parent: Path | None = None
) -> Iterator[list[SecretStr]]:
    """Start a master on each snapshot, serving its slots; yield their URLs in the same order.

    Without slots it is one server that is no cluster. A master keeps the slots that it claims for keys of its
    snapshot beyond those given: who checks sees them.

    Args:
        snapshots: RDB files; they are copied.
        slots: inclusive ranges per master, or nothing.
        parent: where the private directory is made.

    Raises:
        StackError: a server ends, e.g. because its snapshot is damaged, or the masters do not agree.
    """
    directory = Path(tempfile.mkdtemp(prefix="tiering-scratch-redis-", dir=parent))
    password = secrets.token_urlsafe(18)
    try:
        with ExitStack() as running:
            nodes: list[tuple[Redis, Process, Path]] = []
            ports: set[int] = set()
            for number, snapshot in enumerate(snapshots):
                nodes.append(_start(running, directory / f"master-{number}", snapshot, password, ports, bool(slots)))
            for node in nodes:
                _wait_loaded(*node)
            clients = [client for client, _, _ in nodes]
            if slots:
                _form(clients, slots)
            yield [_url(client, password) for client in clients]
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _start(
    running: ExitStack, home: Path, snapshot: Path, password: str, ports: set[int], is_cluster: bool
) -> tuple[Redis, Process, Path]:
    home.mkdir(mode=0o700)
    appended = _place(snapshot, home)
    port = choose_port(ports)
    bus = choose_port(ports | {port})
    ports |= {port, bus}
    text = CONFIGURATION.format(port=port, directory=home, password=password, appendonly="yes" if appended else "no")
    write_private(home / "redis.conf", text + appended + (OF_A_CLUSTER.format(bus=bus) if is_cluster else ""))
    log = home / "log"
    command = Command(home.name, [find_redis_server(), home / "redis.conf"], log, bare_environment(home))
    process = spawn(command)
    running.callback(stop, process, signal.SIGTERM, 10.0)
    client = Redis(port=port, password=password, socket_timeout=10, decode_responses=True)
    running.callback(client.close)
    return client, process, log


def _place(snapshot: Path, home: Path) -> str:
    """Put what is to be loaded where the server looks; return what its configuration needs for it."""
    if snapshot.is_file():
        shutil.copyfile(snapshot, home / "dump.rdb")
        return ""
    shutil.copytree(snapshot, home / "aof")
    name = next((home / "aof").glob("*.manifest")).name.removesuffix(".manifest")
    return OF_AOF.format(name=name)


def _wait_loaded(client: Redis, process: Process, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        if not is_running(process):
            raise StackError("start", "scratch Redis", f"it ended. Its log says: {read_log_tail(log)}")
        try:
            if int(client.info("persistence")["loading"]) == 0:
                return
        except RedisError as exc:
            if time.monotonic() > deadline:
                raise StackError("start", "scratch Redis", str(exc)) from exc
        time.sleep(POLL_SECONDS)


def _form(clients: Sequence[Redis], slots: Sequence[Sequence[tuple[int, int]]]) -> None:
    """Give each master what it does not claim yet, then make them one cluster."""
    for number, (client, ranges) in enumerate(zip(clients, slots, strict=True), start=1):
        claimed = own_slots(client)
        client.execute_command("CLUSTER SET-CONFIG-EPOCH", number)
        missing = [slot for begin, end in ranges for slot in range(begin, end + 1) if slot not in claimed]
        if missing:
            client.execute_command("CLUSTER ADDSLOTS", *missing)
    for client in clients[1:]:
        client.execute_command("CLUSTER MEET", "127.0.0.1", *_ports(clients[0]))
    deadline = time.monotonic() + START_SECONDS_MAX
    while not all(_is_settled(client, len(clients), slots) for client in clients):
        if time.monotonic() > deadline:
            raise StackError("form", "scratch Redis", "the masters do not agree on the slots")
        time.sleep(POLL_SECONDS)


def _ports(client: Redis) -> tuple[int, int]:
    """Return a node's port and its port on the cluster's bus."""
    bus = client.config_get("cluster-port")["cluster-port"]
    return int(client.connection_pool.connection_kwargs["port"]), int(bus)


def own_slots(client: Redis) -> set[int]:
    """Read which slots a node holds itself to serve."""
    client.set_response_callback("CLUSTER NODES", str)
    mine = next(line for line in str(client.execute_command("CLUSTER NODES")).splitlines() if "myself" in line)
    spans = [word.partition("-") for word in mine.split()[8:] if not word.startswith("[")]
    return {slot for begin, _, end in spans for slot in range(int(begin), int(end or begin) + 1)}


def _is_settled(client: Redis, nodes: int, slots: Sequence[Sequence[tuple[int, int]]]) -> bool:
    """With all slots given the cluster is whole and well; with fewer it cannot be, and is not waited for."""
    given = sum(end - begin + 1 for ranges in slots for begin, end in ranges)
    info = _info(client)
    return int(info["cluster_known_nodes"]) == nodes and (given != SLOTS or info["cluster_state"] == "ok")


def _info(client: Redis) -> dict[str, str]:
    client.set_response_callback("CLUSTER INFO", str)
    return dict(line.split(":", 1) for line in str(client.execute_command("CLUSTER INFO")).split())


def _url(client: Redis, password: str) -> SecretStr:
    return SecretStr(f"redis://:{password}@127.0.0.1:{client.connection_pool.connection_kwargs['port']}/0")
