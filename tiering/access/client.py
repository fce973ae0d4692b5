"""The access client: what applications import. They say what they want; where it is, the client knows.

    async with open_access() as access:
        quote = await access.get(QUOTE.key("600519", "CN"))
        bars = await access.read("market_bars", begin, end, where={"symbol": "600519"}, form="pandas")
        await access.write("positions", [row], mode="real_time")

One client per process and event loop: it shares connections and single flights, and keeps an ear on the ledger.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Literal

from prometheus_client import CollectorRegistry

from tiering import errors
from tiering.access import keys
from tiering.access.behind import Behind
from tiering.access.calendars import Calendars
from tiering.access.codec import encode
from tiering.access.keys import Key
from tiering.access.metrics import Metrics
from tiering.access.ranges import Ranges, Rows, make_range
from tiering.access.reading import Answer, Budgets, Load, Reading
from tiering.access.results import Form, of_table, shaped
from tiering.access.shapes import Directory, tier_of
from tiering.access.sources import Sources
from tiering.access.tickets import Ticket, Tickets, TicketStatus
from tiering.access.touched import row_key
from tiering.access.writing import STATEMENT_SECONDS, Writing, Written
from tiering.model import Policies, Tier
from tiering.plan.policies import parse_policies
from tiering.settings import Settings, load_settings
from tiering.stores.cache import Cache
from tiering.stores.cache_entries import VALUE, pack_header
from tiering.stores.documents_async import AsyncDocuments
from tiering.stores.postgres_async import AsyncPostgres
from tiering.stores.trust import TRUST_SECONDS, Trust

Where = Literal["auto", "hot", "warm", "cold"]
Mode = Literal["real_time", "analytical", "archival"]
DRAIN_SECONDS = 30.0


class Access:
    """Read and write, wherever the data is. Made by `open_access`; belongs to one event loop."""

    def __init__(self, settings: Settings, policies: Policies, budgets: Budgets, metrics: Metrics) -> None:
        self.metrics, self.budgets, self.policies = metrics, budgets, policies
        self.warm = AsyncPostgres(settings.warm_pg_url, "warm PostgreSQL", statement_seconds=STATEMENT_SECONDS)
        self.hot = self.warm
        if not settings.is_one_database:
            self.hot = AsyncPostgres(settings.hot_pg_url, "hot PostgreSQL", statement_seconds=STATEMENT_SECONDS)
        self._bulk = AsyncPostgres(settings.hot_pg_url, "hot PostgreSQL", size=2)
        self._hot_documents = AsyncDocuments(settings.hot_mongo_url, "hot MongoDB")
        self._warm_documents = AsyncDocuments(settings.warm_mongo_url or settings.hot_mongo_url, "warm MongoDB")
        self.cache = Cache(settings.redis_url)
        self._directory = Directory(policies, self.hot, self.warm)
        self.trust = Trust(self.warm, self.cache.set_epoch, self._directory.units_moved)
        self._calendars = Calendars()
        self._reading = Reading(self.cache, self.trust, metrics, budgets, self._calendars)
        self._ranges = Ranges(self._directory, self.hot, self.warm, self._hot_documents, self._warm_documents)
        self._tickets = Tickets(settings, policies, self.cache)
        self._sources = Sources(
            self.hot, self._hot_documents, self._warm_documents, self._ranges, self._tickets, budgets.warm,
            self._reading.note_volatility,
        )  # fmt: skip
        self._writing = Writing(
            self.cache, self.trust, self._directory, self._reading, self.hot, self._hot_documents, metrics
        )
        self._behind = Behind(
            settings.journal_dir, self._directory, self._bulk, self._hot_documents, self.cache, metrics
        )

    # -- by key --------------------------------------------------------------------------------------------

    async def get(self, key: Key, load: Load | None = None, *, budget: float | None = None) -> Any:
        """Return the value of a key, from the cache or else from its source; None: there is none.

        Args:
            key: made by a kind of the table: `QUOTE.key("600519", "CN")`.
            load: asks for the value instead of the kind's own source.
            budget: seconds; default: the hot budget, 0.1.

        Raises:
            TimedOut: the budget is used up; what was begun goes on, and the next call may find it.
            StoreUnavailable: neither cache nor database answers.
        """
        return await self._reading.get(key, load or self._loader(key), budget)

    async def look(self, key: Key, load: Load | None = None, *, budget: float | None = None) -> Answer:
        """As `get`, and say where the value comes from and whether it is confirmed."""
        return await self._reading.look(key, load or self._loader(key), budget)

    async def get_many(
        self, wanted: Sequence[Key], load: Callable[[Key], Awaitable[Any]] | None = None, *, budget: float | None = None
    ) -> list[Any]:
        """Return the values of many keys, in their order, with one round trip per server for those in the cache."""
        source = load or self._sources.load
        return await self._reading.get_many(wanted, lambda key: lambda: source(key), budget)

    async def put(self, key: Key, value: Any) -> None:
        """Store the value of a key that has no source, such as `session:`: in the cache alone, until it expires.

        Raises:
            PermanentError: the kind has a source: write to its dataset.
            StoreUnavailable: Redis does not answer.
        """
        if key.kind.source or key.kind is keys.ROW:
            raise errors.PermanentError("put", key.text, "the kind has a source", "Write to its dataset.")
        seconds = self._reading.lifetime(key)
        until, payload = time.time() + seconds, encode(value)
        await self.cache.put(
            key.text, lambda stamp: pack_header(VALUE, stamp, until) + payload, max(1, int(seconds * 1000))
        )

    async def forget(self, key: Key) -> None:
        """Drop a key from the cache: the next reader asks its source."""
        await self.cache.forget(key.text)

    def _loader(self, key: Key) -> Load:
        return lambda: self._sources.load(key)

    async def read_row(self, dataset: str, *, budget: float | None = None, **key: Any) -> dict[str, Any] | None:
        """Return one row by its primary key, never older than an acknowledged `real_time` write; None: there is none.

        Raises:
            TimedOut, StoreUnavailable: as `get`.
        """
        found = self._directory.dataset(dataset)
        shape = await self._directory.shape(found, self.budgets.warm)
        if set(key) != set(shape.key):
            raise errors.PermanentError("read", dataset, f"its key is {', '.join(shape.key)}", "Give all of it.")
        table = f"hot.{dataset}" if found.state != "moves" else f"live.{dataset}"
        tests = " AND ".join(f'"{name}" = ${place}::{shape.type_of(name)}' for place, name in enumerate(shape.key, 1))

        async def load() -> dict[str, Any] | None:
            rows = await self.hot.fetch(
                f"SELECT * FROM {table} WHERE {tests}", *(key[name] for name in shape.key),
                seconds=self.budgets.warm, subject=dataset,
            )  # fmt: skip
            return dict(rows[0]) if rows else None

        value = await self._reading.get(row_key(dataset, shape.key, key), load, budget)
        return value if value is None else dict(value)

    # -- by range ------------------------------------------------------------------------------------------

    async def read(
        self,
        dataset: str,
        begin: datetime,
        end: datetime,
        *,
        where: Mapping[str, Any] | None = None,
        columns: Sequence[str] = (),
        tier: Where = "auto",
        form: Form = "rows",
        newest_first: bool = False,
        limit: int = 0,
        budget: float | None = None,
    ) -> Any:
        """Return the rows of a dataset in `[begin, end)`, each once, whichever tiers they are in.

        Args:
            dataset: its name.
            begin: with a time zone.
            end: as begin.
            where: column → value, or a list of values any of which will do.
            columns: wanted; empty: all.
            tier: "auto" asks the ledger. "hot": from the cache first, if somebody asked the same lately. "warm": from
                the database, and from the cache where that does not answer. "cold": through a ticket.
            form: "rows", "arrow" or "pandas".
            newest_first: order by time, descending.
            limit: rows at most; 0: all.
            budget: seconds; default: 0.1 hot, 1 warm, 30 cold.

        Raises:
            NotFound: no such dataset; or "hot" or "warm" was demanded of a range that is partly cold.
            InDeepArchive: rows must be restored first; it says when that is expected.
            TimedOut, StoreUnavailable: a store does not answer, or not within the budget.
        """
        asked = make_range(dataset, begin, end, where, columns, newest_first, limit)
        known = self._directory.dataset(dataset)
        if tier == "auto":
            tier = "warm"
            if known.state == "moves":
                homes = await self._directory.homes(dataset, asked.begin, asked.end, self.budgets.warm)
                tier = "cold" if tier_of(homes, asked.begin, asked.end) is Tier.COLD else "warm"
            if tier == "warm":
                try:
                    return shaped(await self._ranges.read(asked, budget or self.budgets.warm), form)
                except errors.NotFound:
                    tier = "cold"  # a unit moved between our look at the ledger and the rows
        if tier == "cold":
            return of_table(await self._tickets.fetch(asked).result(budget or self.budgets.cold), form)
        key = keys.LATEST.key(dataset, asked.digest)
        seconds = budget or (self.budgets.hot if tier == "hot" else self.budgets.warm)

        async def load() -> list[Any]:
            rows = await self._ranges.read(asked, max(seconds, self.budgets.warm))
            return [list(rows.columns), [list(row) for row in rows.tuples]]

        if tier == "warm":
            await self.forget_quietly(key)
        names, tuples = (await self._reading.get(key, load, seconds)) or ([], [])
        return shaped(Rows(tuple(names), tuples), form)

    async def forget_quietly(self, key: Key) -> None:
        """Drop a key if the cache answers."""
        try:
            await self.cache.forget(key.text)
        except errors.StoreUnavailable:
            return

    def fetch(
        self,
        dataset: str,
        begin: datetime,
        end: datetime,
        *,
        where: Mapping[str, Any] | None = None,
        columns: Sequence[str] = (),
        newest_first: bool = False,
        limit: int = 0,
    ) -> Ticket:
        """Begin to fetch a range from whichever tiers it is in, and return a ticket for it at once.

        The ticket resolves by `await ticket.result()`, by `ticket.on_ready(callback)`, by a message on the Redis
        channel `ticket.channel`, or by `access.poll(ticket.id)` in any process.
        """
        self._directory.dataset(dataset)
        return self._tickets.fetch(make_range(dataset, begin, end, where, columns, newest_first, limit))

    async def poll(self, ticket_id: str) -> TicketStatus:
        """Say where a ticket's answer is; NotFound after an hour."""
        return await self._tickets.poll(ticket_id)

    async def collect(self, ticket_id: str, form: Form = "arrow") -> Any:
        """Return the answer of a ready ticket that any process made; NotFound after an hour, or if it was too big."""
        return of_table(await self._tickets.collect(ticket_id), form)

    async def tier_of(self, dataset: str, at: datetime) -> Tier:
        """Say where the rows of an instant are, by the ledger."""
        homes = await self._directory.homes(dataset, at, at.max.replace(tzinfo=UTC), self.budgets.warm)
        return tier_of([home for home in homes if home.begin <= at < home.end], at, at.max.replace(tzinfo=UTC))

    # -- writing -------------------------------------------------------------------------------------------

    async def write(
        self, dataset: str, rows: Sequence[Mapping[str, Any]], *, mode: Mode = "real_time", budget: float | None = None
    ) -> Written:
        """Write rows by their key; a row that is there gets the new values.

        Args:
            dataset: its name.
            rows: column → value each.
            mode: "real_time": in the database, then the cache, when this returns. "analytical": on this machine's
                disk when this returns, in the database within a second or so. "archival": see `archive`.
            budget: seconds to wait.

        Raises:
            TimedOut: it may be written or not; writing it again is safe.
            Throttled: analytical rows come faster than their database takes them.
            StoreUnavailable: nothing was written.
        """
        found, seconds = self._directory.dataset(dataset), budget or self.budgets.write
        if not rows:
            return Written(0)
        if mode == "real_time":
            return await self._writing.write(found, rows, seconds)
        if mode == "analytical":
            if not self._behind.is_started:
                await self._behind.start()
            return Written(await self._behind.write(found, rows, seconds), is_durable=False, is_cached=False)
        raise errors.PermanentError("write", dataset, f"no such mode: {mode}", "Use real_time or analytical.")

    async def flush(self, seconds: float = DRAIN_SECONDS) -> bool:
        """Wait until all analytical rows of this client are in their database; tell whether they are."""
        return await self._behind.drain(seconds)

    async def recover(self, seconds: float = DRAIN_SECONDS) -> bool:
        """Take over what clients that died left in their journals, and wait for it as `flush`.

        The first analytical write of a client does this too, and does not wait.

        Raises:
            StoreUnavailable: the journal's directory cannot be used.
        """
        await self._behind.start()
        return await self._behind.drain(seconds)

    # -- itself --------------------------------------------------------------------------------------------

    def observe(self) -> None:
        """Bring the metrics of breakers up to date; call it before a registry is scraped."""
        now = time.monotonic()
        for store in (self.hot, self.warm, self._hot_documents, self._warm_documents):
            self.metrics.breaker.labels(store.name).set(store.breaker.state(now))
        for name, state in self.cache.breakers(now).items():
            self.metrics.breaker.labels(name).set(state)

    async def start(self) -> None:
        """Listen to the ledger; `open_access` does this."""
        await self.trust.start(TRUST_SECONDS)
        for market in ("CN", "HK", "US"):
            self._calendars.sessions(market, datetime.now(UTC))

    async def close(self, drain_seconds: float) -> None:
        """Flush what is buffered and close everything; `open_access` does this."""
        await self._behind.close(drain_seconds)
        await self._reading.close()
        self._calendars.close()
        self._tickets.close()
        await self.trust.close()
        await self.cache.close()
        for store in (self.hot, self.warm, self._bulk, self._hot_documents, self._warm_documents):
            await store.close()


@asynccontextmanager
async def open_access(
    settings: Settings | None = None,
    *,
    policies: Policies | None = None,
    budgets: Budgets | None = None,
    registry: CollectorRegistry | None = None,
    drain_seconds: float = DRAIN_SECONDS,
) -> AsyncIterator[Access]:
    """Open the client; at the end flush what is buffered and close it.

    Opens also where servers are away: calls then answer as docs/access.md says.

    Args:
        settings: where the servers are; default: environment and `.env`.
        policies: the datasets; default: the settings' policy file.
        budgets: seconds per path.
        registry: for the metrics; default: one of its own (`access.metrics.registry`).
        drain_seconds: longest wait for buffered writes at the end.

    Raises:
        SettingsError, PolicyError: a setting or the policy file is wrong.
    """
    chosen = settings or load_settings()
    known = policies or parse_policies(chosen.policies.read_text(encoding="utf-8"), str(chosen.policies))
    access = Access(chosen, known, budgets or Budgets(), Metrics(registry))
    try:
        await access.start()
        yield access
    finally:
        await access.close(drain_seconds)
