"""One person's documents and keys: out of MongoDB's collections, the lake made of them, and a Redis Cluster."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import SecretStr
from redis import RedisCluster

from tests.ops.document_world import open_documents
from tests.ops.erase_world import NEIGHBOUR, PERSON, open_people
from tests.ops.world import NOW, days_ago
from tiering.model import Tier
from tiering.ops.erase import erase, look, verify
from tiering.plan.erase import Person
from tiering.settings import Settings

WHO = Person(PERSON)


def posts(days: int, seed: str) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for number, who in enumerate([PERSON, NEIGHBOUR, "user-7", PERSON, "user-8"]):
        at = days_ago(days) + timedelta(minutes=number)
        made.append({"_id": f"{seed}-{number}", "publish_time": at, "author": {"user_id": who}, "text": f"by {who}"})
    made.append(
        {"_id": f"{seed}-drift", "publish_time": days_ago(days), "author": {"user_id": 4711}, "text": "a number"}
    )
    return made


def check(settings: Settings) -> None:
    with open_documents(settings, "social_posts") as world:
        for days, seed in ((0, "hot"), (3, "warm"), (200, "cold")):
            world.hot.insert_many(posts(days, seed))
        world.run()
        world.run()
        assert {r.tier for r in world.stores.ledger.units("social_posts")} == {Tier.WARM, Tier.COLD}
        before = {key: value for key, value in world.seen().items() if not WHO.is_in(value[0])}
        outlook = look(world.stores, WHO)
        assert sum(item.row_count for item in outlook.found) >= 6
        certificate = erase(world.stores, WHO, "request 30", "test", NOW)
        assert certificate["proof"]["hits"] == []
        assert certificate["complete"]
        assert world.seen() == before
        assert len(before) == 12
        assert erase(world.stores, Person("4711"), "request 31", "test", NOW)["complete"]
        assert len(world.seen()) == 9
        assert verify(world.stores, Person(NEIGHBOUR)).hits


def test_documents_of_every_tier(fresh_settings: Settings) -> None:
    check(fresh_settings)


def test_documents_on_two_servers(fresh_two_database_settings: Settings) -> None:
    check(fresh_two_database_settings)


def test_keys_on_every_node_of_a_cluster(fresh_settings: Settings, redis_url: SecretStr) -> None:
    with open_people(fresh_settings.model_copy(update={"redis_url": redis_url})) as people:
        client = RedisCluster.from_url(redis_url.get_secret_value())
        for who in (PERSON, NEIGHBOUR):
            client.set(f"session:{who}", who)
            client.sadd(f"watchlist:{{{who}}}", "S1")
            client.hset(f"prefs:{who}", mapping={"theme": "dark"})
        assert erase(people.stores, WHO, "request 32", "test", NOW)["complete"]
        assert client.exists(f"session:{PERSON}") == client.exists(f"watchlist:{{{PERSON}}}") == 0
        assert client.exists(f"session:{NEIGHBOUR}") == client.exists(f"prefs:{NEIGHBOUR}") == 1
        client.set("cache:page", f"hello {PERSON}!")
        assert [hit.place for hit in verify(people.stores, WHO).hits] == ["redis cache"]
        for key in (f"session:{NEIGHBOUR}", f"watchlist:{{{NEIGHBOUR}}}", f"prefs:{NEIGHBOUR}", "cache:page"):
            client.delete(key)
        client.close()
