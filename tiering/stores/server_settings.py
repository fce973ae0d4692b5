"""What servers are set to, asked of them: texts for backups of the configuration. No secret is in them.

Does not: read their files; servers may be anywhere.
"""

from __future__ import annotations

import re
from contextlib import closing

from pydantic import SecretStr
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tiering.stores.beats import redis_mapped
from tiering.stores.postgres import Postgres, fetch

HIDDEN = "(hidden)"
_SECRET_NAMES = re.compile(r"pass|auth$|secret|key-file-pass|^user$", re.IGNORECASE)
_SECRET_WORDS = re.compile(r"(password|passfile|sslpassword)\s*=\s*('[^']*'|\S+)|://[^@/\s]*@", re.IGNORECASE)

# What a session sets for itself would be our own; the data directory's place is no choice of a person's.
_SETTINGS = """
    SELECT name, setting, coalesce(unit, ''), source FROM pg_settings
    WHERE source IN ('configuration file', 'command line', 'environment variable', 'database', 'user', 'database user')
      AND name !~ '^(config_file|data_directory|hba_file|ident_file|external_pid_file|application_name)$'
    ORDER BY name
"""
_OF_ROLES = """
    SELECT coalesce(d.datname, '*'), coalesce(r.rolname, '*'), setting FROM pg_db_role_setting s
    LEFT JOIN pg_database d ON d.oid = s.setdatabase LEFT JOIN pg_roles r ON r.oid = s.setrole,
    unnest(s.setconfig) setting ORDER BY 1, 2, 3
"""


def postgres_settings(database: Postgres) -> bytes:
    """List every setting that somebody chose, of the server, its databases and its roles."""
    with database.transaction("read settings of", database.name, read_only=True) as connection:
        settings, roles = fetch(connection, _SETTINGS), fetch(connection, _OF_ROLES)
    lines = [f"{name} = {shown(str(name), f'{value}{unit}')}  # {source}" for name, value, unit, source in settings]
    for database_name, role, setting in roles:
        name, _, value = str(setting).partition("=")
        lines.append(f"{database_name}/{role}: {name} = {shown(name, value)}")
    return _text(lines)


def redis_settings(url: SecretStr) -> bytes:
    """List every setting of a Redis, of one node of a cluster: the others are set alike, or are told by its map."""
    client = Redis.from_url(
        url.get_secret_value(), decode_responses=True, socket_timeout=10, retry=Retry(NoBackoff(), 0)
    )
    with redis_mapped("read settings of", "Redis"), closing(client):
        told = client.config_get("*")
        users = [str(line) for line in client.acl_list()]
    lines = [f"{name} {shown(str(name), str(value))}" for name, value in sorted(told.items())]
    return _text([*lines, *(re.sub(r" [#>]\S+", f" #{HIDDEN}", line) for line in users)])


def shown(name: str, value: str) -> str:
    """Write a setting's value without the secrets in it."""
    if value and _SECRET_NAMES.search(name):
        return HIDDEN
    return _SECRET_WORDS.sub(lambda found: "://" if found[0].startswith("://") else f"{found[1]}={HIDDEN}", value)


def _text(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()
