"""The policy file: what it accepts, and what the lint refuses and how it says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiering.errors import PolicyError
from tiering.model import Span
from tiering.plan.policies import CLASSES, NEVER, STAGES, parse_policies

FILE = Path("deployments/policies.yaml")
OWNERS = """
market_data: {hot_to_warm: 7d, warm_to_cold: 2y, compression: 7d, retention: 10y}
news_data: 1d/6m/–/5y
social_data: 4h/3m/–/2y
analysis_results: 7d/1y/–/7y
user_data: 30d/2y/–/7y
audit_logs: 1d/1y/–/7y
"""
ONE_CLASS = "market_data: {hot_to_warm: 7d, warm_to_cold: 2y, compression: 7d, retention: 10y}\n"
BARS = """datasets:
  market_bars:
    class: market_data
    time_column: ts
    key: [symbol, ts]
    unit: 1d
"""


def refusal(text: str) -> str:
    with pytest.raises(PolicyError) as refused:
        parse_policies(text, "my/policies.yaml")
    assert refused.value.subject.startswith("my/policies.yaml: ")
    return str(refused.value)


def shipped() -> str:
    return (Path(__file__).parents[2] / FILE).read_text()


def test_the_owners_document_is_accepted_as_written() -> None:
    policies = parse_policies(OWNERS, "owner.yaml")
    ages = {p.name: "/".join(str(getattr(p, s) or "–") for s in STAGES) for p in policies.classes}
    assert ages == {
        "market_data": "7d/2y/7d/10y",
        "news_data": "1d/6mo/–/5y",
        "social_data": "4h/3mo/–/2y",
        "analysis_results": "7d/1y/–/7y",
        "user_data": "30d/2y/–/7y",
        "audit_logs": "1d/1y/–/7y",
    }


def test_the_shipped_file_says_what_the_owner_says() -> None:
    policies = parse_policies(shipped(), str(FILE))
    assert policies.classes == parse_policies(OWNERS, "owner.yaml").classes
    assert {p.name for p in policies.classes} == set(CLASSES)
    assert {d.policy.name for d in policies.datasets} == set(CLASSES)
    assert {p.name for p in policies.classes if policies.of_class(p.name)} == set(CLASSES)
    resting = {(d.name, d.state) for d in policies.datasets if d.state != "moves"}
    assert resting == {(name, "state") for name in ("user_configurations", "positions", "alert_triggers")}


def test_overrides_change_one_dataset_only() -> None:
    policies = parse_policies(shipped(), str(FILE))
    indicators, statements = policies.dataset("technical_indicators"), policies.dataset("financial_statements")
    assert indicators is not None
    assert statements is not None
    assert indicators.policy.warm_to_cold == Span(months=12)
    assert statements.policy.warm_to_cold == statements.policy.retention == Span(months=120)
    assert indicators.policy.retention == Span(months=120)


def test_an_override_may_switch_a_stage_off() -> None:
    policies = parse_policies(ONE_CLASS + BARS + "    overrides: {compression: null, warm_to_cold: –}\n", "p.yaml")
    assert policies.datasets[0].policy.compression is None
    assert policies.datasets[0].policy.warm_to_cold is None
    assert policies.classes[0].compression == Span(days=7)


@pytest.mark.parametrize("never", [f"'{word}'" for word in NEVER] + ["–", "none", "null", "~", ""])
def test_a_stage_that_never_comes_has_many_spellings(never: str) -> None:
    text = f"news_data:\n  hot_to_warm: 1d\n  compression: {never}\n  retention: 5y\n"
    assert parse_policies(text, "p.yaml").classes[0].compression is None


def test_sweep_windows_default_to_a_day() -> None:
    assert parse_policies(ONE_CLASS, "p.yaml").undo_window == Span(days=1)
    changed = parse_policies(ONE_CLASS + "sweep: {undo_window: 3d, grace: 0h}\n", "p.yaml")
    assert (changed.undo_window, changed.grace) == (Span(days=3), Span())


def test_the_version_follows_the_meaning_and_not_the_spelling() -> None:
    plain = parse_policies("news_data: {hot_to_warm: 1d, warm_to_cold: 6m, retention: 5y}\n" + ONE_CLASS, "a.yaml")
    other = parse_policies(ONE_CLASS + "# a comment\nnews_data: 1d/6 months/none/60mo\n", "b.yaml")
    changed = parse_policies(ONE_CLASS + "news_data: 1d/6m/none/6y\n", "b.yaml")
    assert plain.version == other.version != changed.version
    assert len(plain.version) == 64


@pytest.mark.parametrize(
    ("text", "key", "rule"),
    [
        (
            "market_data: {hot_to_warm: 30min, retention: 10y}",
            "market_data.hot_to_warm",
            "minutes and seconds are refused",
        ),
        ("news_data: 90s/6m/–/5y", "news_data.hot_to_warm", "minutes and seconds are refused"),
        ("market_data: {hot_to_warm: 7, retention: 10y}", "market_data.hot_to_warm", "not a length"),
        ("market_data: {hot_to_warm: 0d, retention: 10y}", "market_data.hot_to_warm", "age nothing"),
        ("market_data: {hot_to_warm: 3y, warm_to_cold: 2y, retention: 9y}", "market_data.warm_to_cold", "out of order"),
        ("market_data: {compression: 3y, warm_to_cold: 2y, retention: 9y}", "market_data.warm_to_cold", "out of order"),
        ("market_data: {warm_to_cold: 2y, retention: 1y}", "market_data.retention", "out of order"),
        (
            "market_data: {hot_to_warm: 30d, warm_to_cold: 1mo, retention: 1y}",
            "market_data.warm_to_cold",
            "out of order",
        ),
        ("market_data: {hot_to_warm: 7d}", "market_data.retention", "missing"),
        ("market_data: {hot_to_wram: 7d, retention: 1y}", "market_data.hot_to_wram", "Did you mean 'hot_to_warm'"),
        ("market_dta: 7d/2y/7d/10y", "market_dta", "Did you mean 'market_data'"),
        ("market_data: 7d/2y/10y", "market_data", "4 parts"),
        ("market_data: {retention: 10y, retention: 9y}", "market_data.retention", "duplicate key"),
        (ONE_CLASS + ONE_CLASS, "market_data", "duplicate key"),
        ("market_data: {hot_to_warm: 2024-01-05, retention: 1y}", "market_data.hot_to_warm", "naive bound"),
        ("market_data: {hot_to_warm: 2024-01-05 10:00:00, retention: 1y}", "market_data.hot_to_warm", "naive bound"),
        ("market_data: {hot_to_warm: 2024-01-05T00:00:00Z, retention: 1y}", "market_data.hot_to_warm", "not a length"),
        (ONE_CLASS + "sweep: {undo: 1d}", "sweep.undo", "Did you mean 'undo_window'"),
        (ONE_CLASS + "sweep: {grace: 10min}", "sweep.grace", "minutes"),
        (ONE_CLASS + "datasets: [market_bars]", "datasets", "mapping"),
        ("- market_data", "document", "mapping"),
        ("market_data: &a {hot_to_warm: *a}", "market_data", "nested too deep"),
        ("{[a]: 1}", "document", "not a plain word"),
        ("market_data: [", "document", "not YAML in line 1"),
        ("market_data: !!python/object/apply:os.getcwd []", "document", "not YAML"),
        ("market_data: 2024-13-45T00:00:00Z", "document", "not YAML"),
        ("", "document", "empty"),
    ],
)
def test_lint_names_the_key_and_the_rule(text: str, key: str, rule: str) -> None:
    message = refusal(text)
    assert f"my/policies.yaml: {key}" in message
    assert rule in message


@pytest.mark.parametrize(
    ("old", "new", "key", "rule"),
    [
        ("class: market_data", "class: market_dat", "class", "Did you mean 'market_data'"),
        ("class: market_data", "class: news_data", "class", "unknown data class 'news_data'"),
        ("key: [symbol, ts]", "key: [symbol]", "key", "lacks the time column 'ts'"),
        ("key: [symbol, ts]", "key: [symbol, ts, ts]", "key", "twice"),
        ("key: [symbol, ts]", "key: symbol", "key", "list"),
        ("key: [symbol, ts]", 'key: [symbol, ts, "a b"]', "key.2", "not a column name"),
        ("time_column: ts", "time_column: 'ts; drop table x'", "time_column", "not a column name"),
        ("    time_column: ts\n", "", "time_column", "missing"),
        ("unit: 1d", "unit: 5h", "unit", "divide the day"),
        ("unit: 1d", "unit: 5mo", "unit", "divide the year"),
        ("unit: 1d", "unit: 1mo1d", "unit", "mixture"),
        ("unit: 1d", "unit: 15min", "unit", "minutes"),
        ("unit: 1d", "unit: 1d\n    suit: market_bars", "suit", "Did you mean 'suite'"),
        ("unit: 1d", "unit: 1d\n    suite: market_bar", "suite", "Did you mean 'market_bars'"),
        ("unit: 1d", "unit: 1d\n    hot: oracle", "hot", "unknown store"),
        ("unit: 1d", "unit: 1d\n    state: paused", "state", "unknown state"),
        ("unit: 1d", "unit: 1d\n    overrides: {hot_to_warm: 3y}", "overrides", "out of order"),
        ("unit: 1d", "unit: 1d\n    overrides: {retention: –}", "overrides.retention", "missing"),
        ("market_bars:", "Market-Bars:", "", "bad dataset name"),
        ("market_bars:", "m" * 41 + ":", "", "bad dataset name"),
    ],
)
def test_lint_of_datasets_names_the_key_and_the_rule(old: str, new: str, key: str, rule: str) -> None:
    message = refusal(ONE_CLASS + BARS.replace(old, new))
    assert "my/policies.yaml: datasets." in message
    assert (f".{key}" if key else "") in message
    assert rule in message
