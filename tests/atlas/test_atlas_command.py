"""`featviz atlas` with its options, as people type it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from featviz.cli import main as command_line
from featviz.models.model import Model
from featviz.pictures import images


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        command_line.main(words)
    said = capsys.readouterr()
    code = left.value.code
    return (code if isinstance(code, int) else 0), said.out, said.err


@pytest.fixture(scope="module")
def stores(mini: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores "fc7" and "conv5" of the same 16 pictures of one class."""
    from featviz.embedding.extract import embed

    root = tmp_path_factory.mktemp("atlas")
    folder = root / "data" / "n02099601"
    folder.mkdir(parents=True)
    spots = torch.rand(16, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    for number, picture in enumerate(torch.nn.functional.interpolate(spots, (64, 64))):
        images.write_png(picture, folder / f"{number}.png")
    embed(mini, root / "data", "relu7", out=root / "fc7")
    embed(mini, root / "data", "relu5", out=root / "conv5")
    return root


def test_an_atlas_has_the_given_sides(
    stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, error = run(
        capsys,
        "atlas",
        "--store",
        str(stores / "fc7"),
        "--sides",
        "2,3",
        "--icons",
        "both",
        "--icon-side",
        "2",
        "--icon-steps",
        "2",
        "--seeds",
        "2",
        "--out",
        str(tmp_path / "a"),
        "--json",
        "--quiet",
    )
    assert (code, error) == (0, "")
    document = json.loads(out)
    assert document["parameters"]["sides"] == [2, 3]
    numbers = document["numbers"]
    assert {"icons in own cell", "samples in own cell", "shuffled icons in own cell"} <= set(
        numbers
    )
    assert 0 <= numbers["Procrustes distance"]["value"] <= 1
    with (tmp_path / "a" / "cells.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert {cell["side"] for cell in cells} == {"2", "3"}
    assert all(float(cell["within_cosine"]) <= 1.0001 for cell in cells)
    assert all(
        cell["classes"] == "n02099601 1.000" or "retriever" in cell["classes"] for cell in cells
    )
    assert all("+" in cell["effects"] for cell in cells)
    assert not (tmp_path / "a.partial").exists()


def test_a_class_atlas_of_a_map(
    stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(
        capsys,
        "atlas",
        "--store",
        str(stores / "conv5"),
        "--class",
        "golden retriever",
        "--among",
        "class",
        "--sides",
        "2",
        "--perplexity",
        "4",
        "--icon-steps",
        "2",
        "--out",
        str(tmp_path / "c"),
        "--quiet",
    )
    assert code == 0
    assert "Class atlas of golden retriever: relu5" in out
    assert json.loads((tmp_path / "c" / "result.json").read_text())["parameters"]["perplexity"] == 4
    assert (tmp_path / "c" / "class.pdf").stat().st_size > 1000


def test_two_stores_side_by_side(
    stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(
        capsys,
        "atlas",
        "--store",
        str(stores / "fc7"),
        "--beside",
        str(stores / "conv5"),
        "--out",
        str(tmp_path / "b"),
        "--quiet",
    )
    assert code == 0
    assert "relu7 of alexnet-mini on data beside relu5 of alexnet-mini on data" in out
    assert (tmp_path / "b" / "aligned.svg").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sides", "4;8"), "--sides 4;8: give numbers"),
        (("--icons", "both", "--icon-side", "0"), "0 squares a side"),
        (("--class", "golden retreiver"), "no class 'golden retreiver'"),
        (("--class", "tabby", "--beside", "x"), "two kinds of atlas"),
        (("--method", "umap"), "unknown layout method 'umap'"),
    ],
)
def test_mistakes_leave_nothing(
    words: tuple[str, ...],
    message: str,
    stores: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, error = run(
        capsys, "atlas", "--store", str(stores / "fc7"), *words, "--out", str(tmp_path / "x")
    )
    assert (code, out) == (2, "")
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
