"""Ask all tiers one question: hot, warm and cold rows as one table per dataset, each row exactly once.

The hot tier is looked at first, then in one snapshot of the warm database the ledger and the warm rows. A unit that
moves in between is therefore seen twice or once, never not at all; and a row that is seen twice is dropped at its
older place by its key. Hot and warm rows come through our own COPY decoder (DuckDB's PostgreSQL scanner turns NaN to
0 and unbounded numerics to floats); lake files are read by DuckDB, those that the ledger of that snapshot names.

What a typed column cannot hold (numeric NaN, ±infinity, year 294276) is NULL in it and stands in the extra column
`_exact`, a JSON object of column → PostgreSQL's text; the column appears when the query names it.
Columns of types that Parquet does not know (jsonb, interval, arrays …) are PostgreSQL's text.
Does not: write anything but DuckDB's spill files.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from tiering import errors
from tiering.model import Column, Form, Kind
from tiering.ops import query_documents, query_tables
from tiering.ops.columns import look
from tiering.ops.query_engine import HALF_TYPED, Bound, Progress, Scan, opened
from tiering.plan.queries import BadQuery, Filter, Need, demand_select, find_needs
from tiering.plan.spans import EPOCH
from tiering.stores import duck
from tiering.stores.bson_typed import RAW_COLUMN, document_columns
from tiering.stores.opening import Stores

log = logging.getLogger(__name__)

UNITS_HEATED_MAX = 100
"""A query over more units than these says nothing about any one of them."""

ATTEMPTS = 6
"""Looks at a moving world: each is one whole look; a unit must move under every one of them to exhaust these."""


def _silent(_place: str, _rows: int) -> None:
    pass


def query(
    stores: Stores,
    statement: str,
    *,
    now: datetime | None = None,
    progress: Progress = _silent,
    memory_limit: str = "512MB",
    threads: int = 2,
) -> pa.Table:
    """Answer one SELECT over the datasets, each a table of its name.

    Conditions on the time and on text columns of the key (`ts >= …`, `symbol = …`, IN, BETWEEN) in the WHERE of a
    SELECT that names a dataset once are applied while fetching; everything else is fetched and then decided.

    Args:
        stores: where the tiers are.
        statement: one SELECT in DuckDB's SQL; times without zone are UTC.
        now: counts the access in the datasets' heat, at this instant; None: it is not counted.
        progress: told while rows are fetched.
        memory_limit: of DuckDB; beyond it, it spills to the scratch directory.
        threads: of DuckDB.

    Raises:
        BadQuery: the SQL is wrong, or not one SELECT.
        InDeepArchive: rows are asked for that must be restored first; that was asked for, and the error says when.
        StoreUnavailable: a server is down, or units moved under every one of several looks.
    """
    with opened(stores, memory_limit, threads) as engine:
        select = demand_select(_parse(engine, statement))
        columns_of = _columns_of(stores, select)
        needs = find_needs(select, {name: [c.name for c in columns] for name, columns in columns_of.items()})
        for need in needs:
            scan = replace(_plan_scan(engine, stores, need, columns_of[need.dataset]), now=now)
            begins = _materialise(engine, stores, scan, progress)
            if now:
                stores.heat.touch(need.dataset, now, begins if len(begins) <= UNITS_HEATED_MAX else (), scan.symbols)
        try:
            with duck.mapped("query", "SQL"):
                return engine.execute(statement).to_arrow_table()
        except errors.PermanentError as exc:
            if type(exc) is not errors.PermanentError:
                raise
            known = ", ".join(d.name for d in stores.policies.datasets if d.state == "moves")
            raise BadQuery("query", "SQL", exc.cause, f"Tables: {known}.") from exc


def _parse(engine: Any, statement: str) -> dict[str, Any]:
    with duck.mapped("parse", "SQL"):
        tree: dict[str, Any] = json.loads(
            engine.execute("SELECT json_serialize_sql($1::VARCHAR)", [statement]).fetchone()[0]
        )
    return tree


def _columns_of(stores: Stores, select: Mapping[str, Any]) -> dict[str, tuple[Column, ...]]:
    """Describe the datasets that a query names; a document's raw bytes are a column for those who name it."""
    candidates = {
        d.name: [d.time_column] for d in stores.policies.datasets if d.state == "moves" and d.form is not Form.FILES
    }
    found = {}
    for name in [need.dataset for need in find_needs(dict(select), candidates)]:
        dataset = stores.policies.dataset(name)
        assert dataset is not None, "a candidate"
        if dataset.form is Form.DOCUMENTS:
            wants_raw = f'"{RAW_COLUMN}"' in json.dumps(select)
            found[name] = tuple(c for c in document_columns(dataset) if wants_raw or c.name != RAW_COLUMN)
        else:
            found[name] = look(stores, name).live
    return found


