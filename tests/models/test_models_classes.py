"""Classes and units as they are given: any kind of whole number, names that fit one class only."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import featviz
from featviz.errors import UserError
from featviz.maximization import objectives
from featviz.models.model import Model
from featviz.models.units import parse_units

CLASSES = [
    ("n01", "crane"),
    ("n02", "crane"),
    ("n03", "missile"),
    ("n04", "projectile, missile"),
    ("n05", "tabby, tabby cat"),
    ("n06", "tiger cat, striped"),
    ("n07", "zebra, striped"),
]


def net(outputs: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(20, outputs),
        )  # fmt: skip


@pytest.fixture
def model() -> Model:
    return Model(net(7), name="net", preprocessing=16, classes=CLASSES)


@pytest.fixture
def pictures(generator: torch.Generator) -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=generator)


@pytest.mark.parametrize("name", ["crane", "Crane", "striped"])
def test_a_name_that_fits_two_classes_is_refused_and_both_are_named(
    model: Model, pictures: Tensor, name: str
) -> None:
    both = ("0 (n01, crane)", "1 (n02, crane)")
    if name == "striped":
        both = ("5 (n06, tiger cat, striped)", "6 (n07, zebra, striped)")
    calls: list[Callable[[], object]] = [
        lambda: model.class_index(name),
        lambda: featviz.attribute(model, pictures, target=name, methods=["saliency"]),
        lambda: featviz.attack(model, pictures, target=name, steps=1),
        lambda: featviz.maximize(model, "logits", units=name, steps=1),
        lambda: objectives.logit(model, [name]),
    ]
    for call in calls:
        with pytest.raises(UserError, match="is ambiguous") as error:
            call()
        assert all(one in str(error.value) for one in both)


@pytest.mark.parametrize(
    ("name", "index"),
    [("n02", 1), ("missile", 2), ("Missile", 2), ("projectile", 3), ("tabby_cat", 4)],
)
def test_a_synset_and_a_whole_name_come_first(model: Model, name: str, index: int) -> None:
    assert model.class_index(name) == index


def test_a_folder_that_fits_two_classes_is_said(model: Model, tmp_path: Path) -> None:
    for folder in ("crane", "n03"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (20, 20), "red").save(tmp_path / folder / "a.png")
    result = featviz.evaluate(model, tmp_path)
    both = "crane names 2 classes of net .n01 crane, n02 crane"
    assert any(re.search(both, warning) for warning in result.warnings)
    assert result.labels.tolist() == [2]
    with pytest.raises(UserError, match=both):
        featviz.evaluate(model, featviz.open_pictures(tmp_path).select([0]))


GOOD: list[Any] = [1, np.int64(1), np.uint8(1), np.array(1), torch.tensor(1), "1", "n02"]
BAD: list[Any] = [-1, 7, True, np.bool_(True), 1.0, np.float32(1), torch.tensor(1.0), "-1", [[1]]]


def takes(model: Model, x: Tensor) -> dict[str, Callable[[Any], list[int]]]:
    """Functions that take one class, and the class that they took."""

    def attributed(c: Any) -> list[int]:
        return list(featviz.attribute(model, x[:1], target=c, methods=["saliency"]).targets)

    def attacked(c: Any) -> list[int]:
        return featviz.attack(model, x[:1], target=c, steps=1).labels.tolist()

    def labeled(c: Any) -> list[int]:
        return featviz.attack(model, x[:1], labels=[c], steps=1).labels.tolist()

    def maximized(c: Any) -> list[int]:
        made = featviz.maximize(model, "logits", units=[c], steps=1, size=16)
        return [unit.index for unit in made.units]

    return {"attribute": attributed, "attack": attacked, "labels": labeled, "maximize": maximized}


@pytest.mark.parametrize("name", ["attribute", "attack", "labels", "maximize"])
def test_indices_are_whole_numbers_of_any_kind(model: Model, pictures: Tensor, name: str) -> None:
    call = takes(model, pictures)[name]
    for good in GOOD:
        assert call(good) == [1], repr(good)
    # Labels come from tables too, where whole numbers may be floats.
    for bad in BAD[:2] if name == "labels" else BAD:
        with pytest.raises(UserError) as error:
            call(bad)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "several", [[0, 3], (0, 3), range(0, 6, 3), np.array([0, 3]), torch.tensor([0, 3]), "0,3"]
)
def test_several_are_any_sequence(model: Model, pictures: Tensor, several: Any) -> None:
    assert [unit.index for unit in parse_units(model, "0", several)] == [0, 3]
    if not isinstance(several, str):
        found = featviz.attribute(model, pictures, target=several, methods=["saliency"])
        assert found.targets == (0, 3)


@pytest.mark.parametrize("make", [objectives.channel, objectives.center])
def test_objectives_do_not_count_from_the_end(model: Model, make: Any) -> None:
    for bad in ([-1], [True], [0.0], [5]):
        with pytest.raises(UserError):
            make("0", bad)(featviz.activations(model, torch.rand(1, 3, 16, 16), ["0"]))
    values = {"0": torch.arange(5.0).view(1, 5, 1, 1)}
    assert make("0", np.array([4]))(values).tolist() == make("0", [4])(values).tolist() == [4.0]


def test_one_logit_is_two_classes(pictures: Tensor) -> None:
    plain = net(1)
    with torch.no_grad():
        plain.get_parameter("4.bias").fill_(-float(plain(pictures).mean()))
    model = featviz.wrap(plain, input_size=16, classes=["tumor"])
    logit = plain(pictures)[:, 0].detach()
    assert model.classes == ("not tumor", "tumor")
    assert torch.allclose(model(pictures).softmax(1)[:, 1], logit.sigmoid())
    assert model(pictures).argmax(1).tolist() == (logit > 0).long().tolist() != [0, 0]
    assert model.layer("logits").shape == (2,)
    assert list(model.layers) == ["0", "1", "2", "3", "4", "logits"]
    assert torch.equal(featviz.activations(model, pictures, ["logits"])["logits"], model(pictures))
    found = featviz.attribute(model, pictures, methods=["saliency", "grad_cam"])
    assert found.targets == tuple((logit > 0).long().tolist())
    attacked = featviz.attack(model, pictures, eps=0.5, steps=20)
    assert attacked.success.all()
    made = featviz.maximize(model, "logits", units="all", size=16, steps=8)
    ends = plain(made.images)[:, 0]
    assert torch.allclose(made.scores, ends.detach() * torch.tensor([-0.5, 0.5]), atol=1e-5)
    assert plain.training
    assert all(weight.requires_grad for weight in plain.parameters())


def test_weights_that_give_no_numbers_are_refused_at_first_sight(
    pictures: Tensor, tmp_path: Path
) -> None:
    broken = net(7)
    with torch.no_grad():
        broken.get_parameter("0.weight").fill_(1e30)
        broken.get_parameter("4.weight").mul_(1e30)
    model = Model(broken, name="net", preprocessing=16, classes=CLASSES)
    (tmp_path / "n03").mkdir()
    Image.new("RGB", (20, 20), "red").save(tmp_path / "n03" / "a.png")
    calls: list[Callable[[], object]] = [
        lambda: model(pictures),
        lambda: featviz.evaluate(model, tmp_path),
        lambda: featviz.attribute(model, pictures),
        lambda: featviz.attack(model, pictures, steps=1),
        lambda: featviz.invert(model, pictures, "logits", steps=1),
        lambda: featviz.caricature(model, pictures, "logits", steps=1),
        lambda: featviz.accentuate(model, pictures, "logits:1", anchor="0", steps=1),
        lambda: featviz.deepdream(model, pictures, "logits", steps=1),
        lambda: featviz.embed(model, pictures, "logits"),
        lambda: featviz.maximize(model, "logits", units=[0], steps=1),
        lambda: featviz.audit(model, pictures),
        lambda: featviz.activations(model, pictures, ["logits"]),
    ]
    for call in calls:
        with pytest.raises(UserError, match="not finite"):
            call()
