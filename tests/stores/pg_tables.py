"""What the tests of COPY share: a server, tables described as the planner sees them, and the torture set."""

from __future__ import annotations

import psycopg2
from psycopg2.extensions import connection as Connection

from tiering.model import Column
from tiering.plan.columns import plan_columns

TORTURE_TYPES = """
    id bigint PRIMARY KEY, small smallint, whole integer, price numeric(18,8), wide numeric(38,10),
    amount numeric(18,2), percent numeric(5,3), free numeric, broad numeric(60,20), rounded numeric(8,-2),
    single real, double double precision, flag boolean, label text, short varchar(8), fixed char(6), raw bytea,
    uid uuid, day date, at_local timestamp, at_utc timestamptz, millis timestamptz(3), clock time, clock_tz timetz,
    span interval, doc json, bdoc jsonb, grid integer[][], texts text[], spread int4range, feeling mood, host inet,
    pair pair, "odd ""name" money
"""

TORTURE_ROWS = r"""
INSERT INTO {table} (id) VALUES (1);
INSERT INTO {table} (id, small, whole, price, wide, amount, percent, free, broad, single, double, flag) VALUES
 (2, 32767, 2147483647, 9999999999.99999999, 9999999999999999999999999999.9999999999, 9999999999999999.99, 99.999,
  123456789012345678901234567890.123456789012345678901234567890, 1e39, 'NaN', 'NaN', true),
 (3, -32768, -2147483648, -9999999999.99999999, -9999999999999999999999999999.9999999999, -9999999999999999.99,
  -99.999, '-Infinity', -1e39, '-0', '-0', false),
 (4, 0, 0, 'NaN', 'NaN', 'NaN', 'NaN', 'NaN', 'NaN', 'Infinity', '-Infinity', null),
 (5, 1, -1, 0.00000001, 0.0000000001, 0.01, 0.001, 'Infinity', 0.00000000000000000001, 1e-45, 5e-324, true),
 (6, -1, 1, -0.00000001, -0.0000000001, -0.01, -0.001, 1.00, 0, 3.4028235e38, 1.7976931348623157e308, true),
 (7, 7, 10000, 10000, 10000, 100000000, 10, 1.0, 10000, 0.1, 0.1, false),
 (8, 8, 9999, 0, 0, 0, 0, 0.000, 12345.678, 0, 0, false);
INSERT INTO {table} (id, label, short, fixed, raw, uid, feeling) VALUES
 (9223372036854775807, '', '', '', '', '00000000-0000-0000-0000-000000000000', 'sad'),
 (-9223372036854775808, 'emoji 🦀 e' || U&'\0301', 'ünïcødé', ' ab', '\x00ff00',
  'ffffffff-ffff-ffff-ffff-ffffffffffff', 'happy'),
 (20, E'tab\tline\nback\\slash"quote''', E'\\N', 'abc', '\x', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'so so'),
 (21, repeat('long', 100000), 'x', 'abcdef', decode(repeat('ab', 100000), 'hex'), null, null);
INSERT INTO {table} (id, day, at_local, at_utc, millis, clock, clock_tz, span) VALUES
 (30, 'infinity', 'infinity', 'infinity', 'infinity', '24:00', '23:59:59.999999-15:59', '1 year -1 day +0.000001 sec'),
 (31, '-infinity', '-infinity', '-infinity', '-infinity', '00:00', '00:00+15:59', '-178000000 years'),
 (32, '4713-01-01 BC', '4713-01-01 00:00 BC', '4713-01-01 00:00+00 BC', '0001-01-01 00:00+00 BC', null, null, '0'),
 (33, '5874897-12-31', '294276-12-31 23:59:59.999999', '294276-12-31 23:59:59.999999+00',
  '294247-01-10 04:00:54.776+00',
  '12:00:00.5', '12:00+00', '1 mon'),
 (34, '1970-01-01', '1969-12-31 23:59:59.999999', '1970-01-01 00:00+00', '294247-01-10 04:00:54.775+00',
  null, null, null);
INSERT INTO {table} (id, doc, bdoc, grid, texts, spread, host, pair, "odd ""name") VALUES
 (40, '{{"b": 1,  "a":1.10}}', '{{"n": 123456789012345678901234567890.5, "s": "\u00e9"}}', '{{{{1,2}},{{3,null}}}}',
  ARRAY['', null, 'NULL', '"', '\'], '[1,5)', '10.0.0.1/8', ROW(1, 'x,"y')::pair, '12.34'),
 (41, 'null', 'null', '[0:1]={{5,6}}', '{{}}', 'empty', '::1', ROW(null, '')::pair, '-0.01');
"""


def connect(url: str) -> Connection:
    return psycopg2.connect(url)


def run(url: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements in one transaction; give the rows of the last, if it has some."""
    connection = connect(url)
    try:
        with connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        connection.close()


def describe(url: str, table: str) -> tuple[Column, ...]:
    rows = run(
        url,
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute "
        f"WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
    )
    return plan_columns([(str(name), str(pg_type), bool(is_not_null)) for name, pg_type, is_not_null in rows])


def make_torture(url: str, table: str = "torture") -> tuple[Column, ...]:
    run(
        url,
        "DROP TABLE IF EXISTS " + table,
        "DROP TYPE IF EXISTS mood",
        "DROP TYPE IF EXISTS pair",
        "CREATE TYPE mood AS ENUM ('sad', 'so so', 'happy')",
        "CREATE TYPE pair AS (x integer, y text)",
        f"CREATE TABLE {table} ({TORTURE_TYPES})",
        TORTURE_ROWS.format(table=table),
    )
    return describe(url, table)


def differences(url: str, one: str, other: str) -> int:
    """Count the rows that only one of two tables has, by every value's text: `=` would take -0 for 0."""
    (row,) = run(
        url,
        f"SELECT (SELECT count(*) FROM (SELECT t::text FROM {one} t EXCEPT ALL SELECT t::text FROM {other} t) x)"
        f" + (SELECT count(*) FROM (SELECT t::text FROM {other} t EXCEPT ALL SELECT t::text FROM {one} t) x)",
    )
    return int(str(row[0]))


BARS = """
    CREATE TABLE {table} (symbol text, market text, timeframe text, ts timestamptz, open numeric(18,8),
      high numeric(18,8), low numeric(18,8), close numeric(18,8), volume bigint, amount numeric(18,2), source text,
      PRIMARY KEY (symbol, market, timeframe, ts, source));
    INSERT INTO {table}
    SELECT '60' || s || '.SH', (ARRAY['CN','HK','US'])[1 + s % 3], '1m',
           timestamptz '2024-01-02 01:30+00' + m * interval '1 minute', p, p + 0.1, p - 0.1, p + 0.05, s * 100 + m,
           p * (s * 100 + m), 'seed'
    FROM (SELECT s, m, (50 + s + sin(m * 0.01))::numeric(18,4) AS p
          FROM generate_series(1, {minutes}) AS m, generate_series(1, {symbols}) AS s) AS prices
"""
BARS_KEY = ("symbol", "market", "timeframe", "ts", "source")


def make_bars(url: str, table: str, symbols: int, minutes: int) -> tuple[Column, ...]:
    run(url, f"DROP TABLE IF EXISTS {table}", BARS.format(table=table, symbols=symbols, minutes=minutes))
    return describe(url, table)
