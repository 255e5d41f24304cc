"""Each fault of a model, and each failure of an attack, has a check of its own that trips."""

from __future__ import annotations

import math

import pytest
import torch
from attack_models import broken_model, photographs, tiny_model, two_classes

from featviz.models.frozen import frozen
from featviz.robustness.masking import (
    SLOPE_STEP,
    Evidence,
    attack_checks,
    late_gain,
    margin_gradient,
    model_checks,
    not_confirmed,
    probe,
    silent_success,
)

OWN_CHECK = {
    "quantised": "quantised input",
    "shattered": "shattered gradients",
    "stochastic": "stochastic model",
    "detached": "detached model",
    "scaled": "enormous logits",
    "softmax": "probabilities instead of logits",
    "undefined": "undefined gradients",
}

CLEAN = Evidence(
    tried=100,
    one_step_only=0,
    black_box_tried=40,
    black_box_only=0,
    unlimited_tried=100,
    unlimited_standing=0,
    noise_only=0,
    zero_steps=0,
    silent=0,
    late=0.0,
    unconfirmed=0,
)


def seen(kind: str):
    model = broken_model(kind)
    pictures = photographs(20)
    labels = tiny_model()(pictures).argmax(1)
    with frozen(model):
        return probe(model, pictures, labels, batch_size=8)


@pytest.mark.parametrize("kind", sorted(OWN_CHECK))
def test_every_fault_trips_its_own_check(kind: str) -> None:
    tripped = {check.name for check in model_checks(seen(kind)) if check.tripped}
    assert OWN_CHECK[kind] in tripped
    if kind in {"scaled", "softmax", "detached"}:  # these break nothing else
        assert tripped <= {OWN_CHECK[kind], "zero gradients"}


def test_a_healthy_model_trips_nothing() -> None:
    assert [c.warning for c in model_checks(seen("healthy")) if c.tripped] == []
    assert seen("healthy").forwards == 20 * 15


def test_a_tripped_check_says_what_where_and_what_to_do() -> None:
    check = next(c for c in model_checks(seen("quantised")) if c.name == "quantised input")
    assert check.value == 1.0
    assert check.warning.startswith("quantised input: share of pictures whose logits do not move")
    assert "(1, limit 0.1)" in check.warning
    assert "attack a copy without the rounding" in check.warning


def test_the_slope_of_a_linear_model_is_one_and_its_gradient_the_weights(
    generator: torch.Generator,
) -> None:
    net, pictures = two_classes(generator)
    labels, others = torch.zeros(8, dtype=torch.long), torch.ones(8, dtype=torch.long)
    with frozen(net):
        found = probe(net, pictures, labels, batch_size=3)
        gradient, reason = margin_gradient(net, pictures, labels, others, batch_size=3)
    assert found.slope == pytest.approx(1.0, abs=1e-8)
    assert reason == ""
    w = net.weights[1] - net.weights[0]
    assert torch.allclose(gradient.flatten(1), w.detach().expand(8, -1))
    # I2 in closed form: uniform moves of ±r give the margin a mean |change| that w decides.
    assert 0 < found.unstable < 0.5


def test_the_probe_does_not_depend_on_the_batch() -> None:
    model, pictures = tiny_model(), photographs(9)
    labels = model(pictures).argmax(1)
    with frozen(model):
        whole = probe(model, pictures, labels, batch_size=4)
        order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
        again = probe(model, pictures[order], labels[order], batch_size=4)
    assert again == whole or again.unstable == pytest.approx(whole.unstable, rel=1e-12)


def test_the_step_of_the_slope_is_smaller_than_what_a_picture_can_hold() -> None:
    assert SLOPE_STEP < 0.5 / 255


def test_a_success_on_the_way_that_was_not_kept_is_silent() -> None:
    nan = math.nan
    trace = torch.tensor([[-1, 0.5, -0.2], [-1, -0.5, -0.2], [-1, 0.5, 0.7], [-1, 0.2, nan]])
    success = torch.tensor([False, False, True, False])
    assert silent_success(trace, success).tolist() == [True, False, False, True]


def test_the_gain_of_the_last_steps_is_measured_on_the_best_so_far() -> None:
    steps = torch.arange(21.0)
    straight, early, falling = steps - 30, (steps / 5).clamp(max=1) - 2, -steps - 1
    trace = torch.stack([straight, early, falling])
    assert late_gain(trace, 10).tolist() == pytest.approx([0.5, 0.0, 0.0])
    ended = torch.full((1, 40), math.nan)
    ended[0, :21] = straight
    assert float(late_gain(ended, 10)) == pytest.approx(0.5)
    assert float(late_gain(straight[None, :8], 10)) == 0.0
    scaled = late_gain(1000 * trace - 5, 10)
    assert torch.allclose(scaled, late_gain(trace, 10))


def test_what_the_judge_does_not_confirm_is_a_failed_transfer() -> None:
    found = torch.tensor([True, True, False])
    judged = torch.tensor([True, False, False])
    assert not_confirmed(found, judged).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"one_step_only": 5}, "one step stronger than many"),
        ({"black_box_only": 5}, "black box stronger than white box"),
        ({"unlimited_standing": 5}, "unlimited eps below 100%"),
        ({"noise_only": 5}, "random noise successful"),
        ({"zero_steps": 5}, "zero gradients on the way"),
        ({"silent": 1}, "silent success"),
        ({"late": 0.2}, "incomplete optimisation"),
        ({"unconfirmed": 5}, "transfer failure"),
    ],
)
def test_every_failure_of_an_attack_trips_its_own_check_alone(fields, name: str) -> None:
    checks = attack_checks(Evidence(**{**CLEAN.__dict__, **fields}))
    assert [c.name for c in checks if c.tripped] == [name]


def test_attacks_without_failure_trip_nothing_and_single_pictures_are_forgiven() -> None:
    assert not any(c.tripped for c in attack_checks(CLEAN))
    single = Evidence(**{**CLEAN.__dict__, "noise_only": 1, "one_step_only": 1})
    assert not any(c.tripped for c in attack_checks(single))
    nothing = Evidence(0, 0, 0, 0, 0, 0, 0, 0, 0, None, 0)
    assert not any(c.tripped for c in attack_checks(nothing))
    assert all(c.value is None for c in attack_checks(nothing))
