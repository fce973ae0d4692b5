"""Evidence: whoever changes, exchanges or takes out a record is found out."""

from __future__ import annotations

import json
import secrets
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from tiering.errors import AlreadyExists, CorruptCopy
from tiering.ops.evidence import Signer, history, keep, verify
from tiering.stores.directory import DirectoryObjects
from tiering.stores.vault import Keyring, Vault

SIGNER = Signer.of(bytes(range(32)))
REPORT = {"drill_id": "20261123T080000Z-tier1-complete_outage", "passed": False, "rto_s": 41.2, "Ümlaut": "–"}


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(DirectoryObjects(tmp_path / "bucket"), Keyring(SecretStr(b64encode(secrets.token_bytes(32)).decode())))


def test_what_was_kept_can_be_verified_from_file_and_vault(vault: Vault, tmp_path: Path) -> None:
    file = tmp_path / "evidence" / "one.json"
    keep(vault, SIGNER, "one", REPORT, file)
    assert verify(file.read_bytes(), [SIGNER.public]) == REPORT
    assert history(vault, [SIGNER.public]) == [("evidence/one.json", REPORT)]
    assert file.stat().st_mode & 0o077 == 0
    with pytest.raises(AlreadyExists):
        keep(vault, SIGNER, "one", REPORT, None)


def test_a_key_that_stands_only_in_the_record_proves_nothing(vault: Vault) -> None:
    forger = Signer.of(secrets.token_bytes(32))
    forged = json.dumps(forger.sign(REPORT | {"passed": True})).encode()
    with pytest.raises(CorruptCopy, match="not among the trusted"):
        verify(forged, [SIGNER.public])
    swapped = json.loads(forged) | {"public_key": SIGNER.public}
    with pytest.raises(CorruptCopy, match="not what was signed"):
        verify(json.dumps(swapped).encode(), [SIGNER.public])


@given(st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_byte_verifies_as_something_else(data: Any) -> None:
    record = json.dumps(SIGNER.sign(REPORT, "ab" * 32), ensure_ascii=False).encode()
    place = data.draw(st.integers(0, len(record) - 1))
    changed = record[:place] + bytes([record[place] ^ data.draw(st.integers(1, 255))]) + record[place + 1 :]
    try:
        assert verify(changed, [SIGNER.public]) == REPORT  # base64 has spare bits, JSON spare blanks
    except CorruptCopy:
        return


def test_a_record_taken_out_is_missed(vault: Vault) -> None:
    for name in ("1", "2", "3"):
        keep(vault, SIGNER, name, REPORT | {"drill_id": name}, None)
    assert [key for key, _ in history(vault, [SIGNER.public])] == [f"evidence/{n}.json" for n in "123"]
    vault.discard(["evidence/2.json"])
    with pytest.raises(CorruptCopy, match="taken out"):
        history(vault, [SIGNER.public])


def test_the_signer_shows_no_secret() -> None:
    assert repr(SIGNER) == f"Signer({SIGNER.public})"


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"signature": 1}', b'{"signature": "AA=="}'])
def test_what_is_no_record_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(CorruptCopy, match="no evidence record"):
        verify(data, [SIGNER.public])
