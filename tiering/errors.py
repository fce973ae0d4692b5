"""The exception tree: three families, because there are three reactions.

    TieringError(operation, subject, cause, hint)
    ├─ TransientError      retry may help        StoreUnavailable (TimedOut) · Throttled · LeaseHeld · CommitConflict
    ├─ PermanentError      retrying is futile    PolicyError · SettingsError · AccessDenied · NotFound ·
    │                                            AlreadyExists · SchemaMismatch · StoreFull · HeldError ·
    │                                            ObjectLocked · InDeepArchive · KeyMissing
    └─ VerificationError   stop, keep every copy, page someone   FingerprintMismatch · CorruptCopy

Drivers' exceptions are mapped to these in their module under `stores/` and nowhere else.
"""

from __future__ import annotations

from datetime import datetime


class TieringError(Exception):
    """Say what was being done, to what, why it failed and what to do next.

    Args:
        operation: the verb that failed, e.g. "copy".
        subject: what it was done to, e.g. "market_bars/2024-01-05/g1".
        cause: the reason, in lower case, without secrets.
        hint: the remedy as a full sentence; may be empty.
    """

    def __init__(self, operation: str, subject: str, cause: str, hint: str = "") -> None:
        # All four go to Exception.args, so that the error pickles and crosses a process.
        super().__init__(operation, subject, cause, hint)
        self.operation = operation
        self.subject = subject
        self.cause = cause
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.operation} {self.subject}: {self.cause}"
        return f"{text}. HINT: {self.hint}" if self.hint else text


class TransientError(TieringError):
    """Fail for a reason that may pass: the caller may try again."""


class StoreUnavailable(TransientError):
    """A server did not answer, or the connection broke."""


class TimedOut(StoreUnavailable):
    """A store did not answer within the time that the caller gave it; the server may yet do what was asked."""


class Throttled(TransientError):
    """A server asked us to slow down."""


class LeaseHeld(TransientError):
    """Another run is working on this unit now."""


class CommitConflict(TransientError):
    """Somebody else changed the same row or pointer first; nothing was changed by us."""


class PermanentError(TieringError):
    """Fail for a reason that will not pass by itself."""


class PolicyError(PermanentError):
    """The policy file breaks a rule."""


class SettingsError(PermanentError):
    """A setting is missing or wrong."""


class AccessDenied(PermanentError):
    """The server refused our credentials or rights."""


class NotFound(PermanentError):
    """The thing named does not exist."""


class AlreadyExists(PermanentError):
    """A write-once name is taken."""


class SchemaMismatch(PermanentError):
    """Source and target columns differ in a way that would lose data."""


class IncompatibleColumns(SchemaMismatch):
    """A column changed in a way that data stored before cannot follow: the unit waits, others go on."""


class StoreFull(PermanentError):
    """The store has no room left."""


class HeldError(PermanentError):
    """A legal hold forbids this."""


class ObjectLocked(PermanentError):
    """The object store keeps an object under lock; `until` is when that ends."""

    def __init__(
        self, operation: str, subject: str, cause: str, hint: str = "", *, until: datetime | None = None
    ) -> None:
        super().__init__(operation, subject, cause, hint)
        self.until = until


class KeyMissing(PermanentError):
    """A backup was sealed with a key that is not on this machine."""


class InDeepArchive(PermanentError):
    """An object cannot be read before it was restored, which takes hours.

    Attributes:
        key: of the object.
        is_requested: its restore was asked for and is under way.
        ready_about: when it can be read, as far as that is known.
    """

    def __init__(
        self,
        operation: str,
        subject: str,
        cause: str,
        hint: str = "",
        *,
        key: str = "",
        is_requested: bool = False,
        ready_about: datetime | None = None,
    ) -> None:
        super().__init__(operation, subject, cause, hint)
        self.key = key
        self.is_requested = is_requested
        self.ready_about = ready_about


class VerificationError(TieringError):
    """Two accounts of the same data differ: every copy is kept, a person must look."""


class FingerprintMismatch(VerificationError):
    """Row count or a column's fingerprint differs between source and copy."""


class CorruptCopy(VerificationError):
    """A copy's bytes are not the bytes that were written."""
