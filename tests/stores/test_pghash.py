"""Our hashes are PostgreSQL's; a change of any one value is seen, and says in which column."""

from __future__ import annotations

import math
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.stores.pg_tables import BARS_KEY, connect, describe, make_bars, run
from tiering.errors import SchemaMismatch
from tiering.model import Column, Fingerprint
from tiering.settings import Settings
from tiering.stores.parquet_schema import arrow_schema
from tiering.stores.pgcopy import prepare_session, read_batches, write_rows
from tiering.stores.pghash import fingerprint_batches, fingerprint_query, parse_fingerprint


@pytest.fixture
def pg_url(fresh_settings: Settings) -> str:
    return fresh_settings.hot_pg_url.get_secret_value()


def fingerprint_of_table(url: str, table: str, columns: tuple[Column, ...], key: tuple[str, ...]) -> Fingerprint:
    connection = connect(url)
    prepare_session(connection)
    with connection, connection.cursor() as cursor:
        cursor.execute(fingerprint_query(table, columns, key))
        return parse_fingerprint(cursor.fetchone() or (), columns, key)


def text() -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


def decimals(digits: int, scale: int) -> st.SearchStrategy[Decimal]:
    most = 10**digits - 1
    return st.integers(-most, most).map(lambda n: Decimal(f"{n}E-{scale}"))


ROWS = st.lists(
    st.tuples(
        text(),
        st.none() | st.integers(-(2**63), 2**63 - 1),
        st.none() | st.integers(-(2**31), 2**31 - 1),
        st.none() | st.integers(-(2**15), 2**15 - 1),
        st.none() | decimals(18, 8),
        st.none() | decimals(18, 2),
        st.none() | decimals(38, 10),
        st.none() | decimals(38, 0),
        st.none() | st.floats(allow_nan=False) | st.just(math.nan),
        st.none() | st.floats(width=32, allow_nan=False) | st.just(math.nan),
        st.none() | st.booleans(),
        st.none() | st.binary(max_size=40),
        st.none() | st.dates(),
        st.none() | st.datetimes(timezones=st.just(UTC), min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)),
        st.none() | st.uuids(),
        st.none() | text(),
    ),
    min_size=1,
    max_size=30,
)
TYPES = """k text, i8 bigint, i4 integer, i2 smallint, d8 numeric(18,8), d2 numeric(18,2), w10 numeric(38,10),
    w0 numeric(38,0), f8 double precision, f4 real, b boolean, y bytea, d date, t timestamptz, u uuid, s text"""


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_our_hashes_are_postgresql_s(pg_url: str, rows: list[tuple[object, ...]]) -> None:
    run(pg_url, "DROP TABLE IF EXISTS random", f"CREATE TABLE random ({TYPES})")
    columns = describe(pg_url, "random")
    schema = arrow_schema(columns)
    arrays = [_array(values, schema.field(i).type) for i, values in enumerate(zip(*rows, strict=True))]
    batch = pa.RecordBatch.from_arrays([*arrays, pa.nulls(len(rows), pa.string())], schema=schema)
    connection = connect(pg_url)
    write_rows(connection, "random", columns, [batch])
    connection.commit()
    connection.close()
    for key in (("k",), ("s", "d8", "i8"), ("f8", "u", "t", "k")):
        theirs = fingerprint_of_table(pg_url, "random", columns, key)
        ours = fingerprint_batches([batch], columns, key)
        assert theirs.differences(ours) == []
    again = fingerprint_batches(read_batches(connect(pg_url), "random", columns), columns, ("k",))
    assert again.differences(fingerprint_batches([batch], columns, ("k",))) == []


