"""A sample of `make faults`: real movers killed in every transition, PostgreSQL and S3 killed under them."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 40


def test_movers_die_and_nothing_is_lost_doubled_or_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, since movers are forked from it, and this one may have threads and connections."""
    seed, out = secrets.randbelow(100_000), tmp_path / "faults.json"
    arguments = f"--sample --kills {KILLS} --round-kills {KILLS // 2} --seed {seed} --out {out}".split()
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    with capsys.disabled():
        print(f"\n{done.stdout.splitlines()[-1]}")
    (total,) = [row for row in json.loads(out.read_text()) if row["name"] == "lifecycle.kill"]
    assert total["kills"] >= KILLS
    assert (total["lost"], total["doubled"], total["changed"]) == (0, 0, 0)
    assert KILLS // 2 < total["kinds_struck"] < total["kinds"]
