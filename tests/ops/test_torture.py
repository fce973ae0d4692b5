"""Every value that a format likes to bend, through every tier and back, bit for bit."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

import infra.sql
from tests.ops.world import NOW, POLICIES, World, days_ago
from tiering.model import State, Tier, Transition
from tiering.ops import install, lifecycle
from tiering.ops.export import fetched
from tiering.plan.policies import parse_policies
from tiering.settings import Settings
from tiering.stores import parquet, pgcopy
from tiering.stores.opening import open_stores
from tiering.stores.postgres import execute, fetch, identifier

DATASET = """
  torture:
    class: market_data
    time_column: ts
    key: [id, ts]
    unit: 1d
"""

TYPES = "CREATE TYPE public.mood AS ENUM ('sad', 'ok', 'very happy')"
TABLE = """CREATE TABLE hot.torture (
    id integer NOT NULL, ts timestamptz NOT NULL,
    free numeric, fixed numeric(12, 4), wide numeric(38, 10), f8 float8, f4 float4, i2 smallint, i8 bigint,
    day date, local timestamp, instant timestamptz, clock time, span interval,
    grid integer[], words text[], doc jsonb, plain json, note text, short varchar(8), padded char(5),
    bytes bytea, ident uuid, feeling public.mood, flag boolean, "Odd %s ""name" int4range,
    PRIMARY KEY (id, ts)) PARTITION BY RANGE (ts)"""

ROWS = (
    "'NaN', 'NaN', 'NaN', 'NaN', 'NaN', 32767, 9223372036854775807, 'infinity', 'infinity', 'infinity', "
    "'24:00', '178000000 years', '{}', '{}', '{}', '{}', '', '', '', '', "
    "'00000000-0000-0000-0000-000000000000', 'sad', true, 'empty'",
    "'Infinity', '99999999.9999', '9999999999999999999999999999.9999999999', 'Infinity', 'Infinity', -32768, "
    "-9223372036854775808, '-infinity', '-infinity', '-infinity', '00:00', '-178000000 years', "
    '\'{{1,2},{3,NULL}}\', \'{NULL,"","NULL","a,b","{}"}\', \'{"big": 123456789012345678901234567890.12300}\', '
    "'{\"a\":  1, \"a\": 2}', E'tab\\tnew\\nline\\\\back', 'é', 'x', '\\x00ff0a5c', "
    "'ffffffff-ffff-ffff-ffff-ffffffffffff', 'very happy', false, '(,)'",
    "'-Infinity', '-99999999.9999', '-0.0000000001', '-Infinity', '-Infinity', 0, 0, '4713-01-01 BC', "
    "'4713-01-01 00:00:00 BC', '0044-03-15 12:00:00+00 BC', '12:34:56.789012', "
    "'1 year -2 mons 3 days -04:05:06.789', '[0:1]={7,8}', '{{a,b},{c,d}}', 'null', 'null', "
    "'💹🇨🇳 e\u0301 \u200d', '12345678', '     ', '\\x', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'ok', NULL, '[1,5)'",
    "'1.000', '-0.0', '0', '-0', '-0', -1, -1, '5874897-12-31', '294276-12-31 23:59:59.999999', "
    "'294276-12-31 23:59:59.999999+00', '00:00:00.000001', '00:00', '{{{1}}}', '{x}', '[1, {\"b\": [null, true]}]', "
    "'[ ]', 'NULL', 'NULL', 'NULL', '\\x4e554c4c', NULL, NULL, NULL, NULL",
    "'1e-1000', '0.0001', '1', '5e-324', '1e-45', 1, 1, '0001-01-01', '0001-01-01', '0001-01-01+00', NULL, "
    "'1 mon', '{NULL}', '{NULL}', '\"x\"', '1e400', ' ', ' ', ' ', NULL, NULL, NULL, NULL, NULL",
    "'123456789012345678901234567890123456789012345678901234567890.123456789', '1', '-1', "
    "'1.7976931348623157e308', '3.4028235e38', 2, 2, '9999-12-31', '9999-12-31 23:59:59.999999', "
    "'10000-01-01+00', NULL, NULL, NULL, NULL, '1e400', NULL, '\\N', '\\.', NULL, NULL, NULL, NULL, NULL, NULL",
    ", ".join(["NULL"] * 24),
    "'1.0000', '1.5', '1.5', '0.1', '0.1', 3, 3, '2024-02-29', '1969-12-31 23:59:59.999999', '1970-01-01+00', NULL, "
    "'24:00', NULL, NULL, '{\"n\": -0.0, \"m\": 1.10}', NULL, repeat('long ', 20000), NULL, NULL, "
    "decode(repeat('00ff', 20000), 'hex'), NULL, NULL, NULL, NULL",
)
"""Values in the order of the columns after `ts`."""


@contextmanager
def tortured(settings: Settings) -> Iterator[World]:
    """Open stores with a dataset of every awkward type, its rows 30 days old and one row of today."""
    policies = parse_policies(POLICIES.read_text() + DATASET, str(POLICIES))
    with open_stores(settings, policies) as stores:
        install.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
        for database in {stores.hot, stores.warm}:
            with database.transaction("create", "type") as connection:
                execute(connection, TYPES)
        with stores.hot.transaction("create", "table") as connection:
            execute(connection, TABLE)
        dataset = lifecycle.dataset_named(stores, "torture")
        install.install_dataset(stores, dataset)
        with stores.hot.transaction("insert", "rows") as connection:
            for number, values in enumerate(ROWS, start=1):
                instant = sql.Literal(days_ago(30) + timedelta(hours=number)).as_string(connection)
                execute(connection, f"INSERT INTO hot.torture VALUES ({number}, {instant}, {values})")
        world = World(stores, dataset)
        add_young_row(world, NOW)
        keep_original(world)
        yield world


def add_young_row(world: World, at: datetime) -> None:
    """Let time pass: ages count from the newest row."""
    with world.stores.hot.transaction("insert", "a young row") as connection:
        execute(connection, "INSERT INTO hot.torture (id, ts) VALUES (1000, %s)", (at,))


def keep_original(world: World) -> None:
    """Keep the rows in a table of the warm database, carried there by psycopg2's own COPY."""
    text = io.BytesIO()
    with world.stores.hot.transaction("keep", "original") as connection, connection.cursor() as cursor:
        cursor.copy_expert("COPY (SELECT * FROM hot.torture WHERE id < 1000) TO STDOUT (FORMAT binary)", text)
    text.seek(0)
    with world.stores.warm.transaction("keep", "original") as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE public.original (LIKE warm.torture)")
        cursor.copy_expert("COPY public.original FROM STDIN (FORMAT binary)", text)
        assert fetch(connection, "SELECT count(*) FROM public.original") == [(len(ROWS),)]


