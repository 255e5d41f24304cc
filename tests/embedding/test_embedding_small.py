"""Rows of any size survive a store: within a thousandth of their length, down to nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import featviz
from featviz.embedding.extract import embed_batch
from featviz.embedding.pieces import LARGEST_ERROR, as_stored, restored
from featviz.errors import UserError
from featviz.models.model import Model


@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e-9, 1e-7, 1e-5, 1e-3, 1.0, 1e4, 1e6, 1e30])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_row_is_kept_to_a_thousandth_of_its_length(size: float, sparse: bool) -> None:
    rows = size * torch.randn(20, 300, generator=torch.Generator().manual_seed(1)).double()
    if sparse:
        rows *= torch.rand(20, 300, generator=torch.Generator().manual_seed(2)) < 0.02
    rows[3] = 0
    kept, exponents = as_stored(rows, "layer")
    assert kept.dtype == np.float16
    errors = np.linalg.norm(restored(kept, exponents) - rows.numpy(), axis=1)
    assert (errors <= LARGEST_ERROR * rows.norm(dim=1).numpy()).all()
    if 1e-2 < size < 1e4:
        assert not exponents.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_what_no_float32_holds_is_refused(bad: float) -> None:
    with pytest.raises(UserError, match="not finite, or beyond float32"):
        as_stored(torch.tensor([[1.0, bad]]).double(), "layer")


def model_of(scale: float) -> Model:
    """A net whose activations are those of one and the same net, times a power of two."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
        )
    with torch.no_grad():
        net.get_parameter("0.weight").mul_(scale)
    return Model(net, name="net", preprocessing=8)


@pytest.mark.parametrize("options", [{}, {"position": "random", "seed": 1}])
def test_search_and_atlas_see_the_same_pictures_at_any_scale(
    tmp_path: Path, options: dict[str, Any], generator: torch.Generator
) -> None:
    pictures = torch.rand(40, 3, 8, 8, generator=generator)
    stores = {
        scale: featviz.embed(model_of(scale), pictures, "1", out=tmp_path / f"s{scale}", **options)
        for scale in (1.0, 2.0**-30, 2.0**30)
    }
    wanted = stores[1.0].matrix()
    assert stores[1.0].exponents is None
    found: list[Tensor] = []
    for scale, store in stores.items():
        for one in (store, featviz.open_store(tmp_path / f"s{scale}")):
            assert torch.allclose(one.matrix() / scale, wanted, rtol=2e-3, atol=1e-4)
            assert torch.equal(one.take([7, 3]), one.matrix()[[7, 3]])
            assert torch.equal(torch.cat(list(one.blocks(7))), one.matrix())
            near = featviz.find_neighbors(one, [0, 5], k=3)
            found.append(near.rows)
    assert all(torch.equal(rows, found[0]) for rows in found)
    batch = embed_batch(model_of(2.0**-30), pictures[:4], "1")
    if not options:
        assert torch.equal(batch, stores[2.0**-30].matrix()[:4])


def test_a_damaged_exponent_is_said_and_stores_without_any_are_read(
    tmp_path: Path, generator: torch.Generator
) -> None:
    pictures = torch.rand(9, 3, 8, 8, generator=generator)
    folder = tmp_path / "store"
    featviz.embed(model_of(2.0**-30), pictures, "1", out=folder)
    assert "exponents.npy" in {path.name for path in folder.iterdir()}
    moved = featviz.open_store(folder).save(tmp_path / "copy")
    assert torch.equal(featviz.open_store(moved).matrix(), featviz.open_store(folder).matrix())
    np.save(folder / "exponents.npy", np.zeros(9, np.int16))
    with pytest.raises(UserError, match=r"exponents.npy was changed"):
        featviz.open_store(folder)
    plain = tmp_path / "plain"
    featviz.embed(model_of(1.0), pictures, "1", out=plain)
    assert json.loads((plain / "manifest.json").read_text())["exponents"] is None
    assert not (plain / "exponents.npy").exists()
