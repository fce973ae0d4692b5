"""The flows of backups: taken, read back, proven, mirrored and shown; kept or let go for reasons; a failure is loud."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import pytest
from pydantic import SecretStr

import infra.sql
from flows.backup import backup, backup_retention
from tests.flows.world import artifact, environment
from tiering.model_backup import BackupKind, BackupState, StoreName
from tiering.ops.catalogue import Catalogue
from tiering.settings import Settings
from tiering.stores.objects import S3Objects
from tiering.stores.postgres import Postgres, execute, fetch
from tiering.stores.vault import Keyring, Vault

FILES, FULL = StoreName.APPLICATION_DATA, BackupKind.FULL


@pytest.fixture
def catalogue(prefect: None, fresh_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """A bucket of its own, and application data of two files."""
    settings = fresh_settings.model_copy(update={"app_data_dir": tmp_path / "data"})
    (tmp_path / "data").mkdir()
    for number in range(2):
        (tmp_path / "data" / f"{number}.txt").write_text("text " * 100)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    key = b64encode(b"f" * 32).decode()
    monkeypatch.setenv("TIERING_BACKUP_KEY", key)
    database = Postgres(settings.warm_pg_url, "warm PostgreSQL")
    with database.transaction("prepare", "ledger") as connection:
        execute(connection, infra.sql.read("ledger"))
    database.close()
    keys = settings.s3_access_key, settings.s3_secret_key
    return Catalogue(
        Vault(S3Objects(settings.s3_url, settings.backup_bucket, *keys, settings.s3_region), Keyring(SecretStr(key)))
    )


def test_a_backup_is_taken_proven_mirrored_and_shown(catalogue: Catalogue, fresh_settings: Settings) -> None:
    state = backup(FILES, FULL, return_state=True)
    assert state.is_completed(), state.message
    [entry] = catalogue.entries()
    assert entry.state is BackupState.PROVEN
    [row] = artifact("backup-application-data")
    assert (row["backup"], row["state"]) == (entry.backup.backup_id, "PROVEN")
    database = Postgres(fresh_settings.warm_pg_url, "warm PostgreSQL")
    with database.transaction("read", "mirror", read_only=True) as connection:
        assert [tuple(one) for one in fetch(connection, "SELECT backup_id, state FROM tiering.backup")] == [
            (entry.backup.backup_id, "PROVEN")
        ]
    database.close()

    kept = backup_retention(return_state=True)
    assert kept.is_completed(), kept.message
    [row] = artifact("backup-retention")
    assert row["verdict"] == "kept"
    assert "kept for 90 d" in row["why"]


def test_on_change_nothing_is_taken_until_something_changed(catalogue: Catalogue, tmp_path: Path) -> None:
    for text, count in (("one", 1), ("one", 1), ("other", 2)):
        (tmp_path / "data" / "0.txt").write_text(text)
        state = backup(FILES, FULL, if_changed=True, return_state=True)
        assert state.is_completed(), state.message
        assert [entry.state for entry in catalogue.entries()] == [BackupState.PROVEN] * count


def test_what_cannot_be_backed_up_ends_as_failed(catalogue: Catalogue, tmp_path: Path) -> None:
    for path in (tmp_path / "data").iterdir():
        path.unlink()
    (tmp_path / "data").rmdir()
    state = backup(FILES, FULL, return_state=True)
    assert state.is_failed()
    assert "application_data/main" in (state.message or "")
    assert catalogue.entries() == []
