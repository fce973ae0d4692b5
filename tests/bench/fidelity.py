"""Which values come back as they were: ours, DuckDB's COPY to Parquet and rivet's export, one value at a time.

A value is put into a table (or collection) of its own, exported to Parquet, read back, and given to PostgreSQL again:
the same type must say the same text of it, and doubles the same bits; a document must encode to the same bytes.
Whoever stops on a value is asked for each alone, so that no value stands in for another. The matrix is written to
docs/fidelity.md as it was measured.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import bson
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
from bson import json_util
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from psycopg2 import sql
from pymongo import MongoClient

from tests.bench.export import find_rivet
from tests.bench.ground import Ground, libpq_environment
from tests.bench.rows import Group, Row
from tests.bench.world import PROJECT
from tests.stores.bson_torture import KEPT, document, element, int32
from tiering.model import Dataset, Field, Kind, Policy, Span
from tiering.plan.columns import plan_columns
from tiering.stores import parquet, pgcopy, tables
from tiering.stores.bson_batches import RawBatch
from tiering.stores.bson_typed import RAW_COLUMN, document_columns, typed

DATABASE = "bench_fidelity"
OUT = PROJECT / "docs" / "fidelity.md"
EXACT = "exact"
CUT = 90
_PREFIX = re.compile(r"^(\[\S+ ERROR \S+\] export '\w+'( \w+)?: |error: |(\w+ )+Error: )")
"""What exporters say before they say what is wrong: a level, the time, the name that was made up here."""

PEERS = ("DuckDB 1.5.5", "rivet 0.32.2")

NAN_PAYLOAD = "float8 NaN, payload"
"""Its bits go in by COPY: no text says them."""

TABLES: tuple[tuple[str, str, str], ...] = (
    ("numeric(20,8) NaN", "numeric(20,8)", "'NaN'"),
    ("numeric NaN", "numeric", "'NaN'"),
    ("numeric, 20.9 digits", "numeric", "12345678901234567890.123456789"),
    ("numeric, trailing zeros", "numeric", "1.5000"),
    ("numeric, 48 digits", "numeric", "123456789012345678901234567890123456789012345678"),
    ("numeric(50,10)", "numeric(50,10)", "1234567890123456789012345678901234567890.0123456789"),
    ("timestamp infinity", "timestamp", "'infinity'"),
    ("timestamptz -infinity", "timestamptz", "'-infinity'"),
    ("date infinity", "date", "'infinity'"),
    ("timestamptz, year 294276", "timestamptz", "'294276-12-31 23:59:59.999999+00'"),
    ("timestamp BC", "timestamp", "'0044-03-15 12:00:00 BC'"),
    ("date BC", "date", "'4713-01-01 BC'"),
    ("array, 2 dimensions", "integer[]", "'{{1,2},{3,NULL}}'"),
    ("array from index 0", "integer[]", "'[0:1]={7,8}'"),
    ("interval", "interval", "'1 year -2 mons 3 days -04:05:06.789'"),
    ("interval, microseconds", "interval", "'00:00:00.000001'"),
    ("jsonb, big number", "jsonb", "'{\"n\": 123456789012345678901234567890.12300}'"),
    ("json, keys twice", "json", '\'{"a":  1, "a": 2}\''),
    ("range", "int4range", "'[1,5)'"),
    ("enum", "mood", "'very happy'"),
    ("time 24:00", "time", "'24:00'"),
    ("timetz", "timetz", "'12:34:56.789+08'"),
    ("bytea", "bytea", r"'\x00ff0a5c'"),
    ("float8 NaN", "float8", "'NaN'"),
    (NAN_PAYLOAD, "float8", "'NaN'"),
    ("float8 -0", "float8", "'-0'"),
    ("float8, smallest", "float8", "'5e-324'"),
    ("float4 0.1", "real", "'0.1'"),
    ("uuid", "uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
    ("inet", "inet", "'10.0.0.0/8'"),
    ("text, empty", "text", "''"),
    ("text \\N", "text", r"'\N'"),
    ("text, beyond the BMP", "text", "'💹 e\u0301 \u200d'"),
    ("char(5), blanks", "char(5)", "'x'"),
)
"""What it is called, its type, and the value."""

DOCUMENTS = {
    "BSON ObjectId": KEPT["object_id"],
    "BSON Decimal128 NaN": KEPT["decimal_NaN"],
    "BSON Decimal128 -0": KEPT["decimal_-0"],
    "BSON Decimal128 1.00": KEPT["decimal_1.00"],
    "BSON int64 5": KEPT["int64_small"],
    "BSON double 5.0": KEPT["double"],
    "BSON double -0.0": KEPT["double_negative_zero"],
    "BSON double NaN payload": KEPT["double_nan"],
    "BSON key order": KEPT["document_order"],
    "BSON NUL in a string": KEPT["string_with_nul"],
    "BSON UUID subtype 3": KEPT["binary_3"],
    "BSON UUID subtype 4": KEPT["binary_4"],
    "BSON nested, 90 deep": KEPT["document_deep"],
    "BSON array of int and double": KEPT["array"],
    "BSON regex": KEPT["regex"],
    "BSON timestamp": KEPT["timestamp"],
    "BSON date, year 1": KEPT["date_year_1"],
}

Answers = dict[str, str]


class Refused(Exception):
    """The exporter stopped; its words."""


def run(ground: Ground) -> Iterator[Row]:
    """Measure the matrix, write it down, and count the kinds that stay exact."""
    ground.say(
        f"fidelity: {len(TABLES)} values of PostgreSQL and {len(DOCUMENTS)} of BSON, each through three exporters"
    )
    ground.create(DATABASE)
    directory = ground.directory / "fidelity"
    directory.mkdir()
    answers = [by_table(ground, directory), by_document(ground, directory)]
    matrix = {kind: row for part in answers for kind, row in part.items()}
    write(matrix)
    for kind, row in matrix.items():
        ground.say(f"  {kind}: " + "; ".join(f"{who}: {what}" for who, what in row.items()))
    ours = sum(row["ours"] == EXACT for row in matrix.values())
    for name, peer in (("fidelity_exact_kinds", PEERS[0]), ("fidelity_exact_kinds_rivet", PEERS[1])):
        theirs = sum(row[peer] == EXACT for row in matrix.values())
        note = f"of {len(matrix)} kinds of values; docs/fidelity.md has each"
        yield Row(name, "kinds", ours, theirs, peer, ours / max(1, theirs), 1.0, ours == len(matrix), note)
    ground.drop(DATABASE)


def write(matrix: dict[str, Answers]) -> None:
    """Write the matrix as a page."""
    lines = [
        "# Which values come back as they were",
        "Measured by `make bench` (tests/bench/fidelity.py): each value alone, exported to Parquet, read back, given",
        "to its database again. *exact*: the same text and bits, of documents the same bytes. DuckDB is its PostgreSQL",
        "scanner with `COPY … TO` Parquet; it has no MongoDB source. rivet is `run` in mode `full`, its defaults.",
        "",
        f"| value | ours | {' | '.join(PEERS)} |",
        "|---|---|---|---|",
    ]
    for kind, row in matrix.items():
        cells = (row[who].replace("|", "\\|").replace("\n", " ") for who in ("ours", *PEERS))
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    totals = (f"{sum(row[who] == EXACT for row in matrix.values())} of {len(matrix)}" for who in ("ours", *PEERS))
    lines.append(f"| **exact** | {' | '.join(totals)} |")
    OUT.write_text("\n".join(lines) + "\n")


# -- tables -------------------------------------------------------------------------------------------------------


def by_table(ground: Ground, directory: Path) -> dict[str, Answers]:
    """Put each value into a table of one row and take it through all three."""
    url = ground.stack.postgres.url(DATABASE)
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TYPE mood AS ENUM ('sad', 'ok', 'very happy')")
        for number, (_, pg_type, value) in enumerate(TABLES):
            cursor.execute(f"CREATE TABLE v{number} AS SELECT 1 AS id, ({value})::{pg_type} AS v")
        payload = next(f"v{number}" for number, (kind, *_) in enumerate(TABLES) if kind == NAN_PAYLOAD)
        cursor.execute(f"TRUNCATE {payload}")
        row = struct.pack("!hiiiQ", 2, 4, 1, 8, 0x7FF8000000000123)
        cursor.copy_expert(
            f"COPY {payload} FROM STDIN (FORMAT binary)",
            io.BytesIO(b"PGCOPY\n\xff\r\n\0" + bytes(8) + row + struct.pack("!h", -1)),
        )
        connection.commit()
    duck = duckdb_errors(libpq_environment(url), directory)
    environment = {"RIVET_SOURCE_URL": url}
    found = {}
    for number, (kind, pg_type, _) in enumerate(TABLES):

        def judged(value_of: Callable[[], Any], number: int = number, pg_type: str = pg_type) -> str:
            with closing(psycopg2.connect(url)) as connection:
                return verdict(connection, f"v{number}", pg_type, value_of)

        def by_duckdb(number: int = number) -> Any:
            if error := duck[f"v{number}"]:
                raise Refused(error)
            return only_value(directory / f"v{number}.parquet")

        def by_rivet(number: int = number) -> Any:
            out = directory / f"rivet{number}"
            rivet(environment, "postgres", f"public.v{number}", out)
            return only_value(*out.rglob("*.parquet"))

        with closing(psycopg2.connect(url)) as connection:
            ours = by_us(connection, f"v{number}", directory / f"ours{number}.parquet")
        found[kind] = {"ours": ours, PEERS[0]: judged(by_duckdb), PEERS[1]: judged(by_rivet)}
    return found


def by_us(connection: Any, table: str, file: Path) -> str:
    """Take the value through our own copy stage and back into a table like its own; PostgreSQL compares."""
    with connection.cursor() as cursor:
        columns = plan_columns(tables.described_columns(connection, f"public.{table}"))
        batches = pgcopy.read_batches(connection, sql.Identifier("public", table), columns)
        parquet.write_parquet(batches, columns, ("id",), file)
        cursor.execute(f"CREATE TABLE back (LIKE {table})")
        back = parquet.read_parquet_batches(file, columns)
        pgcopy.write_rows(connection, sql.Identifier("public", "back"), columns, back)
        bits = {"double precision": ", float8send(v)", "real": ", float4send(v)"}.get(columns[1].pg_type, "")
        cursor.execute(f"SELECT format('%s', v){bits} FROM {table} UNION SELECT format('%s', v){bits} FROM back")
        rows = cursor.fetchall()
    connection.rollback()
    return EXACT if len(rows) == 1 else f"changed to {rows}"


def verdict(connection: Any, table: str, pg_type: str, value_of: Callable[[], Any]) -> str:
    """Give a peer's value back to PostgreSQL, and say what became of it."""
    try:
        value = value_of()
    except Refused as exc:
        return f"refused: {short(str(exc))}"
    if isinstance(value, float) and pg_type in ("float8", "real"):
        name, form = ("float8send", ">d") if pg_type == "float8" else ("float4send", ">f")
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {name}(v) FROM {table}")
            return EXACT if bytes(cursor.fetchone()[0]) == struct.pack(form, value) else f"changed to {value}"
    given = json.dumps(value) if isinstance(value, dict) else value
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT format('%%s', %s::{pg_type}), format('%%s', v) FROM {table}", (given,))
            back, original = cursor.fetchone()
    except (psycopg2.Error, ValueError):  # what its own type refuses has been changed
        connection.rollback()
        return f"changed to {short(str(value))}"
    return EXACT if back == original else f"changed to {short(back)}"


