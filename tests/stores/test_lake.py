"""The Iceberg lake on a real PostgreSQL and a real S3 server: staging, the swap in our transaction, its readers."""

from __future__ import annotations

import hashlib
import io
import statistics
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.expressions import EqualTo

from tiering import errors
from tiering.model import Column, Kind, Span
from tiering.settings import Settings
from tiering.stores.duck import duckdb_connection
from tiering.stores.lake import IcebergLake, LakeFile, StagedCommit
from tiering.stores.objects import S3Objects
from tiering.stores.parquet_schema import arrow_schema

DAY = Span(days=1)
BARS = (
    Column("symbol", "text", Kind.TEXT, field_id=1, nullable=False),
    Column("ts", "timestamp with time zone", Kind.TIMESTAMPTZ, field_id=2, nullable=False),
    Column("close", "numeric(18,8)", Kind.DECIMAL, 18, 8, field_id=4),
    Column("volume", "integer", Kind.INT4, field_id=7),
)
BEGIN = datetime(2024, 1, 5, tzinfo=UTC)


@dataclass(frozen=True)
class Bench:
    """A lake with one empty table, and what a test needs beside it."""

    lake: IcebergLake
    objects: S3Objects
    settings: Settings

    def another_lake(self) -> IcebergLake:
        """The same lake as another process sees it: nothing cached."""
        return open_lake(self.settings)

    def connect(self) -> Any:
        return psycopg2.connect(self.settings.warm_pg_url.get_secret_value())

    def write(
        self,
        rows: list[dict[str, Any]],
        columns: tuple[Column, ...] = BARS,
        dataset: str = "bars",
        group_rows: int | None = None,
    ) -> LakeFile:
        file = io.BytesIO()
        made = pa.Table.from_pylist(rows, schema=arrow_schema(columns))
        pq.write_table(made, file, compression="zstd", row_group_size=group_rows)
        data = file.getvalue()
        key = f"lake/{dataset}/{uuid.uuid4().hex}.parquet"
        self.objects.put_new(key, io.BytesIO(data), len(data), hashlib.sha256(data).hexdigest())
        return LakeFile(self.objects.location(key), len(data), len(rows))

    def bars(self, begin: datetime = BEGIN, count: int = 10) -> LakeFile:
        return self.write(bar_rows(begin, count))

    def publish(self, *files: LakeFile) -> None:
        self.lake.publish(self.lake.stage_add_many("bars", files))


def bar_rows(begin: datetime, count: int) -> list[dict[str, Any]]:
    return [
        {"symbol": f"S{n}", "ts": begin + timedelta(seconds=n), "close": Decimal(n) / 8, "volume": n}
        for n in range(count)
    ]


def open_lake(settings: Settings) -> IcebergLake:
    keys = settings.s3_access_key, settings.s3_secret_key
    return IcebergLake(settings.warm_pg_url, settings.s3_url, settings.lake_bucket, *keys, settings.s3_region)


@pytest.fixture
def bench(fresh_settings: Settings) -> Iterator[Bench]:
    keys = fresh_settings.s3_access_key, fresh_settings.s3_secret_key
    objects = S3Objects(fresh_settings.s3_url, fresh_settings.lake_bucket, *keys, fresh_settings.s3_region)
    lake = open_lake(fresh_settings)
    lake.ensure_table("bars", BARS, DAY, "ts")
    yield Bench(lake, objects, fresh_settings)
    lake.close()


def outside_catalog(settings: Settings) -> SqlCatalog:
    """What a user of pyiceberg writes who has never heard of us."""
    url = settings.warm_pg_url.get_secret_value().replace("postgresql://", "postgresql+psycopg2://")
    properties = {
        "uri": f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3Dtiering",
        "s3.endpoint": settings.s3_url,
        "s3.access-key-id": settings.s3_access_key.get_secret_value(),
        "s3.secret-access-key": settings.s3_secret_key.get_secret_value(),
        "s3.region": settings.s3_region,
    }
    return SqlCatalog("tiering", **properties)


def scanned(settings: Settings, dataset: str = "bars") -> pa.Table:
    return outside_catalog(settings).load_table(("lake", dataset)).scan().to_arrow()


