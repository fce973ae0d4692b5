"""Look into a restored PostgreSQL server: every relation read, every B-tree held to its table, our own tables counted.

Uses amcheck where the server has it. Where it has not (packaged servers come without), the same question is asked by
plain SQL: does walking an index in its order find as many rows, in order, as reading the table does?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg2
from psycopg2 import sql
from pydantic import SecretStr

from tiering.stores.pg_tools import parse_lsn
from tiering.stores.postgres import execute, fetch, mapped

_RELATIONS = """
    SELECT c.oid, n.nspname, c.relname, c.relkind
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm', 't', 'S') AND c.relpersistence = 'p'
    ORDER BY c.oid"""

# Whole B-trees over plain columns: what a forced index scan can be asked of without an expression's own meaning.
_INDEXES = """
    SELECT n.nspname, t.relname, i.relname, a.attname
    FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
    JOIN pg_namespace n ON n.oid = t.relnamespace JOIN pg_am m ON m.oid = i.relam
    JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = x.indkey[0]
    WHERE m.amname = 'btree' AND x.indisvalid AND x.indpred IS NULL AND x.indexprs IS NULL
      AND t.relkind IN ('r', 'm') AND t.relpersistence = 'p' AND NOT x.indisexclusion
    ORDER BY i.oid"""

_WALK = """
    SELECT count(*), count(*) FILTER (WHERE k < before)
    FROM (SELECT {key} k, lag({key}) OVER () before FROM ONLY {table} ORDER BY {key}) w"""

_AMCHECK = """
    SELECT i.relname, c.message FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am m ON m.oid = i.relam,
         LATERAL (SELECT bt_index_check(i.oid, true)::text AS message) c
    WHERE m.amname = 'btree' AND x.indisvalid AND i.relpersistence = 'p'"""

_OURS = """
    SELECT table_schema, table_name FROM information_schema.tables
    WHERE table_type = 'BASE TABLE' AND table_schema = 'tiering' ORDER BY 1, 2"""


@dataclass
class Findings:
    """What was looked at, and what was wrong."""

    databases: int = 0
    relations: int = 0
    rows: int = 0
    indexes: int = 0
    has_amcheck: bool = False
    ours: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def told(self) -> dict[str, object]:
        """Return it as the catalogue keeps it."""
        return {
            "databases": self.databases, "relations": self.relations, "rows": self.rows, "indexes": self.indexes,
            "amcheck": self.has_amcheck, "tables": dict(self.ours),
        }  # fmt: skip


def inspect(url_of: Callable[[str], SecretStr], facts: Mapping[str, Any]) -> Findings:
    """Look into every database of a server.

    Args:
        url_of: the URL of a database by its name.
        facts: of the backup: the databases and extensions that were there.
    """
    found = Findings()
    with mapped("prove", "restored server"):
        with psycopg2.connect(url_of("template1").get_secret_value()) as connection:
            present = {str(name) for (name,) in fetch(connection, "SELECT datname FROM pg_database WHERE datallowconn")}
        connection.close()
        # The newest moment may know databases that were made or dropped since; the catalogue's must be whole.
        for name in sorted(present - {"template0"}):
            _inspect_database(url_of(name), name, found, facts.get("extensions", {}).get(name, {}))
    if not present:
        found.problems.append("the server has no database")
    return found


def reached(url: SecretStr) -> tuple[int, str]:
    """Return up to where a server replayed its log, and which system it is."""
    with mapped("prove", "restored server"):
        connection = psycopg2.connect(url.get_secret_value())
        try:
            [(replayed, system_id)] = fetch(
                connection,
                "SELECT pg_last_wal_replay_lsn()::text, system_identifier::text FROM pg_control_system()",
            )
        finally:
            connection.close()
    return parse_lsn(replayed or "0/0"), str(system_id)


def _inspect_database(url: SecretStr, name: str, found: Findings, extensions: Mapping[str, str]) -> None:
    connection = psycopg2.connect(url.get_secret_value(), options="-c statement_timeout=0 -c TimeZone=UTC")
    try:
        connection.autocommit = True
        found.databases += 1
        installable = {
            (str(n), str(v)) for n, v in fetch(connection, "SELECT name, version FROM pg_available_extension_versions")
        }
        for extension in extensions.items():
            if extension not in installable:
                found.problems.append(f"{name}: extension {' '.join(extension)} is not installed on this machine")
        _read_relations(connection, name, found)
        if any(extension == "amcheck" for extension, _ in installable):
            _check_with_amcheck(connection, name, found)
        else:
            _check_indexes(connection, name, found)
        for schema, table in fetch(connection, _OURS):
            counted = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, table))
            found.ours[f"{name}.{schema}.{table}"] = int(fetch(connection, counted)[0][0])
    finally:
        connection.close()


def _read_relations(connection: Any, database: str, found: Findings) -> None:
    """Read every row, toasted values included: COPY has to put each together."""
    for _, schema, relation, kind in fetch(connection, _RELATIONS):
        name = sql.Identifier(schema, relation)
        if kind in ("r", "m"):
            statement = sql.SQL("COPY (SELECT * FROM {}) TO '/dev/null' (FORMAT binary)").format(name)
        else:
            statement = sql.SQL("SELECT count(*) FROM {}").format(name)
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                found.rows += max(0, cursor.rowcount) if kind in ("r", "m") else 0
            found.relations += 1
        except psycopg2.Error as exc:
            if exc.pgcode in ("0A000", "42883"):
                continue  # a type that cannot be sent: there is nothing wrong with its bytes
            found.problems.append(f"{database}: {schema}.{relation}: {' '.join(str(exc).split())}")


def _check_with_amcheck(connection: Any, database: str, found: Findings) -> None:
    found.has_amcheck = True
    try:
        execute(connection, "CREATE EXTENSION IF NOT EXISTS amcheck")
        found.indexes += len(fetch(connection, _AMCHECK))
    except psycopg2.Error as exc:
        found.problems.append(f"{database}: {' '.join(str(exc).split())}")


def _check_indexes(connection: Any, database: str, found: Findings) -> None:
    """Walk each index in its order, and compare with the table read from end to end."""
    counts: dict[tuple[str, str], int] = {}
    for schema, table, index, column in fetch(connection, _INDEXES):
        name, key = sql.Identifier(schema, table), sql.Identifier(column)
        try:
            with connection.cursor() as cursor:
                if (schema, table) not in counts:
                    cursor.execute(
                        "SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_seqscan = on"
                    )
                    cursor.execute(sql.SQL("SELECT count(*) FROM ONLY {}").format(name))
                    counts[schema, table] = int(cursor.fetchall()[0][0])
                cursor.execute("SET enable_indexscan = on; SET enable_indexonlyscan = on; SET enable_seqscan = off")
                statement = sql.SQL(_WALK).format(key=key, table=name)
                cursor.execute(sql.SQL("EXPLAIN {}").format(statement))
                if not any(f" {index} on " in str(line) for (line,) in cursor.fetchall()):
                    continue  # another index gives this order: it is walked in its own turn
                cursor.execute(statement)
                walked, wrong = cursor.fetchall()[0]
        except psycopg2.Error as exc:
            if exc.pgcode != "42883":  # a key without < as an operator
                found.problems.append(f"{database}: index {schema}.{index}: {' '.join(str(exc).split())}")
            continue
        found.indexes += 1
        if walked != counts[schema, table] or wrong:
            cause = f"walks {walked} rows, {wrong} out of order, and the table has {counts[schema, table]}"
            found.problems.append(f"{database}: index {schema}.{index} {cause}")
