"""Look everywhere for a person: every byte of every object version, every text of every table, every document and key.

Names count as whole values in the person's own columns and as words in anything else; see `Person.pattern`.
Short names are not looked for in raw bytes, where they occur by chance, but in everything that is decoded.
"""

from __future__ import annotations

import gzip
import mmap
import tempfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO

import pyarrow as pa

from tiering import errors
from tiering.model import Dataset
from tiering.ops.erase_documents import servers
from tiering.ops.erase_tables import databases
from tiering.plan.erase import Person
from tiering.stores import person_documents, person_parquet, person_redis
from tiering.stores.opening import Stores
from tiering.stores.person_tables import mentions, statistics_mentions, tables_with_text
from tiering.stores.ports import ObjectVersion

LOOKS_AT_ONCE = 4
_AVRO = b"Obj\x01"
_SYNC_BYTES = 16


@dataclass(frozen=True, slots=True)
class Hit:
    """A place that names the person, and in what."""

    place: str
    text: str


@dataclass(frozen=True, slots=True)
class Proof:
    """What was read, and every place that names the person: none, when the erasure is complete."""

    objects: int
    tables: int
    collections: int
    keys: int
    hits: tuple[Hit, ...]


def prove(stores: Stores, person: Person) -> Proof:
    """Look through everything. Changes nothing."""
    objects, in_objects = _objects(stores, person)
    tables, in_tables = _tables(stores, person)
    keys, kinds = person_redis.mentions(stores.heat, person.is_in)
    in_redis = [Hit(f"redis {kind}", f"{kinds.count(kind)} keys") for kind in sorted(set(kinds))]
    collections, in_documents = _documents(stores, person)
    return Proof(objects, tables, collections, keys, (*in_objects, *in_tables, *in_documents, *in_redis))


def _documents(stores: Stores, person: Person) -> tuple[int, list[Hit]]:
    count, hits = 0, []
    for store, documents in servers(stores):
        for collection in documents.collections():
            count += 1
            if found := person_documents.mentions(documents, collection, person.is_in):
                hits.append(Hit(f"{store}:{collection}", f"{found} batches of documents"))
    return count, hits


def _objects(stores: Stores, person: Person) -> tuple[int, list[Hit]]:
    listed = list(stores.objects.versions())
    hits = [Hit("bucket", "the name of an object") for v in listed if person.is_in(v.key)]
    bodies = [v for v in listed if not v.is_delete_marker]
    with ThreadPoolExecutor(LOOKS_AT_ONCE, "erase-proof") as pool:
        for found in pool.map(lambda version: _object(stores, version, person), bodies):
            hits += found
    return len(bodies), hits


def _object(stores: Stores, version: ObjectVersion, person: Person) -> list[Hit]:
    place = stores.location(version.key) + ("" if version.is_latest else f" version {version.version_id}")
    with tempfile.TemporaryFile(dir=stores.scratch_dir) as file:
        try:
            stores.objects.fetch_version(version.key, version.version_id, file)
        except errors.NotFound:
            return []  # swept meanwhile
        file.flush()
        if file.tell() == 0:
            return []
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return [Hit(place, text) for text in _in_bytes(stores, version.key, file, data, person)]


def _in_bytes(stores: Stores, key: str, file: IO[bytes], data: mmap.mmap, person: Person) -> Iterator[str]:
    if not person.is_weak and person.pattern.search(data):
        yield "raw bytes"
    if data[:4] == b"PAR1":
        file.seek(0)
        dataset = _dataset_of(stores, key)
        subject = dataset.subject if dataset else ""
        try:
            for column, count in person_parquet.mentions(file, subject, person.name, person.is_in):
                yield f"{count} values of column {column}"
        except pa.ArrowException:
            yield "damaged Parquet, which cannot be looked into"
    elif data[:4] == _AVRO:
        if any(_in_avro(block, person) for block in _avro_blocks(data)):
            yield "Avro block"
    elif data[:2] == b"\x1f\x8b":
        if person.is_in(gzip.decompress(data)):
            yield "compressed text"
    elif person.is_weak and person.is_in(data[:]):
        yield "text"


def _in_avro(block: bytes, person: Person) -> bool:
    """A weak name is a value of its own in Avro when its length stands before it, doubled (zigzag)."""
    name = person.name.encode()
    return bytes([2 * len(name)]) + name in block if person.is_weak else person.is_in(block)


def _dataset_of(stores: Stores, key: str) -> Dataset | None:
    parts = key.split("/")
    return stores.policies.dataset(parts[1]) if len(parts) > 2 and parts[0] == "lake" else None


def _avro_blocks(data: mmap.mmap) -> Iterator[bytes]:
    """Yield the blocks of an Avro file, decompressed. Source: Avro 1.11 specification, "Object Container Files"."""
    codec, at = _avro_header(data)
    yield bytes(data[:at])
    at += _SYNC_BYTES
    unpack = _CODECS.get(codec)
    while at < len(data):
        _, at = _long(data, at)
        size, at = _long(data, at)
        block = bytes(data[at : at + size])
        yield unpack(block) if unpack else block
        at += size + _SYNC_BYTES


def _avro_header(data: mmap.mmap) -> tuple[bytes, int]:
    codec, at = b"null", 4
    while True:
        count, at = _long(data, at)
        if count == 0:
            return codec, at
        if count < 0:
            _, at = _long(data, at)
        for _ in range(abs(count)):
            size, at = _long(data, at)
            name, at = bytes(data[at : at + size]), at + size
            size, at = _long(data, at)
            value, at = bytes(data[at : at + size]), at + size
            codec = value if name == b"avro.codec" else codec


def _long(data: mmap.mmap, at: int) -> tuple[int, int]:
    number, shift = 0, 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at


_CODECS: dict[bytes, Callable[[bytes], bytes]] = {
    b"deflate": lambda block: zlib.decompress(block, -15),
    b"zstandard": lambda block: pa.input_stream(pa.BufferReader(block), compression="zstd").read(),
}


def _tables(stores: Stores, person: Person) -> tuple[int, list[Hit]]:
    count, hits = 0, []
    for _, database in databases(stores):
        with database.transaction("look through", database.name, read_only=True) as connection:
            listed = tables_with_text(connection)
            for table, columns in listed:
                for column, found in mentions(connection, table, columns, person.name, person.is_weak):
                    hits.append(Hit(table, f"{found} values of column {column}"))
            hits += [Hit(column, "planner statistics") for column in statistics_mentions(connection, person.name)]
        count += len(listed)
    return count, hits
