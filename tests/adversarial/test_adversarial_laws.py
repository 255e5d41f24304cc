"""Laws that every attack obeys, on a small net with convolutions."""

from __future__ import annotations

import itertools

import pytest
import torch
from adversarial_models import photographs, tiny_model, tiny_net
from torch import nn

from featviz import images
from featviz.adversarial.attacks import attack, fgsm, pgd
from featviz.errors import UserError

EPS = {"linf": 8 / 255, "l2": 0.6}
ATTACKS = [
    pytest.param(method, norm, id=f"{method.__name__}-{norm}")
    for method, norm in itertools.product((fgsm, pgd), ("linf", "l2"))
]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def pictures():
    return photographs(11)


@pytest.fixture(scope="module")
def labels(model, pictures):
    return model(pictures).argmax(1)


def same(one, other, rows=slice(None)):
    """Whether two results are equal bit for bit in everything they say."""
    mine = one[rows]
    width = min(mine.trace.shape[1], other.trace.shape[1])
    assert bool(mine.trace[:, width:].isnan().all() and other.trace[:, width:].isnan().all())
    return torch.equal(
        mine.trace[:, :width].nan_to_num(1e9), other.trace[:, :width].nan_to_num(1e9)
    ) and all(
        torch.equal(value, getattr(other, name)) if isinstance(value, torch.Tensor)
        else value == getattr(other, name)
        for name, value in vars(mine).items() if name != "trace"
    )  # fmt: skip


@pytest.mark.parametrize(("method", "norm"), ATTACKS)
@pytest.mark.parametrize("factor", [0.01, 1.0, 20.0])
def test_what_is_found_is_inside_ball_and_box_exactly(
    model, pictures, labels, method, norm, factor
):
    eps = torch.linspace(0.2, 1.0, 11, dtype=torch.float64) * factor * EPS[norm]
    given = pictures.clone()
    found = method(model, pictures, labels, eps=eps, norm=norm)
    assert torch.equal(pictures, given)
    assert bool(found.adversarial.isfinite().all())
    assert bool((found.adversarial >= 0).all() and (found.adversarial <= 1).all())
    change = (found.adversarial.double() - pictures.double()).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert bool((size <= eps).all())
    torch.testing.assert_close(size, getattr(found, norm), rtol=1e-12, atol=0)
    answers = model(found.adversarial).argmax(1)
    assert torch.equal(found.success, answers != labels)
    assert factor < 20 or bool(found.success.all())


@pytest.mark.parametrize(("method", "norm"), ATTACKS)
def test_eps_0_gives_the_pictures_back(model, pictures, labels, method, norm):
    wrong = labels.clone()
    wrong[3] = (wrong[3] + 1) % 5
    found = method(model, pictures, wrong, eps=0.0, norm=norm)
    assert torch.equal(found.adversarial, pictures)
    assert not found.linf.any()
    assert not found.l2.any()
    assert not found.backwards.any()
    assert found.success.nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize(("method", "norm"), ATTACKS)
def test_order_number_and_neighbours_do_not_matter_bit_for_bit(
    model, pictures, labels, method, norm
):
    options = {"eps": EPS[norm] / 2, "norm": norm, "slots": 4}
    if method is pgd:
        options |= {"steps": 6, "restarts": 2, "seed": 5}
    whole = method(model, pictures, labels, **options)
    assert 0 < int(whole.success.sum()) < 11  # both kinds are among them
    order = torch.randperm(11, generator=torch.Generator().manual_seed(2))
    assert same(whole, method(model, pictures[order], labels[order], **options), order)
    for part in (slice(0, 1), slice(3, 8), slice(10, 11)):
        assert same(whole, method(model, pictures[part], labels[part], **options), part)


@pytest.mark.slow
def test_the_same_holds_on_a_real_alexnet(real_alexnet, shared_data):
    from featviz.datasets import open_pictures, read_all

    some = open_pictures(shared_data / "imagenet_val").spread(5)
    _, pictures, _ = read_all(some, resize=256, crop=224)
    labels = real_alexnet(pictures).argmax(1)
    options = {"eps": 0.25 / 255, "steps": 2, "slots": 2}
    whole = pgd(real_alexnet, pictures, labels, **options)
    order = torch.tensor([4, 2, 0])
    assert same(whole, pgd(real_alexnet, pictures[order], labels[order], **options), order)


