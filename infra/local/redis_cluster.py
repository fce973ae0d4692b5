"""The Redis Cluster of the stack: three masters with a replica each, as a cache (LRU) that survives restarts."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from infra.local.binaries import find_redis_server
from infra.local.errors import StackError
from infra.local.processes import POLL_SECONDS, Command, bare_environment
from infra.local.state import State, write_private

MASTERS = 3
NODES = 2 * MASTERS
SLOTS = 16384
FORM_SECONDS_MAX = 30.0

# The password stands in a file of mode 0600, not on the command line.
CONFIGURATION = """\
bind 127.0.0.1
port {port}
cluster-enabled yes
cluster-port {bus}
cluster-config-file nodes.conf
cluster-node-timeout 3000
dir "{directory}"
requirepass {password}
masterauth {password}
maxmemory 64mb
maxmemory-policy allkeys-lru
save 300 100 60 10000
appendonly yes
appendfsync everysec
repl-diskless-sync-delay 0
repl-ping-replica-period 1
daemonize no
"""


class RedisCluster:
    """Six redis-server processes that form one cluster; nodes 1 to 3 begin as masters, 4 to 6 as their replicas."""

    name = "redis"

    def __init__(self, state: State) -> None:
        self._state = state
        self._nodes = [f"redis-{number}" for number in range(1, NODES + 1)]
        self.port_names = tuple(f"{node}{kind}" for node in self._nodes for kind in ("", ".bus"))

    @property
    def url(self) -> str:
        """The URL of the first node; a cluster client finds the others through it."""
        return f"redis://:{self._state.secret('redis')}@127.0.0.1:{self._state.port(self._nodes[0])}/0"

    def connect(self, node: str) -> Redis:
        """Open a plain connection to one node, e.g. "redis-2"."""
        port, password = self._state.port(node), self._state.secret("redis")
        return Redis(port=port, password=password, socket_timeout=2, decode_responses=True)

    def prepare(self) -> None:
        """Write every node's configuration; with new ports, bring the nodes' own memory of each other in line."""
        for node in self._nodes:
            directory = self._directory(node)
            directory.mkdir(parents=True, exist_ok=True)
            ports = {"port": self._state.port(node), "bus": self._state.port(f"{node}.bus")}
            text = CONFIGURATION.format(**ports, directory=directory, password=self._state.secret("redis"))
            write_private(directory / "redis.conf", text)
        self._forget_old_ports()

    def commands(self) -> Sequence[Command]:
        """Start six servers."""
        server, environment = find_redis_server(), bare_environment(self._state.directory)
        logs = self._state.directory / "logs"
        return [
            Command(node, [server, self._directory(node) / "redis.conf"], logs / f"{node}.log", environment)
            for node in self._nodes
        ]

    def is_ready(self) -> bool:
        """Ask every node, not only one."""
        try:
            return all(self._call(node, "PING") for node in self._nodes)
        except RedisError:
            return False

    def settle(self) -> None:
        """Form the cluster the first time; always wait until every node says that it works.

        Raises:
            StackError: the nodes did not agree in time.
        """
        formed = self._state.directory / "redis" / "formed"
        if not formed.exists():
            self._form()
            formed.touch()
        self._wait("join", self._is_settled)

    def _form(self) -> None:
        """Make one cluster of six nodes, whatever a crash in here left of it (a cache: nothing to lose)."""
        for number, node in enumerate(self._nodes, start=1):
            self._call(node, "FLUSHALL")
            self._call(node, "CLUSTER", "RESET", "HARD")
            # An epoch of its own for each saves the seconds in which masters sort out a collision.
            self._call(node, "CLUSTER", "SET-CONFIG-EPOCH", number)
        for node in self._nodes[1:]:
            port, bus = self._state.port(node), self._state.port(f"{node}.bus")
            self._call(self._nodes[0], "CLUSTER", "MEET", "127.0.0.1", port, bus)
        self._wait("meet", lambda node: int(self._info(node)["cluster_known_nodes"]) == NODES)
        bounds = [SLOTS * index // MASTERS for index in range(MASTERS + 1)]
        for index, node in enumerate(self._nodes[:MASTERS]):
            self._call(node, "CLUSTER", "ADDSLOTSRANGE", bounds[index], bounds[index + 1] - 1)
            replica = self._nodes[MASTERS + index]
            self._call(replica, "CLUSTER", "REPLICATE", str(self._call(node, "CLUSTER", "MYID")))

    def _is_settled(self, node: str) -> bool:
        info, role = self._info(node), self.connect(node).info("replication")
        linked = role["role"] == "master" or role["master_link_status"] == "up"
        whole = info["cluster_state"] == "ok" and int(info["cluster_slots_ok"]) == SLOTS
        masters = int(info["cluster_size"]) == MASTERS and int(info["cluster_known_nodes"]) == NODES
        return linked and whole and masters

    def _wait(self, what: str, test: Callable[[str], bool]) -> None:
        deadline = time.monotonic() + FORM_SECONDS_MAX
        while True:
            try:
                waiting = [node for node in self._nodes if not test(node)]
            except RedisError as exc:
                waiting = [str(exc)]
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise StackError(what, "redis", f"after {FORM_SECONDS_MAX:.0f} s still waiting for {waiting}")
            time.sleep(POLL_SECONDS)

    def _info(self, node: str) -> dict[str, str]:
        return dict(line.split(":", 1) for line in str(self._call(node, "CLUSTER", "INFO")).split())

    def _call(self, node: str, *words: str | int) -> object:
        with self.connect(node) as connection:
            return connection.execute_command(*words)

    def _forget_old_ports(self) -> None:
        """Put today's ports where the nodes remember each other by earlier ones."""
        files = {node: self._directory(node) / "nodes.conf" for node in self._nodes}
        memory = {node: file.read_text() for node, file in files.items() if file.exists()}
        changed = {}
        for node, text in memory.items():
            if found := re.search(r":(\d+@\d+)\S* \S*myself", text):
                changed[found[1]] = f"{self._state.port(node)}@{self._state.port(f'{node}.bus')}"
        for node, text in memory.items():
            new = re.sub(r"(?<=:)\d+@\d+", lambda match: changed.get(match[0], match[0]), text)
            if new != text:
                files[node].write_text(new)

    def _directory(self, node: str) -> Path:
        return self._state.directory / "redis" / node
