"""botocore's exceptions in our words: the error half of `objects.py`.

Does not: retry. botocore does, within seconds; a Prefect task does, within minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from botocore import exceptions as boto

from tiering import errors
from tiering.errors import TieringError

_FULL_WORDS = ("no writable volumes", "no space left", "no free volumes", "not enough space", "disk full")

_BY_CODE: dict[str, type[TieringError]] = {
    "AccessDenied": errors.AccessDenied,
    "InternalError": errors.StoreUnavailable,
    "PreconditionFailed": errors.AlreadyExists,
    "InvalidRange": errors.NotFound,
    # S3's answer to two writers of one new key at once: it asks the loser to come again.
    "ConditionalRequestConflict": errors.CommitConflict,
    "OperationAborted": errors.CommitConflict,
    "BadDigest": errors.CorruptCopy,
    "InvalidDigest": errors.CorruptCopy,
    "XAmzContentSHA256Mismatch": errors.CorruptCopy,
    "XAmzContentChecksumMismatch": errors.CorruptCopy,
    "IncompleteBody": errors.StoreUnavailable,
    "RequestTimeout": errors.StoreUnavailable,
    "SlowDown": errors.Throttled,
    "Throttling": errors.Throttled,
    "QuotaExceeded": errors.StoreFull,
    "XMinioStorageFull": errors.StoreFull,
    "InvalidObjectState": errors.InDeepArchive,
    "ObjectNotInActiveTierError": errors.InDeepArchive,
}

_BY_STATUS: dict[int, type[TieringError]] = {
    401: errors.AccessDenied,
    403: errors.AccessDenied,
    404: errors.NotFound,
    409: errors.AlreadyExists,
    412: errors.AlreadyExists,
    429: errors.Throttled,
    503: errors.Throttled,
    507: errors.StoreFull,
}

# First match wins, so subclasses stand before their parents. The last two rows are the mistakes of a caller or of a
# configuration file; a test lists them by name, so that a class new in botocore is looked at by a person.
BY_CLASS: tuple[tuple[type[Exception], type[TieringError]], ...] = (
    (boto.HTTPClientError, errors.StoreUnavailable),
    (boto.ConnectionError, errors.StoreUnavailable),
    (boto.IncompleteReadError, errors.StoreUnavailable),
    (boto.WaiterError, errors.StoreUnavailable),
    (boto.CapacityNotAvailableError, errors.Throttled),
    (boto.ChecksumError, errors.CorruptCopy),
    (boto.FlexibleChecksumError, errors.CorruptCopy),
    (boto.NoCredentialsError, errors.AccessDenied),
    (boto.PartialCredentialsError, errors.AccessDenied),
    (boto.CredentialRetrievalError, errors.AccessDenied),
    (boto.MetadataRetrievalError, errors.AccessDenied),
    (boto.NoAuthTokenError, errors.AccessDenied),
    (boto.TokenRetrievalError, errors.AccessDenied),
    (boto.RefreshWithMFAUnsupportedError, errors.AccessDenied),
    (boto.LoginError, errors.AccessDenied),
    (boto.SSOError, errors.AccessDenied),
    (boto.BotoCoreError, errors.SettingsError),
    (boto.UndefinedModelAttributeError, errors.SettingsError),
)

_HINTS: dict[type[TieringError], str] = {
    errors.AccessDenied: "Check TIERING_S3_ACCESS_KEY, TIERING_S3_SECRET_KEY and their rights on the bucket.",
    # SeaweedFS 4.48 with a full disk answers a plain "500 InternalError": no telling it from other trouble.
    errors.StoreUnavailable: "Is the object store up, its disk not full, and TIERING_S3_URL right? It is tried again.",
    errors.Throttled: "The object store asks for fewer requests; lower TIERING_FAN_OUT if this persists.",
    errors.StoreFull: "Free or add space in the object store, then run again.",
    errors.SettingsError: "Check TIERING_S3_URL, TIERING_S3_REGION and the bucket's name.",
    errors.InDeepArchive: "Ask for a restore, which takes hours: tiering objects restore; then run this again.",
    errors.CorruptCopy: "The bytes changed under way; keep the source and look at the network and the disk.",
}


@contextmanager
def mapped(operation: str, subject: str) -> Iterator[None]:
    """Turn botocore's exceptions into ours, naming the operation and its subject."""
    try:
        yield
    except (boto.ClientError, boto.BotoCoreError, boto.UndefinedModelAttributeError) as exc:
        raise translate(exc, operation, subject) from exc


def translate(exc: Exception, operation: str, subject: str) -> TieringError:
    """Choose our exception for one of botocore's.

    Why no secret can leak: S3's messages carry at most the access key's id; botocore's carry the endpoint.
    """
    if isinstance(exc, boto.ClientError):
        family, cause = _judge_answer(exc)
    else:
        family = next((ours for theirs, ours in BY_CLASS if isinstance(exc, theirs)), errors.PermanentError)
        cause = " ".join(str(exc).split())
    hint = _HINTS.get(family, "")
    if "NoSuchBucket" in cause:
        hint = "Create it, or correct TIERING_LAKE_BUCKET, TIERING_BACKUP_BUCKET or TIERING_FILES_BUCKET."
    return family(operation, subject, cause, hint)


def _judge_answer(exc: boto.ClientError) -> tuple[type[TieringError], str]:
    answer = exc.response.get("Error", {})
    code, message = str(answer.get("Code", "")), str(answer.get("Message", ""))
    status = int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    cause = f"{status} {code}: {message}"
    if any(word in message.lower() for word in _FULL_WORDS):
        return errors.StoreFull, cause
    if code in _BY_CODE:
        return _BY_CODE[code], cause
    if status in _BY_STATUS:
        return _BY_STATUS[status], cause
    return (errors.StoreUnavailable if status >= 500 else errors.PermanentError), cause
