"""Counts and lists as they stand in sentences."""

from __future__ import annotations

from collections.abc import Iterable

from featviz.errors import visible

_SHOWN = 3  # names of a list


def counted(count: int, noun: str, plural: str = "") -> str:
    """A count with its noun: "1 picture", "2,304 pictures", "2 classes".

    Args:
        count: How many.
        noun: In the singular, with any adjectives before it.
        plural: Where it is not regular, or more words follow: "links that lead nowhere".
    """
    return f"{count:,} {noun if count == 1 else plural or _plural(noun)}"


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2:-1] not in tuple("aeiou"):
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def unread(count: int, noun: str = "picture") -> str:
    """The note on pictures that an analysis goes without."""
    return f"{counted(count, noun)} could not be read and {'is' if count == 1 else 'are'} left out"


def not_one_each(found: int, noun: str, wanted: int, other: str = "picture") -> str:
    """The refusal of as many as do not fit: "2 labels for 3 pictures; give one each"."""
    return f"{counted(found, noun)} for {counted(wanted, other)}; give one each"


def some(names: Iterable[str]) -> str:
    """The first few of some names, with the number of the others."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return visible(", ".join(names[:_SHOWN])) + more
