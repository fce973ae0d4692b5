"""The vault: write-once objects in the backup bucket, compressed, encrypted, and checked whenever they are read.

One object is a header and frames. Each frame is zstd-compressed and sealed with AES-256-GCM under a key of the
object's own; the object's name, the frame's number and both headers are bound in. So a flipped, cut,
exchanged or reordered byte is an error before any plain byte of its frame is handed out, and nothing in the bucket can
be read without the key.

    header  magic 8 · key id 8 · salt 16
    frame   sealed length 4 (top bit: last) · flag 1 (1: compressed) · plain length 4 · sealed bytes

Does not: know what a backup is; that is `ops/catalogue.py`.

Why: framed sealing is the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár 2015): bounded memory, and nothing
unauthenticated ever leaves.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
from base64 import b64decode
from binascii import Error as NotBase64
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from tempfile import SpooledTemporaryFile
from typing import IO, BinaryIO, cast

import pyarrow as pa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretStr

from tiering.errors import CorruptCopy, KeyMissing, SettingsError
from tiering.model_backup import StoredObject
from tiering.stores.ports import ObjectStat, ObjectStore

MAGIC = b"TIERBK1\n"
HEADER = struct.Struct("<8s8s16s")
FRAME = struct.Struct("<IBI")
FRAME_BYTES = 4 << 20
LAST = 1 << 31
PART_BYTES = 64 << 20
TAG_BYTES = 16
THREADS = 4
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys of the vault: the first one seals, all of them open. `repr` shows none.

    Attributes:
        keys: 32 bytes each, base64, parted by commas; the newest first.
    """

    keys: SecretStr

    def newest(self) -> tuple[bytes, bytes]:
        """Return id and bytes of the key that seals.

        Raises:
            SettingsError: there is no key, or it is not 32 bytes in base64.
        """
        return next(iter(self._parsed().items()))

    def find(self, key_id: bytes, name: str) -> bytes:
        """Return the key that an object was sealed with.

        Raises:
            KeyMissing: it is not on this ring; the message names the id, never a key.
        """
        found = self._parsed().get(key_id)
        if found is None:
            have = ", ".join(known.hex() for known in self._parsed())
            raise KeyMissing(
                "open",
                name,
                f"it was sealed with key {key_id.hex()}, and this machine has {have}",
                "Put the lost key, from its escrow, behind the newest one in TIERING_BACKUP_KEY, parted by a comma.",
            )
        return found

    def every(self) -> tuple[bytes, ...]:
        """Return the bytes of every key, the newest first."""
        return tuple(self._parsed().values())

    def _parsed(self) -> dict[bytes, bytes]:
        return _parse_keys(self.keys.get_secret_value())


