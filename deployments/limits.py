"""Global concurrency limits: one flow run at a time works on a dataset. The real guard is the ledger's lease."""

from __future__ import annotations

from tasks.stores import load_policies
from tiering.settings import Settings


def limits() -> dict[str, int]:
    """Name a limit for each dataset that moves, as `flows/lifecycle.py` occupies it."""
    file = Settings.model_fields["policies"].default
    return {f"tiering-{dataset.name}": 1 for dataset in load_policies(file).datasets if dataset.state == "moves"}
