"""Every configuration that the project owns: its files, what servers are set to, and the shape of their schemas.

No secret is in it: `.env` and the vault's key are not, and what servers say of passwords is hidden. Whoever restores
brings the secrets from where they are kept (docs/runbooks/lost-key.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from tiering.ops.backup_files import Sources
from tiering.stores.postgres import Postgres
from tiering.stores.server_settings import postgres_settings, redis_settings
from tiering.stores.shapes import postgres_shape

FILES = (
    "prefect.yaml",
    "pyproject.toml",
    "constraints.txt",
    "Makefile",
    "deployments/*.yaml",
    "infra/*.yaml",
    "infra/sql/*.sql",
    "infra/grafana/**/*",
    "infra/prometheus/**/*",
)
"""Below the project's directory; those that are not there are left out."""


def gather(root: Path, policies: Path, databases: Mapping[str, Postgres], redis: SecretStr | None = None) -> Sources:
    """Collect what a backup of the configuration holds.

    Args:
        root: the project's directory.
        policies: the policy file that is in force, wherever it is.
        databases: whose settings and schemas are asked for, by name, e.g. "hot".
        redis: whose settings are asked for.

    Raises:
        StoreUnavailable: a server does not answer: half a configuration is not backed up as if it were whole.
    """
    found = {path for pattern in FILES for path in root.glob(pattern) if path.is_file()}
    trees = {f"project/{path.relative_to(root).as_posix()}": path for path in sorted(found)}
    trees["policies.yaml"] = policies
    texts: dict[str, bytes] = {}
    for name, database in databases.items():
        texts[f"servers/postgresql-{name}.conf"] = postgres_settings(database)
        shape = json.dumps(postgres_shape(database), sort_keys=True, indent=1)
        texts[f"servers/postgresql-{name}.schema.json"] = shape.encode()
    if redis is not None:
        texts["servers/redis.conf"] = redis_settings(redis)
    return Sources(trees, texts)
