"""Tell people: by the log always, and by webhook, e-mail, Slack and what else Apprise knows, as the settings say.

A channel that does not answer neither fails nor hides what it was to tell: each is tried by itself, for a bounded time,
and what became of it is returned and shown beside the result.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from dataclasses import dataclass
from urllib.parse import urlsplit

import apprise
from pydantic import SecretStr

log = logging.getLogger(__name__)

SECONDS_MAX = 20.0
CONNECT_SECONDS, READ_SECONDS = 5, 10


@dataclass(frozen=True, slots=True)
class Notice:
    """What people are told.

    Attributes:
        title: one line.
        body: plain text; no secret.
        is_good: nothing to be done.
    """

    title: str
    body: str
    is_good: bool


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one channel: its kind (never its address), and why it failed; empty if it did not."""

    channel: str
    problem: str = ""


def tell(urls: SecretStr | None, notice: Notice) -> tuple[Told, ...]:
    """Tell a notice through every channel.

    Args:
        urls: of Apprise, parted by blanks or line ends: `json://host/path`, `mailto://user:password@host?to=…`,
            `slack://…`; see https://appriseit.com/services/.
        notice: what to tell.
    """
    log.log(logging.INFO if notice.is_good else logging.ERROR, "%s: %s", notice.title, " ".join(notice.body.split()))
    words = urls.get_secret_value().split() if urls else []
    return (Told("log"), *tell_all(((_kind(word), _open(word)) for word in words), notice))


def tell_all(channels: Iterable[tuple[str, apprise.NotifyBase | None]], notice: Notice) -> tuple[Told, ...]:
    """Tell a notice through opened channels, side by side, none of them waited for longer than `SECONDS_MAX`."""
    # Its debug lines quote addresses, which hold tokens.
    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    opened = list(channels)
    if not opened:
        return ()
    kind = apprise.NotifyType.SUCCESS if notice.is_good else apprise.NotifyType.FAILURE
    pool = ThreadPoolExecutor(len(opened), "notify")
    sent = [
        pool.submit(channel.notify, body=notice.body, title=notice.title, notify_type=kind) if channel else None
        for _, channel in opened
    ]
    found = []
    for (name, _), future in zip(opened, sent, strict=True):
        if future is None:
            found.append(Told(name, "its address cannot be read; see https://appriseit.com/services/"))
            continue
        try:
            failure = future.exception(timeout=SECONDS_MAX)
            problem = type(failure).__name__ if failure else "" if future.result() else "it refused or did not answer"
        except TooLate:
            problem = f"no answer within {SECONDS_MAX:.0f} s"
        found.append(Told(name, problem))
    pool.shutdown(wait=False, cancel_futures=True)
    for told in found:
        if told.problem:
            log.warning("notification by %s failed: %s", told.channel, told.problem)
    return tuple(found)


def _kind(url: str) -> str:
    try:
        return urlsplit(url).scheme or "unknown"
    except ValueError:
        return "unknown"


def _open(url: str) -> apprise.NotifyBase | None:
    bounded = url + ("&" if "?" in url else "?") + f"cto={CONNECT_SECONDS}&rto={READ_SECONDS}"
    return apprise.Apprise.instantiate(bounded, suppress_exceptions=True)
