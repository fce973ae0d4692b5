"""Evidence of a drill: its report as signed JSON, kept in the vault and as a file, for auditors who trust nobody.

Signed with Ed25519. The key is derived from the backup key, or from a key of its own; each record names the one before
it by its hash, so that one taken out is missed. Does not: judge the report; it signs failures just the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tiering import errors
from tiering.stores.vault import Vault

PREFIX = "evidence/"
KIND = "tiering drill evidence 1"
_PURPOSE = b"tiering evidence ed25519"


@dataclass(frozen=True, slots=True)
class Signer:
    """An Ed25519 key made from a secret; `repr` shows its public half only."""

    _private: Ed25519PrivateKey

    @classmethod
    def of(cls, master: bytes) -> Signer:
        """Derive the key from 32 secret bytes."""
        return cls(Ed25519PrivateKey.from_private_bytes(HKDF(SHA256(), 32, None, _PURPOSE).derive(master)))

    def __repr__(self) -> str:
        return f"Signer({self.public})"

    @property
    def public(self) -> str:
        """The public key, base64: what an auditor needs."""
        return b64encode(self._private.public_key().public_bytes_raw()).decode()

    def sign(self, document: Mapping[str, Any], previous: str = "") -> dict[str, Any]:
        """Wrap a document into a signed record.

        Args:
            document: JSON.
            previous: sha256 of the record before.
        """
        record = {"kind": KIND, "previous": previous, "public_key": self.public, "document": document}
        return record | {"signature": b64encode(self._private.sign(_canonical(record))).decode()}


def keep(vault: Vault, signer: Signer, name: str, document: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    """Sign a document, and keep it in the vault and, if asked for, in a private file.

    Raises:
        AlreadyExists: there is evidence of this name.
    """
    before = max((stat.key for stat in vault.names(PREFIX)), default="")
    previous = hashlib.sha256(vault.read(before)).hexdigest() if before else ""
    data = json.dumps(signer.sign(document, previous), indent=2, ensure_ascii=False).encode()
    vault.put(f"{PREFIX}{name}.json", data)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_bytes(data)
        os.chmod(file, 0o600)
    found: dict[str, Any] = json.loads(data)
    return found


def verify(data: bytes, trusted: Sequence[str]) -> dict[str, Any]:
    """Return the document of a signed record, if one of the trusted keys signed exactly this.

    Args:
        data: the record, as it was kept.
        trusted: public keys, base64. A key that stands only in the record proves nothing.

    Raises:
        CorruptCopy: it is no record, was changed, or was signed with another key.
    """
    try:
        record = json.loads(data)
        signature, public = b64decode(record.pop("signature"), validate=True), record["public_key"]
        document = record["document"]
        if record["kind"] != KIND or not isinstance(document, dict):
            raise KeyError("kind")
    except (ValueError, KeyError, TypeError, AttributeError, NotBase64):
        raise _refuse("it is no evidence record", "Give the file that `tiering drill` wrote.") from None
    if public not in trusted:
        raise _refuse("its key is not among the trusted ones", "Give the public key: --public-key.")
    try:
        Ed25519PublicKey.from_public_bytes(b64decode(public)).verify(signature, _canonical(record))
    except (InvalidSignature, ValueError):
        raise _refuse("it is not what was signed", "Somebody changed it: look for the copy in the vault.") from None
    return document


def history(vault: Vault, trusted: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return all evidence in the vault, oldest first, each checked, and that none between was taken out.

    Raises:
        CorruptCopy: a record was changed or taken out.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    previous = ""
    for stat in vault.names(PREFIX):
        data = vault.read(stat.key)
        document = verify(data, trusted)
        if json.loads(data)["previous"] != previous:
            raise _refuse(f"a record before {stat.key} was taken out or exchanged")
        previous = hashlib.sha256(data).hexdigest()
        found.append((stat.key, document))
    return found


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _refuse(cause: str, hint: str = "") -> errors.CorruptCopy:
    return errors.CorruptCopy("verify", "evidence", cause, hint)