def only_value(*files: Path) -> Any:
    """Read the one value of an export: as Arrow has it, as text where Python's types end, NULL as None."""
    (file,) = files
    column = pq.read_table(file).column("v")
    if any(is_a(column.type) for is_a in (pa.types.is_timestamp, pa.types.is_date, pa.types.is_time)):
        import duckdb

        with closing(duckdb.connect()) as engine:
            engine.execute("SET TimeZone = 'UTC'")
            found = engine.execute("SELECT v::VARCHAR FROM read_parquet($1)", [str(file)]).fetchone()
            assert found is not None
            return None if found[0] is None else found[0].replace("(BC)", "BC")
    value = column[0].as_py()
    if isinstance(value, bytes) and pa.types.is_fixed_size_binary(column.type) and len(value) == 12:
        months, days, milliseconds = struct.unpack("<3i", value)  # Parquet's INTERVAL
        return f"{months} months {days} days {milliseconds} milliseconds"
    return str(value) if isinstance(value, UUID) else value


def duckdb_errors(environment: dict[str, str], directory: Path) -> Answers:
    """Let DuckDB copy every table, in a process of its own: its libpq reads the password from the environment."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.fidelity", str(directory)],
        env={**os.environ, **environment},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    answers: Answers = json.loads(done.stdout)
    return answers


def duckdb_child(directory: Path) -> None:
    """Copy the tables of the database that the environment names; print table → error as JSON."""
    import importlib.util

    import duckdb

    spec = importlib.util.find_spec("duckdb_extension_postgres_scanner")
    assert spec is not None, "install the bench extra"
    assert spec.origin is not None, "install the bench extra"
    place = Path(spec.origin).parent / "extensions" / f"v{duckdb.__version__}" / "postgres_scanner.duckdb_extension"
    engine = duckdb.connect(config={"autoinstall_known_extensions": False})
    engine.execute(f"LOAD '{place}'")
    engine.execute("SET TimeZone = 'UTC'")
    errors = {}
    for number in range(len(TABLES)):
        table = f"v{number}"
        try:
            engine.execute(
                f"COPY (SELECT * FROM postgres_scan('', 'public', '{table}')) TO '{directory}/{table}.parquet'"
            )
            errors[table] = ""
        except duckdb.Error as exc:
            errors[table] = str(exc)
    print(json.dumps(errors))


RIVET = """\
source: {{type: {source}, url_env: RIVET_SOURCE_URL}}
exports:
  - name: values
    table: {table}
    mode: full
    format: parquet
    destination: {{type: local, path: {out}}}
