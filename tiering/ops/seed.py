"""Make history: deterministic data of all six classes in all tiers' age ranges; tables are loaded in bulk by COPY.

The same seed, instant and scale make the same rows, whatever is there already; a unit that has rows or has
left the hot tier is left alone, so seeding twice adds nothing. Market data is made here, the rest in seed_users.py and
seed_documents.py. Does not: age anything; the flows do.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
from psycopg2 import sql
from pyarrow import csv

from tiering import errors
from tiering.model import Dataset, Form, Unit
from tiering.ops import install, lifecycle, seed_documents, seed_shapes, seed_users
from tiering.plan import seeds
from tiering.plan.spans import unit_of
from tiering.stores import tables
from tiering.stores.opening import Stores
from tiering.stores.postgres import execute, identifier, names

SYMBOLS_AT_ONCE = 250
"""Symbols made in one go: bounds the memory whatever the scale (some 100,000 rows, 20 MB)."""

INDICATORS = ("sma_20", "ema_12", "rsi_14", "macd")
HOURS = 7

Progress = Callable[[str, int], None]
"""Called with (dataset, rows added) after every chunk."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much history: `rows` of market_bars if given, else `days` days (units, of other datasets) per age range.

    Users are as many as symbols, and at least three.
    """

    symbols: int = 20
    days: int = 5
    rows: int | None = None
    seed: int = 1

    @property
    def users(self) -> int:
        """How many users there are."""
        return max(3, self.symbols)


@dataclass(frozen=True, slots=True)
class Seeded:
    """What was added to one dataset."""

    dataset: str
    units: int
    units_left_alone: int
    rows: int


def _silent(_dataset: str, _rows: int) -> None:
    pass


def seed(
    stores: Stores, now: datetime, scale: Scale, progress: Progress = _silent, data_class: str | None = None
) -> list[Seeded]:
    """Seed every dataset that has a recipe, and the state tables. The datasets must be installed.

    Args:
        stores: where to.
        now: the instant that ages count back from; the newest row is at most this old.
        scale: how much.
        progress: told after every chunk.
        data_class: only the datasets of this one.

    Raises:
        ValueError: the scale is not positive.
        NotFound: a dataset is not installed.
    """
    if scale.symbols < 1 or scale.days < 1 or (scale.rows is not None and scale.rows < 1):
        raise ValueError("symbols, days and rows must be at least 1")
    chosen = [
        dataset
        for name in (*RECIPES, *seed_shapes.SHAPES, *seed_documents.FILES)
        if (dataset := stores.policies.dataset(name)) and data_class in (None, dataset.policy.name)
    ]
    if data_class in (None, "user_data") and stores.policies.dataset("positions"):
        seed_users.load_state(stores, now, scale.users, scale.seed)
    return [seed_dataset(stores, dataset.name, now, scale, progress) for dataset in chosen if dataset.state == "moves"]


def seed_dataset(stores: Stores, name: str, now: datetime, scale: Scale, progress: Progress = _silent) -> Seeded:
    """Seed one dataset; each unit's rows come in one transaction."""
    dataset = lifecycle.dataset_named(stores, name)
    if dataset.form is not Form.TABLE:
        return _seed_units(stores, dataset, now, scale, progress)
    if name not in RECIPES:
        raise _no_recipe(name)
    moments, make = RECIPES[name]
    by_unit: dict[Unit, list[Any]] = {}
    for instant, moment in moments(dataset, now, scale):
        by_unit.setdefault(Unit(name, *unit_of(instant, dataset.unit)), []).append(moment)
    taken = {residence.unit.begin for residence in lifecycle.survey(stores, dataset)[0]}
    wanted = {unit: found for unit, found in by_unit.items() if unit.begin not in taken}
    install.create_units(stores, dataset, [(unit.begin, unit.end) for unit in sorted(wanted)])
    rows = 0
    for unit, found in sorted(wanted.items()):
        chunks = (chunk for moment in found for chunk in make(moment, now, scale))
        rows += _load(stores, dataset, unit, chunks, progress)
    return Seeded(name, len(wanted), len(by_unit) - len(wanted), rows)


