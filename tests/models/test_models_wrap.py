"""`featviz.wrap`: the user's own module, which stays the user's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import featviz
from featviz.errors import UserError
from featviz.models.alexnet import AlexNetMini


def small(seed: int = 0) -> nn.Sequential:
    """Batch normalization and dropout in training mode: both would betray a pass in that mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(3, 4, 3),
                norm=nn.BatchNorm2d(4),
                relu=nn.ReLU(),
                drop=nn.Dropout(0.5),
                flat=nn.Flatten(),
                head=nn.Linear(4 * 36, 5),
            )
        )


def state(net: nn.Module) -> list[tuple[str, bool, Tensor]]:
    modes = [(name, module.training, torch.zeros(())) for name, module in net.named_modules()]
    wanted = [(name, p.requires_grad, p.detach().clone()) for name, p in net.named_parameters()]
    return modes + wanted + [(name, False, b.clone()) for name, b in net.named_buffers()]


def unchanged(before: list[tuple[str, bool, Tensor]], net: nn.Module) -> bool:
    after = state(net)
    return len(before) == len(after) and all(
        a[:2] == b[:2] and torch.equal(a[2], b[2]) for a, b in zip(before, after, strict=True)
    )


def test_an_alexnet_wrapped_by_hand_gives_the_logits_of_load(mini: featviz.Model) -> None:
    net = AlexNetMini()
    net.load_state_dict(mini.net.state_dict())
    model = featviz.wrap(
        net,
        input_size=64,
        mean=AlexNetMini.mean,
        std=AlexNetMini.std,
        classes=mini.classes,
        aliases=AlexNetMini.aliases,
        name="mine",
    )
    pictures = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert net.training
    assert torch.equal(model(pictures), mini(pictures))
    for layer in ("conv1", "relu5", "fc7"):
        mine = featviz.activations(model, pictures, [layer])[layer]
        assert torch.equal(mine, featviz.activations(mini, pictures, [layer])[layer])
    assert (model.name, model.classes, model.sha256) == ("mine", mini.classes, mini.sha256)
    assert list(model.layers) == list(mini.layers)


def test_the_module_keeps_its_mode_and_its_gradients() -> None:
    net = small()
    net.get_submodule("norm").eval()
    net.get_parameter("head.weight").requires_grad_(False)
    before = state(net)
    model = featviz.wrap(net, input_size=8)
    pictures = torch.rand(2, 3, 8, 8, requires_grad=True)
    logits = model(pictures)
    assert torch.equal(logits, model(pictures)), "dropout was active"
    featviz.activations(model, pictures.detach(), ["conv", "norm"])
    logits.sum().backward()
    assert pictures.grad is not None
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(UserError):
        model(pictures[:, :2])
    with torch.inference_mode():
        model(pictures.detach())
    featviz.kernel_sheet(model, "conv")
    assert unchanged(before, net)


ANALYSES: dict[str, Callable[[featviz.Model, Tensor], object]] = {
    "maximize": lambda m, x: featviz.maximize(m, "conv", units=[0], steps=2),
    "embed": lambda m, x: featviz.embed(m, x, "relu"),
    "pgd": lambda m, x: featviz.pgd(m, x, torch.tensor([0, 1]), eps=0.1, steps=2),
    "attribute": lambda m, x: featviz.attribute(m, x, methods=["saliency"]),
    "maps": lambda m, x: featviz.activation_maps(m, x[0], "conv"),
    "patch": lambda m, x: featviz.patch_times_kernel(m, x[0], "conv:1"),
    "kernels": lambda m, x: featviz.kernel_sheet(m),
    "layers": lambda m, x: featviz.summarize(m),
}


@pytest.mark.parametrize("analysis", ANALYSES)
def test_analyses_leave_the_module_as_it_was(analysis: str) -> None:
    net = small()
    before = state(net)
    model = featviz.wrap(net, input_size=8)
    ANALYSES[analysis](model, torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert unchanged(before, net)
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_an_error_within_the_module_leaves_it_as_it_was() -> None:
    class Failing(nn.Module):
        fails = False

        def forward(self, x: Tensor) -> Tensor:
            if self.fails:
                raise ZeroDivisionError
            return x

    net = nn.Sequential(Failing(), small())
    model = featviz.wrap(net, input_size=8)
    before = state(net)
    Failing.fails = True
    with pytest.raises(ZeroDivisionError):
        model(torch.rand(1, 3, 8, 8))
    assert unchanged(before, net)


def test_training_goes_on_between_two_calls() -> None:
    net = small()
    model = featviz.wrap(net, input_size=8)
    pictures = torch.rand(4, 3, 8, 8)
    first = model(pictures)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    nn.functional.cross_entropy(net(pictures), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    assert not torch.allclose(first, model(pictures))


def test_names_have_defaults() -> None:
    model = featviz.wrap(small(), input_size=8)
    assert model.name == "Sequential"
    assert model.classes == tuple(f"class {i}" for i in range(5))
    assert model.layer("logits").shape == (5,)
    pictures = torch.rand(2, 3, 8, 8)
    assert torch.equal(model.normalize(pictures), pictures)


def test_a_float64_module_computes_in_float64() -> None:
    model = featviz.wrap(small().double(), input_size=8, mean=(0.5, 0.4, 0.3))
    assert model(torch.rand(1, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5, 0.4)}, "mean has 2 values for 3 channels; give one each"),
        ({"std": (1, 0, 1)}, r"std \(1.0, 0.0, 1.0\): pictures are divided by it"),
        ({"aliases": {"conv1": "convv"}}, "alias conv1: no module 'convv'; did you mean conv"),
        ({"classes": ["a", "b"]}, "2 class names for a model of 5 classes"),
        ({"input_size": 9}, r"does not take pictures \(1, 3, 9, 9\): .*; check input_size"),
        ({"input_sice": 9}, "wrap has no option 'input_sice'; did you mean input_size"),
    ],
)
def test_mistakes_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        featviz.wrap(small(), **({"input_size": 8} | options))
    assert "\n" not in str(caught.value)
