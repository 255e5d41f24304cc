"""Patch times kernel against the model and against convolutions written out in float64."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import featviz
from featviz import results
from featviz.errors import UserError
from featviz.maps.patch_times_kernel import patch_times_kernel
from featviz.models.model import Model
from featviz.pictures.preprocessing import Preprocessing

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"padding": 2},
    "strided": {"stride": 3, "padding": 1},
    "dilated": {"dilation": 2, "padding": 2},
    "same": {"padding": "same"},
    "reflected": {"padding": 1, "padding_mode": "reflect"},
    "oblong": {"padding": (0, 2), "stride": (2, 1)},
    "no bias": {"bias": False, "padding": 1},
}


def one_layer(settings: dict[str, Any], *, blue_first: bool = False) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = nn.Sequential(nn.Conv2d(3, 4, 3, **settings))
    return Model(
        net,
        name="one",
        preprocessing=Preprocessing.of(
            9, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), blue_first=blue_first
        ),
        aliases={"conv1": "0"},
    )


def deep(groups: int) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        net = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 8, 5, stride=2, padding=2),
                relu1=nn.ReLU(inplace=True),
                pool1=nn.MaxPool2d(3, 2),
                conv2=nn.Conv2d(8, 6, 3, padding=1, groups=groups),
                relu2=nn.ReLU(inplace=True),
                flat=nn.Flatten(),
                logits=nn.Linear(6 * 9, 3),
            )
        )
    names = ("conv1", "relu1", "pool1", "conv2", "relu2", "logits")
    return Model(net, name="deep", preprocessing=16, aliases={name: name for name in names})


def written_out(
    x: Tensor, weight: Tensor, bias: float, at: tuple[int, int], pad: int, stride: int
) -> float:
    """One value of a convolution, in Python numbers: x (C, H, W), weight (C, k, k)."""
    total = bias
    for c in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            for j in range(weight.shape[2]):
                y, z = at[0] * stride + i - pad, at[1] * stride + j - pad
                if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                    total += float(x[c, y, z]) * float(weight[c, i, j])
    return total


@pytest.mark.parametrize("blue_first", [False, True])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_products_and_bias_sum_to_the_activation_everywhere(
    kind: str, blue_first: bool, generator: torch.Generator
) -> None:
    model = one_layer(CONVOLUTIONS[kind], blue_first=blue_first)
    picture = torch.rand(3, 9, 9, generator=generator)
    maps = featviz.activations(model, picture[None], ["conv1"])["conv1"][0]
    for y in range(maps.shape[1]):
        for x in range(maps.shape[2]):
            r = patch_times_kernel(model, picture, "conv1:2", position=(y, x))
            by_hand = float((r.patch * r.kernel).sum()) + r.bias
            assert by_hand == pytest.approx(float(maps[2, y, x]), abs=1e-5)
            assert r.difference < 1e-5
            assert r.channels == ("red", "green", "blue")
    assert torch.allclose(r.map, maps[2])


@pytest.mark.parametrize("groups", [1, 2])
def test_deeper_layers_sum_up_too_and_name_their_inputs(
    groups: int, generator: torch.Generator
) -> None:
    model = deep(groups)
    picture = torch.rand(3, 16, 16, generator=generator)
    x = featviz.activations(model, picture[None], ["pool1"])["pool1"][0].double()
    weight = model.net.get_parameter("conv2.weight").detach().double()
    bias = model.net.get_parameter("conv2.bias").detach().double()
    start = 0 if groups == 1 else 4  # unit 5 is in the second group
    for position in [(y, x) for y in range(3) for x in range(3)]:
        r = patch_times_kernel(model, picture, f"conv2:5@{position[0]},{position[1]}")
        mine = x[start : start + 8 // groups]
        expected = written_out(mine, weight[5], float(bias[5]), position, pad=1, stride=1)
        assert r.total == pytest.approx(expected, abs=1e-6)
        assert r.activation == pytest.approx(expected, abs=1e-5)
        assert float(r.contributions.sum()) + r.bias == pytest.approx(r.total)
    assert r.channels == tuple(f"pool1:{start + c}" for c in range(8 // groups))
    assert not r.first
    first = featviz.kernel_sheet(model, "conv1")
    assert r.below is not None
    assert torch.equal(r.below, first.pictures[start : start + 8 // groups])


def test_padding_is_zero_after_normalization_and_looks_like_the_mean_color() -> None:
    model = one_layer({"padding": 2})
    picture = torch.ones(3, 9, 9)
    r = patch_times_kernel(model, picture, "conv1:0", position=(0, 10))
    inside = torch.tensor([[False, False, False], [False, False, False], [True, False, False]])
    assert torch.equal(~r.outside, inside)
    assert float(r.patch[:, r.outside].abs().max()) == 0
    assert r.look is not None
    mean = torch.tensor([0.5, 0.4, 0.3])
    assert torch.allclose(r.look[:, 0, 0], mean)
    assert torch.allclose(r.look[:, 2, 0], torch.ones(3))
    assert r.box == (-2, 8, 1, 11)


def test_patch_of_a_blue_first_model_is_shown_in_the_pictures_colors(
    generator: torch.Generator,
) -> None:
    model = one_layer({}, blue_first=True)
    picture = torch.rand(3, 9, 9, generator=generator)
    r = patch_times_kernel(model, picture, "conv1:1@2,4")
    assert r.look is not None
    assert torch.allclose(r.look, picture[:, 2:5, 4:7], atol=1e-6)
    assert torch.equal(r.kernel, model.net.get_parameter("0.weight")[1].flip(0).double())


def test_default_position_and_unit_are_the_strongest(generator: torch.Generator) -> None:
    model = one_layer({"padding": 1})
    picture = torch.rand(3, 9, 9, generator=generator)
    maps = featviz.activations(model, picture[None], ["conv1"])["conv1"][0]
    r = patch_times_kernel(model, picture, "conv1:3")
    assert r.activation == pytest.approx(float(maps[3].max()))
    assert r.rank == 1
    best = patch_times_kernel(model, picture, "conv1")
    assert best.activation == pytest.approx(float(maps.max()))
    weakest = divmod(int(maps[3].argmin()), 9)
    assert patch_times_kernel(model, picture, "conv1:3", position=weakest).rank == 81


def test_likeness_is_one_where_the_patch_is_the_kernel() -> None:
    model = one_layer({})
    kernel = model.net.get_parameter("0.weight")[0].detach()
    patch = kernel / kernel.abs().max() * 0.2 * 0.5
    picture = model.mean.expand(3, 9, 9).clone()
    picture[:, 3:6, 3:6] += patch * model.std / 0.2
    r = patch_times_kernel(model, picture, "conv1:0", position=(3, 3))
    assert r.likeness == pytest.approx(1, abs=1e-6)
    lengths = float(r.patch.norm() * r.kernel.norm()) * r.likeness + r.bias
    assert lengths == pytest.approx(r.total)


def test_positions_are_checked_against_this_pictures_map(generator: torch.Generator) -> None:
    model = one_layer({})
    wide = torch.rand(3, 9, 20, generator=generator)
    assert patch_times_kernel(model, wide, "conv1:0@6,17").unit.position == (6, 17)
    with pytest.raises(UserError, match="position 7,0 is off the map: conv1 has 7 x 18 positions"):
        patch_times_kernel(model, wide, "conv1:0", position=(7, 0))
    with pytest.raises(UserError, match="a position is written @row,column"):
        patch_times_kernel(model, wide, "conv1:0@middle")


def test_only_convolutions_are_worked_out(generator: torch.Generator) -> None:
    picture = torch.rand(3, 16, 16, generator=generator)
    with pytest.raises(UserError, match="relu2 is a ReLU, not a convolution"):
        patch_times_kernel(deep(1), picture, "relu2:1")
    with pytest.raises(UserError, match="unit 6 is out of range: conv2 has units 0 to 5"):
        patch_times_kernel(deep(1), picture, "conv2:6")
    with pytest.raises(UserError, match=r"shape \(N, 3, H, W\), got \(2, 16, 16\)"):
        patch_times_kernel(deep(1), picture[:2], "conv2:1")


def test_hooks_are_gone_also_after_an_error(generator: torch.Generator) -> None:
    model = deep(2)
    picture = torch.rand(3, 16, 16, generator=generator)
    patch_times_kernel(model, picture, "conv2:1")
    with pytest.raises(UserError, match="2 pixels"):
        patch_times_kernel(model, picture[:, :2, :2], "conv2:1")  # smaller than the pool's window
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert not model.training


@pytest.mark.parametrize("unit", ["conv1:1@0,0", "conv2:1"])
def test_saved_products_can_be_added_up_again(
    unit: str, tmp_path: Path, generator: torch.Generator
) -> None:
    picture = torch.rand(3, 16, 16, generator=generator)
    r = patch_times_kernel(deep(2), picture, unit)
    document = results.read_result(r.save(tmp_path / "p"))
    lines = (tmp_path / "p" / "products.csv").read_text().splitlines()[1:]
    products = [line.split(",") for line in lines]
    assert all(float(p[3]) * float(p[4]) == pytest.approx(float(p[5])) for p in products)
    total = sum(float(p[5]) for p in products) + document["numbers"]["bias"]["value"]
    assert total == pytest.approx(document["numbers"]["activation"]["value"], abs=1e-5)
    assert document["figures"][0]["units"] == [unit.partition("@")[0]]
    assert document["kind"] == "patch"


@pytest.mark.parametrize("name", ["alexnet", "alexnet-2012"])
def test_large_models_agree_with_the_sum_by_hand(name: str, generator: torch.Generator) -> None:
    model = featviz.load(name, seed=3)
    picture = torch.rand(3, *model.input_size, generator=generator)
    for unit in ("conv1:5@0,0", "conv1:5@54,54", "conv2:200", "conv5:255@12,0"):
        if unit == "conv2:200" and name == "alexnet":
            unit = "conv2:150"
        assert patch_times_kernel(model, picture, unit).difference < 1e-4
