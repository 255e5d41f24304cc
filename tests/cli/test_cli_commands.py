"""Every command has help with an example that works as pasted, and prints JSON that parses."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from featviz.cli import main as command_line

COMMANDS = {c.name: c.callback for c in command_line.app.registered_commands}


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        command_line.main(words)
    said = capsys.readouterr()
    return (left.value.code or 0), said.out, said.err


def example(command: str) -> list[str]:
    """The words of the command line that the help of a command gives as its example."""
    text = " ".join((COMMANDS[command].__doc__ or "").split())
    match = re.search(rf"Example: featviz ({command}\b[^.]*(?:\.\S[^.]*)*)", text)
    assert match is not None, f"{command} has no example"
    return shlex.split(match[1])


def test_the_commands_are_those_of_the_design() -> None:
    assert set(COMMANDS) == {
        "demo",
        "layers",
        "kernels",
        "maps",
        "maximize",
        "redraw",
        "embed",
        "neighbors",
        "atlas",
        "attribute",
        "attack",
        "audit",
        "corrupt",
        "universal",
        "train",
        "eval",
        "gallery",
    }


def test_every_command_stands_in_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert [c for c in COMMANDS if f"`featviz {c}`" not in readme] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_is_explained(
    command, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "Example: featviz" in out
    # An option line with nothing behind its name has no help.
    assert not re.findall(r"^\s+(?:-\w, )?--[\w-]+(?: [A-Z|]+)?$\n(?=\s+-)", out, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["layers", "kernels", "maps", "neighbors", "attribute"])
def test_the_example_works_as_pasted_and_json_parses(
    command, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *example(command), "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["model"]["sha256"]
