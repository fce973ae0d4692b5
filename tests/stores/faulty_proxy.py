"""A real TCP proxy on loopback that breaks connections, or answers in the server's place, when told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

_CHUNK_BYTES = 16 << 10


@dataclass
class Fault:
    """Break what flows `up` to the server or `down` from it after so many bytes, or answer instead of the server."""

    direction: str = "up"
    after_bytes: int = 0
    answer: bytes = b""
    times: int = 1_000_000
    struck: int = 0


class FaultyProxy:
    """Forwards to one server; `url` is where clients go."""

    def __init__(self, target_url: str) -> None:
        address = urlsplit(target_url)
        self._target = (address.hostname or "", address.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._fault: Fault | None = None
        self._passed = {"up": 0, "down": 0}
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    @contextmanager
    def fault(self, fault: Fault) -> Iterator[Fault]:
        """Let the fault happen while the body runs; connections made before are cut first."""
        self._cut_all()
        with self._lock:
            self._fault, self._passed = fault, {"up": 0, "down": 0}
        try:
            yield fault
        finally:
            with self._lock:
                self._fault = None
            self._cut_all()

    def close(self) -> None:
        self._listener.close()
        self._cut_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            with self._lock:
                self._open |= {client, server}
            for source, sink, direction in ((client, server, "up"), (server, client, "down")):
                threading.Thread(target=self._pump, args=(source, sink, direction), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                if self._strikes(direction, len(data)):
                    answer = self._fault.answer if self._fault else b""
                    if answer:
                        source.sendall(answer)
                    else:
                        sink.sendall(data[: len(data) // 2])
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
            with self._lock:
                self._open.discard(end)

    def _strikes(self, direction: str, count: int) -> bool:
        with self._lock:
            fault = self._fault
            if fault is None or fault.direction != direction or fault.struck >= fault.times:
                return False
            self._passed[direction] += count
            if self._passed[direction] <= fault.after_bytes:
                return False
            self._passed[direction] = 0
            fault.struck += 1
            return True

    def _cut_all(self) -> None:
        with self._lock:
            ends = list(self._open)
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def http_answer(status: str, code: str = "", message: str = "") -> bytes:
    """Write an S3 error answer."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>" if code else ""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n{body}".encode()
