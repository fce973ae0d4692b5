"""Checkpoint suites as code: what must be true of a unit's rows before they are moved.

A rule names its columns and what must hold; `ops/checkpoints.py` turns all rules of a suite into one
aggregate scan. An empty (NULL) value breaks only `not_null`: whether a column may be empty is the table's affair.
Does not: know SQL.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tiering.model import Dataset, Unit


class Must(StrEnum):
    """What a rule asks of its columns. NaN and ±infinity are neither positive nor non-negative nor finite.

    BETWEEN: the first column is at most the second, and the others lie between the two.
    SHARE: from 0 to 1. SCORE: from -1 to 1.
    """

    POSITIVE = "positive"
    NON_NEGATIVE = "non_negative"
    FINITE = "finite"
    SHARE = "share"
    SCORE = "score"
    BETWEEN = "between"
    NOT_NULL = "not_null"
    NOT_EMPTY = "not_empty"
    INSIDE_UNIT = "inside_unit"
    UNIQUE = "unique"
    ROW_COUNT = "row_count"


@dataclass(frozen=True, slots=True)
class Rule:
    """One expectation.

    Why several columns in one rule: Great Expectations takes about 3 ms per expectation whatever it
    judges; the sample rows of a failed one show which column it was.

    Attributes:
        name: what a report calls it; unique among a dataset's rules.
        must: what must hold.
        columns: of which columns; none for ROW_COUNT.
        description: the rule as a sentence.
    """

    name: str
    must: Must
    columns: tuple[str, ...]
    description: str


@dataclass(frozen=True, slots=True)
class Suite:
    """The rules of one kind of dataset, beside those that every dataset has (`rules_of`)."""

    name: str
    rules: tuple[Rule, ...]


_SENTIMENT = Rule("sentiment_in_range", Must.SCORE, ("sentiment_score",), "a sentiment's score lies in [-1, 1]")

SUITES = {
    suite.name: suite
    for suite in (
        Suite("default", ()),
        Suite(
            "market_bars",
            (
                Rule(
                    "prices_positive",
                    Must.POSITIVE,
                    ("open", "high", "low", "close"),
                    "open, high, low and close are above zero and finite",
                ),
                Rule(
                    "low_open_close_high",
                    Must.BETWEEN,
                    ("low", "high", "open", "close"),
                    "low ≤ high, and open and close lie between them",
                ),
                Rule(
                    "volume_non_negative",
                    Must.NON_NEGATIVE,
                    ("volume", "amount"),
                    "volume and amount are zero or more, and finite",
                ),
                Rule("names_not_empty", Must.NOT_EMPTY, ("symbol", "market", "timeframe"), "a bar says what it is of"),
            ),
        ),
        # An indicator's value may be NaN while its window fills, so the value itself is not judged.
        Suite(
            "technical_indicators",
            (
                Rule(
                    "names_not_empty",
                    Must.NOT_EMPTY,
                    ("symbol", "indicator", "timeframe"),
                    "a value says what it is of",
                ),
            ),
        ),
        Suite(
            "financial_statements",
            (
                Rule(
                    "amounts_finite",
                    Must.FINITE,
                    ("revenue", "net_income", "total_equity"),
                    "revenue, net income and equity are neither NaN nor infinite; a loss may be negative",
                ),
                Rule("assets_non_negative", Must.NON_NEGATIVE, ("total_assets",), "total assets are zero or more"),
                Rule("names_not_empty", Must.NOT_EMPTY, ("symbol", "report_type"), "a statement says whose it is"),
            ),
        ),
        Suite(
            "user_activity", (Rule("names_not_empty", Must.NOT_EMPTY, ("user_id", "action"), "it says who and what"),)
        ),
        Suite(
            "audit_log",
            (
                Rule("names_not_empty", Must.NOT_EMPTY, ("actor", "action_type", "action"), "it says who did what"),
                Rule("duration_non_negative", Must.NON_NEGATIVE, ("duration_ms",), "nothing ends before it began"),
            ),
        ),
        # Of documents only declared fields are judged, and of those only values of their declared type.
        Suite("news", (_SENTIMENT, Rule("title_not_empty", Must.NOT_EMPTY, ("title",), "an article has a title"))),
        Suite(
            "social_posts",
            (
                _SENTIMENT,
                Rule("names_not_empty", Must.NOT_EMPTY, ("platform", "message_id"), "a post says where it was made"),
                Rule("likes_non_negative", Must.NON_NEGATIVE, ("likes",), "likes are zero or more"),
            ),
        ),
        Suite(
            "social_sentiment",
            (
                Rule("score_in_range", Must.SCORE, ("score",), "a score lies in [-1, 1]"),
                Rule("posts_non_negative", Must.NON_NEGATIVE, ("post_count",), "it counts zero posts or more"),
                Rule("names_not_empty", Must.NOT_EMPTY, ("symbol", "platform"), "a score says what it is of"),
            ),
        ),
        Suite(
            "analysis_sessions",
            (
                Rule("names_not_empty", Must.NOT_EMPTY, ("session_id", "status"), "a session has a name and a status"),
                Rule("progress_non_negative", Must.NON_NEGATIVE, ("progress",), "progress is zero or more"),
            ),
        ),
        Suite(
            "analysis_results",
            (
                Rule("confidence_in_range", Must.SHARE, ("confidence",), "confidence lies in [0, 1]"),
                Rule("target_positive", Must.POSITIVE, ("target_price",), "a target price is above zero and finite"),
                Rule("names_not_empty", Must.NOT_EMPTY, ("analysis_id", "action"), "a result has a name and an action"),
            ),
        ),
        Suite(
            "research_reports",
            (Rule("names_not_empty", Must.NOT_EMPTY, ("report_id", "title"), "a report has a name and a title"),),
        ),
        Suite(
            "trading_signals",
            (
                Rule("strength_in_range", Must.SHARE, ("strength",), "strength lies in [0, 1]"),
                Rule("names_not_empty", Must.NOT_EMPTY, ("symbol", "action"), "a signal says what to do with what"),
            ),
        ),
    )
}


def rules_of(dataset: Dataset) -> tuple[Rule, ...]:
    """List every rule of a dataset: those of any dataset first, then its suite's."""
    key = ", ".join(dataset.key)
    return (
        Rule("row_count", Must.ROW_COUNT, (), "there are rows, and not far fewer than in the unit before"),
        Rule("key_not_null", Must.NOT_NULL, dataset.key, f"no part of the key ({key}) is NULL"),
        Rule("inside_unit", Must.INSIDE_UNIT, (dataset.time_column,), f"{dataset.time_column} lies inside the unit"),
        Rule("key_unique", Must.UNIQUE, dataset.key, f"no two rows share a key ({key})"),
        *SUITES[dataset.suite or "default"].rules,
    )


COMPARED_ROWS_MIN = 100
"""Below this a count says little: the first rows of a new dataset, a monthly series."""

FAIL_BELOW = 0.10
WARN_BELOW = 0.50
"""Shares of the unit before. Generous on purpose: a half session, a dropped venue or a holiday abroad is no fault."""


def is_comparable(unit: Unit, row_count_before: int | None) -> bool:
    """Tell whether the unit before says how many rows to expect.

    Not without one or with a tiny one; not at the weekend, when most markets rest; not for units shorter than
    a day, because nights are quiet.
    """
    if row_count_before is None or row_count_before < COMPARED_ROWS_MIN:
        return False
    days = (unit.end - unit.begin).days
    return days > 1 or (days == 1 and unit.begin.weekday() < 5)


def row_count_floor(unit: Unit, row_count_before: int | None, share: float = FAIL_BELOW) -> int:
    """Say how many rows a unit has at least: one, or a share of the unit before where that says something."""
    if row_count_before is None or not is_comparable(unit, row_count_before):
        return 1
    return max(1, int(row_count_before * share))
