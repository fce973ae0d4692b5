"""Look for the last good moment before a corruption, by restoring: replicas do not help, they have it too.

The heartbeats of the newest restore are the candidates, a second apart; what is bad stays bad, so log2(n) + 1 restores
decide. Does not: know what is wrong with the data: `check` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from tiering import errors
from tiering.model_drill import Beat, Window
from tiering.ops.recoverers import Recoverer, Restored
from tiering.plan.drills import choose, next_to_try
from tiering.plan.heartbeat import judge_chain

Check = Callable[[Restored], bool]
"""Tells of a restored store whether its data is good."""

CANDIDATES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Found:
    """The end of a search.

    Attributes:
        at: the moment to bring back; None: none in reach is good.
        corrupted_at: the first moment that is bad, to a second; None: all are good.
        restores: how many were made.
        text: for people.
    """

    at: datetime | None
    corrupted_at: datetime | None
    restores: int
    text: str


def find_last_good(
    recoverer: Recoverer, window: Window, latest: datetime, site: Mapping[str, str], seed: int, check: Check | None
) -> Found:
    """Find the last moment of a store that is good.

    Args:
        recoverer: of the store.
        window: that can be brought back.
        latest: the newest moment.
        site: names of the platform.
        seed: of the heartbeat from which on all is taken for bad, where there is no check.
        check: tells whether a restored store is good.

    Raises:
        TieringError: the newest moment cannot be restored, so that there is nothing to look at.
    """
    with recoverer.restore(latest) as restored:
        beats = recoverer.beats(restored, site) or []
        reach = [beat for beat in beats if window.begins <= beat.at <= latest][-CANDIDATES_MAX:]
        if not reach:
            raise errors.NotFound(
                "search", "last good point", "no heartbeat in reach", "Is `tiering heartbeat` running?"
            )
        since = None if check else reach[choose(seed, "corruption", len(reach) - 1) + 1 if len(reach) > 1 else 0]
        verdicts = {len(reach) - 1: _is_good(recoverer, restored, site, check, since)}
    while (index := next_to_try(len(reach), verdicts)) is not None:
        with recoverer.restore(_just_before_next(reach, index)) as restored:
            verdicts[index] = _is_good(recoverer, restored, site, check, since)
    good = max((index for index, is_good in verdicts.items() if is_good), default=None)
    if good == len(reach) - 1:
        return Found(latest, None, len(verdicts), "the newest moment is good: there is no corruption in the data")
    if good is None:
        return Found(None, reach[0].at, len(verdicts), f"none of {len(reach)} moments is good")
    text = f"last good heartbeat {reach[good].seq} of {len(reach)} moments, found by {len(verdicts)} restores"
    if since is not None:
        text += f"; corruption was assumed from heartbeat {since.seq} on"
    return Found(_just_before_next(reach, good), reach[good + 1].at, len(verdicts), text)


def _is_good(
    recoverer: Recoverer, restored: Restored, site: Mapping[str, str], check: Check | None, since: Beat | None
) -> bool:
    if check is not None:
        return check(restored)
    beats = recoverer.beats(restored, site) or []
    return not judge_chain(recoverer.store, beats).problem and since is not None and beats[-1].at < since.at


def _just_before_next(beats: list[Beat], index: int) -> datetime:
    """Name the last moment at which this beat was the newest: it is there, the next one is not."""
    if index + 1 == len(beats):
        return beats[index].at
    return max(beats[index].at, beats[index + 1].at - timedelta(milliseconds=1))
