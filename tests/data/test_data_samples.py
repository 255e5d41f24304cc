"""The bundled pictures: what the generator draws, and what is shipped."""

from __future__ import annotations

import hashlib

import draw_samples
import numpy as np
import pytest
from numpy.typing import NDArray

import featviz
from featviz.data.samples import DRAWN, PER_KIND, PHOTOGRAPHS, photograph_path, sample_pictures
from featviz.errors import UserError
from featviz.pictures import images


def drawn(kind: str, number: int) -> NDArray[np.float64]:
    return np.asarray(draw_samples.draw(kind, number), dtype=np.float64)


def shipped(kind: str, number: int) -> NDArray[np.float64]:
    pictures = sample_pictures()
    row = pictures.paths.index(f"{kind}/{number:02d}")
    return np.asarray(pictures.open(row), dtype=np.float64)


@pytest.mark.parametrize("kind", DRAWN)
def test_shipped_pictures_are_those_that_the_recipe_draws(kind: str) -> None:
    for number in (0, 5, PER_KIND - 1):
        mine = drawn(kind, number)
        # JPEG's rounding: about 2 levels of 255, up to 5 along many sharp edges ("dots").
        assert np.abs(shipped(kind, number) - mine).mean() < 6
        assert np.abs(shipped(kind, (number + 1) % PER_KIND) - mine).mean() > 8


def test_a_drawing_is_the_same_each_time_and_differs_by_number() -> None:
    one, again, other = (drawn("goldfish", n) for n in (3, 3, 4))
    assert (one == again).all()
    assert np.abs(one - other).mean() > 3


def test_the_global_random_state_is_untouched() -> None:
    np.random.seed(5)
    before = np.random.get_state(legacy=False)["state"]["key"].copy()
    drawn("pizza", 0)
    sample_pictures(2).open(34)
    assert (np.random.get_state(legacy=False)["state"]["key"] == before).all()


def test_the_data_set_names_its_pictures_by_kind() -> None:
    pictures = sample_pictures(2)
    assert len(pictures) == 2 * len(DRAWN + PHOTOGRAPHS)
    assert pictures.paths[10:12] == ("goldfish/00", "goldfish/01")
    assert pictures.classes == tuple(sorted(DRAWN + PHOTOGRAPHS))
    assert pictures.shown(10, 64).shape == (3, 64, 64)
    sides = {pictures.open(row).size for row in range(2 * len(DRAWN))}
    assert sides == {(160, 160)}
    assert len(sample_pictures()) == PER_KIND * len(DRAWN + PHOTOGRAPHS)


@pytest.mark.parametrize("count", [0, PER_KIND + 1])
def test_there_are_16_of_a_kind(count: int) -> None:
    with pytest.raises(UserError, match=r"per_kind is .* 1 to 16"):
        sample_pictures(count)


@pytest.mark.parametrize(
    ("kind", "channel"), [("goldfish", 0), ("lemon", 0), ("jellyfish", 2), ("ladybug", 0)]
)
def test_things_have_their_color_in_the_middle(kind: str, channel: int) -> None:
    middle = np.stack([shipped(kind, n)[60:100, 60:100] for n in range(6)])
    means = middle.mean((0, 1, 2))
    assert means.argmax() == channel, means


def test_stripes_are_periodic_in_one_direction() -> None:
    # The spectrum of stripes lies on a line through the origin: one direction holds the energy.
    gray = shipped("stripes", 2).mean(2)
    power = np.abs(np.fft.fft2(gray - gray.mean())) ** 2
    v, u = np.meshgrid(*[np.fft.fftfreq(len(gray))] * 2, indexing="ij")
    low = (np.hypot(u, v) > 0.01) & (np.hypot(u, v) < 0.2)
    bins = np.histogram(np.arctan2(v, u)[low] % np.pi, 12, (0, np.pi), weights=power[low])[0]
    neighbors = bins + np.roll(bins, 1)
    assert neighbors.max() > 0.6 * bins.sum()


def test_every_kind_has_its_folder_and_the_model_knows_most(mini: featviz.Model) -> None:
    pictures = sample_pictures(1)
    known = {f for f, label in zip(pictures.folders, pictures.labels(mini), strict=True) if label}
    assert set(DRAWN) - known - {"goldfish"} == {"checks", "dots", "stripes"}
    assert mini.find_class("goldfish") == 0


def test_photographs_are_the_files_of_scikit_learn() -> None:
    from sklearn.datasets import load_sample_image

    for name in PHOTOGRAPHS:
        ours = np.asarray(images.open_image(photograph_path(name)))
        theirs = load_sample_image(f"{name}.jpg")
        assert hashlib.sha256(ours.tobytes()).digest() == hashlib.sha256(theirs.tobytes()).digest()
