"""Receptive fields against pixels that are perturbed: what can move a position, and what cannot."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import featviz
from featviz.models.layers import activations
from featviz.models.model import Layer, Model
from featviz.models.receptive_field import record_modules


def seen_by_gradient(net: nn.Module, module: nn.Module, at: tuple[int, int], side: int) -> Tensor:
    """(side, side) bool: the pixels whose gradient at one position of a module is not zero.

    Weights are made positive and ReLUs then pass everything, max pools are averages: a gradient
    cannot cancel, and no choice hides a pixel. In float64, so that none is lost to rounding.
    """
    picture = torch.ones(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    taken: list[Tensor] = []
    handle = module.register_forward_hook(lambda m, i, out: taken.append(out))
    try:
        net(picture)
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(taken[-1][0, :, at[0], at[1]].sum(), picture)
    return gradient[0].abs().sum(0) > 0


def averaged(module: nn.Module) -> nn.Module:
    """The same net with positive weights and average pools for max pools, in float64."""
    module = module.double().eval()
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MaxPool2d):
                pool = nn.AvgPool2d(
                    child.kernel_size, child.stride, child.padding, ceil_mode=child.ceil_mode
                )
                setattr(parent, name, pool)
            if isinstance(child, nn.LocalResponseNorm):
                setattr(parent, name, nn.Identity())
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(weight.abs() / weight[0].numel() + 1e-3)
    return module


def one_channel(trunk: nn.Sequential, path: str) -> nn.Sequential:
    """A sequence up to a module, with one channel a convolution: the same windows, fewer sums."""
    layers = OrderedDict[str, nn.Module]()
    for name, child in trunk.named_children():
        if isinstance(child, nn.Conv2d):
            width = 3 if child.in_channels == 3 else 1
            windows = (child.kernel_size, child.stride, child.padding, child.dilation)
            layers[name] = nn.Conv2d(width, 1, *windows)  # type: ignore[arg-type]
        else:
            layers[name] = copy.deepcopy(child)
        if name == path:
            break
    return nn.Sequential(layers)


def bounds(seen: Tensor) -> tuple[int, int, int, int]:
    rows, columns = seen.nonzero().unbind(1)
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "alexnet-2012", "alexnet-mini"])
def test_every_convolution_and_pool_of_the_alexnets_sees_what_its_box_says(name: str) -> None:
    if name == "alexnet-mini":
        from featviz.models.alexnet import AlexNetMini

        model = Model(AlexNetMini(), name=name, preprocessing=64, aliases=AlexNetMini.aliases)
    else:
        model = featviz.load(name)
    places = [
        la
        for la in model.layers.values()
        if la.spatial and la.path and la.kind in {"Conv2d", "MaxPool2d"}
    ]
    assert [p.name for p in places] == [
        "conv1",
        "pool1",
        "conv2",
        "pool2",
        "conv3",
        "conv4",
        "conv5",
        "pool5",
    ]
    # Pictures large enough that a position's box lies inside; fully convolutional up to there.
    side = 480 if name != "alexnet-mini" else 200
    trunk = model.net.get_submodule("features")
    assert isinstance(trunk, nn.Sequential)
    for place in places:
        field = place.receptive_field
        assert field is not None
        path = place.path.removeprefix("features.")
        part = averaged(one_channel(trunk, path))
        module = part.get_submodule(path)
        middle = round((side / 2 - field.offset[0] - field.size[0] / 2) / field.stride[0])
        for at in ((middle, middle), (middle + 1, middle)):
            assert bounds(seen_by_gradient(part, module, at, side)) == field.box(*at), place.name


def test_conv5_of_torchvisions_alexnet_sees_163_pixels_every_16() -> None:
    field = featviz.load("alexnet").layer("conv5").receptive_field
    assert field is not None
    assert (field.size, field.stride, field.offset) == ((163, 163), (16, 16), (-66, -66))


def test_one_pixel_outside_the_box_changes_nothing_and_inside_it_does() -> None:
    model = featviz.load("alexnet", seed=2).double()
    picture = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)).double()
    at = (6, 6)
    top, left, bottom, right = (30, 30, 193, 193)
    field = model.layer("conv5").receptive_field
    assert field is not None
    assert field.box(*at) == (top, left, bottom, right)
    with torch.no_grad():
        still = activations(model, picture, ["conv5"], forward=model)["conv5"][0, :, 6, 6]
        for y, x, inside in (
            (top, 100, True),
            (top - 1, 100, False),
            (bottom - 1, 100, True),
            (bottom, 100, False),
            (100, left, True),
            (100, left - 1, False),
            (100, right - 1, True),
            (100, right, False),
        ):
            changed = picture.clone()
            changed[..., y, x] += 100  # far outside [0, 1], so that it wins max pools
            after = activations(model, changed, ["conv5"], forward=model)["conv5"][0, :, 6, 6]
            assert bool((after != still).any()) == inside, (y, x)


class Branches(nn.Module):
    """Two branches of different reach, added and joined, then once more the same convolution."""

    def __init__(self, wide: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=stride)
        self.narrow = nn.Conv2d(4, 4, 1)
        self.wide = nn.Conv2d(4, 4, wide, padding=wide // 2 * dilation, dilation=dilation)
        self.joined = nn.Conv2d(8, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([self.narrow(x), self.wide(x) + x], dim=1)
        x = F.avg_pool2d(self.joined(x), 2)
        twice: Tensor = self.twice(self.twice(x))
        return twice


@pytest.mark.parametrize(
    ("wide", "stride", "dilation"), [(3, 1, 1), (5, 2, 1), (3, 3, 2), (7, 1, 3)]
)
def test_branches_sums_and_reused_layers_are_followed(
    wide: int, stride: int, dilation: int
) -> None:
    side = 97
    net = averaged(Branches(wide, stride, dilation))
    records = record_modules(net, torch.zeros(1, 3, side, side, dtype=torch.float64))
    assert records["twice"].calls == 2
    for path in ("stem", "narrow", "wide", "joined", "twice"):
        field = records[path].receptive_field
        assert field is not None
        middle = records[path].shape[1] // 2
        found = bounds(seen_by_gradient(net, net.get_submodule(path), (middle, middle), side))
        assert found == field.box(middle, middle), path


def random_chain(seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    modules: list[nn.Module] = []
    channels = 3
    for _ in range(draw(2, 4)):
        kernel = (draw(1, 4), draw(1, 4))
        if draw(0, 2):
            stride, padding = (draw(1, 2), draw(1, 2)), (draw(0, 2), draw(0, 2))
            modules.append(nn.Conv2d(channels, 2, kernel, stride, padding, dilation=draw(1, 2)))
            modules.append(nn.ReLU(inplace=True))
            channels = 2
        else:
            size = draw(2, 3)
            modules.append(nn.MaxPool2d(size, draw(1, 2), padding=draw(0, 1)))
    return nn.Sequential(*modules)


@pytest.mark.parametrize("seed", range(12))
def test_random_chains_of_oblong_windows(seed: int) -> None:
    net = averaged(random_chain(seed))
    side = 120
    records = record_modules(net, torch.zeros(1, 3, side, side, dtype=torch.float64))
    for path, record in records.items():
        field = record.receptive_field
        assert field is not None
        at = (record.shape[1] // 2, record.shape[2] // 2 - 1)
        module = net.get_submodule(path) if path else net
        assert bounds(seen_by_gradient(net, module, at, side)) == field.box(*at), (path, net)


def test_layers_behind_a_flattening_see_the_whole_picture() -> None:
    net = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 2, 3),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            logits=nn.Linear(2, 3),
        )
    )
    model = Model(net, name="m", preprocessing=9, aliases={"logits": "logits"})

    def sees(name: str) -> tuple[bool, bool]:
        layer: Layer = model.layer(name)
        return layer.whole, layer.receptive_field is not None

    assert sees("conv") == (False, True)
    assert sees("pool") == sees("logits") == (True, False)


def test_unknown_geometry_is_not_guessed() -> None:
    class Upsampled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 2, 2, stride=2)
            self.after = nn.Conv2d(2, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.after(self.up(x))
            return out

    records = record_modules(Upsampled(), torch.zeros(1, 3, 8, 8))
    assert records["up"].receptive_field is None
    assert records["after"].receptive_field is None
    assert not records["after"].whole


def test_multiply_adds_of_alexnet_are_those_counted_by_hand() -> None:
    layers = featviz.load("alexnet").layers
    by_hand = {
        "conv1": 64 * 55 * 55 * 3 * 11 * 11,
        "conv2": 192 * 27 * 27 * 64 * 5 * 5,
        "conv5": 256 * 13 * 13 * 256 * 3 * 3,
        "fc6": 9216 * 4096,
        "logits": 4096 * 1000,
    }
    assert {name: layers[name].macs for name in by_hand} == by_hand
    grouped = featviz.load("alexnet-2012").layers
    assert grouped["conv2"].macs == 256 * 27 * 27 * 48 * 5 * 5


class LastBlock(nn.Module):
    """A map carried as (N, H, W, C) between two convolutions, as ConvNeXt and Swin do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, stride=2)
        self.norm = nn.LayerNorm(5)
        self.wider = nn.Linear(5, 7)
        self.bend = nn.GELU()
        self.back = nn.Conv2d(7, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bend(self.wider(self.norm(self.first(x).permute(0, 2, 3, 1))))
        logits: Tensor = self.back(x.permute(0, 3, 1, 2)).mean((2, 3))
        return logits


def test_maps_with_channels_last_are_turned_round_and_keep_their_fields() -> None:
    torch.manual_seed(3)
    net = LastBlock().eval()
    model = Model(net, name="last", preprocessing=21)
    shapes = {name: layer.shape for name, layer in model.layers.items()}
    assert shapes == {
        "first": (5, 10, 10),
        "norm": (5, 10, 10),
        "wider": (7, 10, 10),
        "bend": (7, 10, 10),
        "back": (4, 8, 8),
        "logits": (4,),
    }
    turned = [name for name, layer in model.layers.items() if layer.channels_last]
    assert turned == ["norm", "wider", "bend"]
    fields = {name: layer.receptive_field for name, layer in model.layers.items()}
    assert {name: field.size[0] for name, field in fields.items() if field} == {
        "first": 3,
        "norm": 3,
        "wider": 3,
        "bend": 3,
        "back": 7,
    }
    pictures = torch.rand(2, 3, 21, 21)
    seen: list[Tensor] = []
    handle = net.wider.register_forward_hook(lambda m, i, out: seen.append(out))
    taken = featviz.activations(model, pictures, ["wider"])["wider"]
    handle.remove()
    assert torch.equal(taken, seen[0].permute(0, 3, 1, 2))
