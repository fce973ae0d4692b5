"""Lake files: sorted, small, the same bytes for the same rows, readable by anyone, written in bounded memory."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.stores.pg_tables import BARS_KEY, connect, make_bars
from tiering.errors import CorruptCopy, SchemaMismatch
from tiering.model import Column
from tiering.plan.columns import plan_columns
from tiering.settings import Settings
from tiering.stores.parquet import read_parquet_batches, write_parquet
from tiering.stores.parquet_schema import arrow_schema, batch_schema
from tiering.stores.parquet_sort import SortedRows
from tiering.stores.pgcopy import read_batches

ITEMS = plan_columns(
    [
        ("name", "text", True),
        ("ts", "timestamp with time zone", True),
        ("price", "numeric(18,8)", False),
        ("score", "double precision", False),
        ("note", "jsonb", False),
    ]
)


@pytest.fixture
def pg_url(fresh_settings: Settings) -> str:
    return fresh_settings.hot_pg_url.get_secret_value()


def make_batches(
    rows: int, seed: int, names: int, size: int = 10_000, columns: tuple[Column, ...] = ITEMS
) -> list[pa.RecordBatch]:
    """Make shuffled batches whose (name, ts) is unique; with few names they come as dictionaries."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(rows)
    schema = batch_schema(columns)
    words = pa.array([f"n{i:06}" for i in range(names)])
    found = []
    for begin in range(0, rows, size):
        part = order[begin : begin + size]
        count = len(part)
        coded = pa.DictionaryArray.from_arrays(pa.array((part % names).astype(np.int32)), words)
        price = pa.Array.from_buffers(schema.field(2).type, count, [None, pa.py_buffer(part.astype(np.int64) * 7)])
        score = pa.array(np.where(part % 11 == 0, np.nan, part * 0.5))
        note = pa.array([f'{{"n": {i}}}' if i % 5 else None for i in part.tolist()])
        ts = pa.array(part * 60_000_000, pa.timestamp("us", "UTC"))
        names_array = coded if names < 1000 else coded.dictionary_decode()
        arrays = [names_array, ts, price, score, note, pa.nulls(count, pa.string())]
        found.append(pa.RecordBatch.from_arrays(arrays, names=schema.names))
    return found


@pytest.mark.parametrize("names", [7, 60_000], ids=["dictionary", "plain"])
def test_the_same_rows_make_the_same_bytes_in_any_order(tmp_path: Path, names: int) -> None:
    rows = 400_000
    receipts = []
    for seed in (1, 2):
        file = tmp_path / f"{seed}.parquet"
        receipts.append(write_parquet(make_batches(rows, seed, names), ITEMS, ("name", "ts"), file))
        assert hashlib.sha256(file.read_bytes()).hexdigest() == receipts[-1].sha256
        assert file.stat().st_size == receipts[-1].size_bytes
    assert receipts[0] == receipts[1]
    assert receipts[0].row_count == rows
    assert receipts[0].row_group_count > 1
    table = pq.read_table(file)
    assert table.select(["name", "ts"]).equals(
        table.select(["name", "ts"]).sort_by([("name", "ascending"), ("ts", "ascending")])
    )
    prices = pa.compute.multiply(table.sort_by("ts")["price"], pa.scalar(10**8)).cast(pa.int64(), safe=False)
    assert prices.equals(pa.chunked_array([pa.array(np.arange(rows) * 7)]))


def test_a_dictionary_that_overflows_half_way_changes_nothing(tmp_path: Path) -> None:
    few, many = make_batches(20_000, 3, 900), make_batches(80_000, 4, 40_000)
    shift = pa.scalar(10**15, pa.duration("us"))
    later = [b.set_column(1, "ts", pa.compute.add(b.column(1), shift)) for b in many]
    one = write_parquet([*few, *later], ITEMS, ("name", "ts"), tmp_path / "1.parquet")
    two = write_parquet([*later, *few], ITEMS, ("name", "ts"), tmp_path / "2.parquet")
    assert one == two


QUOTES = plan_columns(
    [
        ("name", "text", False),
        ("ts", "timestamp with time zone", True),
        ("place", "text", False),
        ("price", "numeric(18,8)", False),
        ("lot", "integer", False),
    ]
)


