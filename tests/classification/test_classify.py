"""Classes and probabilities against plain torchvision and torch, on files of every kind."""

from __future__ import annotations

import csv
import io
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_line import run
from own_models import layers
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close

import featviz
from featviz.classification.figures import percent
from featviz.data.samples import sample_pictures
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.models.torchvision_schemas import supply_schemas

KINDS = ("beacon", "lemon", "teapot")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three class folders of one drawn picture each, of different sizes, and a damaged file."""
    root = tmp_path_factory.mktemp("pictures")
    samples = sample_pictures(1)
    for i, kind in enumerate(KINDS):
        (root / kind).mkdir()
        picture = samples.open(samples.paths.index(f"{kind}/00"))
        picture.resize((150 + 30 * i, 140)).save(root / kind / "a.png")
    (root / "teapot" / "torn.png").write_bytes((root / "teapot" / "a.png").read_bytes()[:900])
    return root


def test_classes_are_those_of_plain_torchvision(mini: Model, folder: Path) -> None:
    supply_schemas()
    from torchvision import transforms

    how = mini.preprocessing
    plain = transforms.Compose(
        [
            transforms.Resize(how.resize),
            transforms.CenterCrop(how.size),
            transforms.ToTensor(),
            transforms.Normalize(how.mean, how.std),
        ]
    )
    files = [folder / kind / "a.png" for kind in KINDS]
    found = featviz.classify(mini, files, top=7)
    mini.net.eval()
    for i, file in enumerate(files):
        with torch.no_grad():
            logits = mini.net(plain(Image.open(file).convert("RGB"))[None])
        expected = logits.double().softmax(1)[0].topk(7)
        assert found.predictions[i].tolist() == expected.indices.tolist()
        assert_close(found.probabilities[i], expected.values, rtol=1e-3, atol=1e-5)


def test_the_right_class_is_found_with_its_place(mini: Model, folder: Path) -> None:
    found = featviz.classify(mini, folder, top=2)
    assert [mini.classes[i].partition(",")[0] for i in found.labels.tolist()] == list(KINDS)
    every = featviz.classify(mini, folder, top=len(mini.classes))
    for i, label in enumerate(found.labels.tolist()):
        assert every.predictions[i, found.ranks[i] - 1] == label
        assert every.probabilities[i, found.ranks[i] - 1] == found.label_probabilities[i]
        assert [bar.right for bar in found.bars(i)] == [
            c == label for c in found.predictions[i].tolist()
        ]
    hits = int((found.ranks == 1).sum())
    assert found.numbers()["top-1"].value == hits / 3
    assert "teapot/torn.png" in " ".join(found.warnings)


def test_the_size_of_batches_and_what_is_drawn_change_no_class(mini: Model) -> None:
    samples = sample_pictures(1)
    whole = featviz.classify(mini, samples)
    parts = featviz.classify(mini, samples, batch_size=4, shown=3)
    assert torch.equal(whole.predictions[:, 0], parts.predictions[:, 0])
    assert_close(whole.probabilities, parts.probabilities, rtol=1e-4, atol=1e-6)
    assert (len(parts.drawn), len(parts.pictures)) == (3, 3)
    i = parts.drawn[2]
    shown = samples.select([i]).read(0, mini.preprocessing)
    assert torch.equal(parts.pictures[2], shown)


def test_without_classes_no_class_is_right(mini: Model, folder: Path) -> None:
    found = featviz.classify(mini, folder / "lemon" / "a.png")
    assert found.ranks.tolist() == [0]
    assert "right" not in found.to_text()
    assert list(found.numbers()) == [bar.name for bar in found.bars(0)]
    given = featviz.classify(mini, folder / "lemon" / "a.png", ["teapot"])
    assert "(right: teapot, place " in given.to_text()


def wrapped(*tail: nn.Module, classes: int) -> tuple[Model, Tensor]:
    """A model that ends in `tail`, and pictures for it."""
    net = nn.Sequential(*layers(classes=classes), *tail)
    names = [f"thing {i}" for i in range(classes)]
    model = featviz.wrap(net, input_size=12, mean=[0.5] * 3, std=[0.5] * 3, classes=names)
    return model, torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def test_one_logit_is_two_classes() -> None:
    model, pictures = wrapped(classes=1)
    found = featviz.classify(model, pictures)
    with torch.no_grad():
        yes = model.net((pictures - 0.5) / 0.5)[:, 0].sigmoid().double()
    assert found.predictions.shape == (5, 2)
    assert not found.independent
    assert_close(found.probabilities[:, 0], torch.maximum(yes, 1 - yes), atol=1e-5, rtol=0)
    assert {found.classes[i] for i in found.predictions[:, 0].tolist()} <= {
        "thing 0",
        "not thing 0",
    }


def test_labels_of_a_sigmoid_do_not_exclude_each_other(tmp_path: Path) -> None:
    model, pictures = wrapped(nn.Sigmoid(), classes=4)
    found = featviz.classify(model, pictures)
    with torch.no_grad():
        expected = model.net((pictures - 0.5) / 0.5).double().topk(4)
    assert found.independent
    assert found.predictions.tolist() == expected.indices.tolist()
    assert_close(found.probabilities, expected.values, atol=1e-5, rtol=0)
    assert "do not add up" in found.to_text()
    document = featviz.results.read_result(found.save(tmp_path / "found"))
    assert any("do not add up" in text for text in document["warnings"])
    forced = featviz.classify(model, pictures, probability="softmax")
    assert torch.allclose(forced.probabilities.sum(1), torch.ones(5).double())


def test_probabilities_of_a_softmax_are_the_networks_own() -> None:
    model, pictures = wrapped(nn.Softmax(1), classes=4)
    with torch.no_grad():
        expected = model.net((pictures - 0.5) / 0.5).double().topk(4)
    found = featviz.classify(model, pictures)
    assert_close(found.probabilities, expected.values, atol=1e-5, rtol=0)
    single = featviz.classify(model, pictures, probability="sigmoid")
    assert single.independent


def test_files_folders_archives_and_lists_are_read_at_once(
    mini: Model, folder: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "inner.zip", "w") as archive:
        archive.write(folder / "lemon" / "a.png", "lemon/a.png")
    (tmp_path / "list.csv").write_text(f"path,label\n{folder}/beacon/a.png,beacon\n")
    single, zipped, listed = (
        folder / "teapot" / "a.png",
        tmp_path / "inner.zip",
        tmp_path / "list.csv",
    )
    pictures = featviz.open_pictures([single, zipped, listed, single])
    assert [Path(path).parts[-2:] for path in pictures.paths] == [
        ("teapot", "a.png"),
        ("lemon", "a.png"),
        ("beacon", "a.png"),
    ]
    assert pictures.folders == ("", "lemon", "beacon")
    found = featviz.classify(mini, pictures)
    files = [folder / kind / "a.png" for kind in ("teapot", "lemon", "beacon")]
    alone = [featviz.classify(mini, file) for file in files]
    assert found.predictions.tolist() == [one.predictions[0].tolist() for one in alone]


def test_the_command_prints_text_json_and_a_figure(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("classify", folder, folder / "lemon" / "a.png", "--top", 3, "--device", "cpu")
    code, text, notes = run(capsys, *words, "--out", out)
    assert code == 0
    assert "lemon/a.png  (right: lemon" in text
    assert "torn.png" in notes
    document = featviz.results.read_result(out)
    assert [figure["file"] for figure in document["figures"]] == [
        f"picture-{i:02d}.svg" for i in (1, 2, 3)
    ]
    with (out / "pictures.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["right_class"] for row in rows] == list(KINDS)
    code, text, _ = run(capsys, *words, "--json")
    records = json.loads(text)["pictures"]
    first = [record["classes"][0]["class"].partition(",")[0] for record in records]
    assert first == [row["class_1"] for row in rows]
    assert records[0]["label_rank"] == int(rows[0]["rank"])
    code, text, _ = run(capsys, "classify", folder / "lemon" / "a.png", "--right-class", "beacon")
    assert "(right: beacon" in text


def test_a_list_comes_from_standard_input(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = f"{folder}/lemon/a.png\n{folder}/teapot/a.png\tteapot\n{folder}/no.png\n"
    for text in (lines, lines.replace("\n", "\0")):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
        code, out, notes = run(capsys, "classify", "-", "--device", "cpu")
        assert code == 0
        assert out.count("a.png") == 2
        assert "(right: teapot" in out
        assert "no.png: no such file" in notes


def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, mini: Model
) -> None:
    for words, fault in (
        ((tmp_path / "no.png",), "no such file"),
        ((folder / "teapot" / "torn.png",), "none of the pictures can be read"),
        ((folder, "--right-class", "tepot"), "has no class 'tepot'; did you mean teapot"),
    ):
        code, out, notes = run(capsys, "classify", *words)
        assert (code, out) == (2, "")
        assert fault in notes
        assert len(notes.splitlines()) == 1
    trunk = featviz.wrap(nn.Conv2d(3, 4, 3), input_size=16, mean=[0] * 3, std=[1] * 3)
    with pytest.raises(UserError, match="one number a class"):
        featviz.classify(trunk, folder)


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0.9734, "97.3%"), (1.0, "100.0%"), (0.0004, "0.04%"), (0.00001, "< 0.01%"), (0.0, "0.00%")],
)
def test_probabilities_read_as_percent(probability: float, text: str) -> None:
    assert percent(probability) == text
