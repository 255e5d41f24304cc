"""The three AlexNets against a plain float64 reference, and the folding of batch normalization."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featviz.models.alexnet import (
    AlexNet,
    AlexNet2012,
    AlexNetMini,
    fold_batch_norm,
    folded_weight,
    with_batch_norm,
)

Form = type[AlexNet] | type[AlexNet2012] | type[AlexNetMini]
FORMS: Sequence[Form] = [AlexNet, AlexNet2012, AlexNetMini]
Array = NDArray[np.float64]


# The reference: numpy, float64, one picture (C, H, W), written from the papers.


def conv(x: Array, w: Array, b: Array, stride: int = 1, pad: int = 0, groups: int = 1) -> Array:
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    k = w.shape[-1]
    parts = []
    for xg, wg in zip(np.split(x, groups), np.split(w, groups), strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(xg, (k, k), axis=(1, 2))
        windows = windows[:, ::stride, ::stride]  # (C, H', W', k, k)
        parts.append(np.tensordot(wg, windows, axes=([1, 2, 3], [0, 3, 4])))
    out: Array = np.concatenate(parts) + b[:, None, None]
    return out


def pool(x: Array) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    largest: Array = windows[:, ::2, ::2].max(axis=(3, 4))
    return largest


def relu(x: Array) -> Array:
    positive: Array = np.maximum(x, 0)
    return positive


def norm(x: Array) -> Array:
    """Caffe's local response normalization: size 5, alpha 1e-4, beta .75, k 1."""
    out = np.empty_like(x)
    for c in range(len(x)):
        near = x[max(0, c - 2) : c + 3]
        out[c] = x[c] / (1 + 1e-4 / 5 * (near**2).sum(0)) ** 0.75
    return out


def weights(net: nn.Module, path: str) -> tuple[Array, Array]:
    weight, bias = net.get_parameter(f"{path}.weight"), net.get_parameter(f"{path}.bias")
    return weight.detach().double().numpy(), bias.detach().double().numpy()


def classify(net: nn.Module, x: Array) -> Array:
    for path in ("classifier.1", "classifier.4"):
        w, b = weights(net, path)
        x = relu(w @ x.ravel() + b)
    w, b = weights(net, "classifier.6")
    logits: Array = w @ x + b
    return logits


def alexnet(net: nn.Module, x: Array) -> Array:
    x = pool(relu(conv(x, *weights(net, "features.0"), stride=4, pad=2)))
    x = pool(relu(conv(x, *weights(net, "features.3"), pad=2)))
    for path in ("features.6", "features.8", "features.10"):
        x = relu(conv(x, *weights(net, path), pad=1))
    return classify(net, pool(x))


def alexnet_2012(net: nn.Module, x: Array) -> Array:
    x = pool(norm(relu(conv(x, *weights(net, "features.0"), stride=4))))
    x = pool(norm(relu(conv(x, *weights(net, "features.4"), pad=2, groups=2))))
    for path, groups in (("features.8", 1), ("features.10", 2), ("features.12", 2)):
        x = relu(conv(x, *weights(net, path), pad=1, groups=groups))
    return classify(net, pool(x))


def alexnet_mini(net: nn.Module, x: Array) -> Array:
    x = pool(relu(conv(x, *weights(net, "features.0"), stride=2, pad=3)))
    x = pool(relu(conv(x, *weights(net, "features.3"), pad=2)))
    for path in ("features.6", "features.8", "features.10"):
        x = relu(conv(x, *weights(net, path), pad=1))
    return classify(net, pool(x))


@pytest.mark.parametrize(
    ("form", "reference"),
    [(AlexNet, alexnet), (AlexNet2012, alexnet_2012), (AlexNetMini, alexnet_mini)],
)
@torch.no_grad()
def test_logits_equal_the_float64_reference(
    form: Form, reference: Callable[[nn.Module, Array], Array]
) -> None:
    torch.manual_seed(0)
    net = form(num_classes=7).eval()
    for parameter in net.parameters():  # torch's start is so small that biases would hide all else
        parameter.mul_(2)
    # As large as Caffe's inputs, so that the local response normalization is felt.
    picture = 50 * torch.randn(3, form.input_size, form.input_size)
    wanted = reference(net, picture.double().numpy())
    found = net(picture[None])[0].numpy()
    # Sums of thousands of float32 products: a relative error of some 1e-6 is rounding.
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_parameter_counts_are_those_of_the_papers_and_of_torchvision() -> None:
    with torch.device("meta"):
        counts = [sum(p.numel() for p in form().parameters()) for form in FORMS]
    assert counts[:2] == [61_100_840, 60_965_224]
    assert counts[2] * 2 <= 8_000_000, "alexnet-mini is to fit 8 MB in fp16"


