"""The composition root: the one place that takes a `Settings` apart and names concrete stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import SecretStr

from tiering.model import Policies
from tiering.settings import Settings
from tiering.stores.documents import Documents
from tiering.stores.heat import HeatCounters
from tiering.stores.lake import IcebergLake
from tiering.stores.ledger import Ledger
from tiering.stores.objects import S3Objects
from tiering.stores.postgres import Postgres
from tiering.stores.timescale import choose_warm
from tiering.stores.warm import WarmTables


@dataclass(frozen=True, slots=True)
class Stores:
    """Every store that the lifecycle touches. Opening one makes no network call; the first use does."""

    policies: Policies
    hot: Postgres
    warm: Postgres
    warm_tables: WarmTables
    ledger: Ledger
    lake: IcebergLake
    objects: S3Objects
    files: S3Objects
    lake_bucket: str
    hot_documents: Documents
    warm_documents: Documents
    is_one_database: bool
    scratch_dir: Path | None
    heat: HeatCounters

    def location(self, key: str) -> str:
        """Return the full name of a lake object, as the ledger and Iceberg write it."""
        return self.objects.location(key)

    def key(self, location: str) -> str:
        """Return the key of a lake object from its full name."""
        return self.objects.key(location)


@contextmanager
def open_stores(settings: Settings, policies: Policies) -> Iterator[Stores]:
    """Open the stores that the settings name; close their connections at the end."""
    warm = Postgres(settings.warm_pg_url, "warm PostgreSQL")
    hot = warm if settings.is_one_database else Postgres(settings.hot_pg_url, "hot PostgreSQL")
    objects = S3Objects(
        settings.s3_url, settings.lake_bucket, settings.s3_access_key, settings.s3_secret_key, settings.s3_region
    )
    files = replace(objects, bucket=settings.files_bucket)
    lake = IcebergLake(
        settings.warm_pg_url,
        settings.s3_url,
        settings.lake_bucket,
        settings.s3_access_key,
        settings.s3_secret_key,
        settings.s3_region,
    )
    heat = HeatCounters(settings.redis_url)
    nowhere = SecretStr("")
    hot_documents = Documents(settings.hot_mongo_url or nowhere, "hot MongoDB")
    warm_documents = Documents(settings.warm_mongo_url or settings.hot_mongo_url or nowhere, "warm MongoDB")
    try:
        yield Stores(
            policies=policies,
            hot=hot,
            warm=warm,
            warm_tables=choose_warm(warm),
            ledger=Ledger(warm),
            lake=lake,
            objects=objects,
            files=files,
            lake_bucket=settings.lake_bucket,
            hot_documents=hot_documents,
            warm_documents=warm_documents,
            is_one_database=settings.is_one_database,
            scratch_dir=settings.scratch_dir,
            heat=heat,
        )
    finally:
        heat.close()
        hot_documents.close()
        warm_documents.close()
        lake.close()
        warm.close()
        hot.close()
