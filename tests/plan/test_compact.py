"""Which files are joined: small neighbours of one partition, up to the target, and none twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tiering.model import Unit
from tiering.plan.compact import Part, joined_key, plan_groups

START = datetime(2024, 1, 29, tzinfo=UTC)


def days(count: int, size: int = 10) -> list[Part]:
    begins = [START + timedelta(days=at) for at in range(count)]
    return [Part(Unit("bars", b, b + timedelta(days=1)), f"s3://lake/{at}", size, 5) for at, b in enumerate(begins)]


@pytest.mark.parametrize(("partition", "sizes"), [("month", [3, 3]), ("day", []), ("year", [6]), ("", [6])])
def test_groups_keep_to_the_partition(partition: str, sizes: list[int]) -> None:
    assert [len(group.parts) for group in plan_groups(days(6), partition, [])] == sizes


def test_groups_end_at_the_target() -> None:
    assert [len(group.parts) for group in plan_groups(days(7), "", [], target_bytes=30)] == [3, 3]


def test_large_files_and_lone_ones_are_left_alone() -> None:
    parts = days(4)
    parts[1] = Part(parts[1].unit, parts[1].location, 100, 5)
    [group] = plan_groups(parts, "", [], small_bytes=100)
    assert [part.location for part in group.parts] == ["s3://lake/0", "s3://lake/2", "s3://lake/3"]
    assert plan_groups(parts[:2], "", [], small_bytes=100) == ()


def test_what_is_joined_already_is_done_until_a_part_is_another() -> None:
    parts = days(3)
    joined = [[part.location for part in parts]]
    assert plan_groups(parts, "month", joined) == ()
    parts[1] = Part(parts[1].unit, "s3://lake/1-g2", 10, 6)
    assert len(plan_groups(parts, "month", joined)) == 1


def test_a_joined_file_is_named_by_its_ends_and_its_content() -> None:
    [group] = plan_groups(days(3), "month", [])
    assert joined_key(group, "0123456789abcdef0123") == "lake/bars/joined/20240129-20240131-0123456789abcdef.parquet"
    assert (group.begin, group.end) == (START, START + timedelta(days=3))
