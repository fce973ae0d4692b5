"""Files into the hot tier: every digit as written, all or nothing, and bad rows named with their line."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.ops.world import World, days_ago, open_world
from tiering import errors
from tiering.ops.load import load_file
from tiering.settings import Settings

HEADER = "symbol,market,timeframe,ts,open,high,low,close,volume,amount,source\n"
GOOD = "A,US,1d,2024-06-19T00:00:00Z,0.12345678,1.1,0.1,1,5,9999999999999999.99,file\n"


@pytest.fixture
def world(fresh_settings: Settings) -> Iterator[World]:
    with open_world(fresh_settings) as opened:
        yield opened


def write(directory: Path, text: str, name: str = "bars.csv") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def test_csv_digits_arrive_as_written(world: World, tmp_path: Path) -> None:
    path = write(tmp_path, HEADER.upper() + GOOD + 'B,US,1d,2024-06-19,1,2,1,1.50000000,,,"fi""le"\n')
    loaded = load_file(world.stores, path, "market_bars")
    assert (loaded.rows, loaded.inserted, loaded.late) == (2, 2, 0)
    one, other = world.rows()
    assert one[4:6] == (Decimal("0.12345678"), Decimal("1.10000000"))
    assert one[9] == Decimal("9999999999999999.99")
    assert other[8:] == (None, None, 'fi"le')
    assert other[3] == datetime(2024, 6, 19, tzinfo=UTC)


def test_loading_again_changes_nothing(world: World, tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + GOOD)
    load_file(world.stores, path, "market_bars")
    again = load_file(world.stores, path, "market_bars")
    assert (again.inserted, again.unchanged) == (0, 1)
    assert len(world.rows()) == 1


def test_parquet_decimals_floats_and_times_keep_their_values(world: World, tmp_path: Path) -> None:
    count = 3
    table = pa.table(
        {
            "ts": pa.array(
                [datetime(2024, 6, 19, 1, i, tzinfo=UTC) for i in range(count)], pa.timestamp("ms", "Asia/Tokyo")
            ),
            "Symbol": pa.array(["A"] * count).dictionary_encode(),
            "open": pa.array([Decimal("1.00000001")] * count, pa.decimal128(18, 8)),
            "close": pa.array([0.1, 1229.22998, 1e-08]),
            "volume": pa.array([1, None, 3]),
        }
    )
    path = tmp_path / "bars.parquet"
    pq.write_table(table, path)
    constants = {"market": "US", "timeframe": "1m", "source": "pq"}
    assert load_file(world.stores, path, "market_bars", constants=constants).inserted == 3
    rows = world.rows()
    assert [row[7] for row in rows] == [Decimal("0.1"), Decimal("1229.22998"), Decimal("0.00000001")]
    assert rows[0][3] == datetime(2024, 6, 19, 1, 0, tzinfo=UTC)
    assert [row[8] for row in rows] == [1, None, 3]


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (GOOD + GOOD, "line 3: same key as line 2"),
        (GOOD + GOOD.replace("0.12345678", "0.123456789"), "line 3: open would be rounded .*0.123456789"),
        (GOOD.replace("9999999999999999.99", "lots"), "line 2: amount is no .*'lots'"),
        (GOOD.replace("2024-06-19T00:00:00Z", "2024-13-19"), "line 2: ts is no timestamp"),
        (GOOD.replace("A,US", ",US"), "line 2: symbol is empty"),
        (GOOD + "A,US\n", "line 3: 2 fields instead of 11"),
        (GOOD.replace(",5,", ",5.5,"), "line 2: volume is no bigint"),
        (GOOD.replace("0.12345678", "Infinity"), "line 2: open is no numeric"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_loaded(world: World, tmp_path: Path, body: str, cause: str) -> None:
    with pytest.raises(errors.SchemaMismatch, match=cause):
        load_file(world.stores, write(tmp_path, HEADER + body), "market_bars")
    assert world.rows() == []


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "the file is empty"),
        ("symbol,price\nA,1\n", "unknown: price"),
        ("symbol,market,timeframe,ts\n", "missing: source"),
        ("symbol,SYMBOL,market,timeframe,ts,source\n", "unknown|twice"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(world: World, tmp_path: Path, text: str, cause: str) -> None:
    with pytest.raises(errors.SchemaMismatch, match=cause):
        load_file(world.stores, write(tmp_path, text), "market_bars")


def test_files_that_are_not_what_they_say_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match="no such file"):
        load_file(world.stores, tmp_path / "none.csv", "market_bars")
    with pytest.raises(errors.SchemaMismatch, match=r"bars\.parquet"):
        load_file(world.stores, write(tmp_path, HEADER + GOOD, "bars.parquet"), "market_bars")
    path = tmp_path / "latin.csv"
    path.write_bytes((HEADER + GOOD).replace("file", "fi\xe4le").encode("latin-1"))
    with pytest.raises(errors.SchemaMismatch, match="UTF8|UTF-8"):
        load_file(world.stores, path, "market_bars")
    assert world.rows() == []


def test_a_row_of_another_value_is_refused_skipped_or_replaced(world: World, tmp_path: Path) -> None:
    load_file(world.stores, write(tmp_path, HEADER + GOOD), "market_bars")
    other = write(tmp_path, HEADER + GOOD.replace(",5,", ",6,"))
    with pytest.raises(errors.SchemaMismatch, match="line 2: the hot tier has another row"):
        load_file(world.stores, other, "market_bars")
    assert load_file(world.stores, other, "market_bars", on_conflict="skip").skipped == 1
    assert world.rows()[0][8] == 5
    assert load_file(world.stores, other, "market_bars", on_conflict="replace").replaced == 1
    assert [row[8] for row in world.rows()] == [6]


def test_rows_of_units_that_have_left_are_late(world: World, tmp_path: Path) -> None:
    world.insert_day(days_ago(30))
    world.insert_day(days_ago(0))
    world.run()
    line = GOOD.replace("2024-06-19", f"{days_ago(30):%Y-%m-%d}")
    file = write(tmp_path, HEADER + line + GOOD)
    for careful in ("refuse", "skip"):
        with pytest.raises(errors.PermanentError, match="have left the hot tier"):
            load_file(world.stores, file, "market_bars", on_conflict=careful)
    assert len(world.rows()) == 120
    loaded = load_file(world.stores, file, "market_bars", on_conflict="replace")
    assert (loaded.inserted, loaded.late) == (2, 1)
    assert [r.unit.generation for r in world.run() if r.transition == "merge"] == [2]
    assert len(world.rows()) == 122


def test_times_without_zone_are_of_the_zone_that_is_said(world: World, tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + GOOD.replace("2024-06-19T00:00:00Z", "2024-06-19 09:30"))
    load_file(world.stores, path, "market_bars", zone="America/New_York")
    assert world.rows()[0][3] == datetime(2024, 6, 19, 13, 30, tzinfo=UTC)
