"""recipes/train_imagenet.py: the paper's network and settings, and a small run of it."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import featviz
from featviz.models import alexnet
from featviz.models.alexnet import AlexNet2012

TINY = Path(__file__).parents[2].parent / "shared" / "data" / "tiny_imagenet"


@pytest.fixture(scope="module")
def recipe() -> Any:
    return importlib.import_module("train_imagenet")


@pytest.fixture
def narrow(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> AlexNet2012:
    """The paper's network with few units in fc6 and fc7, which take long to draw."""
    built = alexnet._classifier
    monkeypatch.setattr(alexnet, "_classifier", lambda inputs, _, *rest: built(inputs, 64, *rest))
    torch.manual_seed(0)
    net: AlexNet2012 = recipe.paper_net(7)
    return net.eval().requires_grad_(False)


def test_the_papers_network_begins_as_the_paper_says(narrow: AlexNet2012) -> None:
    ones = {"conv2", "conv4", "conv5", "fc6", "fc7"}
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "logits"):
        layer = narrow.get_submodule(narrow.aliases[name])
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        assert bool((bias == float(name in ones)).all())
        assert float(weight.std()) == pytest.approx(0.01, rel=0.1)
    groups = [m.groups for m in narrow.features if isinstance(m, nn.Conv2d)]
    assert groups == [1, 2, 1, 2, 2]
    # The paper's formula, channel by channel: n = 5, k = 2, alpha = 1e-4, beta = .75.
    x = 200 * torch.rand(1, 9, 2, 2)
    found = narrow.get_submodule(narrow.aliases["norm1"])(x)
    for i in range(9):
        near = x[:, max(0, i - 2) : i + 3].square().sum(1)
        torch.testing.assert_close(found[:, i], x[:, i] / (2 + 1e-4 * near) ** 0.75)


def test_weights_in_caffes_units_compute_the_same(recipe: Any, narrow: AlexNet2012) -> None:
    pictures = 100 * torch.randn(2, 3, 227, 227)
    for path in ("conv1", "conv2"):  # large values, so that the normalization matters
        narrow.get_submodule(narrow.aliases[path]).get_parameter("weight").mul_(10)
    wanted = narrow(pictures)
    found = recipe.in_caffes_units(narrow)(pictures)
    assert narrow.features[2].k == narrow.features[6].k == 1
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def _run(recipe: Any, monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["train_imagenet", *map(str, words)])
    recipe.main()


@pytest.mark.long
@pytest.mark.parametrize(("name", "epochs"), [("paper", 2), ("modern", 1)])
def test_the_recipe_runs_from_packs_to_ten_crops(
    recipe: Any, name: str, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 16 pictures of Tiny ImageNet where that is at hand, else on colors."""
    pictures = sorted(TINY.rglob("*.JPEG"))[:: 5000 // 16][:16] if TINY.is_dir() else []
    for i in range(16):
        place = tmp_path / "data" / ("red", "green")[i % 2] / f"{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(pictures[i]) if len(pictures) == 16 else None
        (image or Image.new("RGB", (64, 64), (200, 9 * i, 0))).convert("RGB").save(place)
    featviz.pack(tmp_path / "data", tmp_path / "pack")
    words: list[str | Path] = ["--data", tmp_path / "pack", "--validation", tmp_path / "pack"]
    words += ["--epochs", str(epochs), "--batch-size", "8", "--device", "cpu", "--recipe", name]
    _run(recipe, monkeypatch, *words, "--out", tmp_path / "run")
    trained = json.loads((tmp_path / "run" / "result" / "result.json").read_text())
    assert trained["parameters"]["batch_size"] == 8
    assert trained["numbers"]["epochs"]["value"] == epochs
    for crops in ("center", "ten-crop"):
        found = json.loads((tmp_path / "run" / crops / "result.json").read_text())
        assert found["numbers"]["pictures"]["value"] == 16
    assert not (tmp_path / "run" / "training.partial").exists()
    with pytest.raises(SystemExit):
        _run(recipe, monkeypatch, *words, "--out", tmp_path / "other", "--data", tmp_path / "none")
