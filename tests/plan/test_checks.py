"""Checkpoint suites: rules are well formed, and row counts are compared only where that is fair."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders import dataset, unit
from tiering.model import Form, Span, Unit
from tiering.plan.checks import SUITES, WARN_BELOW, Must, is_comparable, row_count_floor, rules_of
from tiering.plan.policies import parse_policies

FILE = Path(__file__).parents[2] / "deployments" / "policies.yaml"
FRIDAY, SATURDAY, SUNDAY = (unit(day) for day in ("2024-01-05", "2024-01-06", "2024-01-07"))


@pytest.mark.parametrize("suite", [*SUITES, ""])
def test_every_dataset_has_the_rules_of_any_and_its_own(suite: str) -> None:
    rules = rules_of(dataset(suite=suite))
    assert [rule.must for rule in rules[:4]] == [Must.ROW_COUNT, Must.NOT_NULL, Must.INSIDE_UNIT, Must.UNIQUE]
    assert rules[4:] == SUITES[suite or "default"].rules
    assert len({rule.name for rule in rules}) == len(rules)
    assert all(rule.description for rule in rules)
    assert all(rule.columns for rule in rules[1:])


def test_a_suite_of_documents_names_declared_fields_only() -> None:
    """A rule about anything else could not be counted, and would quarantine every unit."""
    of_documents = [d for d in parse_policies(FILE.read_text(), str(FILE)).datasets if d.form is Form.DOCUMENTS]
    assert len(of_documents) == 7
    for found in of_documents:
        declared = {"_id", found.time_column, *(field.name for field in found.fields)}
        named = {column for rule in rules_of(found) for column in rule.columns}
        assert (found.name, named - declared) == (found.name, set())
        assert found.suite == found.name


@pytest.mark.parametrize(
    ("of", "before", "floor"),
    [
        (FRIDAY, None, 1),
        (FRIDAY, 0, 1),
        (FRIDAY, 99, 1),
        (FRIDAY, 100, 10),
        (FRIDAY, 100_000, 10_000),
        (SATURDAY, 100_000, 1),
        (SUNDAY, 100_000, 1),
        (unit("2024-01-06", length=Span(months=1)), 100_000, 10_000),
        (unit("2024-01-05", length=Span(hours=4)), 100_000, 1),
    ],
)
def test_a_unit_is_compared_with_the_one_before_only_where_that_says_something(
    of: Unit, before: int | None, floor: int
) -> None:
    assert row_count_floor(of, before) == floor
    assert is_comparable(of, before) is (floor > 1)


def test_a_warning_comes_well_before_a_failure() -> None:
    assert row_count_floor(FRIDAY, 1000, WARN_BELOW) == 500
