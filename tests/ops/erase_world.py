"""A thousand people in every tier, and ways to count one of them and to fingerprint all the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime

import infra.sql
from tests.ops.world import NOW, POLICIES, World, days_ago
from tiering.model import Dataset, Span
from tiering.ops import install, lifecycle
from tiering.plan.policies import parse_policies
from tiering.settings import Settings
from tiering.stores.opening import Stores, open_stores
from tiering.stores.postgres import execute, fetch

PERSON, NEIGHBOUR = "user-0012", "user-00123"
"""One whose name is the beginning of another's."""

ACTIVITY = """
CREATE TABLE IF NOT EXISTS hot.user_activity (
    user_id text NOT NULL, activity_id text NOT NULL, ts timestamptz NOT NULL, action text NOT NULL, symbol text,
    details jsonb, ip text, session_id text, PRIMARY KEY (user_id, ts, activity_id)) PARTITION BY RANGE (ts);
"""
AUDIT_LOG = """
CREATE TABLE IF NOT EXISTS hot.audit_log (
    event_id text NOT NULL, ts timestamptz NOT NULL, user_id text, action text, details jsonb,
    PRIMARY KEY (ts, event_id)) PARTITION BY RANGE (ts);
"""
STATE = """
CREATE TABLE IF NOT EXISTS hot.positions (
    user_id text NOT NULL, symbol text NOT NULL, updated_at timestamptz NOT NULL, amount numeric,
    PRIMARY KEY (user_id, symbol));
"""


@dataclass(frozen=True)
class People:
    """Stores with two datasets about persons, and a state table."""

    stores: Stores
    activity: Dataset
    audit_log: Dataset

    def world(self, dataset: Dataset) -> World:
        return World(self.stores, dataset)

    def insert(self, day: datetime, users: int = 50, each: int = 2, dataset: str = "user_activity") -> int:
        """Insert rows of the first users, the person and the neighbour among them, spread over a day."""
        columns, values = {
            "user_activity": (
                "user_id, activity_id, ts, action, symbol, details, ip, session_id",
                """who, 'a' || n, %(day)s + n * interval '1 second', 'view', 'S' || n %% 7,
                   jsonb_build_object('by', who, 'n', n), '10.0.0.' || n %% 250, md5(who)""",
            ),
            "audit_log": (
                "event_id, ts, user_id, action, details",
                "'e' || n, %(day)s + n * interval '1 second', who, 'login', jsonb_build_object('actor', who)",
            ),
        }[dataset]
        statement = f"""INSERT INTO hot.{dataset} ({columns}) SELECT {values} FROM (
            SELECT CASE u WHEN 1 THEN %(neighbour)s WHEN 0 THEN %(person)s ELSE 'user-' || u END AS who,
                   u * %(each)s + k AS n
            FROM generate_series(0, %(users)s - 1) u, generate_series(0, %(each)s - 1) k) people
            ON CONFLICT DO NOTHING"""
        with self.stores.hot.transaction("insert", dataset) as connection:
            given = {"day": day, "users": users, "each": each, "person": PERSON, "neighbour": NEIGHBOUR}
            return execute(connection, statement, given)

    def run(self, dataset: Dataset | None = None, rounds: int = 2) -> None:
        for _ in range(rounds):
            self.world(dataset or self.activity).run()

    def others(self) -> list[tuple[object, ...]]:
        """Every row of everybody else, from every tier, sorted."""
        return [row for row in self.everybody() if PERSON not in row]

    def everybody(self) -> list[tuple[object, ...]]:
        """Every row from every tier, sorted, in the words that all tiers share."""
        rows = [(d.name, *map(_text, row)) for d in (self.activity, self.audit_log) for row in self.world(d).rows()]
        with self.stores.hot.transaction("read", "positions") as connection:
            rows += [("positions", *map(str, row)) for row in fetch(connection, "SELECT * FROM hot.positions")]
        return sorted(rows)

    def persons_rows(self) -> int:
        rows = [row for d in (self.activity, self.audit_log) for row in self.world(d).rows()]
        return sum(PERSON in row for row in rows)


@contextmanager
def open_people(settings: Settings, *, lock: bool = False, compress: bool = True) -> Iterator[People]:
    """Open stores on empty databases, with people's datasets that move."""
    policies = parse_policies(POLICIES.read_text(), str(POLICIES))
    changed = []
    for dataset in policies.datasets:
        if dataset.name == "user_activity" and compress:
            dataset = replace(dataset, policy=replace(dataset.policy, compression=Span(days=200)))
        if dataset.name in ("user_activity", "audit_log"):
            dataset = replace(dataset, state="moves", lock=lock and dataset.lock, suite="")
        changed.append(dataset)
    with open_stores(settings, replace(policies, datasets=tuple(changed))) as stores:
        install.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
        with stores.hot.transaction("create", "tables") as connection:
            for script in (ACTIVITY, AUDIT_LOG, STATE):
                execute(connection, script)
        people = People(stores, *(lifecycle.dataset_named(stores, n) for n in ("user_activity", "audit_log")))
        for dataset in (people.activity, people.audit_log):
            install.install_dataset(stores, dataset)
        yield people


def fill(people: People, users: int = 50) -> None:
    """Put rows in every tier: hot, sealed late, warm, packed, cold, cold merged, stage and trash; and a state table."""
    for days in (0, 3, 40, 41, 300, 301, 800, 801, 802):
        people.insert(days_ago(days), users)
        people.insert(days_ago(days), users, dataset="audit_log")
    people.run()
    people.run(people.audit_log)
    people.run()  # one more: warm to cold of what was compressed
    people.insert(days_ago(801), 3, each=400)  # late rows of a cold unit …
    people.insert(days_ago(40), 3, each=400)
    people.run()  # … merged: the old file waits in the trash
    people.insert(days_ago(802), 3, each=300)  # late rows that nobody has merged yet
    with people.stores.hot.transaction("insert", "positions") as connection:
        for who in (PERSON, NEIGHBOUR, "user-9"):
            execute(connection, "INSERT INTO hot.positions VALUES (%s, 'S1', %s, 10.5)", (who, NOW))


def _text(value: object) -> str:
    """One text for a document, whether PostgreSQL gives it as a value or the lake as its text."""
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else str(value)
