"""Settings: the only reader of the environment (and of `.env`). Build one where work starts; pass it on.

Does not: open a connection. `stores/opening.py` takes a `Settings` apart and hands each store its share.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tiering.errors import SettingsError


class Settings(BaseSettings):
    """Where the stores are and how hard to work them. Every field is `TIERING_<NAME>` in the environment.

    URLs may carry a password, so they are secret; `str()` of a Settings shows none of them.
    """

    model_config = SettingsConfigDict(env_prefix="TIERING_", env_file=".env", extra="ignore", frozen=True)

    hot_pg_url: SecretStr = Field(description="postgresql://user:password@host:port/database of the hot tables")
    warm_pg_url: SecretStr = Field(description="same, of the warm tables, the ledger and the Iceberg catalog")
    hot_mongo_url: SecretStr | None = None
    warm_mongo_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    s3_url: str = Field(description="http(s)://host:port of the object store; credentials apart")
    s3_access_key: SecretStr
    s3_secret_key: SecretStr
    s3_region: str = "us-east-1"
    lake_bucket: str = "tiering-lake"
    backup_bucket: str = "tiering-backup"
    backup_key: SecretStr | None = Field(
        default=None, description="32 bytes in base64 that seal the backups; older ones behind it, parted by commas"
    )
    files_bucket: str = "tiering-files"
    notify_urls: SecretStr | None = Field(
        default=None,
        description="who is told of drills and alarms: Apprise URLs (json://, mailto://, slack://), blanks between",
    )
    evidence_key: SecretStr | None = Field(
        default=None, description="32 bytes in base64 that sign the evidence of drills; default: made from backup_key"
    )
    policies: Path = Path("deployments/policies.yaml")
    app_data_dir: Path | None = Field(default=None, description="files of the application that are backed up")
    scratch_dir: Path | None = Field(default=None, description="for files being written; default: the system's")
    journal_dir: Path = Field(
        default=Path(".tiering-journal"),
        description="where an access client keeps buffered writes until their database has them: a disk that lasts",
    )
    fan_out: int = Field(default=2, ge=1, le=64, description="units worked on at once in one flow run")
    dask_scheduler: str | None = Field(
        default=None, description="tcp://host:port: fan out over Dask instead of threads"
    )

    @property
    def is_one_database(self) -> bool:
        """Hot and warm tables share a database: a hand-over then costs no copy."""
        return self.hot_pg_url.get_secret_value() == self.warm_pg_url.get_secret_value()


class RecoverySettings(BaseSettings):
    """What a drill or a recovery needs and may have: bucket and key of the backups, and nothing of the primary."""

    model_config = SettingsConfigDict(env_prefix="TIERING_", env_file=".env", extra="ignore", frozen=True)

    s3_url: str = Field(description="http(s)://host:port of the object store that holds the backups")
    s3_access_key: SecretStr
    s3_secret_key: SecretStr
    s3_region: str = "us-east-1"
    backup_bucket: str = "tiering-backup"
    backup_key: SecretStr = Field(description="32 bytes in base64 that seal the backups, from their escrow")
    evidence_key: SecretStr | None = None
    notify_urls: SecretStr | None = None
    scratch_dir: Path | None = None


def load_recovery_settings(env_file: Path | None = None) -> RecoverySettings:
    """Read what a recovery needs, as `load_settings` does.

    Raises:
        SettingsError: a variable is missing or malformed; the message names it.
    """
    try:
        return RecoverySettings(_env_file=env_file) if env_file else RecoverySettings()  # type: ignore[call-arg]
    except ValidationError as exc:
        raise _missing(exc, "Set the TIERING_S3_*, TIERING_BACKUP_BUCKET and TIERING_BACKUP_KEY of the kit.") from None


def load_settings(env_file: Path | None = None) -> Settings:
    """Read the environment, then `.env` (or `env_file`).

    Raises:
        SettingsError: a variable is missing or malformed; the message names it.
    """
    try:
        return Settings(_env_file=env_file) if env_file else Settings()  # type: ignore[call-arg]
    except ValidationError as exc:
        raise _missing(exc, "Run `tiering stack up`, or set the variables (see README).") from None


def load_url(variable: str) -> SecretStr:
    """Read a URL from an environment variable: on a command line everybody would see its password.

    Raises:
        SettingsError: it is not set.
    """
    found = os.environ.get(variable)
    if not found:
        raise SettingsError("read", variable, "not set in the environment", f"export {variable}=…, then run again.")
    return SecretStr(found)


def _missing(exc: ValidationError, hint: str) -> SettingsError:
    names = ", ".join("TIERING_" + str(err["loc"][0]).upper() + f" ({err['msg'].lower()})" for err in exc.errors())
    return SettingsError("read settings", names, "missing or malformed", hint)
