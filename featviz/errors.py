"""The one error a user is meant to read, and the nearest right spelling of a wrong name.

FeatvizError
└── UserError        a mistake that the user can mend: one line, exit code 2
    └── BadPicture   a file that is no picture, or not one that can be read
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FeatvizError(Exception):
    """Anything that featviz raises on purpose."""


class UserError(FeatvizError):
    """What is wrong (with the value), why it matters, what to do: all of it in one line."""


class BadPicture(UserError):
    """A picture that cannot be read; data sets skip it, count it and list it."""


def nearest(name: str, names: Iterable[str], most: int = 3) -> str:
    """A hint that ends an error's line: "; did you mean conv5?", or "" if nothing is near."""
    by_folded = {known.casefold(): known for known in names}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=most, cutoff=0.5)
    return f"; did you mean {', '.join(by_folded[c] for c in close)}?" if close else ""
