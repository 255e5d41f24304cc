"""What the command line adds to a result: the command, progress off a terminal, groups of help."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import run

from featviz.cli.main import app, recorded
from featviz.cli.run import progress_bar


def command_of(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> str:
    assert run(capsys, "layers", *words)[0] == 0
    command: str = json.loads((folder / "result.json").read_text())["command"]
    return command


def test_a_result_records_its_command_without_the_folders_of_the_machine(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "my layers"
    classes = Path(__file__).parents[2] / "featviz" / "assets" / "alexnet-mini.classes.txt"
    given = ("--all", f"--classes={classes}", "-q", "--out", str(out))
    command = command_of(capsys, out, *given)
    assert command == (
        "featviz layers --all --classes=alexnet-mini.classes.txt -q --out 'my layers'"
    )


def test_relative_paths_are_recorded_as_given(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = command_of(capsys, tmp_path / "a" / "b", "--out", "a/b")
    assert command == "featviz layers --out a/b"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["attack", "--eps", "8/255"], "featviz attack --eps 8/255"),
        (["audit", "--eps=1/255,2/255"], "featviz audit --eps=1/255,2/255"),
        (["embed", "-d/home/me/data"], "featviz embed -ddata"),
        (["embed", "-d", "/home/me/data/"], "featviz embed -d data"),
        (
            ["neighbors", "--query", "/a/zebra.jpg - /a/b/horse.jpg"],
            "featviz neighbors --query 'zebra.jpg - horse.jpg'",
        ),
        (["layers", "--model", "timm/resnet18"], "featviz layers --model timm/resnet18"),
        (["layers", "--model", "/me/net.py:make"], "featviz layers --model net.py:make"),
        (["maps", "/a folder/b c.jpg"], "featviz maps 'b c.jpg'"),
    ],
)
def test_only_absolute_paths_are_reduced(words: list[str], expected: str) -> None:
    assert recorded(words) == expected


def test_off_a_terminal_a_line_of_progress_comes_every_thirty_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("featviz.cli.run.time.monotonic", lambda: now)
    with progress_bar(quiet=False) as progress:
        assert progress is not None
        for step in range(100):
            now = float(step)
            progress(step, 100, "embedding")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"featviz: embedding {at}/100, {at} s" for at in (30, 60, 90)]


def test_quiet_has_no_progress_at_all() -> None:
    with progress_bar(quiet=True) as progress:
        assert progress is None


def test_help_lists_every_command_once_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    _, text, _ = run(capsys, "--help")
    groups = re.findall(r"^(Look|Space|Break|Train|Show)\b.*:$", text, re.MULTILINE)
    assert groups == ["Look", "Space", "Break", "Train", "Show"]
    listed = re.findall(r"^  ([a-z][a-z-]*)  ", text, re.MULTILINE)
    assert sorted(listed) == sorted(c.name or "" for c in app.registered_commands)


def test_help_of_a_command_groups_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    _, text, _ = run(capsys, "kernels", "--help")
    order = [text.index(f"\n{title}:") for title in ("Options", "Model", "Output")]
    assert order == sorted(order)
    assert text.index("--layer") < order[1] < text.index("--weights") < order[2]
    assert order[2] < text.index("--json")
