"""`tiering plan` and `tiering explain` as people and scripts run them."""

from __future__ import annotations

import stat
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.test_cli import AT, POLICIES, Run, document, run  # noqa: F401 - a fixture
from tiering.model import Pin, Placement, Term, Transition
from tiering.plan.policies import parse_policies
from tiering.settings import Settings
from tiering.stores.opening import open_stores
from tiering.stores.pins import put_pin

NOW = datetime.fromisoformat(AT)


@pytest.fixture
def seeded(run: Run) -> Run:  # noqa: F811
    """The command on a small history in the age ranges of all tiers."""
    assert run("install", "--at", AT).returncode == 0
    assert run("seed", "--symbols", "1", "--days", "1", "--at", AT).returncode == 0
    return run


def test_a_plan_is_sealed_applied_and_applied_already(seeded: Run, tmp_path: Path) -> None:
    words = ("plan", "--dataset", "market_bars", "--at", AT)
    shown = seeded(*words)
    assert shown.returncode == 0
    assert "USD a month" in shown.stdout
    assert "no past move" in " ".join(shown.stdout.split())
    planned = document(seeded(*words, "--out", "plan.json", "--json"))
    assert planned["totals"]["moves"] == len(planned["estimates"]) == len(planned["plans"][0]["moves"]) > 0
    assert {place["place"] for place in planned["totals"]["places"]} == {"hot", "warm"}
    assert stat.S_IMODE((tmp_path / "plan.json").stat().st_mode) == 0o600

    applied = document(seeded("plan", "--apply", "plan.json", "--at", AT, "--json"))
    assert len(applied["receipts"]) == planned["totals"]["moves"]
    assert (applied["already_applied"], applied["problems"]) == (False, {})
    again = seeded("plan", "--apply", "plan.json", "--at", AT)
    assert (again.returncode, "already applied: nothing was changed" in again.stdout) == (0, True)
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text.replace("hot-to-warm", "compress", 1))
    done = seeded("plan", "--apply", "plan.json", "--at", AT, "--json")
    assert (done.returncode, "altered" in document(done)["error"]["cause"]) == (1, True)
    assert "tiering plan --out" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--apply", "none.json"), 1, "No such file"),
        (("--apply", "none.json", "--dataset", "market_bars"), 2, "says itself"),
        (("--out", "nowhere/plan.json", "--at", AT), 1, "write plan"),
    ],
)
def test_what_cannot_be_planned_says_so(seeded: Run, arguments: tuple[str, ...], code: int, told: str) -> None:
    done = seeded("plan", *arguments)
    assert (done.returncode, told in done.stderr) == (code, True), done.stderr


def test_explain_writes_out_every_rule_and_what_placement_decided(seeded: Run, fresh_settings: Settings) -> None:
    units = document(seeded("explain", "market_bars", "--at", AT, "--json"))["units"]
    young = next(unit for unit in units if unit["reasons"] and unit["reasons"][0]["code"] == "young")
    name = "/".join(young["unit"].split("/")[:2])
    begin = datetime.fromisoformat(f"{name.split('/')[1]}T00:00+00:00")
    terms = (Term("heat", "250.0/day", "> 100/day", "hot", 60, 1),)
    pin = Pin("market_bars", begin, Transition.HOT_TO_WARM, 86400, terms, NOW, NOW + timedelta(days=30))
    with open_stores(fresh_settings, parse_policies(POLICIES.read_text(), str(POLICIES))) as stores:
        assert stores.policies.placement == Placement()
        with stores.warm.transaction("pin", name) as connection:
            assert put_pin(connection, pin, None)
    (unit,) = document(seeded("explain", "market_bars", "--unit", name, "--at", AT, "--json"))["units"]
    assert [reason["code"] for reason in unit["reasons"]] == ["young", "pinned"]
    rule = next(rule for rule in unit["rules"] if rule["transition"] == "hot-to-warm")
    assert (rule["policy"], rule["threshold"], rule["verdict"]) == ("7d", "8d", "waits")
    assert unit["next_date"] == rule["due_at"]
    assert unit["pins"][0]["terms"][0]["value"] == "250.0/day"
    shown = seeded("explain", "market_bars", name, "--at", AT).stdout
    assert all(word in shown for word in ("warm-to-cold", "threshold", "250.0/day", "1d later", "pinned"))
    everything = seeded("explain", "market_bars", "--all", "--at", AT).stdout
    assert everything.count("verdict") == len(units)


def test_explain_says_why_a_state_table_never_moves(seeded: Run) -> None:
    done = seeded("explain", "positions", "--json")
    assert done.returncode == 0, done.stderr
    (note,) = document(done)["notes"]
    assert note["code"] == "state_table"
    assert "backups carry it" in note["text"]
    planned = document(seeded("plan", "--class", "user_data", "--at", AT, "--json"))
    assert [plan["dataset"] for plan in planned["plans"]] == ["user_activity"]
