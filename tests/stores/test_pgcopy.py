"""PostgreSQL → Arrow → Parquet → PostgreSQL keeps every value; a broken stream is never a short read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pyarrow as pa
import pytest
from psycopg2 import sql

from tests.stores.pg_tables import (
    BARS_KEY,
    connect,
    describe,
    differences,
    make_bars,
    make_torture,
    run,
)
from tiering.errors import NotFound, PermanentError, SchemaMismatch, TransientError
from tiering.settings import Settings
from tiering.stores.parquet import read_parquet_batches, write_parquet
from tiering.stores.pgcopy import prepare_session, pump, read_batches, read_parallel, write_rows
from tiering.stores.pghash import fingerprint_batches, fingerprint_query, parse_fingerprint


@pytest.fixture
def pg_url(fresh_settings: Settings) -> str:
    return fresh_settings.hot_pg_url.get_secret_value()


@pytest.fixture
def second_url(fresh_two_database_settings: Settings) -> str:
    return fresh_two_database_settings.warm_pg_url.get_secret_value()


def test_every_value_survives_hot_to_lake_and_back(pg_url: str, tmp_path: Path) -> None:
    columns = make_torture(pg_url)
    file = tmp_path / "torture.parquet"
    written = write_parquet(read_batches(connect(pg_url), "torture", columns), columns, ("id",), file)
    run(pg_url, "CREATE TABLE back (LIKE torture)")
    with connect(pg_url) as connection:
        assert write_rows(connection, "back", columns, read_parquet_batches(file, columns)) == written.row_count
    assert written.row_count == int(str(run(pg_url, "SELECT count(*) FROM torture")[0][0]))
    assert differences(pg_url, "torture", "back") == 0


def test_the_fingerprint_of_every_type_is_the_same_on_both_sides(pg_url: str, tmp_path: Path) -> None:
    columns = make_torture(pg_url)
    file = tmp_path / "torture.parquet"
    write_parquet(read_batches(connect(pg_url), "torture", columns), columns, ("id",), file)
    connection = connect(pg_url)
    prepare_session(connection)
    with connection, connection.cursor() as cursor:
        cursor.execute(fingerprint_query("torture", columns, ("id",)))
        source = parse_fingerprint(cursor.fetchone() or (), columns, ("id",))
    assert source.differences(fingerprint_batches(read_parquet_batches(file, columns), columns, ("id",))) == []


def test_parallel_readers_see_one_snapshot_once(pg_url: str) -> None:
    columns = make_bars(pg_url, "bars", symbols=50, minutes=400)
    batches = read_parallel(lambda: connect(pg_url), "bars", columns, readers=3, rows_per_batch=1000)
    first = next(batches)
    run(
        pg_url,
        "INSERT INTO bars (symbol, market, timeframe, ts, source) "
        "SELECT symbol, market, timeframe, ts + interval '1 day', source FROM bars",
    )
    keys = [tuple(row.values()) for b in [first, *batches] for row in b.select(BARS_KEY).to_pylist()]
    assert len(keys) == len(set(keys)) == 20_000


def test_a_pump_carries_every_value_between_databases(pg_url: str, second_url: str) -> None:
    columns = make_torture(pg_url)
    make_torture(second_url, "copy")
    run(second_url, "DELETE FROM copy")
    source, target = connect(pg_url), connect(second_url)
    rows, size = pump(source, "torture", target, "copy", columns)
    target.commit()
    assert rows == int(str(run(pg_url, "SELECT count(*) FROM torture")[0][0]))
    assert size > 300_000  # the long text and its binary
    texts = "SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM {} t"
    assert run(pg_url, texts.format("torture")) == run(second_url, texts.format("copy"))


def test_rows_wider_than_the_buffers_pass(pg_url: str, second_url: str) -> None:
    run(pg_url, "CREATE TABLE wide AS SELECT i, repeat(chr(64 + i), 3000000) AS t FROM generate_series(1, 3) i")
    run(second_url, "CREATE TABLE wide (i integer, t text)")
    columns = describe(pg_url, "wide")
    lengths = [len(t.as_py()) for b in read_batches(connect(pg_url), "wide", columns) for t in b.column("t")]
    assert lengths == [3_000_000] * 3
    target = connect(second_url)
    assert pump(connect(pg_url), "wide", target, "wide", columns)[0] == 3


def test_many_specials_and_no_rows_at_all(pg_url: str) -> None:
    run(
        pg_url,
        "CREATE TABLE specials AS SELECT i, 'NaN'::numeric(9,2) AS n, 'infinity'::date AS d "
        "FROM generate_series(1, 30000) i",
        "CREATE TABLE none (LIKE specials)",
    )
    columns = describe(pg_url, "specials")
    batches = list(read_batches(connect(pg_url), "specials", columns))
    assert sum(b.num_rows for b in batches) == 30_000
    assert batches[0].column("_exact")[0].as_py() == '{"d":"infinity","n":"NaN"}'
    assert list(read_batches(connect(pg_url), "none", columns)) == []
    connection = connect(pg_url)
    assert write_rows(connection, "none", columns, iter(batches)) == 30_000
    connection.commit()
    assert differences(pg_url, "specials", "none") == 0


def test_a_killed_backend_is_transient_and_never_a_short_read(pg_url: str) -> None:
    columns = make_bars(pg_url, "bars", symbols=100, minutes=2000)
    connection = connect(pg_url)
    pid = connection.info.backend_pid
    batches = read_batches(connection, "bars", columns, rows_per_batch=1000)
    next(batches)
    run(pg_url, f"SELECT pg_terminate_backend({pid})")
    with pytest.raises(TransientError):
        for _ in batches:
            pass
    assert connection.closed


def test_a_backend_killed_while_writing_leaves_nothing(pg_url: str) -> None:
    columns = make_bars(pg_url, "bars", symbols=20, minutes=2000)
    run(pg_url, "CREATE TABLE target (LIKE bars)")
    connection = connect(pg_url)

    def batches() -> Iterator[pa.RecordBatch]:
        for i, batch in enumerate(read_batches(connect(pg_url), "bars", columns)):
            if i == 1:
                run(pg_url, f"SELECT pg_terminate_backend({connection.info.backend_pid})")
            yield batch

    with pytest.raises(TransientError):
        write_rows(connection, "target", columns, batches())
    assert run(pg_url, "SELECT count(*) FROM target") == [(0,)]


@pytest.mark.parametrize("victim", ["source", "target"])
def test_a_pump_that_loses_a_side_commits_nothing(pg_url: str, second_url: str, victim: str) -> None:
    columns = make_bars(pg_url, "bars", symbols=100, minutes=3000)
    make_bars(second_url, "bars", symbols=0, minutes=0)
    source, target = connect(pg_url), connect(second_url)
    pid = (source if victim == "source" else target).info.backend_pid
    url = pg_url if victim == "source" else second_url
    began = f"SELECT count(*) FROM pg_stat_progress_copy WHERE pid = {pid} AND tuples_processed > 1000"

    def kill() -> None:
        connection = psycopg2.connect(url)
        connection.autocommit = True
        with connection.cursor() as cursor:
            while True:
                cursor.execute(began)
                if (cursor.fetchone() or (0,))[0]:
                    break
            cursor.execute("SELECT pg_terminate_backend(%s)", (pid,))
        connection.close()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(TransientError):
        pump(source, "bars", target, "bars", columns)
    killer.join()
    assert source.closed
    assert target.closed
    assert run(second_url, "SELECT count(*) FROM bars") == [(0,)]


def test_an_abandoned_iterator_closes_its_connection(pg_url: str) -> None:
    columns = make_bars(pg_url, "bars", symbols=50, minutes=400)
    connection = connect(pg_url)
    batches = read_batches(connection, "bars", columns, rows_per_batch=100)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert connection.closed


def test_the_connection_is_usable_after_a_whole_read(pg_url: str) -> None:
    columns = make_bars(pg_url, "bars", symbols=5, minutes=4)
    connection = connect(pg_url)
    for _ in range(2):
        assert sum(b.num_rows for b in read_batches(connection, "bars", columns)) == 20
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    connection.rollback()


def test_refusals_name_what_was_refused(pg_url: str) -> None:
    columns = make_bars(pg_url, "bars", symbols=5, minutes=4)
    with pytest.raises(NotFound, match="nowhere"):
        list(read_batches(connect(pg_url), "nowhere", columns))
    run(pg_url, "ALTER TABLE bars ADD CHECK (volume < 0) NOT VALID")
    rows = list(read_batches(connect(pg_url), "bars", columns))
    with pytest.raises(PermanentError, match="check constraint"):
        write_rows(connect(pg_url), "bars", columns, rows)
    run(pg_url, "ALTER TABLE bars DROP CONSTRAINT bars_volume_check")
    run(pg_url, "ALTER TABLE bars ALTER close TYPE numeric(20,10)", "UPDATE bars SET close = 1.0123456789")
    with pytest.raises(SchemaMismatch, match="Describe the table again"):
        list(read_batches(connect(pg_url), "bars", columns))


def test_a_condition_limits_the_rows(pg_url: str) -> None:
    columns = make_bars(pg_url, "bars", symbols=5, minutes=4)
    some = read_batches(connect(pg_url), ("public", "bars"), columns, where=sql.SQL("symbol = '601.SH'"))
    assert sum(b.num_rows for b in some) == 4
