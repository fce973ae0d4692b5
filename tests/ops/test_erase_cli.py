"""`tiering erase` as people run it: look, refuse, erase, prove; and nowhere but on the command line the name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ops.erase_world import PERSON, open_people
from tests.ops.world import NOW, days_ago
from tests.test_cli import environment
from tiering.cli import main
from tiering.settings import Settings

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    fresh_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    for name, value in environment(fresh_settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run_it(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(("erase", "--user", PERSON, *arguments))
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run_it


def test_look_refuse_erase_and_prove(fresh_settings: Settings, run: Run) -> None:
    with open_people(fresh_settings) as people:
        for days in (0, 40, 800):
            people.insert(days_ago(days), 5)
        people.run()
        people.stores.ledger.place_hold("user_activity", days_ago(40), "case 9", "lawyer")

        code, said, _ = run("--dry-run", "--json")
        document: dict[str, Any] = json.loads(said)
        assert code == 1
        assert {place["store"] for place in document["places"]} >= {"warm", "lake"}
        assert [o["reason"] for o in document["obstacles"]] == ["under legal hold: case 9"] * len(document["obstacles"])

        code, said, _ = run("--reason", "request 1", "--json")
        assert (code, json.loads(said)["refused"]) == (1, True)
        assert people.persons_rows() == 6

        people.stores.ledger.lift_hold("user_activity", days_ago(40), "closed", "lawyer")
        assert run("--verify")[0] == 3
        code, said, error = run("--reason", "request 1", "--at", NOW.isoformat())
        assert code == 0, error
        assert "Certificate of erasure 1" in said
        assert PERSON not in said + error
        code, said, _ = run("--verify", "--json")
        assert (code, json.loads(said)["hits"]) == (0, [])
        assert people.persons_rows() == 0


@pytest.mark.parametrize("arguments", [(), ("--reason", " "), ("--reason", f"{PERSON} asked")])
def test_a_reason_is_needed_and_names_nobody(run: Run, arguments: tuple[str, ...]) -> None:
    code, said, error = run(*arguments)
    assert code == 2
    assert PERSON not in said + error