def test_state_dict_has_torchvisions_names_and_shapes() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in AlexNet().state_dict().items()}
    convolutions = {
        0: (64, 3, 11),
        3: (192, 64, 5),
        6: (384, 192, 3),
        8: (256, 384, 3),
        10: (256, 256, 3),
    }
    linears = {1: (4096, 9216), 4: (4096, 4096), 6: (1000, 4096)}
    wanted: dict[str, tuple[int, ...]] = {}
    for i, (out, inputs, k) in convolutions.items():
        wanted |= {f"features.{i}.weight": (out, inputs, k, k), f"features.{i}.bias": (out,)}
    for i, (out, inputs) in linears.items():
        wanted |= {f"classifier.{i}.weight": (out, inputs), f"classifier.{i}.bias": (out,)}
    assert shapes == wanted


@pytest.mark.parametrize("form", FORMS)
def test_aliases_name_every_step_of_the_forward_pass_in_order(form: Form) -> None:
    with torch.device("meta"):
        net = form().eval()
        met: list[str] = []

        def note(path: str) -> Callable[..., None]:
            return lambda module, inputs, output: met.append(path)

        for path, module in net.named_modules():
            module.register_forward_hook(note(path))
        net(torch.zeros(1, 3, form.input_size, form.input_size))
    assert [path for path in met if path in form.aliases.values()] == list(form.aliases.values())
    kinds = {
        "conv": nn.Conv2d,
        "relu": nn.ReLU,
        "pool": nn.MaxPool2d,
        "fc": nn.Linear,
        "logi": nn.Linear,
        "norm": nn.LocalResponseNorm,
    }
    for alias, path in form.aliases.items():
        kind = next(k for start, k in kinds.items() if alias.startswith(start))
        assert isinstance(net.get_submodule(path), kind), alias


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_no_operation_is_in_place(form: Form) -> None:
    net = form(num_classes=3).eval()
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(path: str) -> Callable[..., None]:
        return lambda module, inputs, output: kept.update({path: (output, output.clone())})

    for path, module in net.named_modules():
        if not list(module.children()):
            module.register_forward_hook(keep(path))
    net(torch.randn(1, 3, form.input_size, form.input_size))
    for path, (then, copied) in kept.items():
        assert torch.equal(then, copied), path


def settled(seed: int = 0) -> AlexNetMini:
    """A small net whose normalizations have moved away from where they start."""
    torch.manual_seed(seed)
    net = AlexNetMini(num_classes=5)
    with_batch_norm(net)
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if ".norm." in name and tensor.is_floating_point():
            low = 0.5 if name.endswith(("var", "weight")) else -0.5
            tensor.data.uniform_(low, low + 1)
    return net.eval()


@torch.no_grad()
def test_folded_net_computes_what_the_normalized_net_did_in_eval_mode() -> None:
    net = settled()
    x = torch.randn(4, 3, 64, 64)
    before = net(x)
    kernels = folded_weight(net.features[0])
    inner = net.features[8](torch.ones(1, 256, 7, 7))
    fold_batch_norm(net)
    assert {type(m) for m in net.modules()} == {type(m) for m in AlexNetMini().modules()}
    assert net.state_dict().keys() == AlexNetMini(5).state_dict().keys()
    torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net.features[8](torch.ones(1, 256, 7, 7)), inner)
    assert torch.equal(net.get_parameter("features.0.weight"), kernels)


@torch.no_grad()
def test_folding_twice_or_a_plain_net_changes_nothing() -> None:
    net = fold_batch_norm(settled())
    before = {name: t.clone() for name, t in net.state_dict().items()}
    fold_batch_norm(net)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_last_layer_is_not_normalized_and_aliases_still_hold() -> None:
    net = AlexNetMini(num_classes=5)
    with_batch_norm(net)
    assert isinstance(net.classifier[6], nn.Linear)
    normalized = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(normalized) == 7
    taken: dict[str, Tensor] = {}
    net.get_submodule(AlexNetMini.aliases["conv3"]).register_forward_hook(
        lambda m, i, o: taken.update(conv3=o)
    )
    net(torch.randn(8, 3, 64, 64))
    # What leaves "conv3" is normalized: mean 0 and variance 1 in each channel of the batch.
    torch.testing.assert_close(taken["conv3"].mean((0, 2, 3)), torch.zeros(256), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        taken["conv3"].var((0, 2, 3), correction=0), torch.ones(256), atol=1e-3, rtol=0
    )


def test_mini_takes_smaller_pictures_and_its_average_pool_changes_nothing_at_64() -> None:
    net = AlexNetMini(num_classes=5).eval()
    maps = net.features(torch.randn(1, 3, 64, 64))
    assert maps.shape == (1, 256, 3, 3)
    assert torch.equal(net.avgpool(maps), maps)
    assert net(torch.randn(2, 3, 48, 48)).shape == (2, 5)
