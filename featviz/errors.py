"""The error that users are meant to read, the nearest right spelling of a wrong name, public calls.

FeatvizError
└── UserError        a mistake that the user can mend: one line, exit code 2
    └── BadPicture   a file that is no picture, or not one that can be read
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from featviz.arguments import Refused, accept, parameter_types
from featviz.memory import lacks_memory, shortage

_P = ParamSpec("_P")
_R = TypeVar("_R")


class FeatvizError(Exception):
    """Anything that featviz raises on purpose."""


class UserError(FeatvizError):
    """What is wrong (with the value), why it matters, what to do: all of it in one line.

    Line breaks and other characters that no terminal shows (in names of files, in messages of
    libraries) are written as escapes.
    """

    def __init__(self, *message: object):
        super().__init__(*(visible(text) if isinstance(text, str) else text for text in message))


class BadPicture(UserError):
    """A picture that cannot be read; data sets skip it, count it and list it."""


def visible(text: str) -> str:
    """A text in one line that can be written as UTF-8.

    A line break becomes "\\n", the byte 0xe9 of a file name that is not UTF-8 "\\udce9".
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def nearest(name: str, names: Iterable[str], most: int = 3) -> str:
    """A hint that ends an error's line: "; did you mean conv5?", or "" if nothing is near."""
    by_folded = {known.casefold(): known for known in names}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=most, cutoff=0.5)
    return f"; did you mean {', '.join(by_folded[c] for c in close)}?" if close else ""


_WITHIN: ContextVar[bool] = ContextVar("within a public function", default=False)


def public(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a public function: its arguments are compared with their types and bounds.

    A misspelt option is a UserError that names the nearest one, a value that its parameter does not
    accept is one that says what it accepts, and lack of memory one that says which option helps.
    """
    signature = inspect.signature(function)
    known = signature.parameters
    assert all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in known.values())

    @functools.wraps(function)
    def checked(*args: _P.args, **options: _P.kwargs) -> _R:
        for name in options:
            if name not in known:
                raise UserError(f"{function.__name__} has no option {name!r}{nearest(name, known)}")
        try:
            given = signature.bind(*args, **options)
        except TypeError:  # raised again with the function's own text
            return function(*args, **options)
        kinds = parameter_types(function)
        for name, value in given.arguments.items():
            given.arguments[name] = check_value(name, value, kinds[name])
        outermost = not _WITHIN.get()
        token = _WITHIN.set(True)
        try:
            return function(*given.args, **given.kwargs)
        except (MemoryError, RuntimeError, ValueError, OSError) as error:
            # An analysis within another leaves it to that one to go on with a smaller batch.
            if lacks_memory(error) and outermost:
                raise UserError(shortage(error, known)) from error
            if isinstance(error, OSError) and error.filename is not None:
                raise UserError(system_text(error)) from error
            raise
        finally:
            _WITHIN.reset(token)

    return checked


def system_text(error: OSError) -> str:
    """What the system says about a file, in one line."""
    return f"{os.fsdecode(error.filename)}: {str(error.strerror).lower()}"


def check_value(name: str, value: Any, kind: Any) -> Any:
    """The value as the type `kind` has it (`featviz.arguments`). Raises UserError."""
    try:
        return accept(name, value, kind)
    except Refused as refused:
        raise UserError(str(refused)) from None


def check_fields(settings: Any) -> None:
    """For `__post_init__` of settings: compare each field with its type. Raises UserError."""
    made_by: Callable[..., Any] = type(settings)
    for name, kind in parameter_types(made_by).items():
        value = getattr(settings, name)
        taken = check_value(name, value, kind)
        if taken is not value:
            object.__setattr__(settings, name, taken)


def halved_batch(size: int, group: int, error: BaseException) -> int:
    """The batch size, in whole groups, with which to go on after an error for lack of memory.

    Raises:
        BaseException: `error` itself, where it is of another kind.
        UserError: A batch of one group is too large.
    """
    if not lacks_memory(error):
        raise error
    if size == group:
        raise _too_large(group) from None
    return max(group, size // 2 // group * group)


def fitting_batch(size: int, group: int, each: int) -> int:
    """The largest batch size up to `size`, in whole groups, that this machine's memory can hold.

    Args:
        each: Bytes that one picture takes at least.

    Raises:
        UserError: A batch of one group does not fit.
    """
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // each
    if most < group:
        raise _too_large(group)
    return min(size, most // group * group)


def _too_large(group: int) -> UserError:
    return UserError(
        f"not enough memory for {group} picture{'s' * (group > 1)} at a time; make pictures "
        "smaller (size), or take an earlier layer"
    )
