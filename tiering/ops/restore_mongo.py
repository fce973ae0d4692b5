"""Restore MongoDB to an exact moment: a full backup, its own oplog, and the archived oplog up to a target.

Order: choose, refuse what cannot be exact, read and check every object, only then write; read everything back; build
indexes; name a new history (incarnation), so that what is archived from now on never mixes with what was before.

Does not: choose a server or ask a person; that is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from pydantic import SecretStr

from tiering.errors import CorruptCopy, FingerprintMismatch, HeldError, NotFound
from tiering.model_backup import Backup, BackupState, LogRange, StoreName
from tiering.ops.backup_mongo import collections_of, oplog_of
from tiering.ops.catalogue import Catalogue
from tiering.stores import mongo_layout
from tiering.stores.mongo_dump import clear
from tiering.stores.mongo_entries import Position, merged, touched, wall_of_raw
from tiering.stores.mongo_oplog import RawEntry
from tiering.stores.mongo_replay import Replay
from tiering.stores.mongo_server import MongoServer

LATEST = "latest"
Progress = Callable[[int, str], None]
"""Told of bytes or entries, and of what they belong to."""


@dataclass(frozen=True, slots=True)
class Target:
    """A moment to restore to: at most one is given; none means the latest that is archived.

    Attributes:
        position: everything up to this position, that one included.
        time: everything written up to this instant, by the server's clock.
    """

    position: Position | None = None
    time: datetime | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `latest`, `seconds,increment` or an instant with its time zone.

        Raises:
            NotFound: (a bad argument) it is none of these.
        """
        if text == LATEST:
            return cls()
        try:
            if "," in text:
                return cls(position=Position.parse(text))
            instant = datetime.fromisoformat(text)
        except ValueError:
            instant = None
        if instant is None or instant.tzinfo is None:
            hint = "Write latest, 1795396148,12, or 2026-11-23T02:00:00Z."
            raise NotFound("read unit name", text, "no moment of MongoDB's oplog", hint)
        return cls(time=instant.astimezone(UTC))

    def __str__(self) -> str:
        return str(self.position or (self.time and self.time.isoformat()) or LATEST)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a restore will do, before anything is written.

    Attributes:
        backup: to begin with.
        ranges: of the archived oplog to carry out then.
        until: the last position that is carried out.
    """

    backup: Backup
    ranges: tuple[LogRange, ...]
    until: Position


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did.

    Attributes:
        backup_id: it began with.
        at: the last position carried out, or the backup's end.
        written_at: when that was written, by the server's clock then.
        incarnation: the new history's name.
        documents: there now.
        entries: of oplogs carried out.
    """

    backup_id: str
    at: str
    written_at: datetime | None
    incarnation: str
    documents: int
    entries: int


def restore(
    catalogue: Catalogue,
    target: str,
    into: SecretStr,
    *,
    now: datetime,
    source: str = "main",
    is_approved: bool = False,
    backup_id: str | None = None,
    progress: Progress = lambda *_: None,
) -> Restored:
    """Bring a server to a moment of the past, exactly.

    Args:
        catalogue: where backups and oplog are.
        target: `latest`, `seconds,increment`, or an instant with time zone.
        into: the server's URL.
        now: the instant, for the new history's name.
        source: whose backups.
        is_approved: a person agreed that what is on the server is destroyed.
        backup_id: begin with this backup; the newest that fits if not given.
        progress: told of bytes and entries.

    Raises:
        NotFound: no backup leads there, the target lies behind the archive's end, or before a gap's other side.
        HeldError: there are documents on the server, and nobody approved.
        CorruptCopy: an object or the log is not what was stored; before anything was written, but for what only
            carrying out the log shows.
        FingerprintMismatch: the server does not hold what was written to it.
    """
    plan = prepare(catalogue, Target.parse(target), source, backup_id, progress)
    with MongoServer(into, "restore") as server:
        make_room(server, is_approved)
        name = uuid4().hex[:16]
        note = f"restore of {source} to {plan.until} from {plan.backup.backup_id}"
        server.name_incarnation(name, is_restoring=True, note=note, now=now)
        replay = Replay(server)
        load_backup(catalogue, plan.backup, replay, progress)
        for entries in read_log(catalogue, plan):
            replay.apply(entries, may_be_newer=False)
            progress(len(entries), "oplog")
        replay.flush()
        if found := replay.differences():
            hint = "The server lost or changed documents while it was restored; look at its log. Do not use it."
            raise FingerprintMismatch("restore", source, "; ".join(found[:5]), hint)
        progress(0, "indexes")
        replay.finish()
        server.name_incarnation(name, is_restoring=False, note=note, now=now)
    documents = sum(content.count for content in replay.contents.values())
    at = max(replay.at or plan.until, Position.parse(plan.backup.ends))
    return Restored(plan.backup.backup_id, str(at), replay.written_at, name, documents, replay.entries)


