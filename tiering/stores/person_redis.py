"""One person's keys in Redis, on every node of a cluster: destroy them, and look through all others for the name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tiering.stores.heat import HeatCounters

KINDS = ("session", "watchlist", "prefs")


def person_keys(name: str) -> list[str]:
    """Name the keys that the platform keeps of a person, with the name as it is or as a hash tag."""
    return [f"{kind}:{spelt}" for kind in KINDS for spelt in (name, f"{{{name}}}")]


def count_keys(redis: HeatCounters, name: str) -> dict[str, int]:
    """Count the person's keys by their kind; nothing where there is no Redis."""
    if redis.url is None:
        return {}
    found: dict[str, int] = {}
    with redis._mapped("look for keys of", "the person"):
        client = redis._connected()
        for key in person_keys(name):
            if client.exists(key):
                kind = key.split(":", 1)[0]
                found[kind] = found.get(kind, 0) + 1
    return found


def remove_keys(redis: HeatCounters, name: str) -> int:
    """Destroy the person's keys; return how many there were."""
    if redis.url is None:
        return 0
    with redis._mapped("remove keys of", "the person"):
        client = redis._connected()
        return sum(int(client.unlink(key)) for key in person_keys(name))


def mentions(redis: HeatCounters, is_in: Callable[[bytes], bool]) -> tuple[int, list[str]]:
    """Look through every key and value; return how many keys there are, and the kinds of those that name the person.

    The key itself is not returned: it holds the name.
    """
    if redis.url is None:
        return 0, []
    count, found = 0, []
    with redis._mapped("look through", "every key"):
        client = redis._connected()
        for key in client.scan_iter(count=1000):
            count += 1
            if is_in(_bytes(key)) or any(is_in(value) for value in _values(client, key)):
                found.append(_bytes(key).split(b":", 1)[0].decode("utf-8", "replace"))
    return count, found


def _values(client: Any, key: Any) -> Iterator[bytes]:
    kind = _bytes(client.type(key)).decode()
    readers: dict[str, Callable[[], Any]] = {
        "string": lambda: [client.get(key)],
        "hash": lambda: [part for pair in client.hgetall(key).items() for part in pair],
        "list": lambda: client.lrange(key, 0, -1),
        "set": lambda: client.smembers(key),
        "zset": lambda: client.zrange(key, 0, -1),
        "stream": lambda: [part for _, pairs in client.xrange(key) for pair in pairs.items() for part in pair],
    }
    if kind in readers:
        yield from (_bytes(value) for value in readers[kind]() if value is not None)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
