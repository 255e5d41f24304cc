"""Each fault of a model, and each failure of an attack, has a check of its own."""

from __future__ import annotations

import math

import pytest
import torch
from attack_models import OWN_CHECK, broken_model, photographs, tiny_model, two_classes

from featviz.models.frozen import frozen
from featviz.robustness.masking import (
    SLOPE_STEP,
    Evidence,
    Probe,
    attack_checks,
    late_gain,
    margin_gradient,
    model_checks,
    probe,
    silent_success,
)

CLEAN = Evidence(
    tried=100,
    one_step_only=0,
    black_box_tried=40,
    black_box_only=0,
    unbounded_tried=100,
    unbounded_failed=0,
    noise_only=0,
    zero_steps=0,
    silent=0,
    late=0.0,
    unconfirmed=0,
)


def seen(kind: str) -> Probe:
    model = broken_model(kind)
    pictures = photographs(20)
    labels = tiny_model()(pictures).argmax(1)
    with frozen(model):
        return probe(model, pictures, labels, batch_size=8)


@pytest.mark.parametrize("kind", sorted(OWN_CHECK))
def test_every_fault_flags_its_own_check(kind: str) -> None:
    flagged = {check.name for check in model_checks(seen(kind)) if check.flagged}
    assert OWN_CHECK[kind] in flagged
    if kind in {"scaled", "softmax", "detached"}:  # these break nothing else
        assert flagged <= {OWN_CHECK[kind], "zero gradients"}


def test_a_healthy_model_flags_nothing() -> None:
    assert [c.warning for c in model_checks(seen("healthy")) if c.flagged] == []
    assert seen("healthy").forwards == 20 * 15


def test_a_flagged_check_says_what_where_and_what_to_do() -> None:
    check = next(c for c in model_checks(seen("quantised")) if c.name == "quantized input")
    assert check.value == 1.0
    assert check.warning.startswith("quantized input: share of pictures whose logits do not change")
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


@pytest.mark.numeric
def test_pictures_do_not_mix_in_the_probe() -> None:
    model, pictures = tiny_model().double(), photographs(9).double()
    labels = model(pictures).argmax(1)
    with frozen(model):
        whole = probe(model, pictures, labels, batch_size=9)
        order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
        again = probe(model, pictures[order], labels[order], batch_size=4)
    assert again.slope == pytest.approx(whole.slope, rel=1e-9)
    assert again.unstable == pytest.approx(whole.unstable, rel=1e-9)
    assert again.margin == pytest.approx(whole.margin, rel=1e-9)
    assert (again.zero, again.stepped, again.randomised) == (0, 0, 0)


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


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"one_step_only": 5}, "one step stronger than many"),
        ({"black_box_only": 5}, "black box stronger than white box"),
        ({"unbounded_failed": 5}, "unbounded attack below 100%"),
        ({"noise_only": 5}, "random noise successful"),
        ({"zero_steps": 5}, "zero gradients during the attack"),
        ({"silent": 1}, "silent success"),
        ({"late": 0.2}, "incomplete optimization"),
        ({"unconfirmed": 5}, "transfer failure"),
    ],
)
def test_every_failure_of_an_attack_flags_its_own_check_alone(
    fields: dict[str, float], name: str
) -> None:
    checks = attack_checks(Evidence(**{**CLEAN.__dict__, **fields}))
    assert [c.name for c in checks if c.flagged] == [name]


def test_attacks_without_failure_flag_nothing_and_a_single_picture_is_allowed() -> None:
    assert not any(c.flagged for c in attack_checks(CLEAN))
    single = Evidence(**{**CLEAN.__dict__, "noise_only": 1, "one_step_only": 1})
    assert not any(c.flagged for c in attack_checks(single))
    nothing = Evidence(0, 0, 0, 0, 0, 0, 0, 0, 0, None, 0)
    assert not any(c.flagged for c in attack_checks(nothing))
    assert all(c.value is None for c in attack_checks(nothing))
