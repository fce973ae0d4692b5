"""Compaction as a Prefect task, and the artifact that says what was joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefect import task
from prefect.artifacts import create_table_artifact

import infra.sql
from tasks.options import EFFECT
from tasks.report import ROWS_MAX, artifact_key
from tasks.stores import opened

if TYPE_CHECKING:
    from tiering.ops.compact import Joined


@task(name="join files", task_run_name="join files of {dataset}", **EFFECT)
def join_files(dataset: str, owner: str, dry_run: bool) -> list[Joined]:
    """Join a dataset's small lake files, or list what would be joined."""
    from tiering.ops import compact, install, lifecycle

    with opened() as stores:
        if not dry_run:
            install.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))
        return compact.compact(stores, lifecycle.dataset_named(stores, dataset), owner, dry_run=dry_run)


def show_joined(joined: Sequence[Joined], dry_run: bool) -> None:
    """Publish what was joined."""
    rows = [
        {
            "dataset": one.dataset,
            "from": one.begin.isoformat(),
            "to": one.end.isoformat(),
            "files": one.files,
            "rows": one.row_count,
            "bytes before": one.bytes_before,
            "bytes after": one.bytes_after,
        }
        for one in joined
    ]
    text = f"{sum(one.files for one in joined)} lake files {'would become' if dry_run else 'became'} {len(joined)}."
    create_table_artifact(rows[:ROWS_MAX], artifact_key("compact", "all"), text)
