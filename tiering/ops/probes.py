"""Ask restored stores what the platform's components ask: only a right answer says that a component is back.

One function for each of `plan/drills.PROBES`, by its name. Does not: judge how long it took.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tiering import errors
from tiering.model import Form
from tiering.model_backup import StoreName
from tiering.model_drill import Probe
from tiering.ops import lifecycle
from tiering.ops.fsck import fsck
from tiering.ops.query import query
from tiering.ops.recoverers import Restored
from tiering.plan import audit as chain
from tiering.stores import audit, questions
from tiering.stores.opening import Stores


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a probe asks: the restored stores, opened as the platform's own.

    Attributes:
        stores: as the platform opens them.
        site: names of the platform.
        copies: what was restored, by store.
    """

    stores: Stores
    site: Mapping[str, str]
    copies: Mapping[StoreName, Restored]


def ask(ground: Ground, probe: Probe) -> str:
    """Ask one question; return the answer in words.

    Raises:
        TieringError: there is no answer, or it is not right.
    """
    return _QUESTIONS[probe.name](ground)


def _redis(ground: Ground) -> str:
    slots, keys = questions.ask_redis(ground.copies[StoreName.REDIS].url)
    return f"{slots} slots, {keys:,} keys"


def _postgres(ground: Ground) -> str:
    number = questions.write_to_postgres(ground.stores.hot)
    broken = audit_break(ground.stores)
    if broken:
        raise errors.VerificationError("ask", "PostgreSQL", f"the audit trail is broken: {broken}")
    return f"transaction {number} committed, audit trail unbroken"


def _week(ground: Ground) -> str:
    symbol, bars, close = questions.week_of_a_symbol(ground.stores.warm)
    return f"{bars:,} bars of {symbol}, the last at {close}"


def _positions(ground: Ground) -> str:
    return f"{questions.count_of(ground.stores.hot, 'positions'):,} positions"


def _mongo(ground: Ground) -> str:
    return f"a document written and read, {questions.write_to_mongo(ground.stores.hot_documents)} collections"


def _sentiment(ground: Ground) -> str:
    return f"{questions.sentiment_by_symbol(ground.stores.hot_documents):,} symbols"


def _results(ground: Ground) -> str:
    found = questions.newest_documents(ground.stores.hot_documents, ["analysis_results"], "created_at")
    return f"{found['analysis_results']} results"


def _sessions(ground: Ground) -> str:
    names = ["analysis_sessions", "research_reports"]
    found = questions.newest_documents(ground.stores.hot_documents, names, "created_at")
    return " and ".join(f"{count} {name}" for name, count in found.items())


def _settings(ground: Ground) -> str:
    return f"settings of {questions.count_of(ground.stores.hot, 'user_configurations'):,} users"


def _months(ground: Ground) -> str:
    statement = """SELECT date_trunc('month', ts) AS month, count(*) AS bars FROM market_bars
                   GROUP BY month ORDER BY month"""
    table = query(ground.stores, statement)
    if not table.num_rows:
        raise errors.VerificationError("ask for", "market_bars", "no tier has one bar")
    return f"{sum(table.column('bars').to_pylist()):,} bars in {table.num_rows} months"


def _due(ground: Ground) -> str:
    stores = ground.stores
    moving = [d for d in stores.policies.datasets if d.state == "moves" and d.form is not Form.FILES]
    known = [d for d in moving if stores.ledger.knows(d.name)]
    plans = [lifecycle.plan_dataset(stores, dataset, ground.copies[StoreName.POSTGRESQL].at) for dataset in known]
    units = questions.units_by_tier(stores.warm)
    told = ", ".join(f"{count} {tier}" for tier, count in units.items()) or "no units"
    return f"{sum(len(plan.moves) for plan in plans)} moves due of {len(known)} datasets; {told}"


def _objects(ground: Ground) -> str:
    checked = fsck(ground.stores, ground.copies[StoreName.POSTGRESQL].at, deep=True)
    bad = [finding for finding in checked.findings if not finding.is_note]
    if bad:
        raise errors.FingerprintMismatch("check", bad[0].subject, f"{bad[0].text} ({len(bad)} findings)")
    return f"{checked.units:,} units and {checked.objects:,} objects agree, {checked.rows:,} rows read again"


def _files(ground: Ground) -> str:
    facts = ground.copies[StoreName.APPLICATION_DATA].facts
    return f"{facts.get('files', 0)} files of {facts.get('bytes', 0)} bytes"


def audit_break(stores: Stores) -> str:
    """Compute the audit trail's chain again, without the heads noted in the lake's bucket; empty if it is unbroken."""
    links = (chain.Link(*link) for link in audit.links(stores.warm))
    found = next(chain.breaks(links, ()), None)
    return f"{found.subject}: {found.text}" if found else ""


_QUESTIONS: Mapping[str, Callable[[Ground], str]] = {
    "every slot answers and the snapshot's keys are there": _redis,
    "it takes writes, and its ledger's chain is whole": _postgres,
    "the last 7 days of one symbol": _week,
    "the open positions": _positions,
    "the cache in front of the bars": _redis,
    "it takes writes, and every collection is there": _mongo,
    "sentiment by symbol": _sentiment,
    "the newest analysis results": _results,
    "the newest sessions and reports": _sessions,
    "the users' settings": _settings,
    "bars by month over all tiers": _months,
    "what is due to move, by the restored ledger": _due,
    "every object that the ledger names": _objects,
    "every file of the snapshot": _files,
}
