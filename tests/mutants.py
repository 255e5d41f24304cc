"""Functions of featviz with a planted mistake, for tests of tests."""

from __future__ import annotations

import importlib
import inspect
import textwrap
from functools import reduce
from types import FunctionType
from typing import Any

import pytest


def plant(patch: pytest.MonkeyPatch, name: str, old: str, new: str) -> None:
    """Replace a piece of the text of a function ("models.model:Model.check") for a test."""
    function = _function(name)
    patch.setattr(function, "__code__", _mutated(function, old, new))


def _function(name: str) -> FunctionType:
    module, _, path = name.partition(":")
    found = reduce(getattr, path.split("."), importlib.import_module(f"featviz.{module}"))
    unwrapped: Any = inspect.unwrap(found)  # type: ignore[arg-type]
    return unwrapped  # type: ignore[no-any-return]


def _mutated(function: FunctionType, old: str, new: str) -> Any:
    """The code of a function with a piece of its text replaced."""
    text = textwrap.dedent(inspect.getsource(function))
    assert old in text, f"{function.__qualname__} has no {old!r}"
    text = text[text.index("def ") :].replace(old, new)
    made: dict[str, Any] = {}
    exec(
        f"from __future__ import annotations\n{text}", dict(vars(inspect.getmodule(function))), made
    )
    return made[function.__name__].__code__
