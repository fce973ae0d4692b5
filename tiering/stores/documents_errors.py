"""pymongo's exceptions in our words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from bson.errors import BSONError
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    ExecutionTimeout,
    InvalidOperation,
    OperationFailure,
    PyMongoError,
    WTimeoutError,
)

from tiering import errors

_Family = type[errors.TieringError]

DUPLICATE_KEY = 11000
_AGAIN = "The server was busy, stopping or electing; it is tried again."
_BY_CODE: dict[int, tuple[_Family, str]] = {
    13: (errors.AccessDenied, "Grant the tiering user readWrite on the database."),
    18: (errors.AccessDenied, "Check the user and password in the TIERING_*_MONGO_URL."),
    26: (errors.NotFound, "The collection is gone: `tiering fsck`."),
    48: (errors.AlreadyExists, "The collection's new name is taken: `tiering fsck`."),
    DUPLICATE_KEY: (errors.AlreadyExists, "Another unique index than _id forbids the document; drop that index."),
    14031: (errors.StoreFull, "Free space on the MongoDB server's disk."),
    10334: (errors.PermanentError, "A document is larger than the server takes."),
    112: (errors.CommitConflict, "Another transaction was in the way; it is tried again."),
    **dict.fromkeys((24, 50, 239, 246, 251, 262), (errors.CommitConflict, _AGAIN)),
    **dict.fromkeys(
        (6, 7, 43, 64, 89, 91, 133, 134, 189, 202, 9001, 10107, 11600, 11602, 13435, 13436),
        (errors.StoreUnavailable, _AGAIN),
    ),
}
_UP = "Is the server up? `tiering stack status`."


@contextlib.contextmanager
def mapped(operation: str, subject: str) -> Iterator[None]:
    """Turn the driver's exceptions into ours, naming the operation and its subject."""
    try:
        yield
    except PyMongoError as exc:
        raise translate(exc, operation, subject) from exc
    except BSONError as exc:
        raise errors.CorruptCopy(operation, subject, str(exc)) from exc


def translate(exc: PyMongoError, operation: str, subject: str) -> errors.TieringError:
    """Choose our exception for one of pymongo's.

    Why no document and no password leak: only the server's message is quoted, without the details behind it.
    """
    if isinstance(exc, BulkWriteError):
        return _translate_bulk(exc, operation, subject)
    if isinstance(exc, ConnectionFailure | WTimeoutError | ExecutionTimeout):
        # The driver lists every server it asked; who reads a log needs the first line.
        return errors.StoreUnavailable(operation, subject, str(exc).split(", Timeout:")[0], _UP)
    if isinstance(exc, OperationFailure):
        return _of_code(exc.code or 0, str(exc).split(", full error:")[0], operation, subject, exc)
    if isinstance(exc, ConfigurationError):  # its text may quote the URL, password and all
        return bad_url(subject)
    if isinstance(exc, InvalidOperation) and "after close" in str(exc):
        return errors.PermanentError(operation, subject, "the store was closed while it was in use")
    return errors.PermanentError(operation, subject, type(exc).__name__)


def no_url(subject: str) -> errors.SettingsError:
    """Say what a dataset of documents needs."""
    return errors.SettingsError(
        "read settings",
        subject,
        "no server is named for documents",
        "Set TIERING_HOT_MONGO_URL; or choose what is no documents: --class market_data.",
    )


def bad_url(subject: str) -> errors.SettingsError:
    """Say how a URL is written, without quoting the one that is wrong."""
    return errors.SettingsError(
        "read settings",
        subject,
        "its URL is malformed or names no database",
        "Write mongodb://user:password@host:port/database; in a password write % / @ : as %25 %2F %40 %3A.",
    )


def _of_code(code: int, text: str, operation: str, subject: str, exc: PyMongoError) -> errors.TieringError:
    if code in _BY_CODE:
        family, hint = _BY_CODE[code]
        return family(operation, subject, text, hint)
    if exc.has_error_label("TransientTransactionError") or exc.has_error_label("RetryableWriteError"):
        return errors.StoreUnavailable(operation, subject, text, _AGAIN)
    return errors.PermanentError(operation, subject, text, "Read the server's message.")


def _translate_bulk(exc: BulkWriteError, operation: str, subject: str) -> errors.TieringError:
    details: dict[str, Any] = dict(exc.details or {})
    failed = details.get("writeErrors") or details.get("writeConcernErrors") or [{}]
    first = next((e for e in failed if not is_known_id(e)), failed[0])
    text = "a unique index refuses it" if first.get("code") == DUPLICATE_KEY else str(first.get("errmsg", exc))
    if not details.get("writeErrors"):
        return errors.StoreUnavailable(operation, subject, text, _AGAIN)
    return _of_code(int(first.get("code") or 0), text, operation, subject, exc)


def is_known_id(error: dict[str, Any]) -> bool:
    """Say whether a write error is only that a document with this `_id` is there already."""
    if error.get("code") != DUPLICATE_KEY:
        return False
    pattern = error.get("keyPattern")
    return list(pattern) == ["_id"] if pattern else " index: _id_ " in str(error.get("errmsg", ""))
