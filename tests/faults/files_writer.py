"""A writer of files: an application that overwrites objects and adds others, and what it was promised.

Run as `python -m tests.faults.files_writer`, its orders as JSON on standard input. It logs each object before it tries
and after the server acknowledged; SIGTERM ends it between two objects.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

stopping = False


def stop(*_: Any) -> None:
    global stopping
    stopping = True


def body(key: str, number: int) -> bytes:
    """Make the bytes that an object has in a version; a few are larger than a store keeps beside its index."""
    return f"{key} {number} ".encode() * (1 + number % (400 if number % 5 == 0 else 9))


def client(url: str, access_key: str, secret_key: str, region: str) -> Any:
    """Make a client of one's own that waits for nobody long, and tries once: each version is one that was noted."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name=region,
        config=Config(
            connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}
        ),
    )


@dataclass
class FilesJournal:
    """All versions tried per key, in order, and how many were tried when the last one was acknowledged."""

    files: list[Path] = field(default_factory=list)
    tried: dict[str, list[int]] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)
    _read: dict[Path, int] = field(default_factory=dict)

    def note(self, kind: str, key: str, number: int) -> None:
        """Take note of a line: `t` (tried) or `a` (acknowledged), key, number."""
        if kind == "t":
            self.tried.setdefault(key, []).append(number)
        else:
            self.acknowledged[key] = len(self.tried[key])

    def refresh(self) -> None:
        """Read the whole lines that the writers added since."""
        for path in self.files:
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in whole.decode().splitlines():
                kind, key, number = line.split()
                self.note(kind, key, int(number))


def write(orders: dict[str, Any], log: TextIO, errors: TextIO) -> None:
    """Overwrite mostly a few keys, now and then any other, and add new ones."""
    s3, dice, number = client(*orders["store"]), random.Random(orders["seed"]), orders["number"]
    keys: list[str] = orders["keys"]
    while not stopping:
        number += 10
        share = dice.random()
        if share < 0.2:
            keys.append(f"charts/{orders['name']}-{number}")
        key = keys[-1] if share < 0.2 else dice.choice(keys[: orders["near"]] if share < 0.7 else keys)
        log.write(f"t {key} {number}\n")
        log.flush()
        try:
            s3.put_object(Bucket=orders["bucket"], Key=key, Body=body(key, number))
            log.write(f"a {key} {number}\n")
            log.flush()
        except (ClientError, BotoCoreError) as exc:
            errors.write(f"{type(exc).__name__} {' '.join(str(exc).split())[:200]}\n")
            errors.flush()
        time.sleep(dice.expovariate(orders["per_second"]))


def main() -> None:
    signal.signal(signal.SIGTERM, stop)
    orders = json.load(sys.stdin)
    with open(orders["log"], "a") as log, open(orders["log"] + ".errors", "a") as errors:
        write(orders, log, errors)


if __name__ == "__main__":
    main()
