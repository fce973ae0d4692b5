"""The `tiering` command as people and scripts run it: a real process, its exit code, stdout and stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from tests.ops.world import POLICIES
from tiering.cli import app, main
from tiering.model import Transition
from tiering.ops import lifecycle
from tiering.plan.policies import parse_policies
from tiering.settings import Settings
from tiering.stores.opening import open_stores
from tiering.stores.postgres import execute
from tiering.stores.records import OPEN_STATES

AT = "2024-06-20T12:00Z"
GROUPS = ("backups", "evidence", "hold", "objects", "policies", "stack", "stream")
# PostgreSQL runs these, not a person.
SERVERS = ("wal-push", "wal-fetch")
PLAIN = (
    *("install", "plan", "explain", "seed", "load", "query", "fsck", "run", "release", "sweep"),
    *("placement", "rehydrate", "compact", "erase"),
    *("backup", "verify", "restore", "drill", "recover", "heartbeat"),
)
COMMANDS = (
    *PLAIN,
    "objects list",
    "objects restore",
    "objects status",
    "hold place",
    "hold lift",
    "hold list",
    "policies lint",
    "backups retention",
    "evidence verify",
    "evidence list",
    "evidence key",
    "stream postgresql",
    "stream mongodb",
)
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def environment(settings: Settings) -> dict[str, str]:
    """Say in variables what the fixture's settings say."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIERING_")}
    urls = {"TIERING_HOT_MONGO_URL": settings.hot_mongo_url, "TIERING_WARM_MONGO_URL": settings.warm_mongo_url}
    kept |= {name: url.get_secret_value() for name, url in urls.items() if url}
    return kept | {
        "TIERING_HOT_PG_URL": settings.hot_pg_url.get_secret_value(),
        "TIERING_WARM_PG_URL": settings.warm_pg_url.get_secret_value(),
        "TIERING_S3_URL": settings.s3_url,
        "TIERING_S3_ACCESS_KEY": settings.s3_access_key.get_secret_value(),
        "TIERING_S3_SECRET_KEY": settings.s3_secret_key.get_secret_value(),
        "TIERING_LAKE_BUCKET": settings.lake_bucket,
        "TIERING_FILES_BUCKET": settings.files_bucket,
        "TIERING_POLICIES": str(POLICIES),
        "PYTHONPATH": str(POLICIES.parents[1]),
    }


