"""Every BSON value that bends elsewhere, through every tier and back, byte for byte; and what others read of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import bson
import pyarrow as pa
import pytest
from bson.raw_bson import RawBSONDocument
from pyiceberg.expressions import EqualTo
from pymongo.collection import Collection

from tests.ops.document_world import ANCHOR, DocumentWorld, open_documents
from tests.ops.predicates import canonical
from tests.ops.world import days_ago
from tests.stores.bson_torture import KEPT, RAW_ONLY, document, element, int32, int64, string, torture
from tests.stores.test_lake import outside_catalog
from tiering.model import Field, Kind, State, Tier, Transition
from tiering.ops.documents import raw_of
from tiering.ops.query import query
from tiering.settings import Settings
from tiering.stores.bson_batches import RawBatch
from tiering.stores.bson_typed import document_columns, typed
from tiering.stores.duck import duckdb_connection
from tiering.stores.parquet import read_parquet_batches, write_parquet

KINDS = (Kind.TEXT, Kind.FLOAT8, Kind.INT8, Kind.BOOL, Kind.TIMESTAMPTZ, Kind.UUID, Kind.EXACT_TEXT)
FIELDS = tuple(Field(f"as_{kind.value}", "v", kind) for kind in KINDS)
"""The one value `v` under every type there is: where it is of another, its column is null and `_exact` says it."""

AT_MS = int(days_ago(300).timestamp() * 1000)


@pytest.fixture(params=["one server", "two databases"])
def opened(request: pytest.FixtureRequest) -> Iterator[tuple[DocumentWorld, Settings]]:
    settings = request.getfixturevalue(
        "fresh_settings" if request.param == "one server" else "fresh_two_database_settings"
    )
    with open_documents(settings, suite="", fields=FIELDS) as world:
        yield world, settings


def tortured(seed: int) -> list[bytes]:
    """Make a document of each value that the server keeps, the time under the dataset's own name."""
    names = list(KEPT)
    random.Random(seed).shuffle(names)
    return [
        document(
            element(2, "_id", string(name.encode())),
            KEPT[name],
            element(9, "publish_time", int64(AT_MS + number)),
            element(16, "z", int32(number)),
            element(1, "a", b"\0" * 8),
        )
        for number, name in enumerate(names)
    ]


def held(collection: Collection[Any]) -> list[bytes]:
    """Read what the server itself holds, undecoded."""
    options = bson.CodecOptions(document_class=RawBSONDocument)
    found = collection.with_options(codec_options=options).find({"_id": {"$ne": ANCHOR}})
    return sorted(bytes(body.raw) for body in found)


def seen(world: DocumentWorld) -> list[bytes]:
    rows = query(world.stores, f"SELECT _raw FROM news WHERE _id <> '{ANCHOR}'")
    return sorted(rows["_raw"].to_pylist())


def insert(world: DocumentWorld, bodies: list[bytes]) -> None:
    options = bson.CodecOptions(document_class=RawBSONDocument)
    world.hot.with_options(codec_options=options).insert_many([RawBSONDocument(body, options) for body in bodies])


