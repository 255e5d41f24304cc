"""Kernels as pictures: own weights, composites against plain convolutions, mosaics, growth."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import featviz
from featviz import results
from featviz.errors import UserError
from featviz.kernels.composite import composite_kernels
from featviz.kernels.growth import kernel_growth
from featviz.kernels.sheet import kernel_sheet
from featviz.models.model import Model
from featviz.pictures.preprocessing import Preprocessing


def small(*, blue_first: bool = False, relu: bool = True, groups: int = 2) -> Model:
    """conv1 (6 kernels of 5x5, stride 2), ReLU, 3x3 max pool of stride 2, conv2 (4 of 3x3)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 6, 5, stride=2, padding=2),
                relu1=nn.ReLU(inplace=True) if relu else nn.Identity(),
                pool1=nn.MaxPool2d(3, 2) if relu else nn.AvgPool2d(3, 2),
                conv2=nn.Conv2d(6, 4, 3, padding=1, groups=groups),
                flat=nn.Flatten(),
                logits=nn.Linear(4 * 49, 3),
            )
        )
    aliases = {name: name for name in ("conv1", "relu1", "pool1", "conv2", "logits")}
    return Model(
        net,
        name="small",
        preprocessing=Preprocessing.of(
            32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), blue_first=blue_first
        ),
        aliases=aliases,
    )


def composed(first: Tensor, second: Tensor, stride: int) -> Tensor:
    """(N, 3, k, k): `second` over `first` with positions `stride` pixels apart, written plainly."""
    size, k = first.shape[-1], second.shape[-1]
    whole = torch.zeros(len(second), 3, (k - 1) * stride + size, (k - 1) * stride + size)
    for u in range(len(second)):
        for c in range(second.shape[1]):
            for y in range(k):
                for x in range(k):
                    part = second[u, c, y, x] * first[c]
                    top, left = y * stride, x * stride
                    whole[u, :, top : top + size, left : left + size] += part
    return whole


@pytest.mark.parametrize("blue_first", [False, True])
def test_first_layer_shows_its_own_weights_as_red_green_blue(blue_first: bool) -> None:
    model = small(blue_first=blue_first)
    weight = model.net.get_parameter("conv1.weight")
    sheet = kernel_sheet(model)
    assert sheet.layer == "conv1"
    assert not sheet.composite
    assert torch.equal(sheet.weights, weight.flip(1) if blue_first else weight)
    assert sheet.pictures.shape == (6, 3, 5, 5)
    # Each scaled by its own largest absolute weight around gray.
    for picture, own in zip(sheet.pictures, sheet.weights, strict=True):
        assert torch.allclose(picture, 0.5 + own / own.abs().max() / 2)
        assert float((picture - 0.5).abs().max()) == pytest.approx(0.5)


@pytest.mark.parametrize("blue_first", [False, True])
def test_composite_of_a_first_layer_is_its_weights(blue_first: bool) -> None:
    model = small(blue_first=blue_first)
    kernels, ignored = composite_kernels(model, "conv1", range(6))
    assert torch.allclose(kernels, kernel_sheet(model).weights, atol=1e-7)
    assert ignored == ("biases",)


