"""Random crops, flips and brightness against a plain float64 resampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from featviz.training.data import Augmentation, augment


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
