"""Universal perturbations and patches: exact balls, honest rates, closed forms."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from attack_models import Linear, photographs, tiny_model
from torch import Tensor

from featviz import results
from featviz.attacks.held_out import batches_of
from featviz.attacks.patch import Places, drawn_places, lay, patch
from featviz.attacks.patch_result import outline
from featviz.attacks.universal import into_ball, perturbation_gradient, universal
from featviz.attacks.universal_result import UniversalPerturbation
from featviz.errors import UserError
from featviz.models.model import Model

QUICK: dict[str, Any] = {"steps": 12, "pictures_per_step": 8, "batch_size": 4}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return photographs(24, seed=8)


@pytest.fixture(scope="module")
def made(model: Model, pictures: Tensor) -> UniversalPerturbation:
    return universal(model, pictures, torch.arange(24) % 5, eps=0.15, **QUICK)


def linear_model() -> Model:
    """Two classes; the second one's logit lies below by 2 to 4 on pictures round mid-grey."""
    generator = torch.Generator().manual_seed(2)
    weights = torch.zeros(2, 3 * 8 * 8)
    weights[1] = torch.randn(3 * 8 * 8, generator=generator)
    bias = torch.tensor([float(0.5 * weights[1].sum()) + 3.0, 0.0])
    return Model(
        Linear(weights, bias), name="linear", preprocessing=8, classes=[("", "left"), ("", "right")]
    )


def slope(model: Model) -> Tensor:
    """Gradient of the second logit less the first."""
    assert isinstance(model.net, Linear)
    return (model.net.weights[1] - model.net.weights[0]).detach()


def grey(count: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return 0.5 + 0.02 * torch.randn(count, 3, 8, 8, generator=generator)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [1e-3, 10 / 255, 0.3, 1.0])
def test_v_lies_in_its_ball_exactly(model: Model, pictures: Tensor, norm: str, eps: float) -> None:
    found = universal(model, pictures, eps=eps, norm=norm, steps=6, pictures_per_step=8)
    v = found.perturbation.double()
    size = float(v.abs().max()) if norm == "linf" else float(v.norm())
    assert size <= eps
    assert size > 0.5 * eps


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_bringing_into_the_ball_leaves_what_is_inside(norm: str) -> None:
    v = torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(0))
    size = float(v.double().abs().max() if norm == "linf" else v.double().norm())
    assert torch.equal(into_ball(v, size * 1.01, norm), v)
    shrunk = into_ball(v, size / 3, norm).double()
    now = float(shrunk.abs().max() if norm == "linf" else shrunk.norm())
    assert size / 3 * (1 - 1e-5) < now <= size / 3


def test_eps_0_changes_nothing(model: Model, pictures: Tensor) -> None:
    labels = torch.arange(24) % 5
    found = universal(model, pictures, labels, eps=0.0, **QUICK)
    assert not found.perturbation.any()
    assert found.backwards == 0
    for what in ("universal", "shuffled", "noise"):
        assert torch.equal(found.predicted[what], found.clean)
    assert found.accuracy("universal") == found.accuracy()


def test_on_a_linear_model_it_is_the_closed_form_in_both_norms() -> None:
    model, x = linear_model(), grey()
    w = (slope(model)).view(3, 8, 8)
    for norm, eps in (("linf", 0.05), ("l2", 0.4)):
        found = universal(model, x, eps=eps, norm=norm, steps=30, pictures_per_step=4)
        best = eps * w.sign() if norm == "linf" else eps * w / w.norm()
        torch.testing.assert_close(found.perturbation, best, rtol=0, atol=1e-5)


def test_a_linear_model_falls_exactly_when_the_margin_is_below_eps_times_the_dual_norm() -> None:
    model, x = linear_model(), grey()
    w = slope(model)
    logits = model(x)
    margins = ((logits[:, 0] - logits[:, 1]) / w.abs().sum()).detach()
    for eps in margins.sort().values[[2, 8]].tolist():
        found = universal(model, x, eps=eps * 1.001, steps=30, pictures_per_step=4)
        rows = [int(name.split()[1]) - 1 for name in found.names]
        fallen = found.predicted["universal"] != found.clean
        assert fallen.tolist() == [float(margins[i]) < eps * 1.001 for i in rows]


