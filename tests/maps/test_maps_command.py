"""`featviz maps` and `featviz kernels`: what each way of calling them writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from featviz.cli.main import main
from featviz.pictures import images


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    with pytest.raises(SystemExit) as left:
        main([*map(str, words), "--json", "--quiet"])
    assert not left.value.code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.fixture
def folder(tmp_path: Path, generator: torch.Generator) -> Path:
    (tmp_path / "data").mkdir()
    for i in range(3):
        picture = torch.rand(3, 80, 70, generator=generator)
        images.write_png(picture, tmp_path / "data" / f"{i}.png")
    return tmp_path / "data"


def test_a_picture_gives_maps(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = run(
        capsys, "maps", folder / "0.png", "--layer", "relu5", "--units", "3,1", "-o", tmp_path / "o"
    )
    assert document["kind"] == "maps"
    assert document["parameters"]["layer"] == "relu5"
    assert document["parameters"]["units"] == [3, 1]


def test_a_unit_gives_patch_times_kernel(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = run(capsys, "maps", folder / "1.png", "--unit", "conv1:7@2,3", "-o", tmp_path / "o")
    assert document["kind"] == "patch"
    assert document["parameters"] | {"picture": ""} == {
        "picture": "",
        "unit": "conv1:7@2,3",
        "position": [2, 3],
    }
    numbers = document["numbers"]
    assert numbers["sum by hand"]["value"] == pytest.approx(
        numbers["activation"]["value"], abs=1e-4
    )


def test_a_data_set_gives_top_patches(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = run(
        capsys,
        "maps",
        "--data",
        folder,
        "--layer",
        "conv3",
        "--units",
        "0-1",
        "--top",
        "2",
        "-o",
        tmp_path / "o",
    )
    assert document["kind"] == "examples"
    assert document["data"]["count"] == 3
    assert len((tmp_path / "o" / "examples.csv").read_text().splitlines()) == 1 + 2 * 2


def test_kernels_and_their_growth_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "kernels", "-o", tmp_path / "k")["kind"] == "kernels"
    grown = run(capsys, "kernels", "--growth", "bundled", "-o", tmp_path / "g")
    assert grown["kind"] == "growth"
    assert grown["numbers"]["noisy at the start"]["value"] == 64
    assert (tmp_path / "g" / "growth.gif").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a.png", "--top", "3"), "--top and --data search a data set; leave PICTURE and --unit"),
        (("--unit", "conv1:3", "--layer", "conv1"), "--unit conv1:3 names its layer; leave --lay"),
        (("absent.png",), "absent.png: no such file; check the path"),
        (("--layer", "fc7"), "fc7 has no map of positions; take one of conv1"),
        (("--unit", "pool1:3"), "pool1 is a MaxPool2d, not a convolution"),
        (("--unit", "conv1:64"), "unit 64 is out of range: conv1 has units 0 to 63"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["maps", *words, "-o", str(tmp_path / "o")])
    assert left.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "o").exists()
