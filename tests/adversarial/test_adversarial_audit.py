"""The audit: counts, curves that are known in closed form, doubts that must be raised."""

from __future__ import annotations

import csv
import itertools
import math

import pytest
import torch
from adversarial_models import minimal_distance, photographs, tiny_model, two_classes
from torch import nn

from featviz import images
from featviz.adversarial.audit import audit, check_grids, share
from featviz.datasets import open_pictures
from featviz.errors import UserError
from featviz.models.load import Model

GRIDS = {"linf": [1 / 255, 2 / 255, 8 / 255], "l2": [0.1, 0.5]}


class Scrambled(nn.Module):
    """A net behind something that hides its gradient."""

    def __init__(self, net: nn.Module, kind: str):
        super().__init__()
        self.net, self.kind = net, kind

    def forward(self, x):
        if self.kind == "rounded":
            return self.net((x * 16).round() / 16)
        return self.net(x)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def result(model):
    pictures = photographs(24)
    labels = model(pictures).argmax(1)
    labels[::6] = (labels[::6] + 1) % 5  # four pictures are wrong when clean
    return audit(model, pictures, labels, eps=GRIDS, steps=5, slots=8)


def test_accuracy_at_eps_0_is_the_measured_clean_accuracy(model, result):
    assert result.numbers()["clean accuracy"].value == pytest.approx(20 / 24)
    for part in result.norms:
        assert part.right(None, 0.0) == part.right("fgsm", 0.0) == part.right("pgd", 0.0) == 20


def test_counts_add_up_and_accuracy_falls_with_eps(result):
    for part in result.norms:
        for attack in ("fgsm", "pgd", None):
            counts = [part.right(attack, eps) for eps in (0.0, *part.eps)]
            assert counts == sorted(counts, reverse=True)
        fallen = part.overall.isfinite() & (part.overall > 0)
        assert sorted(part.falls) == fallen.nonzero().flatten().tolist()
        assert all(part.overall[i] == fall.distance for i, fall in part.falls.items())
        for eps in part.eps:
            together = part.right(None, eps)
            assert together <= min(part.right("fgsm", eps), part.right("pgd", eps))
            assert together == 20 - sum(f.distance <= eps for f in part.falls.values())
        distances = [fall.distance for fall in part.easiest]
        assert distances == sorted(f.distance for f in part.falls.values())[: len(distances)]
    rows = result.class_rows()
    assert sum(row.n for row in rows) == 24
    assert sum(row.clean_right for row in rows) == 20


def test_the_pictures_of_the_gallery_do_fool(model, result):
    for part in result.norms:
        for fall in part.easiest:
            assert int(model(fall.adversarial[None]).argmax()) == fall.predicted
            assert fall.predicted != int(result.labels[fall.row])
            change = (fall.adversarial - fall.original).double()
            size = change.abs().max() if part.norm == "linf" else change.norm()
            assert float(size) == pytest.approx(fall.distance, rel=1e-12)


def test_the_tables_say_what_the_result_says(result, tmp_path):
    folder = result.save(tmp_path / "audit")

    def read(name):
        with (folder / name).open(newline="") as file:
            return list(csv.DictReader(file))

    for row in read("accuracy.csv"):
        part = next(p for p in result.norms if p.norm == row["norm"])
        attack = None if row["attack"] == "all" else row["attack"]
        if attack != "noise":
            assert int(row["right"]) == part.right(attack, float(row["eps"]))
        assert float(row["low"]) <= float(row["accuracy"]) <= float(row["high"])
        assert float(row["accuracy"]) == int(row["right"]) / int(row["n"])
    pictures = read("pictures.csv")
    assert len(pictures) == 24
    assert [p["linf_smallest"] for p in pictures[:4]] == ["0.0"] * 4
    classes = read("classes.csv")
    assert sum(int(row["n"]) for row in classes) == 24
    assert (folder / "easiest-linf.png").is_file()
    assert (folder / "curves.svg").is_file()
    assert "<img" in result._repr_html_()


