"""Counts in sentences: one picture, two pictures."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import featviz
from featviz.wording import counted, not_one_each, some, unread

PLURALS = ("pictures", "units", "concepts", "corruptions", "results", "labels", "targets")


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


def test_sentences_about_counts_agree_with_one() -> None:
    assert unread(1) == "1 picture could not be read and is left out"
    assert unread(2, "training picture").startswith("2 training pictures could not be read and are")
    assert not_one_each(1, "label", 3) == "1 label for 3 pictures; give one each"


def counts_without_agreement(path: Path) -> Iterator[str]:
    """F-strings in which a length is followed by a plural: f"{len(names)} pictures"."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, text in zip(node.values, node.values[1:], strict=False):
            word = str(text.value).split()[:1] if isinstance(text, ast.Constant) else []
            length = isinstance(value, ast.FormattedValue) and "len(" in ast.unparse(value)
            if length and word and word[0].strip(",.;:") in PLURALS:
                yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"


def test_no_length_is_followed_by_a_plural() -> None:
    root = Path(featviz.__file__).parent
    assert [one for path in root.rglob("*.py") for one in counts_without_agreement(path)] == []
