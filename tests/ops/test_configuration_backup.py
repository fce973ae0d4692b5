"""The configuration: everything that the project owns is in it, no secret is, and equal means equal."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis

from infra.local.scratch_redis import scratch_redis
from tests.ops.world import POLICIES, open_world
from tiering.model_backup import StoreName
from tiering.ops import backup_files, configuration, restore_files
from tiering.ops.catalogue import Catalogue
from tiering.settings import Settings
from tiering.stores.directory import DirectoryObjects
from tiering.stores.postgres import execute
from tiering.stores.server_settings import shown
from tiering.stores.vault import Keyring, Vault

CANARY = "canary-5e1f"
ROOT = POLICIES.parents[1]
NOW = datetime(2026, 11, 23, 1, 30, tzinfo=UTC)


def test_all_of_it_comes_back_and_a_change_is_seen(fresh_settings: Settings, tmp_path: Path) -> None:
    key = SecretStr(b64encode(b"k" * 32).decode())
    catalogue = Catalogue(Vault(DirectoryObjects(tmp_path / "bucket"), Keyring(key)))
    empty = tmp_path / "empty.rdb"
    empty.write_bytes(b"REDIS0009\xff" + bytes(8))
    with open_world(fresh_settings) as world, scratch_redis([empty], []) as [redis]:
        client = Redis.from_url(redis.get_secret_value())
        client.execute_command("ACL SETUSER", "app", "on", f">{CANARY}", "~*", "+@read")
        client.config_set("masterauth", CANARY)

        def look(minutes: int) -> backup_files.Backup | None:
            sources = configuration.gather(ROOT, POLICIES, {"warm": world.stores.warm}, redis)
            assert CANARY.encode() not in b"".join(sources.texts.values())
            assert redis.get_secret_value().split(":")[2].split("@")[0].encode() not in b"".join(sources.texts.values())
            return backup_files.backup(
                catalogue, StoreName.CONFIGURATION, sources, NOW + timedelta(minutes=minutes), only_if_changed=True
            )

        first = look(0)
        assert first is not None
        assert look(5) is None
        client.config_set("maxmemory", 123_456_789)
        second = look(10)
        assert second is not None
        with world.stores.warm.transaction("change", "schema") as connection:
            execute(connection, "CREATE TABLE public.new_one (a int)")
        third = look(15)
        assert third is not None
    assert restore_files.prove(catalogue, third, NOW) == third.facts["files"]
    restore_files.restore(catalogue.vault, third, tmp_path / "there")
    there = tmp_path / "there"
    assert (there / "policies.yaml").read_bytes() == POLICIES.read_bytes()
    assert (there / "project" / "prefect.yaml").read_bytes() == (ROOT / "prefect.yaml").read_bytes()
    assert "maxmemory 123456789" in (there / "servers" / "redis.conf").read_text()
    assert "new_one" in (there / "servers" / "postgresql-warm.schema.json").read_text()
    assert not list(there.rglob(".env*"))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("requirepass", "x", "(hidden)"),
        ("requirepass", "", ""),
        ("primary_conninfo", "host=a password='x y' user=b", "host=a password=(hidden) user=b"),
        ("archive_command", "push s3://k:v@host/b %p", "push s3://host/b %p"),
        ("work_mem", "4MB", "4MB"),
    ],
)
def test_secrets_are_hidden(name: str, value: str, expected: str) -> None:
    assert shown(name, value) == expected