def _seed_units(stores: Stores, dataset: Dataset, now: datetime, scale: Scale, progress: Progress) -> Seeded:
    """Seed a dataset of documents or files, unit by unit, oldest first."""
    if dataset.name not in (*seed_shapes.SHAPES, *seed_documents.FILES):
        raise _no_recipe(dataset.name)
    units = [Unit(dataset.name, *bounds) for bounds in seeds.sample_units(dataset, now, scale.days)]
    taken = {residence.unit.begin for residence in lifecycle.survey(stores, dataset)[0]}
    wanted = [unit for unit in units if unit.begin not in taken]
    rows = 0
    for unit in wanted:
        if dataset.form is Form.FILES:
            found = seed_documents.load_files(stores, dataset, unit, now, scale.seed)
        else:
            counts = (scale.symbols, scale.users)
            found = seed_documents.load_documents(stores, dataset, unit, now, counts, scale.seed)
        rows += found
        progress(dataset.name, found)
    return Seeded(dataset.name, len(wanted), len(units) - len(wanted), rows)


def _no_recipe(name: str) -> errors.NotFound:
    known = ", ".join((*RECIPES, *seed_shapes.SHAPES, *seed_documents.FILES))
    return errors.NotFound("seed", name, "no recipe for it", f"Recipes: {known}.")


def _load(stores: Stores, dataset: Dataset, unit: Unit, chunks: Iterable[pa.Table], progress: Progress) -> int:
    rows = 0
    target = tables.hot_partition(unit)
    with stores.hot.transaction("seed", str(unit)) as connection:
        for chunk in chunks:
            buffer = BytesIO()
            csv.write_csv(chunk, buffer, csv.WriteOptions(include_header=False))
            buffer.seek(0)
            statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(
                identifier(target), names(chunk.column_names)
            )
            with connection.cursor() as cursor:
                cursor.copy_expert(statement, buffer)
            rows += chunk.num_rows
            progress(dataset.name, chunk.num_rows)
    with stores.hot.transaction("analyze", str(unit)) as connection:
        execute(connection, sql.SQL("ANALYZE {}").format(identifier(target)))
    return rows


