"""Heat counters on a real cluster and a real single server: exact decay, nothing lost, bounded, never in the way."""

from __future__ import annotations

import math
import random
import secrets
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis, RedisCluster
from redis.exceptions import RedisError

from infra.local import Stack
from infra.local.binaries import find_redis_server
from infra.local.processes import Command, bare_environment, spawn, stop
from infra.local.state import choose_port
from tiering import errors
from tiering.model import Heat
from tiering.stores import heat as module
from tiering.stores.heat import HeatCounters, Touch

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
UNIT = datetime(2026, 6, 25, tzinfo=UTC)
LN2 = math.log(2)


@pytest.fixture(scope="module")
def counters(redis_url: SecretStr) -> Iterator[HeatCounters]:
    """Counters on the cluster, patient with a loaded machine."""
    made = HeatCounters(redis_url, timeout_seconds=10)
    yield made
    made.close()


@pytest.fixture
def name() -> str:
    """A dataset that no other test counts."""
    return f"bars_{secrets.token_hex(4)}"


def test_an_access_decays_by_half_each_half_life_exactly(counters: HeatCounters, name: str) -> None:
    counters.record(Touch(name, NOW, weight=1000))
    for days in (0, 1, 2, 7, 20):
        read = counters.read(name, NOW + days * DAY)
        assert read.dataset == pytest.approx(1000 * LN2 / 2**days, rel=1e-12)
    assert read.since == NOW


def test_a_steady_rate_is_read_as_that_rate(counters: HeatCounters, name: str) -> None:
    for hour in range(24 * 14):
        counters.record(Touch(name, NOW + hour * HOUR, [UNIT], ["AAPL"], weight=5))
    # Read half an hour after the last, the sum's middle.
    read = counters.read(name, NOW + (24 * 14 - 0.5) * HOUR)
    assert read.dataset == pytest.approx(120, rel=1e-3)
    assert read.units == {UNIT: pytest.approx(120, rel=1e-3)}
    assert read.symbols == {"AAPL": pytest.approx(120, rel=1e-3)}


def test_counts_agree_with_the_sum_over_all_accesses_in_any_order_and_over_epochs(
    counters: HeatCounters, name: str
) -> None:
    seed = secrets.randbelow(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    accesses = [(NOW - dice.random() * 40 * DAY, dice.choice([1, 2, 0.5])) for _ in range(300)]
    for at, weight in accesses:
        counters.record(Touch(name, at, weight=weight))
    for later in (timedelta(), 3 * HOUR, 11 * DAY):
        expected = sum(w * 2 ** ((at - NOW - later) / DAY) for at, w in accesses) * LN2
        assert counters.read(name, NOW + later).dataset == pytest.approx(expected, rel=1e-8)


def test_another_half_life_is_respected(redis_url: SecretStr, name: str) -> None:
    slow = HeatCounters(redis_url, half_life=7 * DAY, timeout_seconds=10)
    slow.record(Touch(name, NOW, weight=70))
    assert slow.read(name, NOW + 7 * DAY).dataset == pytest.approx(70 / 2 * LN2 / 7)
    slow.close()


def test_counting_began_with_the_first_access_and_is_remembered_over_epochs(counters: HeatCounters, name: str) -> None:
    assert counters.read(name, NOW) == Heat()
    for days in (0, 20, 40, 60):
        counters.record(Touch(name, NOW + days * DAY))
    assert counters.read(name, NOW + 61 * DAY).since == NOW
    assert counters.read(name, NOW + 200 * DAY) == Heat()


def test_concurrent_recorders_lose_nothing(redis_url: SecretStr, name: str) -> None:
    units = [UNIT + day * DAY for day in range(3)]

    def recorder(number: int) -> None:
        own = HeatCounters(redis_url, timeout_seconds=30)
        for index in range(200):
            own.record(Touch(name, NOW, [units[index % 3]], [f"S{number}", "ALL"]))
        own.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(recorder, range(8)))
    reader = HeatCounters(redis_url, timeout_seconds=10)
    read = reader.read(name, NOW)
    reader.close()
    assert read.dataset / LN2 == pytest.approx(1600, rel=1e-9)
    assert sum(read.units.values()) / LN2 == pytest.approx(1600, rel=1e-9)
    assert read.symbols["ALL"] / LN2 == pytest.approx(1600, rel=1e-9)
    assert [read.symbols[f"S{number}"] / LN2 for number in range(8)] == [pytest.approx(200, rel=1e-9)] * 8