def differences(connection: Connection, relation: str) -> list[tuple[object, ...]]:
    """Compare with the original both ways, by value and by bytes: `=` takes 1.0 for 1.00, and -0 for 0."""
    found = []
    whole = 'SELECT t::text COLLATE "C", float8send(f8), float4send(f4) FROM {} t WHERE id < 1000'
    comparable = "SELECT id, ts, free, fixed, wide, f8, f4, day, instant, span, grid, words, doc, bytes FROM {} "
    comparable += "WHERE id < 1000"
    for selected in (whole, comparable):
        for one, other in ((relation, "public.original"), ("public.original", relation)):
            query = sql.SQL("{} EXCEPT ALL {}").format(
                *(sql.SQL(selected).format(identifier(name)) for name in (one, other))
            )
            found += fetch(connection, query)
    return found


@pytest.mark.parametrize("mode", ["one database", "two databases"])
def test_torture_values_come_back_from_every_tier_unchanged(mode: str, request: pytest.FixtureRequest) -> None:
    fixture = "fresh_settings" if mode == "one database" else "fresh_two_database_settings"
    with tortured(request.getfixturevalue(fixture)) as world:
        stores, later = world.stores, NOW + timedelta(days=3 * 365)
        for transition, at in (
            (Transition.HOT_TO_WARM, NOW),
            (Transition.COMPRESS, NOW),
            (Transition.WARM_TO_COLD, later),
        ):
            if at == later:
                add_young_row(world, later)
            receipts = [r for r in world.run(transition, at=at) if r.row_count == len(ROWS)]
            assert [r.state for r in receipts] == [State.COMMITTED], receipts
            if transition is not Transition.WARM_TO_COLD:
                with stores.warm.transaction("compare", transition) as connection:
                    assert differences(connection, "live.torture") == [], transition

        (cold,) = [u for u in stores.ledger.units("torture") if u.tier is Tier.COLD and u.row_count == len(ROWS)]
        columns = install.install_dataset(stores, world.dataset)
        with stores.warm.transaction("bring back", "torture") as connection:
            execute(connection, "CREATE TABLE public.back (LIKE warm.torture)")
            with fetched(stores, cold) as file:
                batches = parquet.read_parquet_batches(file, columns)  # type: ignore[arg-type]
                pgcopy.write_rows(connection, sql.Identifier("public", "back"), columns, batches)
            assert differences(connection, "public.back") == []


def test_a_late_correction_of_torture_values_merges_in_the_cold_tier(fresh_two_database_settings: Settings) -> None:
    with tortured(fresh_two_database_settings) as world:
        add_young_row(world, NOW + timedelta(days=3 * 365))
        later = NOW + timedelta(days=3 * 365)
        world.run(Transition.HOT_TO_WARM, at=later)
        world.run(Transition.WARM_TO_COLD, at=later)
        at = days_ago(30) + timedelta(hours=1)
        with world.stores.hot.transaction("correct", "a row") as connection:
            execute(connection, "INSERT INTO hot.torture (id, ts, free, f8) VALUES (1, %s, 'NaN', '-0')", (at,))
        with world.stores.warm.transaction("correct", "the original") as connection:
            execute(connection, "DELETE FROM public.original WHERE id = 1")
            execute(connection, "INSERT INTO public.original (id, ts, free, f8) VALUES (1, %s, 'NaN', '-0')", (at,))
        (receipt,) = world.run(Transition.MERGE, at=later)
        assert receipt.state is State.COMMITTED
        (cold,) = [u for u in world.stores.ledger.units("torture") if u.unit.generation == 2]
        columns = install.install_dataset(world.stores, world.dataset)
        with world.stores.warm.transaction("bring back", "torture") as connection:
            execute(connection, "CREATE TABLE public.back (LIKE warm.torture)")
            with fetched(world.stores, cold) as file:
                batches = parquet.read_parquet_batches(file, columns)  # type: ignore[arg-type]
                pgcopy.write_rows(connection, sql.Identifier("public", "back"), columns, batches)
            assert differences(connection, "public.back") == []