def _dice(*words: object) -> np.random.Generator:
    """Make dice of their own for a piece of history, so that it does not depend on what is made beside it."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(repr(words).encode())))


def _symbol_chunks(scale: Scale) -> Iterator[list[str]]:
    for first in range(0, scale.symbols, SYMBOLS_AT_ONCE):
        yield [f"S{n:05d}" for n in range(first, min(first + SYMBOLS_AT_ONCE, scale.symbols))]


def _decimals(values: Any, scale: int) -> pa.Array:
    """Take integers for decimals with `scale` digits behind the point, without a detour over floats."""
    low = np.ascontiguousarray(values, dtype=np.int64)
    words = np.stack((low, low >> 63), axis=1)
    return pa.Array.from_buffers(pa.decimal128(18, scale), len(low), [None, pa.py_buffer(words)])


def _repeated(values: list[str], times: int) -> pa.Array:
    return pa.array(values).take(pa.array(np.repeat(np.arange(len(values)), times)))


def _constant(value: str, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(value), count)


def _instants(first: datetime, step: timedelta, count: int, repeats: int) -> pa.Array:
    begin = int(first.timestamp()) * 1_000_000
    one = begin + np.arange(count, dtype=np.int64) * (step // timedelta(microseconds=1))
    return pa.array(np.tile(one, repeats), pa.timestamp("us", "UTC"))


# -- market_bars: minute bars of trading sessions --------------------------------------------------------------


def _bar_days(dataset: Dataset, now: datetime, scale: Scale) -> list[tuple[datetime, datetime]]:
    days = scale.days
    if scale.rows is not None:
        days = seeds.days_for_rows(scale.rows, scale.symbols, len(seeds.age_ranges(dataset.policy, now)))
    return [(day, day) for day in seeds.trading_days(dataset, now, days)]


def _bars(day: datetime, now: datetime, scale: Scale) -> Iterator[pa.Table]:
    first = datetime.combine(day, seeds.SESSION_BEGIN, UTC)
    minutes = min(seeds.SESSION_MINUTES, (now - first) // timedelta(minutes=1) + 1)
    for symbols in _symbol_chunks(scale):
        yield _bars_of(symbols, first, minutes, scale.seed)


def _bars_of(symbols: list[str], first: datetime, minutes: int, seed_number: int) -> pa.Table:
    dice = _dice("bars", seed_number, first.date(), symbols[0])
    count = len(symbols) * minutes
    level = dice.integers(1_000, 40_000, size=(len(symbols), 1))
    steps = dice.integers(-12, 13, size=(len(symbols), minutes))
    close = np.maximum(level + np.cumsum(steps, axis=1), 100)
    opened = np.concatenate((np.broadcast_to(level, (len(symbols), 1)), close[:, :-1]), axis=1)
    high = np.maximum(opened, close) + dice.integers(0, 6, size=close.shape)
    low = np.minimum(opened, close) - dice.integers(0, 6, size=close.shape)
    volume = dice.integers(0, 2_000, size=close.shape) * 100
    return pa.table(
        {
            "symbol": _repeated(symbols, minutes),
            "market": _constant("US", count),
            "timeframe": _constant("1m", count),
            "ts": _instants(first, timedelta(minutes=1), minutes, len(symbols)),
            "open": _decimals(opened.ravel(), 2),
            "high": _decimals(high.ravel(), 2),
            "low": _decimals(low.ravel(), 2),
            "close": _decimals(close.ravel(), 2),
            "volume": pa.array(volume.ravel()),
            "amount": _decimals((volume * close).ravel(), 2),
            "source": _constant("seed", count),
        }
    )


# -- technical_indicators: hourly values of the same days -------------------------------------------------------


def _indicator_days(dataset: Dataset, now: datetime, scale: Scale) -> list[tuple[datetime, datetime]]:
    return [(day, day) for day in seeds.trading_days(dataset, now, scale.days)]


def _indicators(day: datetime, now: datetime, scale: Scale) -> Iterator[pa.Table]:
    first = datetime.combine(day, seeds.SESSION_BEGIN, UTC)
    hours = min(HOURS, (now - first) // timedelta(hours=1) + 1)
    for symbols in _symbol_chunks(scale):
        dice = _dice("indicators", scale.seed, day.date(), symbols[0])
        count = len(symbols) * len(INDICATORS) * hours
        value = dice.normal(50, 15, size=count)
        value[:: 97 * hours] = np.nan  # a window that is not full yet
        series = [f"{symbol} {indicator}" for symbol in symbols for indicator in INDICATORS]
        yield pa.table(
            {
                "symbol": _repeated([s.split()[0] for s in series], hours),
                "indicator": _repeated([s.split()[1] for s in series], hours),
                "timeframe": _constant("1h", count),
                "ts": _instants(first, timedelta(hours=1), hours, len(series)),
                "value": pa.array(value),
                "params": _constant('{"source": "close", "adjusted": true}', count),
            }
        )


# -- financial_statements: one per symbol and quarter -----------------------------------------------------------


def _quarters(dataset: Dataset, now: datetime, scale: Scale) -> list[tuple[datetime, tuple[date, datetime]]]:
    return [(published, (quarter.date(), published)) for quarter, published in seeds.report_dates(dataset, now)]


def _statements(moment: tuple[date, datetime], now: datetime, scale: Scale) -> Iterator[pa.Table]:
    quarter, published = moment
    for symbols in _symbol_chunks(scale):
        dice = _dice("statements", scale.seed, quarter, symbols[0])
        count = len(symbols)
        revenue = dice.integers(10**10, 10**15, size=count)
        income = (revenue * dice.integers(-10, 30, size=count)) // 100
        assets = revenue * dice.integers(2, 9, size=count)
        yield pa.table(
            {
                "symbol": pa.array(symbols),
                "report_period": pa.array([quarter] * count, pa.date32()),
                "report_type": _constant("quarterly", count),
                "ts": pa.array([published] * count, pa.timestamp("us", "UTC")),
                "source": _constant("seed", count),
                "revenue": _decimals(revenue, 4),
                "net_income": _decimals(income, 4),
                "total_assets": _decimals(assets, 4),
                "total_equity": _decimals(assets // 3, 4),
                "currency": _constant("USD", count),
                "raw": _constant('{"audited": true}', count),
            }
        )


# -- user_activity, audit_log --------------------------------------------------------------------------------


def _units(dataset: Dataset, now: datetime, scale: Scale) -> list[tuple[datetime, Unit]]:
    return [(bounds[0], Unit(dataset.name, *bounds)) for bounds in seeds.sample_units(dataset, now, scale.days)]


def _activity(unit: Unit, now: datetime, scale: Scale) -> Iterator[pa.Table]:
    return seed_users.activity(unit, now, scale.users, scale.seed)


def _audit_log(unit: Unit, now: datetime, scale: Scale) -> Iterator[pa.Table]:
    return seed_users.audit_log(unit, now, scale.users, scale.seed)


RECIPES: dict[str, tuple[Callable[..., list[tuple[datetime, Any]]], Callable[..., Iterator[pa.Table]]]] = {
    "market_bars": (_bar_days, _bars),
    "technical_indicators": (_indicator_days, _indicators),
    "financial_statements": (_quarters, _statements),
    "user_activity": (_units, _activity),
    "audit_log": (_units, _audit_log),
}
