"""Random positions: from a published generator, never at the border, the same for every order."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from featviz.data.samples import sample_pictures
from featviz.embedding.extract import embed, embed_layers
from featviz.embedding.positions import draw_positions, splitmix64
from featviz.embedding.store import open_store
from featviz.errors import UserError
from featviz.models.layers import activations
from featviz.models.model import Model


def splitmix_plainly(seed: int, count: int) -> list[int]:
    """The generator as its authors write it, one state after the other, in plain integers."""
    outputs, state, mask = [], seed, 2**64 - 1
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        outputs.append(z ^ (z >> 31))
    return outputs


@pytest.mark.parametrize("seed", [0, 1, 1234567, 2**63 + 5])
def test_the_generator_is_splitmix64(seed: int) -> None:
    found = splitmix64(seed, np.arange(50, dtype=np.uint64))
    assert found.tolist() == splitmix_plainly(seed, 50)
    if seed == 1234567:  # as published with many implementations
        assert found[:2].tolist() == [6457827717110365317, 3203168211198807973]


@pytest.mark.parametrize(("height", "width"), [(13, 13), (3, 8), (2, 5), (1, 1), (4, 2)])
def test_positions_fill_the_inside_evenly_and_leave_the_border_out(height: int, width: int) -> None:
    count = 20_000
    found = draw_positions(3, np.arange(count), height, width)
    for axis, size in enumerate((height, width)):
        edge = int(size > 2)
        seen, times = np.unique(found[:, axis], return_counts=True)
        assert seen.tolist() == list(range(edge, size - edge))
        # five standard deviations of a binomial count
        share = 1 / len(seen)
        assert abs(times - count * share).max() <= 5 * (count * share * (1 - share)) ** 0.5
    if height > 3 < width:  # rows and columns are independent
        assert abs(np.asarray(np.corrcoef(found.T))[0, 1]) < 5 / count**0.5


def test_a_position_depends_on_seed_and_row_alone() -> None:
    whole = draw_positions(7, np.arange(100), 13, 13)
    rows = np.array([40, 3, 99, 3])
    assert np.array_equal(draw_positions(7, rows, 13, 13), whole[rows])
    assert not np.array_equal(draw_positions(8, np.arange(100), 13, 13), whole)
    # Adjoining seeds are not one sequence, shifted.
    shifted = [(draw_positions(8, np.arange(100), 13, 13)[:-1] == whole[1:]).all(1).mean()]
    assert max(shifted) < 0.1


def test_rows_are_the_activations_at_their_positions(mini: Model, tmp_path: Path) -> None:
    pictures = sample_pictures(1)
    stores = embed_layers(
        mini, pictures, ["relu3", "relu7"], position="random", seed=5, out=tmp_path / "s"
    )
    store = open_store(tmp_path / "s" / "relu3")
    assert store.positions is not None
    _, height, width = mini.layer("relu3").shape
    assert np.array_equal(store.positions, draw_positions(5, range(len(pictures)), height, width))
    for row in (0, 7, len(store) - 1):
        one = pictures.read(row, mini.preprocessing)[None]
        maps = activations(mini, one, ["relu3"])["relu3"][0]
        y, x = store.positions[row]
        # float16 keeps 11 bits
        torch.testing.assert_close(store.take([row])[0], maps[:, y, x], rtol=1e-3, atol=1e-3)
    # A layer without a map is the same as ever.
    plain = embed(mini, pictures, "relu7")
    assert torch.equal(stores["relu7"].matrix(), plain.matrix())
    assert stores["relu7"].positions is None


def test_positions_are_in_the_files(mini: Model, tmp_path: Path) -> None:
    store = embed(mini, sample_pictures(1), "relu3", position="random", out=tmp_path / "s")
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert manifest["position"] == "random"
    assert manifest["seed"] == 0
    with (tmp_path / "s" / "ids.csv").open() as file:
        lines = list(csv.DictReader(file))
    found = [(int(line["y"]), int(line["x"])) for line in lines]
    assert store.positions is not None
    assert found == [tuple(p) for p in store.positions.tolist()]
    other = embed(mini, sample_pictures(1), "relu3", position="random", seed=1)
    assert other.positions is not None
    assert (other.positions != store.positions).any()
    assert not torch.equal(other.matrix(), store.matrix())


def test_a_crop_holds_all_that_its_row_depends_on(mini: Model) -> None:
    """Gray everywhere but in the crop: the activation at the position stays."""
    store = embed(mini, sample_pictures(1), "relu2", position="random")
    assert store.positions is not None
    assert store.receptive_field is not None
    side = mini.input_size[0]
    for row in (2, 9):
        y, x = (int(i) for i in store.positions[row])
        top, left, bottom, right = store.receptive_field.box(y, x)
        crop = store.crop(row)
        assert crop.shape == (3, bottom - top, right - left)
        picture = torch.full((3, side, side), 0.5)
        inside = slice(max(top, 0), min(bottom, side)), slice(max(left, 0), min(right, side))
        cut = slice(max(-top, 0), None), slice(max(-left, 0), None)
        piece = crop[:, cut[0], cut[1]]
        height, width = inside[0].stop - inside[0].start, inside[1].stop - inside[1].start
        picture[:, inside[0], inside[1]] = piece[:, :height, :width]
        maps = activations(mini, picture[None], ["relu2"])["relu2"][0]
        torch.testing.assert_close(maps[:, y, x], store.take([row])[0], rtol=1e-3, atol=1e-3)


def test_what_has_no_positions_is_refused(mini: Model) -> None:
    with pytest.raises(UserError, match="relu7 has no map"):
        embed(mini, sample_pictures(1), "relu7", position="random")
    with pytest.raises(UserError, match="it must be one of mean, max, random"):
        embed(mini, sample_pictures(1), "relu3", position="middle")  # type: ignore[arg-type]
    pooled = embed(mini, sample_pictures(1), "relu3")
    assert pooled.pooled
    with pytest.raises(UserError, match="not of single positions"):
        pooled.crop(0)