"""


def rivet(environment: dict[str, str], source: str, table: str, out: Path) -> None:
    """Export one table or collection with rivet, with its own defaults.

    Raises:
        Refused: it ended with an error, or wrote nothing.
    """
    out.mkdir()
    config = out / "rivet.yaml"
    config.write_text(RIVET.format(source=source, table=table, out=out / "data"))
    done = subprocess.run(
        [find_rivet(), "run", "--config", str(config)],
        env={**os.environ, **environment},
        cwd=out,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 or not list(out.rglob("*.parquet")):
        said = [line for line in (done.stderr + done.stdout).splitlines() if "rror" in line]
        raise Refused((said or (done.stderr + done.stdout).splitlines() or ["no words"])[0])


# -- documents ----------------------------------------------------------------------------------------------------


def by_document(ground: Ground, directory: Path) -> dict[str, Answers]:
    """Put each value into a collection of one document, and read what everybody made of it."""
    url = ground.stack.mongo.url(DATABASE)
    options: bson.CodecOptions[Any] = bson.CodecOptions(document_class=RawBSONDocument)
    found = {}
    with MongoClient[Any](url) as client:
        database = client.get_default_database()
        for number, (kind, value) in enumerate(DOCUMENTS.items()):
            body = document(element(16, "_id", int32(1)), value)
            collection = database.get_collection(f"v{number}", codec_options=options)
            collection.insert_one(RawBSONDocument(body, options))
            out = directory / f"rivet_document{number}"
            try:
                rivet({"RIVET_SOURCE_URL": url}, "mongo", f"v{number}", out)
                theirs = judge_document(body, next(out.rglob("*.parquet")))
            except Refused as exc:
                theirs = f"refused: {short(str(exc))}"
            ours = document_by_us(body, directory / f"document{number}.parquet")
            found[kind] = {"ours": ours, PEERS[0]: "no MongoDB source", PEERS[1]: theirs}
        client.drop_database(database.name)
    return found


def document_by_us(body: bytes, file: Path) -> str:
    """Take the document through our own typed columns and lake file."""
    fields = (Field("as_text", "v", Kind.TEXT), Field("as_double", "v", Kind.FLOAT8))
    policy = Policy("news_data", None, None, None, None)
    dataset = Dataset("values", policy, "mongodb", "mongodb", "t", ("_id",), Span(days=1), fields=fields)
    rows, _ = typed(RawBatch.from_documents([body]), dataset)
    columns = document_columns(dataset)
    parquet.write_parquet([rows], columns, ("_id",), file)
    (back,) = [raw for batch in parquet.read_parquet_batches(file, columns) for raw in batch[RAW_COLUMN].to_pylist()]
    return EXACT if back == body else f"changed to {back!r}"


def judge_document(body: bytes, file: Path) -> str:
    """Read rivet's document column, extended JSON, back into BSON, and compare the bytes."""
    (row,) = pq.read_table(file).to_pylist()
    text = row.get("document")
    if text is None:
        return f"changed to {short(str(row))}"
    legacy = json_util.JSONOptions(uuid_representation=bson.binary.UuidRepresentation.UNSPECIFIED)
    try:
        back = bson.encode(json_util.loads(text, json_options=legacy))
    except (BSONError, TypeError, ValueError):  # what no reader of extended JSON takes has been changed
        return f"changed to {short(text)}"
    return EXACT if back == body else f"changed to {short(text)}"


def short(text: str) -> str:
    """Cut a text for a cell of the table."""
    line = _PREFIX.sub("", " ".join(text.split()))
    return line if len(line) <= CUT else line[:CUT] + "…"


GROUPS = (Group(("fidelity_exact_kinds", "fidelity_exact_kinds_rivet"), run),)

if __name__ == "__main__":
    duckdb_child(Path(sys.argv[1]))
