"""`python -m tests.bench.child JOB`: one side of a comparison in a process of its own. Arguments: JSON on stdin.

Prints one JSON line: seconds of the work itself (imports and compiled code loaded before), and the peak memory of
the whole process. Why VmHWM and not ru_maxrss: that one begins with what the parent had when it started us.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Found = dict[str, Any]


def export(values: dict[str, str], table: str, out: str) -> Found:
    """Our copy stage, as ops/export.py does it: heap partition to sorted Parquet in a local file."""
    from tests.bench.world import YEAR, opened
    from tiering.plan.columns import plan_columns
    from tiering.stores import parquet, pgcopy, tables

    pgcopy.warm_up()
    with opened(settings_of(values), YEAR) as (stores, dataset), Path(out).open("w+b") as file:
        with stores.warm.transaction("describe", table) as connection:
            columns = plan_columns(tables.described_columns(connection, table))
        began = time.perf_counter()
        batches = pgcopy.read_parallel(lambda: stores.warm.connect("bench"), tuple(table.split(".")), columns)
        written = parquet.write_parquet(batches, columns, dataset.sort, file, scratch=stores.scratch_dir)
        return {
            "seconds": time.perf_counter() - began,
            "rows": written.row_count,
            "bytes": written.size_bytes,
        }


def duckdb(environment: dict[str, str], table: str, out: str) -> Found:
    """DuckDB's own way from PostgreSQL to Parquet, with its defaults."""
    import importlib.util

    import duckdb as engine

    spec = importlib.util.find_spec("duckdb_extension_postgres_scanner")
    assert spec is not None, "install the bench extra"
    assert spec.origin is not None, "install the bench extra"
    place = Path(spec.origin).parent / "extensions" / f"v{engine.__version__}" / "postgres_scanner.duckdb_extension"
    os.environ.update(environment)  # its libpq reads the password from here
    connection = engine.connect(config={"autoinstall_known_extensions": False})
    connection.execute(f"LOAD '{place}'")
    schema, name = table.split(".")
    began = time.perf_counter()
    (rows,) = connection.execute(
        f"COPY (SELECT * FROM postgres_scan('', '{schema}', '{name}')) TO '{out}' (FORMAT parquet, COMPRESSION zstd)"
    ).fetchall()[0]
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "rows": rows, "bytes": Path(out).stat().st_size}


def move(values: dict[str, str]) -> Found:
    """The whole verified move of the one warm unit: plan, seal, check, copy, upload, read back, compare, commit."""
    from tests.bench.world import YEAR, begin, carry_out, opened
    from tiering.model import Transition
    from tiering.ops import checkpoints
    from tiering.stores import pgcopy

    pgcopy.warm_up()
    checkpoints.prepare()
    with opened(settings_of(values), YEAR) as (stores, dataset):
        began = time.perf_counter()
        (receipt,) = carry_out(stores, begin(stores, dataset, Transition.WARM_TO_COLD))
        seconds = time.perf_counter() - began
    stages = dict(receipt.stage_seconds)
    return {"seconds": seconds, "rows": receipt.row_count, "bytes": receipt.bytes_after, "stages": stages}


def documents(values: dict[str, str]) -> Found:
    """Move the oldest due unit of news hot to warm and on to cold: the whole protocol, each way."""
    from tests.bench.world import opened_documents
    from tiering.model import Transition
    from tiering.ops import checkpoints

    checkpoints.prepare()
    with opened_documents(settings_of(values)) as (stores, dataset):
        return {
            "warm": _move_documents(stores, dataset, Transition.HOT_TO_WARM),
            "cold": _move_documents(stores, dataset, Transition.WARM_TO_COLD),
        }


def _move_documents(stores: Any, dataset: Any, transition: Any) -> Found:
    """Time one move: until its copy is the authoritative one, and the removal of the source after that."""
    from tests.bench.world import NOW, OWNER, begin
    from tiering.ops import lifecycle

    began = time.perf_counter()
    (move_id,) = begin(stores, dataset, transition, NOW, 1)
    planned = time.perf_counter()
    for step in (lifecycle.seal, lifecycle.check, lifecycle.copy, lifecycle.verify):
        step(stores, move_id, NOW, OWNER)
    verified = time.perf_counter()
    lifecycle.commit(stores, move_id, NOW, OWNER)  # and settle, which its own time in the ledger leaves out
    done = time.perf_counter()
    receipt = lifecycle.receipt(stores, move_id)
    assert receipt.state == "COMMITTED", receipt
    stages = dict(receipt.stage_seconds)
    return {
        "committed": verified - planned + stages["commit"],
        "settled": done - verified - stages["commit"],
        "whole": done - began,
        "stages": stages,
    }


def documents_copy(values: dict[str, str], days: int) -> Found:
    """The copy stages alone, as the moves do them: a unit into another collection, and into a Parquet file."""
    import tempfile
    from datetime import timedelta

    from tests.bench.world import NOW, opened_documents
    from tiering.ops import documents as ops
    from tiering.ops.document_pipe import ahead, behind
    from tiering.plan.spans import unit_of
    from tiering.stores import parquet
    from tiering.stores.bson_typed import document_columns, typed

    with opened_documents(settings_of(values)) as (stores, dataset):
        from tiering.model import Unit

        source = ops.hot(stores, dataset)
        unit = Unit(dataset.name, *unit_of(NOW + timedelta(days=days), dataset.unit))
        began = time.perf_counter()
        tally = ops.Tally()
        read = tally.passing(ahead(source.read(unit)))
        for _ in behind(lambda batch: source.documents.insert_missing("copy", batch), read):
            pass
        source.documents.drop("copy")
        with tempfile.TemporaryFile(dir=stores.scratch_dir) as file:
            rows = (typed(batch, dataset)[0] for batch in ops.Tally().passing(source.read(unit)))
            parquet.write_parquet(rows, document_columns(dataset), dataset.key, file, scratch=stores.scratch_dir)
        return {"seconds": time.perf_counter() - began, "rows": tally.fingerprint.row_count}


