"""Hot → warm between two databases: our pump beside a `psql | psql` binary COPY pipe into an identical table."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.ground import BIG, Ground, libpq_environment
from tests.bench.rows import Group, Row, alternate, higher

TARGET = "bench_pump"
TABLE = "public.arrived"


def run(ground: Ground) -> Iterator[Row]:
    """Stream the same table both ways, each time into an empty table with the same primary key."""
    table = ground.big()
    ground.create(TARGET)
    ground.say("streamed hot to warm against psql | psql")
    source, target = ground.stack.postgres.url(BIG), ground.stack.postgres.url(TARGET)
    program = str(ground.stack.postgres.bin / "psql")

    def pump() -> float:
        _empty(ground)
        found = ground.child("pump", source=source, source_table=table, target=target, target_table=TABLE)
        return _rate(ground, found)

    def pipe() -> float:
        _empty(ground)
        sides = {"source": libpq_environment(source), "target": libpq_environment(target)}
        found = ground.child("pipe", program=program, source_table=table, target_table=TABLE, **sides)
        return _rate(ground, found)

    pairs = alternate(pump, pipe, ground.repeats)
    note = "binary COPY into a table with its primary key, commit included; our imports excluded"
    yield higher("hot_to_warm_stream_rows_per_s", "rows/s", pairs, "psql | psql", 0.8, note)
    ground.drop(TARGET)


def _empty(ground: Ground) -> None:
    ground.admin(f"DROP TABLE IF EXISTS {TABLE}", TARGET)
    ground.admin(
        f"""CREATE TABLE {TABLE} (
            symbol text NOT NULL, market text NOT NULL, timeframe text NOT NULL, ts timestamptz NOT NULL,
            open numeric(18, 8), high numeric(18, 8), low numeric(18, 8), close numeric(18, 8),
            volume bigint, amount numeric(18, 2), source text NOT NULL,
            PRIMARY KEY (symbol, market, timeframe, ts, source))""",
        TARGET,
    )
    ground.settle()


def _rate(ground: Ground, found: dict[str, float]) -> float:
    assert found["rows"] == ground.rows, f"{found['rows']} rows arrived, not {ground.rows}"
    return found["rows"] / found["seconds"]


GROUPS = (Group(("hot_to_warm_stream_rows_per_s",), run),)