@pytest.mark.parametrize(("method", "norm"), ATTACKS)
def test_channels_last_and_strided_pictures_give_the_same(model, pictures, labels, method, norm):
    plain = method(model, pictures, labels, eps=EPS[norm], norm=norm)
    last = pictures.contiguous(memory_format=torch.channels_last)
    wide = pictures.repeat_interleave(2, -1)[..., ::2]
    assert not wide.is_contiguous()
    assert same(plain, method(model, last, labels, eps=EPS[norm], norm=norm))
    assert same(plain, method(model, wide, labels, eps=EPS[norm], norm=norm))


def test_the_same_seed_gives_the_same_and_another_seed_another(model, pictures, labels):
    runs = [pgd(model, pictures, labels, eps=EPS["linf"], steps=3, seed=s) for s in (0, 0, 1)]
    assert same(runs[0], runs[1])
    assert not torch.equal(runs[0].adversarial, runs[2].adversarial)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_is_wrong_already_costs_one_pass_and_stays_as_it_was(model, pictures, labels, norm):
    wrong = (labels + 1) % 5
    found = pgd(model, pictures, wrong, eps=EPS[norm], norm=norm)
    assert bool(found.already.all() and found.success.all())
    assert torch.equal(found.adversarial, pictures)
    assert found.forwards.tolist() == [1] * 11
    assert not found.backwards.any()
    for name in ("l2", "linf", "steps"):
        assert not getattr(found, name).any()


class Counting(nn.Module):
    """A model that counts its passes, and can fail at one of them."""

    def __init__(self, model: nn.Module, fail_at: int | None = None):
        super().__init__()
        self.model, self.calls, self.fail_at = model, 0, fail_at

    def forward(self, x):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("the model gave up")
        return self.model(x)


def test_a_fooled_picture_leaves_and_another_takes_its_place(model, pictures, labels):
    found = pgd(model, pictures[:8], labels[:8], eps=1.0, slots=2, random_start=False, steps=4)
    assert bool(found.success.all())
    spent = found.forwards - (found.success & ~found.already).long()  # without the 8-bit judge
    counting = Counting(model)
    pgd(counting, pictures[:8], labels[:8], eps=1.0, slots=2, random_start=False, steps=4)
    search = counting.calls - 4  # 8 pictures are judged again, 2 at a time
    assert bool((found.forwards <= 6).all())
    assert int(spent.sum()) <= 2 * search <= int(spent.sum()) + 2 * int(spent.max())


def test_counts_are_those_of_the_passes_made(model, pictures, labels):
    counting = Counting(model)
    found = pgd(counting, pictures, labels, eps=0.2 / 255, steps=3, restarts=2, slots=1)
    judged = int((found.success & ~found.already).sum())
    assert counting.calls == int(found.forwards.sum())
    failed = ~found.success
    assert failed.any()
    # Clean, then two walks of a start and three steps each.
    assert found.forwards[failed].unique().tolist() == [1 + 2 * 4]
    assert found.backwards[failed].unique().tolist() == [2 * 3]
    assert judged <= 11