@pytest.mark.parametrize("groups", [1, 2])
def test_deeper_kernels_are_first_ones_at_their_offsets(groups: int) -> None:
    model = small(groups=groups)
    sheet = kernel_sheet(model, "conv2")
    assert sheet.composite
    assert sheet.ignored == ("ReLUs", "the choice of max pools (their center is taken)", "biases")
    weight = model.net.get_parameter("conv2.weight").detach()
    full = torch.zeros(4, 6, 3, 3)
    for u in range(4):
        start = u // (4 // groups) * (6 // groups)
        full[u, start : start + 6 // groups] = weight[u]
    # conv1 has stride 2 and the pool 2: neighbors of conv2 lie four pixels apart.
    expected = composed(model.net.get_parameter("conv1.weight").detach(), full, stride=4)
    assert sheet.weights.shape == expected.shape
    assert torch.allclose(sheet.weights, expected, atol=1e-6)


def test_composite_is_exact_where_all_below_is_linear(generator: torch.Generator) -> None:
    model = small(relu=False, groups=1)
    kernels, _ = composite_kernels(model, "conv2", [1])
    field = model.layer("conv2").receptive_field
    assert field is not None
    picture = torch.rand(1, 3, 32, 32, generator=generator)
    top, left, bottom, right = field.box(3, 3)
    patch = model.normalize(picture)[0, :, top:bottom, left:right]
    value = featviz.activations(model, picture, ["conv2"])["conv2"][0, 1, 3, 3]
    still = model.mean.expand(3, 32, 32)[None]  # normalized to nothing: biases alone
    base = featviz.activations(model, still, ["conv2"])["conv2"][0, 1, 3, 3]
    assert float((patch * kernels[0]).sum()) == pytest.approx(float(value - base), abs=1e-5)


def test_mosaic_shows_the_kernel_that_excites_most_at_each_place() -> None:
    model = small(groups=2)
    with torch.no_grad():
        weight = model.net.get_parameter("conv2.weight").fill_(-1)
        weight[3, 1, 0, 2] = 2  # unit 3 is in the second group: kernel 3 + 1
        weight[3, 2, 2, 0] = 1
    sheet = kernel_sheet(model, "conv2", units=[3])
    assert sheet.mosaics is not None
    tiles = sheet.mosaics[0].unflatten(1, (3, 5)).unflatten(3, (3, 5))  # (3, 3, 5, 3, 5)
    first = kernel_sheet(model, "conv1")
    assert torch.allclose(tiles[:, 0, :, 2], first.pictures[4], atol=1e-6)
    norm = first.weights.flatten(1).norm(dim=1)
    share = norm[5] / (2 * norm[4])
    assert torch.allclose(tiles[:, 2, :, 0] - 0.5, share * (first.pictures[5] - 0.5), atol=1e-6)
    assert torch.equal(tiles[:, 1, :, 1], torch.full((3, 5, 5), 0.5))  # only inhibited there


def test_shared_scale_keeps_faint_kernels_faint() -> None:
    model = small()
    with torch.no_grad():
        model.net.get_parameter("conv1.weight")[2] *= 0.001
    sheet = kernel_sheet(model, shared_scale=True)
    assert float((sheet.pictures[2] - 0.5).abs().max()) < 0.01
    assert sheet.numbers()["faint"].value == 1
    assert any("conv1 are faint" in warning and "2" in warning for warning in sheet.warnings)


def test_random_weights_are_called_noise() -> None:
    model = featviz.load("alexnet", seed=1)
    sheet = kernel_sheet(model)
    assert sheet.numbers()["noisy"].value == 64
    assert any("64 of 64 kernels of conv1 are as rough as noise" in w for w in sheet.warnings)


def test_sorted_order_holds_every_kernel_once_and_runs_by_group() -> None:
    sheet = kernel_sheet(small())
    order = sheet.order.tolist()
    assert sorted(order) == list(range(6))
    groups = sheet.measured.group[sheet.order].tolist()
    assert groups == sorted(groups)


def test_saved_sheet_has_a_picture_a_unit_and_reads_back(tmp_path: Path) -> None:
    sheet = kernel_sheet(small(), units="1-3")
    document = results.read_result(sheet.save(tmp_path / "k"))
    assert document["kind"] == "kernels"
    assert document["parameters"]["units"] == [1, 2, 3]
    of_units = [f for f in document["figures"] if f["units"]]
    assert [f["units"] for f in of_units] == [["conv1:1"], ["conv1:2"], ["conv1:3"]]
    assert all((tmp_path / "k" / f["file"]).is_file() for f in document["figures"])
    small_picture = featviz.read_image(tmp_path / "k" / of_units[1]["file"])
    factor = small_picture.shape[-1] // 5
    assert torch.allclose(small_picture[:, ::factor, ::factor], sheet.pictures[1], atol=0.003)
    lines = (tmp_path / "k" / "kernels.csv").read_text().splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("1,")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("relu1", "relu1 is a ReLU, kernels belong to convolutions"),
        ("logits", "logits is a Linear, kernels belong to convolutions"),
        ("conv9", "small has no layer 'conv9'; did you mean conv"),
    ],
)
def test_layers_without_kernels_are_refused(layer: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        kernel_sheet(small(), layer)


def test_a_net_without_convolutions_has_no_kernels() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))
    model = Model(net, name="flat", preprocessing=8)
    with pytest.raises(UserError, match="flat has no convolution"):
        kernel_sheet(model)


