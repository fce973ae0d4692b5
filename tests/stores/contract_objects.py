"""What every ObjectStore must do: run against each implementation by `test_objects.py`."""

from __future__ import annotations

import hashlib
import io
import random
import threading
import uuid
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tiering.errors import AlreadyExists, CorruptCopy, NotFound, TieringError
from tiering.stores.ports import ObjectStore


def put(store: ObjectStore, key: str, data: bytes) -> None:
    store.put_new(key, io.BytesIO(data), len(data), hashlib.sha256(data).hexdigest())


def fetched(store: ObjectStore, key: str) -> bytes:
    file = io.BytesIO()
    store.fetch(key, file)
    return file.getvalue()


class ObjectStoreContract:
    """Subclasses give a `store` fixture."""

    @pytest.fixture
    def prefix(self) -> str:
        return f"{uuid.uuid4().hex}/"

    @pytest.fixture(params=[0, 1, 1_000_000], ids=["empty", "a byte", "a megabyte"])
    def data(self, request: pytest.FixtureRequest) -> bytes:
        return random.Random(7).randbytes(request.param)

    def test_bytes_come_back_as_they_went(self, store: ObjectStore, prefix: str, data: bytes) -> None:
        put(store, f"{prefix}a/b=1/c.bin", data)
        assert fetched(store, f"{prefix}a/b=1/c.bin") == data
        with store.open(f"{prefix}a/b=1/c.bin") as file:
            assert file.read() == data

    def test_a_file_is_stored_from_its_beginning(self, store: ObjectStore, prefix: str) -> None:
        file = io.BytesIO(b"whole")
        file.read(3)
        store.put_new(f"{prefix}x", file, 5, hashlib.sha256(b"whole").hexdigest())
        assert fetched(store, f"{prefix}x") == b"whole"

    def test_a_key_is_written_once(self, store: ObjectStore, prefix: str) -> None:
        put(store, f"{prefix}x", b"first")
        with pytest.raises(AlreadyExists, match=prefix):
            put(store, f"{prefix}x", b"second")
        assert fetched(store, f"{prefix}x") == b"first"

    def test_of_many_writers_at_once_one_wins(self, store: ObjectStore, prefix: str) -> None:
        start, won = threading.Barrier(8), []

        def write(number: int) -> None:
            start.wait()
            try:
                put(store, f"{prefix}x", bytes([number]) * 1000)
                won.append(number)
            except AlreadyExists:
                pass

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert fetched(store, f"{prefix}x") == bytes(won) * 1000

    @pytest.mark.parametrize(("size", "sha256"), [(4, hashlib.sha256(b"else").hexdigest())])
    def test_other_bytes_than_said_are_refused(self, store: ObjectStore, prefix: str, size: int, sha256: str) -> None:
        with pytest.raises(CorruptCopy):
            store.put_new(f"{prefix}x", io.BytesIO(b"data"), size, sha256)
        assert list(store.list(prefix)) == []

    def test_stat_describes(self, store: ObjectStore, prefix: str) -> None:
        began_at = datetime.now(UTC) - timedelta(seconds=2)  # stores keep whole seconds
        put(store, f"{prefix}x", b"data")
        found = store.stat(f"{prefix}x")
        assert (found.key, found.size, found.sha256) == (f"{prefix}x", 4, hashlib.sha256(b"data").hexdigest())
        assert found.etag
        assert began_at <= found.modified_at <= datetime.now(UTC) + timedelta(seconds=2)

    @pytest.mark.parametrize("verb", ["stat", "open", "fetch"])
    def test_what_is_not_there_is_not_found(self, store: ObjectStore, prefix: str, verb: str) -> None:
        arguments = (f"{prefix}none", io.BytesIO()) if verb == "fetch" else (f"{prefix}none",)
        with pytest.raises(NotFound, match="none") as caught:
            getattr(store, verb)(*arguments)
        assert isinstance(caught.value, TieringError)

    def test_list_is_ordered_and_honours_the_prefix(self, store: ObjectStore, prefix: str) -> None:
        for name in ("b/2", "a", "b/1", "bc"):
            put(store, prefix + name, name.encode())
        assert [found.key.removeprefix(prefix) for found in store.list(prefix)] == ["a", "b/1", "b/2", "bc"]
        assert [found.size for found in store.list(f"{prefix}b/")] == [3, 3]
        assert list(store.list(f"{prefix}none")) == []

    def test_delete_may_be_called_twice(self, store: ObjectStore, prefix: str) -> None:
        put(store, f"{prefix}x", b"data")
        put(store, f"{prefix}y", b"data")
        store.delete([f"{prefix}x", f"{prefix}none"])
        store.delete([f"{prefix}x"])
        store.delete([])
        assert [found.key for found in store.list(prefix)] == [f"{prefix}y"]
        put(store, f"{prefix}x", b"again")

    def test_an_open_object_can_be_read_in_any_order(self, store: ObjectStore, prefix: str) -> None:
        seed = random.SystemRandom().randrange(2**32)
        print("seed", seed)
        dice = random.Random(seed)
        data = dice.randbytes(3_000_000)
        put(store, f"{prefix}x", data)
        with store.open(f"{prefix}x") as file:
            for _ in range(30):
                begin, length = dice.randrange(len(data) + 10), dice.randrange(1, 400_000)
                assert file.seek(begin) == begin
                assert file.read(length) == data[begin : begin + length]
            assert file.seek(-5, io.SEEK_END) == len(data) - 5
            assert file.read() == data[-5:]

    def test_parquet_reads_from_an_open_object(self, store: ObjectStore, prefix: str) -> None:
        table = pa.table({"n": list(range(100_000)), "word": [f"w{n % 97}" for n in range(100_000)]})
        file = io.BytesIO()
        pq.write_table(table, file, row_group_size=10_000)
        put(store, f"{prefix}t.parquet", file.getvalue())
        with store.open(f"{prefix}t.parquet") as source:
            assert pq.read_table(source, columns=["word"]).equals(table.select(["word"]))

    def test_unfinished_leftovers_can_be_dropped_twice(self, store: ObjectStore, prefix: str) -> None:
        put(store, f"{prefix}x", b"data")
        store.drop_unfinished(datetime.now(UTC))
        assert store.drop_unfinished(datetime.now(UTC)) == 0
        assert fetched(store, f"{prefix}x") == b"data"

    def test_the_newest_version_is_what_is_read(self, store: ObjectStore, prefix: str) -> None:
        put(store, f"{prefix}x", b"data")
        put(store, f"{prefix}xy", b"other")
        newest = [version for version in store.versions(prefix) if version.is_latest]
        assert [(v.key, v.size, v.is_delete_marker) for v in newest] == [
            (f"{prefix}x", 4, False),
            (f"{prefix}xy", 5, False),
        ]
        file = io.BytesIO()
        store.fetch_version(f"{prefix}x", newest[0].version_id, file)
        assert file.getvalue() == b"data"
        store.delete([f"{prefix}x"])
        assert {version.key for version in store.versions(prefix)} == {f"{prefix}xy"}

    def test_what_was_not_locked_is_not(self, store: ObjectStore, prefix: str) -> None:
        put(store, f"{prefix}x", b"data")
        assert store.locked_until(f"{prefix}x") is None
        with pytest.raises(NotFound):
            store.locked_until(f"{prefix}none")
