"""Names of things in the lake: hive-style paths that any reader understands, and content-hashed file names."""

from __future__ import annotations

from tiering.model import Span, Unit


def lake_key(unit: Unit, length: Span, sha256: str) -> str:
    """Return the object key of a unit's file: `lake/market_bars/year=2024/month=01/20240105-g1-<hash>.parquet`.

    Why the hash: a name then means one content for ever, so writing it twice is harmless and a
    half-known outcome can be settled by looking.
    """
    path = f"year={unit.begin:%Y}"
    if length.months == 0 or length.months < 12:
        path += f"/month={unit.begin:%m}"
    return f"lake/{unit.dataset}/{path}/{unit.slug}-g{unit.generation}-{sha256[:16]}.parquet"
