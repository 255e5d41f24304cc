"""What the explorer's page shows beside the network."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import featviz
from featviz.explorer.gathered import Gathered, gather, unit_pictures
from featviz.models.model import Model

RUN = Path(__file__).parents[2] / "gallery" / "results"


@pytest.fixture(scope="module")
def found(mini: Model) -> Gathered:
    return gather(mini, featviz.sample_pictures(2))


def test_neighbors_by_rounded_vectors_are_those_by_the_vectors(
    mini: Model, found: Gathered
) -> None:
    about = found.document["pictures"]
    content = zlib.decompress(found.blocks["vectors"])
    rows = np.frombuffer(content, np.int8).reshape(about["count"], about["dim"])
    exact = featviz.embed(mini, featviz.sample_pictures(2)).matrix().double()
    unit = torch.nn.functional.normalize(exact, dim=1)
    other = torch.nn.functional.normalize(torch.from_numpy(rows.copy()).double(), dim=1)
    largest = float((unit @ unit.T - other @ other.T).abs().max())
    assert about["rounding"] == pytest.approx(largest, rel=1e-6)
    assert largest < 0.01


def test_every_picture_has_a_place_of_its_own(found: Gathered) -> None:
    about = found.document["pictures"]
    places = np.frombuffer(found.blocks["places"], "<f4").reshape(about["count"], 2)
    assert places.min() > 0
    assert places.max() < 1
    cells = np.round(places / about["pitch"] - 0.5).astype(int)
    assert len({tuple(cell) for cell in cells.tolist()}) == about["count"]
    assert about["chance"] < about["kept"] <= 1


def test_one_picture_of_each_class_is_offered_as_the_model_takes_it(
    mini: Model, found: Gathered
) -> None:
    samples = found.document["samples"]
    kinds = [sample["name"].rsplit(" ", 1)[0] for sample in samples]
    assert len(set(kinds)) == len(kinds) == 18
    for sample in samples:
        with Image.open(io.BytesIO(found.blocks[sample["block"]])) as picture:
            assert picture.size == (64, 64)


def test_pictures_of_units_are_those_of_the_same_weights(mini: Model) -> None:
    own = unit_pictures(RUN, mini.sha256)
    one = own.document["units"]["conv5"][0]
    for kind in ("made", "patches"):
        with Image.open(io.BytesIO(own.blocks[one[kind]])) as picture:
            assert max(picture.size) <= 200
    assert unit_pictures(RUN, "of another model").document == {"units": {}}


def test_pictures_that_cannot_be_read_are_said(mini: Model, tmp_path: Path) -> None:
    for number in range(2):
        Image.new("RGB", (64, 64), (90 * number, 40, 200)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"none")
    made = featviz.build_explorer(mini, featviz.open_pictures(tmp_path))
    assert made.warnings == ("1 picture could not be read and is left out",)
