"""Natural paths: ranks against scipy, the bootstrap in closed form, contributions by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from featviz.maximization.evaluation import natural_path
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.pictures.preprocessing import Preprocessing


def rows(count: int, channels: int, seed: int = 0) -> torch.Tensor:
    """Profiles with many zeros, as after a ReLU: ties matter."""
    x = torch.randn(count, channels, generator=torch.Generator().manual_seed(seed))
    return x.clamp(min=0)


def test_resamples_spread_as_the_closed_form_says() -> None:
    """The mean of k values drawn with replacement has their mean and sd / sqrt(k)."""
    values = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    means = natural_path.resamples(16, 20_000) @ values / 16
    sd = float(values.std(correction=0)) / 4
    assert means.mean().item() == pytest.approx(
        values.mean().item(), abs=4 * sd / math.sqrt(20_000)
    )
    assert means.std().item() == pytest.approx(sd, rel=0.03)
    assert torch.equal(natural_path.resamples(16, 50), natural_path.resamples(16, 50))


def plainly(picture: np.ndarray, own: np.ndarray, others: np.ndarray) -> tuple[float, ...]:
    """(own, others, ceiling, floor, s) pair by pair."""

    def rho(a: np.ndarray, b: np.ndarray) -> float:
        return float(stats.spearmanr(a, b).statistic)

    to_own = np.mean([rho(picture, o) for o in own])
    to_others = np.mean([rho(picture, o) for o in others])
    ceiling = np.mean([rho(a, b) for i, a in enumerate(own) for b in own[:i]])
    floor = np.mean([rho(a, b) for a in own for b in others])
    found = (to_own, to_others, ceiling, floor, (to_own - floor) / (ceiling - floor))
    return tuple(map(float, found))


def kin(seed: int, count: int, theme: torch.Tensor, grain: float) -> torch.Tensor:
    noise = torch.randn(count, len(theme), generator=torch.Generator().manual_seed(seed))
    return (theme + grain * noise).clamp(min=0)


def test_similarity_is_the_formula_pair_by_pair() -> None:
    theme = torch.randn(60, generator=torch.Generator().manual_seed(5))
    own, others = kin(1, 8, theme, 0.8), rows(6, 60, seed=9)
    picture, noise = kin(2, 1, theme, 1.2), rows(3, 60, seed=11)
    contributions = [(torch.ones(1, 4) / 4, torch.ones(8, 4) / 4)]
    found = natural_path.compare([picture], [[own]], [[others]], [noise], contributions, ("layer",))
    expected = plainly(picture[0].numpy(), own.numpy(), others.numpy())
    ours = [
        getattr(found, name)[0, 0].item()
        for name in ("own", "others", "ceiling", "floor", "similarity")
    ]
    assert ours == pytest.approx(expected, abs=1e-6)
    assert found.low[0, 0] < found.similarity[0, 0] < found.high[0, 0]
    assert found.confidence[0, 0] == 1
    assert (found.own_count, found.other_count) == (8, 6)


def test_one_more_top_picture_of_the_unit_scores_one_and_one_of_another_unit_zero() -> None:
    """Over many draws: s is 1 for another of the unit's kind, 0 for one of another kind."""
    theme = torch.randn(200, generator=torch.Generator().manual_seed(5))
    own, others = kin(1, 16, theme, 1.0), rows(24, 200, seed=9)
    contributions = [(torch.ones(1, 4) / 4, torch.ones(16, 4) / 4)] * 40
    for pictures, expected in ((kin(3, 40, theme, 1.0), 1.0), (rows(40, 200, seed=4), 0.0)):
        many = natural_path.compare(
            [pictures], [[own]] * 40, [[others]] * 40, [rows(2, 200)], contributions, ("layer",)
        )
        assert many.similarity.mean().item() == pytest.approx(expected, abs=0.06)


def test_top_pictures_that_are_no_more_alike_than_others_give_no_similarity() -> None:
    found = natural_path.compare(
        [rows(1, 80)],
        [[rows(8, 80, seed=1)]],
        [[rows(8, 80, seed=2)]],
        [rows(2, 80, seed=3)],
        [(torch.ones(1, 4) / 4, torch.ones(8, 4) / 4)],
        ("layer",),
    )
    assert found.similarity.isnan().all()
    assert found.own.isfinite().all()


def test_noise_has_the_amplitudes_of_the_pictures_and_other_phases() -> None:
    pictures = 0.4 + 0.05 * rows(2, 3 * 32 * 32).view(2, 3, 32, 32)
    noise = natural_path.noise_like(pictures)
    amplitudes = [torch.fft.rfft2(x).abs() for x in (pictures, noise)]
    # Free phases of a real picture are those off the self-conjugate rows and columns.
    inside = (slice(None), slice(None), slice(1, 16), slice(1, 16))
    assert torch.allclose(amplitudes[0][inside], amplitudes[1][inside], rtol=0.02, atol=1e-3)
    assert torch.allclose(noise.mean((2, 3)), pictures.mean((2, 3)), atol=1e-4)
    flat = torch.stack([pictures.flatten(), noise.flatten()])
    assert torch.corrcoef(flat - flat.mean(1, keepdim=True))[0, 1].abs() < 0.2


def small() -> Model:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 4, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(4 * 12 * 12, 3),
    )
    return Model(
        net,
        name="small",
        preprocessing=Preprocessing.of(16, mean=(0.5,) * 3, std=(0.25,) * 3),
        aliases={"conv1": "0", "relu1": "1", "conv2": "2", "relu2": "3"},
    )


def test_contributions_are_activation_times_weight_by_hand() -> None:
    model = small()
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    _, found = natural_path.contributions(
        model, x, ("relu1", "conv2"), lambda values: values[:, 2, 4, 5]
    )
    relu1 = activations(model, x, ["relu1"])["relu1"]
    window = relu1[:, :, 4:7, 5:8] * model.net.get_parameter("2.weight")[2]
    parts = window.sum((2, 3)).clamp(min=0)
    assert torch.allclose(found, parts / parts.sum(1, keepdim=True), atol=1e-6)
    assert found.sum(1).tolist() == pytest.approx([1, 1], abs=1e-6)


def test_overlaps_are_the_sum_of_the_smaller_shares() -> None:
    own = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    overlap, usual = natural_path.compare_contributions(torch.tensor([0.25, 0.0, 0.75]), own)
    assert overlap == pytest.approx(0.25)  # the mean of its top pictures is (.75, .25, 0)
    assert usual == pytest.approx(0.5)  # each of two pictures has half in common with the other


def test_paths_are_compared_after_each_relu_and_at_the_layer(mini: Model) -> None:
    model = small()
    assert natural_path.path_layers(model, model.layer("conv2")) == ("conv1", "conv2")
    assert natural_path.path_layers(model, model.layer("logits")) == ("relu1", "relu2", "logits")
    assert natural_path.path_layers(model, model.layer("conv1")) == ("conv1",)
    layers = natural_path.path_layers(mini, mini.layer("logits"))
    assert layers[-1] == "logits"
    assert len(layers) <= 8
