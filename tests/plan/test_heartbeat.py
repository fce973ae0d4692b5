"""The heartbeat chain: what breaks it, what all stores have, how a daemon goes on."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiering.model_drill import Beat
from tiering.plan.heartbeat import common_beat, continue_from, first_beat, judge_chain, next_beat

START = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)


def chain_of(count: int, name: str = "c0ffee") -> list[Beat]:
    beats = [first_beat(name, START)]
    for second in range(1, count):
        beats.append(next_beat(beats[-1], START + timedelta(seconds=second)))
    return beats


def test_a_whole_chain_is_good_and_tells_its_end() -> None:
    verdict = judge_chain("postgresql", chain_of(100))
    assert (verdict.problem, verdict.last) == ("", chain_of(100)[-1])


def test_a_chain_whose_beginning_was_forgotten_is_good() -> None:
    assert judge_chain("postgresql", chain_of(100)[40:]).problem == ""


def test_the_time_of_a_beat_never_goes_back() -> None:
    first = first_beat("c", START)
    assert next_beat(first, START - timedelta(days=42)).at == START


@given(st.integers(1, 58), st.sampled_from(["missing", "time", "digest", "twice", "seq"]))
def test_every_change_inside_a_chain_is_found(place: int, change: str) -> None:
    beats = chain_of(60)
    broken = {
        "missing": lambda b: [],
        "time": lambda b: [replace(b, at=b.at + timedelta(milliseconds=1))],
        "digest": lambda b: [replace(b, digest="00" + b.digest[2:] if b.digest[:2] != "00" else "11" + b.digest[2:])],
        "twice": lambda b: [b, b],
        "seq": lambda b: [replace(b, seq=b.seq + 1000)],
    }[change]
    assert judge_chain("x", beats[:place] + broken(beats[place]) + beats[place + 1 :]).problem


@pytest.mark.parametrize("beats", [[], [replace(chain_of(1)[0], digest="0" * 64)]])
def test_no_beat_and_a_wrong_first_beat_are_no_chain(beats: list[Beat]) -> None:
    assert judge_chain("x", beats).problem


def test_the_newest_beat_that_all_have() -> None:
    beats = chain_of(60)
    assert common_beat({"a": beats, "b": beats[10:50], "c": beats[:55]}) == (beats[49], "")


def test_stores_of_two_histories_have_no_common_beat() -> None:
    beats = chain_of(60)
    other = [replace(beat, digest="ab" * 32) for beat in beats]
    assert common_beat({"a": beats, "b": other})[0] is None
    assert common_beat({"a": beats, "b": chain_of(9, "other")}) == (None, "a and b share no beat")
    assert common_beat({"a": beats, "b": []})[0] is None


@given(st.integers(1, 30), st.integers(0, 30))
def test_a_daemon_brings_the_stores_level_before_it_goes_on(has: int, behind: int) -> None:
    beats = chain_of(has + behind)
    newest, missing, problem = continue_from({"a": beats, "b": beats[:has]})
    assert (newest, problem, missing) == (beats[-1], "", {"a": [], "b": beats[has:]})


def test_a_daemon_does_not_go_on_when_stores_disagree_or_nothing_is_there() -> None:
    beats = chain_of(5)
    assert continue_from({"a": beats, "b": [*beats[:4], replace(beats[4], digest="ab" * 32)]})[2]
    assert continue_from({"a": [], "b": []}) == (None, {"a": [], "b": []}, "")
