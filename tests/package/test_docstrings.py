"""Laws of the public functions: their docstrings, and what a misspelt option gives."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import featviz
from featviz.errors import UserError

FUNCTIONS = [name for name in featviz.__all__ if inspect.isfunction(getattr(featviz, name, None))]


def described(text: str) -> list[str]:
    """The names under `Args:`, as the documentation's generator reads them."""
    match = re.search(r"^Args:\n((?:^ .*\n?|^\n)+)", text, re.MULTILINE)
    return re.findall(r"^    ([^\s:][^:\n]*):", match[1], re.MULTILINE) if match else []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_has_a_summary_and_describes_no_option_that_is_absent(name: str) -> None:
    public: Any = getattr(featviz, name)
    text = inspect.getdoc(public) or ""
    assert text.partition("\n")[0].strip()
    assert set(described(text)) <= set(inspect.signature(public).parameters)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_misspelt_option_is_a_users_mistake_that_names_the_option(name: str) -> None:
    with pytest.raises(UserError, match="has no option 'progres'"):
        getattr(featviz, name)(progres=None)
