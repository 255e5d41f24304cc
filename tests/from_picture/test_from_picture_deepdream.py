"""Deepdream, caricature and accentuation: what grows, what stays, numbers as counted again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import featviz
from featviz.from_picture import accentuation
from featviz.from_picture import deepdream as dream_module
from featviz.from_picture.accentuation import accentuate
from featviz.from_picture.deepdream import caricature, deepdream
from featviz.maximization.transforms import Transforms
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.models.units import parse_unit

STILL = {"transforms": Transforms(), "precision": "float32"}


@pytest.fixture(scope="module")
def small() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=2, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 5),
        )
    return Model(
        net,
        name="small",
        input_size=32,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        aliases={"conv1": "0", "relu1": "1", "conv2": "2", "relu2": "3", "logits": "6"},
    )


@pytest.fixture(scope="module")
def given() -> torch.Tensor:
    coarse = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, (32, 32), mode="bilinear", align_corners=False)


# Deepdream


def test_a_dream_answers_more_strongly_and_still_shows_its_photograph(
    small: Model, given: torch.Tensor
) -> None:
    made = deepdream(small, given, ["conv1", "conv2"], octaves=2, steps=30)
    assert made.images.shape == (3, 2, 1, 3, 32, 32)
    assert (made.measured["strength"] > 1.1).all()
    assert (made.measured["pixel distance"] < 0.3).all()
    before, after = (
        activations(small, pictures, ["conv2"])["conv2"].square().mean((1, 2, 3)).sqrt()
        for pictures in (given, made.images[:, 1, 0])
    )
    assert torch.allclose(made.measured["strength"][:, 1, 0], after / before, rtol=1e-4)


def test_a_dream_of_chosen_units_counts_their_squares_alone(
    small: Model, given: torch.Tensor
) -> None:
    made = deepdream(small, given[:1], "conv2", units=[2, 5], octaves=1, steps=12, **STILL)
    whole = deepdream(small, given[:1], "conv2", octaves=1, steps=12, **STILL)
    assert made.columns == ("conv2:2, conv2:5",)

    def strength(one: torch.Tensor) -> float:
        values = activations(small, one, ["conv2"])["conv2"][0, [2, 5]]
        return values.square().mean().sqrt().item()

    ratio = strength(made.images[0, 0]) / strength(given[:1])
    assert made.measured["strength"].item() == pytest.approx(ratio, rel=1e-4)
    assert strength(made.images[0, 0]) > strength(whole.images[0, 0])


def test_a_dream_without_a_rate_is_the_photograph(small: Model, given: torch.Tensor) -> None:
    made = deepdream(small, given[:1], "conv1", octaves=3, steps=2, rate=1e-6)
    assert (made.images[0, 0, 0] - given[0]).abs().max() < 1.5 / 255


def test_octaves_grow_by_the_zoom_up_to_the_photograph() -> None:
    assert dream_module._octave_sizes((224, 280), 3, 1.4) == [(114, 143), (160, 200), (224, 280)]
    assert dream_module._octave_sizes((64, 64), 3, 2.0) == [(64, 64)]  # 32 would show too little
    assert dream_module._octave_sizes((20, 20), 2, 1.4) == [(20, 20)]


@pytest.mark.numeric
def test_a_dream_does_not_depend_on_its_batch(small: Model, given: torch.Tensor) -> None:
    options = {"octaves": 2, "steps": 3}
    alone = deepdream(small, given[1], "conv2", **options)
    among = deepdream(small, given, ["conv1", "conv2"], **options)
    assert (among.images[1, 1] - alone.images[0, 0]).abs().max() < 3 / 255
    strengths = among.measured["strength"][1, 1], alone.measured["strength"][0, 0]
    assert torch.allclose(*strengths, rtol=1e-2)


def test_dreams_are_filmed_through_all_octaves(small: Model) -> None:
    large = torch.rand(3, 80, 80, generator=torch.Generator().manual_seed(0))
    made = deepdream(small, large, "conv1", octaves=2, steps=2, film=2)
    assert made.frames.shape == (1, 1, 1, 4, 3, 80, 80)
    assert made.trace.shape == (1, 1, 1, 4)


# Caricature


def test_the_caricature_of_a_linear_layer_is_its_kernels_by_what_they_answered() -> None:
    """<values, reference> of a linear layer is linear in the picture: the best is that gradient."""
    net = nn.Sequential(nn.Conv2d(3, 10, 12), nn.Flatten(), nn.Linear(10, 3))
    with torch.no_grad():
        for i, layer in enumerate((net[0], net[2])):
            layer.weight.normal_(generator=torch.Generator().manual_seed(i))
            layer.bias.zero_()
    model = Model(
        net,
        name="linear",
        input_size=12,
        mean=(0.5,) * 3,
        std=(1.0,) * 3,
        aliases={"conv1": "0", "logits": "2"},
    )
    given = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(2))
    made = caricature(
        model,
        given,
        "conv1",
        power=0,
        steps=150,
        roughness_weight=0.0,
        saturation_weight=0.0,
        contrast_weight=12.0,
        local_normalization=0.0,
        coarse_to_fine=0.0,
        **STILL,
    )
    answer = (net[0].weight * (given - 0.5)).sum((1, 2, 3))
    gradient = (net[0].weight * answer.clamp(min=0)[:, None, None, None]).sum(0)
    both = torch.stack([made.images[0, 0, 0] - 0.5, gradient]).flatten(1)
    assert torch.corrcoef(both)[0, 1] > 0.9
    found = (net[0].weight * (made.images[0, 0, 0] - 0.5)).sum((1, 2, 3)).clamp(min=0)
    aim = answer.clamp(min=0)
    assert made.measured["exaggeration"].item() == pytest.approx(
        ((found * aim).sum() / aim.square().sum()).item(), rel=1e-3
    )
    assert made.measured["cosine"].item() == pytest.approx(
        torch.cosine_similarity(found, aim, dim=0).item(), rel=1e-3
    )


def test_more_power_keeps_closer_to_the_photograph(mini: Model) -> None:
    samples = featviz.sample_pictures(1)
    given = samples.read(samples.paths.index("flower/00"), 64, 64)
    loose, close = (caricature(mini, given, "conv3", power=power, steps=40) for power in (0.0, 4.0))
    assert close.measured["cosine"].item() > loose.measured["cosine"].item()
    assert loose.measured["exaggeration"].item() > 1


# Accentuation


def test_accentuation_raises_the_score_and_stays_nearer_than_plain_ascent(
    small: Model, given: torch.Tensor
) -> None:
    options = {"anchor": "conv1", "steps": 60}
    held = accentuate(small, given, ["conv2:3", "logits:1"], **options)
    free = accentuate(small, given, ["conv2:3", "logits:1"], weight=0.0, **options)
    fast = accentuate(small, given, ["conv2:3", "logits:1"], weight=50.0, **options)
    before, after = held.measured["score before"], held.measured["score"]
    assert (after > before).all()
    assert (held.measured["anchor distance"] < free.measured["anchor distance"]).all()
    assert (fast.measured["anchor distance"] < 0.5 * held.measured["anchor distance"]).all()
    assert (free.measured["score"] > after).all()
    values = activations(small, held.images[:, 0, 0], ["conv2"])["conv2"][:, 3].mean((1, 2))
    assert torch.allclose(after[:, 0, 0], values, rtol=1e-4)
    was, now = (
        activations(small, pictures, ["conv1"])["conv1"].double()
        for pictures in (given, held.images[:, 0, 0])
    )
    moved = (now - was).norm(dim=1).mean((1, 2)) / was.norm(dim=1).mean((1, 2))
    assert torch.allclose(held.measured["anchor distance"][:, 0, 0].double(), moved, rtol=1e-3)


def test_both_pull_equally_hard_at_the_photograph(small: Model, given: torch.Tensor) -> None:
    """The balance is the ratio of the two gradients, here by torch's own autograd in float64."""
    goal = accentuation._unit_goal(parse_unit(small, "conv2:3"), 3)
    ratio = accentuation._balance(small, goal, "conv1", given, seed=0)
    noise = torch.randn(given.shape[1:], generator=torch.Generator().manual_seed(0))
    net = small.net.double()
    try:
        for i, one in enumerate(given.double()):
            x = (one + 0.02 * noise).requires_grad_(True)
            anchor = net[0]((x[None] - 0.5) / 0.25)
            still = net[0]((one[None] - 0.5) / 0.25)
            score = net[2](anchor.clamp(min=0))[0, 3].mean()
            (up,) = torch.autograd.grad(score, x, retain_graph=True)
            (back,) = torch.autograd.grad((anchor - still).norm(dim=1).mean(), x)
            assert ratio[i].item() == pytest.approx((up.norm() / back.norm()).item(), rel=1e-3)
    finally:
        net.float()


