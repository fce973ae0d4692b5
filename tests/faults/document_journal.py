"""What writers of documents were promised: every version that was tried, in order, and the last acknowledged one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bson

Version = tuple[int, int]
"""Time in milliseconds since 1970, and number: with the key, all that a document is made of. May come again."""


def identity(key: str) -> Any:
    """Make the `_id` of a key: of one of three types."""
    digest = hashlib.sha256(key.encode()).digest()
    made = (key, bson.ObjectId(digest[:12]), bson.Int64(int.from_bytes(digest[:7], "big")))
    return made[digest[31] % 3]


def document(key: str, version: Version) -> dict[str, Any]:
    """Make the one document that a key is in a version; bytes and length depend on both."""
    at, number = version
    found: dict[str, Any] = {
        "publish_time": datetime.fromtimestamp(at / 1000, UTC),
        "key": key,
        "version": bson.Int64(number),
        "at": bson.Int64(at),
        "title": f"第{number}号 " + "消息" * (number % 7),
        "symbol": f"{number % 1000:06d}",
        "sentiment_score": (None, 1, bson.Int64(0), number % 100 / 100, "0.5")[number % 5],
        "nested": {"a": [number, float(number), {"b": bson.Decimal128("NaN")}], "nul": "a\0b"},
    }
    return {"_id": identity(key), **(found if number // 10 % 2 else dict(reversed(found.items())))}


def written(key: str, version: Version) -> bytes:
    """Return the bytes of a document."""
    return bson.encode(document(key, version))


@dataclass
class DocumentJournal:
    """All writers' logs as one. A line is `t` (tried) or `a` (acknowledged), key, time, number.

    Attributes:
        tried: per key, all versions in order: each key has one writer.
        acknowledged: per key, how many were tried when the last one was acknowledged.
    """

    files: list[Path] = field(default_factory=list)
    tried: dict[str, list[Version]] = field(default_factory=dict)
    acknowledged: dict[str, int] = field(default_factory=dict)
    _read: dict[Path, int] = field(default_factory=dict)

    def note(self, kind: str, key: str, version: Version) -> None:
        """Take note of a line."""
        if kind == "t":
            self.tried.setdefault(key, []).append(version)
        else:
            self.acknowledged[key] = len(self.tried[key])

    def last(self, key: str) -> Version:
        """Return the newest version that was tried."""
        return self.tried[key][-1]

    def refresh(self) -> None:
        """Read the whole lines that the writers added since."""
        for path in self.files:
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in whole.decode().splitlines():
                kind, key, at, number = line.split()
                self.note(kind, key, (int(at), int(number)))
