"""The audit trail's chain: note its head outside of the database, and check it against what was noted."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime

from tiering import errors
from tiering.model import Span
from tiering.plan import audit as chain
from tiering.plan.fsck import Code, Finding
from tiering.plan.spans import add
from tiering.stores import audit
from tiering.stores.opening import Stores

FINDINGS_MAX = 10
"""Breaks named at most: behind the first one every other may follow from it."""


ANCHOR_KEPT = Span(months=12)
"""How long an anchor is under object lock, where the bucket has it."""


def note_head(stores: Stores, now: datetime) -> chain.Anchor | None:
    """Note the chain's head as a small object of the lake bucket, once per head; None while there is no chain.

    Best effort: where the bucket does not answer, the next run does it, and nothing else waits for it.
    """
    found = audit.head(stores.warm)
    if found is None:
        return None
    position, digest, clock = found
    anchor = chain.Anchor(position, digest)
    # No lock where the bucket was made without: the name alone is then worth as much as the bucket's own rights.
    until = add(max(now, clock), ANCHOR_KEPT) if stores.objects.is_lockable() else None
    document = {"position": anchor.position, "sha256": anchor.digest, "noted_at": now.isoformat()}
    data = json.dumps(document).encode()
    with suppress(errors.AlreadyExists, errors.TransientError):
        stores.objects.put_new(
            anchor.key, io.BytesIO(data), len(data), hashlib.sha256(data).hexdigest(), locked_until=until
        )
    return anchor


def check_chain(stores: Stores) -> list[Finding]:
    """Compute the whole chain again and compare it with every head that was noted; the first break comes first."""
    anchors = [a for a in map(chain.anchor_in, _noted(stores)) if a is not None]
    links = (chain.Link(*link) for link in audit.links(stores.warm))
    found: list[Finding] = []
    for broken in chain.breaks(links, anchors):
        found.append(Finding(Code.BROKEN_CHAIN, broken.subject, broken.text))
        if len(found) == FINDINGS_MAX:
            break
    return found


def _noted(stores: Stores) -> Iterator[str]:
    # Versions: a lock does not keep anybody from putting a delete mark over an object.
    for version in stores.objects.versions(chain.ANCHOR_PREFIX):
        if not version.is_delete_marker:
            yield version.key
