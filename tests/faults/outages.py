"""Servers that die or cut a connection while a mover works: the mover may fail, in our words, and nothing is lost."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr

from tests.faults import mover
from tests.faults.mongo_wire import direct
from tests.faults.mover import Job
from tests.stores.faulty_proxy import Fault, FaultyProxy
from tiering.model import Policies
from tiering.settings import Settings

if TYPE_CHECKING:
    from infra.local import Stack


class Struck(Protocol):
    """What an outage needs to know of a ground."""

    stack: Stack
    settings: Settings
    policies: Policies

    @property
    def log(self) -> Path:
        """Where movers' own output goes."""


POSTGRES_KILLED = "PostgreSQL killed"
S3_KILLED = "S3 killed"
POSTGRES_CUT = "PostgreSQL connections cut"
S3_CUT = "S3 connections cut"
MONGO_KILLED = "MongoDB killed"
MONGO_CUT = "MongoDB connections cut"
ALL = (POSTGRES_KILLED, S3_KILLED, POSTGRES_CUT, S3_CUT)
SERVICES = {POSTGRES_KILLED: "postgres", S3_KILLED: "s3", MONGO_KILLED: "mongo"}


def strike(outage: str, ground: Struck, job: Job, dice: random.Random) -> str:
    """Let it happen while one mover works; return what went wrong beyond a clear error, empty if nothing."""
    if outage in SERVICES:
        return _kill_server(SERVICES[outage], ground, job, dice)
    return _cut(outage, ground, job, dice)


def _kill_server(service: str, ground: Struck, job: Job, dice: random.Random) -> str:
    child = mover.start(ground.settings, ground.policies, job, ground.log)
    mover.await_ready(child)
    time.sleep(dice.uniform(0, 0.25))  # the instant is what the dice choose; nothing waits for anything here
    port = ground.stack.port(service)
    ground.stack.kill(service)
    ground.stack.restart(service)
    assert ground.stack.port(service) == port, f"{service} came back on another port, where nobody looks for it"
    outcome = mover.wait(child)
    return outcome.message if outcome.ending == "bug" else ""


def _cut(outage: str, ground: Struck, job: Job, dice: random.Random) -> str:
    mongo = ground.settings.hot_mongo_url
    if outage == MONGO_CUT:
        assert mongo is not None
        url = mongo.get_secret_value()
    else:
        url = ground.settings.s3_url if outage == S3_CUT else ground.settings.hot_pg_url.get_secret_value()
    proxy = FaultyProxy(url)
    try:
        through = _through(ground.settings, proxy, outage)
        fault = Fault(dice.choice(("up", "down")), after_bytes=dice.randrange(1, 60_000), times=dice.randrange(1, 4))
        child = mover.start(through, ground.policies, job, ground.log)
        with proxy.fault(fault):
            outcome = mover.wait(child)
    finally:
        proxy.close()
    return outcome.message if outcome.ending == "bug" else ""


def _through(settings: Settings, proxy: FaultyProxy, outage: str) -> Settings:
    if outage == S3_CUT:
        return settings.model_copy(update={"s3_url": proxy.url})
    port = urlsplit(proxy.url).port or 0
    changed = {}
    if outage == MONGO_CUT:
        for name in ("hot_mongo_url", "warm_mongo_url"):
            changed[name] = SecretStr(direct(getattr(settings, name).get_secret_value(), port))
        return settings.model_copy(update=changed)
    for name in ("hot_pg_url", "warm_pg_url"):
        parts = urlsplit(getattr(settings, name).get_secret_value())
        netloc = f"{parts.netloc.rpartition(':')[0]}:{port}"
        changed[name] = SecretStr(urlunsplit(parts._replace(netloc=netloc)))
    return settings.model_copy(update=changed)