@pytest.mark.parametrize("fail_at", [None, 1, 3])
def test_the_model_and_the_random_state_are_found_as_they_were(pictures, fail_at):
    net = tiny_net()
    net[1].eval()
    net[4].weight.requires_grad_(False)
    net[0].weight.grad = torch.ones_like(net[0].weight)
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
        pgd(counting, pictures, labels, eps=0.1, steps=3)
    else:
        with pytest.raises(RuntimeError, match="gave up"):
            pgd(counting, pictures, labels, eps=0.1, steps=3)
    assert [m.training for m in counting.modules()] == modes
    assert [p.requires_grad for p in counting.parameters()] == wanted
    assert all(torch.equal(v, state[k]) for k, v in counting.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert all(p.grad is None for p in list(net.parameters())[1:])
    assert sum(len(m._forward_hooks) for m in counting.modules()) == 1
    handle.remove()


def test_an_attack_works_within_no_grad_and_inference_mode(model, pictures, labels):
    plain = pgd(model, pictures, labels, eps=EPS["linf"], steps=3)
    with torch.no_grad():
        assert same(plain, pgd(model, pictures, labels, eps=EPS["linf"], steps=3))
    with torch.inference_mode():
        assert same(plain, pgd(model, pictures, labels, eps=EPS["linf"], steps=3))


@pytest.mark.parametrize(("method", "norm"), ATTACKS)
def test_success_is_counted_on_the_saved_picture(model, pictures, labels, method, norm):
    found = method(model, pictures, labels, eps=EPS[norm] / 4, norm=norm)
    saved = images.quantise(found.adversarial)
    answers = model(saved).argmax(1)
    assert torch.equal(found.success_8bit, found.success & (answers != labels))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_8_bit_attack_finds_8_bit_pictures(model, pictures, labels, norm):
    found = pgd(model, pictures, labels, eps=EPS[norm], norm=norm, eight_bit=True)
    assert torch.equal(images.quantise(found.adversarial), found.adversarial)
    assert torch.equal(found.success, found.success_8bit)
    assert int(found.success.sum()) > 8
    assert bool((getattr(found, norm) <= EPS[norm] + 1e-6).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_saved_adversarial_is_adversarial_still_when_loaded(model, pictures, tmp_path, norm):
    result = attack(model, pictures[:4], eps=EPS[norm], norm=norm, names=list("abcd"))
    folder = result.save(tmp_path / "attack")
    assert bool(result.found.success.all())
    for i in range(4):
        loaded = images.read_image(folder / "pictures" / f"{i + 1:02d}-adversarial.png")
        assert torch.equal(loaded, result.found.adversarial[i])
        assert int(model(loaded[None]).argmax()) != int(result.labels[i])
        original = images.read_image(folder / "pictures" / f"{i + 1:02d}-original.png")
        assert torch.equal(original, pictures[i])


def test_attack_reports_what_happened(model, pictures, tmp_path):
    from featviz.results import read_result

    # Towards what the model says of the first picture: that one is there already.
    target = int(model(pictures[:1]).argmax())
    result = attack(model, pictures[:3], target=f"kind {target}", eps=0.3)
    numbers = result.numbers()
    assert bool(result.found.already[0])
    assert torch.equal(result.found.adversarial[0], pictures[0])
    tried = int((~result.found.already).sum())
    assert numbers["fooled"].value == tried
    assert numbers["fooled"].unit == f"of {tried}"
    document = read_result(result.save(tmp_path / "a"))
    assert document["kind"] == "attack"
    assert document["parameters"]["target"] == target
    assert (tmp_path / "a" / "attack.csv").read_text().count("\n") == 4
    assert all((tmp_path / "a" / f["file"]).is_file() for f in document["figures"])
    assert "amplified" not in document["figures"][0]["caption"]
    assert "the change times" in document["figures"][1]["caption"]
    assert "<img" in result._repr_html_()


def test_the_amplification_is_as_stated(model, pictures):
    result = attack(model, pictures[:1], eps=8 / 255)
    shown, factor = result.perturbation(0)
    change = result.found.adversarial[0] - pictures[0]
    assert factor in {1, 2, 5, 10, 20, 50, 100, 200, 500}
    torch.testing.assert_close(shown, (0.5 + factor * change).clamp(0, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1.0}, "eps -1 is out of range"),
        ({"eps": float("nan")}, "out of range"),
        ({"eps": 8.0}, r"for 8 levels of 255 write 8/255"),
        ({"eps": torch.ones(3)}, "eps must be one number or 11"),
        ({"eps": 0.1, "norm": "l3"}, "unknown norm 'l3'.*linf, l2 and l1"),
        ({"eps": 0.1, "steps": 0}, "1 or more"),
        ({"eps": 0.1, "step_size": -1.0}, "step_size -1 must be above 0"),
        ({"eps": 0.1, "slots": 0}, "slots is 0"),
    ],
)
def test_settings_out_of_range_are_refused_in_words(model, pictures, labels, options, message):
    with pytest.raises(UserError, match=message):
        pgd(model, pictures, labels, **options)


def test_input_that_is_no_pictures_or_labels_is_refused_in_words(model, pictures, labels):
    with pytest.raises(UserError, match=r"must lie in \[0, 1\], these reach from -1.98"):
        pgd(model, 4 * pictures - 2, labels, eps=0.1)
    with pytest.raises(UserError, match=r"must lie in \[0, 1\]"):
        pgd(model, torch.full_like(pictures, torch.nan), labels, eps=0.1)
    with pytest.raises(UserError, match=r"shape \(N, 3, H, W\), got \(11, 3, 16\)"):
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
