"""Presets: the published numbers, and that each one climbs."""

from __future__ import annotations

import json
import math

import pytest
import torch

import featviz
from featviz.maximization import objectives, presets
from featviz.maximization.colours import Colours
from featviz.maximization.image_statistics import Spectrum
from featviz.maximization.loop import ascend
from featviz.maximization.parametrizations import Fourier
from featviz.maximization.shards import plain
from featviz.models.frozen import frozen
from featviz.models.model import Model

OTHER = Colours("mine", ((0.6, 0.3, 0.1), (0.5, -0.2, 0.2), (0.4, 0.1, -0.3)))


@pytest.mark.parametrize("name", presets.NAMES)
def test_each_preset_climbs(name: str, mini: Model) -> None:
    """Above its start; those of Yosinski et al., which first wear the noise down, above grey."""
    old = name.startswith("yosinski")
    # Theirs are slow: they are meant for a thousand steps.
    settings = presets.settings(name, mini, mini.layer("logits"), 64, 24 if old else 8)
    form = settings.parametrization
    goal = objectives.logit(mini, [5])
    with frozen(mini):
        climb = ascend(mini, goal, [0], [1], settings)
        begun = form.picture(form.start([torch.Generator().manual_seed(1)]))
        if old:
            begun = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
        before = goal(featviz.activations(mini, begun, ["logits"]))
    assert climb.pictures.shape == (1, 3, 64, 64)
    assert climb.clean[0] > before[0]
    json.dumps(plain(settings))  # as it stands in result.json


def test_lucids_moves_are_the_published_ones(mini: Model) -> None:
    settings = presets.settings("lucid", mini, mini.layer("conv5"), 64, 10)
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
    assert settings.transforms.border == "grey"
    assert (settings.rule.rate, settings.rule.short, settings.rule.long) == (0.05, 0.9, 0.999)
    assert isinstance(settings.parametrization, Fourier)
    assert presets.preset("lucid").size == 128
    assert presets.preset("lucid").steps == 512


def test_lucids_first_steps_are_those_of_torchs_adam(mini: Model) -> None:
    """The rule against torch's own, on the same slopes."""
    rule = presets.settings("lucid", mini, mini.layer("conv2"), 8, 5).rule
    reference = torch.zeros(2, 3, requires_grad=True)
    adam = torch.optim.Adam([reference], lr=0.05, maximize=True)
    ours, memory = torch.zeros(2, 3), rule.begin(torch.zeros(2, 3))
    for step in range(5):
        slope = torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
        reference.grad = slope.clone()
        adam.step()
        taken = torch.full((2,), step)
        ours = ours + rule.change(ours, slope, memory, taken, 5)
    assert torch.allclose(ours, reference.detach(), atol=1e-5)


def test_macos_rule_looks_a_step_ahead(mini: Model) -> None:
    """NAdam's step, written plainly in float64; the rate of 1 is that of the first step."""
    rule = presets.settings("maco", mini, mini.layer("conv2"), 8, 5).rule
    memory, mean, square = rule.begin(torch.zeros(1, 2)), 0.0, 0.0
    for step, g in enumerate([0.3, -0.2, 0.5]):
        slope = torch.full((1, 2), g)
        change = rule.change(torch.zeros(1, 2), slope, memory, torch.tensor([step]), 5)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        ahead = (0.9 * mean + 0.1 * g) / (1 - 0.9 ** (step + 1))
        expected = ahead / math.sqrt(square / (1 - 0.999 ** (step + 1)))
        assert change[0, 1].item() == pytest.approx(expected, rel=1e-4)


def test_atlas_jitters_more_and_shrinks(mini: Model) -> None:
    moved = presets.settings("distill", mini, mini.layer("conv5"), 64, 10).transforms
    draws = moved.draw(20000, torch.Generator().manual_seed(0))
    assert draws[:, 3].max().exp().item() == pytest.approx(0.998**20, abs=1e-4)
    assert draws[:, 3].min().exp().item() == pytest.approx(0.998**39, abs=1e-4)
    assert draws[:, 2].rad2deg().round().min() == -20
    assert draws[:, 2].rad2deg().round().max() == 19
    # five uniform jitters, one shift after them
    variance = (2 * 2**2 + 3 * 4**2) / 3 * (0.998**29.5) ** 2 + 1 / 3
    assert draws[:, 0].var().item() == pytest.approx(variance, rel=0.05)


def test_the_four_settings_of_yosinski(mini: Model) -> None:
    rules = [
        presets.settings(f"yosinski-{i}", mini, mini.layer("fc6"), 64, 9).rule for i in (1, 2, 3, 4)
    ]
    table = [
        (
            r.decay,
            r.blur,
            r.blur_every if r.blur else 0,
            r.norm_percentile,
            r.contribution_percentile,
        )
        for r in rules
    ]
    assert table == [
        (0, 0.5, 4, 50, 0),
        (0.3, 0, 0, 20, 0),
        (0.0001, 1, 4, 0, 0),
        (0, 0.5, 4, 0, 90),
    ]
    assert [presets.preset(f"yosinski-{i}").steps for i in (1, 2, 3, 4)] == [500, 750, 1000, 1000]


def test_maco_sees_windows_with_noise(mini: Model) -> None:
    settings = presets.settings("maco", mini, mini.layer("conv5"), 64, 16)
    moved = settings.transforms
    assert settings.views == 6
    assert settings.transparency
    assert (moved.noise, moved.uniform) == (0.08, 0.04)
    side = (-moved.draw(16 * 6 * 50, torch.Generator().manual_seed(0))[:, 3]).exp()
    assert side[:300].mean().item() == pytest.approx(0.5, abs=0.02)
    assert side[-300:].mean().item() < 0.1
    assert side.min().item() == pytest.approx(0.05, abs=1e-6)


def test_measured_statistics_take_the_place_of_the_bundled(mini: Model) -> None:
    layer = mini.layer("conv5")
    assert (
        presets.settings("lucid", mini, layer, 16, 4, colours=OTHER).parametrization.colours
        == OTHER
    )
    own = presets.settings("featviz", mini, layer, 16, 4, colours=OTHER).parametrization
    assert own.colours == OTHER
    spectrum = Spectrum("mine", torch.ones(3, 8, 5), 8, OTHER)
    maco = presets.settings("maco", mini, layer, 16, 4, spectrum=spectrum)
    assert maco.parametrization.spectrum is spectrum
    assert plain(maco)["parametrization"]["spectrum"] == "mine"


@pytest.mark.parametrize("name", presets.PARAMETRIZATIONS)
def test_every_parametrisation_has_a_name(name: str) -> None:
    form = presets.parametrization(name, 12, 9, colours=OTHER)
    start = form.start([torch.Generator().manual_seed(0)])
    assert form.picture(start).shape == (1, 3, 12, 9)
    if name not in {"raw-pixels", "maco"}:
        assert form.colours == OTHER


def test_unknown_names_are_a_users_mistake(mini: Model) -> None:
    with pytest.raises(featviz.UserError, match="unknown preset 'lucent'; did you mean lucid"):
        presets.settings("lucent", mini, mini.layer("conv5"), 16, 4)
    with pytest.raises(featviz.UserError, match="unknown parametrization 'fft'"):
        presets.parametrization("fft", 8, 8)
