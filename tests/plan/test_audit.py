"""The chain of the audit trail, computed again: what was done to it shows, and where."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tiering.plan.audit import Anchor, Link, anchor_in, breaks, follow


def chain(*contents: str) -> list[Link]:
    made: list[Link] = []
    for position, content in enumerate(contents, start=1):
        digest = follow(made[-1].digest if made else b"", content)
        made.append(Link(position, 100 + position, content, digest))
    return made


def test_a_chain_that_holds() -> None:
    links = chain("a", "b", "c")
    anchors = [Anchor(2, links[1].digest.hex()), Anchor(3, links[2].digest.hex())]
    assert list(breaks(links, anchors)) == []
    assert list(breaks([], [])) == []


@given(st.lists(st.text(), min_size=1, max_size=20), st.data())
def test_one_changed_row_is_named_first(contents: list[str], data: st.DataObject) -> None:
    links = chain(*contents)
    at = data.draw(st.integers(0, len(links) - 1))
    links[at] = replace(links[at], content=contents[at] + "!")
    assert next(breaks(links, [])).subject == f"audit row {101 + at}"


@given(st.lists(st.text(), min_size=2, max_size=20, unique=True), st.data())
def test_two_swapped_rows(contents: list[str], data: st.DataObject) -> None:
    links = chain(*contents)
    at = data.draw(st.integers(0, len(links) - 2))
    one, two = links[at], links[at + 1]
    links[at], links[at + 1] = replace(one, content=two.content), replace(two, content=one.content)
    assert next(breaks(links, [])).subject == f"audit row {101 + at}"


def test_rows_and_links_that_are_gone() -> None:
    links = chain("a", "b", "c", "d")
    gone = [links[0], replace(links[1], content=None), *links[2:]]
    assert [b.subject for b in breaks(gone, [])] == ["audit row 102"]
    assert next(breaks([links[0], links[3]], [])).subject == "audit link 2"
    unlinked = [*links, Link(None, 900, "x")]
    assert [b.subject for b in breaks(unlinked, [])] == ["audit row 900"]


def test_a_tail_cut_off_and_a_chain_computed_anew_show_by_the_anchors_alone() -> None:
    links = chain("a", "b", "c")
    noted = [Anchor(3, links[2].digest.hex())]
    assert list(breaks(links[:2], [])) == []
    assert [b.subject for b in breaks(links[:2], noted)] == ["audit link 3"]
    assert [b.subject for b in breaks(chain("a", "B", "c"), noted)] == ["audit row 103"]


def test_an_anchor_is_its_name() -> None:
    anchor = Anchor(7, "ab" * 32)
    assert anchor_in(anchor.key) == anchor
    assert anchor_in("audit/head/readme.txt") is None