def make_quotes(rows: int, seed: int, names: int, *, long_prices: bool = False) -> list[pa.RecordBatch]:
    """Make shuffled batches of fixed width with nulls in every column but ts; each brings its own dictionary."""
    rng = np.random.default_rng(seed)
    order, schema = rng.permutation(rows), batch_schema(QUOTES)
    found = []
    for begin in range(0, rows, 10_000):
        part = order[begin : begin + 10_000]
        words = rng.permutation(names).astype(np.int32)
        name = pa.DictionaryArray.from_arrays(
            pa.array(np.argsort(words)[part % names].astype(np.int32), mask=part % 13 == 0),
            pa.array([f"n{i:04}" for i in words.tolist()]),
        )
        price = pa.array(part.astype(np.int64) * 7, mask=part % 5 == 0)
        price = pa.Array.from_buffers(schema.field(3).type, len(part), price.buffers())
        if long_prices:
            price = price.cast(pa.decimal128(18, 8))
        lot = pa.array((part % 97).astype(np.int32), mask=part % 3 == 0)
        ts = pa.array(part * 60_000_000, pa.timestamp("us", "UTC"))
        arrays = [name, ts, pa.nulls(len(part), pa.string()), price, lot, pa.nulls(len(part), pa.string())]
        found.append(pa.RecordBatch.from_arrays(arrays, names=schema.names))
    return found


@pytest.mark.parametrize("names", [1, 40, 20_000], ids=["one word", "some words", "many words"])
def test_rows_of_fixed_width_take_a_shorter_way_to_the_same_bytes(tmp_path: Path, names: int) -> None:
    """Long decimals go the general way; one word of this many rows changes over to it in the middle."""
    rows, sort = 420_000, ("name", "lot", "ts")
    short = write_parquet(make_quotes(rows, 1, names), QUOTES, sort, tmp_path / "short.parquet")
    general = write_parquet(make_quotes(rows, 2, names, long_prices=True), QUOTES, sort, tmp_path / "general.parquet")
    assert short == general
    assert short.row_count == rows
    table = pq.read_table(tmp_path / "short.parquet")
    numbers = np.arange(rows)
    assert table["name"].null_count == int((numbers % 13 == 0).sum())
    by_time = table.sort_by("ts")
    assert by_time["lot"].equals(pa.chunked_array([pa.array((numbers % 97).astype(np.int32), mask=numbers % 3 == 0)]))


def test_plain_text_in_the_middle_of_fixed_width_changes_nothing(tmp_path: Path) -> None:
    quotes = make_quotes(150_000, 3, 40)
    last = quotes.pop()
    plain = last.set_column(0, "name", last.column(0).dictionary_decode())
    one = write_parquet([*quotes, plain], QUOTES, ("name", "ts"), tmp_path / "1.parquet")
    two = write_parquet([plain, *quotes[::-1]], QUOTES, ("name", "ts"), tmp_path / "2.parquet")
    assert one == two
    assert one.row_count == 150_000


def test_the_file_tells_the_truth_about_itself(pg_url: str, tmp_path: Path) -> None:
    columns = make_bars(pg_url, "bars", symbols=20, minutes=500)
    file = tmp_path / "bars.parquet"
    write_parquet(read_batches(connect(pg_url), "bars", columns), columns, BARS_KEY, file)
    meta = pq.ParquetFile(file)
    assert meta.schema_arrow.names == arrow_schema(columns).names
    assert meta.schema_arrow.remove_metadata().equals(arrow_schema(columns))
    ids = [int(f.metadata[b"PARQUET:field_id"]) for f in meta.schema_arrow]
    assert ids == [*range(1, 12), 1000]
    group = meta.metadata.row_group(0)
    by_name = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert by_name["close"].physical_type == "INT64"
    assert by_name["close"].compression == "ZSTD"
    assert "DELTA_BINARY_PACKED" in by_name["ts"].encodings
    assert by_name["symbol"].statistics.min == "601.SH"
    assert by_name["symbol"].has_offset_index
    assert by_name["symbol"].has_column_index
    (row,) = duckdb.sql(f"SELECT count(*), sum(close), min(ts)::text FROM '{file}' WHERE symbol = '607.SH'").fetchall()
    assert row[0] == 500
    assert row[1] > 0