class Vault:
    """Sealed objects over any `ObjectStore`. Safe to share between threads."""

    def __init__(self, objects: ObjectStore, keys: Keyring) -> None:
        self._objects = objects
        self._keys = keys

    def put(self, name: str, data: bytes | IO[bytes]) -> StoredObject:
        """Seal `data` and store it under a new name, all or nothing.

        Raises:
            AlreadyExists: the name is taken. Bytes sealed twice differ, so this says nothing of their equality.
        """
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        with SpooledTemporaryFile(max_size=2 * PART_BYTES) as sealed:
            plain, size = self._seal(name, source, cast(IO[bytes], sealed))
            stored = sealed.tell()
            self._objects.put_new(name, cast(IO[bytes], sealed), stored, _sha256_of(cast(IO[bytes], sealed)))
        return StoredObject(name, size, stored, plain)

    def put_stream(self, prefix: str, stream: IO[bytes]) -> tuple[StoredObject, ...]:
        """Store a stream of any length as parts `<prefix>00000`, `<prefix>00001`, …, several at a time.

        Holds about `THREADS + 1` parts of 64 MiB in memory at most. An error leaves parts without a record, which
        are swept as leftovers.
        """
        found: list[StoredObject] = []
        with ThreadPoolExecutor(THREADS, "vault") as pool:
            waiting: deque[Future[StoredObject]] = deque()
            for number, part in enumerate(_parts(stream)):
                waiting.append(pool.submit(self.put, f"{prefix}{number:05d}", part))
                if len(waiting) > THREADS:
                    found.append(waiting.popleft().result())
            found += [future.result() for future in waiting]
        return tuple(found)

    def read(self, name: str) -> bytes:
        """Return the plain bytes of a small object.

        Raises:
            NotFound: the store was asked and has no such object.
            CorruptCopy: it is not what was sealed under this name.
            KeyMissing: its key is not on the ring.
        """
        return b"".join(self._opened(name))

    def fetch(self, stored: StoredObject) -> bytes:
        """Return the plain bytes of a part, compared with what the catalogue says of them.

        Raises: as `read`; CorruptCopy also where it is an older object of the same name.
        """
        data = self.read(stored.name)
        if len(data) != stored.size_bytes or hashlib.sha256(data).hexdigest() != stored.sha256:
            raise _corrupt(stored.name, "its bytes are not those that the catalogue recorded")
        return data

    def stream(self, objects: Sequence[StoredObject]) -> BinaryIO:
        """Open parts as one stream of plain bytes, read ahead by threads, each part checked before it is handed out.

        Reading raises as `fetch` does. Close it to let the threads go.
        """
        return cast(BinaryIO, io.BufferedReader(_Parts(self, objects), buffer_size=1 << 20))

    def names(self, prefix: str) -> Iterator[ObjectStat]:
        """List the objects under a prefix, in order of name."""
        return self._objects.list(prefix)

    def discard(self, names: Sequence[str]) -> None:
        """Destroy objects; called by the sweep of backups only, after the retention plan was written down."""
        self._objects.delete(names)

    def derive(self, purpose: bytes) -> bytes:
        """Make 32 secret bytes for a purpose from the newest key, e.g. for names that tell nothing."""
        return HKDF(SHA256(), KEY_BYTES, None, b"tiering vault " + purpose).derive(self._keys.newest()[1])

    def _seal(self, name: str, source: IO[bytes], target: IO[bytes]) -> tuple[str, int]:
        key_id, master = self._keys.newest()
        salt = os.urandom(16)
        header = HEADER.pack(MAGIC, key_id, salt)
        cipher = AESGCM(_object_key(master, salt))
        target.write(header)
        plain, size, number = hashlib.sha256(), 0, 0
        block = source.read(FRAME_BYTES)
        while True:
            following = source.read(FRAME_BYTES) if block else b""
            plain.update(block)
            size += len(block)
            packed = _codec().compress(block, asbytes=True) if block else b""
            flag = len(packed) < len(block)
            last = not following
            body = packed if flag else block
            frame = FRAME.pack(len(body) + TAG_BYTES | (LAST if last else 0), flag, len(block))
            target.write(frame + cipher.encrypt(_nonce(number), body, header + frame + name.encode()))
            if last:
                return plain.hexdigest(), size
            block, number = following, number + 1

    def _opened(self, name: str) -> Iterator[bytes]:
        with self._objects.open(name) as file:
            body = memoryview(file.read())
        if len(body) < HEADER.size or bytes(body[:8]) != MAGIC:
            raise _corrupt(name, "it has no header of ours")
        header = bytes(body[: HEADER.size])
        _, key_id, salt = HEADER.unpack(header)
        cipher = AESGCM(_object_key(self._keys.find(key_id, name), salt))
        at, number, last = HEADER.size, 0, False
        while not last:
            if at + FRAME.size > len(body):
                raise _corrupt(name, "it ends in the middle")
            frame = bytes(body[at : at + FRAME.size])
            length, flag, plain_bytes = FRAME.unpack(frame)
            last, length = bool(length & LAST), length & ~LAST
            at += FRAME.size
            try:
                block = cipher.decrypt(_nonce(number), body[at : at + length], header + frame + name.encode())
            except (InvalidTag, ValueError):
                raise _corrupt(name, f"frame {number} is not what was sealed") from None
            yield cast(bytes, _codec().decompress(block, plain_bytes, asbytes=True)) if flag else block
            at, number = at + length, number + 1
        if at != len(body):
            raise _corrupt(name, "there are bytes after its end")


class _Parts(io.RawIOBase):
    """Parts of a backup as one readable stream, the next ones being fetched meanwhile."""

    def __init__(self, vault: Vault, objects: Sequence[StoredObject]) -> None:
        super().__init__()
        self._pool = ThreadPoolExecutor(2, "vault-read")
        self._vault = vault
        self._left = deque(objects)
        self._waiting: deque[Future[bytes]] = deque()
        self._now = memoryview(b"")
        self._ahead()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._now:
            if not self._waiting:
                return 0
            self._now = memoryview(self._waiting.popleft().result())
            self._ahead()
        count = min(len(buffer), len(self._now))
        buffer[:count] = self._now[:count]
        self._now = self._now[count:]
        return count

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _ahead(self) -> None:
        while self._left and len(self._waiting) < 2:
            self._waiting.append(self._pool.submit(self._vault.fetch, self._left.popleft()))


def _parts(stream: IO[bytes]) -> Iterator[bytes]:
    """Cut a stream; pipes give what they have, so a part is filled by several reads."""
    while True:
        part = bytearray()
        while len(part) < PART_BYTES and (block := stream.read(min(1 << 20, PART_BYTES - len(part)))):
            part += block
        if part:
            yield bytes(part)
        if len(part) < PART_BYTES:
            return


@lru_cache
def _codec() -> pa.Codec:
    return pa.Codec("zstd", compression_level=1)


@lru_cache
def _parse_keys(text: str) -> dict[bytes, bytes]:
    keys: dict[bytes, bytes] = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        try:
            key = b64decode(word, validate=True)
        except (NotBase64, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            hint = 'Make one: python -c "import base64, os; print(base64.b64encode(os.urandom(32)).decode())".'
            raise SettingsError("read", "TIERING_BACKUP_KEY", "a key is not 32 bytes in base64", hint)
        keys[hashlib.sha256(b"tiering key id" + key).digest()[:8]] = key
    if not keys:
        raise SettingsError("read", "TIERING_BACKUP_KEY", "it is empty", "`tiering stack up` makes a key and keeps it.")
    return keys


def _object_key(master: bytes, salt: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt, b"tiering vault object").derive(master)


def _nonce(number: int) -> bytes:
    # A key seals one object only, so counting never repeats a nonce.
    return number.to_bytes(12, "big")


def _sha256_of(file: IO[bytes]) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _corrupt(name: str, cause: str) -> CorruptCopy:
    hint = "Nothing was restored from it. Choose another backup: `tiering backups`."
    return CorruptCopy("open", name, cause, hint)
