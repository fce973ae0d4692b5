"""A late writer: an application that goes on writing rows, new ones and corrections, whatever is being moved.

Run as `python -m tests.faults.writer`, its orders as JSON on standard input. It logs each row before it tries
and after the server acknowledged; SIGTERM ends it between two rows.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

import psycopg2
from psycopg2.extensions import connection as Connection

from tests.faults.journal import Key
from tests.faults.shapes import SHAPES

NEAR_DAYS = 3

stopping = False


def stop(*_: Any) -> None:
    global stopping
    stopping = True


def keys(orders: dict[str, Any], dice: random.Random) -> Iterator[Key]:
    """Choose keys for ever: nearly all of a few days, for a unit with late rows waiting is due for nothing else."""
    days = orders["days"]
    while True:
        day = dice.choice(days[:NEAR_DAYS] if dice.random() < 0.99 else days)
        symbol = f"{dice.choice(('S', 'L'))}{orders['name']}"
        yield symbol, day + 60 * dice.randrange(orders["minutes"])


def connect(url: str) -> Connection:
    connection = psycopg2.connect(url, connect_timeout=2, application_name=f"writer {sys.argv}")
    connection.autocommit = True
    return connection


def write(orders: dict[str, Any], log: TextIO, errors: TextIO) -> None:
    dice = random.Random(orders["seed"])
    connection: Connection | None = None
    version, shape = orders["number"], SHAPES[orders["dataset"]]
    statement = shape.insert.format("(" + ", ".join(["%s"] * len(shape.columns)) + ")")
    for key in keys(orders, dice):
        if stopping:
            return
        version += 10
        log.write(f"t {key[0]} {key[1]} {version}\n")
        log.flush()
        try:
            connection = connection or connect(orders["url"])
            with connection.cursor() as cursor:
                cursor.execute(statement, shape.row(key, version))
            log.write(f"a {key[0]} {key[1]} {version}\n")
            log.flush()
        except psycopg2.Error as exc:
            errors.write(f"{exc.pgcode} {' '.join(str(exc).split())[:200]}\n")
            errors.flush()
            if exc.pgcode is None or exc.pgcode.startswith("57"):
                connection = None
        time.sleep(dice.expovariate(orders["per_second"]))


def main() -> None:
    signal.signal(signal.SIGTERM, stop)
    orders = json.load(sys.stdin)
    with open(orders["log"], "a") as log, open(orders["log"] + ".errors", "a") as errors:
        write(orders, log, errors)


if __name__ == "__main__":
    main()
