"""Names of files that no one would choose pass through listing, stores, tables, figures, pages."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from command_line import run

import featviz
from featviz.data.datasets import open_pictures
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.pictures import images

NAMES = (
    b"caf\xe9.png",
    b"new\nline.png",
    b"tab\tname.png",
    b"quote\"'.png",
    b"$a_{\xe9\n$.png",
    b"<script>.png",
    b"x" * 251 + b".png",
    b"comma,;.png",
    b"\x1b[31m.png",
    b"back\\slash.png",
)
CLASSES = (b"goldfish", b"stra\xdfe", b"a\nb <b>$\\frac")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(os.fsdecode(os.fsencode(tmp_path_factory.mktemp("names")) + b"/d\xe9ta"))
    for number, kind in enumerate(CLASSES):
        folder = root / os.fsdecode(kind)
        folder.mkdir(parents=True)
        for value, name in enumerate(NAMES):
            picture = torch.full((3, 8, 8), (number + value) / 16)
            with open(folder / os.fsdecode(name), "wb") as file:
                images.to_pillow(picture).save(file, "PNG")
    with open(root / "goldfish" / os.fsdecode(b"broken\xe9\n.png"), "wb") as file:
        file.write(b"%PDF")
    (root / "notes.heic").write_text("")
    return root


def test_a_store_gives_the_names_back(data: Path, mini: Model, tmp_path: Path) -> None:
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/st\xf6re"))
    store = featviz.embed(mini, open_pictures(data), "conv1", out=place)
    again = featviz.open_store(place)
    assert again.pictures.paths == store.pictures.paths
    assert again.labels == store.labels
    names = {os.fsencode(path).partition(b"/")[2] for path in again.pictures.paths}
    assert names == set(NAMES)
    for row in (0, 5, len(again) - 1):
        assert again.pictures.read(row, mini.preprocessing).shape == (3, 64, 64)
    assert "broken" in again.skipped[0].path
    assert "1 file with another ending left out: .heic (1)" in store.warnings
    found = featviz.find_neighbors(again, k=2, metric="cosine").save(tmp_path / "near")
    for file in [*place.glob("*.[cj]s*"), *found.glob("*.[cjs][svg]*")]:
        file.read_text(encoding="utf-8")
    with (place / "ids.csv").open(encoding="utf-8", newline="") as lines:
        assert len(list(csv.reader(lines))) == len(store) + 1


def test_commands_take_and_show_them(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "eval", "--data", data, "--out", tmp_path / "eval", "--json")
    assert code == 0
    assert "1 picture could not be read" in " ".join(json.loads(out)["warnings"])
    picture = data / "goldfish" / os.fsdecode(NAMES[4])
    code, _, _ = run(
        capsys, "attribute", picture, "--methods", "saliency", "--out", tmp_path / "attribute"
    )
    assert code == 0
    code, _, err = run(capsys, "gallery", tmp_path, "--out", tmp_path / "site")
    assert (code, err) == (0, "")
    for page in (tmp_path / "site").rglob("*.html"):
        assert "<script>.png" not in page.read_text(encoding="utf-8")


def test_a_message_is_one_printable_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = data / "goldfish" / os.fsdecode(b"broken\xe9\n.png")
    code, _, err = run(capsys, "attack", broken)
    assert code == 2
    assert err.count("\n") == 1
    assert r"broken\udce9\n.png is a PDF" in err
    assert str(UserError("a\tb\u2028c")) == r"a\tb\u2028c"


NOWHERE = ("/proc/1/mem/x", "/dev/full/x", "x" * 300, "/dev/full", "/proc/self/mem", "/dev/null")


@pytest.mark.parametrize("place", NOWHERE)
@pytest.mark.parametrize(
    "words",
    [
        ("eval", "--data"),
        ("kernels", "--out"),
        ("layers", "--classes"),
        ("layers", "--weights"),
        ("layers", "--model"),
        ("attack",),
        ("neighbors", "--store"),
        ("gallery",),
    ],
)
def test_places_without_access_are_one_line(
    words: tuple[str, ...], place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *words, place)
    assert (code, out, err.count("\n")) == (2, "", 1), err