def rivet(program: str, environment: dict[str, str], table: str, directory: str) -> Found:
    """`rivet run --validate`: the table to Parquet in a local directory, its own defaults for that."""
    config = Path(directory) / "rivet.yaml"
    config.write_text(RIVET.format(table=table, directory=directory))
    began = time.perf_counter()
    told = _run([program, "run", "--config", str(config), "--validate"], environment, directory)
    seconds = time.perf_counter() - began
    files = list(Path(directory).rglob("*.parquet"))
    import pyarrow.parquet as pq

    rows = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
    assert rows, f"rivet wrote no rows:\n{told}"
    return {"seconds": seconds, "rows": rows, "bytes": sum(file.stat().st_size for file in files)}


RIVET = """\
source:
  type: postgres
  url_env: RIVET_SOURCE_URL
exports:
  - name: bars
    table: {table}
    mode: full
    format: parquet
    compression: zstd
    destination:
      type: local
      path: {directory}/out
"""


def pandas(url: str, table: str, rows: int, out: str) -> Found:
    """Chunked pandas.read_sql into one Parquet file: what people write first."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq
    import sqlalchemy

    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg2://", 1))
    began = time.perf_counter()
    writer, count = None, 0
    with engine.connect().execution_options(stream_results=True, max_row_buffer=100_000) as connection:
        for frame in pd.read_sql(sqlalchemy.text(f"SELECT * FROM {table} LIMIT {rows}"), connection, chunksize=100_000):
            part = pa.Table.from_pandas(frame, preserve_index=False)
            if writer is None:
                # Each chunk's decimals would be as wide as its widest value, and no file may mix them.
                wide = [f.with_type(pa.decimal128(18, f.type.scale)) if pa.types.is_decimal(f.type) else f
                        for f in part.schema]  # fmt: skip
                writer = pq.ParquetWriter(out, pa.schema(wide), compression="zstd")
            writer.write_table(part.cast(writer.schema))
            count += len(frame)
    if writer is not None:
        writer.close()
    return {"seconds": time.perf_counter() - began, "rows": count, "bytes": Path(out).stat().st_size}


def pump(source: str, source_table: str, target: str, target_table: str) -> Found:
    """Our streamed hand-over between two databases, commit included."""
    import psycopg2

    from tiering.plan.columns import plan_columns
    from tiering.stores import pgcopy, tables
    from tiering.stores.postgres import identifier

    pgcopy.warm_up()
    reading, writing = psycopg2.connect(source), psycopg2.connect(target)
    columns = plan_columns(tables.described_columns(reading, source_table))
    began = time.perf_counter()
    rows, size = pgcopy.pump(reading, identifier(source_table), writing, identifier(target_table), columns)
    writing.commit()
    return {"seconds": time.perf_counter() - began, "rows": rows, "bytes": size}


def pipe(program: str, source: dict[str, str], source_table: str, target: dict[str, str], target_table: str) -> Found:
    """`psql | psql`: binary COPY through a pipe of the kernel."""
    quiet = [program, "-X", "-v", "ON_ERROR_STOP=1", "-c"]
    began = time.perf_counter()
    with subprocess.Popen(
        [*quiet, f"COPY {source_table} TO STDOUT (FORMAT binary)"], env={**os.environ, **source}, stdout=subprocess.PIPE
    ) as out:
        told = subprocess.run(
            [*quiet, f"COPY {target_table} FROM STDIN (FORMAT binary)"],
            env={**os.environ, **target},
            stdin=out.stdout,
            capture_output=True,
            text=True,
            check=True,
        )
    seconds = time.perf_counter() - began
    assert out.returncode == 0, "psql could not read"
    return {"seconds": seconds, "rows": int(told.stdout.split()[-1])}


def settings_of(values: dict[str, str]) -> Any:
    """Build the settings from plain values, and from nothing else."""
    from tiering.settings import Settings

    return Settings(_env_file=None, **values)  # type: ignore[arg-type,call-arg]


def _run(arguments: list[str], environment: dict[str, str], directory: str) -> str:
    done = subprocess.run(
        arguments, env={**os.environ, **environment}, cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def peak_mb() -> float:
    """The most memory that this process, or one that it ran, ever had resident."""
    own = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert own is not None, "Linux says it"
    # Our children begin small, as we are: nothing big has been imported where we run one.
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(int(own[1]), children) / 1024


JOBS: dict[str, Callable[..., Found]] = {
    job.__name__: job for job in (export, duckdb, move, documents, documents_copy, rivet, pandas, pump, pipe)
}


def main() -> None:
    """Do one job and print what it took."""
    found = JOBS[sys.argv[1]](**json.load(sys.stdin))
    print(json.dumps(found | {"rss_mb": peak_mb()}))


if __name__ == "__main__":
    main()
