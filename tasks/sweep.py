"""The sweep as a Prefect task."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from prefect import task

from tasks.options import EFFECT
from tasks.stores import opened

if TYPE_CHECKING:
    from tiering.ops.sweep import Swept


@task(name="sweep copies", **EFFECT)
def sweep_copies(now: datetime, owner: str, dry_run: bool) -> list[Swept]:
    """Destroy superseded copies whose undo window is over, and what crashed runs left; or list them only."""
    from tiering.ops.sweep import sweep

    with opened() as stores:
        return sweep(stores, now, owner, dry_run=dry_run)
