"""Random crops, flips and brightness against a plain float64 resampling."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from featviz.data.datasets import Pictures
from featviz.pictures.preprocessing import Preprocessing
from featviz.training.data import DRAWS, Augmentation, Examples, augment, color_axes


def plain(picture: np.ndarray, size: int, settings: Augmentation, u: np.ndarray) -> np.ndarray:
    """One picture (3, H, W) in 0..255, pixel by pixel."""
    _, height, width = picture.shape
    low, high = settings.area
    side, stretch = math.sqrt(low + (high - low) * u[0]), math.exp(settings.aspect * (u[1] - 0.5))
    wide, tall = min(side * stretch, 1) * width, min(side / stretch, 1) * height
    left, top = u[2] * (width - wide), u[3] * (height - tall)
    gain = 1 + settings.brightness * (2 * u[5] - 1)

    def share(start: float, length: float, pixels: int, i: int) -> np.ndarray:
        step = length / size
        center = start + (i + 0.5) * step
        w = np.array([max(0, 1 - abs(center - p - 0.5) / max(step, 1)) for p in range(pixels)])
        return np.asarray(w / w.sum())

    out = np.zeros((3, size, size))
    for y in range(size):
        for x in range(size):
            column = size - 1 - x if settings.flip and u[4] < 0.5 else x
            rows = share(top, tall, height, y)
            columns = share(left, wide, width, column)
            out[:, y, x] = gain / 255 * np.einsum("chw,h,w->c", picture, rows, columns)
    return np.minimum(out, 1)


@pytest.mark.parametrize("size", [7, 12, 20], ids=["smaller", "same", "larger"])
def test_augment_equals_the_plain_resampling(size: int, generator: torch.Generator) -> None:
    settings = Augmentation(area=(0.3, 1.0), aspect=0.5, brightness=0.4)
    pictures = torch.randint(0, 256, (5, 3, 12, 15), generator=generator).to(torch.uint8)
    draws = torch.rand(5, 6, generator=generator)
    found = augment(pictures, size, settings, draws)
    for picture, u, mine in zip(pictures, draws, found, strict=True):
        wanted = plain(picture.double().numpy(), size, settings, u.double().numpy())
        np.testing.assert_allclose(mine.numpy(), wanted, atol=2e-5)


def test_bfloat16_resamples_to_the_rounding_of_bfloat16(generator: torch.Generator) -> None:
    pictures = torch.randint(0, 256, (20, 3, 24, 24), generator=generator).to(torch.uint8)
    draws = torch.rand(20, 6, generator=generator)
    exact = augment(pictures, 16, Augmentation(), draws)
    found = augment(pictures, 16, Augmentation(), draws, dtype=torch.bfloat16)
    error = found - exact
    assert float(error.abs().max()) < 3 / 255
    assert float(error.square().mean().sqrt()) < 2**-9
    assert abs(float(error.mean())) < 2**-11


def test_without_changes_the_picture_comes_back(generator: torch.Generator) -> None:
    still = Augmentation(area=(1.0, 1.0), aspect=0.0, brightness=0.0, flip=False)
    pictures = torch.randint(0, 256, (4, 3, 9, 9), generator=generator).to(torch.uint8)
    found = augment(pictures, 9, still, torch.rand(4, 6, generator=generator))
    torch.testing.assert_close(found, pictures.float() / 255)


def test_half_of_the_pictures_are_mirrored(generator: torch.Generator) -> None:
    settings = Augmentation(area=(1.0, 1.0), aspect=0.0, brightness=0.0)
    pictures = torch.randint(0, 256, (400, 3, 4, 4), generator=generator).to(torch.uint8)
    found = augment(pictures, 4, settings, torch.rand(400, 6, generator=generator))
    plain, mirrored = pictures.float() / 255, pictures.flip(3).float() / 255
    is_mirrored = (found - mirrored).abs().amax((1, 2, 3)) < 1e-5
    is_plain = (found - plain).abs().amax((1, 2, 3)) < 1e-5
    assert bool((is_mirrored ^ is_plain).all())
    assert 160 < int(is_mirrored.sum()) < 240  # four standard deviations


def test_a_picture_does_not_depend_on_its_neighbors(generator: torch.Generator) -> None:
    settings = Augmentation()
    pictures = torch.randint(0, 256, (6, 3, 16, 16), generator=generator).to(torch.uint8)
    draws = torch.rand(6, 6, generator=generator)
    together = augment(pictures, 12, settings, draws)
    alone = torch.cat(
        [augment(pictures[i : i + 1], 12, settings, draws[i : i + 1]) for i in range(6)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_crops_keep_to_their_area_and_aspect_and_lie_within_the_picture() -> None:
    """A picture of its own coordinates shows where a crop was cut out."""
    side = 64
    ramp = torch.arange(side, dtype=torch.uint8)
    pictures = torch.stack(
        [ramp.expand(side, side), ramp[:, None].expand(side, side), torch.zeros(side, side)]
    ).to(torch.uint8)
    draws = torch.rand(500, 6, generator=torch.Generator().manual_seed(2))
    settings = Augmentation(area=(0.5, 0.8), aspect=0.2, brightness=0.0, flip=False)
    found = augment(pictures.expand(500, 3, side, side), 64, settings, draws) * 255
    # Away from the border a ramp is resampled without error where the step is below a pixel.
    wide = (found[:, 0, 32, 40] - found[:, 0, 32, 20]) / 20 * 64
    tall = (found[:, 1, 40, 32] - found[:, 1, 20, 32]) / 20 * 64
    area, ratio = wide * tall / side**2, (wide / tall).log()
    assert 0.5 - 1e-3 <= float(area.min()) < 0.51
    assert 0.79 < float(area.max()) <= 0.8 + 1e-3
    assert 0.19 < float(ratio.abs().max()) <= 0.2 + 1e-3
    assert float(found[:, :2].min()) >= 0
    assert float(found[:, :2].max()) <= side - 1 + 1e-3


def test_crops_of_whole_pixels_are_pieces_of_the_picture(generator: torch.Generator) -> None:
    pictures = torch.randint(0, 256, (60, 3, 11, 13), generator=generator).to(torch.uint8)
    settings = Augmentation(whole_pixels=True, brightness=0.0)
    draws = torch.rand(60, 6, generator=generator)
    found = (augment(pictures, 8, settings, draws) * 255).round().to(torch.uint8)
    places = set()
    for picture, crop, u in zip(pictures, found, draws, strict=True):
        crop = crop.flip(2) if u[4] < 0.5 else crop
        at = [
            (y, x)
            for y in range(4)
            for x in range(6)
            if torch.equal(picture[:, y : y + 8, x : x + 8], crop)
        ]
        assert len(at) == 1
        places.update(at)
    assert {y for y, _ in places} == set(range(4))
    assert {x for _, x in places} == set(range(6))


def test_colors_shift_along_their_axes_by_a_tenth_of_the_variance() -> None:
    """Pixels on one line through the colors: the shifts lie on it, scaled by its variance."""
    generator = torch.Generator().manual_seed(0)
    line = torch.tensor([0.6, 0.48, 0.64])
    level = 0.12 * torch.randn(50, 1, 16, 16, generator=generator)
    pixels = (255 * (0.5 + line.view(3, 1, 1) * level)).round().clamp(0, 255).to(torch.uint8)
    listed = Pictures(Path("made"), tuple(map(str, range(50))), ("a",) * 50)
    axes = color_axes(
        Examples(listed, torch.zeros(50).long(), ("a",), Preprocessing.of(16), pixels)
    )
    length = axes.norm(dim=1)
    assert float(length[-1]) == pytest.approx(0.12**2, rel=0.03)
    assert float(length[:2].max()) < 1e-4  # rounding to 8 bits alone
    torch.testing.assert_close(axes[-1] / length[-1], line, atol=2e-3, rtol=0)
    still = Augmentation(area=(1.0, 1.0), aspect=0.0, brightness=0.0, flip=False, color=1.0)
    gray = torch.full((2000, 3, 2, 2), 128, dtype=torch.uint8)
    draws = torch.rand(2000, DRAWS, generator=generator)
    shift = augment(gray, 2, still, draws, axes)[:, :, 0, 0] - 128 / 255
    assert float((shift @ line).std()) == pytest.approx(0.12**2, rel=0.06)
    assert float((shift - (shift @ line)[:, None] * line).abs().max()) < 3e-4