# -- what to fetch ----------------------------------------------------------------------------------------------


def _plan_scan(engine: Any, stores: Stores, need: Need, columns: tuple[Column, ...]) -> Scan:
    dataset = stores.policies.dataset(need.dataset)
    assert dataset is not None
    wanted = {*need.columns, *dataset.key}
    if need.wants_exact:
        # `_exact` says of a row what its fetched columns cannot hold, so all that may be special are fetched.
        wanted |= {c.name for c in columns if c.kind in HALF_TYPED}
    kept = tuple(c for c in columns if c.name in wanted)
    kinds = {c.name: c.kind for c in columns}
    bounds = []
    for condition in need.filters:
        # Only columns of the key: two rows of one key are then kept or left out together.
        if condition.column in dataset.key:
            bound = _evaluate(engine, condition, kinds[condition.column])
            if bound:
                bounds.append(bound)
    return Scan(dataset, kept, tuple(bounds), need.wants_exact)


def _evaluate(engine: Any, condition: Filter, kind: Kind) -> Bound | None:
    """Work out a filter's values as DuckDB would compare them; None where that is not sure."""
    values: list[Any] = []
    for node in condition.values:
        value = _constant(engine, node, "epoch_us(CAST(({}) AS TIMESTAMPTZ))" if kind is Kind.TIMESTAMPTZ else "({})")
        if kind is Kind.TIMESTAMPTZ and isinstance(value, int):
            try:
                values.append(EPOCH + timedelta(microseconds=value))
            except OverflowError:
                return None
        elif kind is Kind.TEXT and isinstance(value, str) and "\0" not in value and condition.operator == "=":
            values.append(value)
        else:
            return None
    return Bound(condition.column, condition.operator, tuple(values))


def _constant(engine: Any, node: Mapping[str, Any], form: str) -> Any:
    tree = _parse(engine, "SELECT 1")
    tree["statements"][0]["node"]["select_list"] = [node]
    try:
        with duck.mapped("evaluate", "constant"):
            text = engine.execute("SELECT json_deserialize_sql($1::JSON)", [json.dumps(tree)]).fetchone()[0]
            return engine.execute(f"SELECT {form.format(text)}").fetchone()[0]
    except errors.TieringError:
        return None  # the query itself will say what is wrong with it


# -- fetching ---------------------------------------------------------------------------------------------------


def _materialise(engine: Any, stores: Stores, scan: Scan, progress: Progress) -> list[datetime]:
    """Fetch a dataset's hot and warm rows and define its view; look again when a unit moved under our eyes."""
    fetch = query_documents.fetch if scan.dataset.form is Form.DOCUMENTS else query_tables.fetch
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return fetch(engine, stores, scan, progress)
        except errors.NotFound as exc:
            # A table that the snapshot listed has been renamed by a move: everything is looked at again.
            if attempt == ATTEMPTS:
                raise errors.StoreUnavailable(
                    "query", scan.dataset.name, f"units kept moving during {ATTEMPTS} looks: {exc.cause}", "Try again."
                ) from exc
            log.info("looking again dataset=%s cause=%s", scan.dataset.name, exc.cause)
    raise AssertionError("the last look returns or raises")
