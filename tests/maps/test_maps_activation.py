"""Activation maps: which units, where on the picture, and that the geometry is right."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import featviz
from featviz import results
from featviz.errors import UserError
from featviz.maps.activation_maps import activation_maps
from featviz.models.layers import tap
from featviz.models.model import Model
from featviz.pictures import images
from featviz.pictures.preprocessing import Preprocessing


def net() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        layers = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 5, 5, stride=2, padding=1),
                relu1=nn.ReLU(inplace=True),
                pool1=nn.MaxPool2d(3, 2),
                conv2=nn.Conv2d(5, 4, 3, padding=1),
                flat=nn.Flatten(),
                logits=nn.Linear(4 * 64, 3),
            )
        )
    names = ("conv1", "relu1", "pool1", "conv2", "logits")
    return Model(layers, name="net", preprocessing=35, aliases={name: name for name in names})


def dots() -> Model:
    """A unit that answers to the red of the middle pixel of its 5x5 window, one of stride 4."""
    convolution = nn.Conv2d(3, 1, 5, stride=4, padding=2, bias=False)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[0, 0, 2, 2] = 1
    return Model(nn.Sequential(convolution), name="dots", preprocessing=32, aliases={"conv1": "0"})


def test_strongest_units_come_first_and_maps_are_the_models(generator: torch.Generator) -> None:
    model = net()
    picture = torch.rand(3, 35, 35, generator=generator)
    maps = featviz.activations(model, picture[None], ["conv2"])["conv2"][0]
    r = activation_maps(model, picture, "conv2", count=3)
    peaks = maps.flatten(1).max(1).values
    assert list(r.units) == peaks.argsort(descending=True)[:3].tolist()
    assert torch.equal(r.maps, maps[list(r.units)])
    for unit, (y, x) in zip(r.units, r.positions, strict=True):
        assert float(maps[unit, y, x]) == float(peaks[unit])
    chosen = activation_maps(model, picture, "conv2", units="3,1")
    assert chosen.units == (3, 1)


def test_a_dot_lights_the_pixels_around_it_and_no_others() -> None:
    picture = torch.full((3, 32, 32), 0.5)
    picture[1:] = 0.2
    picture[0] = 0
    picture[0, 12, 20] = 1  # the center of position (3, 5)
    r = activation_maps(dots(), picture, "conv1")
    assert r.positions == ((3, 5),)
    assert r.box(0) == (10, 18, 15, 23)
    lit = (r.overlay(0) - r.picture).abs().sum(0) < 1e-6
    rows, columns = lit.nonzero().unbind(1)
    # Pixels nearer to this center than to its neighbors four pixels away; ties go up and left.
    assert (int(rows.min()), int(rows.max())) == (10, 13)
    assert (int(columns.min()), int(columns.max())) == (18, 21)
    assert bool(lit[12, 20])


@pytest.mark.parametrize("layer", ["conv1", "pool1", "conv2"])
def test_the_box_holds_every_pixel_that_moves_the_strongest_position(
    layer: str, generator: torch.Generator
) -> None:
    model = net().double()
    picture = torch.rand(1, 3, 35, 35, generator=generator, dtype=torch.float64)
    r = activation_maps(model, picture.float(), layer, units=[1])
    y, x = r.positions[0]
    box = r.box(0)
    assert box is not None
    moved = torch.zeros(35, 35, dtype=torch.bool)
    # Any of these changes may be hidden by a ReLU or a pool, so several are tried at each pixel.
    for change in (-3.0, -0.5, 0.5, 3.0):
        with torch.no_grad():
            changed = picture.repeat(35 * 35, 1, 1, 1)
            index = torch.arange(35 * 35)
            changed[index, :, index // 35, index % 35] += change
            with tap(model, [layer]) as taken:  # which takes pictures outside [0, 1], too
                model(changed)
                values = taken[layer][:, 1, y, x]
                model(picture)
                still = taken[layer][0, 1, y, x]
        moved |= (values != still).view(35, 35)
    top, left, bottom, right = box
    within = torch.zeros(35, 35, dtype=torch.bool)
    within[max(top, 0) : bottom, max(left, 0) : right] = True
    assert not bool((moved & ~within).any())
    rows, columns = moved.nonzero().unbind(1)
    seen = (int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)
    assert seen == (max(top, 0), max(left, 0), min(bottom, 35), min(right, 35))


def test_limits_are_shared_and_symmetric_only_below_zero(generator: torch.Generator) -> None:
    model = net()
    picture = torch.rand(3, 35, 35, generator=generator)
    low, high = activation_maps(model, picture, "conv1").limits
    assert low == -high
    r = activation_maps(model, picture, "relu1")
    assert r.limits == (0.0, float(r.maps.max()))


def test_a_silent_map_can_be_shown(tmp_path: Path) -> None:
    r = activation_maps(dots(), torch.zeros(3, 32, 32), "conv1")
    assert float(r.maps.abs().max()) == 0
    r.save(tmp_path / "silent")


def test_layers_without_positions_are_refused(generator: torch.Generator) -> None:
    picture = torch.rand(3, 35, 35, generator=generator)
    with pytest.raises(UserError, match="logits has no map of positions; take one of conv1, relu1"):
        activation_maps(net(), picture, "logits")


def test_a_file_is_prepared_as_the_model_wants_it(
    tmp_path: Path, generator: torch.Generator
) -> None:
    images.write_png(torch.rand(3, 50, 70, generator=generator), tmp_path / "wide.png")
    r = activation_maps(net(), tmp_path / "wide.png", "conv1")
    assert torch.equal(r.picture, images.read_picture(tmp_path / "wide.png", Preprocessing.of(35)))


def test_saved_maps_read_back(tmp_path: Path, generator: torch.Generator) -> None:
    import numpy as np

    picture = torch.rand(3, 35, 35, generator=generator)
    r = activation_maps(net(), picture, "conv1", units=[0, 4])
    document = results.read_result(r.save(tmp_path / "m"))
    assert document["kind"] == "maps"
    assert [f["units"] for f in document["figures"] if f["units"]] == [["conv1:0"], ["conv1:4"]]
    stored = np.load(tmp_path / "m" / "maps.npz")
    assert np.array_equal(stored["maps"], r.maps.numpy())
    row = (tmp_path / "m" / "maps.csv").read_text().splitlines()[2].split(",")
    assert row[0] == "4"
    assert (int(row[4]), int(row[5])) == r.positions[1]
    assert tuple(map(int, row[6:])) == r.box(1)


def test_the_callers_picture_is_not_changed(generator: torch.Generator) -> None:
    model = net()
    picture = torch.rand(3, 35, 35, generator=generator)
    before = picture.clone()
    activation_maps(model, picture, "conv2")
    assert torch.equal(picture, before)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
