"""What the client remembers of datasets: their columns and keys as the catalog has them, and where their units are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tiering import errors
from tiering.model import Dataset, Form, Policies, Tier
from tiering.stores.postgres_async import AsyncPostgres

_COLUMNS = """SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attgenerated <> '' OR a.attidentity = 'a'
              FROM pg_attribute a WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped
              ORDER BY a.attnum"""
_KEY = """SELECT a.attname FROM pg_index i JOIN unnest(i.indkey) WITH ORDINALITY k(attnum, place) ON true
          JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
          WHERE i.indrelid = to_regclass($1) AND i.indisprimary ORDER BY k.place"""
_UNITS = """SELECT dataset, begin_at, end_at, tier, generation, storage_class FROM tiering.unit
            WHERE tier <> 'expired' ORDER BY dataset, begin_at"""


@dataclass(frozen=True, slots=True)
class Shape:
    """A table as its catalog has it.

    Attributes:
        columns: (name, type) in order, without generated ones.
        key: of its primary key.
    """

    columns: tuple[tuple[str, str], ...]
    key: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(name for name, _ in self.columns)

    def type_of(self, column: str) -> str:
        """A column's type; SchemaMismatch where there is no such column."""
        for name, kind in self.columns:
            if name == column:
                return kind
        raise errors.SchemaMismatch("read", column, f"no such column; there are {', '.join(self.names)}")


@dataclass(frozen=True, slots=True)
class Home:
    """Where a unit that left the hot tier is."""

    begin: datetime
    end: datetime
    tier: Tier
    generation: int
    storage_class: str


class Directory:
    """Shapes and homes, remembered until somebody says that they may have changed. Belongs to one event loop."""

    def __init__(self, policies: Policies, hot: AsyncPostgres, ledger: AsyncPostgres) -> None:
        self.policies = policies
        self._hot, self._ledger = hot, ledger
        self._shapes: dict[str, Shape] = {}
        self._homes: dict[str, list[Home]] | None = None
        self._changes = 0

    def dataset(self, name: str) -> Dataset:
        """Find a dataset; NotFound, with the known ones, where there is none of that name."""
        found = self.policies.dataset(name)
        if found is None:
            known = ", ".join(d.name for d in self.policies.datasets)
            raise errors.NotFound("find", name, "no such dataset", f"Known: {known}.")
        return found

    async def shape(self, dataset: Dataset, seconds: float) -> Shape:
        """The shape of a dataset's hot table.

        Raises:
            NotFound: it has no table yet.
        """
        found = self._shapes.get(dataset.name)
        if found is None:
            if dataset.form is not Form.TABLE:
                raise errors.PermanentError("describe", dataset.name, "is no table")
            table = f"hot.{dataset.name}"
            columns = await self._hot.fetch(_COLUMNS, table, seconds=seconds, subject=table)
            key = await self._hot.fetch(_KEY, table, seconds=seconds, subject=table)
            if not columns or not key:
                raise errors.NotFound("describe", table, "no such table, or no primary key", "Run `tiering install`.")
            found = Shape(tuple((row[0], row[1]) for row in columns if not row[2]), tuple(row[0] for row in key))
            self._shapes[dataset.name] = found
        return found

    def forget_shape(self, dataset: str) -> None:
        """Look at the catalog again next time: a statement did not fit it."""
        self._shapes.pop(dataset, None)

    def units_moved(self) -> None:
        """Look at the ledger again next time."""
        self._changes += 1
        self._homes = None

    async def homes(self, dataset: str, begin: datetime, end: datetime, seconds: float) -> list[Home]:
        """List the units of a dataset that overlap `[begin, end)` and left the hot tier; oldest first."""
        while self._homes is None:
            before = self._changes
            rows = await self._ledger.fetch(_UNITS, seconds=seconds, subject="ledger")
            found: dict[str, list[Home]] = {}
            for row in rows:
                found.setdefault(row[0], []).append(Home(row[1], row[2], Tier(row[3]), row[4], row[5]))
            if before == self._changes:  # else a unit moved meanwhile
                self._homes = found
        return [home for home in self._homes.get(dataset, ()) if home.begin < end and home.end > begin]


def tier_of(homes: Sequence[Home], begin: datetime, end: datetime) -> Tier:
    """The coldest place that a range needs: HOT where no unit of it has left."""
    tiers = {home.tier for home in homes if home.begin < end and home.end > begin}
    return Tier.COLD if Tier.COLD in tiers else Tier.WARM if Tier.WARM in tiers else Tier.HOT
