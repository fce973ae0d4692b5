"""Open the stores that the environment names: tasks do it where they run, so that they can run in any process.

Why imports stand inside the functions of tasks/: the stores cost two seconds to import, which a flow run would
otherwise spend before its first line.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from tiering import errors
from tiering.model import Dataset, Policies
from tiering.plan.policies import parse_policies
from tiering.settings import load_settings

if TYPE_CHECKING:
    from tiering.stores.opening import Stores


_open: ContextVar[Stores | None] = ContextVar("stores", default=None)


@contextmanager
def opened() -> Iterator[Stores]:
    """Open the stores, and close their connections at the end; inside another `opened()`, share that one's.

    Why share: a unit's steps run one after the other in one process, and connecting costs more than most steps.
    """
    if (current := _open.get()) is not None:
        yield current
        return
    from tiering.stores.opening import open_stores

    # Prefect attaches its handler to the loggers it is told of, but leaves their level at the root's WARNING.
    logging.getLogger("tiering").setLevel(logging.INFO)
    settings = load_settings()
    with open_stores(settings, load_policies(settings.policies)) as stores:
        token = _open.set(stores)
        try:
            yield stores
        finally:
            _open.reset(token)


def load_policies(file: Path) -> Policies:
    """Read and check the policy file.

    Raises:
        PolicyError: it cannot be read, or breaks a rule.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as exc:
        hint = "Set TIERING_POLICIES, or run from the project's directory."
        raise errors.PolicyError("read policies", str(file), exc.strerror or "unreadable", hint) from exc
    return _parse(text, str(file))


@functools.lru_cache(maxsize=4)
def _parse(text: str, file: str) -> Policies:
    # 45 ms, as much as all steps of a small unit; pure, so that remembering it changes nothing.
    return parse_policies(text, file)


def chosen(policies: Policies, data_class: str | None, dataset: str | None) -> tuple[Dataset, ...]:
    """List the datasets that a run is about: one, those of a class, or all; only such that move by age.

    Raises:
        NotFound: no such class or dataset, or the dataset is of another class.
    """
    moving = tuple(d for d in policies.datasets if d.state == "moves")
    found = tuple(d for d in moving if dataset in (None, d.name) and data_class in (None, d.policy.name))
    if not found:
        subject = " ".join(name for name in (data_class, dataset) if name) or "any"
        known = ", ".join(f"{d.policy.name} {d.name}" for d in moving)
        raise errors.NotFound("choose datasets", subject, "no such dataset moves", f"These do: {known}.")
    return found