def call(variables: dict[str, str], directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tiering.cli", *arguments]
    return subprocess.run(command, env=variables, cwd=directory, capture_output=True, text=True, timeout=120)


@pytest.fixture
def run(
    fresh_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run the command on empty databases, in this process: importing the stores costs seconds, each time."""
    for name, value in environment(fresh_settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run_it(*arguments: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), said.out, said.err)

    return run_it


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """Read stdout as exactly one JSON document."""
    assert done.stdout.count("\n") == 1, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_every_command_explains_itself_with_an_example(tmp_path: Path) -> None:
    root: Any = get_command(app)
    assert set(root.commands) == {*PLAIN, *GROUPS, *SERVERS}
    for name in COMMANDS:
        command = root
        for word in name.split():
            command = command.commands[word]
        assert command.help, name
        assert "Example" in command.help, name
        assert any("--json" in parameter.opts for parameter in command.params), name
    done = call(dict(os.environ) | {"PYTHONPATH": str(POLICIES.parents[1])}, tmp_path, "--help")
    assert done.returncode == 0
    assert "stack" in done.stdout


def test_a_whole_life_by_command(run: Run, tmp_path: Path) -> None:
    assert run("install", "--json", "--at", AT).returncode == 0
    seeded = document(run("seed", "--symbols", "2", "--days", "1", "--at", AT, "--json"))
    moving = [d.name for d in parse_policies(POLICIES.read_text(), "p").datasets if d.state == "moves"]
    assert {s["dataset"]: s["rows"] > 0 for s in seeded["seeded"]} == {
        name: True for name in moving if name != "index_bars"
    }, "index bars come from files"
    planned = document(run("plan", "--dataset", "market_bars", "--at", AT, "--json"))
    assert {m["transition"] for m in planned["plans"][0]["moves"]} == {"hot-to-warm"}
    count = "SELECT count(*) AS n FROM market_bars"
    rows = document(run("query", count, "--json"))["rows"]

    held = next(m["unit"]["begin"][:10] for m in planned["plans"][0]["moves"])
    assert run("hold", "place", f"market_bars/{held}", "--reason", "case 1").returncode == 0
    assert document(run("hold", "list", "--json"))["holds"][0]["reason"] == "case 1"
    for transition in ("hot-to-warm", "compress", "warm-to-cold", "expire"):
        done = run("run", transition, "--dataset", "market_bars", "--at", AT, "--json")
        assert done.returncode == 0, done.stderr
        assert not document(done)["failed"]
    assert document(run("query", count, "--json"))["rows"] == rows, "the only unit past its retention is held"
    explained = document(run("explain", "market_bars", f"market_bars/{held}", "--at", AT, "--json"))
    assert {r["code"] for r in explained["units"][0]["reasons"]} == {"held"}
    assert run("hold", "lift", f"market_bars/{held}", "--reason", "closed").returncode == 0
    done = run("run", "expire", "--dataset", "market_bars", "--at", AT, "--json")
    assert document(done)["receipts"][0]["state"] == "COMMITTED"
    assert document(run("sweep", "--at", "2024-07-01T00:00Z", "--dry-run", "--json"))["swept"]
    done = run("fsck", "--deep", "--json", "--at", AT)
    assert done.returncode == 0, done.stdout
    assert document(done)["clean"]


def test_load_and_query_keep_digits(run: Run, tmp_path: Path) -> None:
    run("install")
    file = tmp_path / "bars.csv"
    file.write_text("symbol,timeframe,ts,close\nA,1d,2024-06-19,0.12345678\n")
    constants = ("--set", "market=US", "--set", "source=test")
    assert document(run("load", str(file), *constants, "--json"))["inserted"] == 1
    answer = document(run("query", "SELECT symbol, ts, close FROM market_bars", "--json"))
    assert answer["columns"] == ["symbol", "ts", "close"]
    assert answer["rows"] == [["A", "2024-06-19T00:00:00Z", "0.12345678"]]
    shown = run("query", "SELECT close FROM market_bars")
    assert "0.12345678" in shown.stdout
    file.write_text("symbol,timeframe,ts,close\nA,1d,2024-06-19,lots\n")
    done = run("load", str(file), *constants, "--json")
    assert (done.returncode, document(done)["error"]["cause"][:23]) == (1, "1 bad rows: line 2: clo")


def test_a_quarantined_unit_exits_with_3_and_is_released(run: Run, tmp_path: Path) -> None:
    run("install", "--at", AT)
    head = "symbol,market,timeframe,ts,open,high,low,close,source\n"
    file = tmp_path / "bars.csv"
    file.write_text(head + "A,US,1d,2024-05-20,2,1,3,2,t\nA,US,1d,2024-06-19,1,1,1,1,t\n")
    assert run("load", str(file)).returncode == 0
    done = run("run", "hot-to-warm", "--at", AT)
    assert done.returncode == 3
    assert "tiering release market_bars/2024-05-20" in done.stderr
    assert run("release", "market_bars/2024-05-20", "--force").returncode == 2
    assert run("release", "market_bars/2024-05-20", "--force", "--reason", "as sent").returncode == 0
    assert run("run", "hot-to-warm", "--at", AT).returncode == 0


def test_a_dataset_that_fails_does_not_hide_what_the_others_did(run: Run, fresh_settings: Settings) -> None:
    run("install", "--at", AT)
    run("seed", "--symbols", "1", "--days", "1", "--at", AT)
    with open_stores(fresh_settings, parse_policies(POLICIES.read_text(), str(POLICIES))) as stores:
        bars = lifecycle.dataset_named(stores, "market_bars")
        plan = lifecycle.plan_dataset(stores, bars, datetime.fromisoformat(AT), [Transition.HOT_TO_WARM])
        first, *_ = lifecycle.begin_moves(stores, plan)
        with stores.hot.transaction("break", "a dataset") as connection:
            execute(connection, "ALTER TABLE hot.technical_indicators RENAME TO elsewhere")
        with stores.ledger.lease(first, "another run"):
            done = run("run", "hot-to-warm", "--at", AT, "--json")
        assert done.returncode == 1
        found = document(done)
        assert len(found["failed"]) == 1
        assert "technical_indicators" in found["failed"][0]
        assert {r["unit"]["dataset"] for r in found["receipts"]} >= {"market_bars", "financial_statements"}
        assert "another run" in done.stderr
        # Work of another run alone is no failure.
        (left,) = stores.ledger.moves("market_bars", OPEN_STATES)
        with stores.ledger.lease(left.move_id, "another run"):
            done = run("run", "hot-to-warm", "--dataset", "market_bars", "--at", AT, "--json")
        assert (done.returncode, document(done)["receipts"]) == (0, [])
        assert "another run" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("plan", "--at", "2024-06-20T12:00"), 2, "no time zone"),
        (("plan", "--at", "yesterday"), 2, "no instant"),
        (("plan", "--dataset", "bars"), 2, "no such dataset moves"),
        (("explain", "market_bars", "market_bars/yesterday"), 2, "is no date"),
        (("release", "market_bars"), 2, "no unit of a known dataset"),
        (("release", "index_bars/2024-01-05"), 2, "You mean"),
        (("run", "sideways"), 2, "sideways"),
        (("load", "nowhere.csv"), 2, "nowhere.csv"),
        (("query", "DROP TABLE market_bars"), 2, "only SELECT"),
        (("frobnicate",), 2, "frobnicate"),
        (("plan",), 1, "tiering install"),
        (("release", "market_bars/2024-01-05"), 1, "tiering install"),
    ],
)
def test_wrong_input_is_one_line_and_an_exit_code(run: Run, arguments: tuple[str, ...], code: int, text: str) -> None:
    done = run(*arguments, "--json")
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert "error" in document(done)


def test_without_mongodb_the_classes_in_postgresql_live_on(fresh_settings: Settings, tmp_path: Path) -> None:
    given = {name: value for name, value in environment(fresh_settings).items() if "MONGO" not in name}
    done = call(given, tmp_path, "install")
    assert (done.returncode, "TIERING_HOT_MONGO_URL" in done.stderr) == (2, True), done.stderr
    for command in ("install", "seed", "plan"):
        few = ("--days", "1", "--symbols", "1") if command == "seed" else ()
        done = call(given, tmp_path, command, "--class", "audit_logs", *few)
        assert done.returncode == 0, done.stderr


def test_wrong_settings_name_the_variable_and_no_secret(fresh_settings: Settings, tmp_path: Path) -> None:
    good = environment(fresh_settings)
    missing = {name: value for name, value in good.items() if name != "TIERING_S3_URL"}
    done = call(missing, tmp_path, "plan")
    assert (done.returncode, "TIERING_S3_URL" in done.stderr) == (2, True)

    wrong = good | {"TIERING_WARM_PG_URL": "postgresql://nobody:hunter2@127.0.0.1:1/x"}
    done = call(wrong, tmp_path, "plan")
    assert done.returncode == 1
    assert "hunter2" not in done.stderr
    assert "HINT" in done.stderr

    (tmp_path / "bad.yaml").write_text("market_data: {hot_to_warm: 7min}\n")
    done = call(good, tmp_path, "policies", "lint", "bad.yaml")
    assert (done.returncode, "market_data" in done.stderr) == (2, True)
    assert call(good, tmp_path, "policies", "lint", str(POLICIES), "--json").returncode == 0
    assert call(good | {"TIERING_POLICIES": "none.yaml"}, tmp_path, "plan").returncode == 2
