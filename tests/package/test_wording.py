"""Counts in sentences: one picture, two pictures."""

from __future__ import annotations

import pytest

from featviz.wording import counted, some


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "picture", "0 pictures"),
        (1, "picture", "1 picture"),
        (2304, "held-out picture", "2,304 held-out pictures"),
        (2, "class", "2 classes"),
        (2, "patch", "2 patches"),
        (2, "category", "2 categories"),
        (2, "array", "2 arrays"),
        (1, "class", "1 class"),
    ],
)
def test_nouns_agree_with_their_counts(count: int, noun: str, text: str) -> None:
    assert counted(count, noun) == text


def test_an_irregular_plural_is_given() -> None:
    one, many = "link that leads nowhere", "links that lead nowhere"
    assert [counted(n, one, many) for n in (1, 2)] == [f"1 {one}", f"2 {many}"]


def test_long_lists_are_cut() -> None:
    assert some("abc") == "a, b, c"
    assert some("abcde") == "a, b, c and 2 more"
