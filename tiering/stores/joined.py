"""Joined lake files: one object that Iceberg readers see in the place of several small ones.

The small objects stay: each is its unit's authoritative copy, which moves, merges, expires and is erased on its own.
A joined file is derived from them. The moment that one of its parts changes, `change_files` publishes the others as
they are and forgets the joined file, in the same transaction; its object is then a leftover for the sweep.
Functions join the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg2.extensions import connection as Connection

from tiering.stores.lake import IcebergLake, LakeFile
from tiering.stores.postgres import execute, fetch


@dataclass(frozen=True, slots=True)
class JoinedFile:
    """One row of tiering.joined.

    Attributes:
        parts: the locations of the objects that it stands for.
    """

    dataset: str
    location: str
    begin: datetime
    end: datetime
    row_count: int
    size_bytes: int
    sha256: str
    parts: tuple[str, ...]


def list_joined(connection: Connection, dataset: str) -> list[JoinedFile]:
    """List a dataset's joined files, oldest first."""
    rows = fetch(
        connection,
        """SELECT dataset, location, begin_at, end_at, row_count, size_bytes, sha256, parts FROM tiering.joined
           WHERE dataset = %s ORDER BY begin_at""",
        (dataset,),
    )
    found = []
    for name, location, begin, end, row_count, size_bytes, sha256, parts in rows:
        found.append(JoinedFile(name, location, begin, end, row_count, size_bytes, sha256, tuple(parts)))
    return found


def put_joined(connection: Connection, file: JoinedFile) -> None:
    """Record a joined file."""
    execute(
        connection,
        """INSERT INTO tiering.joined (dataset, location, begin_at, end_at, row_count, size_bytes, sha256, parts)
           VALUES (%s, %s, %s, %s, %s, %s, %s, %s)""",
        (
            file.dataset,
            file.location,
            file.begin,
            file.end,
            file.row_count,
            file.size_bytes,
            file.sha256,
            list(file.parts),
        ),
    )


def lock_publisher(connection: Connection, dataset: str) -> None:
    """Let one publisher per lake table work at a time: the loser of a pointer race writes its metadata again."""
    execute(connection, "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"tiering.publish.{dataset}",))


def change_files(
    connection: Connection,
    lake: IcebergLake,
    dataset: str,
    *,
    add: Sequence[LakeFile] = (),
    remove: Collection[str] = (),
) -> None:
    """Change which units' objects Iceberg readers see, in the caller's transaction and one Iceberg commit.

    Of a joined file that stands for a removed object, the other parts are published again on their own.

    Raises:
        CommitConflict: another commit moved the pointer first.
        NotFound: an object to remove is not published, neither itself nor in a joined file.
    """
    lock_publisher(connection, dataset)
    gone = set(remove)
    broken = [file for file in list_joined(connection, dataset) if gone & set(file.parts)]
    apart = {part for file in broken for part in file.parts}
    again = _files(connection, dataset, apart - gone)
    staged = lake.stage(dataset, add=[*add, *again], remove=[*(gone - apart), *(file.location for file in broken)])
    lake.apply(connection, staged)
    for file in broken:
        forget_joined(connection, file)


def forget_joined(connection: Connection, file: JoinedFile) -> None:
    """Forget a joined file; its object is a leftover as soon as no snapshot names it."""
    execute(
        connection, "DELETE FROM tiering.joined WHERE dataset = %s AND location = %s", (file.dataset, file.location)
    )


def _files(connection: Connection, dataset: str, locations: Collection[str]) -> list[LakeFile]:
    rows = fetch(
        connection,
        """SELECT location, size_bytes, row_count FROM tiering.unit
           WHERE dataset = %s AND tier = 'cold' AND location = ANY(%s) ORDER BY begin_at""",
        (dataset, list(locations)),
    )
    return [LakeFile(*row) for row in rows]
