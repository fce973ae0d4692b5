"""`fsck` on documents: what was moved agrees with the ledger, and what somebody took away is found."""

from __future__ import annotations

import io

import pytest

from tests.ops.document_world import DocumentWorld, open_documents
from tests.ops.world import NOW, days_ago
from tiering.model import Tier, Transition
from tiering.ops.fsck import fsck
from tiering.plan.fsck import Code
from tiering.settings import Settings


def codes(world: DocumentWorld) -> list[tuple[Code, str]]:
    return [(finding.code, finding.subject) for finding in fsck(world.stores, NOW, deep=True).findings]


@pytest.mark.parametrize("is_two", [False, True])
def test_moved_documents_agree_and_missing_ones_are_found(
    fresh_settings: Settings, fresh_two_database_settings: Settings, is_two: bool
) -> None:
    settings = fresh_two_database_settings if is_two else fresh_settings
    with open_documents(settings) as world:
        for days in (20, 300):
            world.insert(world.news(days_ago(days), 30, seed=days))
        world.run(Transition.HOT_TO_WARM)
        world.run(Transition.WARM_TO_COLD)
        units = {record.tier: record for record in world.stores.ledger.units("news")}
        assert units.keys() == {Tier.WARM, Tier.COLD}
        assert codes(world) == []

        world.warm.delete_one({})
        assert codes(world) == [(Code.WRONG_ROWS, str(units[Tier.WARM].unit))]
        objects, key = world.stores.objects, world.stores.key(units[Tier.COLD].location)
        data = io.BytesIO()
        objects.fetch(key, data)
        spoilt = bytearray(data.getvalue())
        spoilt[len(spoilt) // 2] ^= 1
        objects._client.put_object(Bucket=objects.bucket, Key=key, Body=bytes(spoilt))
        assert Code.WRONG_HASH in {code for code, _ in codes(world)}
