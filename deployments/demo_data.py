"""The demo's deeds and proofs: what it puts into the tables, and what must be true of everything afterwards.

Market data's part; demo_classes.py has what only the other classes have.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

from psycopg2 import sql

import infra.sql
from deployments.demo_report import Broken
from tiering.model import Dataset, Form, Receipt, Tier, Unit
from tiering.ops import install as ops_install
from tiering.ops import lifecycle
from tiering.ops import seed as ops_seed
from tiering.ops.fsck import fsck
from tiering.ops.load import load_file
from tiering.ops.query import query
from tiering.plan import seeds
from tiering.plan.spans import unit_of
from tiering.stores import tables
from tiering.stores.opening import Stores
from tiering.stores.postgres import execute, fetch, fetch_one, identifier

BARS, INDEX = "market_bars", "index_bars"
SOURCE = "arch"
HOUR = "%Y-%m-%dT%H"
PRICES = ("Open", "High", "Low", "Close")
Series = dict[tuple[str, str], tuple[Decimal, ...]]
"""(symbol, day) → open, high, low, close, volume."""


@dataclass(frozen=True)
class Inventory:
    """Every row there is: per dataset and hour how many, and the sum of their hashes, whatever their order."""

    groups: Mapping[tuple[str, str], tuple[int, int]]

    @property
    def rows(self) -> int:
        """Count the rows."""
        return sum(count for count, _ in self.groups.values())


def _dataset(stores: Stores, name: str) -> Dataset:
    return lifecycle.dataset_named(stores, name)


def _moving(stores: Stores) -> list[Dataset]:
    return [dataset for dataset in stores.policies.datasets if dataset.state == "moves"]


def install(stores: Stores, now: datetime) -> None:
    """Do what `tiering install` does."""
    ops_install.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
    with stores.hot.transaction("install", "application tables") as connection:
        execute(connection, infra.sql.read_tables())
    for dataset in _moving(stores):
        ops_install.install_dataset(stores, dataset)
        ops_install.prepare_units(stores, dataset, now)


def seed(stores: Stores, now: datetime, symbols: int, days: int, number: int) -> list[ops_seed.Seeded]:
    """Do what `tiering seed --class …` does for each class; of classes but market data one unit per range will do."""
    return [
        seeded
        for policy in stores.policies.classes
        for seeded in ops_seed.seed(
            stores,
            now,
            ops_seed.Scale(symbols, days if policy.name == "market_data" else 1, None, number),
            data_class=policy.name,
        )
    ]


def load_series(stores: Stores, series: Mapping[str, str], directory: Path, now: datetime) -> Series:
    """Write the package's frames as CSV, each float as the text that reads back equal, and load that file."""
    path, source = directory / "index_bars.csv", Series()
    head = ["symbol", "market", "timeframe", "ts", "open", "high", "low", "close", "volume", "source"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for symbol, module in series.items():
            frame = importlib.import_module(f"arch.data.{module}").load()
            columns = [frame[name].tolist() for name in (*PRICES, "Volume")]
            for day, *values in zip(frame.index.strftime("%Y-%m-%d"), *columns, strict=True):
                texts = [*map(repr, values[:4]), str(int(values[4]))]
                writer.writerow([symbol, "US", "1d", day, *texts, SOURCE])
                source[symbol, day] = tuple(map(Decimal, texts))
        writer.writerow(["^DEMO", "US", "1d", f"{now:%Y-%m-%d}", 1, 1, 1, 1, 0, "demo"])
    loaded = load_file(stores, path, INDEX)
    if loaded.inserted != len(source) + 1:
        raise Broken(f"{loaded.inserted} bars loaded of {len(source) + 1}")
    return source


# -- trouble ----------------------------------------------------------------------------------------------------


def plant_bad_unit(stores: Stores, now: datetime) -> Unit:
    """Put one bar's low above its high, in a unit that is due for the warm tier."""
    dataset = _dataset(stores, BARS)
    span = next(s for s in seeds.age_ranges(dataset.policy, now) if s.name == "warm")
    day = max(d for d in seeds.trading_days(dataset, now, 4) if span.begin <= d < span.end - 2 * seeds.EDGE)
    unit = Unit(BARS, *unit_of(day, dataset.unit))
    with stores.hot.transaction("spoil", str(unit)) as connection:
        spoil = sql.SQL("UPDATE {t} SET low = high + 1 WHERE (symbol, ts) = (SELECT min(symbol), min(ts) FROM {t})")
        if execute(connection, spoil.format(t=identifier(tables.hot_partition(unit)))) != 1:
            raise Broken(f"no row of {unit} to spoil")
    return unit


def hold_oldest(stores: Stores, now: datetime, reason: str) -> Unit:
    """Place a legal hold on the oldest unit of bars, which is past its retention."""
    residences, _ = lifecycle.survey(stores, _dataset(stores, BARS))
    unit = residences[0].unit
    stores.ledger.place_hold(unit.dataset, unit.begin, reason, "demo")
    return unit


def lift(stores: Stores, unit: Unit) -> None:
    """Lift the hold."""
    stores.ledger.lift_hold(unit.dataset, unit.begin, "demo: case closed", "demo")


def insert_late(stores: Stores, now: datetime, count: int) -> list[Unit]:
    """Insert bars for a compressed warm unit and for a cold one, as an application would: into the hot table."""
    records = stores.ledger.units(BARS)
    warm = next(r.unit for r in records if r.tier is Tier.WARM and r.is_compressed)
    cold = [r.unit for r in records if r.tier is Tier.COLD][-1]
    with stores.hot.transaction("insert", "late bars") as connection:
        for number, unit in enumerate((warm, cold)):
            share = count // 2 + (count % 2 if number == 0 else 0)
            execute(
                connection,
                """INSERT INTO hot.market_bars SELECT 'S00000', 'US', '1m', %s + m * interval '1 minute',
                     100.01, 100.5, 99.99, 100.25, 1000 + m, 100250.00, 'late' FROM generate_series(1, %s) m""",
                (unit.begin + timedelta(hours=15), share),
            )
    return [warm, cold]


def release(stores: Stores, unit: Unit, reason: str) -> None:
    """Do what `tiering release UNIT --force --reason …` does."""
    lifecycle.release(stores, unit, "demo", reason)


# -- proofs -----------------------------------------------------------------------------------------------------


def take_inventory(stores: Stores) -> Inventory:
    """Count and hash every row of every dataset, through one SELECT over all tiers."""
    groups: dict[tuple[str, str], tuple[int, int]] = {}
    for dataset in _moving(stores):
        if dataset.form is Form.FILES:
            continue
        names = ["_id", "_raw", "_exact"]
        if dataset.form is Form.TABLE:
            with stores.hot.transaction("describe", dataset.name) as connection:
                names = [name for name, *_ in tables.described_columns(connection, tables.hot_parent(dataset.name))]
        columns = ", ".join(f'"{name}"' for name in names)
        answer = query(
            stores,
            f"""SELECT strftime({dataset.time_column}, '{HOUR}') AS hour, count(*) AS n,
                       CAST(sum(CAST(hash({columns}) AS HUGEINT)) AS VARCHAR) AS h
                FROM {dataset.name} GROUP BY 1""",
        )
        for row in answer.to_pylist():
            groups[dataset.name, row["hour"]] = (row["n"], int(row["h"]))
    return Inventory(groups)


def demand_quarantined(stores: Stores, expected: Mapping[Unit, str]) -> None:
    """The bad units are in quarantine, each for the rule that it breaks, and no others are."""
    bad = {r.unit.name: r.quarantine for d in _moving(stores) for r in lifecycle.survey(stores, d)[0] if r.quarantine}
    if bad.keys() != {unit.name for unit in expected}:
        raise Broken(f"in quarantine: {', '.join(bad) or 'nothing'}, expected {', '.join(u.name for u in expected)}")
    for unit, rule in expected.items():
        if rule not in bad[unit.name]:
            raise Broken(f"{unit.name} is in quarantine for another reason: {bad[unit.name]}")


def demand_held(stores: Stores, unit: Unit, now: datetime) -> None:
    """The held unit has a copy, and says why; others of its age have none."""
    record = stores.ledger.unit(unit.dataset, unit.begin)
    if record is None or record.tier is Tier.EXPIRED:
        raise Broken(f"{unit.name} expired under a legal hold")
    stays = lifecycle.plan_dataset(stores, _dataset(stores, unit.dataset), now).stays
    if not any(stay.unit.begin == unit.begin and "held" in {r.code for r in stay.reasons} for stay in stays):
        raise Broken(f"{unit.name} does not say that it is held")
    if not [r for r in stores.ledger.units(unit.dataset) if r.tier is Tier.EXPIRED]:
        raise Broken("nothing expired beside the held unit")


def demand_merged(stores: Stores, units: Sequence[Unit]) -> None:
    """The late rows' units have a second generation."""
    for unit in units:
        record = stores.ledger.unit(unit.dataset, unit.begin)
        if record is None or record.unit.generation != 2:
            raise Broken(f"{unit.name} has no second generation")


def demand_settled(stores: Stores, now: datetime) -> None:
    """Nothing is due: running everything again would change nothing."""
    due = [move for d in _moving(stores) for move in lifecycle.plan_dataset(stores, d, now).moves]
    if due:
        raise Broken(f"still due after every transition ran: {', '.join(map(str, due[:5]))}")


def demand_series(stores: Stores, source: Series) -> int:
    """The series is in the cold tier, and every bar of it is the source's, to the last digit."""
    last = max(day for _, day in source)
    homes = {r.tier for r in stores.ledger.units(INDEX) if f"{r.unit.begin:%Y-%m-%d}" <= last}
    if homes != {Tier.COLD}:
        raise Broken(f"the series is in {', '.join(sorted(homes)) or 'the hot tier'}, not in the cold tier alone")
    answer = query(
        stores,
        f"""SELECT symbol, strftime(ts, '%Y-%m-%d') AS day, open, high, low, close, volume
            FROM {INDEX} WHERE source = '{SOURCE}'""",
    )
    found = [((r["symbol"], r["day"]), (*(r[c.lower()] for c in PRICES), r["volume"])) for r in answer.to_pylist()]
    if len(found) != len(source) or dict(found).keys() != source.keys():
        raise Broken(f"{len(found)} bars came back of {len(source)}")
    for key, values in found:
        if tuple(map(Decimal, values)) != source[key]:
            raise Broken(f"{key} is {values}, and {source[key]} in the source")
    return len(found)


def demand_nothing_lost(stores: Stores, before: Inventory, expected: Inventory) -> tuple[int, int]:
    """Every row seen before is there, once and unchanged, but for units that the ledger says expired.

    Args:
        stores: where to look.
        before: the rows before anything moved.
        expected: the rows before the second round, with the late ones.

    Returns:
        Rows that are there, and rows that expired.
    """
    after = take_inventory(stores)
    gone = {
        (dataset.name, unit.begin, unit.end)
        for dataset in _moving(stores)
        for unit in (r.unit for r in stores.ledger.units(dataset.name) if r.tier is Tier.EXPIRED)
    }
    ranges: dict[str, list[tuple[str, str]]] = {}
    for name, begin, end in gone:
        ranges.setdefault(name, []).append((begin.strftime(HOUR), end.strftime(HOUR)))

    def has_expired(group: tuple[str, str]) -> bool:
        return any(begin <= group[1] < end for begin, end in ranges.get(group[0], []))

    late = {group for group in expected.groups if expected.groups[group] != before.groups.get(group)}
    for group, (count, _) in before.groups.items():
        if group in late and expected.groups[group][0] <= count:
            raise Broken(f"{group} changed without a late row")
        if group not in expected.groups and not has_expired(group):
            raise Broken(f"{group} was lost in the first round: {count} rows")
    for group, content in expected.groups.items():
        found = after.groups.get(group, (0, 0))
        if found != ((0, 0) if has_expired(group) else content):
            raise Broken(f"{group}: {found[0]} rows, expected {content[0]}, or other values")
    if extra := after.groups.keys() - expected.groups.keys():
        raise Broken(f"rows from nowhere: {sorted(extra)[:3]}")
    return after.rows, sum(count for group, (count, _) in before.groups.items() if has_expired(group))


def demand_sound(stores: Stores, now: datetime) -> str:
    """Run `tiering fsck --deep`: no differences, and every superseded object physically gone."""
    checked = fsck(stores, now, deep=True)
    if not checked.is_clean:
        found = "; ".join(f"{f.code} {f.subject}: {f.text}" for f in checked.findings if not f.is_note)
        raise Broken(f"fsck: {found}")
    cold = sum(
        r.tier is Tier.COLD for d in _moving(stores) if d.form is not Form.FILES for r in stores.ledger.units(d.name)
    )
    if checked.objects != cold:
        raise Broken(f"{checked.objects} lake objects for {cold} cold units")
    seen = f"{checked.units} units, {checked.objects} lake objects, {checked.rows:,} rows counted or read again"
    return f"{seen}: no differences"


# -- the ledger's account of a run ------------------------------------------------------------------------------


def database_time(stores: Stores) -> datetime:
    """Read the ledger's clock, which stamps its rows."""
    with stores.warm.transaction("read", "clock") as connection:
        row = fetch_one(connection, "SELECT clock_timestamp()")
    assert row is not None
    found: datetime = row[0]
    return found


def receipts_since(stores: Stores, mark: datetime) -> list[Receipt]:
    """List what was committed since."""
    with stores.warm.transaction("read", "moves") as connection:
        rows = fetch(
            connection,
            "SELECT move_id FROM tiering.move WHERE changed_at >= %s AND state = 'COMMITTED' ORDER BY move_id",
            (mark,),
        )
    return [lifecycle.receipt(stores, move_id) for (move_id,) in rows]


def swept_since(stores: Stores, mark: datetime) -> tuple[int, int]:
    """Count the copies destroyed since, and their bytes."""
    with stores.warm.transaction("read", "trash") as connection:
        row = fetch_one(
            connection,
            "SELECT count(*), coalesce(sum(size_bytes), 0) FROM tiering.trash WHERE reclaimed_at >= %s",
            (mark,),
        )
    assert row is not None
    return int(row[0]), int(row[1])
