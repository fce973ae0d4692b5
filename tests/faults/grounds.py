"""All grounds that a campaign is fought on, in the order of its rounds."""

from __future__ import annotations

import random
from pathlib import Path

from infra.local import Stack
from tests.faults import bars, documents, files
from tests.faults.ports import GroundKind
from tiering.stores import pgcopy
from tiering.stores.objects import S3Objects

GROUNDS: tuple[GroundKind, ...] = (*bars.MODES, *documents.MODES, *files.MODES)


def warm_up(stack: Stack, directory: Path, seed: int) -> None:
    """Go through every transition once in this process, so that its children find all code compiled and loaded."""
    pgcopy.warm_up()
    with bars.open_ground(bars.BARS, True, stack, directory, seed, {}) as ground:
        bars.stop_writers(ground.writers)
        ground.settle()
        for days in (ground.young, ground.old):  # a merge with a warm copy, and one with a cold one
            ground.insert_late(random.Random(seed), days)
        ground.settle()
    with documents.open_ground(True, stack, directory, seed, {}) as news:
        bars.stop_writers(news.writers)
        news.settle()
        settings = ground.settings
        objects = S3Objects(settings.s3_url, "none", settings.s3_access_key, settings.s3_secret_key, settings.s3_region)
        assert objects._client, "made here, before any fork, and never used here"
