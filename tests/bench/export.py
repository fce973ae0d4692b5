"""Warm → cold beside its peers: the copy stage, the whole verified move, memory, bytes and what checking costs."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.ground import Ground, as_values, libpq_environment
from tests.bench.rows import Row, alternate, at_most, higher, lower

BIG, TRIPLE = "bench_big", "bench_triple"
RSS_MB_MAX = 400
PANDAS_ROWS_MAX = 300_000
"""Enough for a rate: the whole table would take longer than everything else together."""

INSIDE = "timed inside the process: interpreter start and imports excluded on both sides"
NAMES = (
    "export_rows_per_s",
    "parquet_bytes",
    "verified_move_rows_per_s",
    "verified_move_rows_per_s_pandas",
    "verified_move_rows_per_s_whole_process",
    "checkpoint_share",
    "export_peak_rss_mb",
    "export_peak_rss_mb_3x",
)

Found = dict[str, Any]
_numbers = itertools.count(1)


def run(ground: Ground) -> Iterator[Row]:
    """Measure on one warm unit of all the rows, and memory once more on one of three times as many."""
    table = ground.warm_database(BIG, ground.rows)
    yield from _copy_stage(ground, table)
    moves, rivets = _against_rivet(ground, table)
    yield from _moves(ground, moves, rivets)
    yield _against_pandas(ground, table, moves)
    yield from _memory(ground, table, moves)
    ground.drop(BIG)


def _copy_stage(ground: Ground, table: str) -> Iterator[Row]:
    ground.say("copy stage against DuckDB")
    values, environment = _access(ground, BIG)
    ours_file, peer_file = str(ground.directory / "ours.parquet"), str(ground.directory / "duckdb.parquet")
    pairs = alternate(
        lambda: ground.child("export", values=values, table=table, out=ours_file),
        lambda: ground.child("duckdb", environment=environment, table=table, out=peer_file),
        ground.repeats,
    )
    _demand_rows(ground, pairs)
    note = f"heap partition to Parquet in a local file, ours sorted; {INSIDE}"
    yield higher("export_rows_per_s", "rows/s", _rates(pairs), "DuckDB COPY", 1.0, note)
    sizes = [(ours["bytes"], peer["bytes"]) for ours, peer in pairs]
    yield lower("parquet_bytes", "bytes", sizes, "DuckDB COPY", 0.9, "the same rows, zstd both")


def _against_rivet(ground: Ground, table: str) -> tuple[list[Found], list[Found]]:
    ground.say("whole verified move against rivet --validate")
    _, environment = _access(ground, BIG)
    source = {"RIVET_SOURCE_URL": ground.stack.postgres.url(BIG)}
    program = find_rivet()
    out = ground.directory / "rivet"

    def rivet() -> Found:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        found = ground.child(
            "rivet", program=program, environment=environment | source, table=table, directory=str(out)
        )
        shutil.rmtree(out)
        return found

    pairs = alternate(lambda: move_once(ground, BIG), rivet, ground.repeats)
    _demand_rows(ground, pairs)
    return [ours for ours, _ in pairs], [peer for _, peer in pairs]


def _moves(ground: Ground, moves: list[Found], rivets: list[Found]) -> Iterator[Row]:
    pairs = list(zip(moves, rivets, strict=True))
    note = "plan to commit with upload, read-back and comparison; rivet writes a local file; timed inside the process"
    yield higher("verified_move_rows_per_s", "rows/s", _rates(pairs), "rivet run --validate", 3.0, note)
    whole = [(o["rows"] / o["process_seconds"], p["rows"] / p["process_seconds"]) for o, p in pairs]
    note = "the same with interpreter start, imports and loading of compiled code: what one lone run costs"
    yield higher("verified_move_rows_per_s_whole_process", "rows/s", whole, "rivet run --validate", None, note)
    stages = [(found["stages"]["check"], found["stages"]["copy"]) for found in moves]
    note = "the checkpoint at SEALED beside the copy it guards, in the whole move"
    yield lower("checkpoint_share", "s", stages, "our copy stage", 0.5, note)


def _against_pandas(ground: Ground, table: str, moves: list[Found]) -> Row:
    ground.say("chunked pandas.read_sql")
    out, rows = str(ground.directory / "pandas.parquet"), min(ground.rows, PANDAS_ROWS_MAX)
    url = ground.stack.postgres.url(BIG)
    found = [ground.child("pandas", url=url, table=table, rows=rows, out=out) for _ in range(ground.repeats)]
    pairs = _rates(list(zip(moves, found, strict=True)))
    note = f"the whole verified move beside chunks of 100,000 rows to Parquet, rate over {rows:,} rows; {INSIDE}"
    return higher("verified_move_rows_per_s_pandas", "rows/s", pairs, "pandas.read_sql", None, note)


def _memory(ground: Ground, table: str, moves: list[Found]) -> Iterator[Row]:
    ground.say("memory of whole processes")
    out = str(ground.directory / "duckdb.parquet")
    peer = ground.child("duckdb", environment=_access(ground, BIG)[1], table=table, out=out)
    ours = median(found["rss_mb"] for found in moves)
    note = "peak of the whole process that does the whole verified move, Great Expectations included"
    yield at_most("export_peak_rss_mb", "MB", ours, RSS_MB_MAX, note, peer["rss_mb"], "DuckDB COPY")
    triple = ground.warm_database(TRIPLE, 3 * ground.rows)
    moved = move_once(ground, TRIPLE)
    peer = ground.child("duckdb", environment=_access(ground, TRIPLE)[1], table=triple, out=out)
    note = f"{moved['rows']:,} rows"
    yield at_most("export_peak_rss_mb_3x", "MB", moved["rss_mb"], RSS_MB_MAX, note, peer["rss_mb"], "DuckDB COPY")
    ground.drop(TRIPLE)


def move_once(ground: Ground, template: str) -> Found:
    """Move the warm unit of a fresh copy of a database."""
    name = f"bench_move_{next(_numbers)}"
    settings = ground.create(name, template)
    ground.settle()
    found = ground.child("move", values=as_values(settings))
    ground.drop(name)
    return found


def find_rivet() -> str:
    """Find rivet's one program: beside our interpreter, else on PATH."""
    beside = Path(sys.executable).with_name("rivet")
    found = str(beside) if beside.exists() else shutil.which("rivet")
    if found is None:
        raise FileNotFoundError("rivet is not installed: pip install '.[bench]'")
    return found


def _access(ground: Ground, name: str) -> tuple[dict[str, str], dict[str, str]]:
    return as_values(ground.place(name)), libpq_environment(ground.stack.postgres.url(name))


def _rates(pairs: list[tuple[Found, Found]]) -> list[tuple[float, float]]:
    return [(ours["rows"] / ours["seconds"], peer["rows"] / peer["seconds"]) for ours, peer in pairs]


def _demand_rows(ground: Ground, pairs: list[tuple[Found, Found]]) -> None:
    """A side that lost rows on the way has no speed."""
    counts = {found["rows"] for pair in pairs for found in pair}
    assert counts == {ground.rows}, f"rows written: {counts}, not {ground.rows}"
