"""The flow that joins small lake files, so that those who read them through Iceberg open fewer."""

from __future__ import annotations

from prefect import State, flow
from prefect.states import Completed, Failed
from pydantic import AwareDatetime

from flows.lifecycle import name_run, owner
from tasks import compact as tasks
from tasks.lifecycle import choose_datasets


@flow(name="compact", flow_run_name=name_run)
def compact(
    data_class: str | None = None,
    dataset: str | None = None,
    at: AwareDatetime | None = None,
    dry_run: bool = False,
) -> State[None]:
    """Join the small neighbours among the lake's files, one dataset after the other; a failing one stops no other.

    Args:
        data_class: only its datasets.
        dataset: only this one.
        at: names the run; joining does not depend on time.
        dry_run: publish what would be joined and change nothing.
    """
    joined, problems = [], []
    for name in choose_datasets(data_class, dataset):
        ended = tasks.join_files(name, owner(), dry_run, return_state=True)
        if ended.is_completed():
            joined += ended.result()
        else:
            problems.append(f"{name}: {ended.message}")
    tasks.show_joined(joined, dry_run)
    summary = f"{sum(one.files for one in joined)} files {'would become' if dry_run else 'became'} {len(joined)}"
    if problems:
        return Failed(message=f"{len(problems)} failed; {summary}. {'; '.join(problems[:5])}")
    return Completed(message=summary)
