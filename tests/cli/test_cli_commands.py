"""Every command has help with an example that works as pasted, and prints JSON that parses."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from typer.main import get_command

from featviz.cli.main import app

COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]


def example(command: str) -> list[str]:
    """The words of the command line that the help of a command gives as its example."""
    text = " ".join(COMMANDS[command].help.split())
    match = re.search(rf"Example: featviz ({command}\b[^.]*(?:\.\S[^.]*)*)", text)
    assert match is not None, f"{command} has no example"
    return shlex.split(match[1])


def test_every_command_stands_in_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert [c for c in COMMANDS if f"`featviz {c}`" not in readme] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_every_option_has_help(command: str) -> None:
    assert len(COMMANDS[command].help.partition("\n")[0]) > 20
    words = example(command)[1:]
    COMMANDS[command].make_context(command, words)  # the options of the example exist
    assert [p.name for p in COMMANDS[command].params if not (p.help or "").strip()] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_is_printed(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: featviz {command}" in out
    assert "Example: featviz" in out


@pytest.mark.slow
@pytest.mark.parametrize("command", ["layers", "kernels", "maps", "neighbors", "attribute"])
def test_the_example_works_as_pasted_and_json_parses(
    command: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *example(command), "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["model"]["sha256"]
