"""`featviz maximize`, `facets` and `interpolate` from the command line to the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from featviz.cli.main import main
from featviz.maximization import maximize


def run(*words: str, command: str = "maximize") -> int:
    with pytest.raises(SystemExit) as left:
        main([command, *words])
    return int(left.value.code or 0)


def test_classes_by_name_and_a_film(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["--layer", "logits", "--units", "tabby,goldfish", "--steps", "2"]
    words += ["--film", "gif"]
    assert run(*words, "--out", str(out), "--json", "--quiet") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "maximize"
    assert document["parameters"]["layer"] == "logits"
    tabby, goldfish = document["parameters"]["units"]
    for unit in (tabby, goldfish):
        stem = unit.replace(":", "-")
        assert (out / "units" / f"{stem}.png").is_file()
        assert (out / "films" / f"{stem}.gif").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layer", "conv9"], "conv5"),
        (["--layer", "conv5", "--units", "9999"], "out of range"),
        (["--layer", "logits", "--units", "goldfsh"], "did you mean goldfish"),
        (["--objective", "best"], "take auto, center or channel"),
        (["--precision", "int8"], "must be one of auto, float32, bfloat16"),
        (["--data", "no/such/folder"], "no/such/folder"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(*words, "--steps", "2", "--out", str(out)) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not out.exists()


def test_ctrl_c_saves_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_maximize = maximize.maximize

    def interrupted(*args: Any, **options: Any) -> Any:
        def stop(done: int, total: int, text: str) -> None:
            if done > 2:
                raise KeyboardInterrupt

        return true_maximize(*args, **(options | {"progress": stop}))

    monkeypatch.setattr(maximize, "maximize", interrupted)
    out = tmp_path / "out"
    words = ["--layer", "conv2", "--units", "0-2", "--batch-size", "1", "--steps", "2"]
    assert run(*words, "--out", str(out), "--quiet") == 130
    document = json.loads((out / "result.json").read_text())
    assert [f["file"] for f in document["figures"] if f["units"]] == ["units/conv2-0.png"]
    assert "2 of 3 pictures not made" in document["warnings"][0]


def test_facets_and_interpolate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--layer", "conv4", "--units", "3,7", "--steps", "2", "--json", "--quiet"]
    out = tmp_path / "facets"
    more = ["--count", "2", "--film", "gif", "--out", str(out)]
    assert run(*words, *more, command="facets") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "facets"
    assert (out / "units" / "conv4-7-2.png").is_file()
    assert (out / "films" / "conv4-7-2.gif").is_file()
    assert not (tmp_path / "facets.partial").exists()
    out = tmp_path / "way"
    assert run(*words, "--count", "3", "--out", str(out), command="interpolate") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "interpolation"
    assert (out / "interpolation.svg").is_file()


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("facets", ["--count", "1"], "--count is 1; it must be a whole number, 2 to"),
        ("facets", ["--units", "3@0,0"], "leave the positions out"),
        ("facets", ["--film", "avi"], "must be one of gif, mp4"),
        ("interpolate", ["--units", "1,2,3"], "named: 3 units;"),
        ("interpolate", ["--alignment", "-1"], "--alignment is -1"),
    ],
)
def test_a_mistake_of_facets_or_interpolate_is_one_line(
    command: str,
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run("--layer", "conv4", *words, "--out", str(out), command=command) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not out.exists()
