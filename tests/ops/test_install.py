"""Installing beside what users made themselves, and under settings that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import SecretStr

import infra.sql
from tests.ops.world import World, days_ago, open_world
from tiering import errors
from tiering.model import Transition
from tiering.ops import install
from tiering.settings import Settings
from tiering.stores import tables
from tiering.stores.opening import open_stores
from tiering.stores.postgres import execute


@pytest.fixture
def world(fresh_settings: Settings) -> Iterator[World]:
    with open_world(fresh_settings) as opened:
        yield opened


def test_one_database_spelt_in_two_ways_is_refused(world: World, fresh_settings: Settings) -> None:
    url = fresh_settings.hot_pg_url.get_secret_value()
    spelt = SecretStr(url + ("&" if "?" in url else "?") + "application_name=x")
    changed = fresh_settings.model_copy(update={"hot_pg_url": spelt})
    with (
        open_stores(changed, world.stores.policies) as stores,
        pytest.raises(errors.SettingsError, match=r"TIERING_HOT_PG_URL: names the same database.*HINT: Give both"),
    ):
        install.install_schemas(stores, infra.sql.read("rooms"), infra.sql.read("ledger"))


def test_two_databases_of_one_server_are_two(fresh_two_database_settings: Settings) -> None:
    with open_world(fresh_two_database_settings) as world:
        assert not world.stores.is_one_database


def test_partitions_of_another_length_are_left_alone(world: World) -> None:
    """A unit inside a partition that a user made is not created beside it; the other units are."""
    first, last = days_ago(3), days_ago(-1)
    with world.stores.hot.transaction("create", "by hand") as connection:
        execute(
            connection,
            "CREATE TABLE hot.by_hand PARTITION OF hot.market_bars FOR VALUES FROM (%s) TO (%s)",
            (first, last),
        )
    world.insert_day(days_ago(0))
    world.insert_day(days_ago(4))
    rows = world.rows()
    created = install.prepare_units(world.stores, world.dataset, world.now)
    assert [unit.begin for unit in created] == [days_ago(4)]
    install.create_units(world.stores, world.dataset, [(days_ago(2), days_ago(1)), (days_ago(5), days_ago(4))])
    with world.stores.hot.transaction("list", "partitions") as connection:
        begins = [p.begin for p in tables.partitions(connection, tables.hot_parent("market_bars")) if p.begin]
    assert begins == [days_ago(5), days_ago(4), first, last, days_ago(-2)]
    assert world.rows() == rows
    world.run(Transition.HOT_TO_WARM)
    assert world.rows() == rows