def test_rates_are_those_counted_again_on_pictures_it_was_not_made_from(
    model: Model, pictures: Tensor, made: UniversalPerturbation
) -> None:
    rows = [int(name.split()[1]) - 1 for name in made.names]
    assert len(rows) == 12
    assert made.trained_on == 12
    assert len(set(rows)) == 12
    held = pictures[rows]
    clean = model(held).argmax(1)
    answers = model((held + made.perturbation).clamp(0, 1)).argmax(1)
    assert torch.equal(made.clean, clean)
    assert torch.equal(made.predicted["universal"], answers)
    assert made.rate().hits == int((answers != clean).sum())
    labels = (torch.arange(24) % 5)[rows]
    accuracy = made.accuracy("universal")
    assert accuracy is not None
    assert accuracy.hits == int((answers == labels).sum())
    others = [i for i in range(24) if i not in rows]
    moved = model((pictures[others] + made.perturbation).clamp(0, 1)).argmax(1)
    fooled = int((moved != model(pictures[others]).argmax(1)).sum())
    assert made.training_share.hits == fooled


@pytest.mark.parametrize("clip", [math.inf, 1.3])
def test_a_step_follows_autograd_through_the_clipped_sum_and_the_clipped_loss(
    model: Model, pictures: Tensor, clip: float
) -> None:
    labels = model(pictures).argmax(1)
    v = 0.4 * torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(1))
    leaf = v.clone().requires_grad_(True)
    moved = pictures + leaf
    assert bool((moved < 0).any() and (moved > 1).any())
    logits = model(moved.clamp(0, 1)).double()
    own = torch.nn.functional.one_hot(labels, 5).bool()
    value = logits.masked_fill(own, -math.inf).logsumexp(1) - logits[own]
    assert clip == math.inf or 0 < int((value > clip).sum()) < 24
    (expected,) = torch.autograd.grad(value.clamp(max=clip).sum(), leaf)
    with torch.no_grad():
        gradient, won = perturbation_gradient(model, pictures, v, labels, clip=clip, batch_size=5)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    assert float(won) == pytest.approx(float((logits.argmax(1) != labels).double().mean()))


def test_it_beats_noise_and_its_own_pixels_shuffled(made: UniversalPerturbation) -> None:
    assert made.rate().hits > made.rate("noise").hits
    assert made.rate().hits > made.rate("shuffled").hits


def test_the_same_seed_gives_the_same_bytes_and_disturbs_nothing(
    model: Model, pictures: Tensor, made: UniversalPerturbation
) -> None:
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    again = universal(model, pictures, torch.arange(24) % 5, eps=0.15, **QUICK)
    assert torch.equal(again.perturbation, made.perturbation)
    other = universal(model, pictures, eps=0.15, seed=1, **QUICK)
    assert not torch.equal(other.perturbation, made.perturbation)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_a_target_is_reached_and_those_that_are_there_do_not_count(
    model: Model, pictures: Tensor
) -> None:
    clean = model(pictures).argmax(1)
    target = int(clean.bincount(minlength=5).argmax())
    found = universal(model, pictures, eps=0.3, target=target, **QUICK)
    there = found.clean == target
    assert found.rate().n == int((~there).sum())
    hits = (found.predicted["universal"] == target) & ~there
    assert found.rate().hits == int(hits.sum()) > 0


def test_every_picture_is_met_once_before_any_is_met_twice() -> None:
    rows = torch.tensor([3, 5, 8, 9, 11, 12])
    order = batches_of(rows, 4, 9, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in order] == [4] * 9
    drawn = torch.cat(order).tolist()
    for start in range(0, 36, 6):
        assert sorted(drawn[start : start + 6]) == rows.tolist()


