"""Shows the `Example:` of a docstring as code; the generator would set it as running text."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

EXAMPLE = re.compile(r"^Example:\n((?:    .*(?:\n|$)|\n)+)", re.MULTILINE)


def as_code(match: re.Match[str]) -> str:
    """The block of an example as fenced Python, without prompts."""
    code = re.sub(r"^(?:>>>|\.\.\.) ?", "", textwrap.dedent(match[1]), flags=re.MULTILINE)
    return f"**Example:**\n\n```python\n{code.strip()}\n```\n\n"


class Examples(griffe.Extension):
    """Applied to every object that is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(as_code, obj.docstring.value + "\n").strip()