def test_a_commit_is_seen_when_the_callers_transaction_commits(bench: Bench) -> None:
    file = bench.bars()
    before = bench.lake.metadata_location("bars")
    staged = bench.lake.stage_add("bars", file)
    assert staged == StagedCommit("bars", before, staged.new_location)
    with bench.connect() as connection, connection.cursor() as cursor:
        bench.lake.apply(cursor, staged)
        assert bench.lake.metadata_location("bars") == before
        assert bench.lake.files("bars") == ()
    assert bench.lake.metadata_location("bars") == staged.new_location
    assert bench.lake.files("bars") == bench.another_lake().files("bars") == (file,)
    assert scanned(bench.settings).num_rows == 10


def test_a_rollback_changes_nothing_and_the_stage_can_be_repeated(bench: Bench) -> None:
    first, second = bench.bars(), bench.bars(BEGIN + timedelta(days=1))
    bench.publish(first)
    before = bench.lake.metadata_location("bars")
    connection = bench.connect()
    bench.lake.apply(connection, bench.lake.stage_add("bars", second))
    connection.rollback()
    assert bench.lake.metadata_location("bars") == before
    assert bench.lake.files("bars") == (first,)
    assert scanned(bench.settings).num_rows == 10
    bench.lake.apply(connection, bench.lake.stage_add("bars", second))
    connection.commit()
    connection.close()
    assert set(bench.lake.files("bars")) == {first, second}
    assert scanned(bench.settings).num_rows == 20


def test_of_two_commits_at_once_one_stages_again(bench: Bench) -> None:
    first, second = bench.bars(), bench.bars(BEGIN + timedelta(days=1))
    staged = bench.lake.stage_add("bars", first), bench.another_lake().stage_add("bars", second)
    holder, waiter = bench.connect(), bench.connect()
    bench.lake.apply(holder, staged[0])
    outcome: list[BaseException] = []

    def commit_second() -> None:
        try:
            bench.lake.apply(waiter, staged[1])  # waits for the holder's row lock
        except errors.CommitConflict as exc:
            outcome.append(exc)

    thread = threading.Thread(target=commit_second)
    thread.start()
    wait_for_lock(bench)
    holder.commit()
    thread.join()
    waiter.rollback()
    assert [type(found) for found in outcome] == [errors.CommitConflict]
    bench.lake.apply(waiter, bench.lake.stage_add("bars", second))
    waiter.commit()
    for connection in (holder, waiter):
        connection.close()
    assert set(bench.lake.files("bars")) == {first, second}


