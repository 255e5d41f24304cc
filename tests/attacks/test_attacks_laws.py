"""Laws that every attack obeys, on a small net with convolutions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from attack_models import TENSORS, assert_alike, photographs, tiny_model, tiny_net
from counted import Counting
from flat_attacks import (
    apgd,
    apgd_targeted,
    bim,
    ensemble,
    fgsm,
    mi_fgsm,
    minimal,
    noise,
    pgd,
    square,
)
from torch import Tensor

import featviz
from featviz.attacks import projections
from featviz.attacks.apgd import towards_all
from featviz.attacks.attack import attack
from featviz.attacks.external import external_attack
from featviz.attacks.options import AttackOptions, Classifier
from featviz.attacks.result import AttackResult
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.pictures import images
from featviz.pictures.preprocessing import Preprocessing

EPS = {"linf": 8 / 255, "l2": 0.6, "l1": 8.0}
KINDS: dict[str, Callable[..., AttackResult]] = {
    "fgsm": fgsm,
    "bim": bim,
    "pgd": partial(pgd, steps=6, restarts=2, seed=5),
    "mi-fgsm": partial(mi_fgsm, steps=6),
    "apgd-ce": partial(apgd, steps=12, seed=5),
    "apgd-dlr": partial(apgd, steps=8, loss="dlr", restarts=2),
    "apgd-t": partial(apgd_targeted, steps=5, targets=2),
    "square": partial(square, queries=40),
    "noise": partial(noise, draws=4),
    "ensemble": partial(ensemble, steps=10, targets=2, queries=20, precision="float32"),
}
ATTACKS = [
    pytest.param(method, norm, id=f"{name}-{norm}")
    for name, method in KINDS.items()
    for norm in ("linf", "l2", "l1")
    if (name, norm) != ("square", "l1")
]
# Where the norm plays no part, three attacks stand for all in L2 and L1.
SOME = [
    p
    for p in ATTACKS
    if str(p.id).endswith("linf") or str(p.id)[:-3] in {"pgd", "apgd-ce", "ensemble"}
]
AIMED = [p for p in ATTACKS if str(p.id).rpartition("-")[0] not in {"apgd-t", "ensemble", "noise"}]
WALKS = [p for p in ATTACKS if str(p.id).rpartition("-")[0] not in {"noise", "square"}]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return photographs(11)


@pytest.fixture(scope="module")
def labels(model: Model, pictures: Tensor) -> Tensor:
    labels: Tensor = model(pictures).argmax(1)
    return labels


def same(one: AttackResult, other: AttackResult, *, without: tuple[str, ...] = ()) -> bool:
    """Whether two results are equal bit for bit in all their tensors."""
    assert len(TENSORS) > 15
    return all(
        torch.equal(
            getattr(one, f).double().nan_to_num(7e9), getattr(other, f).double().nan_to_num(7e9)
        )
        for f in TENSORS
        if f not in without
    )


@pytest.mark.parametrize(("method", "norm"), ATTACKS)
def test_what_is_found_is_inside_ball_and_box_exactly(
    model: Model, pictures: Tensor, labels: Tensor, method: Callable[..., AttackResult], norm: str
) -> None:
    eps = torch.logspace(-3, 0, 11, dtype=torch.float64) * EPS[norm]
    given = pictures.clone()
    found = method(model, pictures, labels, eps=eps, norm=norm)
    assert torch.equal(pictures, given)
    assert bool(found.adversarial.isfinite().all())
    assert bool((found.adversarial >= 0).all() and (found.adversarial <= 1).all())
    change = (found.adversarial.double() - pictures.double()).flatten(1)
    sizes = {"linf": change.abs().amax(1), "l2": change.norm(dim=1), "l1": change.abs().sum(1)}
    assert bool((sizes[norm] <= eps).all())
    torch.testing.assert_close(found.linf, sizes["linf"], rtol=1e-12, atol=0)
    torch.testing.assert_close(found.l2, sizes["l2"], rtol=1e-12, atol=0)
    expected = torch.where(found.success, sizes[norm], torch.inf)
    torch.testing.assert_close(found.distance, expected, rtol=1e-12, atol=0)
    answers = model(found.adversarial).argmax(1)
    assert torch.equal(found.success, answers != labels)
    assert torch.equal(found.predicted, answers)
    assert torch.equal(found.clean, labels)


@pytest.mark.parametrize(("method", "norm"), [p for p in WALKS if p in SOME])
def test_a_large_ball_leaves_nobody_standing(
    model: Model, pictures: Tensor, labels: Tensor, method: Callable[..., AttackResult], norm: str
) -> None:
    assert bool(method(model, pictures, labels, eps=20 * EPS[norm], norm=norm).success.all())


@pytest.mark.parametrize(("method", "norm"), SOME)
def test_eps_0_gives_the_pictures_back(
    model: Model, pictures: Tensor, labels: Tensor, method: Callable[..., AttackResult], norm: str
) -> None:
    wrong = labels.clone()
    wrong[3] = (wrong[3] + 1) % 5
    found = method(model, pictures, wrong, eps=0.0, norm=norm)
    assert torch.equal(found.adversarial, pictures)
    assert not found.linf.any()
    assert not found.l2.any()
    assert found.success.nonzero().flatten().tolist() == [3]
    assert found.distance.isfinite().nonzero().flatten().tolist() == [3]


@pytest.mark.numeric
@pytest.mark.parametrize(("method", "norm"), ATTACKS)
def test_a_picture_does_not_depend_on_the_others(
    model: Model, pictures: Tensor, labels: Tensor, method: Callable[..., AttackResult], norm: str
) -> None:
    exact = tiny_model().double()
    pictures = pictures.double()
    labels = exact(pictures).argmax(1)
    eps = EPS[norm] * (2 if method is KINDS["square"] else 0.25)
    options: dict[str, Any] = {"eps": eps, "norm": norm, "batch_size": 4}
    whole = method(exact, pictures, labels, **options)
    if method is not KINDS["noise"]:
        assert 0 < int(whole.success.sum()) < 11  # both kinds are among them
    order = torch.randperm(11, generator=torch.Generator().manual_seed(2))
    assert_alike(whole[order], method(exact, pictures[order], labels[order], **options))
    for part in (slice(0, 1), slice(3, 8)):
        assert_alike(whole[part], method(exact, pictures[part], labels[part], **options))
    assert_alike(whole, method(exact, pictures, labels, **(options | {"batch_size": 3})))


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("method", "norm"), [p for p in ATTACKS if str(p.id).startswith(("pgd", "bim"))]
)
def test_nor_in_the_first_steps_of_float32(
    model: Model, pictures: Tensor, labels: Tensor, method: Callable[..., AttackResult], norm: str
) -> None:
    options: dict[str, Any] = {"eps": EPS[norm] / 100, "norm": norm, "steps": 2}
    whole = method(model, pictures, labels, **options, batch_size=4)
    order = torch.tensor([7, 3, 10])
    part = method(model, pictures[order], labels[order], **options, batch_size=2)
    change = [found.adversarial - found.originals for found in (whole[order], part)]
    torch.testing.assert_close(change[0], change[1], rtol=1e-4, atol=1e-4 * EPS[norm] / 100)


@pytest.mark.slow
def test_the_same_holds_on_a_real_alexnet(real_alexnet: Model, shared_data: Path) -> None:
    from featviz.data.datasets import open_pictures, read_all

    some = open_pictures(shared_data / "imagenet_val").spread(5)
    _, pictures, _ = read_all(some, Preprocessing.of(224, resize=256))
    labels = real_alexnet(pictures).argmax(1)
    options: dict[str, Any] = {"eps": 0.25 / 255, "steps": 2, "random_start": False}
    whole = pgd(real_alexnet, pictures, labels, **options, batch_size=2)
    order = torch.tensor([4, 2, 0])
    part = pgd(real_alexnet, pictures[order], labels[order], **options, batch_size=3)
    assert torch.equal(whole.success[order], part.success)
    moved = (whole.adversarial[order] - part.adversarial).abs()
    assert float((moved > 1e-6).double().mean()) < 1e-3  # signs of gradients that round to 0


@pytest.mark.parametrize(("method", "norm"), SOME)
def test_channels_last_and_strided_pictures_give_the_same(
    model: Model, pictures: Tensor, labels: Tensor, method: Callable[..., AttackResult], norm: str
) -> None:
    plain = method(model, pictures, labels, eps=EPS[norm] / 4, norm=norm)
    last = pictures.contiguous(memory_format=torch.channels_last)
    wide = pictures.repeat_interleave(2, -1)[..., ::2]
    assert not wide.is_contiguous()
    assert same(plain, method(model, last, labels, eps=EPS[norm] / 4, norm=norm))
    assert same(plain, method(model, wide, labels, eps=EPS[norm] / 4, norm=norm))


def test_the_same_seed_gives_the_same_and_another_seed_another(
    model: Model, pictures: Tensor, labels: Tensor
) -> None:
    short = (partial(pgd, steps=3), partial(apgd, steps=3), noise, partial(square, queries=9))
    for method in short:
        runs = [method(model, pictures[:4], labels[:4], eps=1 / 255, seed=s) for s in (0, 0, 1)]
        assert same(runs[0], runs[1])
        assert not torch.equal(runs[0].adversarial, runs[2].adversarial)


@pytest.mark.parametrize(("method", "norm"), SOME)
def test_what_is_wrong_already_costs_a_pass_at_most_and_stays_as_it_was(
    model: Model, pictures: Tensor, labels: Tensor, method: Callable[..., AttackResult], norm: str
) -> None:
    wrong = (labels + 1) % 5
    found = method(model, pictures, wrong, eps=EPS[norm], norm=norm)
    assert bool(found.already.all() and found.success.all())
    assert torch.equal(found.adversarial, pictures)
    assert found.forwards.tolist() == [1] * 11
    for name in ("l2", "linf", "distance", "steps", "first_step", "backwards"):
        assert not getattr(found, name).any()
    assert found.by.tolist() == [-1] * 11
    clean = model(pictures)
    assert not method(model, pictures, wrong, eps=EPS[norm], norm=norm, clean=clean).forwards.any()


@pytest.mark.parametrize(("method", "norm"), SOME)
def test_one_clean_pass_serves_all_attacks(
    model: Model, pictures: Tensor, labels: Tensor, method: Callable[..., AttackResult], norm: str
) -> None:
    plain = method(model, pictures, labels, eps=EPS[norm] / 4, norm=norm)
    told = method(model, pictures, labels, eps=EPS[norm] / 4, norm=norm, clean=model(pictures))
    for name in ("adversarial", "success", "success_8bit", "clean", "predicted", "distance"):
        assert torch.equal(getattr(plain, name), getattr(told, name))
    assert bool((told.forwards <= plain.forwards).all())
    classes = model(pictures).argmax(1)
    again = method(model, pictures, labels, eps=EPS[norm] / 4, norm=norm, clean=classes)
    assert same(told, again, without=("logits_before",))


@pytest.mark.parametrize(("method", "norm"), SOME)
def test_the_trace_tells_when_it_was_won(
    model: Model, pictures: Tensor, labels: Tensor, method: Callable[..., AttackResult], norm: str
) -> None:
    found = method(model, pictures, labels, eps=EPS[norm] / 2, norm=norm)
    looks = ~found.trace.isnan()
    for i in range(11):
        seen = found.trace[i][looks[i]]
        if found.success[i]:  # the last look is the first that won: the picture has left
            assert float(seen[-1]) >= 0
            assert bool((seen[:-1] <= 0).all())
            logits = model(found.adversarial[i : i + 1])[0].double()
            lead = logits.max() - logits[labels[i]]
            torch.testing.assert_close(seen[-1], lead, rtol=1e-4, atol=1e-4)
            assert (
                found.first_step[i] >= 1
                or method in {KINDS["noise"], KINDS["square"]}
                or (found.steps[i] == 0)
            )
        else:
            assert found.first_step[i] == -1
    assert torch.equal(found.first_step >= 0, found.success)


@pytest.mark.parametrize(("method", "norm"), [p for p in WALKS[:-3] if p in SOME])
def test_searching_in_bf16_is_judged_in_float32(
    model: Model, pictures: Tensor, labels: Tensor, method: Callable[..., AttackResult], norm: str
) -> None:
    options: dict[str, Any] = {
        "eps": EPS[norm] / 4,
        "norm": norm,
        "batch_size": 4,
        "precision": "bfloat16",
    }
    found = method(model, pictures, labels, **options)
    assert torch.equal(found.success, model(found.adversarial).argmax(1) != labels)
    assert int(found.success.sum()) > 0
    size = projections.distance(pictures, found.adversarial, norm)
    assert bool((size <= EPS[norm] / 4).all())


def test_a_search_in_bf16_is_not_repeated(model: Model, pictures: Tensor, labels: Tensor) -> None:
    found = pgd(model, pictures, labels, eps=1e-6, steps=5, precision="bfloat16")
    assert not bool(found.success.any())
    assert bool((found.forwards <= 7).all())  # the clean picture and six of the search


def test_copies_of_a_picture_stop_at_the_first_success(
    model: Model, pictures: Tensor, labels: Tensor
) -> None:
    logits = model(pictures).detach()
    aims = logits.argsort(1, descending=True)[:, 1:4]
    found = towards_all(
        model,
        pictures,
        labels,
        aims=aims,
        eps=torch.full((len(pictures),), EPS["linf"], dtype=torch.float64),
        norm="linf",
        steps=20,
        options=AttackOptions(clean=logits),
    )
    assert bool(found.success.all())
    assert torch.equal(found.labels, labels)
    size = projections.distance(pictures, found.adversarial, "linf")
    assert bool((size <= EPS["linf"]).all())
    # Copies make at most one pass more than the first success takes; one is for 8 bits.
    assert bool((found.forwards <= 3 * (found.first_step + 2) + 3).all())


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("kind", ["apgd-dlr", "apgd-t", "ensemble"])
def test_scaling_the_logits_changes_neither_dlr_nor_the_ensemble(
    model: Model, pictures: Tensor, labels: Tensor, kind: str, norm: str
) -> None:
    method = KINDS[kind]
    options: dict[str, Any] = {"eps": EPS[norm] / 4, "norm": norm}
    plain = method(model, pictures, labels, **options)
    for power in (2.0**10, 2.0**-10):  # no logit is rounded: the same bits
        found = method(lambda x, p=power: p * model(x), pictures, labels, **options)
        assert torch.equal(found.adversarial, plain.adversarial)
        assert torch.equal(found.success, plain.success)
    for factor in (1e3, 1e-3):
        found = method(lambda x, f=factor: f * model(x), pictures, labels, **options)
        assert torch.equal(found.success, plain.success)


@pytest.mark.parametrize(("method", "norm"), SOME)
def test_every_pass_is_counted(
    model: Model, pictures: Tensor, labels: Tensor, method: Callable[..., AttackResult], norm: str
) -> None:
    counting = Counting(model)
    found = method(counting, pictures[:5], labels[:5], eps=EPS[norm] / 4, norm=norm, batch_size=1)
    assert counting.calls == int(found.forwards.sum())


def test_a_fooled_picture_leaves_and_another_takes_its_place(
    model: Model, pictures: Tensor, labels: Tensor
) -> None:
    found = pgd(model, pictures[:8], labels[:8], eps=1.0, batch_size=2, random_start=False, steps=4)
    assert bool(found.success.all())
    spent = found.forwards - (found.success & ~found.already).long()  # without the 8-bit judge
    counting = Counting(model)
    pgd(counting, pictures[:8], labels[:8], eps=1.0, batch_size=2, random_start=False, steps=4)
    search = counting.calls - 4  # 8 pictures are judged again, 2 at a time
    assert bool((found.forwards <= 6).all())
    assert int(spent.sum()) <= 2 * search <= int(spent.sum()) + 2 * int(spent.max())


def test_counts_are_those_of_the_passes_made(
    model: Model, pictures: Tensor, labels: Tensor
) -> None:
    counting = Counting(model)
    found = pgd(counting, pictures, labels, eps=0.2 / 255, steps=3, restarts=2, batch_size=1)
    judged = int((found.success & ~found.already).sum())
    assert counting.calls == int(found.forwards.sum())
    failed = ~found.success
    assert failed.any()
    # Clean, then two walks of a start and three steps each.
    assert found.forwards[failed].unique().tolist() == [1 + 2 * 4]
    assert found.backwards[failed].unique().tolist() == [2 * 3]
    assert judged <= 11


@pytest.mark.parametrize("method", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("fail_at", [None, 1, 3])
def test_the_model_and_the_random_state_are_found_as_they_were(
    pictures: Tensor, fail_at: int | None, method: Callable[..., AttackResult]
) -> None:
    net = tiny_net()
    net[1].eval()
    net[4].weight.requires_grad_(False)
    kernel = net[0].get_parameter("weight")
    kernel.grad = torch.ones_like(kernel)
    seen: list[int] = []
    handle = net[0].register_forward_hook(lambda *_: seen.append(1))
    counting = Counting(net, fail_at)
    counting.train()
    net[1].eval()
    modes = [m.training for m in counting.modules()]
    wanted = [p.requires_grad for p in counting.parameters()]
    state = {k: v.clone() for k, v in counting.state_dict().items()}
    random_state = torch.get_rng_state()
    labels = tiny_net().eval()(pictures).argmax(1)  # its own answers: nothing is wrong already
    if fail_at is None:
        method(counting, pictures, labels, eps=1 / 255)
    else:
        with pytest.raises(RuntimeError, match="gave up"):
            method(counting, pictures, labels, eps=1 / 255)
    assert [m.training for m in counting.modules()] == modes
    assert [p.requires_grad for p in counting.parameters()] == wanted
    assert all(torch.equal(v, state[k]) for k, v in counting.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(kernel.grad, torch.ones_like(kernel))
    assert all(p.grad is None for p in list(net.parameters())[1:])
    assert sum(len(m._forward_hooks) for m in counting.modules()) == 1
    handle.remove()


@pytest.mark.parametrize("method", KINDS.values(), ids=KINDS)
def test_an_attack_works_within_no_grad_and_inference_mode(
    model: Model, pictures: Tensor, labels: Tensor, method: Callable[..., AttackResult]
) -> None:
    pictures, labels = pictures[:3], labels[:3]
    plain = method(model, pictures, labels, eps=1 / 255)
    with torch.no_grad():
        assert same(plain, method(model, pictures, labels, eps=1 / 255))
    with torch.inference_mode():
        assert same(plain, method(model, pictures, labels, eps=1 / 255))


@pytest.mark.parametrize(("method", "norm"), [p for p in AIMED if p in SOME])
def test_a_targeted_attack_reaches_its_target(
    model: Model, pictures: Tensor, labels: Tensor, method: Callable[..., AttackResult], norm: str
) -> None:
    aims = (labels + 1) % 5
    found = method(model, pictures, aims, eps=3 * EPS[norm], norm=norm, targeted=True)
    answers = model(found.adversarial).argmax(1)
    assert torch.equal(found.success, answers == aims)
    assert int(found.success.sum()) > (0 if method is KINDS["square"] else 5)
    there = method(model, pictures, labels, eps=EPS[norm], norm=norm, targeted=True)
    assert bool(there.already.all())


@pytest.mark.parametrize(("method", "norm"), SOME)
def test_success_is_counted_on_the_saved_picture(
    model: Model, pictures: Tensor, labels: Tensor, method: Callable[..., AttackResult], norm: str
) -> None:
    found = method(model, pictures, labels, eps=EPS[norm] / 4, norm=norm)
    saved = images.quantize(found.adversarial)
    answers = model(saved).argmax(1)
    assert torch.equal(found.success_8bit, found.success & (answers != labels))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_an_8_bit_attack_finds_8_bit_pictures(
    model: Model, pictures: Tensor, labels: Tensor, norm: str
) -> None:
    found = pgd(model, pictures, labels, eps=EPS[norm], norm=norm, eight_bit=True)
    assert torch.equal(images.quantize(found.adversarial), found.adversarial)
    assert torch.equal(found.success, found.success_8bit)
    assert int(found.success.sum()) > 8
    assert bool((projections.distance(pictures, found.adversarial, norm) <= EPS[norm] + 1e-5).all())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_saved_adversarial_is_adversarial_still_when_loaded(
    model: Model, pictures: Tensor, tmp_path: Path, norm: str
) -> None:
    result = attack(model, pictures[:4], eps=EPS[norm], norm=norm, names=list("abcd"))
    folder = result.save(tmp_path / "attack")
    assert bool(result.success.all())
    for i in range(4):
        loaded = images.read_image(folder / "pictures" / f"{i + 1:02d}-adversarial.png")
        assert torch.equal(loaded, result.adversarial[i])
        assert int(model(loaded[None]).argmax()) != int(result.labels[i])
        original = images.read_image(folder / "pictures" / f"{i + 1:02d}-original.png")
        assert torch.equal(original, pictures[i])


def test_attack_reports_what_happened(model: Model, pictures: Tensor, tmp_path: Path) -> None:
    from featviz.results import read_result

    # Towards what the model says of the first picture: that one is there already.
    target = int(model(pictures[:1]).argmax())
    result = attack(model, pictures[:3], target=f"kind {target}", eps=0.3)
    numbers = result.numbers()
    assert bool(result.already[0])
    assert torch.equal(result.adversarial[0], pictures[0])
    tried = int((~result.already).sum())
    assert (numbers["fooled"].value, numbers["fooled"].n) == (1.0 if tried else None, tried)
    document = read_result(result.save(tmp_path / "a"))
    assert document["kind"] == "attack"
    assert document["parameters"]["target"] == target
    assert (tmp_path / "a" / "attack.csv").read_text().count("\n") == 4
    assert all((tmp_path / "a" / f["file"]).is_file() for f in document["figures"])
    assert "amplified" not in document["figures"][0]["caption"]
    assert "the change times" in document["figures"][1]["caption"]
    assert "<img" in result._repr_html_()


def test_the_amplification_is_as_stated(model: Model, pictures: Tensor) -> None:
    result = attack(model, pictures[:1], eps=8 / 255)
    shown, factor = result.perturbation(0)
    change = result.adversarial[0] - pictures[0]
    assert factor in {1, 2, 5, 10, 20, 50, 100, 200, 500}
    torch.testing.assert_close(shown, (0.5 + factor * change).clamp(0, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1.0}, "eps -1 is out of range"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"eps": 8.0}, r"for 8 levels of 255 write 8/255"),
        ({"eps": torch.ones(3)}, "eps must be one number or 11"),
        ({"eps": 0.1, "norm": "l3"}, "unknown norm 'l3'.*linf, l2 and l1"),
        ({"eps": 0.1, "steps": 0}, "steps is 0; it must be a whole number, 1 to 1,000,000"),
        ({"eps": 0.1, "step_size": -1.0}, "step_size is -1.0; it must be a number, above 0"),
        ({"eps": 0.1, "batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_out_of_range_are_refused_in_words(
    model: Model, pictures: Tensor, labels: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        pgd(model, pictures, labels, **options)


def test_input_that_is_no_pictures_or_labels_is_refused_in_words(
    model: Model, pictures: Tensor, labels: Tensor
) -> None:
    with pytest.raises(UserError, match=r"must lie in \[0, 1\], these reach from -1.98"):
        pgd(model, 4 * pictures - 2, labels, eps=0.1)
    with pytest.raises(UserError, match=r"must lie in \[0, 1\]"):
        pgd(model, torch.full_like(pictures, torch.nan), labels, eps=0.1)
    with pytest.raises(UserError, match=r"shape \(N, C, H, W\), got \(11, 3, 16\)"):
        pgd(model, pictures[..., 0], labels, eps=0.1)
    with pytest.raises(UserError, match="labels must be 11 whole numbers"):
        pgd(model, pictures, labels[:4], eps=0.1)
    with pytest.raises(UserError, match="2 classes or more"):
        pgd(lambda x: x.mean((1, 2, 3))[:, None], pictures, labels, eps=0.1)
    with pytest.raises(UserError, match="not finite"):
        pgd(lambda x: model(x) / 0, pictures, labels, eps=0.1)
    with pytest.raises(UserError, match="unknown method 'pdg'; did you mean pgd"):
        attack(model, pictures, method="pdg")
    with pytest.raises(UserError, match="no class 'kind 9'"):
        attack(model, pictures, target="kind 9")


def test_the_ensemble_is_no_weaker_than_its_parts(
    model: Model, pictures: Tensor, labels: Tensor
) -> None:
    parts = (fgsm, apgd, partial(apgd, loss="dlr"), partial(apgd_targeted, targets=2))
    for norm, eps in EPS.items():
        options = {"eps": eps / 6, "norm": norm}
        whole = ensemble(model, pictures[:6], labels[:6], steps=40, queries=9, **options)
        for part in parts:
            own = {} if part is fgsm else {"steps": 40}
            found = part(model, pictures[:6], labels[:6], **own, **options)
            assert not (found.success & ~whole.success).any()
        assert 0 < int(whole.success.sum()) < 6
        assert torch.equal(whole.by >= 0, whole.success)


def test_the_ensemble_fools_a_little_beyond_the_smallest_change_that_is_known(mini: Model) -> None:
    data = featviz.sample_pictures().spread(6).select([0, 1, 2, 3])
    pictures = torch.stack([data.read(i, mini.preprocessing) for i in range(4)])
    labels = mini(pictures).argmax(1)
    known = minimal(mini, pictures, labels, norm="linf", steps=60)
    beyond = ensemble(mini, pictures, labels, eps=1.005 * known.distance)
    assert bool(beyond.success.all())
    # 3 passes for FGSM, 21 of a short APGD, 20 along the boundary, 42 from there.
    assert int((beyond.forwards > 86).sum()) <= 1


@pytest.mark.parametrize("classes", [2, 3])
def test_the_ensemble_works_with_few_classes_where_dlr_does_not(
    pictures: Tensor, classes: int
) -> None:
    few = tiny_model(classes=classes)
    labels = few(pictures).argmax(1)
    assert bool(ensemble(few, pictures, labels, eps=0.2).success.all())
    with pytest.raises(UserError, match=f"needs 4 classes, this model has {classes}"):
        apgd_targeted(few, pictures, labels, eps=1 / 255)
    if classes == 2:
        with pytest.raises(UserError, match="DLR loss needs 3 classes, this model has 2"):
            apgd(few, pictures, labels, eps=1 / 255, loss="dlr")


def test_any_callable_joins_in_and_is_judged_by_us(
    model: Model, pictures: Tensor, labels: Tensor
) -> None:
    options: dict[str, Any] = {"eps": EPS["linf"], "norm": "linf"}
    ours = fgsm(model, pictures, labels, **options)

    def honest(net: Classifier, x: Tensor, y: Tensor, eps: Tensor) -> Tensor:
        assert torch.equal(net(x).argmax(1), y)  # nothing that is wrong already
        return fgsm(net, x, y, eps=eps, batch_size=1).adversarial + 1e-9

    theirs = external_attack(honest, model, pictures, labels, **options)
    assert theirs.attack == "honest"
    assert torch.equal(theirs.success, ours.success)
    assert torch.equal(theirs.predicted, ours.predicted)
    assert bool((theirs.linf <= EPS["linf"]).all())
    assert int(theirs.forwards[0]) == 1 + (2 + 1 + 1) + 1 + 1  # clean, its own, judged, in 8 bits

    # What float32 rounds off is no cheat, however small the ball.
    for eps in (0.1 / 255, 0.5 / 255):
        stream = torch.Generator().manual_seed(1)
        signs = torch.randn(pictures.shape, generator=stream).sign()

        def rounded(
            net: Classifier, x: Tensor, y: Tensor, e: Tensor, v: Tensor = signs, r: float = eps
        ) -> Tensor:
            return (x + r * v[: len(x)]).clamp(0, 1)

        found = external_attack(rounded, model, pictures, labels, eps=eps, norm="linf")
        wrong = model(found.adversarial).argmax(1) != labels
        assert torch.equal(found.success, wrong)
        assert bool((found.linf <= eps).all())
        assert bool((found.linf > 0).any())

    cheats = {
        "too far": lambda net, x, y, eps: x.flip(-1),
        "outside": lambda net, x, y, eps: x - 2,
        "not finite": lambda net, x, y, eps: torch.full_like(x, torch.nan),
    }
    for name, cheat in cheats.items():
        found = external_attack(cheat, model, pictures, labels, name=name, **options)
        assert not found.success.any()
        assert found.attacks == (name,)
    with pytest.raises(UserError, match=r"must give back pictures of shape .* it gave \(11, 5\)"):
        external_attack(lambda net, x, y, eps: net(x), model, pictures, labels, **options)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (apgd, {"loss": "cw"}, "unknown loss 'cw'.*take ce, dlr or margin"),
        (apgd_targeted, {"targets": 0}, "targets is 0"),
        (square, {"norm": "l1"}, "unknown norm 'l1'.*there are linf and l2"),
        (square, {"queries": 0}, "queries is 0"),
        (square, {"p_init": 2.0}, "p_init is 2.0; it must be a number, above 0, at most 1"),
        (noise, {"draws": 0}, "draws is 0"),
        (mi_fgsm, {"decay": -1.0}, "decay is -1.0"),
        (
            pgd,
            {"precision": "fp16"},
            "precision is 'fp16'; it must be one of auto, float32, bfloat16",
        ),
        (ensemble, {"steps": 0}, "steps is 0"),
        (pgd, {"clean": torch.zeros(3, 5)}, r"clean must be .* 11 pictures.*\(3, 5\)"),
    ],
)
def test_options_out_of_range_are_refused_in_words(
    model: Model,
    pictures: Tensor,
    labels: Tensor,
    method: Callable[..., AttackResult],
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        method(model, pictures, labels, eps=0.1, **options)
