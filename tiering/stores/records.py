"""The rows of the ledger as values: moves, units, trash, holds. What they mean stands in infra/sql/ledger.sql."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tiering.model import ColumnPrint, Fingerprint, State, StorageClass, Tier, Transition, Unit

OPEN_STATES = (State.PLANNED, State.SEALED, State.COPIED, State.VERIFIED, State.QUARANTINED)
STEPS = (State.PLANNED, State.SEALED, State.COPIED, State.VERIFIED, State.COMMITTED, State.RECLAIMED)


@dataclass(frozen=True, slots=True)
class MoveRecord:
    """One row of tiering.move. `details` is a plain JSON object that the transition's steps share."""

    move_id: int
    unit: Unit
    transition: Transition
    state: State
    source: str
    target: str
    details: Mapping[str, Any]
    row_count: int
    bytes_before: int
    bytes_after: int
    checkpoints_passed: int
    stage_seconds: Mapping[str, float]
    problem: str
    forced_because: str
    lease_epoch: int

    def __str__(self) -> str:
        return f"{self.transition} {self.unit}"

    def has_reached(self, state: State) -> bool:
        """Tell whether the move is at `state` or past it (a quarantined move has reached nothing more)."""
        return self.state in STEPS and STEPS.index(self.state) >= STEPS.index(state)


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """One row of tiering.unit: the authoritative copy of a unit that has left the hot tier."""

    unit: Unit
    tier: Tier
    location: str
    is_compressed: bool
    row_count: int
    size_bytes: int
    fingerprint: Fingerprint | None = None
    sha256: str = ""
    storage_class: StorageClass = StorageClass.STANDARD
    changed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class TrashRecord:
    """A superseded copy in its undo window."""

    trash_id: int
    move_id: int
    dataset: str
    begin: datetime
    store: str
    location: str
    size_bytes: int
    trashed_at: datetime


@dataclass(frozen=True, slots=True)
class HoldRecord:
    """A legal hold in force; `begin` None holds the whole dataset."""

    dataset: str
    begin: datetime | None
    reason: str
    placed_by: str


def fingerprint_to_json(fingerprint: Fingerprint) -> dict[str, Any]:
    """Write a fingerprint as a JSON object; hashes as hex, because JSON numbers are doubles to many readers."""
    columns = [[c.name, c.value_count, f"{c.hash_sum:016x}"] for c in fingerprint.columns]
    return {"rows": fingerprint.row_count, "columns": columns}


def fingerprint_from_json(value: Mapping[str, Any] | None) -> Fingerprint | None:
    """Read what `fingerprint_to_json` wrote."""
    if value is None:
        return None
    columns = tuple(ColumnPrint(name, count, int(digits, 16)) for name, count, digits in value["columns"])
    return Fingerprint(value["rows"], columns)
