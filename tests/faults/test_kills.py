"""A sample of `make faults`: real movers killed in every transition, PostgreSQL and S3 killed under them."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

ROUND_KILLS = 15
KILLS = 54
"""Of bars 15 on either ground; of the others what their grounds' shares are of a round."""


def test_movers_die_and_nothing_is_lost_doubled_or_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, since movers are forked from it, and this one may have threads and connections."""
    seed, out = secrets.randbelow(100_000), tmp_path / "faults.json"
    arguments = f"--sample --kills {KILLS} --round-kills {ROUND_KILLS} --seed {seed} --out {out}".split()
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    with capsys.disabled():
        print(f"\n{done.stdout.splitlines()[-1]}")
    rows = json.loads(out.read_text())
    (total,) = [row for row in rows if row["name"] == "lifecycle.kill"]
    assert total["kills"] >= KILLS
    assert (total["lost"], total["doubled"], total["changed"]) == (0, 0, 0)
    of = {row["name"]: row["kills"] for row in rows}
    assert of["lifecycle.kill.documents, two databases"] >= 9
    assert all(of[f"lifecycle.kill.{ground}"] >= 3 for ground in ("user activity", "audit log", "files"))
    assert KILLS // 2 < total["kinds_struck"] < total["kinds"]
