"""Settings: the published numbers of the presets, and that each one raises the score."""

from __future__ import annotations

import json
import math

import pytest
import torch

import featviz
from featviz.maximization import objectives
from featviz.maximization.colors import Colors
from featviz.maximization.image_statistics import Spectrum, Statistics
from featviz.maximization.loop import optimize
from featviz.maximization.maco import MACO
from featviz.maximization.optimizers import Adam, PlainAscent
from featviz.maximization.parametrizations import Fourier
from featviz.maximization.settings import (
    PARAMETRIZATIONS,
    PRESETS,
    named_parametrization,
    settings_for,
)
from featviz.models.model import Model

OTHER = Colors("mine", ((0.6, 0.3, 0.1), (0.5, -0.2, 0.2), (0.4, 0.1, -0.3)))


STATISTICS = Statistics(OTHER, Spectrum("mine", torch.ones(3, 8, 5), 8, OTHER))


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_raises_the_score(name: str, mini: Model) -> None:
    """Above its start; those of Yosinski et al., which first wear the noise down, above gray."""
    old = name.startswith("yosinski")
    # Theirs are slow: they are meant for a thousand steps.
    settings = settings_for(
        mini, "logits", preset=name, size=64, steps=24 if old else 8, precision="float32"
    )
    form = settings.parametrization
    goal = objectives.logit(mini, [5])
    made = optimize(mini, goal, [0], [1], settings)
    with torch.no_grad():
        begun = form.picture(form.start([torch.Generator().manual_seed(1)]))
        if old:
            begun = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
        before = goal(featviz.activations(mini, begun, ["logits"]))
    assert made.images.shape == (1, 3, 64, 64)
    assert made.scores[0] > before[0]
    json.dumps(settings.record())


def test_lucids_moves_are_the_published_ones(mini: Model) -> None:
    settings = settings_for(mini, "conv5", preset="lucid", size=64, steps=10)
    draws = settings.transforms.draw(20000, torch.Generator().manual_seed(0))
    degrees = draws[:, 2].rad2deg().round().long()
    assert degrees.min() == -10
    assert degrees.max() == 10
    # 6 of 26 choices are 0; three standard deviations of a binomial
    zero = (degrees == 0).double().mean().item()
    assert abs(zero - 6 / 26) < 3 * math.sqrt(6 / 26 * 20 / 26 / 20000)
    factors = sorted({round(f, 3) for f in draws[:, 3].exp().tolist()})
    assert factors == pytest.approx([0.9 + 0.02 * i for i in range(11)], abs=1e-3)
    # jitter 8 before the turn, jitter 4 after it: at most 4 * sqrt(2) * 1.1 + 2 along a side
    assert 5.5 < draws[:, :2].abs().max() <= 4 * math.sqrt(2) * 1.1 + 2
    assert settings.transforms.border == "gray"
    assert settings.lr == 0.05
    assert settings.optimizer == Adam(betas=(0.9, 0.999), final_lr=1.0, shaped=False)
    assert isinstance(settings.parametrization, Fourier)
    published = settings_for(mini, "conv2", preset="lucid")
    assert published.steps == 512
    assert published.parametrization.height == 128


def test_atlas_jitters_more_and_shrinks(mini: Model) -> None:
    moved = settings_for(mini, "conv5", preset="distill", size=64, steps=10).transforms
    draws = moved.draw(20000, torch.Generator().manual_seed(0))
    assert draws[:, 3].max().exp().item() == pytest.approx(0.998**20, abs=1e-4)
    assert draws[:, 3].min().exp().item() == pytest.approx(0.998**39, abs=1e-4)
    assert draws[:, 2].rad2deg().round().min() == -20
    assert draws[:, 2].rad2deg().round().max() == 19
    # five uniform jitters, one shift after them
    variance = (2 * 2**2 + 3 * 4**2) / 3 * (0.998**29.5) ** 2 + 1 / 3
    assert draws[:, 0].var().item() == pytest.approx(variance, rel=0.05)


def test_the_four_settings_of_yosinski(mini: Model) -> None:
    found = [settings_for(mini, "fc6", preset=f"yosinski-{i}") for i in (1, 2, 3, 4)]
    table = []
    for settings in found:
        r = settings.optimizer
        assert isinstance(r, PlainAscent)
        blur_every = r.blur_every if r.blur else 0
        table.append((r.decay, r.blur, blur_every, r.norm_percentile, r.contribution_percentile))
    assert table == [
        (0, 0.5, 4, 50, 0),
        (0.3, 0, 0, 20, 0),
        (0.0001, 1, 4, 0, 0),
        (0, 0.5, 4, 0, 90),
    ]
    assert [settings.steps for settings in found] == [500, 750, 1000, 1000]
    assert [settings.lr for settings in found] == [100, 100, 100, 1e8]


def test_maco_sees_windows_with_noise(mini: Model) -> None:
    settings = settings_for(mini, "conv5", preset="maco", size=64, steps=16)
    moved = settings.transforms
    assert settings.views == 6
    assert settings.transparency
    assert (moved.noise, moved.uniform) == (0.08, 0.04)
    side = (-moved.draw(16 * 6 * 50, torch.Generator().manual_seed(0))[:, 3]).exp()
    assert side[:300].mean().item() == pytest.approx(0.5, abs=0.02)
    assert side[-300:].mean().item() < 0.1
    assert side.min().item() == pytest.approx(0.05, abs=1e-6)


def test_measured_statistics_take_the_place_of_the_bundled(mini: Model) -> None:
    for preset in ("lucid", "featviz"):
        made = settings_for(mini, "conv5", preset=preset, size=16, statistics=STATISTICS)
        assert isinstance(made.parametrization, Fourier)
        assert made.parametrization.colors == OTHER
    maco = settings_for(mini, "conv5", preset="maco", size=16, statistics=STATISTICS)
    assert isinstance(maco.parametrization, MACO)
    assert maco.parametrization.spectrum is STATISTICS.spectrum
    assert maco.record()["parametrization"]["spectrum"] == "mine"


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_every_parametrization_has_a_name(name: str, mini: Model) -> None:
    form = named_parametrization(name, 12, 9, statistics=STATISTICS)
    start = form.start([torch.Generator().manual_seed(0)])
    assert form.picture(start).shape == (1, 3, 12, 9)
    if name not in {"raw-pixels", "maco"}:
        assert form.colors == OTHER  # type: ignore[attr-defined]
    settings = settings_for(mini, "conv5", parametrization=name, size=16)
    assert type(settings.parametrization) is type(form)
    assert settings.lr == {"raw-pixels": 0.02, "cppn": 0.005, "maco": 0.3}.get(name, 0.1)


def test_unknown_names_are_a_users_mistake(mini: Model) -> None:
    with pytest.raises(featviz.UserError, match="unknown preset 'lucent'; did you mean lucid"):
        settings_for(mini, "conv5", preset="lucent")
    with pytest.raises(featviz.UserError, match="unknown parametrization 'fft'"):
        settings_for(mini, "conv5", parametrization="fft")
    with pytest.raises(
        featviz.UserError, match="precision is 'fp8'; it must be one of auto, float32"
    ):
        settings_for(mini, "conv5", precision="fp8")  # type: ignore[arg-type]
