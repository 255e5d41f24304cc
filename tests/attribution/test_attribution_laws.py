"""What holds for every method: the model untouched, pictures independent, refusals in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from counted import Counting
from torch import Tensor, nn

from featviz.attribution.attribute import attribute
from featviz.attribution.grad_cam import grad_cam_layer
from featviz.attribution.methods import METHODS
from featviz.errors import UserError
from featviz.models.load import load
from featviz.models.model import Model


def tiny_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3, stride=2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(8 * 7 * 7, 4),
        )


@pytest.fixture
def model() -> Model:
    return Model(
        tiny_net(), name="tiny", preprocessing=16, classes=[("", f"kind {i}") for i in range(4)]
    )


@pytest.fixture
def pictures(generator: torch.Generator) -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=generator)


def test_a_picture_does_not_depend_on_the_others(model: Model, pictures: Tensor) -> None:
    whole = attribute(model, pictures, target=1, steps=8)
    for i in range(3):
        alone = attribute(model, pictures[i], target=1, steps=8)
        for method in METHODS:
            assert torch.equal(alone.maps[method][0], whole.maps[method][i])
            assert alone.deletion[method][0] == whole.deletion[method][i]


def test_batches_bound_the_memory_and_change_no_value(model: Model, pictures: Tensor) -> None:
    seen = []
    handle = model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    few = attribute(model, pictures[:1], steps=20, batch_size=5)
    handle.remove()
    assert max(seen) <= 5
    many = attribute(model, pictures[:1], steps=20, batch_size=64)
    for method in METHODS:
        torch.testing.assert_close(few.maps[method], many.maps[method], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_found_as_it_was(pictures: Tensor, method: str, fails: bool) -> None:
    failing = Counting(tiny_net())
    model = Model(failing, name="tiny", preprocessing=16)
    assert model.layers  # the table of layers is made once, by a pass of its own
    model.net.get_submodule("net.1").train()
    model.net.get_parameter("net.7.weight").requires_grad_(True)
    failing.calls, failing.fail_at = 0, 2 if fails else None
    modes = [m.training for m in model.modules()]
    wanted = [p.requires_grad for p in model.parameters()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    given, random_state = pictures.clone(), torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError, match="gave up"):
            attribute(model, pictures, methods=[method], steps=4, layer="net.3")
    else:
        attribute(model, pictures, methods=[method], steps=4, layer="net.3")
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(pictures, given)
    assert not pictures.requires_grad


def test_by_default_the_prediction_is_explained(model: Model, pictures: Tensor) -> None:
    found = attribute(model, pictures, methods=["saliency"])
    assert found.targets == tuple(model(pictures).argmax(1).tolist())
    by_name = attribute(model, pictures, target="kind 2", methods=["saliency"])
    by_index = attribute(model, pictures, target=2, methods=["saliency"])
    assert by_name.targets == (2, 2, 2)
    assert torch.equal(by_name.maps["saliency"], by_index.maps["saliency"])


def test_grad_cam_is_computed_behind_the_last_convolution() -> None:
    alexnet = load("alexnet-2012", device="cpu")
    assert grad_cam_layer(alexnet) == "relu5"


@pytest.mark.slow
def test_all_methods_work_on_a_net_with_in_place_relus() -> None:
    model = load("squeezenet1_1", device="cpu")
    picture = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0))
    found = attribute(model, picture, steps=8, window=1 / 3, stride=1 / 3)
    for method in METHODS:
        values = found.maps[method]
        assert values.shape == (1, 224, 224)
        assert bool(values.isfinite().all())
        assert bool(values.any())
    inner = attribute(model, picture, methods=["grad_cam"], layer="features.9.expand3x3")
    assert bool(inner.maps["grad_cam"].isfinite().all())


def test_a_saved_result_holds_the_maps(model: Model, pictures: Tensor, tmp_path: Path) -> None:
    from featviz.results import read_result

    result = attribute(model, pictures[:2], steps=4, names=["a", "b"])
    folder = result.save(tmp_path / "maps")
    with np.load(folder / "maps.npz") as arrays:
        assert sorted(arrays) == sorted(METHODS)
        for method in METHODS:
            assert np.array_equal(arrays[method], result.maps[method].numpy())
    document = read_result(folder)
    assert document["kind"] == "attribute"
    assert [f["file"] for f in document["figures"]] == ["attribution-01.svg", "attribution-02.svg"]
    assert document["figures"][0]["units"] == [f"logits:{result.targets[0]}"]
    assert (folder / "attribution.csv").read_text().count("\n") == 3
    assert "<img" in result._repr_html_()


def test_a_map_of_zeros_is_said_to_be_one(pictures: Tensor) -> None:
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = 0 * self.conv(x).mean((2, 3)) + torch.tensor([1.0, 0.0])
            return logits

    model = Model(Blind(), name="blind", preprocessing=16)
    found = attribute(model, pictures[:1], methods=["saliency", "grad_cam"])
    assert any("saliency is zero everywhere" in w for w in found.warnings)
    assert found.plot() is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["saliancy"]}, "unknown method saliancy; did you mean saliency"),
        ({"methods": []}, "no method was named"),
        ({"target": "kind 7"}, "no class 'kind 7'"),
        ({"target": [0, 1]}, "2 targets for 3 pictures"),
        ({"layer": "conv9"}, "no layer 'conv9'"),
        ({"layer": "7", "methods": ["grad_cam"]}, "Grad-CAM needs maps and 7 has none"),
        ({"baseline": "blakc"}, "unknown baseline 'blakc'; did you mean black"),
        ({"baseline": 2.0}, "out of range"),
        ({"window": 0.0}, "window is 0.0; it must be a number, above 0, at most 1"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_mistakes_are_refused_in_words(
    model: Model, pictures: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        attribute(model, pictures, **options)


def test_what_is_no_picture_is_refused_in_words(model: Model) -> None:
    with pytest.raises(UserError, match=r"got \(2, 16, 16\) of torch.float32"):
        attribute(model, torch.rand(2, 16, 16))
