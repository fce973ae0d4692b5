"""Keep in the vault what a restored platform must look like: names of databases, shapes of servers, the policy file.

Taken where the primary is up, by the heartbeat; read where it is gone, by drills and recoveries. Holds no secret.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tiering import errors
from tiering.plan.shapes import around
from tiering.stores.opening import Stores
from tiering.stores.shapes import mongo_shape, postgres_shape
from tiering.stores.vault import Vault

PREFIX = "expected/"
KEPT_NAME = "%Y%m%dT%H%M%S%fZ"


@dataclass(frozen=True, slots=True)
class Expected:
    """What the primary looked like.

    Attributes:
        taken_at: when.
        site: names that a restored server is asked by: hot_pg, warm_pg, hot_mongo, warm_mongo (databases), lake_bucket,
            files_bucket, policies (the file's text).
        shapes: by `<store>/<database>`.
    """

    taken_at: datetime
    site: Mapping[str, str]
    shapes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def take(stores: Stores, site: Mapping[str, str], now: datetime) -> Expected:
    """Describe the primary's servers. One that does not answer is left out.

    Args:
        stores: of the primary.
        site: see `Expected`.
        now: the instant.
    """
    shapes: dict[str, Mapping[str, str]] = {}
    for key, database in (("hot_pg", stores.hot), ("warm_pg", stores.warm)):
        if site.get(key):
            shapes[f"postgresql/{site[key]}"] = postgres_shape(database)
    for key, documents in (("hot_mongo", stores.hot_documents), ("warm_mongo", stores.warm_documents)):
        if site.get(key):
            shapes[f"mongodb/{site[key]}"] = mongo_shape(documents)
    return Expected(now, dict(site), shapes)


def keep(vault: Vault, expected: Expected) -> bool:
    """Store it if it is not what was stored last; return whether it was."""
    instants = _instants(vault)
    body = {"site": expected.site, "shapes": expected.shapes}
    if instants:
        last = json.loads(vault.read(max(instants, key=lambda name: instants[name])))
        if {key: last[key] for key in body} == body:
            return False
    body["taken_at"] = expected.taken_at.isoformat()  # type: ignore[assignment]
    vault.put(f"{PREFIX}{expected.taken_at.astimezone(UTC):{KEPT_NAME}}.json", json.dumps(body).encode())
    return True


def around_moment(vault: Vault, at: datetime) -> tuple[Expected | None, Expected | None]:
    """Return the last description at or before a moment, if there is one, and the first one after it.

    Raises:
        NotFound: nobody ever described the primary.
    """
    before, after = around(_instants(vault), at)
    if before is None and after is None:
        hint = "`tiering heartbeat` keeps it: let it run beside the primary."
        raise errors.NotFound("read", "expectations", "the primary was never described", hint)
    return _read(vault, before) if before else None, _read(vault, after) if after else None


def newest(vault: Vault) -> Expected:
    """Return the last description of all. Raises NotFound."""
    found = around_moment(vault, datetime(9999, 1, 1, tzinfo=UTC))[0]
    assert found is not None
    return found


def _instants(vault: Vault) -> dict[str, datetime]:
    names = [stat.key for stat in vault.names(PREFIX)]
    return {
        name: datetime.strptime(name[len(PREFIX) :].removesuffix(".json"), KEPT_NAME).replace(tzinfo=UTC)
        for name in names
    }


def _read(vault: Vault, name: str) -> Expected:
    body = json.loads(vault.read(name))
    return Expected(datetime.fromisoformat(body["taken_at"]), body["site"], body["shapes"])
