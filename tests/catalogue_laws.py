"""Three laws that hold for a model of any family: its taps, its scores and Grad-CAM are the net's.

The oracle of each is the bare net with hooks of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from catalogue import calibrated, first_tensor, random_pictures, side_of
from torch import Tensor, nn

import featviz
from featviz.attribution.grad_cam import grad_cam_layer
from featviz.models.layers import tap
from featviz.models.model import Layer, Model


def clones(model: Model, x: Tensor) -> tuple[Tensor, dict[tuple[str, int], Tensor]]:
    """Logits of the net without featviz, and clones of what each run of each module gives."""
    found: dict[tuple[str, int], Tensor] = {}
    runs: Counter[str] = Counter()

    def keep(path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        runs[path] += 1
        found[path, runs[path]] = first_tensor(output).clone()

    modules = list(model.net.named_modules())
    handles = [m.register_forward_hook(partial(keep, path)) for path, m in modules]
    with torch.no_grad():
        logits = model.net.eval()(model.normalize(x))
    for handle in handles:
        handle.remove()
    return logits, found


def check_taps(name: str) -> None:
    model = calibrated(name)
    x = random_pictures(2, side_of(model), 1)
    logits, wanted = clones(model, x)
    runs = [(name, (one.path, one.call)) for name, one in model.layers.items()]
    layers = [name for name, run in runs if len(wanted[run]) == len(x)]
    with torch.no_grad():
        found = featviz.activations(model, x, layers)
    with tap(model, layers) as taken:
        out = model(x.clone().requires_grad_())
    # Attention in torch has another, faster program where no gradient is asked for.
    assert torch.allclose(out, logits, rtol=1e-4, atol=1e-4)
    same = torch.equal if "vit" not in name else partial(torch.allclose, rtol=1e-3, atol=1e-4)
    for one in layers:
        place = model.layer(one)
        value = wanted[place.path, place.call]
        kind = place.kind
        if value.dim() == 4 and kind in {"Linear", "LayerNorm"}:
            assert place.channels_last, one
        if kind in {"Conv2d", "BatchNorm2d"}:
            assert not place.channels_last, one
        value = value.permute(0, 3, 1, 2) if place.channels_last else value
        assert value.shape[1:] == place.shape, one
        assert torch.equal(found[one], value), one
        assert same(taken[one], value), one


FEW: dict[str, Any] = {"steps": 3, "precision": "float32", "seed": 1}


def means(model: Model, place: Layer, x: Tensor) -> Tensor:
    """Means over positions (N, C) of what a module gives at a run, by a hook of our own."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(first_tensor(output).clone())

    handle = model.net.get_submodule(place.path).register_forward_hook(keep)
    with torch.no_grad():
        model.net.eval()(model.normalize(x))
    handle.remove()
    value = found[place.call - 1]
    if value.dim() == 4:
        return value.mean((1, 2) if place.channels_last else (2, 3))
    return value.mean(1) if value.dim() == 3 else value


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=2e-4, atol=2e-5 * float(b.abs().max().clamp(min=1)))


def check_scores(name: str, layers: Sequence[str] | None = None, **options: Any) -> None:
    model = calibrated(name)
    for layer in model.layers if layers is None else layers:
        place = model.layer(layer)
        units = [0, place.units // 2]
        made = featviz.maximize(model, layer, units=units, objective="channel", **(FEW | options))
        own = means(model, place, made.images)[range(2), units]
        assert close(made.scores, own), (layer, made.scores, own)
        for score, flags in zip(made.scores, made.panel.flags, strict=True):
            assert score != 0 or {flag.name for flag in flags} & {"inactive", "no gradient"}


LAYERS = {
    "alexnet-mini": "relu5",
    "alexnet": "relu5",
    "vgg11": "features.19",
    "resnet18": "layer4",
    "squeezenet1_1": "classifier.2",
    "densenet121": "features",
    "googlenet": "inception5b",
    "inception_v3": "Mixed_7c",
    "shufflenet_v2_x0_5": "conv5",
    "mobilenet_v2": "features",
    "mobilenet_v3_small": "features",
    "mnasnet0_5": "layers",
    "efficientnet_b0": "features",
    "regnet_y_400mf": "trunk_output",
    "convnext_tiny": "features",
    "swin_t": "permute",
    "swin_v2_t": "permute",
    "vit_b_32": "encoder.layers.encoder_layer_10",
    "maxvit_t": "blocks.3",
    "timm/resnet10t": "layer4",
    "timm/convnext_atto": "norm_pre",
    "timm/vit_tiny_patch16_224": "blocks.10",
    "timm/mixer_s32_224": "norm",
    "timm/lcnet_035": "blocks",
    "timm/poolformer_s12": "stages",
    "timm/edgenext_xx_small": "norm_pre",
    "timm/nfnet_l0": "final_act",
}
CHANNELS_LAST = {"swin_t": ("features.7", "norm"), "convnext_tiny": ("features.7.2.block.2",)}


def plain(model: Model, path: str, x: Tensor, c: int, *, channels_last: bool) -> Tensor:
    """(H, W): equations 1 and 2 on the whole output of a module, enlarged."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept[:] = [output]
        return output.clone()  # what follows may work in place

    handle = model.net.get_submodule(path).register_forward_hook(keep)
    logits = model.net.eval()(model.normalize(x.clone().requires_grad_()))
    handle.remove()
    value, (slope,) = kept[0].detach(), torch.autograd.grad(logits[0, c], kept[0])
    if value.dim() == 3:  # tokens, perhaps with a class token in front
        side = int(value.shape[1] ** 0.5)
        value, slope = (
            v[:, -side * side :].transpose(1, 2).unflatten(2, (side, side)) for v in (value, slope)
        )
    if channels_last:
        value, slope = value.permute(0, 3, 1, 2), slope.permute(0, 3, 1, 2)
    weights = slope.mean((2, 3))
    coarse = torch.einsum("nc,nchw->nhw", weights, value).relu()[None]
    return F.interpolate(coarse, x.shape[-2:], mode="bilinear", align_corners=False)[0, 0]


def check_grad_cam(name: str) -> None:
    model = featviz.load(name) if name.startswith("alexnet-") else calibrated(name)
    x = random_pictures(1, side_of(model), 5)
    assert grad_cam_layer(model) == LAYERS[name]
    for layer in (None, *CHANNELS_LAST.get(name, ())):
        # The map must not be zero everywhere: of a few classes one will do.
        for c in range(1, 20):
            made = featviz.attribute(model, x, target=c, methods=["grad_cam"], layer=layer)
            if made.maps["grad_cam"].any():
                break
        assert made.layer == (layer or LAYERS[name])
        path = model.layer(str(made.layer)).path
        last = path in CHANNELS_LAST.get(name, ())
        expected = plain(model, path, x, c, channels_last=last)
        assert expected.any()
        peak = float(expected.max())
        torch.testing.assert_close(
            made.maps["grad_cam"][0], expected, rtol=1e-3, atol=1e-3 * peak, msg=f"{name} {path}"
        )
