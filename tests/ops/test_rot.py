"""Bit rot: a byte flipped in any kind of stored object ends a restore with an error; nothing else does."""

from __future__ import annotations

import random
from pathlib import Path

from pydantic import SecretStr

from infra.local import Stack
from tests.faults.rot import flip_steps
from tests.faults.rot_world import open_rot_world

SEED = 20261123
FLIPS = 40


def test_a_flipped_byte_of_every_kind_is_found_and_nothing_else(
    stack: Stack, redis_url: SecretStr, tmp_path: Path
) -> None:
    print(f"seed {SEED}")
    with open_rot_world(stack, tmp_path, SEED, redis=redis_url, is_small=True) as world:
        found = flip_steps(world, world.steps(), random.Random(SEED), FLIPS, print)
    assert found.flips == FLIPS
    assert len(found.kinds) > 20
    assert found.controls > FLIPS / 2
    assert not found.missed
    assert not found.alarms
