"""Restore Redis: load the snapshots into servers of their own, compare, and copy every key to where it is wanted.

Why two steps: a server loads a snapshot only when it starts, and claims slots by the keys it finds. Copied by DUMP and
RESTORE, keys reach a cluster of any shape, whose nodes have any names, and whatever runs there keeps running.

Does not: start servers (a port) or ask a person; that is the caller's.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from pathlib import Path

from pydantic import SecretStr

from tiering.errors import CorruptCopy, HeldError, NotFound, StoreFull, VerificationError
from tiering.model_backup import Backup, BackupState, CatalogueEntry, StoredObject, StoreName
from tiering.ops.backup_redis import Part, Progress, parts_of
from tiering.ops.catalogue import Catalogue
from tiering.stores.redis_keys import copy_keys, count_keys, loaded
from tiering.stores.redis_wire import SLOTS, Slots

Servers = Callable[[Sequence[Path], Sequence[Slots]], AbstractContextManager[Sequence[SecretStr]]]
"""Start a master on each snapshot, or directory of append-only files, with its slots; no slots: one server that is no
cluster. See scratch_redis."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A backup up and running on servers of its own.

    Attributes:
        backup: which.
        urls: of the masters, in the backup's order.
        keys: that they hold.
        expired: that were over when they were loaded, and are gone.
    """

    backup: Backup
    urls: tuple[SecretStr, ...]
    keys: int
    expired: int


def newest(catalogue: Catalogue, source: str) -> CatalogueEntry:
    """Return the newest backup that no check found wanting.

    Raises:
        NotFound: there is none.
    """
    entries = catalogue.entries(StoreName.REDIS, source)
    usable = [entry for entry in entries if entry.state is not BackupState.FAILED]
    if not usable:
        cause = entries[-1].problem if entries else "there is no backup"
        raise NotFound("find", f"redis/{source}", cause, "`tiering backups` shows what there is.")
    return usable[-1]


@contextmanager
def load(catalogue: Catalogue, backup: Backup, servers: Servers, scratch: Path | None = None) -> Iterator[Loaded]:
    """Start servers on a backup and compare them with what it says of itself.

    Raises:
        CorruptCopy: a stored byte is not what was written; no server was started.
        VerificationError: the map does not cover all slots once, or a server has other keys than its snapshot.
    """
    parts = parts_of(backup)
    is_cluster = bool(backup.facts["is_cluster"])
    check_map(backup, parts)
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiering-redis-", dir=scratch)))
        files = [_fetch(catalogue, part, home / f"master-{number}") for number, part in enumerate(parts)]
        slots = [part.slots for part in parts] if is_cluster else []
        urls = tuple(stack.enter_context(servers(files, slots)))
        expired = sum(_check_loaded(backup, part, url) for part, url in zip(parts, urls, strict=True))
        yield Loaded(backup, urls, sum(part.keys for part in parts) - expired, expired)


def check_map(backup: Backup, parts: Sequence[Part]) -> None:
    """Make sure that a cluster's slots have one master each.

    Raises:
        VerificationError: a slot has none, or two.
    """
    if not backup.facts["is_cluster"]:
        return
    slots = [slot for part in parts for begin, end in part.slots for slot in range(begin, end + 1)]
    if sorted(slots) != list(range(SLOTS)):
        cause = f"its map has {len(set(slots))} of {SLOTS} slots, {len(slots) - len(set(slots))} of them twice"
        raise VerificationError("load", backup.backup_id, cause, "Choose another backup: `tiering backups`.")


def restore(
    catalogue: Catalogue,
    backup: Backup,
    into: SecretStr,
    servers: Servers,
    *,
    is_approved: bool = False,
    scratch: Path | None = None,
    progress: Progress = lambda *_: None,
) -> int:
    """Bring every key of a backup into a running Redis or cluster; return how many there are then.

    A key that is over by now stays away. Run again after a crash, with approval, it does the same.

    Raises:
        HeldError: there are keys already, and nobody approved; nothing was written.
        VerificationError: as `load`, or the keys there are not those of the backup.
    """
    present = count_keys(into)
    if present and not is_approved:
        hint = "Name an empty place, or approve that keys of these names are replaced."
        raise HeldError("restore", f"redis/{backup.source}", f"{present} keys live there", hint)
    with load(catalogue, backup, servers, scratch) as copy:
        for number, url in enumerate(copy.urls):
            progress(copy_keys(url, into), f"master {number}")
        found, least = count_keys(into), count_keys(copy.urls[0])  # of all its masters
    # Keys go on expiring on both sides; none may be missing beyond those, and in an empty place there are no others.
    if found < least - sum(part.expiring for part in parts_of(backup)) or (not present and found > copy.keys):
        raise VerificationError("restore", backup.backup_id, f"{found} keys are there, {least} were to be copied")
    return found


def _fetch(catalogue: Catalogue, part: Part, path: Path) -> Path:
    if not part.files:
        return _write(catalogue, part.objects, path)
    path.mkdir(mode=0o700)
    for name, objects in part.files:
        if name != os.path.basename(name) or name.startswith("."):
            raise CorruptCopy("load", name, "that is no name of an append-only file")
        _write(catalogue, objects, path / name)
    return path


def _write(catalogue: Catalogue, objects: Sequence[StoredObject], path: Path) -> Path:
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            for stored in objects:
                file.write(catalogue.vault.fetch(stored))
    except OSError as exc:
        if exc.errno not in (ENOSPC, EDQUOT):
            raise
        hint = "Name another place for scratch files. No server was started."
        raise StoreFull("load", str(path), "its file system is full", hint) from exc
    return path


def _check_loaded(backup: Backup, part: Part, url: SecretStr) -> int:
    """Compare a server with its snapshot; return how many keys had expired."""
    state = loaded(url)
    subject = f"{backup.backup_id} master {part.node_id[:8]}"
    # Append-only files are replayed whole, and the server then removes what is over: it counts none of it.
    expired = part.keys - state.keys if part.files else state.expired
    is_whole = 0 <= expired <= part.expiring if part.files else state.loaded + expired == part.keys
    if not is_whole:
        there = state.keys if part.files else state.loaded
        cause = f"{there} keys were loaded and {expired} were over, it says {part.keys}, {part.expiring} to expire"
        raise CorruptCopy("load", subject, cause, "Choose another backup: `tiering backups`.")
    foreign = state.slots - {slot for begin, end in part.slots for slot in range(begin, end + 1)}
    if foreign:
        cause = f"keys of {len(foreign)} slots are in it that the map gives to others, slot {min(foreign)} first"
        raise VerificationError("load", subject, cause, "The map of slots is not the one of these snapshots.")
    return expired
