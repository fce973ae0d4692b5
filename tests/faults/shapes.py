"""What grounds of tables differ in: the table, its rows, the ages of its units, and what is special about its lake.

Every column of a row depends on its key and its version, so that no two versions are alike in anything.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.faults.journal import INSERT, SELECTED, Key, bar
from tiering.model import Span, StorageClass

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Shape:
    """One table.

    Attributes:
        dataset: its name.
        script: of infra/sql that creates it.
        insert: a statement with `{}` for the values; a later version of a key overwrites an earlier one.
        columns: of a row, as the lake calls them.
        selected: the same as PostgreSQL is asked for them, in the words that the lake has.
        row: makes the one row that a key has in a version.
        key_of, version_of: of a row.
        ages: of the youngest unit due for warm, for cold, and past retention, in days.
        earlier: how long before now the units past retention go warm, and cold.
        expires_cold: whether they go cold then: under a lock they would be there for years to come.
        storage: the ladder of its lake objects.
    """

    dataset: str
    script: str
    insert: str
    columns: tuple[str, ...]
    selected: str
    row: Callable[[Key, int], Row]
    key_of: Callable[[Row], Key]
    version_of: Callable[[Row], int]
    ages: tuple[int, int, int]
    earlier: timedelta
    expires_cold: bool = True
    storage: tuple[tuple[StorageClass, Span], ...] = ()


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _at(key: Key) -> datetime:
    return datetime.fromtimestamp(key[1], UTC)


def _uuid(key: Key) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{key[0]} {key[1]}"))


def _details(version: int) -> str:
    """As PostgreSQL writes jsonb."""
    return json.dumps({"n": version, "of": [version % 7, None, "项"]}, ensure_ascii=False)


def _activity(key: Key, version: int) -> Row:
    who, what = key[0], f"view {version}"
    session = None if version % 3 else f"s{version}"
    return who, _uuid(key), _at(key), what, f"S{version % 11}", _details(version), f"10.0.0.{version % 250}/32", session


def _event(key: Key, version: int) -> Row:
    who, actor = None if version % 5 == 0 else f"u{version}", key[0]
    failure = None if version % 2 else f"broke {version}"
    said = ("login", f"try {version}", _details(version), failure is None, failure, version)
    return _uuid(key), _at(key), who, actor, *said, f"fe80::{version % 9000 + 1:x}/128", f"agent/{version}"


_BAR = _names(SELECTED)
BARS = Shape(
    "market_bars",
    "market_data",
    INSERT,
    _BAR,
    SELECTED,
    bar,
    key_of=lambda row: (row[0], int(row[3].timestamp())),
    version_of=lambda row: int(row[8]),
    ages=(10, 800, 3700),
    earlier=timedelta(days=3 * 365),
)

_ACTIVITY = "user_id, activity_id, ts, action, symbol, details, ip, session_id"
ACTIVITY = Shape(
    "user_activity",
    "user_data",
    f"""INSERT INTO hot.user_activity ({_ACTIVITY}) VALUES {{}} ON CONFLICT (user_id, ts, activity_id) DO UPDATE
        SET action = excluded.action, symbol = excluded.symbol, details = excluded.details, ip = excluded.ip,
            session_id = excluded.session_id""",
    _names(_ACTIVITY),
    "user_id, activity_id::text, ts, action, symbol, details::text, ip::text, session_id",
    _activity,
    key_of=lambda row: (row[0], int(row[2].timestamp())),
    version_of=lambda row: int(row[3].split()[1]),
    ages=(40, 800, 3700),
    earlier=timedelta(days=4 * 365),
    storage=((StorageClass.STANDARD_IA, Span(months=25)),),
)

_EVENT = (
    "event_id, ts, user_id, actor, action_type, action, details, success, error_message, duration_ms, ip, user_agent"
)
AUDIT = Shape(
    "audit_log",
    "user_data",
    f"""INSERT INTO hot.audit_log ({_EVENT}) VALUES {{}} ON CONFLICT (ts, event_id) DO UPDATE
        SET user_id = excluded.user_id, action = excluded.action, details = excluded.details,
            success = excluded.success, error_message = excluded.error_message, duration_ms = excluded.duration_ms,
            ip = excluded.ip, user_agent = excluded.user_agent""",
    _names(_EVENT),
    "event_id::text, ts, user_id, actor, action_type, action, details::text, success, error_message, duration_ms, "
    "ip::text, user_agent",
    _event,
    key_of=lambda row: (row[3], int(row[1].timestamp())),
    version_of=lambda row: int(row[9]),
    ages=(10, 800, 3700),
    earlier=timedelta(days=4 * 365),
    expires_cold=False,
)
SHAPES = {shape.dataset: shape for shape in (BARS, ACTIVITY, AUDIT)}