def test_the_model_is_left_as_it_was() -> None:
    model = small()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    random_state = torch.random.get_rng_state()
    model.net.train()
    kernel_sheet(model, "conv2")
    assert model.net.training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert torch.equal(random_state, torch.random.get_rng_state())
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert float(F.relu(featviz.activations(model, picture, ["relu1"])["relu1"]).min()) == 0


def snapshots(folder: Path, count: int = 4) -> Path:
    """A file as training leaves it: noise that turns into one wave."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(6, 3, 7, 7, generator=generator)
    wave = torch.cos(torch.arange(7.0)).expand(6, 3, 7, 7)
    kernels = torch.stack([noise * (1 - t) + 3 * wave * t for t in torch.linspace(0, 1, count)])
    file = folder / "toy.kernels.safetensors"
    steps = torch.tensor([10 * i for i in range(count)])
    save_file({"kernels": kernels, "steps": steps}, file)
    return file


def test_growth_runs_from_noise_to_waves(tmp_path: Path) -> None:
    grown = kernel_growth(snapshots(tmp_path), rows=3, columns=2)
    assert grown.steps == (0, 10, 20, 30)
    assert grown.moments == (0, 3)
    assert len(grown.units) == 3
    numbers = grown.numbers()
    assert numbers["noisy at the start"].value == 6
    assert numbers["noisy at the end"].value == 0
    document = results.read_result(grown.save(tmp_path / "growth"))
    assert document["model"] is None
    from PIL import Image
    from PIL.GifImagePlugin import GifImageFile

    with Image.open(tmp_path / "growth" / "growth.gif") as film:
        assert isinstance(film, GifImageFile)
        assert film.n_frames == 4


def test_growth_needs_snapshots(tmp_path: Path) -> None:
    file = tmp_path / "plain.safetensors"
    save_file({"weight": torch.zeros(2)}, file)
    with pytest.raises(UserError, match="holds no snapshots of kernels; train with snapshot_steps"):
        kernel_growth(file)
    with pytest.raises(UserError, match="unit 6 is out of range: conv1 has units 0 to 5"):
        kernel_growth(snapshots(tmp_path), units=[0, 6])


def test_kernels_of_the_real_trunk_look_like_edges_and_colors(shared_data: Path) -> None:
    model = featviz.load("alexnet", weights=shared_data / "alexnet_trunk.safetensors")
    sheet = kernel_sheet(model, "conv1")
    numbers = {name: n.value for name, n in sheet.numbers().items()}
    # Counted once and looked at: 37 oriented, 6 dots and corners, 21 colored, none noisy.
    assert numbers["noisy"] == 0
    assert numbers["faint"] == 0
    assert numbers["oriented"] == 37
    assert numbers["colored"] == 21
    wavelength = numbers["median wavelength"]
    assert isinstance(wavelength, float)
    assert 4 < wavelength < 5.5
    assert float(sheet.measured.spread.max()) < 0.5
    # Directions fill the half circle: each sixth of it has at least two edges.
    oriented = sheet.measured.orientation[sheet.measured.group == 0]
    assert min(torch.histc(oriented, bins=6, min=0, max=180).tolist()) >= 2
