"""Entries of MongoDB's oplog: their positions, and what each of them says; the entries themselves stay raw BSON.

Does not: read them from a server (`mongo_oplog`) or carry them out (`mongo_replay`).

What the embedded server (SecantusDB) logs otherwise: every statement of a transaction is an entry of its own under one
common `ts` (MongoDB: one `applyOps`), a transaction's `ts` may be a little less than that of an entry before it, an
update lists dotted paths, and `collMod` of a view or of an index's `hidden` leaves no trace of what was changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tiering.errors import CorruptCopy
from tiering.stores import bson_edit as edit
from tiering.stores.bson_batches import RawBatch, locate
from tiering.stores.bson_edit import Element, Fields

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
INCREMENT_MAX = 2**32 - 1


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A moment of the oplog: seconds since 1970 and a count within the second."""

    seconds: int
    increment: int

    def __str__(self) -> str:
        return f"{self.seconds},{self.increment}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read what `str` writes.

        Raises:
            ValueError: it is something else.
        """
        seconds, comma, increment = text.partition(",")
        if not (comma and seconds.isdecimal() and increment.isdecimal()):
            raise ValueError(f"not seconds,increment: {text!r}")
        return cls(int(seconds), int(increment))

    @property
    def following(self) -> Position:
        """Return the least position behind this one."""
        if self.increment < INCREMENT_MAX:
            return Position(self.seconds, self.increment + 1)
        return Position(self.seconds + 1, 0)

    @property
    def preceding(self) -> Position:
        """Return the greatest position before this one."""
        if self.increment:
            return Position(self.seconds, self.increment - 1)
        return Position(self.seconds - 1, INCREMENT_MAX)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry.

    Attributes:
        position: its `ts`.
        wall: when it was written, by the server's clock.
        kind: `i`, `u`, `d`, `c` (a command) or `n` (nothing).
        namespace: database and collection; of a command `<database>.$cmd`.
        change: `o`, apart.
        document: `o` as it came.
        target: `o2`, apart: which document.
        uuid: of the collection; empty if not told.
        transaction: session and number of the transaction it belongs to; empty if to none.
        continues: an earlier entry of the same transaction has to be there.
    """

    position: Position
    wall: datetime | None
    kind: str
    namespace: str
    change: Fields
    document: bytes = b""
    target: Fields = field(default_factory=dict)
    uuid: bytes = b""
    transaction: bytes = b""
    continues: bool = False

    @property
    def database(self) -> str:
        """Return the part of the namespace before the first dot."""
        return self.namespace.partition(".")[0]

    @property
    def document_id(self) -> Element:
        """Return the `_id` of the document it is about.

        Raises:
            CorruptCopy: it names none.
        """
        found = self.target.get(b"_id") or self.change.get(b"_id")
        if found is None:
            raise CorruptCopy("read oplog", str(self.position), f"{self.kind} in {self.namespace} names no _id")
        return found


def positions(batch: RawBatch) -> list[Position]:
    """Return the positions of raw entries.

    Raises:
        CorruptCopy: an entry has no `ts`.
    """
    cells = locate(batch, ["ts"])
    if len(batch) and not (cells.kinds[0] == edit.TIMESTAMP).all():
        raise CorruptCopy("read oplog", f"{len(batch)} entries", "one has no ts")
    starts = cells.starts[0].tolist()
    return [_position(bytes(batch.data[at : at + 8])) for at in starts]


def parse(raw: bytes) -> Entry:
    """Take one raw entry apart.

    Raises:
        CorruptCopy: it is no entry.
    """
    fields = edit.split(raw)
    if b"ts" not in fields or fields[b"ts"][0] != edit.TIMESTAMP or b"op" not in fields:
        raise CorruptCopy("read oplog", f"{len(raw)} bytes", "no entry of an oplog")
    return _entry(fields, _position(fields[b"ts"][1:]), wall_of(fields), _transaction(fields))


def inner(outer: Entry, operations: Element) -> Iterator[Entry]:
    """Take the operations of an `applyOps` apart; they have its position and time."""
    for operation in edit.items(operations):
        yield _entry(edit.split(operation[1:]), outer.position, outer.wall, b"")


def wall_of(fields: Fields) -> datetime | None:
    """Read the time an entry was written."""
    wall = fields.get(b"wall")
    if wall is None or wall[0] != edit.DATE:
        return None
    return _EPOCH + timedelta(milliseconds=int.from_bytes(wall[1:], "little", signed=True))


def wall_of_raw(raw: bytes) -> datetime | None:
    """Read the time a raw entry was written."""
    return wall_of(edit.split(raw))


def merged(batches: Iterable[bytes]) -> list[tuple[Position, bytes]]:
    """Put raw entries of overlapping stretches in order, those of one position as they came, and each once."""
    found: dict[Position, list[bytes]] = {}
    for data in batches:
        here: dict[Position, list[bytes]] = {}
        batch = RawBatch.from_bytes(data)
        for position, raw in zip(positions(batch), batch.documents(), strict=True):
            here.setdefault(position, []).append(raw)
        # Entries of one position are of one transaction, and were stored together.
        found = {**here, **found}
    return [(position, raw) for position in sorted(found) for raw in found[position]]


def touched(entries: Iterable[bytes]) -> set[tuple[str, Element]]:
    """Return namespace and `_id` of every document that raw entries are about."""
    found: set[tuple[str, Element]] = set()
    for raw in entries:
        outer = parse(raw)
        parts = inner(outer, outer.change[b"applyOps"]) if b"applyOps" in outer.change else [outer]
        found |= {(one.namespace, one.document_id) for one in parts if one.kind in ("i", "u", "d")}
    return found


def joined(entries: Sequence[tuple[Position, bytes]]) -> bytes:
    """Lay raw entries end to end, as they are stored."""
    return b"".join(raw for _, raw in entries)


def _entry(fields: Fields, position: Position, wall: datetime | None, transaction: bytes) -> Entry:
    change, target = fields.get(b"o", b""), fields.get(b"o2", b"")
    previous = fields.get(b"prevOpTime", b"")
    continues = bool(previous[:1] == bytes([edit.DOCUMENT]) and any(edit.split(previous[1:]).get(b"ts", b"\0")[1:]))
    return Entry(
        position,
        wall,
        edit.text(fields[b"op"]) if b"op" in fields else "",
        edit.text(fields[b"ns"]) if b"ns" in fields else "",
        edit.split(change[1:]) if change[:1] == bytes([edit.DOCUMENT]) else {},
        change[1:],
        edit.split(target[1:]) if target[:1] == bytes([edit.DOCUMENT]) else {},
        fields.get(b"ui", b""),
        transaction,
        continues,
    )


def _transaction(fields: Fields) -> bytes:
    if b"lsid" not in fields or b"txnNumber" not in fields:
        return b""
    # Of a session the id alone: MongoDB adds the user's digest in some places only.
    return edit.split(fields[b"lsid"][1:]).get(b"id", b"") + fields[b"txnNumber"]


def _position(value: bytes) -> Position:
    return Position(int.from_bytes(value[4:8], "little"), int.from_bytes(value[:4], "little"))
