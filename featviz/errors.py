"""The error that users are meant to read, the nearest right spelling of a wrong name, public calls.

FeatvizError
└── UserError        a mistake that the user can mend: one line, exit code 2
    └── BadPicture   a file that is no picture, or not one that can be read
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


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


def public(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a public function: a misspelt option is a UserError that names the nearest one."""
    known = inspect.signature(function).parameters
    assert all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in known.values())

    @functools.wraps(function)
    def checked(*args: _P.args, **options: _P.kwargs) -> _R:
        for name in options:
            if name not in known:
                raise UserError(f"{function.__name__} has no option {name!r}{nearest(name, known)}")
        return function(*args, **options)

    return checked


def halved_batch(size: int, group: int, error: BaseException) -> int:
    """The batch size, in whole groups, with which to go on after an error for lack of memory.

    Raises:
        BaseException: `error` itself, where it is of another kind.
        UserError: A batch of one group is too large.
    """
    texts = ("not enough memory", "out of memory", "can't allocate")
    if not isinstance(error, MemoryError) and not any(text in str(error) for text in texts):
        raise error
    if size == group:
        raise UserError(
            f"not enough memory for {group} picture{'s' * (group > 1)} at a time; make "
            "pictures smaller (size), or take an earlier layer"
        ) from None
    return max(group, size // 2 // group * group)
