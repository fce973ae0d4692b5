"""DDL as files, in the order they run: schemas (both databases), ledger (warm), application tables (hot)."""

from __future__ import annotations

from importlib.resources import files


def read(name: str) -> str:
    """Return one script's text: `rooms`, `ledger`, `market_data` or `user_data`."""
    return files(__name__).joinpath(f"{name}.sql").read_text(encoding="utf-8")


def read_tables() -> str:
    """Return what creates every table that applications write to."""
    return "\n".join(map(read, ("market_data", "user_data")))
