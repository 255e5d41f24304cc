"""What a parameter accepts, read from its type: stated once for Python and the command line.

    Steps = Annotated[int, Bounds(1, 1_000_000)]

`accept` compares a value with such a type. Numbers are finite; they may come from NumPy or as
tensors of one number, and lists as arrays or tensors: they are converted. A class that its module
imports for type checkers only is compared by its name.
"""

from __future__ import annotations

import builtins
import errno
import functools
import os
import stat
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, Union, get_args, get_origin, get_type_hints

_UNIONS = (Union, types.UnionType)
_SHOWN = 60  # characters of a wrong value


@dataclass(frozen=True)
class Bounds:
    """The least and the largest value of a number; with `above` the least itself is too small."""

    low: float
    high: float
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        low, high = f"{self.low:,.9g}", f"{self.high:,.9g}"
        if self.high >= 2**31:
            return f"above {low}" if self.above else f"{low} or more"
        return f"above {low}, at most {high}" if self.above else f"{low} to {high}"


class Refused(ValueError):
    """A value is not what its parameter accepts; the text, if any, says why."""


@dataclass(frozen=True)
class _Named:
    """A class of which the name is known only."""

    name: str


class _Names(dict[str, Any]):
    """The names of a module; all others are classes imported for type checkers only."""

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        return Annotated[object, _Named(name)]


@functools.cache
def parameter_types(called: Any) -> dict[str, Any]:
    """The types of a function's parameters, or of a dataclass's fields, with their bounds."""
    names = _Names(vars(sys.modules[called.__module__]))
    return get_type_hints(called, localns=names, include_extras=True)


def bounds(kind: Any) -> Bounds | None:
    """The bounds in a type such as `Annotated[int, Bounds(1, 9)] | None`."""
    if get_origin(kind) in _UNIONS:
        return next(filter(None, map(bounds, get_args(kind))), None)
    return next((note for note in _notes(kind) if isinstance(note, Bounds)), None)


def bare(kind: Any) -> Any:
    """The type without bounds."""
    if get_origin(kind) is Annotated:
        return bare(get_args(kind)[0])
    if get_origin(kind) in _UNIONS:
        return functools.reduce(lambda a, b: a | b, map(bare, get_args(kind)))
    return kind


def _notes(kind: Any) -> tuple[Any, ...]:
    return get_args(kind)[1:] if get_origin(kind) is Annotated else ()


def accept(name: str, value: Any, kind: Any) -> Any:
    """The value, converted where needed. Raises Refused, with a line that names the parameter."""
    try:
        return _accepted(value, kind)
    except Refused as refused:
        why = f": {refused}" if str(refused) else f"; it must be {_words(kind)}"
        raise Refused(f"{name} is {_shown(value)}{why}") from None


def _accepted(value: Any, kind: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _annotated(value, inner[0], inner[1:])
    if origin in _UNIONS:
        return _member(value, inner)
    if kind in {int, float, bool}:
        return _number(value, kind)
    if origin in {Sequence, tuple, list}:
        return _items(value, inner)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _require(isinstance(value, Mapping))
        for key, one in value.items():
            _accepted(key, inner[0])
            _accepted(one, inner[1])
    elif origin is Literal:
        _require(any(value is one or (type(value), value) == (type(one), one) for one in inner))
    elif origin is not None:
        _require(origin is not Callable or callable(value))
    elif kind is BinaryIO:
        _require(hasattr(value, "read"))
    elif isinstance(kind, type) and not getattr(kind, "_is_protocol", False):
        _require(isinstance(value, kind))
        if kind is Path:
            _check_path(value)
    return value


def _annotated(value: Any, kind: Any, notes: tuple[Any, ...]) -> Any:
    taken = _accepted(value, kind)
    for note in notes:
        if isinstance(note, Bounds):
            _require(taken in note)
        elif isinstance(note, _Named):
            _require(any(one.__name__ == note.name for one in type(value).__mro__))
    return taken


def _member(value: Any, kinds: tuple[Any, ...]) -> Any:
    """The value as one of several types: as it is if possible, else converted."""
    if Path in kinds and isinstance(value, str | Path):
        _check_path(value)
    taken = []
    for kind in sorted(kinds, key=lambda kind: not isinstance(kind, type)):  # plain classes first
        try:
            one = _accepted(value, kind)
        except Refused:
            continue
        if one is value:
            return value
        taken.append(one)
    _require(bool(taken))
    return taken[0]


def _number(value: Any, kind: type) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if kind is bool or isinstance(value, bool):
        _require(kind is bool and isinstance(value, bool))
        return value
    if kind is int:
        _require(isinstance(value, Integral))
        return value if isinstance(value, int) else int(value)
    _require(isinstance(value, Real))
    try:
        _require(isfinite(value))
    except OverflowError:  # a whole number of hundreds of digits
        raise Refused from None
    return value if isinstance(value, int | float) else float(value)


def _items(value: Any, kinds: tuple[Any, ...]) -> Any:
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) > 0:
        value = value.tolist()
    _require(isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray))
    if len(kinds) == 1 or kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    _require(len(value) == len(kinds))
    taken = [_accepted(one, kind) for one, kind in zip(value, kinds, strict=True)]
    same = all(one is other for one, other in zip(taken, value, strict=True))
    return value if same else type(value)(taken) if isinstance(value, list | tuple) else taken


def _check_path(path: str | Path) -> None:
    """Raise Refused for a path that cannot be, or that names neither a file nor a folder."""
    if "\0" in str(path) or not str(path).strip():
        raise Refused("it is no path")
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:  # said by what reads or writes there
            return
        raise Refused(str(error.strerror).lower()) from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise Refused("it is neither a file nor a folder")


def _require(fits: bool) -> None:
    if not fits:
        raise Refused


def _shown(value: Any) -> str:
    """The value in one short line."""
    shape = getattr(value, "shape", ())
    value = str(value) if isinstance(value, Path) else value
    if shape and not isinstance(value, type):
        return f"{type(value).__name__} of shape {tuple(shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _words(kind: Any) -> str:
    """What a type accepts, for the user."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        named = [note.name for note in inner[1:] if isinstance(note, _Named)]
        limits = bounds(kind)
        return named[0] if named else _words(inner[0]) + (f", {limits}" if limits else "")
    if origin in _UNIONS:
        left_out = {types.NoneType, str if Path in inner else None}
        kinds = [one for one in inner if one not in left_out]
        return " or ".join(dict.fromkeys(map(_words, kinds)))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in {Sequence, tuple, list}:
        count = "" if origin is not tuple or Ellipsis in inner else f"{len(inner)} "
        each = " or ".join(dict.fromkeys(_words(one) for one in inner if one is not Ellipsis))
        return f"a list ({count}{'times ' if count else 'each '}{each})"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping from {_words(inner[0])} to {_words(inner[1])}"
    if origin is Callable:
        return "a function"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    Path: "a path",
    types.NoneType: "None",
    BinaryIO: "an open file",
}
