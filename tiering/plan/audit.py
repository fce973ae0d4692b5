"""The audit trail's hash chain: compute it again from the rows, and name what does not fit.

Each link's hash covers the hash before it and the row's content (infra/sql/ledger.sql writes the same). Anchors are
heads of the chain that were noted outside of the database: they alone show a tail that was cut off, or a chain that
was computed anew.
Does not: read a store (stores/audit.py).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

ANCHOR_PREFIX = "audit/head/"

_ANCHOR = re.compile(re.escape(ANCHOR_PREFIX) + r"(\d{20})-([0-9a-f]{64})\.json")


@dataclass(frozen=True, slots=True)
class Link:
    """One link as stored, beside its row.

    Attributes:
        position: 1, 2, 3 …; None: a row that no link covers.
        audit_id: of the row.
        content: the row's canonical text; None: the row is gone.
        digest: the stored hash.
    """

    position: int | None
    audit_id: int
    content: str | None
    digest: bytes = b""


@dataclass(frozen=True, slots=True, order=True)
class Anchor:
    """A head of the chain, as noted in the bucket."""

    position: int
    digest: str

    @property
    def key(self) -> str:
        """Name its object: the name alone says everything."""
        return f"{ANCHOR_PREFIX}{self.position:020d}-{self.digest}.json"


@dataclass(frozen=True, slots=True)
class Break:
    """One place where the chain does not hold."""

    subject: str
    text: str


def anchor_in(key: str) -> Anchor | None:
    """Read an anchor's key; None for any other key."""
    found = _ANCHOR.fullmatch(key)
    return Anchor(int(found[1]), found[2]) if found else None


def follow(previous: bytes, content: str) -> bytes:
    """Compute the hash of the link that follows `previous`."""
    return hashlib.sha256(previous + content.encode()).digest()


def breaks(links: Iterable[Link], anchors: Iterable[Anchor]) -> Iterator[Break]:
    """Yield every break, the first broken row first; nothing when the chain holds.

    Args:
        links: in order of position, rows without a link at the end.
        anchors: every head that was noted.
    """
    noted: dict[int, set[str]] = {}
    for anchor in anchors:
        noted.setdefault(anchor.position, set()).add(anchor.digest)
    previous, last = b"", 0
    for link in links:
        row = f"audit row {link.audit_id}"
        if link.position is None:
            yield Break(row, "is in no link of the chain: it was put in behind the trigger's back, or its link is gone")
            continue
        if link.position != last + 1:
            yield Break(f"audit link {last + 1}", f"the chain goes on at link {link.position}: links were taken out")
        elif link.content is None:
            yield Break(row, f"link {link.position} covers it, but the row is gone")
        elif follow(previous, link.content) != link.digest:
            yield Break(row, f"its content, or its place in the chain, is not what link {link.position} was made of")
        if noted.pop(link.position, {link.digest.hex()}) - {link.digest.hex()}:
            yield Break(row, f"the head noted in the bucket at link {link.position} is another one: rewritten since")
        previous, last = link.digest, link.position
    if noted:
        text = f"the chain ends at link {last}, the bucket has noted link {max(noted)}: its end was cut off"
        yield Break(f"audit link {last + 1}", text)