def _array(values: tuple[object, ...], kind: pa.DataType) -> pa.Array:
    if kind == pa.uuid():
        stored = pa.array([v.bytes if isinstance(v, uuid.UUID) else None for v in values], pa.binary(16))
        return pa.ExtensionArray.from_storage(kind, stored)
    return pa.array(values, kind)


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("close", "close + 0.00000001"),
        ("close", "-close"),
        ("close", "'NaN'"),
        ("close", "NULL"),
        ("volume", "volume # 1"),
        ("amount", "0"),
    ],
)
def test_one_flipped_value_is_caught_and_named(pg_url: str, column: str, change: str) -> None:
    columns = make_bars(pg_url, "bars", symbols=10, minutes=20)
    before = fingerprint_of_table(pg_url, "bars", columns, BARS_KEY)
    run(pg_url, f"UPDATE bars SET {column} = {change} WHERE symbol = '605.SH' AND volume = 507")
    found = before.differences(fingerprint_of_table(pg_url, "bars", columns, BARS_KEY))
    assert len(found) == 1
    assert found[0].startswith(f"column {column}:")


def test_values_swapped_between_two_rows_are_caught(pg_url: str) -> None:
    columns = make_bars(pg_url, "bars", symbols=10, minutes=20)
    before = fingerprint_of_table(pg_url, "bars", columns, BARS_KEY)
    run(
        pg_url,
        "UPDATE bars b SET close = o.close FROM bars o "
        "WHERE b.ts = o.ts AND b.volume IN (107, 207) AND o.volume IN (107, 207) AND b.volume <> o.volume",
    )
    found = before.differences(fingerprint_of_table(pg_url, "bars", columns, BARS_KEY))
    assert [line.split(":")[0] for line in found] == ["column close"]


def test_a_changed_key_a_lost_row_and_a_doubled_row_are_caught(pg_url: str) -> None:
    columns = make_bars(pg_url, "bars", symbols=10, minutes=20)
    batches = list(read_batches(connect(pg_url), "bars", columns))
    before = fingerprint_of_table(pg_url, "bars", columns, BARS_KEY)
    assert before.differences(fingerprint_batches(batches, columns, BARS_KEY)) == []
    lost, doubled = [batches[0].slice(1)], [*batches, batches[0].slice(0, 1)]
    assert "rows 200 != 199" in before.differences(fingerprint_batches(lost, columns, BARS_KEY))
    assert "rows 200 != 201" in before.differences(fingerprint_batches(doubled, columns, BARS_KEY))
    run(pg_url, "UPDATE bars SET market = 'XX' WHERE symbol = '605.SH' AND volume = 507")
    found = before.differences(fingerprint_of_table(pg_url, "bars", columns, BARS_KEY))
    assert any(line.startswith("column market:") for line in found)


def test_the_source_side_is_one_parallel_scan(pg_url: str) -> None:
    columns = make_bars(pg_url, "bars", symbols=100, minutes=2000)
    run(pg_url, "ANALYZE bars")
    connection = connect(pg_url)
    with connection.cursor() as cursor:
        cursor.execute("SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0")
        cursor.execute(
            b"EXPLAIN (VERBOSE) " + fingerprint_query("bars", columns, BARS_KEY).as_string(connection).encode()
        )
        plan = "\n".join(str(row[0]) for row in cursor.fetchall())
    assert plan.count("Scan on") == 1
    assert "Parallel Seq Scan" in plan
    # The key's hash is computed once per row, in the scan; above it only its result is used.
    assert plan.split("Parallel Seq Scan")[0].count("Subquery Scan") <= 1


def test_a_key_outside_the_columns_is_refused(pg_url: str) -> None:
    columns = make_bars(pg_url, "bars", symbols=1, minutes=1)
    with pytest.raises(SchemaMismatch, match="nothing"):
        fingerprint_query("bars", columns, ("nothing",))


def test_days_are_days(pg_url: str, tmp_path: Path) -> None:
    run(pg_url, "CREATE TABLE days (d date PRIMARY KEY)", "INSERT INTO days VALUES ('2024-02-29')")
    (batch,) = read_batches(connect(pg_url), "days", describe(pg_url, "days"))
    assert batch.column("d").to_pylist() == [date(2024, 2, 29)]
