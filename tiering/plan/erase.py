"""What an erasure is made of: the person, where they were found, what stands in the way, and the certificate's words.

Does not: reach a store, or remember the person's name: whatever is written down says the keyed hash.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tiering.errors import PermanentError
from tiering.model import Column, ColumnPrint, Fingerprint

WEAK_LENGTH_MAX = 5
"""Shorter texts occur by chance: five letters in some gigabytes of compressed bytes, `12` in every JSON number."""

OUT_OF_REACH = (
    "backups and their archived log (WAL): until their own retention is over; after a restore run the erasure again",
    "the database servers' current log, and replicas until they have replayed it",
    "free space inside pages and on disks, until it is written over",
    "logs of the servers themselves, where they are set to log statements",
)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody to be erased. `repr` does not say who."""

    name: str = field(repr=False)

    @property
    def is_weak(self) -> bool:
        """Tell whether the name is so short that it occurs by chance; it is then looked for as a whole value only."""
        return len(self.name.encode()) <= WEAK_LENGTH_MAX

    def digest(self, salt: bytes) -> str:
        """Return the keyed hash that stands for the person in everything that is written down."""
        return hmac.new(salt, self.name.encode(), hashlib.sha256).hexdigest()

    @property
    def pattern(self) -> re.Pattern[bytes]:
        """The name in bytes or free text, not as a part of a longer word: `12` is not in `123` and not in `a12`.

        Why quotes for weak ones: they are how JSON delimits a whole value; BSON says its length and ends it with zero.
        """
        name = re.escape(self.name.encode())
        if self.is_weak:
            return re.compile(rb"\A" + name + rb'\Z|"' + name + rb'"')
        return re.compile(rb"(?<![A-Za-z0-9_])" + name + rb"(?![A-Za-z0-9_])")

    def is_in(self, value: str | bytes) -> bool:
        """Tell whether a value names the person."""
        return self.pattern.search(value.encode() if isinstance(value, str) else value) is not None


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of the person in one place.

    Attributes:
        store: "hot", "warm", "lake", "documents" or "redis".
        place: `schema.table`, `s3://bucket/key`, a collection or a key's kind.
        counts: rows by the begin of their unit; None: of no unit.
    """

    store: str
    place: str
    dataset: str
    counts: Mapping[datetime | None, int]

    @property
    def row_count(self) -> int:
        """All of them."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why rows of one unit in one place cannot be erased now, and when they can; `until` None: nobody knows."""

    dataset: str
    begin: datetime | None
    place: str
    row_count: int
    reason: str
    until: datetime | None

    def __str__(self) -> str:
        when = f"possible from {self.until:%Y-%m-%d}" if self.until else "possible when it is lifted"
        unit = f"{self.dataset}/{self.begin:%Y-%m-%d}" if self.begin else self.dataset
        return f"{unit}: {self.row_count} rows, {self.reason}; {when}"


class ErasureRefused(PermanentError):
    """Something stands in the way; nothing was touched. `obstacles` says what, why and until when."""

    def __init__(self, operation: str, subject: str, cause: str, hint: str = "") -> None:
        super().__init__(operation, subject, cause, hint)
        self.obstacles: tuple[Obstacle, ...] = ()


def refused(obstacles: Sequence[Obstacle]) -> ErasureRefused:
    """Make the error that names every obstacle."""
    error = ErasureRefused(
        "erase",
        "the person",
        "; ".join(str(o) for o in obstacles),
        "Lift the holds, wait for the dates, or erase everything else now with --except-locked.",
    )
    error.obstacles = tuple(obstacles)
    return error


def minus(whole: Fingerprint, part: Fingerprint) -> Fingerprint:
    """Take the rows of a part out of a fingerprint: sums modulo 2**64 are subtracted column by column."""
    parts = {column.name: column for column in part.columns}
    columns = tuple(
        ColumnPrint(
            c.name, c.value_count - parts[c.name].value_count, (c.hash_sum - parts[c.name].hash_sum) % (1 << 64)
        )
        for c in whole.columns
    )
    return Fingerprint(whole.row_count - part.row_count, columns)


def is_text(column: Column) -> bool:
    """Tell whether a column is compared as it is; others are compared by their text."""
    return column.pg_type in ("text", "character varying") or column.pg_type.startswith("character varying(")


def certificate_text(certificate: Mapping[str, Any]) -> str:
    """Write a certificate for people."""
    lines = [
        f"Certificate of erasure {certificate['erasure_id']}",
        f"person (keyed hash): {certificate['subject_hash']}",
        f"asked by: {certificate['asked_by']}",
        f"reason: {certificate['reason']}",
        f"from {certificate['opened_at']} to {certificate['closed_at']}",
        "",
        "Erased:",
        *(_place_line(place) for place in certificate["places"] if place["state"] == "ERASED"),
        "",
        "Kept:",
        *(_place_line(place) for place in certificate["places"] if place["state"] == "KEPT"),
        "",
        f"Proof: {certificate['proof']['objects']} object versions, {certificate['proof']['tables']} tables, "
        f"{certificate['proof']['collections']} collections and "
        f"{certificate['proof']['keys']} keys read; found in {len(certificate['proof']['hits'])} places.",
        *(f"  {hit['place']}: {hit['text']}" for hit in certificate["proof"]["hits"]),
        "",
        "Out of reach:",
        *(f"  {text}" for text in certificate["out_of_reach"]),
    ]
    return "\n".join(_or_none(lines)) + "\n"


def _place_line(place: Mapping[str, Any]) -> str:
    details = place["details"]
    hashes = (
        f", sha256 {details['before'][:16]} -> {(details.get('after') or 'none')[:16]}" if "before" in details else ""
    )
    kept = f", {details['reason']}, until {details.get('until') or 'lifted'}" if "reason" in details else ""
    return f"  {place['store']} {place['place']}: {place['row_count']} rows{hashes}{kept}"


def _or_none(lines: Iterable[str]) -> list[str]:
    found = list(lines)
    return [
        f"{line} nothing" if line in ("Erased:", "Kept:") and not found[index + 1] else line
        for index, line in enumerate(found)
    ]
