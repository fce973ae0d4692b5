"""Kills of writer, Redis and PostgreSQL while rows are written: a sample of `python -m tests.faults.access_kills`."""

from __future__ import annotations

from tests.faults.access_kills import carry_out
from tests.faults.access_writer import BEHIND

SEED = 7


def test_no_acknowledged_row_is_lost_or_doubled() -> None:
    outcome = carry_out(3, SEED)
    print(f"seed {SEED}: {outcome}")
    assert outcome.is_clean, str(outcome)
    assert outcome.kills.total() == 3
    assert outcome.acknowledged[BEHIND] > 0
