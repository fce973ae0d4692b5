"""Which storage class an object belongs in by its age, and how long a restore takes.

Does not: know objects; a unit's end and the reference instant are all it looks at.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from tiering.model import Span, StorageClass, Tier
from tiering.plan.spans import due, subtract

Ladder = Sequence[tuple[StorageClass, Span]]

RANKS = {name: rank for rank, name in enumerate(StorageClass)}
"""How cold a class is: 0 for STANDARD."""

RESTORE_HOURS = {"Standard": 12, "Bulk": 48}
"""How long a restore from DEEP_ARCHIVE takes at most. Source: Amazon S3 User Guide, archive retrieval options."""

RESTORE_DAYS = 7
"""How long a restored object stays readable unless somebody says otherwise."""


def next_class(
    ladder: Ladder, current: StorageClass, end: datetime, reference: datetime | None
) -> tuple[StorageClass, datetime] | None:
    """Choose the class that objects go to next, and the instant from which they may.

    Args:
        ladder: (class, age) in order, as a dataset's `storage` has it.
        current: the class they are in.
        end: of their unit; ages count from there.
        reference: the newest instant of the dataset; None: nothing has an age.

    Returns:
        The coldest class whose age is past (its date then lies at or before the reference): each change costs a
        request for every object, so none is made that the next would undo. Else the next colder class, and its
        date; None where there is none.
    """
    colder = [(name, span) for name, span in ladder if RANKS[name] > RANKS[current]]
    if not colder:
        return None
    past = [(name, span) for name, span in colder if reference is not None and end <= subtract(reference, span)]
    name, span = max(past, key=lambda step: RANKS[step[0]]) if past else min(colder, key=lambda s: RANKS[s[0]])
    return name, due(end, span)


def tier_of(storage_class: StorageClass) -> Tier:
    """Name the tier of files in a class: STANDARD is hot, STANDARD_IA warm, what is colder cold."""
    return {StorageClass.STANDARD: Tier.HOT, StorageClass.STANDARD_IA: Tier.WARM}.get(storage_class, Tier.COLD)


def known_class(name: str) -> StorageClass:
    """Read a class as the object store spells it; the ladder's nearest for those that are not on it.

    Why: buckets hold objects that others put there as INTELLIGENT_TIERING, ONEZONE_IA or GLACIER.
    """
    if name in RANKS:
        return StorageClass(name)
    return {"GLACIER": StorageClass.DEEP_ARCHIVE, "ONEZONE_IA": StorageClass.STANDARD_IA}.get(
        name, StorageClass.STANDARD
    )


def ready_about(asked_at: datetime, speed: str) -> datetime:
    """Say when a restore is done at the latest, by what the store promises."""
    return asked_at + timedelta(hours=RESTORE_HOURS[speed])
