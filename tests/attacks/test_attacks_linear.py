"""Attacks on linear models, whose answers are known in closed form."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from attack_models import Linear, two_classes
from flat_attacks import apgd, apgd_targeted, bim, ensemble, fgsm, mi_fgsm, pgd
from oracles.minimal_distances import half_space
from torch import Tensor

from featviz.attacks import projections
from featviz.attacks.linear_estimate import linear_estimate
from featviz.attacks.result import AttackResult

ZEROS = torch.zeros(8, dtype=torch.long)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fgsm_changes_the_margin_by_eps_times_the_dual_norm(
    generator: torch.Generator, norm: str
) -> None:
    weights = torch.randn(2, 48, generator=generator, dtype=torch.float64)
    model = Linear(weights, torch.tensor([100.0, 0.0], dtype=torch.float64))
    pictures = 0.3 + 0.4 * torch.rand(8, 3, 4, 4, generator=generator, dtype=torch.float64)
    eps = torch.linspace(0.001, 0.1, 8, dtype=torch.float64)
    found = fgsm(model, pictures, ZEROS, eps=eps, norm=norm)
    w = weights[0] - weights[1]
    dual = {"linf": w.abs().sum(), "l2": w.norm(), "l1": w.abs().max()}[norm]
    before, after = (p.flatten(1) @ w for p in (pictures, found.adversarial))
    # The L2 projection keeps 1e-7 of the radius as a reserve when rounding leads outside.
    torch.testing.assert_close(before - after, eps * dual, rtol=2e-7, atol=1e-12)
    size = projections.distance(pictures, found.adversarial, norm)
    torch.testing.assert_close(size, eps, rtol=2e-7, atol=0)


def optimal(model: Linear, pictures: Tensor, norm: str, box: bool) -> Tensor:
    """The smallest distance of each picture to the other class, in closed form."""
    w = (model.weights[0] - model.weights[1]).detach()
    logits = model(pictures).detach()
    margins = (logits[:, 0] - logits[:, 1]).tolist()
    assert min(margins) > 0
    found = [
        half_space(w.numpy(), p.flatten().numpy(), m, norm, box=box)
        for p, m in zip(pictures, margins, strict=True)
    ]
    return torch.tensor(found, dtype=torch.float64)


LAST: dict[str, Callable[..., AttackResult]] = {
    "pgd": lambda *given, **options: pgd(*given, steps=100, **options),
    "apgd-ce": apgd,
    "apgd-margin": lambda *given, **options: apgd(*given, loss="margin", **options),
    "fgsm": fgsm,
    "ensemble": lambda *given, **options: ensemble(*given, steps=50, queries=20, **options),
}


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("method", LAST.values(), ids=LAST)
def test_an_attack_succeeds_just_above_the_smallest_distance_and_fails_just_below(
    generator: torch.Generator, norm: str, box: bool, method: Callable[..., AttackResult]
) -> None:
    if (method, norm) == (LAST["pgd"], "l1"):
        return  # its steps keep their length: it comes near to the optimum, no more
    model, pictures = two_classes(generator)
    w = (model.weights[0] - model.weights[1]).detach()
    if not box:  # small margins near the centre of the box never meet its walls
        pictures = 0.5 + 0.05 * (pictures - 0.5)
        lift = (0.03 if norm != "l1" else 0.01) * w.abs().sum()
        model.bias.data[0] = lift - (pictures.flatten(1) @ w).min()
    optimum = optimal(model, pictures, norm, box)
    assert bool(optimum.isfinite().all())
    if box:
        free = optimal(model, pictures, norm, False)
        assert bool((optimum > 1.001 * free).any())  # the box does matter here
    above = method(model, pictures, ZEROS, eps=1.01 * optimum, norm=norm)
    below = method(model, pictures, ZEROS, eps=0.99 * optimum, norm=norm)
    assert above.success.tolist() == [True] * 8
    assert below.success.tolist() == [False] * 8
    assert bool((above.distance >= optimum * (1 - 1e-9)).all())


def test_pgd_leaves_by_the_nearest_of_many_classes(generator: torch.Generator) -> None:
    weights = torch.randn(6, 48, generator=generator, dtype=torch.float64)
    pictures = 0.4 + 0.2 * torch.rand(8, 3, 4, 4, generator=generator, dtype=torch.float64)
    logits = pictures.flatten(1) @ weights.T
    labels = logits.argmax(1)
    model = Linear(weights, torch.zeros(6, dtype=torch.float64))
    rows = torch.arange(8)
    w = weights[labels][:, None] - weights[None]
    margins = logits[rows, labels][:, None] - logits
    distances = margins / w.abs().sum(2)
    distances[rows, labels] = torch.inf
    nearest = distances.amin(1)
    # Only the nearest class can be reached just above its distance.
    assert pgd(model, pictures, labels, eps=1.02 * nearest, steps=100).success.float().mean() > 0.8
    assert not pgd(model, pictures, labels, eps=0.99 * nearest, steps=100).success.any()
    # One target after the other finds it always, and the linear estimate names it first.
    sure = apgd_targeted(model, pictures, labels, eps=1.01 * nearest, targets=1)
    assert bool(sure.success.all())
    assert torch.equal(sure.predicted, distances.argmin(1))
    assert not apgd_targeted(model, pictures, labels, eps=0.99 * nearest).success.any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_linear_estimate_is_exact_on_a_linear_model(
    generator: torch.Generator, norm: str
) -> None:
    weights = torch.randn(6, 48, generator=generator, dtype=torch.float64)
    model = Linear(weights, torch.zeros(6, dtype=torch.float64)).requires_grad_(False)
    pictures = torch.rand(5, 3, 4, 4, generator=generator, dtype=torch.float64)
    logits = pictures.flatten(1) @ weights.T
    labels = logits.argmax(1)
    found = linear_estimate(model, pictures, labels, norm=norm, batch_size=2)
    for i, y in enumerate(labels.tolist()):
        expected = {}
        for k in range(6):
            if k != y:
                w = (weights[y] - weights[k]).numpy()
                margin = float(logits[i, y] - logits[i, k])
                expected[k] = half_space(w, pictures[i].flatten().numpy(), margin, norm, box=False)
        order = sorted(expected, key=expected.__getitem__)
        assert found.classes[i].tolist() == order
        torch.testing.assert_close(
            found.distances[i], torch.tensor([expected[k] for k in order], dtype=torch.float64)
        )
    torch.testing.assert_close(found.logits, logits)


def test_momentum_adds_gradients_of_length_one_in_l1(generator: torch.Generator) -> None:
    # On a linear model every gradient is the same, so that momentum changes no sign.
    model, pictures = two_classes(generator)
    eps = optimal(model, pictures, "linf", True)
    plain = bim(model, pictures, ZEROS, eps=0.9 * eps, steps=10, step_size=0.1)
    for decay in (0.0, 1.0):
        moved = mi_fgsm(model, pictures, ZEROS, eps=0.9 * eps, steps=10, decay=decay)
        torch.testing.assert_close(moved.adversarial, plain.adversarial)


def test_a_confident_model_hides_no_gradient() -> None:
    # Softmax of these logits is exactly (1, 0) in float64; cross-entropy's gradient is then 0.
    weights = 1e5 * torch.stack([torch.ones(48), -torch.ones(48)])
    model = Linear(weights, torch.zeros(2))
    pictures = torch.full((2, 3, 4, 4), 0.5)
    model.bias.data = torch.tensor([-4.9e6, 0.0])
    labels = torch.tensor([1, 1])
    naive = pictures.clone().requires_grad_(True)
    torch.nn.functional.cross_entropy(model(naive), labels).backward()
    assert naive.grad is not None
    assert not naive.grad.any()
    found = fgsm(model, pictures, labels, eps=0.25)
    assert bool(found.success.all())
    assert not found.zero_gradients.any()


def test_adding_a_constant_to_the_logits_changes_nothing(generator: torch.Generator) -> None:
    weights = torch.randn(4, 48, generator=generator, dtype=torch.float64)
    pictures = torch.rand(8, 3, 4, 4, generator=generator, dtype=torch.float64)
    labels = (pictures.flatten(1) @ weights.T).argmax(1)
    methods: tuple[Callable[..., AttackResult], ...] = (
        pgd,
        apgd,
        partial(apgd_targeted, steps=30),
        partial(ensemble, steps=20, queries=9),
    )
    radii = (("linf", 0.05), ("l2", 0.3), ("l1", 1.0))
    for method, (norm, eps) in itertools.product(methods, radii):
        one, other = (
            method(
                Linear(weights, torch.full((4,), c, dtype=torch.float64)),
                pictures,
                labels,
                eps=eps,
                norm=norm,
            )
            for c in (0.0, 1024.0)
        )
        assert torch.equal(one.success, other.success)
        assert int(one.success.sum()) > 0
        fell = one.success
        assert torch.equal(one.first_step, other.first_step)
        # 1024 costs ten bits of the logits' 52; in L2 the exact ball may then cost 1e-7 of eps.
        torch.testing.assert_close(
            one.adversarial[fell], other.adversarial[fell], rtol=0, atol=1e-7
        )
