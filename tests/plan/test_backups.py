"""The owner's backup strategy: as written, refused where it breaks a rule, and what is due by it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiering.errors import PolicyError
from tiering.model_backup import BackupKind, StoreName
from tiering.plan import backups
from tiering.plan.policies import parse_policies

TEXT = (Path(__file__).resolve().parents[2] / "deployments" / "policies.yaml").read_text(encoding="utf-8")
STRATEGY = backups.parse_strategy(TEXT, "policies.yaml")
FULL, INCREMENTAL, AOF = BackupKind.FULL, BackupKind.INCREMENTAL, BackupKind.AOF
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def test_the_owners_strategy() -> None:
    told = {
        one.store: (
            {schedule.kind: backups.cron_of(schedule) for schedule in one.schedules},
            {kind: length.days for kind, length in one.retention.items()},
            one.log_window and one.log_window.days,
        )
        for one in STRATEGY.stores
    }
    assert told == {
        StoreName.POSTGRESQL: (
            {FULL: ("0 2 * * *",), INCREMENTAL: ("0 0,4,8,12,16,20 * * *",)}, {FULL: 30, INCREMENTAL: 7}, 7,
        ),
        StoreName.MONGODB: ({FULL: ("0 3 * * *",)}, {FULL: 30}, 7),
        StoreName.REDIS: ({FULL: ("0 0,6,12,18 * * *",), AOF: ("0 4 * * *",)}, {FULL: 7, AOF: 7}, None),
        StoreName.APPLICATION_DATA: ({FULL: ("0 * * * *",)}, {FULL: 90}, None),
        StoreName.CONFIGURATION: ({FULL: ("30 1 * * *",)}, {FULL: 366}, None),
        StoreName.LAKE: ({FULL: ("0 * * * *",)}, {FULL: 30}, None),
    }  # fmt: skip
    configuration = STRATEGY.of(StoreName.CONFIGURATION)
    assert configuration
    assert configuration.schedules[0].on_change


def broken(store: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["backup_strategy"][store].update(changes)


BREAKS: list[tuple[str, str, Callable[[dict[str, Any]], Any]]] = [
    ("backup_strategy.postgres", "Did you mean 'postgresql'", lambda d: d["backup_strategy"].update(postgres={})),
    ("backup_strategy.mongodb", "must be a mapping", lambda d: d["backup_strategy"].update(mongodb="daily")),
    ("backup_strategy:", "must be a mapping", lambda d: d.update(backup_strategy="daily")),
    ("backup_strategy:", "empty", lambda d: d.update(backup_strategy={})),
    ("redis.incremental", "unknown key", broken("redis", incremental="every 4h")),
    ("redis.log", "unknown key", broken("redis", log="continuous")),
    ("lake.full", "missing", lambda d: d["backup_strategy"]["lake"].pop("full")),
    ("postgresql.full", "does not say UTC.*daily 02:00 UTC", broken("postgresql", full="daily 02:00")),
    ("postgresql.full", "does not say UTC", broken("postgresql", full="daily 02:00 CET")),
    ("postgresql.full", "no schedule", broken("postgresql", full="daily 24:00 UTC")),
    ("postgresql.full", "no schedule", broken("postgresql", full=120)),
    ("postgresql.incremental", "does not divide a day", broken("postgresql", incremental="every 5h")),
    ("postgresql.incremental", "both begin at 04:00 UTC", broken("postgresql", full="daily 04:00 UTC")),
    ("postgresql.log", "not known", broken("postgresql", log="hourly")),
    ("configuration.full", "needs a time of the day", broken("configuration", full="on change")),
    ("lake.retention", "missing", lambda d: d["backup_strategy"]["lake"].pop("retention")),
    ("mongodb.retention.log", "missing", broken("mongodb", retention={"full": "30d"})),
    ("mongodb.retention.full", "not a length", broken("mongodb", retention={"full": 30, "log": "7d"})),
    ("mongodb.retention.full", "no unit", broken("mongodb", retention={"full": "30x", "log": "7d"})),
    ("mongodb.retention.full", "for no time", broken("mongodb", retention={"full": "0d", "log": "7d"})),
    ("mongodb.retention.log", "longer than full", broken("mongodb", retention={"full": "7d", "log": "30d"})),
    (
        "postgresql.retention.incremental", "shorter than the log",
        broken("postgresql", retention={"full": "30d", "incremental": "6d", "log": "7d"}),
    ),
    ("redis.retention.aof", "before the next one", broken("redis", retention={"full": "7d", "aof": "20h"})),
]  # fmt: skip


@pytest.mark.parametrize(("key", "said", "break_it"), BREAKS)
def test_a_rule_that_is_broken_is_named(key: str, said: str, break_it: Callable[[dict[str, Any]], Any]) -> None:
    document = yaml.safe_load(TEXT)
    break_it(document)
    with pytest.raises(PolicyError, match=f"own.yaml: .*{key}.*{said}"):
        parse_policies(yaml.safe_dump(document), "own.yaml")


def test_what_is_due_next_and_what_is_missing() -> None:
    strategy = STRATEGY.of(StoreName.POSTGRESQL)
    assert strategy
    grace = timedelta(hours=1)
    begun = [(FULL, NOON.replace(hour=2)), (INCREMENTAL, NOON.replace(hour=8))]
    full, incremental = backups.due_next(strategy, begun, NOON + timedelta(minutes=59), grace)
    assert (full.next_at, full.last_due_at, full.is_overdue) == (
        NOON.replace(day=24, hour=2), NOON.replace(hour=2), False,
    )  # fmt: skip
    assert (incremental.next_at, incremental.is_overdue) == (NOON.replace(hour=16), False)
    later = backups.due_next(strategy, begun, NOON + timedelta(minutes=60), grace)
    assert [one.is_overdue for one in later] == [False, True]
    nothing = backups.due_next(strategy, [], NOON, grace)
    assert [one.is_overdue for one in nothing] == [True, True]


def test_the_longest_pause() -> None:
    times = (time(2), time(4), time(9, 30))
    schedule = backups.BackupSchedule(FULL, times)
    assert backups.longest_pause(schedule) == timedelta(hours=16, minutes=30)
    assert backups.cron_of(schedule) == ("0 2,4 * * *", "30 9 * * *")
