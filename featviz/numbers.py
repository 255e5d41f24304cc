"""A measured value with its unit, its meaning and its interval, and how people read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Number:
    """A measured value with its unit and what it means, in words."""

    value: float | int | str | None
    unit: str = ""
    meaning: str = ""
    low: float | None = None
    """lower end of the 95% interval, for an estimate"""
    high: float | None = None
    """upper end of it"""
    n: int | None = None
    """how many observations the estimate is made from"""


def show_number(number: Number) -> str:
    """A number as people read it: 0.441 fraction becomes "44.1%"."""
    value = number.value
    if value is None or isinstance(value, str):
        return value or "-"
    if number.unit == "fraction":
        return f"{100 * value:.1f}%"
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    gap = "" if number.unit.startswith("/") else " "  # 8/255, but 5.1 pixels
    return f"{text}{gap}{number.unit}".rstrip()


def show_interval(number: Number) -> str:
    """Interval and n of an estimate: "95%: 41.2% to 47.0%, n = 5,000"; "" where there are none."""
    interval = ""
    if number.low is not None and number.high is not None:
        low, high = (show_number(Number(end, number.unit)) for end in (number.low, number.high))
        interval = f"95%: {low} to {high}"
    count = "" if number.n is None else f"n = {number.n:,}"
    return ", ".join(filter(None, (interval, count)))