def test_floats_have_no_statistics_because_nan_makes_them_lie(tmp_path: Path) -> None:
    file = tmp_path / "nan.parquet"
    write_parquet(make_batches(2_000, 5, 3), ITEMS, ("name", "ts"), file)
    group = pq.ParquetFile(file).metadata.row_group(0)
    assert group.column(ITEMS.index(ITEMS[3])).statistics is None
    assert group.column(2).statistics.has_min_max


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.none() | st.text(max_size=3), st.none() | st.integers(-5, 5), st.none() | st.floats()), max_size=60
    ),
    st.randoms(use_true_random=False),
)
def test_any_sort_columns_sort_with_nulls_first(
    rows: list[tuple[str | None, int | None, float | None]], shuffle: random.Random
) -> None:
    columns = plan_columns([("s", "text", False), ("i", "bigint", False), ("f", "double precision", False)])
    schema = batch_schema(columns)
    unique = list({repr(row): row for row in rows}.values())
    found = []
    for _ in range(2):
        shuffle.shuffle(unique)
        sorter = SortedRows(schema, ("s", "i", "f"))
        for begin in range(0, len(unique), 7):
            part = unique[begin : begin + 7]
            arrays = [pa.array(values, schema.field(i).type) for i, values in enumerate(zip(*part, strict=True))]
            sorter.add(pa.RecordBatch.from_arrays([*arrays, pa.nulls(len(part), pa.string())], names=schema.names))
        tables = [sorter.decode(t) for t in sorter.slices(10)]
        found.append([repr((r["s"], r["i"], r["f"])) for t in tables for r in t.to_pylist()])
    assert found[0] == found[1]
    assert sorted(found[0]) == sorted(repr(row) for row in unique)
    keys = [row[:2] for row in (eval(line, {"nan": 0, "inf": 0}) for line in found[0])]
    assert keys == sorted(keys, key=lambda k: [(v is not None, v) if v is not None else (False,) for v in k])


def test_damage_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "damaged.parquet"
    write_parquet(make_batches(50_000, 6, 3), ITEMS, ("name", "ts"), file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(CorruptCopy):
        list(read_parquet_batches(file, ITEMS))
    file.write_bytes(whole[:2000] + bytes(3000) + whole[5000:])
    with pytest.raises(CorruptCopy):
        list(read_parquet_batches(file, ITEMS))


def test_another_table_s_file_and_unknown_sort_columns_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "items.parquet"
    write_parquet(make_batches(100, 7, 3), ITEMS, ("name", "ts"), file)
    with pytest.raises(SchemaMismatch, match="volume"):
        list(read_parquet_batches(file, plan_columns([("name", "text", True), ("volume", "bigint", True)])))
    with pytest.raises(SchemaMismatch, match="volume"):
        write_parquet([], ITEMS, ("volume",), tmp_path / "never.parquet")


def test_a_source_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def failing() -> Iterator[pa.RecordBatch]:
        yield from make_batches(100, 8, 3)
        raise CorruptCopy("read", "test", "the source failed")

    with pytest.raises(CorruptCopy):
        write_parquet(failing(), ITEMS, ("name", "ts"), tmp_path / "never.parquet")
    assert list(tmp_path.iterdir()) == []


def test_no_rows_make_a_file_without_rows(tmp_path: Path) -> None:
    file = tmp_path / "empty.parquet"
    assert write_parquet([], ITEMS, ("name", "ts"), file).row_count == 0
    assert list(read_parquet_batches(file, ITEMS)) == []


_EXPORT = """
import sys
from pathlib import Path
import psycopg2, pyiceberg.catalog.sql
from tests.stores.pg_tables import BARS_KEY, describe
from tiering.stores.parquet import read_parquet_batches, write_parquet
from tiering.stores.pgcopy import read_parallel
from tiering.stores.pghash import fingerprint_batches
url, file = sys.stdin.readline().strip(), Path(sys.argv[1])
columns = describe(url, "bars")
made = write_parquet(read_parallel(lambda: psycopg2.connect(url), "bars", columns), columns, BARS_KEY, file)
fingerprint_batches(read_parquet_batches(file, columns), columns, BARS_KEY)
# VmHWM, not ru_maxrss: that one begins with what the parent had when it started us
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(made.row_count, int(status["VmHWM"].split()[0]) // 1024)
"""


def test_peak_memory_does_not_follow_the_table(pg_url: str, tmp_path: Path) -> None:
    """The whole export with verification, in a process of its own, stays within the promised 400 MB."""
    peaks = []
    for minutes in (400, 2_000):
        make_bars(pg_url, "bars", symbols=500, minutes=minutes)
        done = subprocess.run(
            [sys.executable, "-c", _EXPORT, str(tmp_path / "big.parquet")],
            input=pg_url,
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
            env=dict(os.environ),
        )
        assert done.returncode == 0, done.stderr
        rows, megabytes = (int(word) for word in done.stdout.split())
        assert rows == 500 * minutes
        peaks.append(megabytes)
    print(f"peak RSS: {peaks} MB")
    assert max(peaks) <= 400
