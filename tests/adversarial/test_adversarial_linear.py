"""Attacks on linear models, whose answers are known in closed form."""

from __future__ import annotations

import pytest
import torch
from adversarial_models import Linear, minimal_distance, two_classes

from featviz.adversarial.attacks import fgsm, pgd

ZEROS = torch.zeros(8, dtype=torch.long)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_changes_the_margin_by_eps_times_the_dual_norm(generator, norm):
    weights = torch.randn(2, 48, generator=generator, dtype=torch.float64)
    model = Linear(weights, torch.tensor([100.0, 0.0], dtype=torch.float64))
    pictures = 0.3 + 0.4 * torch.rand(8, 3, 4, 4, generator=generator, dtype=torch.float64)
    eps = torch.linspace(0.001, 0.1, 8, dtype=torch.float64)
    found = fgsm(model, pictures, ZEROS, eps=eps, norm=norm)
    w = weights[0] - weights[1]
    dual = w.abs().sum() if norm == "linf" else w.norm()
    before, after = (p.flatten(1) @ w for p in (pictures, found.adversarial))
    # The L2 projection keeps 1e-7 of the radius as a reserve when rounding leads outside.
    torch.testing.assert_close(before - after, eps * dual, rtol=2e-7, atol=1e-12)
    torch.testing.assert_close(getattr(found, norm), eps, rtol=2e-7, atol=0)


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_succeeds_just_above_the_minimal_distance_and_fails_just_below(generator, norm, box):
    model, pictures = two_classes(generator)
    w = (model.weights[0] - model.weights[1]).detach()
    if not box:  # small margins near the centre of the box never meet its walls
        pictures = 0.5 + 0.05 * (pictures - 0.5)
        model.bias.data[0] = 0.03 * w.abs().sum() - (pictures.flatten(1) @ w).min()
    logits = model(pictures).detach()
    margins = logits[:, 0] - logits[:, 1]
    optimum = torch.tensor(
        [
            minimal_distance(w, p, float(m), norm, box=box)
            for p, m in zip(pictures, margins, strict=True)
        ],
        dtype=torch.float64,
    )
    assert bool((margins > 0).all())
    assert bool(optimum.isfinite().all())
    if box:
        free = [minimal_distance(w, p, float(m), norm, box=False)
                for p, m in zip(pictures, margins, strict=True)]  # fmt: skip
        assert bool((optimum > 1.001 * torch.tensor(free)).any())  # the box does matter here
    above = pgd(model, pictures, ZEROS, eps=1.01 * optimum, norm=norm, steps=100)
    below = pgd(model, pictures, ZEROS, eps=0.99 * optimum, norm=norm, steps=100, restarts=2)
    assert above.success.tolist() == [True] * 8
    assert below.success.tolist() == [False] * 8
    assert bool((getattr(above, norm) >= optimum * (1 - 1e-9)).all())


def test_pgd_leaves_by_the_nearest_of_many_classes(generator):
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


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_targeted_attack_reaches_its_target(generator, norm):
    weights = torch.randn(6, 48, generator=generator, dtype=torch.float64)
    model = Linear(weights, torch.zeros(6, dtype=torch.float64))
    pictures = 0.4 + 0.2 * torch.rand(8, 3, 4, 4, generator=generator, dtype=torch.float64)
    aims = (model(pictures).argmax(1) + torch.arange(8) % 5 + 1) % 6
    found = pgd(model, pictures, aims, eps=4.0 if norm == "l2" else 0.4, norm=norm, targeted=True)
    assert bool(found.success.all())
    assert torch.equal(model(found.adversarial).argmax(1), aims)
    assert torch.equal(found.predicted, aims)


def test_a_confident_model_hides_no_gradient():
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


def test_adding_a_constant_to_the_logits_changes_nothing(generator):
    weights = torch.randn(4, 48, generator=generator, dtype=torch.float64)
    pictures = torch.rand(8, 3, 4, 4, generator=generator, dtype=torch.float64)
    labels = (pictures.flatten(1) @ weights.T).argmax(1)
    for norm, eps in (("linf", 0.05), ("l2", 0.3)):
        one, other = (
            pgd(Linear(weights, torch.full((4,), c, dtype=torch.float64)), pictures, labels,
                eps=eps, norm=norm)
            for c in (0.0, 1024.0)
        )  # fmt: skip
        # 1024 costs ten bits of the logits' 52; in L2 the exact ball may then cost 1e-7 of eps.
        torch.testing.assert_close(one.adversarial, other.adversarial, rtol=0, atol=1e-7)
        assert torch.equal(one.success, other.success)