def wait_for_lock(bench: Bench) -> None:
    """Return when somebody in this database waits for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    deadline = time.monotonic() + 10
    with bench.connect() as connection, connection.cursor() as cursor:
        while time.monotonic() < deadline:
            cursor.execute(query)
            if cursor.fetchone()[0]:
                return
    raise AssertionError("nobody waited for the pointer's row")


def test_duckdb_pyiceberg_and_we_read_the_same_rows(bench: Bench) -> None:
    rows = bar_rows(BEGIN, 50) + bar_rows(BEGIN + timedelta(days=1), 50)
    bench.publish(bench.write(rows[:50]), bench.write(rows[50:]))
    with duckdb_connection(bench.objects) as duck:
        location = bench.lake.metadata_location("bars")
        query = "SELECT symbol, ts, close, volume FROM iceberg_scan($1) ORDER BY ts"
        seen_by_duckdb = duck.execute(query, [location]).fetchall()
        one_day = "SELECT count(*) FROM iceberg_scan($1) WHERE ts >= $2"
        assert duck.execute(one_day, [location, BEGIN + timedelta(days=1)]).fetchone() == (50,)
    table = scanned(bench.settings).sort_by("ts")
    assert table.column_names == ["symbol", "ts", "close", "volume", "_exact"]
    seen_by_pyiceberg = [tuple(row.values())[:4] for row in table.to_pylist()]
    assert seen_by_pyiceberg == [tuple(row.values()) for row in rows]
    assert [(s, ts.astimezone(UTC), c, v) for s, ts, c, v in seen_by_duckdb] == seen_by_pyiceberg


def test_a_file_is_not_left_out_by_the_bounds_of_some_of_its_row_groups(bench: Bench) -> None:
    """Arrow keeps no min and max of texts above 4 KB: the groups with one have no bounds, the others do."""
    rows = bar_rows(BEGIN, 6)
    for row, symbol in zip(rows, ("m", "n", "a", "z" * 5000, None, None), strict=True):
        row["symbol"] = symbol
    bench.publish(bench.write(rows, group_rows=2))
    table = outside_catalog(bench.settings).load_table(("lake", "bars"))
    (file,) = [task.file for task in table.scan().plan_files()]
    kept = {column.name for column in BARS if column.field_id in file.lower_bounds}
    assert kept == {"ts", "close", "volume"}, "the others' bounds stay"
    with duckdb_connection(bench.objects) as duck:
        location = bench.lake.metadata_location("bars")
        for symbol in ("a", "m", "z" * 5000):
            asked = "SELECT count(*) FROM iceberg_scan($1) WHERE symbol = $2"
            assert duck.execute(asked, [location, symbol]).fetchone() == (1,)
            assert table.scan(row_filter=EqualTo("symbol", symbol)).to_arrow().num_rows == 1


EVERY_KIND: dict[Kind, Any] = {
    Kind.BOOL: True,
    Kind.INT2: 7,
    Kind.INT4: -7,
    Kind.INT8: 2**40,
    Kind.FLOAT4: 0.5,
    Kind.FLOAT8: 1.25,
    Kind.DECIMAL: Decimal("12345678901234567890.12"),
    Kind.TEXT: "emoji 🦆",
    Kind.BYTES: b"\x01\xff",
    Kind.DATE: date(2024, 1, 5),
    Kind.TIMESTAMP: datetime(2024, 1, 5, 1, 2, 3, 4),
    Kind.TIMESTAMPTZ: BEGIN,
    Kind.UUID: uuid.UUID(int=7).bytes,
    Kind.EXACT_TEXT: "{1,2}",
}


def test_every_kind_of_column_is_carried(bench: Bench) -> None:
    kinds = list(Kind)
    digits = {Kind.DECIMAL: (38, 2)}
    columns = tuple(
        Column(kind.value, "any", kind, *digits.get(kind, ()), field_id=n + 1) for n, kind in enumerate(kinds)
    )
    bench.lake.ensure_table("kinds", columns, DAY, "timestamptz")
    row = {kind.value: EVERY_KIND[kind] for kind in kinds}
    nothing = {kind.value: None for kind in kinds} | {"timestamptz": BEGIN, "_exact": '{"decimal": "NaN"}'}
    file = bench.write([row, nothing], columns, "kinds")
    bench.lake.publish(bench.lake.stage_add("kinds", file))
    with duckdb_connection(bench.objects) as duck:
        found = duck.execute(
            "SELECT * FROM iceberg_scan($1) ORDER BY bool NULLS LAST", [bench.lake.metadata_location("kinds")]
        )
        names = [column[0] for column in found.description or ()]
        first, second = found.fetchall()
    expected = row | {"uuid": uuid.UUID(int=7), "_exact": None}
    assert dict(zip(names, first, strict=True)) == expected
    assert dict(zip(names, second, strict=True)) == {"_exact": '{"decimal": "NaN"}'} | nothing
    read = scanned(bench.settings, "kinds").to_pylist()[0]
    assert read | {"uuid": uuid.UUID(int=7)} == expected


def test_field_ids_are_the_columns_own(bench: Bench) -> None:
    schema = outside_catalog(bench.settings).load_table(("lake", "bars")).schema()
    ids = {field.name: field.field_id for field in schema.fields}
    assert ids == {"symbol": 1, "ts": 2, "close": 4, "volume": 7, "_exact": 1000}


@pytest.mark.parametrize(
    ("unit", "partition"),
    [
        (DAY, "ts_month"),
        (Span(hours=8), "ts_month"),
        (Span(hours=7), ""),
        (Span(days=7), ""),
        (Span(months=1), "ts_month"),
        (Span(months=3), ""),
        (Span(months=12), "ts_year"),
        (Span(months=24), ""),
    ],
)
def test_no_unit_straddles_a_partition(bench: Bench, unit: Span, partition: str) -> None:
    dataset = f"bars_{str(unit)}"
    bench.lake.ensure_table(dataset, BARS, unit, "ts")
    spec = outside_catalog(bench.settings).load_table(("lake", dataset)).spec()
    assert [field.name for field in spec.fields] == [partition][: bool(partition)]
    file = bench.bars()
    bench.lake.publish(bench.lake.stage_add(dataset, file))
    assert bench.lake.files(dataset) == (file,)


def test_a_table_is_made_and_grown_once_however_many_ask(fresh_settings: Settings) -> None:
    grown = (*BARS, Column("source", "text", Kind.TEXT, field_id=9))
    start, problems = threading.Barrier(4), []

    def ensure() -> None:
        lake = open_lake(fresh_settings)
        try:
            for columns in (BARS, grown):
                start.wait()
                lake.ensure_table("bars", columns, DAY, "ts")
        except errors.TieringError as exc:
            problems.append(exc)
        lake.close()

    threads = [threading.Thread(target=ensure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    lake = open_lake(fresh_settings)
    assert lake.datasets() == ("bars",)
    assert lake.exists("bars")
    assert not lake.exists("rabs")
    table = outside_catalog(fresh_settings).load_table(("lake", "bars"))
    assert [len(schema.fields) for schema in table.schemas().values()] == [5, 6]


def test_a_new_column_reaches_the_table_and_old_files_stay_readable(bench: Bench) -> None:
    bench.publish(bench.bars())
    grown = (*BARS[:3], replace(BARS[3], kind=Kind.INT8), Column("source", "text", Kind.TEXT, field_id=9))
    assert bench.lake.evolve("bars", grown)
    assert not bench.lake.evolve("bars", grown)
    rows = [row | {"source": "feed", "volume": 2**40} for row in bar_rows(BEGIN + timedelta(days=1), 5)]
    bench.lake.publish(bench.lake.stage_add("bars", bench.write(rows, grown)))
    table = scanned(bench.settings).sort_by("ts")
    assert table["source"].to_pylist() == [None] * 10 + ["feed"] * 5
    assert table["volume"].to_pylist() == [*range(10), *[2**40] * 5]
    with duckdb_connection(bench.objects) as duck:
        query = "SELECT count(source), sum(volume)::BIGINT FROM iceberg_scan($1)"
        seen = duck.execute(query, [bench.lake.metadata_location("bars")]).fetchone()
    assert seen == (5, 45 + 5 * 2**40)


def test_a_lost_column_stays_for_the_old_files(bench: Bench) -> None:
    bench.publish(bench.bars())
    assert not bench.lake.evolve("bars", BARS[:3])
    assert scanned(bench.settings).column_names == ["symbol", "ts", "close", "volume", "_exact"]


@pytest.mark.parametrize(
    "changed",
    [
        replace(BARS[2], kind=Kind.TEXT),
        replace(BARS[2], scale=4),
        replace(BARS[2], precision=9),
        replace(BARS[2], field_id=12),
        replace(BARS[2], field_id=0),
        replace(BARS[2], field_id=1000),
    ],
)
def test_a_change_that_old_files_cannot_follow_is_refused(bench: Bench, changed: Column) -> None:
    before = bench.lake.metadata_location("bars")
    with pytest.raises(errors.SchemaMismatch, match="bars"):
        bench.lake.ensure_table("bars", (*BARS[:2], changed, BARS[3]), DAY, "ts")
    assert bench.lake.metadata_location("bars") == before


def test_a_swap_replaces_one_file(bench: Bench) -> None:
    old, other = bench.bars(), bench.bars(BEGIN + timedelta(days=1))
    bench.publish(old, other)
    new = bench.bars(count=12)
    bench.lake.publish(bench.lake.stage_swap("bars", old.location, new))
    assert set(bench.lake.files("bars")) == {new, other}
    assert scanned(bench.settings).num_rows == 22
    assert old.location in bench.lake.snapshot_files("bars")
    with pytest.raises(errors.NotFound, match="is not in lake table bars"):
        bench.lake.stage_swap("bars", old.location, bench.bars())


def test_a_removed_file_is_gone_for_readers(bench: Bench) -> None:
    files = [bench.bars(BEGIN + timedelta(days=n)) for n in range(3)]
    bench.publish(*files)
    bench.lake.publish(bench.lake.stage_remove("bars", files[0].location, files[2].location))
    assert bench.lake.files("bars") == (files[1],)
    bench.lake.publish(bench.lake.stage_remove("bars", files[1].location))
    assert bench.lake.files("bars") == ()
    assert scanned(bench.settings).num_rows == 0
    with pytest.raises(errors.NotFound):
        bench.lake.stage_remove("bars", files[1].location)
    assert all(bench.objects.stat(bench.objects.key(file.location)) for file in files)


def test_what_does_not_belong_is_refused(bench: Bench) -> None:
    file = bench.bars()
    bench.publish(file)
    before = bench.lake.metadata_location("bars")
    two_months = bench.write(bar_rows(BEGIN, 1) + bar_rows(BEGIN + timedelta(days=31), 1))
    stranger = bench.write([{"ts": BEGIN, "mood": "good"}], (BARS[1], Column("mood", "text", Kind.TEXT, field_id=5)))
    bench.objects.put_new("lake/bars/no.parquet", io.BytesIO(b"none"), 4, hashlib.sha256(b"none").hexdigest())
    for wrong, family in [
        (file, errors.AlreadyExists),
        (replace(bench.bars(), row_count=11), errors.CorruptCopy),
        (replace(bench.bars(), size_bytes=11), errors.CorruptCopy),
        (LakeFile(bench.objects.location("lake/bars/no.parquet"), 4, 1), errors.CorruptCopy),
        (LakeFile(bench.objects.location("lake/bars/none.parquet"), 4, 1), errors.NotFound),
        (two_months, errors.SchemaMismatch),
        (stranger, errors.SchemaMismatch),
    ]:
        with pytest.raises(family) as caught:
            bench.lake.stage_add("bars", wrong)
        assert caught.value.subject == wrong.location
    assert bench.lake.metadata_location("bars") == before
    with pytest.raises(errors.NotFound, match="has no lake table"):
        bench.lake.stage_add("rabs", file)


def test_a_crash_between_stage_and_apply_leaves_only_orphans(bench: Bench) -> None:
    bench.publish(bench.bars())
    named = bench.lake.snapshot_files("bars")
    prefix = bench.lake.metadata_prefix("bars")
    stored = {bench.objects.location(found.key) for found in bench.objects.list(prefix)}
    assert stored <= named
    abandoned = bench.lake.stage_add("bars", bench.bars(BEGIN + timedelta(days=1)))
    again = bench.another_lake()
    orphans = {bench.objects.location(found.key) for found in bench.objects.list(prefix)} - stored
    assert abandoned.new_location in orphans
    assert again.snapshot_files("bars") == named
    bench.objects.delete(bench.objects.key(location) for location in orphans)
    again.publish(again.stage_add("bars", bench.bars(BEGIN + timedelta(days=2))))
    assert scanned(bench.settings).num_rows == 20


def test_expired_snapshots_let_go_of_their_objects(bench: Bench) -> None:
    files = [bench.bars(BEGIN + timedelta(days=n)) for n in range(4)]
    for file in files:
        bench.publish(file)
    bench.lake.publish(bench.lake.stage_remove("bars", files[0].location))
    everything = bench.lake.snapshot_files("bars")
    assert bench.lake.expire_snapshots("bars", BEGIN) == 0
    assert bench.lake.expire_snapshots("bars", datetime.now(UTC) + timedelta(minutes=1)) == 4
    left = bench.lake.snapshot_files("bars")
    assert files[0].location in everything - left
    assert {file.location for file in files[1:]} <= left
    bench.objects.delete(bench.objects.key(location) for location in everything - left)
    assert scanned(bench.settings).num_rows == 30
    with pytest.raises(ValueError, match="time zone"):
        bench.lake.expire_snapshots("bars", datetime(2024, 1, 1))


def test_a_database_that_is_away_or_shut_says_so(bench: Bench) -> None:
    url = bench.settings.warm_pg_url.get_secret_value()
    away = bench.settings.model_copy(update={"warm_pg_url": SecretStr("postgresql://u:hunter2@127.0.0.1:9/none")})
    with pytest.raises(errors.StoreUnavailable) as caught:
        open_lake(away).files("bars")
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__!r}"
    missing = bench.settings.model_copy(update={"warm_pg_url": SecretStr(url.rsplit("/", 1)[0] + "/no_such_database")})
    with pytest.raises(errors.NotFound):
        open_lake(missing).files("bars")


def test_commits_stay_quick_as_the_table_grows(bench: Bench) -> None:
    """Sixty commits, so that manifests are merged three times; the bound is loose, the printed median is not."""
    files = [bench.bars(BEGIN + timedelta(days=n)) for n in range(60)]
    seconds = []
    for file in files:
        began_at = time.perf_counter()
        bench.publish(file)
        seconds.append(time.perf_counter() - began_at)
    print(f"commit median {statistics.median(seconds) * 1e3:.0f} ms, max {max(seconds) * 1e3:.0f} ms")
    assert statistics.median(seconds) < 0.5
    table = outside_catalog(bench.settings).load_table(("lake", "bars"))
    snapshot = table.current_snapshot()
    assert snapshot is not None
    assert len(snapshot.manifests(table.io)) < 25
    assert set(bench.another_lake().files("bars")) == set(files)
