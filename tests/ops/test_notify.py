"""Notifications reach a local webhook, mail server and Slack-like receiver; what is dead is told and hurts nobody."""

from __future__ import annotations

import json
import logging
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from apprise.plugins.slack import NotifySlack
from pydantic import SecretStr

from tiering.ops.notify import Notice, Told, tell, tell_all

GOOD = Notice("tier-1 drill passed", "RTO 00:41 of 15:00, RPO 1 s of 60 s", is_good=True)
CANARY = "canary-5b1f9e"


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def http_receiver(status: int = 200) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *args: Any) -> None:
            return

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        yield port, got


@contextmanager
def mail_receiver() -> Iterator[tuple[int, list[str]]]:
    """As much of SMTP as a client needs to leave one message."""
    got: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            while line := self.rfile.readline():
                verb = line[:4].upper()
                if verb == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    lines = iter(self.rfile.readline, b".\r\n")
                    got.append(b"".join(lines).decode())
                self.wfile.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 ok\r\n")
                if verb == b"QUIT":
                    return

    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)) as port:
        yield port, got


def test_a_webhook_and_a_mail_arrive_with_title_body_and_kind() -> None:
    with http_receiver() as (http, posts), mail_receiver() as (smtp, mails):
        urls = f"json://127.0.0.1:{http}/hook\nmailto://127.0.0.1:{smtp}?from=drill@example.org&to=ops@example.org"
        told = tell(SecretStr(urls + "&mode=insecure"), GOOD)
    assert told == (Told("log"), Told("json"), Told("mailto"))
    assert (posts[0]["title"], posts[0]["message"], posts[0]["type"]) == (GOOD.title, GOOD.body, "success")
    assert "tier-1 drill passed" in mails[0]
    assert "ops@example.org" in mails[0]


def test_slack_gets_its_own_form() -> None:
    with http_receiver() as (port, posts):

        class LocalSlack(NotifySlack):
            """Slack's webhook, at another address."""

            webhook_url = f"http://127.0.0.1:{port}/services"

        slack = LocalSlack(
            token_a="T1JJ3T3L2", token_b="A1BRTD4JD", token_c="TIiajkdnlazkcOXrIdevi7FQ", targets=["#ops"]
        )
        failed = Notice("tier-1 drill FAILED", "redis: 0 keys", is_good=False)
        assert tell_all([("slack", slack)], failed) == (Told("slack"),)
    assert posts[0]["channel"] == "#ops"
    assert "tier-1 drill FAILED" in json.dumps(posts[0])


def test_dead_refusing_and_misspelt_channels_are_shown_and_stop_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as closed:
        dead = closed.server_address[1]
    with http_receiver() as (port, posts), http_receiver(500) as (refusing, _), caplog.at_level(logging.DEBUG):
        urls = [
            f"json://127.0.0.1:{dead}/{CANARY}",
            f"json://user:{CANARY}@127.0.0.1:{refusing}/",
            f"nonsense://{CANARY}",
        ]
        told = tell(SecretStr(" ".join([*urls, f"json://127.0.0.1:{port}"])), GOOD)
    assert [one.channel for one in told] == ["log", "json", "json", "nonsense", "json"]
    assert [bool(one.problem) for one in told] == [False, True, True, True, False]
    assert len(posts) == 1
    assert CANARY not in repr(told) + caplog.text


def test_without_addresses_the_log_has_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert tell(None, GOOD) == (Told("log"),)
    assert "RTO 00:41" in caplog.text