def test_memory_is_bounded_and_every_key_expires(counters: HeatCounters, redis_url: SecretStr, name: str) -> None:
    many = [f"S{number}" for number in range(module.FIELDS_MAX // 5)]
    for part in range(6):
        counters.record(Touch(name, NOW, symbols=[f"{part}{symbol}" for symbol in many]))
    counters.record(Touch(name, NOW, symbols=["0S1", "new"]))
    read = counters.read(name, NOW)
    assert len(read.symbols) <= module.FIELDS_MAX
    assert read.symbols["0S1"] / LN2 == pytest.approx(2)
    assert "new" not in read.symbols
    assert read.dataset / LN2 == pytest.approx(7)
    with RedisCluster.from_url(redis_url.get_secret_value()) as cluster:
        keys = list(cluster.scan_iter(match=f"tiering:heat:{{{name}}}:*"))
        sizes = [cluster.memory_usage(key) for key in keys]
        print(f"{len(read.symbols)} fields take {sum(sizes):,} bytes")
        assert keys
        assert all(0 < cluster.ttl(key) <= 64 * 86400 for key in keys)
        assert sum(sizes) < 8_000_000
        cluster.delete(*keys)


def test_names_come_back_as_they_were(counters: HeatCounters, name: str) -> None:
    odd = ["600519.SH", "^GSPC", "BRK.B", "腾讯", "a b:c{d}", ""]
    before_1970 = datetime(1969, 12, 31, tzinfo=UTC)
    counters.record(Touch(name, NOW, [before_1970, UNIT], odd))
    read = counters.read(name, NOW)
    assert set(read.symbols) == set(odd)
    assert set(read.units) == {before_1970, UNIT}


@pytest.mark.parametrize("weight", [0, -1, math.nan, math.inf])
def test_a_weight_is_a_positive_number(counters: HeatCounters, weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        counters.record(Touch("bars", NOW, weight=weight))


def test_a_single_server_serves_as_well(tmp_path: Path, name: str) -> None:
    port = choose_port(set())
    arguments = [find_redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    process = spawn(Command("redis", arguments, tmp_path / "log", bare_environment(tmp_path)))
    try:
        with Redis(port=port) as waiting:
            deadline = time.monotonic() + 20
            while not answers(waiting):
                assert time.monotonic() < deadline
        single = HeatCounters(SecretStr(f"redis://127.0.0.1:{port}/0"), timeout_seconds=10)
        single.record(Touch(name, NOW, [UNIT], ["AAPL"]))
        assert single.read(name, NOW + DAY).units == {UNIT: pytest.approx(LN2 / 2)}
        single.close()
    finally:
        stop(process, signal.SIGTERM, 10.0)


def answers(server: Redis) -> bool:
    try:
        return bool(server.ping())
    except RedisError:
        return False


# -- never in the way ------------------------------------------------------------------------------------------


def test_touches_are_counted_from_another_thread(redis_url: SecretStr, name: str) -> None:
    counters = HeatCounters(redis_url, timeout_seconds=10)
    for _ in range(50):
        counters.touch(name, NOW, [UNIT], ["AAPL"])
    assert counters.flush(30)
    assert counters.read(name, NOW).dataset / LN2 == pytest.approx(50)
    counters.close()


def test_without_redis_reading_says_so_and_touching_does_nothing() -> None:
    counters = HeatCounters(None)
    with pytest.raises(errors.StoreUnavailable, match="TIERING_REDIS_URL is not set"):
        counters.read("bars", NOW)
    counters.touch("bars", NOW)
    assert counters.flush(0)
    counters.close()


def test_a_server_that_never_answers_costs_a_reader_of_data_nothing() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        counters = HeatCounters(SecretStr(f"redis://127.0.0.1:{deaf.getsockname()[1]}/0"), rest_seconds=60)
        began = time.perf_counter()
        for _ in range(5000):
            counters.touch("bars", NOW, [UNIT])
        touched = time.perf_counter() - began
        counters.close()
        closed = time.perf_counter() - began - touched
        print(f"5000 touches took {touched * 1e3:.1f} ms, closing {closed * 1e3:.0f} ms")
        assert touched < 0.2
        assert closed < 1
        with pytest.raises(errors.StoreUnavailable):
            counters.read("bars", NOW)


def test_a_malformed_touch_is_not_counted_and_the_next_one_is(redis_url: SecretStr, name: str) -> None:
    counters = HeatCounters(redis_url, timeout_seconds=10, rest_seconds=0)
    counters.touch(name, datetime(2026, 7, 1))  # noqa: DTZ001
    assert counters.flush(30)
    counters.touch(name, NOW)
    assert counters.flush(30)
    assert counters.read(name, NOW).dataset / LN2 == pytest.approx(1)
    counters.close()


def test_a_wrong_password_is_told_without_showing_it(redis_url: SecretStr) -> None:
    _, _, place = redis_url.get_secret_value().rpartition("@")
    counters = HeatCounters(SecretStr(f"redis://:s3cret@{place}"), timeout_seconds=10)
    with pytest.raises(errors.AccessDenied) as caught:
        counters.read("bars", NOW)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(errors.SettingsError, match="malformed") as refused:
        HeatCounters(SecretStr("rediss3cret://:s3cret@host")).read("bars", NOW)
    assert "s3cret" not in str(refused.value)


def test_a_killed_cluster_is_unavailable_and_counted_on_again_when_it_is_back(stack_directory: Path, name: str) -> None:
    with Stack(stack_directory / "redis-killed", services={"redis"}) as own:
        counters = HeatCounters(SecretStr(own.redis.url), timeout_seconds=5, rest_seconds=0)
        counters.record(Touch(name, NOW))
        own.kill("redis")
        with pytest.raises(errors.StoreUnavailable):
            counters.read(name, NOW)
        with pytest.raises(errors.StoreUnavailable):
            counters.record(Touch(name, NOW))
        own.restart("redis")
        deadline = time.monotonic() + 60
        while True:
            try:
                counters.record(Touch(name, NOW))
                break
            except errors.StoreUnavailable:
                assert time.monotonic() < deadline
        assert counters.read(name, NOW).dataset / LN2 >= 1
        counters.close()


def test_recording_is_cheap(counters: HeatCounters, name: str) -> None:
    began = time.perf_counter()
    for _ in range(500):
        counters.record(Touch(name, NOW, [UNIT], ["AAPL", "MSFT"]))
    each = (time.perf_counter() - began) / 500
    print(f"one access, four counters: {each * 1e6:.0f} µs")
    assert each < 0.05
