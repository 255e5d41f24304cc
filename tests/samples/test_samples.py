"""The bundled pictures: the same everywhere, and what their names say."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from featviz.models.model import Model
from featviz.samples import DRAWINGS, PHOTOGRAPHS, draw, photograph, sample_pictures


def test_a_drawing_is_the_same_each_time_and_differs_by_number() -> None:
    one, again, other = (np.asarray(draw("goldfish", n)) for n in (3, 3, 4))
    assert (one == again).all()
    assert np.abs(one.astype(int) - other).mean() > 3


def test_drawings_do_not_depend_on_what_was_drawn_before() -> None:
    pictures = sample_pictures(2)
    forward = [pictures.read(i, 64) for i in range(len(pictures))]
    backward = [pictures.read(i, 64) for i in reversed(range(len(pictures)))][::-1]
    assert torch.equal(torch.stack(forward), torch.stack(backward))


def test_the_global_random_state_is_untouched() -> None:
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    draw("pizza", 0)
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize(
    ("kind", "channel"), [("goldfish", 0), ("lemon", 0), ("jellyfish", 2), ("ladybug", 0)]
)
def test_things_have_their_colour_in_the_middle(kind: str, channel) -> None:
    middle = np.stack([np.asarray(draw(kind, n))[60:100, 60:100] for n in range(6)])
    means = middle.mean((0, 1, 2))
    assert means.argmax() == channel, means


def test_stripes_are_periodic_in_one_direction() -> None:
    # The spectrum of stripes lies on a line through the origin: one direction holds the energy.
    grey = np.asarray(draw("stripes", 2)).mean(2)
    power = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
    v, u = np.meshgrid(*[np.fft.fftfreq(len(grey))] * 2, indexing="ij")
    low = (np.hypot(u, v) > 0.01) & (np.hypot(u, v) < 0.2)
    bins = np.histogram(np.arctan2(v, u)[low] % np.pi, 12, (0, np.pi), weights=power[low])[0]
    neighbours = bins + np.roll(bins, 1)
    assert neighbours.max() > 0.6 * bins.sum()


def test_every_kind_has_its_folder_and_the_model_knows_most(mini: Model) -> None:
    pictures = sample_pictures(1)
    assert pictures.classes == tuple(sorted([*DRAWINGS, *PHOTOGRAPHS]))
    known = {f for f, label in zip(pictures.folders, pictures.labels(mini), strict=True) if label}
    assert set(DRAWINGS) - known - {"goldfish"} == {"checks", "dots", "stripes"}
    assert mini.find_class("goldfish") == 0


def test_photographs_are_the_files_of_scikit_learn() -> None:
    from sklearn.datasets import load_sample_image

    for name in PHOTOGRAPHS:
        ours = np.asarray(photograph(name))
        theirs = load_sample_image(f"{name}.jpg")
        assert hashlib.sha256(ours.tobytes()).digest() == hashlib.sha256(theirs.tobytes()).digest()