def test_torture_values_come_back_from_every_tier_byte_for_byte(opened: tuple[DocumentWorld, Settings]) -> None:
    world, settings = opened
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    bodies = tortured(seed)
    insert(world, bodies)
    assert held(world.hot) == sorted(bodies), "the server keeps them as they are"
    for transition in (Transition.HOT_TO_WARM, Transition.WARM_TO_COLD):
        assert seen(world) == sorted(bodies)
        assert [r.state for r in world.run(transition)] == [State.COMMITTED]
        if transition is Transition.HOT_TO_WARM:
            assert held(world.warm) == sorted(bodies)
    assert held(world.hot) == held(world.warm) == []
    assert seen(world) == sorted(bodies)

    late = tortured(seed + 1)[: len(bodies) // 2]
    names = {bson.decode(body, bson.CodecOptions(document_class=RawBSONDocument))["_id"] for body in late}
    insert(world, late)
    assert [r.state for r in world.run(Transition.MERGE)] == [State.COMMITTED]
    assert held(world.hot) == []
    kept = [body for body in bodies if RawBSONDocument(body)["_id"] not in names]
    assert seen(world) == sorted(kept + late)
    assert [(r.tier, r.unit.generation) for r in world.stores.ledger.units("news")] == [(Tier.COLD, 2)]
    others_read_the_same(world, settings, kept + late)


def others_read_the_same(world: DocumentWorld, settings: Settings, bodies: list[bytes]) -> None:
    """Read the lake with DuckDB and pyiceberg: the documents' bytes, and the typed columns that they give."""
    rows, _ = typed(RawBatch.from_documents(bodies), world.dataset)
    names = [name for name in rows.schema.names if name != "_raw"]
    expected = bits(pa.Table.from_batches([rows]), names)
    with closing(duckdb_connection(world.stores.objects)) as engine:
        location = world.stores.lake.metadata_location("news")
        by_duckdb = engine.execute("SELECT * FROM iceberg_scan($1)", [location]).to_arrow_table()
    by_pyiceberg = outside_catalog(settings).load_table(("lake", "news")).scan().to_arrow()
    for who, found in (("DuckDB", by_duckdb), ("pyiceberg", by_pyiceberg)):
        assert sorted(found["_raw"].to_pylist()) == sorted(bodies), who
        assert bits(found, names) == expected, who


def bits(table: pa.Table, names: list[str]) -> Counter[tuple[Any, ...]]:
    """Write rows so that NaN equals itself, -0 is not 0, and far dates are no problem."""
    columns = []
    for name in names:
        column = table[name].combine_chunks()
        column = column.storage if isinstance(column, pa.ExtensionArray) else column
        if pa.types.is_float64(column.type):
            column = column.view(pa.int64())
        elif pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("us", "UTC")).cast(pa.int64())
        values = column.to_pylist()
        columns.append([canonical(Kind.UUID, value) for value in values] if name == "as_uuid" else values)
    return Counter(zip(*columns, strict=True))


def test_what_only_mongodb_itself_holds_comes_back_from_a_lake_file(
    opened: tuple[DocumentWorld, Settings], tmp_path: Path
) -> None:
    """Bad UTF-8, far dates, keys twice: the embedded server takes none of them, so they meet the writer alone."""
    world, _ = opened
    bodies = torture(KEPT | RAW_ONLY, AT_MS)
    rows, untyped = typed(RawBatch.from_bytes(b"".join(bodies)), world.dataset)
    assert untyped, "some are of no declared type"
    columns, file = document_columns(world.dataset), tmp_path / "torture.parquet"
    written = write_parquet([rows], columns, world.dataset.sort or world.dataset.key, file)
    assert written.row_count == len(bodies)
    back = [body for batch in read_parquet_batches(file, columns) for body in raw_of(batch["_raw"]).documents()]
    assert sorted(back) == sorted(bodies)
    with closing(duckdb_connection(world.stores.objects)) as engine:
        found = engine.execute("SELECT _raw FROM read_parquet($1)", [str(file)]).fetchall()
    assert sorted(bytes(raw) for (raw,) in found) == sorted(bodies)


def test_a_nul_in_a_text_is_found_by_everybody(opened: tuple[DocumentWorld, Settings]) -> None:
    world, settings = opened
    insert(world, tortured(1))
    for transition in (Transition.HOT_TO_WARM, Transition.WARM_TO_COLD):
        world.run(transition)
    asked = "SELECT _id FROM {} WHERE as_text = 'a' || chr(0) || 'b' AND length(as_text) = 3"
    assert query(world.stores, asked.format("news")).to_pylist() == [{"_id": "string_with_nul"}]
    with closing(duckdb_connection(world.stores.objects)) as engine:
        scan = f"iceberg_scan('{world.stores.lake.metadata_location('news')}')"
        assert engine.execute(asked.format(scan)).fetchall() == [("string_with_nul",)]
    table = outside_catalog(settings).load_table(("lake", "news"))
    assert table.scan(row_filter=EqualTo("as_text", "a\0b")).to_arrow()["_id"].to_pylist() == ["string_with_nul"]
