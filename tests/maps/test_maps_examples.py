"""Top patches of a data set against a search of everything at once."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import featviz
from featviz import results
from featviz.data.datasets import open_pictures, read_all
from featviz.errors import UserError
from featviz.maps.top_patches import top_patches
from featviz.models.model import Model
from featviz.pictures import images
from featviz.pictures.preprocessing import Preprocessing

COUNT = 23


def net() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        layers = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 6, 5, stride=2, padding=2),
                relu1=nn.ReLU(),
                flat=nn.Flatten(),
                logits=nn.Linear(6 * 64, 4),
            )
        )
    return Model(
        layers,
        name="net",
        preprocessing=16,
        aliases={name: name for name in ("conv1", "relu1", "logits")},
        classes=[("", name) for name in ("cat", "dog", "bus", "tree")],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 random pictures, one of them twice, and one file that is none."""
    root = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for i in range(COUNT):
        images.write_png(torch.rand(3, 16, 16, generator=generator), root / f"{i:02d}.png")
    (root / "07.png").write_bytes((root / "03.png").read_bytes())
    (root / "11b.png").write_text("no picture")
    return root


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("layer", ["conv1", "relu1"])
def test_patches_are_those_of_a_search_of_everything(
    folder: Path, layer: str, batch_size: int
) -> None:
    model, pictures = net(), open_pictures(folder)
    units = [5, 0, 3]
    r = top_patches(model, pictures, layer, units=units, k=6, batch_size=batch_size)
    kept, batch, _ = read_all(pictures, Preprocessing.of(16))
    maps = featviz.activations(model, batch, [layer])[layer][:, units]
    field = model.layer(layer).receptive_field
    assert field is not None
    for u, places in enumerate(r.places):
        peaks = maps[:, u].flatten(1).max(1)
        order = sorted(range(len(kept)), key=lambda n: (-float(peaks.values[n]), n))[:6]
        assert [p.path for p in places] == [kept.paths[n] for n in order]
        for place, n, patch in zip(places, order, r.pictures(u), strict=True):
            # A batch of another size may round the last bit otherwise.
            assert place.value == pytest.approx(float(peaks.values[n]), abs=1e-5)
            y, x = divmod(int(peaks.indices[n]), 8)
            assert place.position == (y, x)
            assert place.box == field.box(y, x)
            crop = images.crop_box(batch[n], place.box)
            assert torch.allclose(patch, crop, atol=0.5 / 255 + 1e-6)
        values = maps[:, u].flatten().numpy()
        assert float(r.largest[u]) == pytest.approx(float(values.max()), abs=1e-5)
        assert float(r.percentile[u]) == pytest.approx(np.percentile(values, 99.9), abs=1e-5)
        positive = (maps[:, u].flatten(1).max(1).values > 0).float().mean()
        assert float(r.active[u]) == pytest.approx(float(positive))
    assert r.count == COUNT
    assert [s.path for s in r.skipped] == ["11b.png"]


def test_of_equal_pictures_the_first_one_wins(folder: Path) -> None:
    pictures = open_pictures(folder).select([7, 3])  # the same picture twice
    r = top_patches(net(), pictures, "conv1", units=[1], k=1, batch_size=1)
    assert r.places[0][0].row == 0


def test_classes_take_whole_pictures_and_their_names(folder: Path) -> None:
    model = net()
    r = top_patches(model, open_pictures(folder), "logits", units="bus", k=2)
    assert r.names == ("bus",)
    assert r.units == (2,)
    best = r.places[0][0]
    assert best.position is None
    whole = images.read_image(folder / best.path)
    assert torch.equal(r.pictures(0)[0], whole)
    assert bool(r.percentile.isnan().all())  # 23 values have no thousandth


def test_fewer_pictures_than_k_are_all_there(folder: Path) -> None:
    r = top_patches(net(), open_pictures(folder).select([0, 1]), "conv1", units=[0], k=9)
    assert len(r.places[0]) == 2
    assert len(r.pictures(0)) == 2


def test_saved_examples_read_back(folder: Path, tmp_path: Path) -> None:
    r = top_patches(net(), open_pictures(folder), "conv1", units="0-1", k=3)
    document = results.read_result(r.save(tmp_path / "e"))
    assert document["kind"] == "examples"
    assert document["data"]["count"] == COUNT + 1
    assert [f["units"] for f in document["figures"] if f["units"]] == [["conv1:0"], ["conv1:1"]]
    lines = (tmp_path / "e" / "examples.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 3
    best = lines[1].split(",")
    assert (best[0], best[1], best[4]) == ("0", "1", r.places[0][0].path)
    assert "11b.png" in (tmp_path / "e" / "skipped.csv").read_text()
    assert any("1 picture could not be read" in w for w in document["warnings"])


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    pictures = open_pictures(folder)
    with pytest.raises(UserError, match="k is 0; it must be"):
        top_patches(net(), pictures, "conv1", k=0)
    with pytest.raises(UserError, match="unit 6 is out of range"):
        top_patches(net(), pictures, "conv1", units=[6])
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(UserError, match="no picture of"):
        top_patches(net(), open_pictures(tmp_path), "conv1")


def test_progress_ends_with_the_data(folder: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    top_patches(
        net(),
        open_pictures(folder),
        "conv1",
        units=[0],
        batch_size=8,
        progress=lambda done, total, text: seen.append((done, total, text)),
    )
    done = [d for d, _, _ in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1][1] == COUNT + 1
