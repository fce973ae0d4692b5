"""Deliver files of the stored log to a server, as restore_command asks: "not there" is never said for "cannot tell".

PostgreSQL takes two exits of 1 to 125 in a row for the end of the log, and promotes. So 1 is said only where the bucket
was asked and has nothing behind; everything else ends the recovery, which can be begun again.
"""

from __future__ import annotations

import time
from pathlib import Path

from tiering.errors import NotFound, TransientError
from tiering.model_backup import StoreName
from tiering.ops.catalogue import Catalogue
from tiering.ops.wal_archive import LogArchive, write_private
from tiering.plan.recovery import END, Stretch, at, covered_until
from tiering.stores.pg_wal import HISTORY_NAME, SEGMENT_NAME, parse_segment_name

CANNOT_TELL = 200
ATTEMPTS = 5
_PAUSE_SECONDS = 1.0


def fetch(catalogue: Catalogue, source: str, name: str, path: Path) -> bool:
    """Write a file of the log; False: the bucket proves that there is none, and nothing behind it.

    Raises:
        TieringError: it cannot be told, or it is damaged, or there is a hole.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _fetch(catalogue, source, name, path)
        except TransientError:
            if attempt == ATTEMPTS:
                raise
            time.sleep(_PAUSE_SECONDS * attempt)
    raise AssertionError("unreachable")


def _fetch(catalogue: Catalogue, source: str, name: str, path: Path) -> bool:
    entries = [entry.backup for entry in catalogue.entries(StoreName.POSTGRESQL, source) if entry.backup.facts]
    if not entries:
        raise NotFound("fetch", name, f"there is no backup of {source}", "Is it the right bucket, the right source?")
    newest = entries[-1]
    segment_bytes = int(str(newest.facts["wal_segment_bytes"]))
    archive = LogArchive(catalogue, source, newest.incarnation, segment_bytes)
    if found := HISTORY_NAME.fullmatch(name):
        text = archive.histories.get(int(found[1], 16))
        if text is not None:
            write_private(path, text.encode())
        return text is not None
    if not SEGMENT_NAME.fullmatch(name):
        return False
    timeline, begins = parse_segment_name(name, segment_bytes)
    here = [one for one in archive.ranges if one.timeline == timeline]
    reach = covered_until(here, [Stretch(timeline, 0, END)], begins)
    is_later = any(at(one.ends) > max(reach, begins) for one in here)
    if reach == begins and not is_later:
        return False
    if reach < begins + segment_bytes and is_later:
        raise NotFound("fetch", name, "the log has a hole there, and goes on behind it", "Recover to before it.")
    data = bytearray(segment_bytes)
    for start, piece in archive.pieces(timeline, begins):
        data[start - begins : start - begins + len(piece)] = piece
    write_private(path, bytes(data))
    return True
