"""Laws that every search for a smallest change obeys, and how near each comes to what is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from attack_models import Linear, assert_alike, photographs, tiny_model, tiny_net, two_classes
from counted import Counting
from flat_attacks import bisect, ddn, deepfool, fmn, minimal, pgd, sigma_zero, superdeepfool
from oracles.minimal_distances import linear
from oracles.minimal_eps import minimal_eps
from torch import Tensor, nn

from featviz.attacks import half_spaces
from featviz.attacks.minimal import NORMS, plan
from featviz.attacks.projections import vector_norm
from featviz.attacks.result import AttackResult
from featviz.attacks.sigma_zero import changed_pixels
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.pictures import images

SHORT = {
    **{f"minimal-{n}": partial(minimal, norm=n, steps=24) for n in NORMS},
    "minimal-bf16": partial(minimal, norm="l2", steps=24, precision="bfloat16"),
    **{f"fmn-{n}": partial(fmn, norm=n, steps=20) for n in NORMS},
    "ddn": partial(ddn, steps=12),
    "ddn-8bit": partial(ddn, steps=12, levels=256),
    "deepfool-l2": partial(deepfool, steps=8, candidates=4),
    "deepfool-linf": partial(deepfool, norm="linf", steps=8, candidates=4),
    "superdeepfool": partial(superdeepfool, steps=24, candidates=4),
    "sigma-zero": partial(sigma_zero, steps=30),
}
every = pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT.keys())
EXACT = {k: v for k, v in SHORT.items() if "bf16" not in k}
every_exact = pytest.mark.parametrize("attack", EXACT.values(), ids=EXACT.keys())
TARGETED = {k: v for k, v in SHORT.items() if "deepfool" not in k}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return photographs(9)


@pytest.fixture(scope="module")
def labels(model: Model, pictures: Tensor) -> Tensor:
    labels: Tensor = model(pictures).argmax(1)
    return labels


@every
def test_what_is_found_fools_and_is_as_far_as_it_says(
    model: Model, pictures: Tensor, labels: Tensor, attack: Callable[..., AttackResult]
) -> None:
    given = pictures.clone()
    found = attack(model, pictures, labels)
    assert torch.equal(pictures, given)
    changed = found.adversarial
    assert bool(changed.isfinite().all() and (changed >= 0).all() and (changed <= 1).all())
    answers = model(changed).argmax(1)
    assert torch.equal(found.success, answers != labels)
    assert torch.equal(found.predicted, answers)
    assert found.success.float().mean() > 0.7
    size = vector_norm((changed.double() - pictures.double()).flatten(1), found.norm)
    expected = torch.where(found.success, size, torch.inf)
    torch.testing.assert_close(found.distance, expected, rtol=1e-12, atol=0)
    saved = model(images.quantize(changed)).argmax(1)
    assert torch.equal(found.success_8bit, found.success & (saved != labels))


@pytest.mark.parametrize("norm", NORMS)
def test_with_8_bits_each_picture_found_is_one_that_a_file_holds(
    model: Model, pictures: Tensor, labels: Tensor, norm: str
) -> None:
    found = minimal(model, pictures, labels, norm=norm, steps=40, eight_bit=True)
    clean = images.quantize(pictures)
    levels = found.adversarial.double() * 255
    assert float((levels - levels.round()).abs().max()) < 1e-4
    assert torch.equal(found.success, model(found.adversarial).argmax(1) != labels)
    assert torch.equal(found.success, found.success_8bit)
    assert found.success.all()
    size = vector_norm((found.adversarial.double() - clean.double()).flatten(1), norm)
    torch.testing.assert_close(found.distance, size, rtol=1e-12, atol=0)
    free = minimal(model, clean, labels, norm=norm, steps=40).distance
    # Nothing is gained by rounding, and the nearest file is not far: half a level a value.
    assert float((found.distance / free).median()) > 0.99
    grain = {"l0": 0.0, "l1": 1.0, "l2": 16.0 / 255, "linf": 1.5 / 255}[norm]
    assert bool((found.distance <= 1.3 * free + grain).all())


def test_with_8_bits_a_linear_model_falls_at_the_first_level_that_does_it() -> None:
    model, pictures = two_classes(torch.Generator().manual_seed(6))
    model, clean = model.float(), images.quantize(pictures)
    labels = model(clean).argmax(1)
    way = (model.weights[1] - model.weights[0]).sign() * (1 - 2 * labels[:, None])
    found = minimal(model, clean, labels, norm="linf", steps=40, eight_bit=True)
    for i, picture in enumerate(clean):
        for level in range(1, 256):
            moved = (picture + level / 255 * way[i].view_as(picture)).clamp(0, 1)
            if int(model(moved[None]).argmax()) != labels[i]:
                break
        assert float(found.distance[i]) * 255 == pytest.approx(level, abs=1e-3)  # float32 values


@pytest.mark.numeric
@every_exact
def test_a_picture_does_not_depend_on_the_others(
    pictures: Tensor, attack: Callable[..., AttackResult]
) -> None:
    exact, pictures = tiny_model().double(), pictures.double()
    labels = exact(pictures).argmax(1)
    whole = attack(exact, pictures, labels, batch_size=4)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    assert_alike(whole[order], attack(exact, pictures[order], labels[order], batch_size=4))
    for part in (slice(0, 1), slice(2, 7)):
        assert_alike(whole[part], attack(exact, pictures[part], labels[part], batch_size=3))


@pytest.mark.numeric
@every_exact
def test_what_is_wrong_already_is_at_distance_0_and_costs_one_pass(
    pictures: Tensor, labels: Tensor, attack: Callable[..., AttackResult]
) -> None:
    model, pictures = tiny_model().double(), pictures.double()
    some = labels.clone()
    some[[1, 4]] = (some[[1, 4]] + 1) % 5
    found = attack(model, pictures, some, batch_size=4)
    assert found.already.nonzero().flatten().tolist() == [1, 4]
    assert found.distance[[1, 4]].tolist() == [0.0, 0.0]
    assert found.forwards[[1, 4]].tolist() == [1, 1]
    assert found.backwards[[1, 4]].tolist() == [0, 0]
    assert torch.equal(found.adversarial[[1, 4]], pictures[[1, 4]])
    others = [0, 2, 3, 5, 6, 7, 8]
    kept = attack(model, pictures, labels, batch_size=4)
    assert torch.equal(kept.success[others], found.success[others])
    known = attack(model, pictures, some, batch_size=4, clean=model(pictures))
    torch.testing.assert_close(known.adversarial, found.adversarial, rtol=1e-9, atol=1e-9)
    assert bool((known.forwards <= found.forwards).all())
    assert known.forwards[[1, 4]].tolist() == [0, 0]


@pytest.mark.parametrize("attack", TARGETED.values(), ids=TARGETED.keys())
def test_a_target_is_reached(
    model: Model, pictures: Tensor, labels: Tensor, attack: Callable[..., AttackResult]
) -> None:
    aims = (labels + 1 + torch.arange(9) % 4) % 5
    found = attack(model, pictures, aims, targeted=True)
    assert torch.equal(found.success, model(found.adversarial).argmax(1) == aims)
    assert int(found.success.sum()) >= 5


@pytest.mark.parametrize("attack", [SHORT["minimal-l1"], SHORT["fmn-l2"], SHORT["superdeepfool"]])
def test_channels_last_and_strided_pictures_give_the_same(
    model: Model, pictures: Tensor, labels: Tensor, attack: Callable[..., AttackResult]
) -> None:
    plain = attack(model, pictures, labels)
    last = pictures.contiguous(memory_format=torch.channels_last)
    wide = pictures.repeat_interleave(2, -1)[..., ::2]
    for other in (last, wide):
        assert torch.equal(plain.adversarial, attack(model, other, labels).adversarial)


@pytest.mark.parametrize("fail_at", [0, 1, 5])
@every
def test_the_model_and_the_random_state_are_found_as_they_were(
    pictures: Tensor, attack: Callable[..., AttackResult], fail_at: int | None
) -> None:
    net = tiny_net()
    labels = tiny_net().eval()(pictures[:3]).argmax(1)
    model = Counting(net, fail_at).train()
    net[1].eval()
    net[4].weight.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    wanted = [p.requires_grad for p in model.parameters()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.get_rng_state()
    if fail_at:
        with pytest.raises(RuntimeError, match="gave up"):
            attack(model, pictures[:3], labels, batch_size=2)
    else:
        attack(model, pictures[:3], labels, batch_size=2)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def linear_case(generator: torch.Generator, count: int = 6) -> tuple[Linear, Tensor, Tensor]:
    weights = torch.randn(5, 48, generator=generator, dtype=torch.float64)
    pictures = torch.rand(count, 3, 4, 4, generator=generator, dtype=torch.float64)
    pictures = (1.3 * pictures - 0.15).clamp(0, 1)
    bias = -(weights @ torch.full((48,), 0.5, dtype=torch.float64))
    model = Linear(weights, bias)
    return model, pictures, model(pictures).argmax(1)


NEAR = {
    **{f"fmn-{n}": (partial(fmn, norm=n, steps=200), 1.01) for n in ("l2", "linf")},
    "fmn-l1": (partial(fmn, norm="l1", steps=200), 1.25),  # slow to empty what it has spread
    "fmn-l0": (partial(fmn, norm="l0", steps=200), 1.35),
    "ddn": (partial(ddn, steps=200), 1.15),  # its loss mixes all other classes, not the nearest
    "deepfool-l2": (deepfool, 1.03),
    "deepfool-l1": (partial(deepfool, norm="l1"), 1.03),
    "deepfool-linf": (partial(deepfool, norm="linf"), 1.03),
    "superdeepfool": (superdeepfool, 1.01),
    "sigma-zero": (partial(sigma_zero, steps=300), 1.35),
}


@pytest.mark.parametrize(("attack", "within"), NEAR.values(), ids=NEAR.keys())
def test_the_published_methods_come_near_a_linear_optimum(
    generator: torch.Generator, attack: Callable[..., AttackResult], within: float
) -> None:
    model, pictures, labels = linear_case(generator)
    found = attack(model, pictures, labels)
    exact = np.array(
        [
            linear(
                model.weights.detach().numpy(),
                model.bias.detach().numpy(),
                x.flatten().numpy(),
                int(y),
                found.norm,
            )
            for x, y in zip(pictures, labels, strict=True)
        ]
    )
    ratio = found.distance.numpy() / exact
    assert ratio.min() >= 1 - 1e-9
    assert ratio.max() <= within


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("change", ["constant", "1e3", "1e-3"])
def test_neither_a_constant_nor_a_factor_on_the_logits_matters(
    generator: torch.Generator, norm: str, change: str
) -> None:
    model, pictures, labels = linear_case(generator)
    factor, constant = {"constant": (1.0, 1024.0), "1e3": (1e3, 0.0), "1e-3": (1e-3, 0.0)}[change]
    other = Linear(factor * model.weights.data, factor * model.bias.data + constant)
    one = minimal(model, pictures, labels, norm=norm, steps=30)
    two = minimal(other, pictures, labels, norm=norm, steps=30)
    torch.testing.assert_close(one.distance, two.distance, rtol=1e-6, atol=0)


@pytest.mark.parametrize("steps", [10, 24, 77])
@pytest.mark.parametrize("norm", ["l0", "l2"])
def test_no_picture_costs_more_than_it_may(
    model: Model, pictures: Tensor, labels: Tensor, steps: int, norm: str
) -> None:
    found = minimal(model, pictures[:3], labels[:3], norm=norm, steps=steps, batch_size=2)
    assert int(found.forwards.max()) <= steps
    assert int(found.backwards.max()) <= steps
    assert int(found.forwards.min()) >= steps - 1
    assert plan(steps).passes == steps - 1


@pytest.mark.slow
def test_more_steps_find_no_larger_changes_on_the_whole(
    model: Model, pictures: Tensor, labels: Tensor
) -> None:
    for norm in NORMS:
        few, many = (
            minimal(model, pictures, labels, norm=norm, steps=s, batch_size=9) for s in (12, 50)
        )
        assert float(many.distance.mean()) <= float(few.distance.mean()) * (1 + 1e-9)


def test_a_gradient_of_0_is_counted_and_leaves_the_picture_standing() -> None:
    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rounded = (x * 0).sum((1, 2, 3))
            return torch.stack([rounded + 1, rounded], 1)

    pictures = photographs(2)
    for attack in (SHORT["minimal-l2"], SHORT["minimal-l0"], SHORT["fmn-linf"], SHORT["ddn"]):
        found = attack(Blind(), pictures, torch.zeros(2, dtype=torch.long))
        assert not found.success.any()
        assert bool(found.distance.isinf().all())
        assert bool((found.zero_gradients > 0).all())
        assert bool(found.adversarial.isfinite().all())


def test_bisection_shortens_what_another_attack_has_found(
    model: Model, pictures: Tensor, labels: Tensor
) -> None:
    start = pgd(model, pictures, labels, eps=0.2, steps=5)
    assert start.success.all()
    for norm in ("l2", "linf", "l1"):
        found = bisect(model, pictures, labels, start.adversarial, norm=norm, steps=12)
        before = vector_norm((start.adversarial.double() - pictures.double()).flatten(1), norm)
        assert bool((found.distance <= before).all())
        assert not found.backwards.any()
        # A point a little nearer to the picture on the same segment fools no more.
        nearer = pictures + (1 - 1e-2) * (found.adversarial - pictures)
        moved = (found.distance < 0.99 * before) & (found.distance > before / 100)
        assert moved.any()
        assert bool((model(nearer).argmax(1) == labels)[moved].all())


def test_bisection_from_what_does_not_fool_finds_nothing(
    model: Model, pictures: Tensor, labels: Tensor
) -> None:
    found = bisect(model, pictures, labels, pictures)
    assert not found.success.any()
    assert bool(found.distance.isinf().all())


def test_the_smallest_eps_of_a_budgeted_attack_meets_the_linear_optimum(
    generator: torch.Generator,
) -> None:
    model, pictures = two_classes(generator)
    labels = torch.zeros(len(pictures), dtype=torch.long)

    def attack(rows: Tensor, eps: Tensor) -> Tensor:
        return pgd(model, pictures[rows], labels[rows], eps=eps, steps=20).distance

    found = minimal_eps(attack, len(pictures), largest=0.5)
    weights, bias = model.weights.detach().numpy(), model.bias.detach().numpy()
    exact = [linear(weights, bias, x.flatten().numpy(), 0, "linf") for x in pictures]
    ratio = found.numpy() / np.array(exact)
    assert ratio.min() >= 1 - 1e-9
    assert ratio.max() <= 1.01


def test_who_stands_at_the_largest_eps_is_not_asked_again() -> None:
    asked = []

    def attack(rows: Tensor, eps: Tensor) -> Tensor:
        asked.append(rows.tolist())
        return torch.where(rows == 1, torch.inf, torch.where(eps >= 0.3, eps, torch.inf))

    found = minimal_eps(attack, 3, largest=1.0, steps=8)
    assert found[1] == torch.inf
    assert all(1 not in rows for rows in asked[1:])
    assert bool((found[[0, 2]] >= 0.3).all() and (found[[0, 2]] <= 0.3 + 2**-8).all())


def test_changed_pixels_are_counted_once() -> None:
    clean = torch.zeros(2, 3, 2, 2)
    changed = clean.clone()
    changed[0, :, 0, 0] = 1
    changed[0, 1, 1, 1] = 0.5
    assert changed_pixels(clean, changed).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, y: minimal(m, x, y, norm="l3"), "unknown norm 'l3'"),
        (
            lambda m, x, y: minimal(m, x, y, norm="l2", steps=5),
            "steps is 5; it must be a whole number, 10 to",
        ),
        (lambda m, x, y: minimal(m, x * 255, y, norm="l2"), "must lie in"),
        (lambda m, x, y: minimal(m, x, y[:2], norm="l2"), "labels must be 9"),
        (lambda m, x, y: fmn(m, x, y, norm="l2", shrink=1.0), "shrink is 1.0"),
        (
            lambda m, x, y: fmn(m, x, y, norm="l2", first_step=0.0),
            "first_step is 0.0; it must be a number, above 0",
        ),
        (lambda m, x, y: ddn(m, x, y, levels=1), "levels is 1"),
        (lambda m, x, y: deepfool(m, x, y, norm="l0"), "unknown norm 'l0'"),
        (lambda m, x, y: deepfool(m, x, y, candidates=1), "candidates is 1"),
        (lambda m, x, y: sigma_zero(m, x, y, steps=0), "steps is 0"),
        (lambda m, x, y: bisect(m, x, y, x[:2]), "must have the pictures' shape"),
        (lambda m, x, y: minimal_eps(lambda r, e: e, 3, largest=0.0), "above 0"),
        (lambda m, x, y: minimal_eps(lambda r, e: e[:1], 3, largest=1.0), "as many distances"),
    ],
)
def test_mistakes_are_told_in_one_line(
    model: Model, pictures: Tensor, labels: Tensor, call: Callable[..., object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        call(model, pictures, labels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("levels", [0, 4], ids=["all different", "many equal"])
def test_choosing_the_steepest_gives_what_putting_all_in_order_gives(
    levels: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient = torch.randn(8, 5000, generator=generator)
    if levels:
        gradient = (gradient * levels).round() / levels
    pictures = torch.rand(8, 5000, generator=generator)
    bound = -torch.logspace(-1, 4, 8, dtype=torch.float64)  # the last are out of reach
    found = half_spaces.nearest("l1", gradient, bound, -pictures, 1 - pictures)
    monkeypatch.setattr(half_spaces, "_FEW", 5000)
    want = half_spaces.nearest("l1", gradient, bound, -pictures, 1 - pictures)
    assert torch.equal(found, want)


@pytest.mark.parametrize("norm", NORMS)
def test_batches_of_different_lengths_do_not_disturb_each_other(
    norm: str, generator: torch.Generator
) -> None:
    model, pictures, labels = linear_case(generator, count=8)
    wrong = torch.tensor([0, 1, 2, 7])  # one picture of the first batch is left, then three
    labels[wrong] = (labels[wrong] + 1) % 5
    together = minimal(model, pictures, labels, norm=norm, steps=20, batch_size=1)
    alone = [
        minimal(model, pictures[i : i + 1], labels[i : i + 1], norm=norm, steps=20, batch_size=1)
        for i in range(8)
    ]
    want = torch.cat([one.distance for one in alone])
    torch.testing.assert_close(together.distance, want, rtol=1e-6, atol=1e-9)