def test_accentuation_does_not_depend_on_its_company(small: Model, given: torch.Tensor) -> None:
    options = {"anchor": "conv1", "steps": 4}
    alone = accentuate(small, given[2], "logits:1", **options)
    among = accentuate(small, given, "conv2:0; logits:1", **options)
    assert torch.equal(among.images[2, 1], alone.images[0, 0])
    split = accentuate(small, given, "conv2:0;logits:1", batch_size=1, **options)
    assert torch.equal(split.images, among.images)


def test_the_answers_are_accentuated_where_no_unit_is_named(
    small: Model, given: torch.Tensor
) -> None:
    made = accentuate(small, given[:1], anchor="conv1", steps=1)
    best = small(given[:1])[0].argsort(descending=True)[:3].tolist()
    assert made.units == tuple(f"logits:{index}" for index in best)


def test_the_anchor_sees_less_than_half_and_comes_before_the_unit(mini: Model) -> None:
    assert accentuation._anchor(mini, mini.layer("logits"), None) == "conv2"
    assert accentuation._anchor(mini, mini.layer("conv2"), None) == "conv1"
    with pytest.raises(featviz.UserError, match="does not come before conv2"):
        accentuation._anchor(mini, mini.layer("conv2"), "conv3")
    with pytest.raises(featviz.UserError, match="no layer before conv1"):
        accentuation._anchor(mini, mini.layer("conv1"), None)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, x: deepdream(m, x, "conv1", zoom=1.0), "zoom is 1"),
        (lambda m, x: deepdream(m, x, ["conv1", "conv2"], units="1"), "units belong to one layer"),
        (lambda m, x: deepdream(m, x, "conv1", parametrization="pixels"), "several sizes"),
        (lambda m, x: deepdream(m, x, "conv1", octaves=0), "octaves is 0"),
        (lambda m, x: accentuate(m, x, "conv2:99"), "out of range"),
        (lambda m, x: accentuate(m, x, ";"), "no unit was named"),
        (lambda m, x: accentuate(m, x, "conv2:1", weight=-1.0), "weight is -1"),
        (lambda m, x: accentuate(m, x, "conv2:1", optimizer=None), "an optimizer of its own"),
        (lambda m, x: caricature(m, x, "conv1", tries=0), "tries is 0"),
    ],
)
def test_mistakes_are_told(small: Model, given: torch.Tensor, call, words: str) -> None:
    with pytest.raises(featviz.UserError, match=words):
        call(
            small,
            given,
        )
