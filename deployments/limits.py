"""Global concurrency limits: one flow run at a time works on a dataset. The real guard is the ledger's lease."""

from __future__ import annotations

from pathlib import Path

from tasks.stores import load_policies
from tiering.errors import SettingsError
from tiering.settings import Settings, load_settings


def limits() -> dict[str, int]:
    """Name a limit for each dataset that moves, as `flows/lifecycle.py` occupies it."""
    return {f"tiering-{dataset.name}": 1 for dataset in load_policies(_file()).datasets if dataset.state == "moves"}


def _file() -> Path:
    """Name the file that the flows will read; where deploying knows no servers, the project's own."""
    try:
        return load_settings().policies
    except SettingsError:
        default: Path = Settings.model_fields["policies"].default
        return default
