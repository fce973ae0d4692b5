"""The part of the `tiering` command for single objects: their storage class, and restores from deep archive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tiering import cli_output as out
from tiering import errors

if TYPE_CHECKING:
    from tiering.stores.object_rows import ObjectRecord

app = typer.Typer(no_args_is_help=True, help="Objects that left STANDARD: where they are; have archived ones restored.")

_Dataset = Annotated[str | None, typer.Option("--dataset", help="Only this dataset's.")]
_Prefix = Annotated[str, typer.Option("--prefix", help="Only those whose keys begin so.")]
_Begin = Annotated[str | None, typer.Option("--from", help="Only units that end after this, with time zone.")]
_End = Annotated[str | None, typer.Option("--to", help="Only units that begin before this.")]
_At = Annotated[str | None, typer.Option("--at", help="The run's instant, with time zone.  [now]")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]


@app.command("list")
def list_objects(
    dataset: _Dataset = None, prefix: _Prefix = "", begin: _Begin = None, end: _End = None, as_json: _Json = False
) -> None:
    """List the objects that are in a colder class, as the ledger knows them.

    Example: `tiering objects list --dataset chart_images --from 2024-01-01T00:00Z`
    """
    _show(_found(dataset, prefix, begin, end), as_json, "objects")


@app.command()
def restore(
    dataset: _Dataset = None,
    prefix: _Prefix = "",
    begin: _Begin = None,
    end: _End = None,
    days: Annotated[int, typer.Option("--days", help="How long they shall be readable.")] = 7,
    speed: Annotated[str, typer.Option("--speed", help="Standard (12 hours) or Bulk (48, cheapest).")] = "Standard",
    at: _At = None,
    as_json: _Json = False,
) -> None:
    """Ask for the restore of objects in deep archive; nothing waits, `status` tells when they can be read.

    Example: `tiering objects restore --dataset chart_images --from 2024-01-01T00:00Z --to 2024-02-01T00:00Z`
    """
    from tiering.cli import instant, opened
    from tiering.cli_moves import actor
    from tiering.ops import restores as ops

    if not dataset and not prefix:
        hint = "Give --dataset or --prefix: a restore is paid for by the gigabyte."
        raise errors.PermanentError("request restore", "everything", "nothing was named", hint)
    found = _found(dataset, prefix, begin, end)
    with opened() as stores:
        asked = ops.request(stores, found, instant(at), actor(), days=days, speed=speed)
    _show(asked, as_json, f"{len(found)} objects looked at, {len(asked)} in deep archive and asked for")


@app.command()
def status(dataset: _Dataset = None, prefix: _Prefix = "", at: _At = None, as_json: _Json = False) -> None:
    """Look at the restores under way once, and list all that were asked for.

    Example: `tiering objects status --dataset chart_images --json`
    """
    from tiering.cli import instant, opened
    from tiering.cli_moves import actor
    from tiering.ops import restores as ops

    with opened() as stores:
        changes = ops.poll(stores, instant(at), actor(), dataset=dataset)
    for change in changes:
        out.note(f"{change.record.location}: {change.record.restore_state.value.lower() or 'archived again'}")
    found = [record for record in _found(dataset, prefix, None, None) if record.restore_state.value]
    _show(found, as_json, "restores")


def _found(dataset: str | None, prefix: str, begin: str | None, end: str | None) -> list[ObjectRecord]:
    from tiering.cli import instant, opened
    from tiering.ops import lifecycle
    from tiering.ops import restores as ops

    first, last = (instant(text) if text else None for text in (begin, end))
    with opened() as stores:
        chosen = lifecycle.dataset_named(stores, dataset) if dataset else None
        return ops.find(stores, dataset=chosen, begin=first, end=last, prefix=prefix)


def _show(records: Sequence[ObjectRecord], as_json: bool, title: str) -> None:
    heads = ["object", "dataset", "class", "bytes", "created", "restore", "ready about", "until"]
    rows = [
        (
            record.location,
            record.dataset,
            record.storage_class,
            record.size,
            record.created_at,
            record.restore_state.value,
            record.ready_at or "",
            record.until or "",
        )
        for record in records
    ]
    document = {
        "objects": [
            {
                "location": record.location,
                "dataset": record.dataset,
                "begin": record.begin,
                "storage_class": record.storage_class,
                "size_bytes": record.size,
                "created_at": record.created_at,
                "restore_state": record.restore_state.value,
                "ready_about": record.ready_at,
                "until": record.until,
            }
            for record in records
        ]
    }
    out.emit(document, as_json, out.table_of(title, heads, rows))
