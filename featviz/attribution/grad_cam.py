"""Grad-CAM: the layer that it reads, and its map (Selvaraju et al. 2017, arXiv:1610.02391).

By default it reads the last place where the whole signal is a map: every way from the picture to
the logits passes there, so neither one branch of several nor what a skip goes around is taken for
the whole. Poolings are left out, which only make the map coarser. A transformer's tokens are put
back on the grid of its patches; behind its last mixing of tokens the patches have no gradient, so
the place before it is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from featviz.errors import UserError
from featviz.models.frozen import frozen
from featviz.models.layers import tap

if TYPE_CHECKING:
    from featviz.models.model import Layer, Model


def grad_cam(model: Model, x: Tensor, target: int, layer: str) -> Tensor:
    """(H, W): equations 1 and 2 of the paper at a layer of maps, enlarged bilinearly."""
    with torch.enable_grad(), tap(model, [layer]) as taken:
        logit = model(x.clone().requires_grad_(True))[0, target]
        (gradient,) = torch.autograd.grad(logit, taken[layer])
    grid = grid_of(model, model.layer(layer))
    assert grid is not None
    maps, slopes = on_grid(taken[layer].detach(), grid), on_grid(gradient, grid)
    coarse = F.relu((slopes.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True))
    return F.interpolate(coarse, x.shape[-2:], mode="bilinear", align_corners=False)[0, 0]


def on_grid(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps (N, C, H, W) of maps, or of tokens (N, T, C) without the class token in front."""
    if values.dim() == 4:
        return values
    patches = values[:, -grid[0] * grid[1] :]
    maps: Tensor = patches.transpose(1, 2).unflatten(2, grid)
    return maps


def grid_of(model: Model, layer: Layer) -> tuple[int, int] | None:
    """Rows and columns of a layer's map; of tokens, those of the patches. None: it has none.

    Tokens have the grid of the last map before them, and may have one class token in front.
    """
    if layer.spatial:
        return layer.shape[1], layer.shape[2]
    if len(layer.shape) != 2:
        return None
    tokens, layers = layer.shape[0], list(model.layers.values())
    maps = [one.shape[1:] for one in layers[: layers.index(layer)] if one.spatial]
    fitting = [(h, w) for h, w in maps if tokens - h * w in {0, 1}]
    return fitting[-1] if fitting else None


def grad_cam_layer(model: Model, layer: str | None = None) -> str:
    """The layer that Grad-CAM reads: the given one, or the last where the whole signal is a map.

    Raises:
        UserError: The given layer has no map, or no layer has.
    """
    if layer is not None:
        place = model.layer(layer)
        if grid_of(model, place) is None:
            raise UserError(
                f"Grad-CAM needs maps and {place.name} has none (shape {place.shape}); take a "
                "convolution, or a layer of tokens on a grid"
            )
        return place.name
    maps = [one for one in model.layers.values() if grid_of(model, one) is not None]
    whole = _whole(model, maps) if maps else []
    if not whole:
        raise UserError(
            f"{model.name} has no layer that the whole signal passes as a map, which Grad-CAM "
            "needs; name one (layer), or take other methods"
        )
    return whole[-1].name


def _whole(model: Model, layers: Sequence[Layer]) -> list[Layer]:
    """Those layers with a map that every way from the picture to the logits passes."""
    blank = model.blank()
    noise = torch.rand(blank.shape, generator=torch.Generator().manual_seed(0))
    x = noise.to(blank).requires_grad_(True)
    with frozen(model), torch.enable_grad(), tap(model, [one.name for one in layers]) as taken:
        total = model(x).square().sum()
        reached = [place for place in layers if taken[place.name].requires_grad]
        values = [taken[place.name] for place in reached]
        slopes = torch.autograd.grad(total, values, allow_unused=True)
    found = []
    for place, value, slope in zip(reached, values, slopes, strict=True):
        grid = grid_of(model, place)
        if slope is None or grid is None or _passes_by(total.grad_fn, x, value.grad_fn):
            continue
        # Behind the last attention to them, tokens of patches are given and not read.
        if place.spatial or bool(on_grid(slope, grid).any()):
            found.append(place)
    pooled = {place.name for place in found if _is_pooled(model, place)}
    return [place for place in found if place.name not in pooled] or found


def _passes_by(top: Any, x: Tensor, node: Any) -> bool:
    """Whether a way in the graph of gradients leads from `top` to a leaf, but not through a node.

    Args:
        top: the graph's first node.
        x: the leaf.
        node: the node.
    """
    seen, open_nodes = {None, node}, [top]
    while open_nodes:
        one = open_nodes.pop()
        if one in seen:
            continue
        if getattr(one, "variable", None) is x:
            return True
        seen.add(one)
        open_nodes += [following for following, _ in one.next_functions]
    return False


def _is_pooled(model: Model, layer: Layer) -> bool:
    """Whether it is a pooling, or a container that gives what a pooling at its end gave."""
    if "Pool" in layer.kind:
        return True
    layers = list(model.layers.values())
    before = layers[max(0, layers.index(layer) - 1)]
    return before.path.rpartition(".")[0] == layer.path and "Pool" in before.kind
