"""Requirements on a result's numbers: "top1.low >= 0.5", and whether they hold.

A requirement names a number, one of its fields, an operator and a bound:

    NAME[.value|.low|.high|.n]  >= <= > < == !=  BOUND

Names are those of `Result.numbers()`. Case, blanks, "-" and "_" do not matter, "inf" stands for
"∞", and "." for the ": " behind the name of a part: "top1", "robust accuracy linf 1/255",
"corruptions.accuracy under corruption". A bound is a number, a percentage of a fraction, a quotient
("2/255") or, with == and !=, a text. A number without a value meets nothing.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featviz.errors import UserError, nearest
from featviz.numbers import Number, show_number

FIELDS = ("value", "low", "high", "n")
OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_OF_TEXTS = {"==", "!="}
_FORM = re.compile(r"\s*(.+?)\s*(>=|<=|==|!=|=|>|<)\s*(.*?)\s*")


@dataclass(frozen=True)
class Check:
    """Whether one requirement holds."""

    requirement: str
    """as it was given"""
    name: str
    """the number, as the result spells it"""
    field: str
    """value, low, high or n"""
    operator: str
    bound: float | str
    found: float | int | str | None
    met: bool
    unit: str = ""
    note: str = ""
    """why it could not be met, where there is nothing to compare"""

    @property
    def shown(self) -> tuple[str, str, str]:
        """What was required, the bound and what was found, as people read them."""
        unit = "" if self.field == "n" else self.unit
        what = self.name if self.field == "value" else f"{self.name}.{self.field}"
        bound, found = (show_number(Number(v, unit)) for v in (self.bound, self.found))
        return what, f"{self.operator} {bound}", self.note or found


@dataclass(frozen=True)
class Requirement:
    """A requirement that was read; its number need not exist."""

    text: str
    name: str
    operator: str
    bound: str


def parse_requirement(text: str) -> Requirement:
    """A requirement from its text. Raises UserError for what has another form."""
    match = _FORM.fullmatch(text)
    if match is None or not match[3] or not normal_name(match[1]):
        raise UserError(f'requirement {text!r} has no comparison; write "top1.low>=0.5"')
    name, sign, bound = match.groups()
    if sign == "=":
        raise UserError(f'requirement {text!r} has a single "="; write == or >=')
    if sign not in _OF_TEXTS:
        _number(text, bound)
    return Requirement(text, name, sign, bound)


def check_requirements(
    requirements: Sequence[str], numbers: Mapping[str, Number]
) -> tuple[Check, ...]:
    """Compare numbers with requirements.

    Raises:
        UserError: A requirement that cannot be read, a name that no number has (the nearest is
            given), an interval where there is none, a bound of another kind.
    """
    return tuple(_check(parse_requirement(text), numbers) for text in requirements)


def _check(wanted: Requirement, numbers: Mapping[str, Number]) -> Check:
    name, field = _find(wanted, numbers)
    number = numbers[name]
    found = getattr(number, field)
    bound = _bound(wanted, name, number, field)
    note = ""
    if found is None:
        if field != "value" and number.n is None:
            raise UserError(f"requirement {wanted.text!r}: {name} has no {_FIELD_WORDS[field]}")
        note = "no value" if field == "value" else "unbounded"
    met = found is not None and OPERATORS[wanted.operator](found, bound)
    return Check(wanted.text, name, field, wanted.operator, bound, found, met, number.unit, note)


_FIELD_WORDS = {
    "low": "interval; require its value",
    "high": "interval; require its value",
    "n": "n, it is no estimate; require its value",
}


def normal_name(name: str) -> str:
    """A name without what does not matter, as "cleanaccuracy"."""
    text = name.casefold().replace("∞", "inf").replace(": ", ".").replace(":", ".")
    return re.sub(r"[^\w./]|_", "", text)


def _find(wanted: Requirement, numbers: Mapping[str, Number]) -> tuple[str, str]:
    """The number and the field that a requirement is about."""
    whole, (stem, _, field) = wanted.name, wanted.name.rpartition(".")
    readings = [(whole, "value")]
    if field.strip().casefold() in FIELDS:
        readings.append((stem, field.strip().casefold()))
    for name, which in readings:
        if name in numbers:
            return name, which
        same = [known for known in numbers if normal_name(known) == normal_name(name)]
        if len(same) > 1:
            raise UserError(f"requirement {wanted.text!r} fits {' and '.join(same)}; spell it out")
        if same:
            return same[0], which
    near = nearest(whole, [f"{name}{end}" for name in numbers for end in _ENDS])
    raise UserError(
        f"requirement {wanted.text!r}: the result has no number {whole!r}"
        f"{near or '; it has ' + ', '.join(numbers)}"
    )


_ENDS = ("", ".low", ".high", ".n")
_LARGEST = 2  # a fraction may exceed 1 (an mCE), but 50 is meant as a percentage


def _bound(wanted: Requirement, name: str, number: Number, field: str) -> float | str:
    """The bound in the number's own unit."""
    text = wanted.bound
    unit = "" if field == "n" else number.unit
    if isinstance(getattr(number, field), str):
        if wanted.operator not in _OF_TEXTS:
            raise UserError(
                f"requirement {wanted.text!r}: {name} is the text {number.value!r}; compare it "
                "with == or !="
            )
        return text.strip("\"'")
    if text.endswith("%") and unit != "fraction":
        raise UserError(f"requirement {wanted.text!r}: {name} is no fraction, so no % fits")
    value = _number(wanted.text, text, unit)
    if unit == "fraction" and abs(value) > _LARGEST and not text.endswith("%"):
        raise UserError(f"requirement {wanted.text!r}: {name} is a fraction; write 0.5 or 50%")
    return value


def _number(requirement: str, bound: str, unit: str = "") -> float:
    """The bound as a number; "2/255" is 2 where the unit is "/255"."""
    top, slash, bottom = bound.removesuffix("%").partition("/")
    try:
        value = float(top)
        if slash and f"/{bottom.strip()}" != unit:
            value /= float(bottom)
    except (ValueError, ZeroDivisionError):
        raise UserError(
            f"requirement {requirement!r}: {bound!r} is no number; write 0.5, 50% or 2/255"
        ) from None
    if math.isnan(value):
        raise UserError(f"requirement {requirement!r}: nan compares with nothing; give a number")
    return value / 100 if bound.endswith("%") else value
