"""Each corruption against a slow float64 oracle that uses the same random numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from attack_models import photographs
from oracles import corruption_oracles as oracle

from featviz.attacks import projections
from featviz.corruptions import blur, corrupt, digital, draws, noise, weather
from featviz.corruptions.constants import zoom_factors
from featviz.corruptions.frost import ice

LIKE = torch.empty(0, dtype=torch.float64)


def picture(side: int, seed: int = 3) -> torch.Tensor:
    """A photograph with fine grain, grey and black patches, 8 bits, in float64."""
    generator = torch.Generator().manual_seed(seed)
    grain = 0.15 * torch.randn(1, 3, side, side, generator=generator)
    x = (photographs(1, seed, side) + grain).clamp(0, 1)
    x[..., 2:6, 2:6] = 0.4
    x[..., 7:9, 2:6] = 0.0
    return ((x * 255).round() / 255).double()


def streams() -> list[torch.Generator]:
    return [projections.generator(11, 5)]


def plain(x: torch.Tensor) -> np.ndarray:
    return x[0].permute(1, 2, 0).numpy().copy()


def agree(ours: torch.Tensor, theirs: np.ndarray, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(plain(ours), theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
def test_gaussian_blur(sigma: float) -> None:
    x = picture(40)
    agree(blur.gaussian(x, streams(), sigma), oracle.gaussian_blur(plain(x), sigma))


@pytest.mark.parametrize(
    ("radius", "edge"), [(0.5, 0.6), (2.5, 0.01), (3, 0.1), (8, 0.5), (10, 0.5)]
)
def test_defocus_blur(radius: float, edge: float) -> None:
    x = picture(32)
    agree(blur.defocus(x, streams(), radius, edge), oracle.defocus(plain(x), radius, edge))


@pytest.mark.parametrize(
    ("sigma", "jump", "rounds"), [(0.1, 1, 1), (0.7, 1, 2), (1, 2, 3), (1.5, 4, 2)]
)
def test_glass_blur(sigma: float, jump: int, rounds: int) -> None:
    x = picture(30)
    again = streams()
    moves = [draws.integers(again, (2, 30, 30), -jump, jump)[0].numpy() for _ in range(rounds)]
    ours = blur.glass(x, streams(), sigma, jump, rounds)
    agree(ours, oracle.glass(plain(x), sigma, jump, moves))


def test_values_on_a_chain_of_displacements_come_from_its_end() -> None:
    # Every pixel takes from its right neighbour, which was overwritten before: all of a row's
    # walked pixels end with what stood at the last column they can see.
    moves = torch.zeros(1, 2, 8, 8, dtype=torch.long)
    moves[:, 1] = 1
    moves[:, :, :, 7] = 0
    source = blur.displaced(moves, 1)[0]
    assert source[4].tolist() == [32, 33, *[39] * 6]


@pytest.mark.parametrize(("radius", "sigma"), [(10, 3), (15, 12)])
def test_motion_blur(radius: float, sigma: float) -> None:
    x = picture(24)
    angle = float(draws.uniform(streams(), (), -45, 45, LIKE))
    assert -45 <= angle <= 45
    ours = blur.motion(x, streams(), radius, sigma)
    agree(ours, oracle.streak(plain(x), radius, sigma, angle))


@pytest.mark.parametrize(("farthest", "step"), [(1.11, 0.01), (1.31, 0.03)])
def test_zoom_blur(farthest: float, step: float) -> None:
    x = picture(50)
    factors = np.arange(1, farthest, step)
    assert len(factors) == len(zoom_factors(farthest, step)) == 12 if step == 0.01 else 11
    agree(blur.zoom(x, streams(), farthest, step), oracle.zoom_blur(plain(x), factors))


@pytest.mark.parametrize(
    "constants", [(0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55)]
)
def test_snow(constants: tuple[float, ...]) -> None:
    x = picture(24)
    again = streams()
    flakes = draws.normal(again, (1, 24, 24), x)[0, 0].numpy()
    angle = float(draws.uniform(again, (), -135, -45, LIKE))
    agree(weather.snow(x, streams(), *constants), oracle.snow(plain(x), flakes, angle, *constants))


@pytest.mark.parametrize(("side", "decay"), [(16, 3.0), (24, 1.4)])
def test_fog(side: int, decay: float) -> None:
    x = picture(side)
    size, again, levels = 1 << (side - 1).bit_length(), streams(), []
    for step in [size >> k for k in range(size.bit_length() - 1)]:
        count = size // step
        levels += [draws.uniform(again, (count, count), -1, 1, LIKE)[0].numpy() for _ in range(3)]
    clouds = oracle.plasma(levels, size, decay)
    np.testing.assert_allclose(
        weather.plasma(streams(), side, decay)[0].numpy(), clouds[:side, :side], atol=1e-9
    )
    agree(weather.fog(x, streams(), 1.5, decay), oracle.fog(plain(x), clouds, 1.5))


@pytest.mark.parametrize("added", [0.1, 0.5])
def test_brightness(added: float) -> None:
    x = picture(20)
    agree(weather.brightness(x, streams(), added), oracle.brightness(plain(x), added))


@pytest.mark.parametrize(("factor", "added"), [(0.3, 0), (2, 0), (5, 0.1), (20, 0.2)])
def test_saturate(factor: float, added: float) -> None:
    x = picture(20)
    agree(digital.saturate(x, streams(), factor, added), oracle.saturate(plain(x), factor, added))


@pytest.mark.parametrize("factor", [0.4, 0.05])
def test_contrast(factor: float) -> None:
    x = picture(20)
    agree(digital.contrast(x, streams(), factor), oracle.contrast(plain(x), factor))


@pytest.mark.parametrize(
    ("amplitude", "sigma", "shift"), [(60.0, 21.0, 3.0), (3.0, 0.6, 0.6), (0, 0, 4.0)]
)
def test_elastic_transform(amplitude: float, sigma: float, shift: float) -> None:
    x = picture(30)
    again = streams()
    moves = draws.uniform(again, (3, 2), -shift, shift, LIKE)[0].numpy()
    field = draws.uniform(again, (2, 30, 30), -1, 1, LIKE)[0].numpy()
    ours = digital.elastic(x, streams(), amplitude, sigma, shift)
    agree(ours, oracle.elastic(plain(x), moves, field, amplitude, sigma))


@pytest.mark.parametrize("side", [64, 224, 57])
@pytest.mark.parametrize("share", [0.9, 0.6, 0.25])
def test_pixelate_gives_the_bytes_of_pillow(side: int, share: float) -> None:
    x = picture(side)
    agree(digital.pixelate(x, streams(), share), oracle.pixelate(plain(x), share), 1e-12)


@pytest.mark.parametrize("quality", [7, 65])
def test_jpeg_compression(quality: int) -> None:
    x = picture(33)
    agree(digital.jpeg(x, streams(), quality), oracle.jpeg(plain(x), quality), 1e-7)


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_water_on_the_lens(severity: int) -> None:
    given = ((0.65, 0.3, 2, 0.69, 0.6), (0.62, 0.1, 0.7, 0.7, 0.6), (0.65, 0.3, 1, 0.69, 0.6))
    constants = given[severity - 1]
    x = picture(48)
    grains = draws.normal(streams(), (1, 48, 48), x)[0, 0].numpy()
    ours = weather.spatter(x, streams(), *(*constants, 0))
    theirs = oracle.water(plain(x), grains, *constants)
    assert np.abs(theirs - plain(x)).max() > 0.1
    agree(ours, theirs)


def test_mud_on_the_lens() -> None:
    x = picture(40)
    constants = (0.67, 0.4, 1, 0.65, 1.5)
    grains = draws.normal(streams(), (1, 40, 40), x)[0, 0].numpy()
    ours = weather.spatter(x, streams(), *constants, mud=1)
    agree(ours, oracle.mud(plain(x), grains, *constants))


def test_a_dry_lens_changes_nothing() -> None:
    x = picture(32)
    assert torch.equal(weather.spatter(x, streams(), 0.2, 0.01, 2, 0.69, 0.6, 0), x)


def test_frost_mixes_the_picture_with_a_plate_of_ice() -> None:
    x = picture(64)
    layer = ice(streams(), 64, 64)
    assert 0.1 < float(layer.mean()) < 0.6
    assert float(layer.std()) > 0.1
    ours = weather.frost(x, streams(), 0.7, 0.7)
    agree(ours, (0.7 * plain(x) + 0.7 * plain(layer.double())).clip(0, 1))
    other = ice([projections.generator(12, 5)], 64, 64)
    assert float((layer - other).abs().mean()) > 0.05


# The noises have no oracle value by value; their distribution is known. With 120,000 values
# the mean is known to deviation / 350 and a variance to 0.4%; bounds are five standard errors.


def sampled(method: Callable[..., torch.Tensor], level: float, constant: float) -> torch.Tensor:
    side = 200
    x = torch.full((1, 3, side, side), level, dtype=torch.float64)
    return method(x, streams(), constant)


@pytest.mark.parametrize("deviation", [0.04, 0.08])
def test_gaussian_noise_is_normal(deviation: float) -> None:
    values = sampled(noise.gaussian, 0.5, deviation) - 0.5
    assert abs(float(values.mean())) < 5 * deviation / values.numel() ** 0.5
    assert float(values.std()) == pytest.approx(deviation, rel=5 / (2 * values.numel()) ** 0.5)
    assert float((values.abs() < deviation).double().mean()) == pytest.approx(0.6827, abs=0.005)


@pytest.mark.parametrize("photons", [60, 250])
def test_shot_noise_counts_photons(photons: float) -> None:
    values = sampled(noise.shot, 0.5, photons) * photons
    torch.testing.assert_close(values, values.round(), rtol=0, atol=1e-9)
    rate = 0.5 * photons
    assert float(values.mean()) == pytest.approx(rate, abs=5 * (rate / values.numel()) ** 0.5)
    assert float(values.var()) == pytest.approx(rate, rel=0.02)


@pytest.mark.parametrize("share", [0.03, 0.27])
def test_impulse_noise_hits_a_share_of_the_values_half_white_half_black(share: float) -> None:
    values = sampled(noise.impulse, 0.5, share)
    hit = values != 0.5
    assert bool(((values[hit] == 0) | (values[hit] == 1)).all())
    error = 5 * (share * (1 - share) / values.numel()) ** 0.5
    assert float(hit.double().mean()) == pytest.approx(share, abs=error)
    assert float(values[hit].mean()) == pytest.approx(0.5, abs=5 * 0.5 / int(hit.sum()) ** 0.5)
    alone = hit[:, 0] & ~hit[:, 1] & ~hit[:, 2]
    assert bool(alone.any())  # values are hit one by one, not whole pixels


@pytest.mark.parametrize("level", [0.2, 0.5])
def test_speckle_noise_grows_with_brightness(level: float) -> None:
    values = sampled(noise.speckle, level, 0.15) - level
    assert abs(float(values.mean())) < 5 * 0.15 * level / values.numel() ** 0.5
    assert float(values.std()) == pytest.approx(0.15 * level, rel=0.01)


def test_the_public_function_calls_each_with_its_constants() -> None:
    x = picture(64).float()
    key = [77]
    for name, method, constants in (
        ("gaussian_blur", blur.gaussian, (1.25,)),
        ("contrast", digital.contrast, (0.1,)),
        ("fog", weather.fog, (1.5, 2)),
        ("elastic_transform", digital.elastic, (6.4, 1.92, 1.92)),
        ("impulse_noise", noise.impulse, (0.08,)),
        ("saturate", digital.saturate, (5, 0.1)),
    ):
        ours = corrupt(x, name, 4, keys=key)
        mixed = projections.generator(77, 0).initial_seed()
        assert torch.equal(ours, method(x, draws.streams([mixed], name), *constants)), name
