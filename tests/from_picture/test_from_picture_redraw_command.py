"""`featviz redraw`: files, lines, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from featviz.cli.main import main
from featviz.gallery.reader import read_entry
from featviz.pictures import images


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(words)
    return int(left.value.code or 0)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    path = tmp_path / "a picture.png"
    coarse = torch.rand(1, 3, 9, 12, generator=torch.Generator().manual_seed(0))
    images.write_png(torch.nn.functional.interpolate(coarse, (90, 120), mode="bilinear")[0], path)
    return path


@pytest.mark.parametrize(
    ("words", "kind", "file"),
    [
        (["--layer", "conv1,conv3", "--restarts", "2"], "inversion", "a-picture.png-conv3-2"),
        (["--method", "caricature", "--layer", "conv3"], "caricature", "a-picture.png-conv3"),
        (
            ["--method", "deepdream", "--layer", "conv2", "--units", "3,5", "--octaves", "1"],
            "deepdream",
            "a-picture.png-conv2-3-conv2-5",
        ),
        (
            ["--method", "accentuate", "--units", "conv4:3,logits:tabby", "--anchor", "conv1"],
            "accentuation",
            "a-picture.png-conv4-3",
        ),
    ],
)
def test_a_picture_is_drawn_again(
    words: list[str],
    kind: str,
    file: str,
    given: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run("redraw", str(given), *words, "--steps", "2", "--out", str(out), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == kind
    assert document["seed"] == 0
    assert (out / f"{kind}.svg").is_file()
    assert featviz_size(out / "pictures" / f"{file}.png") == (64, 64)
    recorded = read_entry(out, "out").command
    assert recorded.startswith(f"featviz redraw '{given.name}' {words[0]} {words[1]}")


def featviz_size(path: Path) -> tuple[int, int]:
    return tuple(images.read_image(path).shape[1:])  # type: ignore[return-value]


def test_another_size_and_a_film(given: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--method", "deepdream", "--layer", "conv2", "--octaves", "1", "--steps", "2"]
    assert (
        run("redraw", str(given), *words, "--size", "90", "--film", "gif", "--out", str(out)) == 0
    )
    assert featviz_size(out / "pictures" / "a-picture.png-conv2.png") == (90, 90)
    assert (out / "films" / "a-picture.png-conv2.gif").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "dream"], "did you mean deepdream"),
        (["--method", "magic"], "take invert, caricature, deepdream, accentuate"),
        (["--layer", "conv9"], "conv5"),
        (["--units", "3"], "--method invert takes no --units"),
        (["--method", "accentuate", "--layer", "conv3"], "takes no --layer"),
        (
            ["--method", "deepdream", "--restarts", "2", "--power", "1"],
            "takes no --restarts, --power",
        ),
        (["--method", "accentuate", "--units", "conv5:999"], "out of range"),
        (["--film", "avi"], "no kind of film"),
        (["--data", "no/such/folder"], "no/such/folder"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("redraw", *words, "--steps", "1", "--out", str(out)) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not out.exists()