def test_the_folder_holds_the_perturbation_and_every_answer(
    made: UniversalPerturbation, tmp_path: Path
) -> None:
    import numpy as np

    document = results.read_result(made.save(tmp_path / "run"))
    assert document["kind"] == "universal"
    stored = np.load(tmp_path / "run" / "perturbation.npz")["perturbation"]
    assert np.array_equal(stored, made.perturbation.numpy())
    with (tmp_path / "run" / "pictures.csv").open() as file:
        rows = list(csv.DictReader(file))
    fooled = sum(row["universal"] != row["clean"] for row in rows)
    assert fooled / len(rows) == document["numbers"]["fooling rate"]["value"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"eps": 10.0}, "10/255"),
        ({"norm": "l1"}, "unknown norm"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"steps": 0}, "steps is 0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"target": "kund 3"}, "did you mean"),
    ],
)
def test_mistakes_are_told_in_a_line(
    model: Model, pictures: Tensor, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        universal(model, pictures, **arguments)
    with pytest.raises(UserError, match="2 pictures"):
        universal(model, pictures[:1])


class Stops(Exception):
    """The run is stopped."""


@pytest.mark.parametrize("kind", ["universal", "patch"])
def test_stopped_and_made_again_it_ends_with_the_same_bytes(
    model: Model, pictures: Tensor, tmp_path: Path, kind: str
) -> None:
    make = universal if kind == "universal" else patch
    options: dict[str, Any] = {"steps": 24, "pictures_per_step": 6, "batch_size": 4}
    whole = make(model, pictures, **options)

    def stop(done: int, total: int, text: str) -> None:
        if done == 15:
            raise Stops

    folder = tmp_path / "run.partial"
    with pytest.raises(Stops):
        make(model, pictures, **options, checkpoint=folder, progress=stop)
    steps: list[int] = []
    again = make(
        model, pictures, **options, checkpoint=folder, progress=lambda d, t, w: steps.append(d)
    )
    assert steps[0] == 11  # ten steps were kept
    made = "perturbation" if kind == "universal" else "patch"
    assert torch.equal(getattr(again, made), getattr(whole, made))
    assert torch.equal(again.trace, whole.trace)
    with pytest.raises(UserError, match="another command"):
        make(model, pictures, **(options | {"steps": 30}), checkpoint=folder)


# Patches.


def test_a_patch_without_turn_on_whole_pixels_is_pasted_as_it_is() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 3, 16, 16, generator=generator, dtype=torch.float64)
    sticker = torch.rand(3, 4, 4, generator=generator, dtype=torch.float64)
    places = Places(
        *(
            torch.tensor(v, dtype=torch.float64)
            for v in ([0.25, 0.25], [0.0, 90.0], [0.25, 0.5], [0.5, 0.75])
        )
    )
    laid = lay(x, sticker, "square", places)
    expected = x.clone()
    expected[0, :, 6:10, 2:6] = sticker
    expected[1, :, 10:14, 6:10] = sticker.rot90(-1, (1, 2))
    torch.testing.assert_close(laid, expected, rtol=0, atol=1e-12)
    untouched = (laid == x).all(1)
    assert int(untouched.sum()) >= 2 * (256 - 36)


@pytest.mark.parametrize("shape", ["circle", "square"])
def test_places_hold_the_whole_patch(shape: str) -> None:
    stream = torch.Generator().manual_seed(0)
    places = drawn_places(60, 0.2, 0.45, 45.0, shape, [stream])
    black, white = torch.zeros(60, 3, 96, 96), torch.ones(3, 64, 64)
    covered = lay(black, white, shape, places)[:, 0]
    area = places.size**2 * (math.pi / 4 if shape == "circle" else 1) * 96 * 96
    if shape == "circle":  # the soft edge takes a little
        area = area * float(outline("circle", 512).mean()) / (math.pi / 4)
    torch.testing.assert_close(covered.sum((1, 2)).double(), area, rtol=0.04, atol=0)
    assert float(places.size.min()) >= 0.2
    assert float(places.size.max()) <= 0.45
    assert float(places.angle.abs().max()) <= 45


def test_a_patch_is_judged_on_other_pictures_beside_noise_at_the_same_places(
    model: Model, pictures: Tensor
) -> None:
    target = int(model(pictures).argmax(1).bincount(minlength=5).argmin())
    found = patch(
        model,
        pictures,
        target=target,
        steps=25,
        pictures_per_step=6,
        sizes=(0.4, 0.6),
        batch_size=4,
    )
    assert bool(((found.patch >= 0) & (found.patch <= 1)).all())
    assert found.predicted.shape == found.noise_predicted.shape == (5, 12)
    assert found.sizes == (0.2, 0.4, 0.4667, 0.5333, 0.6)
    best = max(range(5), key=lambda k: found.rate(k).hits)
    assert found.rate(best).hits > found.rate(best, noise=True).hits
    there = found.clean == target
    hits = (found.predicted[best] == target) & ~there
    assert (found.rate(best).hits, found.rate(best).n) == (int(hits.sum()), int((~there).sum()))
    again = patch(
        model,
        pictures,
        target=target,
        steps=25,
        pictures_per_step=6,
        sizes=(0.4, 0.6),
        batch_size=4,
    )
    assert torch.equal(again.patch, found.patch)
    assert torch.equal(again.predicted, found.predicted)
    answers = model(found.examples).argmax(1)
    assert torch.equal(answers, found.predicted[found.shown_size][list(found.shown)])


def test_a_patch_leaves_model_and_random_state_and_can_be_saved(
    model: Model, pictures: Tensor, tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    found = patch(model, pictures, steps=3, pictures_per_step=6, shape="square")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    document = results.read_result(found.save(tmp_path / "run"))
    assert document["kind"] == "adversarial-patch"
    assert {f["file"] for f in document["figures"]} == {"pictures.svg", "rates.svg", "patch.png"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"shape": "star"},
        {"sizes": (0.5, 0.2)},
        {"sizes": (0.5, 0.9)},
        {"rotation": 200.0},
        {"steps": 0},
    ],
)
def test_a_patch_of_no_sense_is_refused(
    model: Model, pictures: Tensor, arguments: dict[str, Any]
) -> None:
    with pytest.raises(UserError):
        patch(model, pictures, **arguments)
