"""What a person reads in an artifact can be typed as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

from flows.lifecycle import hot_to_warm
from tests.flows.world import PROJECT, artifact, environment, run
from tests.ops.world import World, days_ago
from tiering.settings import Settings
from tiering.stores.postgres import execute

QUARANTINE = "quarantine-market-bars-2024-05-21-g1"


def commands() -> list[str]:
    """The commands that the newest artifact of the quarantined unit tells to type."""
    return re.findall(r"`(tiering [^`]+)`", artifact(QUARANTINE))


def typed(command: str, settings: Settings) -> None:
    """Run a command as its reader would."""
    done = subprocess.run(
        [sys.executable, "-m", "tiering.cli", *shlex.split(command)[1:]],
        env=os.environ | environment(settings),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_the_commands_in_a_quarantine_s_artifact_release_the_unit(world: World, fresh_settings: Settings) -> None:
    for days in (30, 0):
        world.insert_day(days_ago(days))
    with world.stores.hot.transaction("spoil", "bars") as connection:
        execute(connection, "UPDATE hot.market_bars SET low = high + 1 WHERE ts = %s", (days_ago(30),))
    assert run(hot_to_warm, dataset="market_bars").name == "Quarantined"
    forced, plain = commands()
    assert plain in forced

    typed(plain, fresh_settings)
    assert run(hot_to_warm, dataset="market_bars").name == "Quarantined", "its checkpoint is tried again, and fails"
    typed(forced, fresh_settings)
    assert run(hot_to_warm, dataset="market_bars").message == "1 units done"
