"""Compare what a restored server has with what the primary had: extensions, roles, grants, tables, indexes.

A shape is a mapping of thing to description, as `stores/shapes.py` takes it. Data is none of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from tiering.model_drill import Defect

Shape = Mapping[str, str]

CODES = {
    "extension": "missing_extension",
    "role": "lost_role",
    "member": "lost_role",
    "grant": "lost_grant",
    "database": "lost_database",
    "schema": "lost_table",
    "table": "lost_table",
    "view": "lost_table",
    "collection": "lost_collection",
    "index": "lost_index",
    "ttl": "ttl_deletion",
}
"""First word of a thing → the defect that its absence is."""


def around(instants: Mapping[str, datetime], at: datetime) -> tuple[str | None, str | None]:
    """Name the last shape taken at or before a moment, and the first one after it."""
    before = max((item for item in instants.items() if item[1] <= at), key=lambda item: item[1], default=None)
    after = min((item for item in instants.items() if item[1] > at), key=lambda item: item[1], default=None)
    return (before[0] if before else None, after[0] if after else None)


def compare(subject: str, before: Shape, after: Shape | None, restored: Shape) -> tuple[Defect, ...]:
    """List what a restored server lacks or has otherwise.

    Only what was the same before and after the moment is demanded: in between anybody may have changed it. An index
    that lets documents expire is a defect where the primary had none.
    """
    found = []
    for thing, description in before.items():
        if after is not None and after.get(thing) != description:
            continue
        if thing not in restored:
            found.append(Defect(CODES.get(thing.split()[0], "changed"), subject, f"{thing} is not there"))
        elif restored[thing] != description:
            found.append(Defect("changed", subject, f"{thing}: {restored[thing]}, expected {description}"))
    known = set(before) | set(after or {})
    for thing in restored:
        if thing.split()[0] == "ttl" and thing not in known:
            found.append(Defect("ttl_deletion", subject, f"{thing} lets documents expire that the primary kept"))
    return tuple(found)
