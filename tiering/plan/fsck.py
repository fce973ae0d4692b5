"""What a check of the stores against each other may find, and what to do about each of it.

Does not: look at a store (ops/fsck.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """Kinds of findings."""

    MISSING_TABLE = "missing_table"
    UNKNOWN_PARTITION = "unknown_partition"
    TWO_COPIES = "two_copies"
    MISSING_OBJECT = "missing_object"
    WRONG_SIZE = "wrong_size"
    WRONG_HASH = "wrong_hash"
    WRONG_ROWS = "wrong_rows"
    WRONG_PRINT = "wrong_fingerprint"
    NOT_IN_LAKE = "not_in_lake"
    NOT_IN_LEDGER = "not_in_ledger"
    LAKE_DIFFERS = "lake_differs"
    SCHEMA_DRIFT = "schema_drift"
    STALE_MOVE = "stale_move"
    OVERDUE_TRASH = "overdue_trash"
    MISSING_TRASH = "missing_trash"
    ORPHAN_OBJECT = "orphan_object"
    LEFT_IN_STAGE = "left_in_stage"
    BROKEN_CHAIN = "broken_chain"


NOTES = frozenset({Code.ORPHAN_OBJECT, Code.LEFT_IN_STAGE})
"""Findings that are no difference: a crash leaves such things behind, and the sweep takes them after the grace."""

REMEDIES: dict[Code, str] = {
    Code.MISSING_TABLE: "Restore the table from a backup under this name, then run `tiering fsck` again.",
    Code.UNKNOWN_PARTITION: "Detach it if it was attached by hand; its rows are read, but never move.",
    Code.TWO_COPIES: "Run the transition again: it settles the hot copy, `tiering run hot-to-warm`.",
    Code.MISSING_OBJECT: "Restore the object from the backup bucket or a bucket version.",
    Code.WRONG_SIZE: "Restore the object from a bucket version; its name carries the hash it must have.",
    Code.WRONG_HASH: "Restore the object from a bucket version; its name carries the hash it must have.",
    Code.WRONG_ROWS: "Find out who changed the copy; the source's trash may still be in its undo window.",
    Code.WRONG_PRINT: "Restore the object from a bucket version; its name carries the hash it must have.",
    Code.NOT_IN_LAKE: "Only the ledger knows the file, other engines miss it: add it to the Iceberg table again.",
    Code.NOT_IN_LEDGER: "Other engines read a file that is no unit: remove it from the Iceberg table.",
    Code.LAKE_DIFFERS: "The Iceberg table says other bytes or rows of this file than the ledger: look which is true.",
    Code.SCHEMA_DRIFT: "Run `tiering install`; a type that changed needs a new column instead.",
    Code.STALE_MOVE: "Run its transition again: it goes on from where it stopped; `tiering explain` says why not.",
    Code.OVERDUE_TRASH: "Run the sweep: `tiering sweep`.",
    Code.MISSING_TRASH: "Nothing is lost, but the undo is: somebody dropped the superseded copy before its time.",
    Code.ORPHAN_OBJECT: "None needed: the sweep takes it after the grace period.",
    Code.LEFT_IN_STAGE: "None needed: the sweep takes it.",
    Code.BROKEN_CHAIN: "Somebody changed the audit trail behind its triggers: compare it with a backup from before.",
}


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One difference between two stores."""

    code: Code
    subject: str
    text: str

    @property
    def is_note(self) -> bool:
        """Tell whether it is only worth a note."""
        return self.code in NOTES

    @property
    def remedy(self) -> str:
        """Say what to do."""
        return REMEDIES[self.code]


def lasting(first: Iterable[Finding], second: Iterable[Finding]) -> list[Finding]:
    """Keep what two looks agree on: what a move in flight showed once is gone the second time."""
    again = {(finding.code, finding.subject) for finding in second}
    return sorted(finding for finding in first if (finding.code, finding.subject) in again)
