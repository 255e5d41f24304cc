"""Documents that are read back: JSON with limits, checked against a declared shape, then trusted.

A shape is a type (`str`, `int`, `float`, `bool`, `dict`, `object` for anything), a `Kind`, a list
of one shape, a tuple of one shape for each item, a dictionary from fields to shapes, `{str: shape}`
for any fields of one shape, or `Maybe(shape)` where null and absence are allowed.

    job = check(read_json(path, "begin anew"), {"job": dict, "threads": COUNT}, path, "begin anew")
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featviz.errors import UserError

LARGEST = 256 * 10**6
"""bytes of the largest document that is read"""
DEEPEST = 64
"""lists and objects within each other"""
LONGEST = 10**6
"""characters of the longest text"""
SEAL = "seal"
"""the field of a document that has a hash of all others"""
_LARGEST_INTEGER = 2**64


@dataclass(frozen=True)
class Kind:
    """A type of JSON values with a condition."""

    words: str
    """for messages: "a whole number, 0 or more" """
    holds: Callable[[Any], bool]
    empty: Any = None
    """what an absent value becomes where it may be absent"""


@dataclass(frozen=True)
class Maybe:
    """A shape of which null and absence are allowed; both become None."""

    shape: Any


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_file_name(value: object) -> bool:
    if not isinstance(value, str) or len(value.encode("utf-8", "replace")) > 255:
        return False
    return value not in ("", ".", "..") and not any(c in value for c in "/\\\0")


def whole(low: int, high: int, words: str = "") -> Kind:
    """A whole number with its bounds."""
    return Kind(
        words or f"a whole number from {low} to {high}", lambda v: _is_whole(v) and low <= v <= high
    )


COUNT = whole(0, 2**53, "a whole number from 0 to 2^53")
FILE = Kind("the name of a file in the same folder", _is_file_name, "")
RELATIVE = Kind(
    "a relative path",
    lambda v: isinstance(v, str) and not v.startswith(("/", "\\")) and "\0" not in v,
    "",
)
HASH = Kind(
    "a sha256",
    lambda v: isinstance(v, str) and len(v) == 64 and set(v) <= set("0123456789abcdef"),
    "",
)

_TYPES: dict[Any, Kind] = {
    object: Kind("anything", lambda v: True),
    str: Kind("a text", lambda v: isinstance(v, str), ""),
    bool: Kind("true or false", lambda v: isinstance(v, bool), False),
    int: Kind("a whole number", _is_whole),
    float: Kind("a number", lambda v: _is_whole(v) or isinstance(v, float)),
    dict: Kind("an object", lambda v: isinstance(v, dict), {}),
}
_LIST = Kind("a list", lambda v: isinstance(v, list), [])


def one_of(*names: str) -> Kind:
    """One of some texts."""
    return Kind(f"one of {', '.join(names)}", lambda v: isinstance(v, str) and v in names)


def read_json(path: Path, way_out: str) -> Any:
    """The document of a file: finite numbers, no field twice, of bounded size and depth.

    Raises:
        UserError: It cannot be read; the line ends with `way_out`, which says what to do.
    """
    try:
        if not path.is_file():
            raise ValueError("it is not a file" if path.exists() else "there is no such file")
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it is larger than {LARGEST:,} bytes")
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}); {way_out}") from None


def parse_json(text: str) -> Any:
    """As `read_json`, of a text. Raises ValueError."""
    try:
        document = json.loads(
            text,
            parse_float=_finite,
            parse_int=_bounded,
            parse_constant=_refuse,
            object_pairs_hook=_unique,
        )
    except RecursionError:
        raise ValueError(f"lists and objects lie more than {DEEPEST} deep") from None
    _check_size(document)
    return document


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.partition("\n")[0][:200]


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _bounded(text: str) -> int:
    if len(text) > 21 or abs(int(text)) >= _LARGEST_INTEGER:
        raise ValueError(f"the number {text[:20]}... is too large")
    return int(text)


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is no number in JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice[:40]!r} is there twice")
    return found


def _check_size(document: Any) -> None:
    level = [document]
    for _ in range(DEEPEST):
        if any(isinstance(value, str) and len(value) > LONGEST for value in level):
            raise ValueError(f"a text is longer than {LONGEST:,} characters")
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in ((*value, *value.values()) if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise ValueError(f"lists and objects lie more than {DEEPEST} deep")


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """A JSON document with a hash of its fields, by which `check_sealed` notices any change."""
    return document | {SEAL: _hash(document)}


def check_sealed(document: Any, shape: dict[str, Any], path: Path, way_out: str) -> Any:
    """As `check`, of a document that `sealed` made. Raises UserError if it was changed since."""
    found = check(document, shape | {SEAL: HASH}, path, way_out)
    if _hash({name: v for name, v in document.items() if name != SEAL}) != found[SEAL]:
        raise UserError(f"{path} was changed since it was written; {way_out}")
    return found


def _hash(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def check(value: Any, shape: Any, path: Path, way_out: str) -> Any:
    """The value, which has the shape; fields that the shape does not name are dropped.

    Raises:
        UserError: It has not; the line names what is wrong and ends with `way_out`.
    """
    problems: list[str] = []
    found = conform(value, shape, "", problems, strict=True)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{path} is damaged ({'; '.join(problems[:3])}{more}); {way_out}")
    return found


def conform(value: Any, shape: Any, at: str, problems: list[str], *, strict: bool = False) -> Any:
    """What of a JSON value has the given shape; the rest is named among the problems.

    Args:
        value: From a file that anybody may have written.
        shape: As the module describes it.
        at: The value's place in the document, for the problems.
        problems: Is added to.
        strict: Absence and null are problems, too, but in a `Maybe`. Otherwise an absent field
            becomes the empty value of its type (None for numbers), and null in a list is dropped.
    """
    if isinstance(shape, Maybe):
        return None if value is None else conform(value, shape.shape, at, problems, strict=strict)
    kind = _kind(shape)
    if not kind.holds(value):
        if value is not None or strict:
            problems.append(f"{at or 'it'} is {_described(value)}, not {kind.words}")
        if strict:
            return value
        value = kind.empty
    if isinstance(shape, list | tuple):
        return _conform_items(value, shape, at, problems, strict)
    if isinstance(shape, dict):
        return _conform_fields(value, shape, at, problems, strict)
    return value


def _conform_items(
    value: Any, shape: list[Any] | tuple[Any, ...], at: str, problems: list[str], strict: bool
) -> list[Any]:
    if isinstance(shape, tuple) and len(value) != len(shape):
        problems.append(f"{at} has {len(value)} items, not {len(shape)}")
        return []
    shapes = shape if isinstance(shape, tuple) else shape * len(value)
    return [
        conform(item, inner, f"{at}[{i}]", problems, strict=strict)
        for i, (item, inner) in enumerate(zip(value, shapes, strict=True))
        if item is not None or strict
    ]


def _conform_fields(
    value: dict[str, Any], shape: dict[Any, Any], at: str, problems: list[str], strict: bool
) -> dict[str, Any]:
    shapes = dict.fromkeys(value, shape[str]) if str in shape else shape
    return {
        name: conform(value.get(name), inner, f"{at}.{name}".lstrip("."), problems, strict=strict)
        for name, inner in shapes.items()
    }


def _kind(shape: Any) -> Kind:
    if isinstance(shape, Kind):
        return shape
    if isinstance(shape, list | tuple):
        return _LIST
    return _TYPES[dict if isinstance(shape, dict) else shape]


def _described(value: Any) -> str:
    """The type of a JSON value."""
    if value is None:
        return "missing"
    kinds = (*(_TYPES[kind] for kind in (bool, int, float, str, dict)), _LIST)
    return next(kind.words for kind in kinds if kind.holds(value))