def test_a_linear_model_gives_its_exact_curve(generator):
    net, pictures = two_classes(generator)
    pictures = pictures.float()
    model = Model(net.float(), name="linear", input_size=4)
    w = (net.weights[0] - net.weights[1]).double()
    logits = model(pictures).double()
    margins = (logits[:, 0] - logits[:, 1]).tolist()
    zeros = torch.zeros(8, dtype=torch.long)
    for norm in ("linf", "l2"):
        exact = [
            minimal_distance(w, p.double(), m, norm, box=True)
            for p, m in zip(pictures, margins, strict=True)
        ]
        middles = sorted(exact)
        grid = [(a + b) / 2 for a, b in itertools.pairwise(middles) if b > 1.03 * a]
        found = audit(model, pictures, zeros, norms=[norm], eps=grid, steps=80)
        for eps in grid:
            assert found.norms[0].right(None, eps) == sum(d > eps for d in exact)
        assert bool((found.norms[0].overall >= torch.tensor(exact) * (1 - 1e-5)).all())


def test_order_and_blocks_do_not_matter(model, monkeypatch):
    pictures = photographs(10)
    labels = model(pictures).argmax(1)
    options = {"eps": {"linf": [0.5 / 255, 2 / 255]}, "norms": ["linf"], "steps": 3, "slots": 4}
    whole = audit(model, pictures, labels, **options).norms[0]
    monkeypatch.setattr("featviz.adversarial.audit._BLOCK", 4)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    parts = audit(model, pictures[order], labels[order], **options).norms[0]
    assert torch.equal(parts.overall, whole.overall[order])
    assert torch.equal(parts.noise_right, whole.noise_right[:, order])


def test_without_labels_the_models_own_answers_stand_in_and_it_says_so(model):
    found = audit(model, photographs(6), norms=["linf"], eps=[1 / 255], steps=2)
    assert found.own_labels
    assert found.numbers()["clean accuracy"].value == 1.0
    assert "by construction" in found.numbers()["clean accuracy"].meaning
    assert any("own clean answers" in w for w in found.warnings)


def test_class_folders_are_the_labels_and_unknown_folders_are_left_out(model, tmp_path):
    for i, picture in enumerate(photographs(6)):
        folder = tmp_path / ("kind 0", "kind_3", "something else")[i % 3]
        folder.mkdir(exist_ok=True)
        images.write_png(picture, folder / f"{i}.png")
    (tmp_path / "kind 0" / "broken.png").write_text("no picture")
    found = audit(model, open_pictures(tmp_path), norms=["linf"], eps=[1 / 255], steps=2)
    assert sorted(found.labels.tolist()) == [0, 0, 3, 3]
    assert any("2 of 7 pictures are left out" in w for w in found.warnings)
    assert any("1 pictures could not be read" in w for w in found.warnings)
    assert found.origin.data is not None
    assert found.origin.data["name"] == tmp_path.name


def test_hidden_gradients_are_doubted():
    net = Scrambled(tiny_model().net, "rounded")
    model = Model(net, name="rounded", input_size=16, mean=(0.5,) * 3, std=(0.25,) * 3)
    pictures = photographs(16)
    found = audit(model, pictures, norms=["linf"], eps=[8 / 255], steps=3)
    assert any("gradient is exactly 0" in w for w in found.warnings)
    assert any("every pixel may change at will" in w for w in found.warnings)
    sound = audit(tiny_model(), pictures, norms=["linf"], eps=[8 / 255], steps=10)
    assert not any("gradient" in w or "at will" in w for w in sound.warnings)


def test_wilson_intervals_are_those_of_the_formula():
    for k, n in ((0, 20), (7, 20), (20, 20), (123, 900)):
        z = 1.959963984540054
        centre = (k + z * z / 2) / (n + z * z)
        half = z * math.sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
        found = share(k, n)
        assert found.low == pytest.approx(max(0, centre - half), abs=1e-9)
        assert found.high == pytest.approx(min(1, centre + half), abs=1e-9)
    assert share(0, 0).value is None


@pytest.mark.parametrize(
    ("norms", "eps", "message"),
    [
        (["linf", "l2"], [0.1], "one list of eps for two norms"),
        (["linf"], [-0.1], "out of range"),
        (["linf"], [8], "write 8/255"),
        (["linf"], [0.0], "no eps above 0"),
        (["l3"], [1.0], "unknown norm 'l3'"),
        ([], None, "no norm"),
    ],
)
def test_grids_that_make_no_sense_are_refused_in_words(norms, eps, message):
    with pytest.raises(UserError, match=message):
        check_grids(norms, eps)


def test_grids_are_sorted_and_without_doubles():
    assert check_grids(["linf"], [0.2, 0.1, 0.1, 0.0]) == {"linf": (0.1, 0.2)}
