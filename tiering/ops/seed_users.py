"""What seeded users did and have: rows of user_activity, of the audit log, and of the state tables.

Does not: load histories (seed.py does, like bars).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

import pyarrow as pa

from tiering.model import Unit
from tiering.ops.seed_shapes import user_name
from tiering.stores.opening import Stores
from tiering.stores.postgres import execute

ACTIONS = ("view_stock", "run_analysis", "add_favorite", "export_report", "search")
OPERATIONS = (
    ("user_login", "用户登录"),
    ("stock_analysis", "运行分析"),
    ("config_management", "修改配置"),
    ("data_export", "导出报告"),
)
ROWS_PER_USER = 3
MS = timedelta(milliseconds=1)


def activity(unit: Unit, now: datetime, users: int, seed: int) -> Iterator[pa.Table]:
    """Make what users did in a unit."""
    rows = []
    for dice, at, who in _scenes(unit, now, users, seed):
        action = dice.choice(ACTIONS)
        rows.append(
            {
                "user_id": who,
                "activity_id": str(UUID(int=dice.getrandbits(128), version=4)),
                "ts": at,
                "action": action,
                "symbol": f"S{dice.randrange(100):05d}" if action != "search" else None,
                "details": _json({"来源": dice.choice(("web", "app")), "seconds": dice.randrange(900), "page": action}),
                "ip": _address(dice),
                "session_id": f"session-{dice.getrandbits(48):012x}",
            }
        )
    yield _table(rows)


def audit_log(unit: Unit, now: datetime, users: int, seed: int) -> Iterator[pa.Table]:
    """Make what was logged in a unit; some of it is the system's own, and some failed."""
    rows = []
    for dice, at, who in _scenes(unit, now, users, seed):
        kind, action = dice.choice(OPERATIONS)
        is_system, is_good = dice.random() < 0.1, dice.random() < 0.95
        rows.append(
            {
                "event_id": str(UUID(int=dice.getrandbits(128), version=4)),
                "ts": at,
                "user_id": None if is_system else who,
                "actor": "system" if is_system else who,
                "action_type": kind,
                "action": action,
                "details": _json({"path": f"/api/{kind}", "status": 200 if is_good else 500}),
                "success": is_good,
                "error_message": None if is_good else "连接超时 (timeout)",
                "duration_ms": dice.randrange(5000),
                "ip": _address(dice),
                "user_agent": "Mozilla/5.0 (X11; Linux x86_64)",
            }
        )
    yield _table(rows)


def load_state(stores: Stores, now: datetime, users: int, seed: int) -> None:
    """Fill the state tables: what users have set, hold and wait for. Rows that are there stay as they are."""
    with stores.hot.transaction("seed", "state tables") as connection:
        for number in range(users):
            who, dice = user_name(number), Random(f"{seed} state {number}")
            execute(
                connection,
                "INSERT INTO hot.user_configurations VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                (who, _json({"language": "zh-CN", "depth": dice.choice((1, 3, 5))}), now),
            )
            for symbol in sorted({f"S{dice.randrange(100):05d}" for _ in range(2)}):
                price = Decimal(dice.randrange(100, 50_000)) / 100
                execute(
                    connection,
                    """INSERT INTO hot.positions (user_id, symbol, quantity, avg_price, currency, opened_at, updated_at)
                       VALUES (%s, %s, %s, %s, 'CNY', %s, %s) ON CONFLICT DO NOTHING""",
                    (who, symbol, dice.randrange(1, 100) * 100, price, now - timedelta(days=dice.randrange(400)), now),
                )
            alert = str(UUID(int=dice.getrandbits(128), version=4))
            execute(
                connection,
                """INSERT INTO hot.alert_triggers
                       (alert_id, user_id, symbol, condition, threshold, is_active, updated_at)
                   VALUES (%s, %s, %s, 'price_above', %s, true, %s) ON CONFLICT DO NOTHING""",
                (alert, who, f"S{dice.randrange(100):05d}", Decimal(dice.randrange(100, 50_000)) / 100, now),
            )


def _scenes(unit: Unit, now: datetime, users: int, seed: int) -> Iterator[tuple[Random, datetime, str]]:
    """Throw for every row its dice, its time in the unit (the newest unit's newest is of `now`) and its user."""
    end = min(unit.end, now + MS)
    for number in range(users * ROWS_PER_USER):
        dice = Random(f"{seed} {unit.name} {number}")
        at = unit.begin + dice.randrange(max(1, (end - unit.begin) // MS)) * MS
        yield dice, end - MS if number == 0 else at, user_name(number % users)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    zoned = {"ts": pa.timestamp("us", "UTC")}
    names = list(rows[0])
    return pa.table({name: pa.array([row[name] for row in rows], zoned.get(name)) for name in names})


def _address(dice: Random) -> str:
    return f"10.{dice.randrange(256)}.{dice.randrange(256)}.{dice.randrange(1, 255)}"


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