def prepare(
    catalogue: Catalogue,
    target: Target,
    source: str,
    backup_id: str | None = None,
    progress: Progress = lambda *_: None,
) -> Plan:
    """Choose what leads to a target, and read and check all of it; write nothing.

    Raises:
        NotFound: nothing leads there exactly; the reason says why.
        CorruptCopy: an object is not what was stored.
    """
    backup = _choose(catalogue, target, source, backup_id)
    logs = catalogue.logs(StoreName.MONGODB, source, backup.incarnation)
    if target == Target() and backup_id is None:
        _refuse_other_history(catalogue, backup, logs)
    ranges, reach = _reach(backup, logs, target)
    with ThreadPoolExecutor(4, "verify") as pool:
        for part in pool.map(catalogue.vault.fetch, backup.objects):
            progress(len(part), "verify")
    until = _last(catalogue, backup, ranges, reach, target, progress)
    kept = tuple(one for one in ranges if Position.parse(one.begins) <= until)
    return Plan(backup, kept, until)


def _choose(catalogue: Catalogue, target: Target, source: str, backup_id: str | None) -> Backup:
    if backup_id is not None:
        backup = catalogue.entry(backup_id).backup
        if not _is_before(backup, target):
            raise _no_way(target, source, f"backup {backup_id} ends at {backup.ends}, after the target")
        return backup
    entries = catalogue.entries(StoreName.MONGODB, source)
    usable = [entry.backup for entry in entries if entry.state is not BackupState.FAILED]
    fitting = [backup for backup in usable if _is_before(backup, target)]
    if not fitting:
        oldest = min((backup.ends for backup in usable), key=Position.parse, default="")
        cause = f"the oldest backup ends at {oldest}, after the target" if usable else "there is no backup"
        raise _no_way(target, source, cause)
    return max(fitting, key=lambda backup: Position.parse(backup.ends))


def _is_before(backup: Backup, target: Target) -> bool:
    if target.position is not None:
        return Position.parse(backup.ends) <= target.position
    return target.time is None or datetime.fromisoformat(str(backup.facts["ends_wall"])) <= target.time


def _refuse_other_history(catalogue: Catalogue, backup: Backup, logs: Sequence[LogRange]) -> None:
    """Refuse `latest` where the newest history has no backup: what the archive has of it hangs in the air."""
    every = catalogue.logs(StoreName.MONGODB, backup.source)
    newest = max((one.stored_at for one in logs), default=backup.ended_at)
    others = [one for one in every if one.incarnation != backup.incarnation and one.stored_at > newest]
    if others:
        cause = f"the server has another history since ({others[-1].incarnation}), of which there is no backup yet"
        raise _no_way(Target(), backup.source, cause, "Take a full backup; or name the moment you want.")


def reach_of(backup: Backup, logs: Sequence[LogRange]) -> Position:
    """Return the position up to which the archive leads from a backup without a hole, that one excluded."""
    reach = Position.parse(backup.ends).following
    for one in sorted(logs, key=lambda one: Position.parse(one.begins)):
        if Position.parse(one.begins) <= reach:
            reach = max(reach, Position.parse(one.ends))
    return reach


