"""DuckDB over the lake, offline: its extensions come as wheels and are loaded from there, never downloaded.

Does not: move data. DuckDB reads the lake for questions; copies are made by
`pgcopy_*` and `parquet`, which lose nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import duckdb

from tiering import errors
from tiering.stores.objects import S3Objects

FILES = ("httpfs",)
TABLES = ("httpfs", "avro", "iceberg")  # in this order: iceberg needs avro

_BY_CLASS: tuple[tuple[type[duckdb.Error], type[errors.TieringError]], ...] = (
    (duckdb.HTTPException, errors.StoreUnavailable),
    (duckdb.ConnectionException, errors.StoreUnavailable),
    (duckdb.OutOfMemoryException, errors.StoreFull),
    (duckdb.IOException, errors.StoreUnavailable),
    (duckdb.Error, errors.PermanentError),
)


def duckdb_connection(
    objects: S3Objects, *, memory_limit: str = "300MB", threads: int = 2, extensions: Sequence[str] = TABLES
) -> duckdb.DuckDBPyConnection:
    """Open an in-memory DuckDB that can `iceberg_scan(metadata_location)` in this bucket's object store.

    The caller closes it. It speaks UTC, downloads nothing and keeps no secret on disk.

    Args:
        objects: the bucket, and how to reach it.
        memory_limit: e.g. "300MB"; beyond it DuckDB spills.
        threads: of one query.
        extensions: `FILES` is enough for `read_parquet`, and opens in a quarter of the time: DuckDB checks
            the signature of every byte of an extension that it loads.

    Raises:
        SettingsError: an extension's wheel is missing or of another version than DuckDB.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory_limit,
        "threads": threads,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    connection = duckdb.connect(config=config)
    try:
        with mapped("open", "DuckDB"):
            connection.execute("SET TimeZone = 'UTC'")
            load_extensions(connection, extensions)
            create_secret(connection, objects)
    except BaseException:
        connection.close()
        raise
    return connection


def load_extensions(connection: duckdb.DuckDBPyConnection, extensions: Sequence[str] = TABLES) -> None:
    """Load extensions from the installed wheels; loading twice is harmless.

    Raises:
        SettingsError: a wheel is missing or of another version than DuckDB.
    """
    for name in extensions:
        path = str(_extension_path(name)).replace("'", "''")
        with mapped("load extension", name):
            connection.execute(f"LOAD '{path}'")


def create_secret(connection: duckdb.DuckDBPyConnection, objects: S3Objects) -> None:
    """Give DuckDB the object store's address and credentials, in memory only.

    Why by variables: CREATE SECRET takes no parameters, and a key inside the statement could end in an error text.
    """
    address = urlsplit(objects.endpoint_url)
    values = {
        "key": objects.access_key.get_secret_value(),
        "secret": objects.secret_key.get_secret_value(),
        "endpoint": address.netloc,
        "region": objects.region,
        "scope": f"s3://{objects.bucket}",
    }
    with mapped("give credentials to", "DuckDB"):
        connection.execute("SET allow_persistent_secrets = false")
        for name, value in values.items():
            connection.execute(f"SET VARIABLE tiering_{name} = $1", [value])
        try:
            connection.execute(
                f"""CREATE OR REPLACE SECRET tiering (TYPE s3, URL_STYLE 'path', USE_SSL {address.scheme == "https"},
                    KEY_ID getvariable('tiering_key'), SECRET getvariable('tiering_secret'),
                    ENDPOINT getvariable('tiering_endpoint'), REGION getvariable('tiering_region'),
                    SCOPE getvariable('tiering_scope'))"""
            )
        finally:
            for name in values:
                connection.execute(f"RESET VARIABLE tiering_{name}")


@contextmanager
def mapped(operation: str, subject: str) -> Iterator[None]:
    """Turn DuckDB's exceptions into ours, naming the operation and its subject."""
    try:
        yield
    except duckdb.Error as exc:
        family = next(ours for theirs, ours in _BY_CLASS if isinstance(exc, theirs))
        raise family(operation, subject, " ".join(str(exc).split())) from exc


def _extension_path(name: str) -> Path:
    spec = importlib.util.find_spec(f"duckdb_extension_{name}")
    hint = f"Install duckdb-extension-{name}=={duckdb.__version__}."
    if spec is None or spec.origin is None:
        raise errors.SettingsError("load extension", name, "its wheel is not installed", hint)
    path = Path(spec.origin).parent / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
    if not path.exists():
        raise errors.SettingsError("load extension", name, f"its wheel is not for DuckDB {duckdb.__version__}", hint)
    return path
