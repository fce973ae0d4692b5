"""What every step of a move is given, and the few effects that the transitions share.

Does not: decide which moves are due (plan/lifecycle.py) or destroy anything (sweep.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from tiering import errors
from tiering.model import Column, Dataset, Fingerprint, Form, State
from tiering.ops import columns
from tiering.ops.checkpoints import check_copy
from tiering.ops.columns import Layout
from tiering.stores import ledger, pghash
from tiering.stores.bson_typed import document_columns
from tiering.stores.opening import Stores
from tiering.stores.postgres import LOCK_TIMEOUT_MS, Postgres
from tiering.stores.records import MoveRecord


@dataclass(frozen=True, slots=True)
class Work:
    """One step's surroundings: the leased move, its dataset, the stores and the run's one `now`."""

    stores: Stores
    dataset: Dataset
    record: MoveRecord
    now: datetime
    owner: str

    @property
    def unit(self) -> Any:
        """The unit being moved."""
        return self.record.unit

    def at(self, record: MoveRecord) -> Work:
        """The same work with the move as last advanced."""
        return replace(self, record=record)

    def advance(self, connection: Connection, state: State, **columns: Any) -> MoveRecord:
        """Advance the move inside a transaction that also holds the step's effects."""
        return self.stores.ledger.advance(connection, self.record, state, **columns)

    def advance_alone(self, state: State, **columns: Any) -> MoveRecord:
        """Advance the move in a transaction of its own."""
        return self.stores.ledger.advance_alone(self.record, state, **columns)

    @contextmanager
    def commit(self) -> Iterator[Connection]:
        """Open the one transaction that commits the move: short lock timeout, in the ledger's database."""
        with self.stores.warm.transaction("commit", str(self.record), lock_timeout_ms=LOCK_TIMEOUT_MS) as connection:
            yield connection

    def columns(self) -> tuple[Column, ...]:
        """Read the dataset's columns as the hot table declares them now.

        Raises:
            IncompatibleColumns: they changed in a way that stored data cannot follow.
        """
        if self.dataset.form is Form.DOCUMENTS:
            return document_columns(self.dataset)
        return self._layout().demand()

    def stored_columns(self) -> tuple[Column, ...]:
        """Return the columns that warm and cold copies have: also those that the hot table has lost."""
        return self._layout().stored

    def _layout(self) -> Layout:
        return columns.settle(self.stores, self.dataset.name, self.owner)

    def audit(self, connection: Connection, action: str, **details: Any) -> None:
        """Append to the audit trail, in the commit's transaction."""
        details |= {"move_id": self.record.move_id, "generation": self.unit.generation}
        ledger.audit(connection, self.owner, action, self.dataset.name, self.unit.begin, details)

    def trash(self, connection: Connection, store: str, location: str, size_bytes: int = 0) -> None:
        """Note a superseded copy for the sweep, in the commit's transaction."""
        self.stores.ledger.put_trash(connection, self.record, store, location, size_bytes, self.now)


def compared_columns(dataset: Dataset, columns: tuple[Column, ...]) -> tuple[Column, ...]:
    """Choose the columns whose fingerprints are compared: the dataset's list, or all."""
    if not dataset.fingerprint:
        return columns
    return tuple(c for c in columns if c.name in dataset.fingerprint or c.name in dataset.key)


def fingerprint_of(
    database: Postgres, relation: sql.Composable, dataset: Dataset, columns: tuple[Column, ...], subject: str
) -> Fingerprint:
    """Ask PostgreSQL itself for the fingerprint of a relation: one scan, none of our decoding."""
    compared = compared_columns(dataset, columns)
    with database.transaction("fingerprint", subject, read_only=True) as connection:
        return pghash.fingerprint(connection, relation, compared, dataset.key)


def demand_equal(subject: str, source: Fingerprint, copy: Fingerprint) -> None:
    """Raise FingerprintMismatch naming every difference between a source and its copy."""
    differences = source.differences(copy)
    if differences:
        raise errors.FingerprintMismatch(
            "verify",
            subject,
            "; ".join(differences[:5]),
            "Both copies are kept and the unit is quarantined. Find out which is wrong, then `tiering release` it.",
        )


def prove_copy(subject: str, source: Fingerprint, copy: Fingerprint, size_bytes: int) -> None:
    """Pass the checkpoint after COPIED: fingerprints prove integrity, and the suite puts it on record.

    Raises:
        FingerprintMismatch: the copy differs; every difference is named.
    """
    demand_equal(subject, source, copy)
    report = check_copy(subject, "copied", source, copy, size_bytes)
    if not report.passed:
        raise errors.FingerprintMismatch("verify", subject, report.problem, "Both copies are kept. See the report.")


def both(first: Any, second: Any) -> tuple[Any, Any]:
    """Run two functions at once and return both results; the first error wins, after both have ended."""
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.submit(first), pool.submit(second)
        return one.result(), two.result()
