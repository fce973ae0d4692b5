"""Restores of archived objects as Prefect tasks; an event and an artifact tell when something became readable."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.events import emit_event

import infra.sql
from tasks.options import EFFECT
from tasks.report import ROWS_MAX, artifact_key
from tasks.stores import opened

if TYPE_CHECKING:
    from tiering.ops.restores import Change
    from tiering.stores.object_rows import ObjectRecord

AVAILABLE_EVENT, GONE_EVENT = "tiering.object.available", "tiering.object.archived-again"


@task(name="request restores", **EFFECT)
def request_restores(
    dataset: str | None,
    begin: datetime | None,
    end: datetime | None,
    prefix: str,
    now: datetime,
    owner: str,
    days: int,
    speed: str,
) -> list[ObjectRecord]:
    """Ask for the restore of a dataset's, a range's or a prefix's objects that are in deep archive."""
    from tiering.ops import lifecycle, restores

    with opened() as stores:
        chosen = lifecycle.dataset_named(stores, dataset) if dataset else None
        found = restores.find(stores, dataset=chosen, begin=begin, end=end, prefix=prefix)
        return restores.request(stores, found, now, owner, days=days, speed=speed)


@task(name="poll restores", **EFFECT)
def poll_restores(now: datetime, owner: str) -> list[Change]:
    """Look once at every restore under way."""
    from tiering.ops import install, restores

    with opened() as stores:
        install.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
        return restores.poll(stores, now, owner)


def tell(changes: Sequence[Change]) -> None:
    """Emit an event for each change, which automations may send on to people, and publish all of them."""
    for change in changes:
        record = change.record
        payload = {"dataset": record.dataset, "unit": record.begin.isoformat(), "until": _at(record.until)}
        event = AVAILABLE_EVENT if record.restore_state.value == "AVAILABLE" else GONE_EVENT
        emit_event(event, {"prefect.resource.id": f"tiering.object.{record.location}"}, payload=payload)
    if changes:
        _show("restores-changed", [change.record for change in changes], f"{len(changes)} restores changed.")


def show_asked(records: Sequence[ObjectRecord]) -> None:
    """Publish what was asked for, and when it is ready."""
    if records:
        _show("restores-requested", records, f"{len(records)} objects are asked for.")


def _show(key: str, records: Sequence[ObjectRecord], text: str) -> None:
    rows = [
        {
            "object": record.location,
            "dataset": record.dataset,
            "state": record.restore_state.value or "archived",
            "ready about": _at(record.ready_at),
            "until": _at(record.until),
        }
        for record in records
    ]
    create_table_artifact(rows[:ROWS_MAX], artifact_key(key), text)


def _at(instant: datetime | None) -> str:
    return f"{instant:%Y-%m-%d %H:%M}Z" if instant else ""
