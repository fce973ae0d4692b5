"""One-minute bars for measuring: random-walk prices of 2 to 4 decimals, seeded, in the order of time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
from psycopg2 import sql
from psycopg2.extensions import connection as Connection
from pyarrow import csv

from tiering.stores.postgres import identifier, names

SYMBOLS = 500
SESSION_MINUTES = 240
"""A day of the Chinese markets, without its lunch."""

_TICKS = np.array([100, 10, 1])
"""Smallest price steps in ten-thousandths: shares quote 2 decimals, funds 3, bonds and currencies 4."""


class Walk:
    """Prices that go on where they stood: each call of `chunk` makes the bars of the next minutes."""

    def __init__(self, seed: int) -> None:
        self._dice = np.random.default_rng(seed)
        self._tick = _TICKS[np.arange(SYMBOLS) % 3]
        self._close = self._dice.integers(200, 5_000, SYMBOLS) * 100
        self._symbols = pa.array([f"{600_000 + number}.SH" for number in range(SYMBOLS)])

    def chunk(self, begin: datetime, minutes: int) -> pa.Table:
        """Make `minutes` × 500 bars, minute after minute."""
        dice, shape = self._dice, (minutes, SYMBOLS)
        steps = np.rint(dice.normal(0, 4, shape)).astype(np.int64) * self._tick
        close = np.maximum(self._close + np.cumsum(steps, axis=0), 1_000)
        opened = np.vstack((self._close, close[:-1]))
        high = np.maximum(opened, close) + dice.integers(0, 4, shape) * self._tick
        low = np.minimum(opened, close) - dice.integers(0, 4, shape) * self._tick
        volume = np.rint(dice.lognormal(4, 1.2, shape)).astype(np.int64) * 100
        self._close = close[-1]
        count = minutes * SYMBOLS
        first = int(begin.timestamp()) * 1_000_000
        instants = np.repeat(first + np.arange(minutes, dtype=np.int64) * 60_000_000, SYMBOLS)
        return pa.table(
            {
                "symbol": self._symbols.take(pa.array(np.tile(np.arange(SYMBOLS), minutes))),
                "market": _constant("CN", count),
                "timeframe": _constant("1m", count),
                "ts": pa.array(instants, pa.timestamp("us", "UTC")),
                "open": _decimals(opened, 4),
                "high": _decimals(high, 4),
                "low": _decimals(low, 4),
                "close": _decimals(close, 4),
                "volume": pa.array(volume.ravel()),
                "amount": _decimals(close * volume // 100, 2),
                "source": _constant("tushare", count),
            }
        )


def sessions(first: datetime, rows: int, seed: int) -> Iterator[pa.Table]:
    """Make trading days from `first` on until there are `rows` bars (the last day may be short)."""
    walk, day, left = Walk(seed), first, max(1, rows // SYMBOLS)
    while left > 0:
        minutes = min(left, SESSION_MINUTES)
        yield walk.chunk(day.replace(hour=1, minute=30), minutes)
        left -= minutes
        day += timedelta(days=3 if day.weekday() == 4 else 1)


def load(connection: Connection, table: str, bars: pa.Table) -> int:
    """Append bars to a table as they come, the primary key in place, as an application's loader would."""
    buffer = BytesIO()
    csv.write_csv(bars, buffer, csv.WriteOptions(include_header=False))
    buffer.seek(0)
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(identifier(table), names(bars.column_names))
    with connection.cursor() as cursor:
        cursor.copy_expert(statement, buffer)
    return int(bars.num_rows)


def day(text: str) -> datetime:
    """A midnight in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _constant(value: str, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(value), count)


def _decimals(values: Any, scale: int) -> pa.Array:
    low = np.ascontiguousarray(values.ravel(), dtype=np.int64)
    words = np.stack((low, low >> 63), axis=1)
    return pa.Array.from_buffers(pa.decimal128(18, scale), len(low), [None, pa.py_buffer(words)])
