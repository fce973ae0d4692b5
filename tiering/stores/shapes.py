"""Describe a server without its data: extensions, roles, grants, tables, collections, indexes.

Taken of the primary now and then, and of what was restored, so that a drill can tell what is missing.
Partitions are left out: they come and go every day. Does not: hold a password or a row.
"""

from __future__ import annotations

import hashlib
import json

from tiering.stores.documents import Documents
from tiering.stores.documents_errors import mapped
from tiering.stores.postgres import Postgres, fetch

_OURS = "n.nspname NOT IN ('pg_catalog', 'information_schema', 'tiering_stage', 'tier_trash') AND n.nspname !~ '^pg_'"

_QUERIES = (
    "SELECT 'extension ' || extname, extversion FROM pg_extension",
    """SELECT 'role ' || rolname, concat_ws(' ', CASE WHEN rolsuper THEN 'super' END, CASE WHEN rolcanlogin THEN 'login'
              END, CASE WHEN rolcreatedb THEN 'createdb' END, CASE WHEN rolreplication THEN 'replication' END)
       FROM pg_roles WHERE rolname !~ '^pg_'""",
    """SELECT 'member ' || pg_get_userbyid(member) || ' of ' || pg_get_userbyid(roleid), '' FROM pg_auth_members
       WHERE pg_get_userbyid(roleid) !~ '^pg_' OR pg_get_userbyid(member) !~ '^pg_'""",
    "SELECT 'database ' || datname, pg_encoding_to_char(encoding) || ' ' || datcollate FROM pg_database "
    "WHERE datname = current_database()",
    f"SELECT 'schema ' || n.nspname, pg_get_userbyid(n.nspowner) FROM pg_namespace n WHERE {_OURS}",
    f"""SELECT CASE WHEN c.relkind IN ('v', 'm') THEN 'view ' ELSE 'table ' END || n.nspname || '.' || c.relname,
              pg_get_userbyid(c.relowner) || ': ' || coalesce(string_agg(a.attname || ' ' ||
              format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum), '')
       FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
       LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
       WHERE c.relkind IN ('r', 'p', 'v', 'm') AND NOT c.relispartition AND {_OURS}
       GROUP BY n.nspname, c.relname, c.relkind, c.relowner""",
    f"""SELECT 'index ' || n.nspname || '.' || i.relname, pg_get_indexdef(x.indexrelid)
       FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
       JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT c.relispartition AND x.indisvalid AND {_OURS}""",
    f"""SELECT 'grant on ' || n.nspname || '.' || c.relname || ' to ' ||
              CASE g.grantee WHEN 0 THEN 'public' ELSE pg_get_userbyid(g.grantee) END,
              string_agg(g.privilege_type, ' ' ORDER BY g.privilege_type)
       FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) g
       WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S') AND NOT c.relispartition AND {_OURS}
       GROUP BY n.nspname, c.relname, g.grantee""",
    f"""SELECT 'grant on schema ' || n.nspname || ' to ' ||
              CASE g.grantee WHEN 0 THEN 'public' ELSE pg_get_userbyid(g.grantee) END,
              string_agg(g.privilege_type, ' ' ORDER BY g.privilege_type)
       FROM pg_namespace n, aclexplode(n.nspacl) g WHERE {_OURS} GROUP BY n.nspname, g.grantee""",
)


def postgres_shape(database: Postgres) -> dict[str, str]:
    """Describe one database and its server's roles. Long descriptions are kept as their hash.

    Raises:
        TieringError: it does not answer.
    """
    found: dict[str, str] = {}
    with database.transaction("describe", database.name, read_only=True) as connection:
        for query in _QUERIES:
            found |= {thing: _short(text or "") for thing, text in fetch(connection, query)}
    return found


def mongo_shape(database: Documents) -> dict[str, str]:
    """Describe the collections of one database and their indexes; `ttl` for an index that lets documents expire."""
    found: dict[str, str] = {}
    with mapped("describe", database.name):
        for name in database._database.list_collection_names():
            if name.startswith("system."):
                continue
            found[f"collection {name}"] = ""
            for index in database._collection(name).list_indexes():
                spec = {key: index[key] for key in ("key", "unique", "sparse") if key in index}
                found[f"index {name}.{index['name']}"] = _short(json.dumps(spec, default=str))
                if "expireAfterSeconds" in index:
                    found[f"ttl {name}.{index['name']}"] = str(index["expireAfterSeconds"])
    return found


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:40]}… {hashlib.sha256(text.encode()).hexdigest()[:12]}"
