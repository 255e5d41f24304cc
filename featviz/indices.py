"""Indices and names as people give them: numbers, texts, ranges, arrays and tensors of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featviz.errors import UserError, check_value

Item = int | str
"""an index from 0, or a name"""
Items = Item | Sequence[Item]


def one_item(value: Any, what: str) -> Item:
    """An index or a name. Raises UserError for truth values, floats and anything else."""
    item: Item = check_value(what, value, Item)
    return item


def all_items(values: Any, what: str) -> list[Item]:
    """Indices and names; of a single one a list of one. Raises UserError as `one_item`."""
    items: Items = check_value(what, values, Items)
    return [items] if isinstance(items, int | str) else list(items)


def whole_numbers(values: Any, what: str) -> tuple[int, ...]:
    """Several indices. Raises UserError for names too."""
    return tuple(check_value(what, values, Sequence[int]))


def index_below(value: int, count: int, what: str) -> int:
    """The index itself. Raises UserError where it is not 0 to count - 1."""
    if not 0 <= value < count:
        raise UserError(f"{what} {value} is out of range: there are {count}, counted from 0")
    return value