def _reach(backup: Backup, logs: Sequence[LogRange], target: Target) -> tuple[list[LogRange], Position]:
    """Follow the ranges from a backup on as far as they touch; refuse if that is not as far as the target."""
    reach, ranges = Position.parse(backup.ends).following, []
    for one in sorted(logs, key=lambda one: Position.parse(one.begins)):
        begins, ends = Position.parse(one.begins), Position.parse(one.ends)
        if begins > reach:
            if target == Target() or (target.position is not None and target.position >= begins):
                cause = f"the archived oplog has a gap from {reach} to {begins}"
                raise _no_way(target, backup.source, cause, f"Before it, the last is {reach}; after it, a backup.")
            break
        if ends > Position.parse(backup.ends):
            ranges.append(one)
            reach = max(reach, ends)
    if target.position is not None and target.position >= reach and target.position > Position.parse(backup.ends):
        raise _no_way(
            target, backup.source, f"the archived oplog ends before {reach}", "`latest` is the last there is."
        )
    return ranges, reach


def _last(
    catalogue: Catalogue,
    backup: Backup,
    ranges: list[LogRange],
    reach: Position,
    target: Target,
    progress: Progress,
) -> Position:
    """Read the ranges through, and find the last position to carry out."""
    last = Position.parse(backup.ends)
    is_passed = False
    for entries in read_log(catalogue, Plan(backup, tuple(ranges), target.position or reach)):
        progress(len(entries), "verify oplog")
        for position, raw in entries:
            wall = wall_of_raw(raw) if target.time is not None else None
            if target.time is not None and wall is not None and wall > target.time:
                is_passed = True
                break
            last = position
        if is_passed:
            break
    if target.time is not None and not is_passed:
        raise _no_way(target, backup.source, f"the archived oplog ends with {last}, before that instant")
    return target.position or last


def read_log(catalogue: Catalogue, plan: Plan) -> Iterator[list[RawEntry]]:
    """Read a plan's entries behind its backup, in order; ranges that overlap are read together."""
    begins = Position.parse(plan.backup.ends)
    for together in _clusters(plan.ranges):
        entries = merged([_checked(catalogue, one) for one in together])
        yield [(position, raw) for position, raw in entries if begins < position <= plan.until]


def _checked(catalogue: Catalogue, one: LogRange) -> bytes:
    data = catalogue.vault.read(one.stored.name)
    begins, ends = Position.parse(one.begins), Position.parse(one.ends)
    if any(not begins <= position < ends for position, _ in merged([data])):
        raise CorruptCopy("read", one.stored.name, "an entry is not of the range that the name tells")
    return data


def _clusters(ranges: Sequence[LogRange]) -> Iterator[list[LogRange]]:
    together: list[LogRange] = []
    ends = Position(0, 0)
    for one in ranges:
        if together and Position.parse(one.begins) >= ends:
            yield together
            together = []
        together.append(one)
        ends = max(ends, Position.parse(one.ends))
    if together:
        yield together


def make_room(server: MongoServer, is_approved: bool) -> None:
    """Empty a server, if that is allowed or nothing is there.

    Raises:
        HeldError: there are collections, and nobody approved.
    """
    there = [shape.namespace for shape in server.shapes()]
    if there and not is_approved:
        cause = f"there are {len(there)} collections on it, {there[0]} the first"
        raise HeldError("restore", server.name, cause, "Restore into an empty server, or have a person approve.")
    clear(server)


def load_backup(catalogue: Catalogue, backup: Backup, replay: Replay, progress: Progress) -> None:
    """Write the dump, then carry out the oplog of the time it took."""
    for shape in mongo_layout.shapes_from_json(catalogue.vault.fetch(backup.objects[0])):
        replay.begin(shape)
    twice = set()
    for one in collections_of(backup):
        if one.objects:
            with catalogue.vault.stream(one.objects) as stream:
                for batch in mongo_layout.cut(stream):
                    twice |= {(one.namespace, identity) for identity in replay.load(one.namespace, batch)}
                    progress(batch.size_bytes, one.namespace)
    window = merged([b"".join(catalogue.vault.fetch(part) for part in oplog_of(backup))])
    if twice - touched(raw for _, raw in window):
        raise CorruptCopy("restore", backup.backup_id, "documents are in the dump twice, and the oplog says not why")
    replay.apply(window, may_be_newer=True)
    replay.flush()
    progress(len(window), "oplog of the dump")


def _no_way(target: Target, source: str, cause: str, hint: str = "") -> NotFound:
    return NotFound("restore", f"mongodb {source} to {target}", cause, hint or "`tiering backups --store mongodb`.")
