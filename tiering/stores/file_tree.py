"""Directories as backups see them: walked without following links, read steadily, written back without leaving them.

Restored are regular files, directories and symbolic links with mode, times and, as root, owners. Hard links become
files of their own; devices, sockets and pipes are not files and are left out, counted.
Does not: hold a tree still. Each file is as of one instant, the tree is not.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from errno import EDQUOT, ELOOP, ENOENT, ENOSPC
from pathlib import Path, PurePosixPath
from typing import IO

from tiering import errors

FILE, DIRECTORY, LINK = "file", "dir", "link"
BLOCK = 1 << 20
ATTEMPTS = 3
# Times of files advance in ticks of the kernel: what changes within the tick of the look before has no other time.
_TICK_NS = 20_000_000


@dataclass(frozen=True, slots=True)
class Node:
    """A file, directory or link of a tree.

    Attributes:
        path: from the root, parted by `/`; empty for the root itself. Bytes that are no text are kept (surrogates).
        kind: FILE, DIRECTORY or LINK.
        mode: its permissions.
        mtime_ns: when it was changed.
        uid, gid: whose it is.
        size: of a file.
        sha256: of a file's bytes.
        target: of a link.
        is_torn: a file that changed every time it was read.
    """

    path: str
    kind: str
    mode: int
    mtime_ns: int
    uid: int
    gid: int
    size: int = 0
    sha256: str = ""
    target: str = ""
    is_torn: bool = False


def walk(root: Path) -> Iterator[tuple[Path, Node] | None]:
    """Yield everything below a directory, parents first, in order of name; None for what is no file.

    What vanishes meanwhile is not there.

    Raises:
        NotFound: there is no such directory.
        AccessDenied: a directory may not be read.
    """
    try:
        facts = os.stat(root)
        if not stat.S_ISDIR(facts.st_mode):
            raise NotADirectoryError
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise errors.NotFound("read", str(root), "no such directory", "Check the path.") from exc
    yield root, _node("", DIRECTORY, facts)
    yield from _below(root, "")


def _below(directory: Path, path: str) -> Iterator[tuple[Path, Node] | None]:
    try:
        with os.scandir(directory) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except PermissionError as exc:
        raise errors.AccessDenied("read", str(directory), "permission denied", "Back up as a user who may.") from exc
    for entry in entries:
        here, name = Path(entry.path), f"{path}{entry.name}"
        with suppress(FileNotFoundError):
            facts = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(facts.st_mode):
                yield here, _node(name, LINK, facts, target=os.readlink(here))
            elif stat.S_ISDIR(facts.st_mode):
                yield here, _node(name, DIRECTORY, facts)
                yield from _below(here, f"{name}/")
            else:
                yield (here, _node(name, FILE, facts)) if stat.S_ISREG(facts.st_mode) else None


def _node(path: str, kind: str, facts: os.stat_result, target: str = "") -> Node:
    size = facts.st_size if kind == FILE else 0
    return Node(
        path, kind, stat.S_IMODE(facts.st_mode), facts.st_mtime_ns, facts.st_uid, facts.st_gid, size, "", target
    )


class SteadyFile:
    """Reads a file to its end and tells afterwards whether it stood still meanwhile; if it did not, again.

    Attributes:
        begin: of the attempt that counts, in the bytes handed out.
        node: the file as it was read; None if it is gone.
    """

    def __init__(self, place: Path, node: Node) -> None:
        self._place = place
        self.begin, self.node = 0, Node(**{name: getattr(node, name) for name in Node.__slots__})
        self.is_gone = False

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes of every attempt, the last one being the one that counts.

        Raises:
            AccessDenied: it may not be read.
            PermanentError: the disk does not give it.
        """
        done = 0
        for _ in range(ATTEMPTS):
            descriptor = self._open()
            if descriptor is None:
                self.is_gone = True
                return
            self.begin, digest = done, hashlib.sha256()
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                before = os.fstat(descriptor)
                if time.time_ns() - before.st_ctime_ns < _TICK_NS:
                    time.sleep(_TICK_NS / 1e9)
                while block := self._block(file):
                    digest.update(block)
                    done += len(block)
                    yield block
                after = os.fstat(descriptor)
            is_torn = _looks(before) != _looks(after) or after.st_size != done - self.begin
            told = _node(self.node.path, FILE, after)
            self.node = Node(
                told.path, FILE, told.mode, told.mtime_ns, told.uid, told.gid, done - self.begin, digest.hexdigest(),
                is_torn=is_torn,
            )  # fmt: skip
            if not is_torn:
                return

    def _block(self, file: IO[bytes]) -> bytes:
        try:
            return file.read(BLOCK)
        except OSError as exc:
            raise _mapped(exc, str(self._place), "read") from exc

    def _open(self) -> int | None:
        """Open the file; None if it is gone, or a link or a pipe by now."""
        try:
            # A pipe would keep whoever opens it waiting for somebody to write.
            descriptor = os.open(self._place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            if exc.errno in (ENOENT, ELOOP):
                return None
            raise _mapped(exc, str(self._place), "read") from exc
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return None
        return descriptor


def _looks(facts: os.stat_result) -> tuple[int, ...]:
    return facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


# -- writing back ------------------------------------------------------------------------------------------------------


class TreeWriter:
    """Writes a tree into an empty directory. Everything is reached from its descriptor, and no link is followed.

    Parents come first. Links are made last of all, so that nothing is ever written through one.
    """

    def __init__(self, root: Path) -> None:
        """Make the directory, or take one that is empty.

        Raises:
            AlreadyExists: there is something in it.
        """
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(root.iterdir()):
                hint = "Name an empty directory, or one that does not exist."
                raise errors.AlreadyExists("restore", str(root), "the directory is not empty", hint)
            self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as exc:
            raise _mapped(exc, str(root)) from exc
        self._directories: dict[str, Node] = {}
        self._links: list[Node] = []
        self._seen: set[str] = set()

    def __enter__(self) -> TreeWriter:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    def add(self, node: Node, blocks: Iterable[bytes] = ()) -> None:
        """Write one node; a file with its bytes, which are compared with its hash.

        Raises:
            CorruptCopy: its path or its bytes are not as they must be; the file is not kept.
            StoreFull: no room.
        """
        self._check_path(node)
        try:
            if node.kind == DIRECTORY:
                if node.path:
                    with self._parent(node.path) as (parent, name):
                        os.mkdir(name, 0o700, dir_fd=parent)
                self._directories[node.path] = node
            elif node.kind == LINK:
                self._links.append(node)
            else:
                self._write(node, blocks)
        except OSError as exc:
            raise _mapped(exc, node.path) from exc

    def finish(self, *, outside_links: bool) -> list[str]:
        """Make the links and give directories their modes and times; return links that were left out: they lead out."""
        left_out = []
        try:
            for node in self._links:
                if not outside_links and _leads_out(node):
                    left_out.append(node.path)
                    continue
                with self._parent(node.path) as (parent, name):
                    os.symlink(node.target, name, dir_fd=parent)
                    if os.geteuid() == 0:
                        os.chown(name, node.uid, node.gid, dir_fd=parent, follow_symlinks=False)
                    os.utime(name, ns=(node.mtime_ns, node.mtime_ns), dir_fd=parent, follow_symlinks=False)
            for path in sorted(self._directories, reverse=True):
                with self._open_directory(path) as descriptor:
                    _settle(descriptor, self._directories[path])
        except OSError as exc:
            raise _mapped(exc, "links and directories") from exc
        return left_out

    def _write(self, node: Node, blocks: Iterable[bytes]) -> None:
        digest, size = hashlib.sha256(), 0
        with self._parent(node.path) as (parent, name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(name, flags, 0o600, dir_fd=parent), "wb") as file:
                for block in blocks:
                    file.write(block)
                    digest.update(block)
                    size += len(block)
                file.flush()
                if (size, digest.hexdigest()) != (node.size, node.sha256):
                    os.unlink(name, dir_fd=parent)
                    raise errors.CorruptCopy("restore", node.path, "its bytes are not those that were backed up")
                _settle(file.fileno(), node)

    def _check_path(self, node: Node) -> None:
        parts = node.path.split("/") if node.path else []
        parent = node.path.rpartition("/")[0]
        is_odd = any(part in ("", ".", "..") for part in parts) or "\0" in node.path or node.path in self._seen
        if is_odd or (node.path and parent not in self._directories) or (not node.path and node.kind != DIRECTORY):
            raise errors.CorruptCopy("restore", repr(node.path), "that is no place in the directory")
        self._seen.add(node.path)

    def _parent(self, path: str) -> _Parent:
        directory, _, name = path.rpartition("/")
        return _Parent(self._open_directory(directory), name)

    def _open_directory(self, path: str) -> _Descriptor:
        descriptor = os.dup(self._root)
        for part in path.split("/") if path else ():
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        return _Descriptor(descriptor)


class _Descriptor:
    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> int:
        return self._number

    def __exit__(self, *_: object) -> None:
        os.close(self._number)


class _Parent:
    def __init__(self, directory: _Descriptor, name: str) -> None:
        self._directory, self._name = directory, name

    def __enter__(self) -> tuple[int, str]:
        return self._directory.__enter__(), self._name

    def __exit__(self, *_: object) -> None:
        self._directory.__exit__()


def _settle(descriptor: int, node: Node) -> None:
    """Give owner, mode and times, in this order: a change of owner takes some modes away."""
    mode = node.mode
    if os.geteuid() == 0:
        os.chown(descriptor, node.uid, node.gid)
    else:
        mode &= 0o777  # another user's rights must not become ours
    os.chmod(descriptor, mode)
    os.utime(descriptor, ns=(node.mtime_ns, node.mtime_ns))


def _leads_out(node: Node) -> bool:
    """Say whether a link leads out of the tree, or may: `..` behind a name goes wherever that name leads."""
    parts = PurePosixPath(node.target).parts
    up = len(parts) - len([part for part in parts if part != ".."])
    return node.target.startswith("/") or up > node.path.count("/") or ".." in parts[up:]


def _mapped(exc: OSError, subject: str, operation: str = "restore") -> errors.TieringError:
    if exc.errno in (ENOSPC, EDQUOT):
        return errors.StoreFull(operation, subject, "no space left", "Free space, then restore into an empty place.")
    if isinstance(exc, PermissionError):
        return errors.AccessDenied(operation, subject, "permission denied", "Run it as a user who may.")
    return errors.PermanentError(operation, subject, (exc.strerror or type(exc).__name__).lower())
