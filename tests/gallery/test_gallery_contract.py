"""docs/result-folder.md against what results are written with, and the command."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from gallery_run import write_run
from matplotlib.figure import Figure

from featviz import results
from featviz.cli.main import main
from featviz.gallery.build import build_gallery
from featviz.gallery.kinds import KINDS

DOCS = Path(__file__).parents[2] / "docs" / "result-folder.md"


@dataclass(frozen=True, kw_only=True)
class Note(results.Result):
    kind: ClassVar[str] = "note"

    @property
    def title(self) -> str:
        return "A note"

    def numbers(self) -> dict[str, results.Number]:
        return {"share": results.Number(0.25, "fraction", "of the whole")}

    def write(self, folder: results.Folder) -> None:
        folder.figure("plot.svg", self.plot(), caption="A plot.", alt="Plot", units=["conv1:2"])
        folder.table(results.Table("rows.csv", ("unit", "norm"), [("conv1:2", 1.5)], "Rows."))

    def plot(self) -> Figure:
        return Figure(figsize=(2, 1))


def test_the_contract_names_every_kind_of_result() -> None:
    named = set(re.findall(r"`([\w-]+)`", DOCS.read_text(encoding="utf-8")))
    assert KINDS.keys() <= named


def test_the_contract_names_the_fields_that_are_written(tmp_path: Path) -> None:
    with results.recording("featviz note"):
        note = Note(origin=results.origin(None, parameters={}, started=0.0))
    checks = note.require("share>=0.1")
    document = results.read_result(note.save(tmp_path / "note", checks=checks))
    told = re.findall(r"^\| `(\w+)` \|", DOCS.read_text(), re.MULTILINE)
    assert told == list(document)
    figure = re.search(r"A figure is `{(.*?)}`", DOCS.read_text())
    assert figure is not None
    assert re.findall(r'"(\w+)"', figure[1]) == list(document["figures"][0])


def test_what_featviz_writes_the_gallery_shows(tmp_path: Path) -> None:
    Note(origin=results.origin(None, parameters={}, started=0.0)).save(tmp_path / "run" / "note")
    site = build_gallery(tmp_path / "run")
    page = (site / "results" / "note.html").read_text()
    assert "25.0%" in page
    assert "plot.svg" in page
    assert "1.5" in (site / "units" / "conv1-2.html").read_text()


def test_the_contracts_example_makes_a_gallery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert code is not None
    exec(code[1], {})
    assert "42.0%" in (build_gallery("run") / "results" / "by-hand.html").read_text()


def status(words: list[str]) -> object:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as left:
        main(words)
    return left.value.code


def test_the_command_prints_the_overview_and_names_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    assert status(["gallery", str(run)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == str(run / "gallery" / "index.html")
    assert "left out damaged: cannot be read" in err
    assert "left out foreign" in err


def test_the_command_speaks_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    assert status(["gallery", str(run), "--out", str(tmp_path / "site"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["folder"] == str(tmp_path / "site")
    assert [r["kind"] for r in document["results"]] == [
        "layers",
        "kernels",
        "maximize",
        "atlas",
        "sonograms",
    ]


def test_a_wrong_folder_ends_with_2_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(["gallery", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err == f"featviz: {tmp_path / 'nowhere'}: no such folder\n"
