"""The commands in the guides about releases and questions exist, with their options."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from featviz.cli.main import app
from featviz.requirements import parse_requirement

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def written(page: str) -> list[str]:
    """The command lines of a page: lines of their own, and in backticks."""
    text = (DOCS / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^\s*(featviz \S.*)$", text, re.MULTILINE)
    return [*lines, *re.findall(r"`(featviz [^`\n]+)`", text)]


@pytest.mark.parametrize("page", ["release.md", "which-command.md"])
def test_commands_of_the_guides_have_these_options(page: str) -> None:
    assert len(written(page)) > 5
    for line in written(page):
        _, name, *words = shlex.split(line)
        known = {option for one in COMMANDS[name].params for option in one.opts}
        options = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert options <= known, line
        for option, value in itertools.pairwise(words):
            if option == "--require":
                parse_requirement(value)


def test_every_command_answers_a_question() -> None:
    named = {shlex.split(line)[1] for line in written("which-command.md")}
    assert {name for name in COMMANDS if name not in named | {"gallery"}} == set()
