"""Warm → cold beside its peers: the copy stage, the whole verified move, memory, bytes and what checking costs."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.ground import BIG, Ground, as_values, libpq_environment
from tests.bench.rows import Group, Row, alternate, at_most, higher, lower

TRIPLE = "bench_triple"
RSS_MB_MAX = 400
PANDAS_ROWS_MAX = 300_000
"""Enough for a rate: the whole table would take longer than everything else together."""

INSIDE = "timed inside the process: interpreter start and imports excluded on both sides"
Found = dict[str, Any]
_numbers = itertools.count(1)


def copy_stage(ground: Ground) -> Iterator[Row]:
    """The copy alone, beside DuckDB's."""
    table = ground.big()
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
    ours_peak, peer_peak = (median(pair[side]["rss_mb"] for pair in pairs) for side in (0, 1))
    note = "peak of the whole process of the copy stage, interpreter and libraries included"
    yield at_most("export_peak_rss_mb", "MB", ours_peak, RSS_MB_MAX, note, peer_peak, "DuckDB COPY")


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


def whole_move(ground: Ground) -> Iterator[Row]:
    """Plan to commit, beside tools that export and no more."""
    table = ground.big()
    moves, rivets = _against_rivet(ground, table)
    pairs = list(zip(moves, rivets, strict=True))
    stages = {stage: median(found["stages"][stage] for found in moves) for stage in moves[0]["stages"]}
    ground.say("seconds of the whole move: " + ", ".join(f"{stage} {took:.2f}" for stage, took in stages.items()))
    note = "plan to commit with upload, read-back and comparison; rivet writes a local file; timed inside the process"
    yield higher("verified_move_rows_per_s", "rows/s", _rates(pairs), "rivet run --validate", 3.0, note)
    whole = [(o["rows"] / o["process_seconds"], p["rows"] / p["process_seconds"]) for o, p in pairs]
    note = "the same with interpreter start, imports and loading of compiled code: what one lone run costs"
    yield higher("verified_move_rows_per_s_whole_process", "rows/s", whole, "rivet run --validate", None, note)
    shares = [(found["stages"]["check"], found["stages"]["copy"]) for found in moves]
    note = "the checkpoint at SEALED beside the copy it guards, in the whole move"
    yield lower("checkpoint_share", "s", shares, "our copy stage", 0.5, note)
    ours, peer = median(found["rss_mb"] for found in moves), _duckdb_memory(ground, BIG, table)
    note = "peak of the whole process that does the whole verified move, Great Expectations included"
    yield at_most("move_peak_rss_mb", "MB", ours, None, note, peer, "DuckDB COPY")
    yield _against_pandas(ground, table, moves)


def _against_pandas(ground: Ground, table: str, moves: list[Found]) -> Row:
    ground.say("chunked pandas.read_sql")
    out, rows = str(ground.directory / "pandas.parquet"), min(ground.rows, PANDAS_ROWS_MAX)
    url = ground.stack.postgres.url(BIG)
    found = [ground.child("pandas", url=url, table=table, rows=rows, out=out) for _ in range(ground.repeats)]
    pairs = _rates(list(zip(moves, found, strict=True)))
    note = f"the whole verified move beside chunks of 100,000 rows to Parquet, rate over {rows:,} rows; {INSIDE}"
    return higher("verified_move_rows_per_s_pandas", "rows/s", pairs, "pandas.read_sql", None, note)


def triple_memory(ground: Ground) -> Iterator[Row]:
    """Memory once more on a unit of three times as many rows: it must not grow with them."""
    table = ground.warm_database(TRIPLE, 3 * ground.rows)
    ground.say("memory of the copy stage and of the whole move at 3x rows")
    peer = _duckdb_memory(ground, TRIPLE, table)
    values, out = _access(ground, TRIPLE)[0], ground.directory / "ours.parquet"
    copied = ground.child("export", values=values, table=table, out=str(out))
    note = f"{copied['rows']:,} rows"
    yield at_most("export_peak_rss_mb_3x", "MB", copied["rss_mb"], RSS_MB_MAX, note, peer, "DuckDB COPY")
    moved = move_once(ground, TRIPLE)
    note += ", whole verified move, Great Expectations included"
    yield at_most("move_peak_rss_mb_3x", "MB", moved["rss_mb"], None, note, peer, "DuckDB COPY")
    ground.drop(TRIPLE)


def _duckdb_memory(ground: Ground, name: str, table: str) -> float:
    out = str(ground.directory / "duckdb.parquet")
    found = ground.child("duckdb", environment=_access(ground, name)[1], table=table, out=out)
    return float(found["rss_mb"])


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


WHOLE_MOVE = Group(
    (
        "verified_move_rows_per_s",
        "verified_move_rows_per_s_whole_process",
        "checkpoint_share",
        "move_peak_rss_mb",
        "verified_move_rows_per_s_pandas",
    ),
    whole_move,
)
GROUPS = (
    Group(("export_rows_per_s", "parquet_bytes", "export_peak_rss_mb"), copy_stage),
    WHOLE_MOVE,
    Group(("export_peak_rss_mb_3x", "move_peak_rss_mb_3x"), triple_memory),
)
