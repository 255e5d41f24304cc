"""Objectives against sums done by hand, and the laws of their arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import featviz
from featviz.maximization import objectives as obj
from featviz.models.model import Model


@pytest.fixture
def acts(generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "maps": torch.randn(3, 4, 5, 6, generator=generator),
        "vector": torch.randn(3, 7, generator=generator),
        "tokens": torch.randn(3, 9, 4, generator=generator),
        # as large as the first layer of a VGG: one picture alone is enough for two threads
        "wide": torch.randn(3, 2, 190, 190, generator=generator),
        "picture": torch.rand(3, 3, 8, 9, generator=generator),
    }


def family() -> dict[str, obj.Objective]:
    """Every kind of objective, three targets each; one list of laws runs over all of them."""
    aims = torch.randn(3, 4, generator=torch.Generator().manual_seed(5))
    long_aims = torch.randn(3, 7, generator=torch.Generator().manual_seed(6))
    references = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(7))
    return {
        "max": obj.channel("maps", [0, 2, 3], over="max"),
        "channel of a wide map": obj.channel("wide", [0, 1, 1]),
        "deepdream of a wide map": obj.deepdream("wide"),
        "class token": obj.channel("tokens", [3, 0, 1], tokens="class"),
        "chosen token": obj.channel("tokens", [3, 0, 1], tokens=4),
        "patches": obj.channel("tokens", [3, 0, 1], tokens="patches"),
        "direction of tokens": obj.direction("tokens", aims),
        "caricature": obj.caricature("maps", references, power=2),
        "caricature of a vector": obj.caricature("vector", long_aims, power=0),
        "distance": obj.distance("maps", references),
        "style": obj.style_distance("maps", references),
        "deepdream": obj.deepdream("maps"),
        "total variation": obj.total_variation(),
        "l1": obj.l1("vector"),
        "l2": obj.l2(around=0.5),
        "product": obj.channel("maps", [0, 1, 2]) * obj.deepdream("vector"),
        "channel": obj.channel("maps", [0, 2, 3]),
        "channel of a vector": obj.channel("vector", [6, 0, 1]),
        "channel of tokens": obj.channel("tokens", [3, 0, 1]),
        "center": obj.center("maps", [1, 1, 0]),
        "neuron": obj.neuron("maps", [0, 2, 3], [(0, 0), (4, 5), (2, 3)]),
        "direction": obj.direction("maps", aims),
        "direction in the middle": obj.direction("maps", aims, power=1, width=2),
        "direction of a vector": obj.direction("vector", long_aims, power=0),
        "sum": obj.channel("maps", [0, 1, 2]) - 2 * obj.channel("vector", [1, 1, 1]),
    }


each = pytest.mark.parametrize("goal", family().values(), ids=family().keys())


def test_values_are_the_sums_done_by_hand(acts: dict[str, torch.Tensor]) -> None:
    maps = acts["maps"]
    mean = torch.stack([maps[1, 2, y, x] for y in range(5) for x in range(6)]).sum() / 30
    assert obj.channel("maps", [0, 2, 3])(acts)[1].item() == pytest.approx(mean.item(), abs=1e-6)
    assert obj.channel("vector", [6, 0, 1])(acts)[0] == acts["vector"][0, 6]
    token = acts["tokens"][2, :, 1].sum() / 9
    assert obj.channel("tokens", [3, 0, 1])(acts)[2].item() == pytest.approx(token.item(), abs=1e-6)
    assert obj.neuron("maps", [0, 2, 3], [(0, 0), (4, 5), (2, 3)])(acts)[1] == maps[1, 2, 4, 5]


def test_the_middle_is_the_middle() -> None:
    even = {"maps": torch.arange(36.0).view(1, 1, 6, 6)}
    assert obj.center("maps", [0])(even).item() == (14 + 15 + 20 + 21) / 4
    odd = {"maps": torch.arange(25.0).view(1, 1, 5, 5)}
    assert obj.center("maps", [0])(odd).item() == 12  # symmetric round the middle position
    tiny = {"maps": torch.tensor([[[[3.0]]]])}
    assert obj.center("maps", [0])(tiny).item() == 3


def test_a_direction_is_projection_times_cosine() -> None:
    value = torch.tensor([3.0, 4.0])
    acts = {"v": value[None], "back": -value[None]}
    aim = torch.tensor([[10.0, 0.0]])  # its length does not count
    assert obj.direction("v", aim, power=0)(acts).item() == pytest.approx(3)
    assert obj.direction("v", aim, power=2)(acts).item() == pytest.approx(3 * 0.6**2)
    # Away from the aim: the floor of .1, and the sign of the projection.
    assert obj.direction("back", aim, power=2)(acts).item() == pytest.approx(-3 * 0.1**2)


def test_a_silent_place_leaves_a_direction_its_gradient() -> None:
    values = torch.full((1, 2), 1e-4, requires_grad=True)
    score = obj.direction("v", torch.tensor([[1.0, -1.0]]))({"v": values})
    (gradient,) = torch.autograd.grad(score.sum(), values)
    assert gradient.abs().sum() > 0


@each
def test_no_gradient_reaches_a_neighbor(goal: obj.Objective, acts: dict[str, torch.Tensor]) -> None:
    leaves = {name: value.clone().requires_grad_() for name, value in acts.items()}
    for row in range(3):
        used = [leaves[name] for name in goal.layers]
        gradients = torch.autograd.grad(goal(leaves)[row], used)
        for gradient in gradients:
            others = [i for i in range(3) if i != row]
            assert gradient[row].abs().sum() > 0
            assert gradient[others].abs().sum() == 0


@each
def test_the_company_changes_neither_score_nor_gradient(
    goal: obj.Objective, acts: dict[str, torch.Tensor]
) -> None:
    def score_and_gradient(rows: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        leaves = {name: value[rows].clone().requires_grad_() for name, value in acts.items()}
        scores = goal(leaves, rows)
        return scores, list(torch.autograd.grad(scores.sum(), [leaves[n] for n in goal.layers]))

    alone, slope = score_and_gradient([1])
    together, slopes = score_and_gradient([2, 1, 0])
    assert torch.equal(alone[0], together[1])
    for one, many in zip(slope, slopes, strict=True):
        assert torch.equal(one[0], many[1])


@each
def test_arithmetic_is_that_of_scores(goal: obj.Objective, acts: dict[str, torch.Tensor]) -> None:
    other = obj.channel("maps", [1, 1, 1])
    before = goal(acts)
    a, b = goal(acts), other(acts)
    assert torch.equal((goal + other)(acts), a + b)
    assert torch.equal((goal - other)(acts), a - b)
    assert torch.equal((-goal)(acts), -a)
    assert torch.equal((2.5 * goal)(acts), 2.5 * a)
    assert torch.equal((goal * 2.5)(acts), 2.5 * a)
    assert torch.allclose((3 * (goal - 2 * other))(acts), 3 * (a - 2 * b))
    assert torch.equal(goal(acts), before)  # nothing was changed by all that


def test_objectives_of_unlike_counts_do_not_add() -> None:
    with pytest.raises(featviz.UserError, match="2 and 3 targets"):
        obj.channel("maps", [0, 1]) + obj.channel("maps", [0, 1, 2])


def test_a_sum_reads_all_its_layers() -> None:
    goal = obj.channel("conv4", [0]) + obj.channel("conv5", [0]) - obj.channel("conv4", [1])
    assert goal.layers == ("conv4", "conv5")


def test_a_thousand_objectives_are_one_flat_sum(acts: dict[str, torch.Tensor]) -> None:
    # nested calls would end at Python's limit of a thousand
    goal: Any = sum(obj.channel("vector", [i % 7, 0, 0]) for i in range(1120))
    assert goal(acts)[0].item() == pytest.approx(160 * acts["vector"][0].sum().item(), rel=1e-4)


def test_joint_objectives_say_what_they_are() -> None:
    one, two = obj.channel("conv5", [0]), obj.deepdream("conv4")
    assert (one - 0.5 * two).text == "mean of conv5 - 0.5 * deepdream of conv4"
    assert (one - two + two).text == "mean of conv5 - deepdream of conv4 + deepdream of conv4"
    assert (2 * (one + two)).text == "2 * (mean of conv5 + deepdream of conv4)"
    assert (one * two).text == "mean of conv5 * deepdream of conv4"


def test_the_highest_position_and_chosen_tokens(acts: dict[str, torch.Tensor]) -> None:
    high = max(acts["maps"][1, 2].flatten().tolist())
    assert obj.channel("maps", [0, 2, 3], over="max")(acts)[1].item() == high
    tokens = acts["tokens"]
    by_name: dict[str | int, torch.Tensor] = {
        "class": tokens[1, 0, 2],
        "patches": tokens[1, 1:, 2].mean(),
        4: tokens[1, 4, 2],
    }
    for which, value in by_name.items():
        score = obj.channel("tokens", [0, 2, 0], tokens=which)(acts)[1]
        assert score.item() == pytest.approx(value.item(), abs=1e-6)
    with pytest.raises(featviz.UserError, match="no token 9; the layer has 0 to 8"):
        obj.channel("tokens", [0, 2, 0], tokens=9)(acts)
    with pytest.raises(featviz.UserError, match="unknown tokens 'cls'"):
        obj.channel("tokens", [0], tokens="cls")
    with pytest.raises(featviz.UserError, match="unknown reduction 'median'"):
        obj.channel("tokens", [0], over="median")


def test_a_caricature_is_the_projection_times_the_cosine() -> None:
    acts = {"v": torch.tensor([[3.0, 4.0], [3.0, 4.0], [-3.0, -4.0]])}
    reference = torch.tensor([[5.0, 0.0]]).expand(3, 2)  # its length does not count
    for power, expected in ((0, [3, 3, -3]), (1, [1.8, 1.8, -0.3]), (2, [1.08, 1.08, -0.03])):
        scores = obj.caricature("v", reference, power=power)(acts)
        assert scores.tolist() == pytest.approx(expected)


def test_a_distance_is_a_share_of_the_references_square() -> None:
    reference = torch.tensor([[3.0, 4.0]]).expand(3, 2)
    acts = {"v": torch.tensor([[3.0, 4.0], [0.0, 0.0], [3.0, 9.0]])}
    assert obj.distance("v", reference)(acts).tolist() == pytest.approx([0, 1, 1])


def test_a_style_is_the_gram_matrix_whatever_the_size() -> None:
    texture = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]], [[0.0, 2.0], [0.0, 0.0]]]])  # (1, 2, 2, 2)
    # Gram matrix over 4 positions: diag(1/4, 1)
    same = texture.repeat(1, 1, 3, 2)
    other = torch.ones(1, 2, 1, 1)  # Gram matrix: all ones
    goal = obj.style_distance("v", texture)
    assert goal({"v": same}).item() == pytest.approx(0, abs=1e-7)
    assert goal({"v": other}).item() == pytest.approx((0.75 + 0 + 1 + 1) / 4)
    squared = obj.style_distance("v", texture, power=2)
    assert squared({"v": other}).item() == pytest.approx((0.75**2 + 0 + 1 + 1) / 4)


def test_costs_of_a_picture_are_the_sums_done_by_hand() -> None:
    x = torch.tensor([[[[0.0, 0.3], [0.4, 0.9]]]])
    acts = {"picture": x, "v": x}
    assert obj.total_variation()(acts).item() == pytest.approx(0.5, abs=1e-4)  # 0.3, 0.4 -> 0.5
    assert obj.total_variation(beta=2)(acts).item() == pytest.approx(0.25, abs=1e-4)
    assert obj.l1()(acts).item() == pytest.approx(0.4)
    assert obj.l1(around=0.5)(acts).item() == pytest.approx((0.5 + 0.2 + 0.1 + 0.4) / 4)
    root_mean_square = ((0 + 0.09 + 0.16 + 0.81) / 4) ** 0.5
    assert obj.l2()(acts).item() == pytest.approx(root_mean_square)
    assert obj.deepdream("v")(acts).item() == pytest.approx(root_mean_square**2)


def test_costs_have_finite_gradients_on_a_plain_picture() -> None:
    x = torch.full((1, 3, 6, 6), 0.5, requires_grad=True)
    for goal in (obj.total_variation(), obj.l1(around=0.5), obj.l2(around=0.5)):
        (gradient,) = torch.autograd.grad(goal({"picture": x}).sum(), x)
        assert gradient.isfinite().all()


def test_diversity_is_one_less_the_mean_cosine_of_gram_matrices(generator: torch.Generator) -> None:
    values = torch.rand(6, 3, 4, 5, generator=generator, dtype=torch.float64)
    scores = obj.diversity("maps", 3)({"maps": values})
    for group in (range(3), range(3, 6)):
        for i in group:
            cosines = []
            for j in group:
                one = torch.einsum("chw,dhw->cd", values[i], values[i])
                two = torch.einsum("chw,dhw->cd", values[j], values[j])
                if i != j:
                    cosines.append((one * two).sum() / one.norm() / two.norm())
            assert scores[i].item() == pytest.approx(1 - sum(cosines).item() / 2, abs=1e-12)


def test_pictures_alike_have_no_diversity_and_disjoint_ones_all() -> None:
    alike = torch.ones(2, 2, 3, 3)
    assert obj.diversity("v", 2)({"v": alike}).tolist() == pytest.approx([0, 0], abs=1e-6)
    apart = torch.zeros(2, 2, 3, 3)
    apart[0, 0] = apart[1, 1] = 1
    assert obj.diversity("v", 2)({"v": apart}).tolist() == pytest.approx([1, 1])


def test_alignment_is_the_mean_squared_difference_to_neighbors() -> None:
    values = torch.tensor([[0.0], [1.0], [3.0]])
    # differences: 0-1: 1, 1-3: 4 at one step (halved), 0-3: 9 at two steps (quartered)
    expected = [-(1 / 2 + 9 / 4) / 2, -(1 / 2 + 4 / 2) / 2, -(4 / 2 + 9 / 4) / 2]
    assert obj.alignment("v", 3)({"v": values}).tolist() == pytest.approx(expected)
    near = obj.alignment("v", 3, reach=1)({"v": values})
    assert near.tolist() == pytest.approx([-0.25, -1.25, -1.0])


@pytest.mark.parametrize("make", [obj.diversity, obj.alignment])
def test_groups_couple_their_own_pictures_and_no_others(
    make: Callable[[str, int], obj.Objective], acts: dict[str, torch.Tensor]
) -> None:
    values = torch.cat([acts["maps"], acts["maps"].flip(0)])[:4].requires_grad_()
    goal = make("maps", 2)
    scores = goal({"maps": values})
    (gradient,) = torch.autograd.grad(scores[0], values)
    assert gradient[1].abs().sum() > 0
    assert gradient[2:].abs().sum() == 0
    alone = values[2:].detach().requires_grad_()
    second = goal({"maps": alone}, [2, 3])
    assert torch.equal(second, scores[2:])
    assert torch.equal(
        torch.autograd.grad(second.sum(), alone)[0],
        torch.autograd.grad(goal({"maps": values}).sum(), values)[0][2:],
    )
    assert (obj.channel("maps", [0] * 4) + goal).group == 2
    with pytest.raises(ValueError, match=r"\[1, 2\] are not whole groups of 2"):
        goal({"maps": values[:2]}, [1, 2])
    with pytest.raises(featviz.UserError, match="a group of 1"):
        make("maps", 1)


def test_before_and_after_an_in_place_relu() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(inplace=True), torch.nn.Conv2d(4, 2, 1)
        )
    head = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model = Model(torch.nn.Sequential(net, head), name="t", preprocessing=8)
    pictures = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    units = [0, 1, 2, 3]
    spots = [(2, 2)] * 4
    before, after = obj.neuron("0.0", units, spots), obj.neuron("0.1", units, spots)
    acts = featviz.activations(model, pictures, ["0.0", "0.1"])
    with torch.no_grad():
        expected = net[0](model.normalize(pictures))[units, units, 2, 2]
    assert expected.min() < 0 < expected.max()
    assert torch.allclose(before(acts), expected, atol=1e-6)
    assert torch.allclose(after(acts), expected.relu(), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("conv5:12", lambda: obj.channel("conv5", [12])),
        (
            "conv5:12 - 0.5*conv4:7",
            lambda: obj.channel("conv5", [12]) - 0.5 * obj.channel("conv4", [7]),
        ),
        (
            "-conv4:7 + 2 * conv4:8",
            lambda: 2 * obj.channel("conv4", [8]) - obj.channel("conv4", [7]),
        ),
        ("conv5:3@1,2", lambda: obj.neuron("conv5", [3], [(1, 2)])),
        (
            "max(conv5:3) + center(conv5:4)",
            lambda: obj.channel("conv5", [3], over="max") + obj.center("conv5", [4]),
        ),
        (
            "logits:goldfish - .1*total_variation(picture)",
            lambda: obj.channel("logits", [GOLDFISH]) - 0.1 * obj.total_variation(),
        ),
        ("deepdream(conv3)", lambda: obj.deepdream("conv3")),
    ],
)
def test_a_text_describes_an_objective(
    text: str, build: Callable[[], obj.Objective], mini: Model
) -> None:
    goal, expected = obj.parse_objective(mini, text), build()
    assert goal.text == text
    assert set(goal.layers) == set(expected.layers)
    pictures = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    layers = [name for name in goal.layers if name != obj.PICTURE]
    acts = {**featviz.activations(mini, pictures, layers), "picture": pictures}
    assert torch.allclose(goal(acts, [0]), expected(acts, [0]))


GOLDFISH = 0


def test_a_text_names_tokens() -> None:
    net = torch.nn.Sequential(
        torch.nn.Flatten(2), torch.nn.Linear(16, 5), torch.nn.Flatten(), torch.nn.Linear(15, 2)
    )
    model = Model(net, name="t", preprocessing=4)
    pictures = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    acts = featviz.activations(model, pictures, ["1"])
    assert acts["1"].shape == (1, 3, 5)
    for text, expected in (
        ("class(1:2)", acts["1"][0, 0, 2]),
        ("patches(1:2)", acts["1"][0, 1:, 2].mean()),
        ("1:2", acts["1"][0, :, 2].mean()),
    ):
        score = obj.parse_objective(model, text)(acts, [0])
        assert score.item() == pytest.approx(expected.item(), abs=1e-6)
    with pytest.raises(featviz.UserError, match="has no tokens"):
        obj.parse_objective(model, "class(logits:1)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conv5", "names no unit"),
        ("conv5:12 + conv9:1", "no layer 'conv9'"),
        ("maximum(conv5:1)", "'maximum' in 'maximum\\(conv5:1\\)' is no objective"),
        ("conv5:999", "out of range"),
        ("", "a term is empty"),
    ],
)
def test_a_wrong_text_is_a_users_mistake(text: str, message: str, mini: Model) -> None:
    with pytest.raises(featviz.UserError, match=message):
        obj.parse_objective(mini, text)
